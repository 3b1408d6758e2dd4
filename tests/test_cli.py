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
    assert all(name in done.stdout for name in ('demo', 'run', 'train', 'generate', 'evaluate', 'check', 'inspect', 'view'))


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_help_of_each_command(name):
    done = call(name, '--help')
    assert done.returncode == 0 and done.stderr == ''
    for par in cli.parameters(cli.COMMANDS[name])[1]:
        want = f'--{cli.option(par)}' if par.kind is par.KEYWORD_ONLY else cli.option(par).upper()
        assert want in done.stdout


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
        from fmri_ldm import study
        def call(*args, **kw):
            inspect.signature(getattr(study, verb)).bind(*args, **kw)
            return {}
        return call


@needs_study
@pytest.mark.parametrize('words', [
    'demo --quick --out o --seed 1 --seeds 2 --resume --device cpu', 'run c.yaml --data d', 'train --config c.yaml --data d --set a.b=1',
    'run c.yaml --data d --out o --mode evaluate --resume --set a=1 --set b=2 --seed 1 --device cpu', 'view a b --out o.png',
    'generate --model m --out o --label l --n 2 --seed 1 --steps 3 --guidance 1.5 --device cpu --audit --against d', 'evaluate r --against s', 'evaluate r --again --device cpu',
    'check p --max-gb 2', 'check --config c.yaml', 'inspect m'])
def test_study_takes_what_the_command_line_gives(words):
    assert cli.main(words.split(), study=Bind()) == 0


@needs_study
@pytest.mark.parametrize('words', ['check no/such', 'check --config no/such.yaml', 'inspect no/such', 'evaluate no/such', 'view no/such.nii',
                                   'run no/such.yaml --data no --out o', 'generate --model no/such --out o'])
def test_missing_files(words, tmp_path):
    words = [str(tmp_path/w) if w in ('o', 'no') else w for w in words.split()]
    done = call(*words)
    assert done.returncode == 2 and is_one_line_error(done), done.stderr
    assert not list(tmp_path.iterdir())
