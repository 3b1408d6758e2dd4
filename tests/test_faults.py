"Runs that are killed, stopped, crowded, starved or fed with bad numbers: one line, nothing lost, the same bytes."
import contextlib
import hashlib
import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork and signals')
spec = importlib.util.spec_from_file_location('kills', Path(__file__).resolve().parents[1]/'benchmarks'/'kills.py')
kills = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kills)
from fmri_ldm.cli import main  # noqa: E402


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('faults')
    kills.small_study(home/'data')
    return home


@pytest.fixture(scope='module')
def whole(home):
    "What an undisturbed training leaves."
    assert go(home, 'whole') == 0
    return kills.fingerprint(home/'whole')


def go(home, out, *more, log='log'):
    "A run in a child process; its exit code."
    (home/log).unlink(missing_ok=True)
    return kills.wait(kills.fork(main, kills.words(home/'data', home/out, *more), log=home/log))


def error(home, log='log'):
    "The one error line of a run that was refused, or that failed."
    text = (home/log).read_text()
    assert 'Traceback' not in text, text
    lines = [line for line in text.splitlines() if line.startswith(('error:', 'interrupted'))]
    assert len(lines) == 1 and text.splitlines()[-1] == lines[0], text
    return lines[0]


def until(condition, seconds=100):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it never came'
        time.sleep(.002)


def at_step(out, step, stage='denoiser'):
    table = Path(out)/'losses.csv'
    return lambda: table.is_file() and f'\n{step},{stage},' in table.read_text()


def test_killed_at_random_moments(tmp_path):
    n = int(os.environ.get('FMRI_LDM_KILLS', 20))
    where, ended, bad = kills.kill_runs(n, seed=1, folder=tmp_path/'kills')
    assert sum(where.values()) == n and ended > 0 and bad == []
    assert len(where) > 1, where                        # not always at the same place


def test_killed_while_it_writes():
    assert kills.kill_writes('ours', 40, seed=2) == 0
    assert kills.kill_writes('torch', 10, seed=2) > 0   # the knife is sharp


@pytest.mark.parametrize('how, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal(home, whole, how, code):
    out = home/how.name
    pid = kills.fork(main, kills.words(home/'data', out, '--set', 'training.save_every=1000'), log=home/f'{how.name}.log')
    until(at_step(out, 5))
    start = time.monotonic()
    os.kill(pid, how)
    assert kills.wait(pid) == code and time.monotonic() - start < 30
    line = error(home, f'{how.name}.log')
    assert line.startswith('interrupted: step ') and 'last.safetensors' in line and '--resume' in line
    assert go(home, out.name, '--resume') == 0
    assert kills.fingerprint(out) == whole


def test_three_times_the_same_bytes(home):
    "Checkpoints, model, samples and table do not depend on the day or on the number of workers."
    def digest(workers):
        out = home/f'workers-{workers}'
        words = [w if w != 'train' else 'both' for w in kills.words(home/'data', out, '--set', f'training.num_workers={workers}')]
        assert kills.wait(kills.fork(main, words, log=home/'log')) == 0, (home/'log').read_text()
        files = sorted(p for p in out.rglob('*') if p.is_file() and (p.suffix in ('.gz', '.safetensors') or p.name == 'losses.csv'))
        time.sleep(1)                                   # a second counts in a gzip header
        return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    first = digest(0)
    assert sum(name.endswith('.nii.gz') for name in first) == 8 and len(first) >= 8 + 7
    assert digest(1) == first and digest(2) == first
    sample = next((home/'workers-0'/'samples').rglob('*.nii.gz')).read_bytes()
    assert sample[4:8] == bytes(4)                      # mtime 0


@pytest.mark.skipif(sys.platform != 'linux' or os.geteuid() != 0, reason='mounts a tmpfs')
def test_full_disk(home, whole):
    disk, log = home/'disk', home/'log'
    disk.mkdir()
    def mount(*options): return subprocess.run(['mount', *options], capture_output=True).returncode
    if mount('-t', 'tmpfs', '-o', 'size=1500k', 'tmpfs', str(disk)): pytest.skip('may not mount')
    try:
        sizes, seen = iter((150, 500, 900, 1400, 1900)), []
        for size in sizes:                              # it fills up at other places each time
            mount('-o', f'remount,size={size}k', str(disk))
            more = ('--resume',) if (disk/'run'/'config.yaml').is_file() else ()
            code = go(home, 'disk/run', *more)
            if code == 0: break
            line = error(home)
            assert code == 2 and ('No space left' in line or 'are free' in line) and 'disk/run' in line, line
            seen.append(line)
            for p in (disk/'run').rglob('*.safetensors') if (disk/'run').exists() else (): kills.learner.load_tensors(p)
        assert len(seen) >= 2
        mount('-o', 'remount,size=30m', str(disk))
        assert go(home, 'disk/run', *(('--resume',) if (disk/'run'/'config.yaml').is_file() else ())) == 0, log.read_text()
        assert kills.fingerprint(disk/'run') == whole
    finally: subprocess.run(['umount', '-l', str(disk)])


def test_two_runs_in_one_folder(home, whole):
    first = kills.fork(main, kills.words(home/'data', home/'both'), log=home/'first.log')
    until(at_step(home/'both', 5, 'autoencoder'))
    assert go(home, 'both', '--resume') == 2
    assert 'another process is at work in it' in error(home)
    assert kills.wait(first) == 0 and kills.fingerprint(home/'both') == whole
    pids = [kills.fork(main, kills.words(home/'data', home/'race'), log=home/f'race{i}.log') for i in range(3)]
    codes = [kills.wait(p) for p in pids]               # at the same moment: one wins
    assert sorted(codes) == [0, 2, 2]
    for i, code in enumerate(codes):
        if code: assert 'another process' in error(home, f'race{i}.log') or 'not empty' in error(home, f'race{i}.log')
    assert kills.fingerprint(home/'race') == whole


def children(pid):
    "Process ids of the children of a process."
    return [int(c) for c in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='looks into /proc')
def test_dead_worker(home, whole):
    pid = kills.fork(main, kills.words(home/'data', home/'dead', '--set', 'training.num_workers=1'), log=home/'dead.log')
    until(at_step(home/'dead', 12))
    while os.path.exists(f'/proc/{pid}') and (found := children(pid)): os.kill(found[0], signal.SIGKILL); time.sleep(.05)
    assert kills.wait(pid) == 2
    line = error(home, 'dead.log')
    assert 'num_workers' in line and ('ended' in line or 'killed by signal' in line)  # torch may say it anywhere
    assert go(home, 'dead', '--resume') == 0 and kills.fingerprint(home/'dead') == whole


def told(words, **patches):
    "Exit code and last line of a command in this process."
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()): code = main(words)
    lines = err.getvalue().splitlines()
    assert not any('Traceback' in line for line in lines)
    return code, lines[-1]


def test_vanished_file(home, tmp_path):
    data = kills.small_study(tmp_path/'data')
    opened = kills.study.Study.open
    def open_and_lose(self):
        opened(self)
        (data/'3lh.nii.gz').unlink()
        return self
    with mock.patch.object(kills.study.Study, 'open', open_and_lose):
        code, line = told(kills.words(data, tmp_path/'out'))
    assert code == 2 and line.startswith('error: ') and '3lh.nii.gz' in line and 'no such file' in line.lower()


def test_resume_refuses(home, whole, tmp_path):
    words = kills.words(home/'data', home/'whole', '--resume')
    before = kills.fingerprint(home/'whole')
    for more, says in (('--set', 'autoencoder.hidden=16'), 'another autoencoder.hidden'), (('--seed', '3'), 'another seed'):
        code, line = told([*words, *more])
        assert code == 2 and says in line, line
    other = kills.small_study(tmp_path/'data', seed=5)
    code, line = told([*kills.words(other, home/'whole', '--resume')])
    assert code == 2 and 'another data.path' in line, line
    folder, kept = home/'data', home/'data.kept'          # the same folder with other images
    folder.rename(kept)
    try:
        kills.small_study(folder, seed=5)
        code, line = told(words)
    finally: kills.shutil.rmtree(folder); kept.rename(folder)
    assert code == 2 and 'training on other data' in line, line
    with mock.patch.object(kills.learner, '__version__', '9.9'): code, line = told(words)
    assert code == 2 and 'this is 9.9' in line, line
    assert kills.fingerprint(home/'whole') == before


def test_loss_that_is_not_finite(home):
    sets = ['train_autoencoder.lr=1e12', 'train_autoencoder.warmup=0', 'train_autoencoder.clip=1e9']
    code, line = told(kills.words(home/'data', home/'nan', *(w for s in sets for w in ('--set', s))))
    assert code == 2 and line.startswith('error: step ') and 'not finite' in line and '.nii.gz' in line and 'lower lr' in line, line


def test_damaged_checkpoint(home, whole):
    "The one before it is taken; the end is the same."
    assert go(home, 'damaged') == 0
    last = home/'damaged'/'checkpoints'/'last.safetensors'
    raw = bytearray(last.read_bytes())
    raw[len(raw)//2] ^= 1
    last.write_bytes(raw)
    assert go(home, 'damaged', '--resume') == 0
    assert 'the one before it is whole' in (home/'log').read_text()
    assert kills.fingerprint(home/'damaged') == whole


def test_early_stopping_and_epochs(home):
    sets = ['train_denoiser.steps=4000', 'train_denoiser.patience=2', 'train_denoiser.every=1', 'train_autoencoder.epochs=3']
    more = [w for s in sets for w in ('--set', s)]
    assert go(home, 'early', *more) == 0, (home/'log').read_text()
    table = (home/'early'/'losses.csv').read_text().splitlines()
    stopped = int(table[-1].split(',')[0])
    assert stopped < 4000 and sum(',autoencoder,' in line for line in table) == 3*(6//4)
    before = kills.fingerprint(home/'early')
    assert go(home, 'early', '--resume', *more) == 0    # it has ended: nothing more is done
    assert kills.fingerprint(home/'early') == before


def test_begin_with_a_checkpoint(home, whole):
    "--checkpoint: weights to begin with, or to judge."
    from fmri_ldm.core import load_tensors
    sets = ['--set', 'train_autoencoder.lr=0', '--set', 'train_denoiser.lr=0']
    assert go(home, 'still', *sets, '--checkpoint', str(home/'whole')) == 0, (home/'log').read_text()
    a, b = (load_tensors(home/n/'model'/'model.safetensors')[0] for n in ('whole', 'still'))
    assert all(abs(a[k] - b[k]).max() < 1e-5 for k in a if a[k].is_floating_point())
    code, line = told(kills.words(home/'data', home/'still', *sets, '--resume'))
    assert code == 2 and 'another --checkpoint' in line, line
    code, line = told(kills.words(home/'data', home/'wide', '--set', 'denoiser.network.hidden=[16, 32]', '--set', 'autoencoder.hidden=16',
                                  '--checkpoint', str(home/'whole')))
    assert code == 2 and 'does not fit' in line, line
