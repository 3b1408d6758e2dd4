"The command line as a process: how fast it answers, how it exits, what it says."
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import time

import pytest

import fmri_ldm
from fmri_ldm import cli

START = 'import sys; from fmri_ldm.cli import main; sys.exit(main())'
STUB = '''import sys, types
from fmri_ldm.cli import main
from fmri_ldm.core import InputError, say
stub = types.SimpleNamespace()
def check(path, **kw):
    say('looking')
    if path == 'missing': raise InputError(path, 'no such folder', 'check the path')
    if path == 'broken': raise RuntimeError('inner\\nfault')
    if path == 'slow': raise KeyboardInterrupt
    return dict(path=path, problems=['a.nii: cut off'] if path == 'bad' else [])
stub.check = check
sys.exit(main(study=stub))
'''
needs_study = pytest.mark.skipif(importlib.util.find_spec('fmri_ldm.study') is None, reason='no chapter 43 yet')


def call(*words, code=START):
    "Run the program in a process of its own."
    return subprocess.run([sys.executable, '-c', code, *words], capture_output=True, text=True, timeout=120)


def is_one_line_error(done):
    return done.stdout == '' and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1


def work(): return sum(os.times()[2:4])  # seconds of CPU that finished children took


def test_help_is_quick():
    wall, cpu = [], []
    for _ in range(10):
        start, before = time.perf_counter(), work()
        done = call('--help')
        wall.append(time.perf_counter() - start)
        cpu.append(work() - before)
        assert done.returncode == 0 and done.stderr == ''
        if wall[-1] < .3: break
    busy = hasattr(os, 'getloadavg') and os.getloadavg()[0] > os.cpu_count()  # others hold us up: count our work
    assert min(wall) < .3 or busy and min(cpu) < .2, (wall, cpu)
    assert all(name in done.stdout for name in ('demo', 'run', 'train', 'generate', 'evaluate', 'finetune', 'encode', 'decode', 'reconstruct', 'check', 'inspect', 'view'))


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_help_of_each_command(name):
    done = call(name, '--help')
    assert done.returncode == 0 and done.stderr == ''
    for par in cli.parameters(cli.COMMANDS[name])[1]:
        want = f'--{cli.option(par)}' if par.kind is par.KEYWORD_ONLY else cli.option(par).upper()
        assert want in done.stdout
        also = cli.other_name(name, par)
        if also and par.kind is par.KEYWORD_ONLY: assert f'(also --{also})' in ' '.join(done.stdout.split()).replace('- ', '-')


def test_help_loads_nothing_heavy():
    code = "import sys; from fmri_ldm.cli import main; main(['run', '--help']); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert call(code=code).returncode == 0


def test_version():
    done = call('--version')
    assert (done.returncode, done.stdout) == (0, f'fmri_ldm {fmri_ldm.__version__}\n')


@pytest.mark.parametrize('words', ['', 'no', '--no', 'demo --sede 1', 'demo --seed x', 'demo extra', 'run', 'run a.yaml', 'check',
                                   'run a.yaml --data d --mode c', 'generate --model m', 'view', 'inspect'])
def test_wrong_arguments(words):
    done = call(*words.split())
    assert done.returncode == 2 and is_one_line_error(done), done.stderr


def test_nearest_is_named():
    assert 'did you mean --seed?' in call('demo', '--sede', '1').stderr
    assert 'did you mean generate?' in call('genrate').stderr
    assert 'did you mean finetune?' in call('fine-tune').stderr
    assert 'did you mean visualize?' in call('visualise').stderr
    assert '--num_sample: unknown argument; did you mean --num-samples?' in call('generate', '--num_sample', '3').stderr
    assert '--epoch=3: unknown argument; did you mean --epochs?' in call('train', '--data', 'd', '--epoch=3').stderr


@pytest.mark.parametrize('theirs, ours', [
    ('train --data_dir d --batch_size 4 --epochs 20', 'train --data d --batch-size 4 --epochs 20'),
    ('train --data-dir=d c.yaml --batch-size=4', 'train c.yaml --data d --batch_size 4'),
    ('generate --model_path m --num_samples 3 --out o --num_inference_steps 5 --guidance_scale 2', 'generate --model m --n 3 --out o --steps 5 --guidance 2'),
    ('visualize --volume_path f.nii --out o.png', 'view f.nii --out o.png'), ('view --volume-path=f.nii', 'view f.nii'),
    ('check --path d --max_gb 2', 'check d --max-gb 2'), ('evaluate --run r', 'evaluate r'), ('--json inspect --path m', 'inspect m --json'),
    ('encode --data_dir a.nii b.nii --model_path m --out o', 'encode --model m --data a.nii b.nii --out o')])
def test_other_spellings(theirs, ours):
    assert cli.parse(theirs.split()) == cli.parse(ours.split())


def test_values_keep_their_underscores():
    _, kw, _ = cli.parse(['run', 'my_c.yaml', '--data', 'my_data', '--set', 'train_denoiser.lr=1', '--set=a_b=c_d', '--out=o_o'])
    assert (kw['config_file'], kw['data'], kw['set_'], kw['out']) == ('my_c.yaml', 'my_data', ['train_denoiser.lr=1', 'a_b=c_d'], 'o_o')
    assert cli.parse(['view', '--', '--volume_path'])[1]['files'] == ['--volume_path']


def test_train_needs_no_config():
    class Echo:
        def run(self, *args, **kw): return dict(args=args, **kw)
    args = cli.parse('train --data_dir my/data --batch_size 4 --epochs 20 --set train_denoiser.epochs=5'.split())[1]
    came = cli.COMMANDS['train'](Echo(), **args)
    assert came['args'][:2] == (None, 'my/data') and came['args'][2] == os.path.join('runs', 'data') and came['mode'] == 'train'
    assert came['sets'] == ('train_autoencoder.batch_size=4', 'train_denoiser.batch_size=4', 'train_autoencoder.epochs=20',
                            'train_denoiser.epochs=20', 'train_denoiser.epochs=5')
    assert came['checkpoint'] is None and cli.run(Echo(), 'c.yaml', data='d', checkpoint='w')['checkpoint'] == 'w'
    assert 'needs one config' in call('run', '--data', 'd').stderr


def test_exit_codes():
    good, bad, missing, broken, slow = (call('check', p, code=STUB) for p in ('good', 'bad', 'missing', 'broken', 'slow'))
    assert [d.returncode for d in (good, bad, missing, broken, slow)] == [0, 2, 2, 1, 130]
    assert good.stdout == 'path: good\nproblems: none\n' and good.stderr == 'looking\n'
    assert 'a.nii: cut off' in bad.stdout and bad.stderr == 'looking\nerror: a.nii: cut off\n'
    assert missing.stderr == 'looking\nerror: missing: no such folder; check the path\n' and missing.stdout == ''
    assert broken.stderr.count('\n') == 2 and 'Traceback' not in broken.stderr and 'RuntimeError' in broken.stderr
    assert slow.stderr == 'looking\ninterrupted\n'


@pytest.mark.parametrize('words', [['--debug', 'check', 'broken'], ['check', 'broken', '--debug']])
def test_debug_shows_the_traceback(words):
    done = call(*words, code=STUB)
    assert done.returncode == 1 and 'Traceback' in done.stderr and 'in check' in done.stderr


def test_json():
    done = call('check', 'bad', '--json', code=STUB)
    assert json.loads(done.stdout) == dict(path='bad', problems=['a.nii: cut off'])


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full on this system')
def test_full_disk_is_said():
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, '-c', STUB, 'check', 'good'], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.count('\n') == 2 and 'No space left' in done.stderr


def test_strange_names_stay_on_one_line():
    done = call('check', 'odd\nname\x1b[31m', code=STUB)
    assert done.stdout == 'path: odd\\nname\\x1b[31m\nproblems: none\n'


# against the study itself
class Bind:
    "Refuses what `fmri_ldm.study` would refuse."
    def __getattr__(self, verb):
        from fmri_ldm import study, verbs
        def call(*args, **kw):
            inspect.signature(getattr(study, verb, None) or getattr(verbs, verb)).bind(*args, **kw)
            return {}
        return call


@needs_study
@pytest.mark.parametrize('words', [
    'demo --quick --out o --seed 1 --seeds 2 --resume --device cpu', 'run c.yaml --data d', 'train --config c.yaml --data d --set a.b=1',
    'run c.yaml --data d --checkpoint w', 'run c.yaml --data d --out o --mode evaluate --resume --set a=1 --set b=2 --seed 1 --device cpu', 'view a b --out o.png',
    'generate --model m --out o --label l --n 2 --seed 1 --steps 3 --guidance 1.5 --device cpu --audit --against d', 'evaluate r --against s', 'evaluate r --again --device cpu',
    'check p --max-gb 2', 'check --config c.yaml', 'inspect m',
    'train --data_dir d --batch_size 4 --epochs 2', 'encode --model m --data a b --out o --batch-size 2 --device cpu', 'decode z --model m --out o --batch-size 2 --device cpu',
    'reconstruct --model m --data d --out o --batch-size 2 --device cpu',
    'finetune --model m --data d --out o --method full --steps 3 --batch_size 4 --lr 1e-3 --replay 0 --rank 2 --labels a b --seed 1 --device cpu --resume'])
def test_study_takes_what_the_command_line_gives(words):
    assert cli.main(words.split(), study=Bind()) == 0


@needs_study
@pytest.mark.parametrize('words', ['check no/such', 'check --config no/such.yaml', 'inspect no/such', 'evaluate no/such', 'view no/such.nii',
                                   'run no/such.yaml --data no --out o', 'generate --model no/such --out o', 'finetune --model no/such --data no --out o',
                                   'encode --model no/such --data no --out o', 'decode no/such --model no --out o', 'reconstruct --model no/such --data no --out o'])
def test_missing_files(words, tmp_path):
    words = [str(tmp_path/w) if w in ('o', 'no') else w for w in words.split()]
    done = call(*words)
    assert done.returncode == 2 and is_one_line_error(done), done.stderr
    assert not list(tmp_path.iterdir())
