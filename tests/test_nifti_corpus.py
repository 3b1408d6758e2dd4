"Strangers' images: `scan_volume` and `load_volume` agree with each other and with what we expect, quickly and in little memory."
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from nifti_corpus import SECRET, make_nifti_corpus  # noqa: E402

from fmri_ldm.core import InputError  # noqa: E402
from fmri_ldm.nifti import load_volume, scan_volume, volume_info  # noqa: E402

MEASURE = '''
import json, re, resource, sys, time, warnings
import scipy.ndimage
from fmri_ldm.core import InputError
from fmri_ldm.nifti import load_volume, scan_volume
def peak():                                           # MB; a child's ru_maxrss may begin with its parent's
    try: return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])/1024
    except OSError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 1024)
warnings.simplefilter('ignore')
before, out = peak(), {}
for path in sys.argv[1:]:
    start = time.process_time()
    try: scan_volume(path)
    except InputError: pass
    out[path] = time.process_time() - start, peak() - before
print(json.dumps(out))
'''


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp('corpus')
    return folder, make_nifti_corpus(folder)


def verdict(f, path):
    "('ok' | 'warn' | 'bad', everything that was said)"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        try: f(path); kind, error = 'ok', []
        except InputError as e: kind, error = 'bad', [str(e)]
    assert all(w.category is UserWarning for w in seen), [str(w.message) for w in seen]
    said = error + [str(w.message) for w in seen]
    return ('warn' if said and kind == 'ok' else kind), said


def test_the_corpus_is_large_and_small(corpus):
    folder, files = corpus
    assert len(files) > 200 and len({name for name, _ in files}) == len(files)
    assert sum(f.lstat().st_blocks*512 for f in folder.iterdir()) < 30e6


def test_same_files_each_time(corpus, tmp_path):
    folder, files = corpus
    assert make_nifti_corpus(tmp_path) == files
    for name, _ in files:
        if name.startswith('bomb') or not (folder/name).is_file() or (folder/name).is_symlink(): continue
        assert (folder/name).read_bytes() == (tmp_path/name).read_bytes(), name


def test_verdicts(corpus):
    folder, files = corpus
    wrong = []
    for name, want in files:
        kind, said = verdict(scan_volume, folder/name)
        want, _, word = want.partition(':')
        for line in said:
            if SECRET in line or not line.isprintable() or len(line) > 1200: wrong.append((name, 'says', line[:200]))
        if kind != want or (word and word.lower() not in said[0].lower()): wrong.append((name, want, word, kind, said))
        if kind == 'bad' and (': ' not in said[0] or '; ' not in said[0]): wrong.append((name, 'no remedy', said))
        if not name.startswith('bomb') and verdict(load_volume, folder/name) != (kind, said):
            wrong.append((name, 'load_volume says', verdict(load_volume, folder/name), 'not', said))
    assert not wrong, '\n'.join(map(str, wrong))


def test_info_reports_what_is_refused(corpus):
    folder, files = corpus
    for name, want in files:
        if name.startswith('bomb'): continue
        kind, _ = verdict(volume_info, folder/name)
        assert want.startswith('bad') or kind != 'bad', name
    assert volume_info(folder/'hole.nii')['nonfinite'] == 9
    assert volume_info(folder/'all_zero.nii')['max'] == 0


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='not on this system')
def test_bombs(corpus):
    folder, files = corpus
    bombs = [str(folder/name) for name, _ in files if name.startswith('bomb')]
    done = subprocess.run([sys.executable, '-c', MEASURE, *bombs], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    promised = 'bomb_sparse', 'bomb_zeros', 'bomb_series.nii.gz', 'bomb_nan'     # as large as allowed: must be read
    for path, (seconds, mb) in json.loads(done.stdout).items():
        assert mb < 200, (path, mb)
        assert seconds < (15 if any(p in path for p in promised) else 1), (path, seconds)
