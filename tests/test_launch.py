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
    env = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
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


CONFIG = """compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config: {fsdp_version: VERSION, fsdp_auto_wrap_policy: NO_WRAP, fsdp_cpu_ram_efficient_loading: true, fsdp_reshard_after_forward: true}
machine_rank: 0
mixed_precision: bf16
num_machines: 1
num_processes: 2
use_cpu: false
"""


def accelerated(home, version):
    (home/f'fsdp{version}.yaml').write_text(CONFIG.replace('VERSION', str(version)))
    return [sys.executable, '-m', 'accelerate.commands.launch', '--config_file', str(home/f'fsdp{version}.yaml'), '-m', 'fmri_ldm']


def test_in_shares_by_accelerates_own_configuration(home):
    "`accelerate launch` with FSDP: the numbers of one process, goes on with one; FSDP 1 is refused, once."
    code, out, err = run(accelerated(home, 2), home, 'shares')
    assert code == 0 and err.count('train the denoiser') == 1 and out.count('folder:') == 1, err
    same(home, 'shares')
    code, _, err = run(accelerated(home, 1), home, 'old')
    mine = [line for line in err.splitlines() if line.startswith('error:')]
    assert code != 0 and mine == ['error: accelerate config: asks for FSDP 1; set fsdp_version: 2 in fsdp_config'], err


def test_bad_input_is_told_once(home):
    code, _, err = run(TWO, home, 'one', '--set', 'train_denoiser.lr=1')
    mine = [line for line in err.splitlines() if line.startswith('error:')]
    assert code != 0 and len(mine) == 1 and 'not empty' in mine[0], err
