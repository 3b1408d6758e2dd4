"`torchrun --nproc_per_node 2 -m fmri_ldm run`: the numbers of one process, and a run that goes on with one."
import csv
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='gloo and signals')
spec = importlib.util.spec_from_file_location('kills', Path(__file__).resolve().parents[1]/'benchmarks'/'kills.py')
kills = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kills)
from fmri_ldm.core import load_tensors  # noqa: E402

ONE = [sys.executable, '-m', 'fmri_ldm']
TWO = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '-m', 'fmri_ldm']


def start(how, home, out, *more):
    env = dict(os.environ, OMP_NUM_THREADS='1')
    words = kills.words(home/'data', home/out, *more)
    return subprocess.Popen([*how, *words], cwd=home, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*args):
    p = start(*args)
    out, err = p.communicate(timeout=300)
    return p.returncode, out, err


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('launch')
    kills.small_study(home/'data')
    code, _, err = run(ONE, home, 'one', '--set', 'training.accumulate=2')
    assert code == 0, err
    return home


def same(home, other, tolerance=1e-5):
    "Losses and weights of a run and of the one made by one process."
    a, b = (list(csv.DictReader((home/n/'losses.csv').open())) for n in ('one', other))
    assert len(a) == len(b) == 50
    for x, y in zip(a, b):
        assert x.keys() == y.keys() and (x['step'], x['stage']) == (y['step'], y['stage'])
        assert all(abs(float(x[k]) - float(y[k])) <= tolerance*max(1, abs(float(x[k]))) for k in x if k != 'stage' and x[k])
    for name in ('checkpoints/autoencoder-last', 'checkpoints/last', 'checkpoints/best', 'model/model'):
        x, y = (load_tensors(home/n/f'{name}.safetensors')[0] for n in ('one', other))
        assert x.keys() == y.keys()
        for k in x: assert (x[k].double() - y[k].double()).abs().sum() <= tolerance*max(1, x[k].double().abs().sum()), k


def test_two_processes_do_what_one_does(home):
    code, out, err = run(TWO, home, 'two')
    assert code == 0, err
    assert err.count('train the denoiser') == 1 and out.count('folder:') == 1      # one of them speaks
    same(home, 'two')


def test_begun_on_two_goes_on_on_one(home):
    p, table = start(TWO, home, 'moved'), home/'moved'/'losses.csv'
    end = time.monotonic() + 200
    while time.monotonic() < end and not (table.is_file() and '\n12,denoiser,' in table.read_text()): time.sleep(.002)
    p.send_signal(signal.SIGTERM)
    _, err = p.communicate(timeout=60)
    assert p.returncode != 0 and not (home/'moved'/'model').exists()
    assert sum('interrupted: step' in line for line in err.splitlines()) == 1, err
    code, _, err = run(ONE, home, 'moved', '--resume', '--set', 'training.accumulate=2')
    assert code == 0 and 'going on after step' in err, err
    same(home, 'moved')


def test_bad_input_is_told_once(home):
    code, _, err = run(TWO, home, 'one', '--set', 'train_denoiser.lr=1')
    mine = [line for line in err.splitlines() if line.startswith('error:')]
    assert code != 0 and len(mine) == 1 and 'not empty' in mine[0], err
