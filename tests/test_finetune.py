"Fine-tuning through the command line: from one model to the next, killed and resumed, and what is refused."
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import torch

from fmri_ldm.cli import main
from fmri_ldm.core import load_tensors
from fmri_ldm.latent import LatentDiffusion

START = 'import sys; from fmri_ldm.cli import main; sys.exit(main())'
CONFIG = '''
split: {counts: [6, 1, 0]}
autoencoder: {stride: [4, 4, 4], latent_channels: 4, hidden: 8, depth: 1}
train_autoencoder: {steps: 10, every: 5, batch_size: 4}
denoiser: {rank: 4, network: {hidden: [8, 16], heads: 2}}
train_denoiser: {steps: 20, every: 10, batch_size: 4}
sampling: {num_inference_steps: 3, suffix: zmap}
'''


def people(folder, labels, n=7, first=0):
    "A study of n people, 16x16x8 voxels; each label has a third of its own."
    rng, rows = np.random.default_rng(first), ['path\tlabel\tsubject']
    folder.mkdir()
    for i in range(first, first + n):
        for label in labels:
            x = rng.standard_normal((16, 16, 8)) + 3*(np.arange(16)//6 == 'abc'.index(label))[:, None, None]
            nib.save(nib.Nifti1Image(x.astype(np.float32), np.diag([-3., 3, 3, 1])), folder/f'{i}{label}.nii.gz')
            rows.append(f'{i}{label}.nii.gz\t{label}\tp{i}')
    (folder/'manifest.tsv').write_text('\n'.join(rows) + '\n')


def start(home, *words):
    return subprocess.Popen([sys.executable, '-c', START, *map(str, words)], cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def call(home, *words):
    "(exit code, stdout, stderr) of the program, in this process."
    old = os.getcwd()
    os.chdir(home)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err: code = main([str(w) for w in words])
    finally: os.chdir(old)
    return code, out.getvalue(), err.getvalue()


def finish(p):
    "(exit code, stdout, stderr) of a process."
    out, err = p.communicate(timeout=300)
    return p.returncode, out, err


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A model of labels a and b; further people with c, and with c and a."
    home = tmp_path_factory.mktemp('home')
    people(home/'base', 'ab')
    people(home/'c', 'c', first=20)
    people(home/'ca', 'ca', n=5, first=40)
    (home/'c.yaml').write_text(CONFIG)
    code, _, err = call(home, 'train', 'c.yaml', '--data_dir', 'base', '--out', 'run', '--device', 'cpu')
    assert code == 0, err
    return home


def tune(home, out, *more, data='c'):
    words = ['finetune', '--model', 'run', '--data', data, '--out', out, '--replay', 4, '--device', 'cpu', *more]
    return call(home, *words)


def sha(path): return hashlib.sha256(path.read_bytes()).hexdigest()


def tensors(path): return load_tensors(path/'model.safetensors')[0]


FILES = 'model/model.safetensors', 'model/config.json', 'finetune.json', 'losses.csv', 'checkpoints/last.safetensors'


@pytest.mark.parametrize('method', ['labels', 'lora', 'full'])
def test_a_label_is_learned_and_drawn(home, method):
    before = sha(home/'run/model/model.safetensors')
    code, out, err = tune(home, method, '--method', method, '--steps', 16, '--json')
    assert code == 0, err
    told, record = json.loads(out), json.loads((home/method/'finetune.json').read_text())
    assert told['labels_added'] == record['labels_added'] == ['c'] and told['model'] == str(home.joinpath(method, 'model').relative_to(home))
    assert record['model_hash'] == sha(home/method/'model/model.safetensors')[:16] and record['base'] == before[:16]
    assert (record['people'], record['held_out'], record['images']) == (6, 1, 6)
    assert (record['loss']['new']['on'], record['loss']['old']['on']) == ('held-out people', 'samples of the base model')
    assert record['forgotten'] == record['loss']['old']['after'] - record['loss']['old']['before']
    assert 'finetune 16/16' in err and sha(home/'run/model/model.safetensors') == before
    config = json.loads((home/method/'model/config.json').read_text())
    assert config['labels'] == ['a', 'b', 'c'] and config['suffix'] == 'zmap' and before[:16] in (home/method/'model/README.md').read_text()
    code, _, err = call(home, 'generate', '--model_path', method, '--out', f'{method}-drawn', '--label', 'c', '--num_samples', 2, '--device', 'cpu')
    assert code == 0, err
    images = sorted((home/f'{method}-drawn').rglob('*_zmap.nii.gz'))
    assert len(images) == 2 and all(np.isfinite(nib.load(p).get_fdata()).all() for p in images)


def test_labels_alone_leave_the_rest(home):
    if not (home/'labels').is_dir(): assert tune(home, 'labels', '--method', 'labels', '--steps', 16)[0] == 0
    old, new = tensors(home/'run/model'), tensors(home/'labels/model')
    table = next(k for k in old if 'label' in k and k.endswith('rows.weight'))
    assert new[table][:2].equal(old[table][:2]) and new[table][-1].equal(old[table][-1]) and len(new[table]) == len(old[table]) + 1
    for k, v in old.items():
        if k != table and not k.startswith('denoiser.prior.'): assert new[k].equal(v), k
    assert json.loads((home/'labels/finetune.json').read_text())['forgotten'] == pytest.approx(0, abs=1e-6)
    a, b = (LatentDiffusion.from_pretrained(home/f/'model', device='cpu') for f in ('run', 'labels'))
    assert b.sample_latents(b.label_ids(['a', 'b'], 2)).equal(a.sample_latents(a.label_ids(None, 2)))


def test_old_labels_are_judged_on_people_who_show_them(home):
    code, _, err = tune(home, 'mixed', '--steps', 4, data='ca')
    assert code == 0, err
    loss = json.loads((home/'mixed/finetune.json').read_text())['loss']
    assert [loss[k]['on'] for k in ('new', 'old')] == ['held-out people']*2
    assert [loss[k]['n'] for k in ('new', 'old')] == [1, 1]
    code, _, err = tune(home, 'again', '--steps', 4, data='ca')
    assert code == 0 and {sha(home/'again'/f) for f in FILES} == {sha(home/'mixed'/f) for f in FILES}, err


def test_a_given_split_is_kept(home):
    shutil.copytree(home/'ca', home/'split')
    rows = (home/'split/manifest.tsv').read_text().splitlines()
    where = dict(p40='test', p41='val', p42='val')
    rows = [r + '\t' + ('split' if i == 0 else where.get(r.split('\t')[2], 'train')) for i, r in enumerate(rows)]
    (home/'split/manifest.tsv').write_text('\n'.join(rows) + '\n')
    code, _, err = tune(home, 'kept', '--steps', 2, '--labels', 'c', data='split')
    assert code == 0, err
    record = json.loads((home/'kept/finetune.json').read_text())
    assert (record['images'], record['people'], record['held_out']) == (2, 2, 2)


@pytest.mark.skipif(sys.platform == 'win32', reason='no such signals there')
def test_killed_and_resumed_is_the_same(home):
    words = 'finetune', '--model', 'run', '--data', 'c', '--replay', 4, '--device', 'cpu', '--steps', 400
    code, _, err = finish(start(home, *words, '--out', 'whole'))
    assert code == 0, err
    want = {f: sha(home/'whole'/f) for f in FILES}
    for how, name in (signal.SIGKILL, 'killed'), (signal.SIGINT, 'stopped'):
        for _ in range(8):                              # on a busy machine we may look too late
            shutil.rmtree(home/name, ignore_errors=True)
            p, table, until = start(home, *words, '--out', name), home/name/'losses.csv', time.time() + 200
            while p.poll() is None and time.time() < until:
                if table.is_file() and '\n120,' in table.read_text(): break
                time.sleep(.01)
            p.send_signal(how)
            err = p.communicate(timeout=300)[1]
            if p.returncode: break
        else: pytest.fail('eight times it was done before the signal came')
        if how == signal.SIGINT: assert p.returncode == 130 and err.splitlines()[-1].startswith('interrupted: step 12') and '--resume' in err, err
        assert not (home/name/'model').exists()
        code, _, err = call(home, *words, '--out', name)
        assert code == 2 and '--resume' in err
        code, _, err = call(home, *words, '--out', name, '--resume', '--seed', 1)
        assert code == 2 and 'was begun with another' in err and 'seed' in err
        code, _, err = finish(start(home, *words, '--out', name, '--resume'))
        assert code == 0 and 'going on after step' in err, err
        assert {f: sha(home/name/f) for f in FILES} == want


@pytest.mark.parametrize('more, part', [
    ('--model run --data nowhere', 'no such'), ('--model nowhere --data c', 'holds no model'), ('--model run --data c --method loar', 'did you mean lora?'),
    ('--model run --data c --steps 0', 'steps: is 0'), ('--model run --data c --steps many', 'invalid int'), ('--model run --data c --lr -1', 'lr: is -1'),
    ('--model run --data c --lr nan', 'lr: is nan'), ('--model run --data c --batch_size 1', 'batch-size: is 1'), ('--model run --data c --rank 0', 'rank'), ('--model run --data c --replay -2', 'replay'),
    ('--model run --data c --labels d', 'unknown key d'), ('--model run --data base --method labels', 'no new label'), ('--model run --data broken', '3c.nii.gz'),
    ('--model run --data blank', 'has no label'), ('--model run --data far', '2 of 2 images cannot be used'), ('--model run', 'required: --data'),
    ('--model run --data c --step 3', 'did you mean --steps?'), ('--model damaged --data c', 'damaged')])
def test_bad_inputs_write_nothing(home, more, part):
    bad = home/more.split()[3] if '--data' in more else home
    if bad.name == 'broken' and not bad.exists():
        people(bad, 'c', n=4)
        (bad/'3c.nii.gz').write_bytes((bad/'3c.nii.gz').read_bytes()[:200])
    if bad.name == 'blank' and not bad.exists():
        people(bad, 'c', n=2)
        (bad/'manifest.tsv').write_text('path\tsubject\n0c.nii.gz\tp0\n1c.nii.gz\tp1\n')
    if bad.name == 'far' and not bad.exists():
        people(bad, 'c', n=2)
        for p in bad.glob('*.nii.gz'): nib.save(nib.Nifti1Image(nib.load(p).get_fdata(dtype=np.float32), np.diag([3., 3, 3, 1]) + 900*np.eye(4, k=3)), p)
    if 'damaged' in more and not (home/'damaged').exists():
        shutil.copytree(home/'run/model', home/'damaged')
        raw = (home/'damaged/model.safetensors').read_bytes()
        (home/'damaged/model.safetensors').write_bytes(raw[:len(raw)//2])
    before = sorted(home.rglob('*'))
    code, out, err = call(home, 'finetune', *more.split(), '--out', 'unborn', '--device', 'cpu')
    assert code == 2 and out == '' and err.startswith('error: ') and err.count('\n') == 1 and part in err, err
    assert sorted(home.rglob('*')) == before


def test_out_must_be_new(home):
    (home/'full?').mkdir(exist_ok=True)
    (home/'full?'/'x').write_text('mine')
    code, _, err = tune(home, 'full?')
    assert code == 2 and 'not empty' in err and err.count('\n') == 1 and [p.name for p in (home/'full?').iterdir()] == ['x']
    code, _, err = tune(home, 'full?', '--resume')
    assert code == 2 and err.count('\n') == 1


def test_encode_decode_reconstruct(home):
    code, out, err = call(home, 'encode', '--model', 'run', '--data', 'c', '--out', 'z.safetensors', '--device', 'cpu', '--json')
    assert code == 0, err
    z, meta = load_tensors(home/'z.safetensors')
    assert json.loads(out)['images'] == len(z['latents']) == len(meta['names']) == 7 and meta['labels'] == ['c']*7
    assert meta['names'] == [f'{i}c.nii.gz' for i in range(20, 27)] and str(home) not in (home/'z.json').read_text()
    for words in (['reconstruct', '--data', 'c', '--out', 'seen'], ['decode', 'z.safetensors', '--out', 'decoded']):
        code, _, err = call(home, *words, '--model', 'run', '--device', 'cpu')
        assert code == 0, err
    for i in range(20, 27):
        a, b, c = (nib.load(home/f) for f in (f'seen/{i}c_desc-reconstructed_zmap.nii.gz', f'decoded/{i}c_desc-reconstructed_zmap.nii.gz', f'c/{i}c.nii.gz'))
        assert np.allclose(a.get_fdata(), b.get_fdata(), atol=1e-4) and np.array_equal(a.affine, c.affine) and a.shape == c.shape
    assert len((home/'seen/reconstruction.tsv').read_text().splitlines()) == 8
    files = [f'c/{i}c.nii.gz' for i in (22, 20)]
    code, _, err = call(home, 'encode', '--model', 'run', '--data', *files, '--out', 'two.safetensors', '--device', 'cpu')
    assert code == 0 and torch.allclose(load_tensors(home/'two.safetensors')[0]['latents'], z['latents'][[2, 0]], atol=1e-4), err


@pytest.mark.parametrize('words, part', [
    ('encode --model run --data c --out z.npz', 'no .safetensors'), ('encode --model run --data nowhere --out u.safetensors', 'no such'),
    ('encode --model run --data c base/0a.nii.gz --out u.safetensors', 'a folder among files'), ('reconstruct --model nowhere --data c --out u', 'holds no model'),
    ('reconstruct --model run --data c --out c/u', 'lies in the folder'), ('decode run/model/model.safetensors --model run --out u', 'holds no latents'),
    ('decode nowhere.safetensors --model run --out u', 'no such')])
def test_bad_inputs_of_the_others(home, words, part):
    (home/'c/manifest.tsv').rename(home/'c.tsv') if 'c/u' in words else None
    before = sorted(home.rglob('*'))
    code, out, err = call(home, *words.split())
    after = sorted(home.rglob('*'))
    if 'c/u' in words: (home/'c.tsv').rename(home/'c/manifest.tsv')
    assert code == 2 and out == '' and err.startswith('error: ') and err.count('\n') == 1 and part in err, err
    assert after == before


def test_a_model_without_labels(home):
    data = home/'heads'
    people(data, 'a', n=6)
    (data/'manifest.tsv').unlink()
    for p in sorted(data.glob('*.nii.gz')): p.rename(data/f'sub-{p.name[0]}_T1w.nii.gz')
    (home/'h.yaml').write_text(CONFIG.replace('[6, 1, 0]', '[5, 1, 0]') + 'data: {level: .98}\n')
    code, _, err = call(home, 'train', 'h.yaml', '--data', 'heads', '--out', 'h', '--device', 'cpu')
    assert code == 0, err
    for words in (['finetune', '--data', 'heads', '--out', 'h2', '--steps', 4], ['reconstruct', '--data', 'heads', '--out', 'h3']):
        code, out, err = call(home, *words, '--model', 'h', '--device', 'cpu', '--json')
        assert code == 0, err
    side = json.loads((home/'h3/sub-0/sub-0_desc-reconstructed_T1w.json').read_text())
    assert 1 < side['Gain'] < 10 and json.loads((home/'h2/model/config.json').read_text())['level'] == .98
    code, _, err = call(home, 'generate', '--model', 'h2', '--out', 'h4', '--n', 1, '--device', 'cpu')
    assert code == 0, err
    code, out, err = call(home, 'encode', '--model', 'h2', '--data', 'heads', '--out', 'h5.safetensors', '--device', 'cpu')
    assert code == 0 and load_tensors(home/'h5.safetensors')[1]['gains'][0] == side['Gain'], err
