"""`fmri_ldm check` over a corpus of good, odd and bad files: every fault named, in one line, with little memory and soon."""
import contextlib
import io
import json
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from nifti_corpus import make_nifti_corpus
from npz_corpus import make_npz_corpus
from study_corpus import make_study_corpus

from fmri_ldm.cli import main

SECRET = 'DOE^JANE'  # written into headers of the corpus: must never be shown


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    out = []
    for make in make_nifti_corpus, make_npz_corpus, make_study_corpus:
        folder = tmp_path_factory.mktemp(make.__name__)
        out += [(folder, name, expected) for name, expected in make(folder)]
    return out


def check(path):
    "Exit code, stdout, stderr and seconds of `fmri_ldm check PATH --json`, in this process."
    out, err, start = io.StringIO(), io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(record=True):
        warnings.simplefilter('always')
        code = main(['check', str(path), '--json'])
    return code, out.getvalue(), err.getvalue(), time.monotonic() - start


def wrong(folder, name, expected):
    "What is wrong with the answer to one case, or None."
    code, out, err, seconds = check(folder/name)
    shown = out + err
    lines = [x for x in err.splitlines() if x.startswith('error: ')]
    if 'Traceback' in shown or '--debug' in shown: return f'crash: {err[-300:]}'
    if SECRET in shown: return 'header text is shown'
    if re.search(r'[\x00-\x08\x0b-\x1f\x7f]', shown.replace('\n', '')): return 'control characters are shown'
    if seconds > 20: return f'{seconds:.1f} s'
    if expected.startswith('bad'):
        if code != 2: return f'exit {code}: {out[:300]}'
        if len(lines) != 1 or not lines[0].count(': ') > 1: return f'error lines: {err[:300]}'
        if Path(name).name[:20].isascii() and name.split('/')[0][:15].isprintable() and name.split('/')[0][:15] not in lines[0]: return f'does not name it: {lines[0][:300]}'
        words = expected.partition(':')[2].lower()
        said = (lines[0] + ' '.join(json.loads(out)['problems'] if out else ())).lower()
        return None if any(w in said for w in words.split('|')) else f'says {lines[0][:300]}'
    if code: return f'exit {code}: {err[:300]}'
    told = json.loads(out)['warnings'] if 'warnings' in json.loads(out) else []
    return f'warns of nothing: {out[:300]}' if expected == 'warn' and not told else None


def test_every_case(corpus):
    bad = {f'{folder.name}/{name}'[:80]: w for folder, name, expected in corpus if (w := wrong(folder, name, expected))}
    n_bad = sum(e.startswith('bad') for _, _, e in corpus)
    print(f'{len(corpus)} cases, {n_bad} of them bad: {len(bad)} wrong answers')
    assert len(corpus) >= 200 and n_bad >= 120
    assert not bad, json.dumps(bad, indent=1, ensure_ascii=False)


def test_nothing_is_written(corpus):
    "check leaves every folder as it was."
    folders = {f for f, _, _ in corpus}
    before = {f: sorted(str(p) for p in f.rglob('*')) for f in folders}
    for folder, name, _ in corpus[::10]: check(folder/name)
    assert before == {f: sorted(str(p) for p in f.rglob('*')) for f in folders}


MEASURE = '''
import resource, sys, time, runpy
import fmri_ldm.check, numpy, nibabel
from fmri_ldm.cli import main
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
base, start = peak(), time.monotonic()
code = main(["check", sys.argv[1], "--json"])
print(f"MEASURED {code} {peak() - base:.0f} {time.monotonic() - start:.2f}", file=sys.stderr)
'''


def test_bombs_cost_little(corpus):
    "The largest and strangest, each in a process of its own: memory above import, and seconds."
    words = ('bomb', 'huge', 'many_rows', 'one_long', 'wide', 'deep', 'large', 'big', 'promise')
    cases = [(f, n, e) for f, n, e in corpus if any(w in n.lower() for w in words)]
    assert len(cases) >= 10
    bad = {}
    for folder, name, expected in cases:
        done = subprocess.run([sys.executable, '-c', MEASURE, str(folder/name)], capture_output=True, text=True, timeout=60)
        code, mb, s = re.search(r'MEASURED (\d+) (\d+) ([\d.]+)', done.stderr).groups()
        if float(mb) > 300 or float(s) > 20: bad[name] = f'{mb} MB, {s} s'
    assert not bad, bad


def test_check_starts_soon():
    "Without a config, check imports no torch; the whole process is a matter of a second or two."
    code = "import sys; from fmri_ldm.cli import main; main(['check', 'nothing.nii']); assert 'torch' not in sys.modules and 'nilearn' not in sys.modules"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith('error: nothing.nii: ')
