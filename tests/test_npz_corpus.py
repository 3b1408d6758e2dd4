"Archives from strangers: what scan_npz and load say of each, and what a bomb costs."
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from npz_corpus import make_npz_corpus

from fmri_ldm.core import InputError
from fmri_ldm.voxels import open_npz, scan_npz


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp('npz')
    return folder, make_npz_corpus(folder)


def call(f, path):
    "(what it gives, its error, number of warnings)"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        try: return f(path), None, len(seen)
        except InputError as e: return None, e, len(seen)


def load_all(path):
    data = open_npz(path)
    out = {s: data.load(s) for s in data.names}
    for s in data.names:
        for c in data.columns[s]: assert len(data.column(s, c)) == len(out[s])
    return out


def test_size(corpus):
    folder, files = corpus
    assert len(files) >= 35 and len({n for n, _ in files}) == len(files)
    assert sum(p.stat().st_size for p in folder.glob('*.npz') if p.is_file()) < 20e6


def test_same_bytes_again(corpus, tmp_path):
    folder, files = corpus
    assert make_npz_corpus(tmp_path) == files
    for name, _ in files:
        if (folder/name).is_file(): assert (folder/name).read_bytes() == (tmp_path/name).read_bytes(), name


def test_every_file(corpus):
    folder, files = corpus
    wrong = []
    for name, expected in files:
        path = folder/name
        info, error, warned = call(scan_npz, path)
        arrays, load_error, _ = call(load_all, path)
        if str(error) != str(load_error): wrong.append((name, str(error), str(load_error)))
        if expected.startswith('bad:'):
            if error is None or expected[4:] not in str(error) or name not in str(error) or '\n' in str(error):
                wrong.append((name, expected, str(error)))
            continue
        if error or bool(warned) != (expected == 'warn'): wrong.append((name, expected, str(error)))
        elif info['subjects'] != len(arrays): wrong.append((name, info))
        else:
            mean = np.concatenate([x.ravel() for x in arrays.values()]).mean(dtype=float)
            if abs(info['mean'] - mean) > 1e-5*max(1, abs(mean)): wrong.append((name, info['mean'], mean))
            json.dumps(info)
    assert not wrong, wrong


COST = '''import json, resource, sys, time
import numpy
from fmri_ldm.core import InputError
from fmri_ldm.voxels import scan_npz
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
before, start = peak(), time.perf_counter()
try: scan_npz(sys.argv[1])
except InputError: pass
print(json.dumps([peak() - before, time.perf_counter() - start]))
'''


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='ru_maxrss is in KiB on Linux')
def test_bombs_are_cheap(corpus):
    folder, files = corpus
    for name in [n for n, _ in files if n.startswith('bomb')]:
        done = subprocess.run([sys.executable, '-c', COST, folder/name], capture_output=True, text=True, timeout=120,
                              env=dict(os.environ, OMP_NUM_THREADS='1'))
        assert done.returncode == 0, done.stderr
        mb, seconds = json.loads(done.stdout)
        limit = 20 if name in ('bomb_zeros.npz', 'bomb_longer_and_agreed.npz') else 2  # these two are read to their end
        assert mb < 200 and seconds < limit, (name, mb, seconds)


def test_flipped_bytes(corpus, tmp_path):
    "Whatever a byte hits, only InputError comes out."
    folder, _ = corpus
    rng, path, refused = np.random.default_rng(0), tmp_path/'f.npz', 0
    for name in 'ok_betas.npz', 'ok_stored.npz', 'ok_fortran.npz':
        good = (folder/name).read_bytes()
        for _ in range(100):
            raw = bytearray(good)
            for _ in range(rng.integers(1, 4)): raw[rng.integers(len(raw))] = rng.integers(256)
            path.write_bytes(raw)
            a, b = call(scan_npz, path)[1], call(load_all, path)[1]
            assert str(a) == str(b)
            refused += a is not None
    assert refused > 200
