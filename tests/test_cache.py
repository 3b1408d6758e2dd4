"The cache among processes and on bad disks, and loaders whose processes are killed."
import os
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

FILL = '''
import resource, signal, sys, time
from pathlib import Path
from fmri_ldm.cache import cache_array, map_array
from fmri_ldm.core import InputError
from fmri_ldm.rows import Row, Source
from fmri_ldm.volume import Geometry
data, cache, seconds, limit = sys.argv[1:]
if int(limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
src, reads = Source([Row(p) for p in sorted(Path(data).glob('*.nii.gz'))], []), []
def progress(i, n):
    reads.append(i)
    print('read', i, flush=True)
    time.sleep(float(seconds))
try: path = cache_array(src, Geometry.fit(src.image(0), stride=1), cache=cache, progress=progress)
except InputError as e: sys.exit(f'error: {e}')
print('done', len(reads), float(map_array(path, verify=True).double().sum()))
'''

LOAD = '''
import multiprocessing, sys
from fmri_ldm.cache import Patches, patch_batches
batches = patch_batches(Patches(sys.argv[1], 4, each=10**6), 2, workers=2)
next(batches)
print(*[p.pid for p in multiprocessing.active_children()], flush=True)
for b in batches: pass
'''


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home, rng = tmp_path_factory.mktemp('home'), np.random.default_rng(0)
    (home/'data').mkdir()
    for i in range(6): nib.save(nib.Nifti1Image(rng.normal(size=(16, 16, 16)).astype(np.float32), np.eye(4)), home/f'data/{i}.nii.gz')
    return home


def start(home, cache, seconds=0, limit=0):
    words = [sys.executable, '-c', FILL, home/'data', cache, str(seconds), str(limit)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(p):
    out, err = p.communicate(timeout=120)
    return p.returncode, out.split()[-3:], err


def names(folder): return sorted(p.name for p in folder.iterdir())


def alive(pid):
    try: return open(f'/proc/{pid}/stat').read().rsplit(')')[-1].split()[0] != 'Z'
    except OSError: return False


def test_three_at_once_and_one_killed(home, tmp_path):
    cache = tmp_path/'cache'
    first = start(home, cache, 60)
    assert first.stdout.readline() == 'read 1\n'
    others = [start(home, cache, .1) for _ in range(2)]
    time.sleep(4)                                       # they wait for the one that fills
    assert all(p.poll() is None for p in others) and len(names(cache)) == 2
    first.kill()
    finish(first)
    done = [finish(p) for p in others]
    assert [d[0] for d in done] == [0, 0], done
    assert sorted(d[1][1] for d in done) == ['0', '6'] and done[0][1][2] == done[1][1][2]
    left, = names(cache)
    assert left.startswith('volumes-')
    assert finish(start(home, cache))[1][1] == '0'      # and it is found again


def test_leftovers_of_another_study_are_swept(home, tmp_path):
    cache = tmp_path/'cache'
    cache.mkdir()
    dead = f'{"0123456789abcdef"}'
    (cache/f'.aabbccddeeffvolumes-{dead}.npy').write_bytes(b'half')
    (cache/f'.volumes-{dead}.lock').touch()
    (cache/'notes.txt').write_text('mine')
    assert finish(start(home, cache))[0] == 0
    assert [n for n in names(cache) if not n.startswith('volumes-')] == ['notes.txt']


def test_live_fill_is_left_alone(home, tmp_path):
    "Another study fills the same folder meanwhile: nothing of the first is swept."
    cache, rng = tmp_path/'cache', np.random.default_rng(1)
    (tmp_path/'data').mkdir()
    for i in range(6): nib.save(nib.Nifti1Image(rng.normal(size=(8, 8, 8)).astype(np.float32), np.eye(4)), tmp_path/f'data/{i}.nii.gz')
    first = start(home, cache, 1)
    assert first.stdout.readline() == 'read 1\n'
    assert finish(start(tmp_path, cache))[0] == 0
    assert finish(first)[0] == 0 and len(names(cache)) == 2


def test_disk_full(home, tmp_path):
    "A limit on file size stands for a full disk: writing fails in the middle."
    cache = tmp_path/'cache'
    code, out, err = finish(start(home, cache, limit=40_000))
    assert code == 1 and err.startswith(f'error: {cache}/volumes-') and 'File too large' in err and err.count('\n') == 1, err
    assert names(cache) == []


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='a folder that nobody may write to')
def test_read_only(home):
    code, out, err = finish(start(home, '/proc/self/cache'))
    assert code == 1 and err.startswith('error: /proc/self/cache: ') and err.count('\n') == 1, err


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
@pytest.mark.parametrize('victim', ['worker', 'parent'])
def test_killed_loader(home, tmp_path, victim):
    "A worker dies: one line, no wait. The parent dies: its workers go."
    cache = tmp_path/'cache'
    assert finish(start(home, cache))[0] == 0
    path, = cache.iterdir()
    p = subprocess.Popen([sys.executable, '-c', LOAD, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    workers = [int(w) for w in p.stdout.readline().split()]
    assert len(workers) == 2
    os.kill(workers[0] if victim == 'worker' else p.pid, signal.SIGKILL)
    _, err = p.communicate(timeout=30)
    if victim == 'worker': assert err.strip().endswith('one died (exit code -9); is memory short? take fewer, or workers=0'), err
    until = time.time() + 15
    while any(map(alive, workers)) and time.time() < until: time.sleep(.2)
    assert not any(map(alive, workers))
