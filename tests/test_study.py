"A run that is killed while it trains, and goes on in another process."
import hashlib
import shutil
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

START = 'import sys; from fmri_ldm.cli import main; sys.exit(main())'
CONFIG = '''
split: {counts: [4, 1, 2]}
autoencoder: {stride: [4, 4, 4], latent_channels: 4, hidden: 8, depth: 1}
train_autoencoder: {steps: 10, every: 5, batch_size: 4}
denoiser: {rank: 4, network: {hidden: [8, 16], heads: 2}}
train_denoiser: {steps: 320, every: 20, batch_size: 4}
'''


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Seven people, two labels, 16x16x8 voxels."
    home, rng, rows = tmp_path_factory.mktemp('home'), np.random.default_rng(0), ['path\tlabel\tsubject']
    (home/'data').mkdir()
    for i in range(7):
        for k, label in enumerate('ab'):
            x = rng.standard_normal((16, 16, 8)) + 3*(np.arange(16) // 8 == k)[:, None, None]
            nib.save(nib.Nifti1Image(x.astype(np.float32), np.eye(4)), home/'data'/f'{i}{label}.nii.gz')
            rows.append(f'{i}{label}.nii.gz\t{label}\t{i}')
    (home/'data/manifest.tsv').write_text('\n'.join(rows) + '\n')
    (home/'c.yaml').write_text(CONFIG)
    return home


def start(home, out, *more):
    words = ['run', 'c.yaml', '--data', 'data', '--out', out, '--mode', 'train', '--device', 'cpu', *more]
    return subprocess.Popen([sys.executable, '-c', START, *words], cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(done):
    out, err = done.communicate(timeout=300)
    return done.returncode, out, err


def stop_at(home, out, step, how):
    "Start a run and send it a signal once a step of the denoiser is in the table."
    for _ in range(8):                                  # on a busy machine we may look too late
        shutil.rmtree(home/out, ignore_errors=True)
        p, table = start(home, out), home/out/'losses.csv'
        until = time.time() + 200
        while p.poll() is None and time.time() < until:
            if table.is_file() and f'\n{step},denoiser,' in table.read_text(): break
            time.sleep(.01)
        p.send_signal(how)
        code, _, err = finish(p)
        if code: return code, err
    pytest.fail('eight times it was done before the signal came')


@pytest.mark.skipif(sys.platform == 'win32', reason='no such signals there')
def test_killed_runs_go_on(home):
    code, _, err = finish(start(home, 'whole'))
    assert code == 0, err
    names = ['losses.csv', 'model/model.safetensors', *(f'checkpoints/{n}.safetensors' for n in ('last', 'best', 'autoencoder-last', 'autoencoder-best'))]
    want = {n: hashlib.sha256((home/'whole'/n).read_bytes()).hexdigest() for n in names}
    for how, name in (signal.SIGKILL, 'killed'), (signal.SIGINT, 'stopped'):
        code, err = stop_at(home, name, 130, how)
        if how == signal.SIGINT: assert code == 130 and err.splitlines()[-1].startswith('interrupted: step 13') and '--resume' in err, err
        assert not (home/name/'model').exists()
        code, _, err = finish(start(home, name))
        assert code == 2 and 'not empty' in err and '--resume' in err
        code, _, err = finish(start(home, name, '--resume', '--set', 'train_denoiser.steps=300'))
        assert code == 2 and 'another train_denoiser.steps' in err
        code, _, err = finish(start(home, name, '--resume'))
        assert code == 0 and 'going on after step' in err, err
        assert {n: hashlib.sha256((home/name/n).read_bytes()).hexdigest() for n in names} == want


def test_average_chosen_after_training_and_a_transformer(home):
    "`ema: chosen` and `kind: dit` by config: the saved model is the chosen one, and draws."
    from fmri_ldm.core import load_tensors
    from fmri_ldm.latent import LatentDiffusion
    sets = ['train_denoiser.ema=chosen', 'train_denoiser.steps=32']
    config = (home/'c.yaml').read_text().replace('network: {hidden: [8, 16], heads: 2}', 'network: {kind: dit, hidden: 24, depth: 1, heads: 2}')
    (home/'dit.yaml').write_text(config)
    words = ['run', 'dit.yaml', '--data', 'data', '--out', 'dit', '--mode', 'train', '--device', 'cpu']
    for text in sets: words += ['--set', text]
    p = subprocess.run([sys.executable, '-c', START, *words], cwd=home, capture_output=True, text=True, timeout=300)
    assert p.returncode == 0, p.stderr
    assert 'average of the weights: spread' in p.stderr
    folder = home/'dit'/'checkpoints'/'denoiser-averages'
    assert len(list(folder.glob('ema-*.safetensors'))) == 32
    model = LatentDiffusion.from_pretrained(home/'dit'/'model', device='cpu')
    assert model.config()['denoiser']['network']['kind'] == 'dit'
    assert len(model.generate('a', num_inference_steps=2)) == 1
    best = load_tensors(home/'dit'/'checkpoints'/'best.safetensors')[0]
    spread = float(p.stderr.split('spread ')[1].split(',')[0])
    same = all((model.denoiser.state_dict()[k] == v).all() for k, v in best.items())
    assert same == (spread == 0)                        # chosen: not the fixed average's weights, unless those won
    bad = subprocess.run([sys.executable, '-c', START, *words[:1], 'dit.yaml', '--data', 'data', '--out', 'no', '--set', 'denoiser.network.hiden=3'],
                         cwd=home, capture_output=True, text=True, timeout=300)
    assert bad.returncode == 2 and 'hidden' in bad.stderr and 'Traceback' not in bad.stderr and not (home/'no').exists()
