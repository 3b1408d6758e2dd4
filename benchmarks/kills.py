"""Processes that are killed: a training at random moments, and writers of checkpoints.

python benchmarks/kills.py runs 200 [SEED]        kill -9 a training of configs/tiny.yaml, go on with --resume, compare bytes
python benchmarks/kills.py writes 1000 [SEED]     kill -9 while a checkpoint is written; who can still read one?

A parent imports the library once and forks, so that a run begins at once. Linux and macOS.
"""
import collections
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import nibabel as nib
import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from fmri_ldm import cli, learner, study  # noqa: F401

torch.set_num_threads(1)
CONFIG = Path(__file__).resolve().parents[1]/'configs'/'tiny.yaml'
SAME = ('losses.csv', 'model/model.safetensors', 'model/config.json', 'checkpoints/last.safetensors', 'checkpoints/best.safetensors',
        'checkpoints/autoencoder-last.safetensors', 'checkpoints/autoencoder-best.safetensors')


def small_study(folder, people=6, shape=(16, 18, 14), seed=0):
    "Two labelled volumes of each person, as NIfTI files with a manifest."
    folder, rng, rows = Path(folder), np.random.default_rng(seed), ['path\tlabel\tsubject']
    folder.mkdir(parents=True)
    for i in range(people):
        for k, label in enumerate(('lh', 'rh')):
            x = rng.standard_normal(shape) + 3*(np.arange(shape[0]) // (shape[0]//2) == k)[:, None, None]
            nib.save(nib.Nifti1Image(x.astype(np.float32), np.diag([4., 4, 4, 1])), folder/f'{i}{label}.nii.gz')
            rows.append(f'{i}{label}.nii.gz\t{label}\t{i}')
    (folder/'manifest.tsv').write_text('\n'.join(rows) + '\n')
    return folder


def fork(f, *args, log=os.devnull):
    "Run f in a child process whose output goes to a file; its process id."
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(fd, 1); os.dup2(fd, 2)
        sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w', buffering=1)
        code = f(*args)
        sys.stdout.flush()
    finally: os._exit(code or 0)


def wait(pid):
    "Exit code of a child; negative: the signal that ended it."
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def words(data, out, *more):
    return ['run', str(CONFIG), '--data', str(data), '--out', str(out), '--mode', 'train', '--device', 'cpu', *more]


def fingerprint(out):
    "What must be equal to the last bit, and the log without its times."
    files = {n: hashlib.sha256((out/n).read_bytes()).hexdigest() for n in SAME}
    rows = [json.loads(line) for line in (out/'log.jsonl').read_text().splitlines()]
    for r in rows: del r['time'], r['seconds']
    return files | {'log.jsonl': rows, 'temporaries': [str(p.relative_to(out)) for p in out.rglob('.tmp-*')]}


def stage_of(out):
    "Where a killed run stood, by its table."
    table = out/'losses.csv'
    last = table.read_text().splitlines()[-1:] if table.is_file() else []
    if not last: return 'before the first step'
    return 'saving the model' if (out/'model').exists() else 'denoiser' if ',denoiser,' in last[0] else 'autoencoder'


def rows(out):
    "Lines of a run's table."
    table = out/'losses.csv'
    return len(table.read_text().splitlines()) if table.is_file() else 0


def gone(pid): return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill_after(pid, out, rng):
    "Kill a run after a random number of steps, and a random moment more, however fast the machine is."
    have, more = rows(out), rng.randrange(12)
    if have + more > 50: more = 0                       # the table is full soon: what comes after it
    while more and rows(out) < have + more and not gone(pid): time.sleep(.002)
    end = time.monotonic() + rng.uniform(0, .1 if more else 4)
    while time.monotonic() < end and not gone(pid): time.sleep(.002)
    os.kill(pid, signal.SIGKILL)


def kill_runs(n, seed=0, folder=None):
    "Kill trainings n times; {place: kills}, how many ended runs were compared, list of differences."
    home = Path(folder or tempfile.mkdtemp())
    data, rng = small_study(home/'data'), random.Random(seed)
    assert wait(fork(cli.main, words(data, home/'whole'), log=home/'log')) == 0, (home/'log').read_text()
    want = fingerprint(home/'whole')
    kills, done, bad = collections.Counter(), 0, []
    while sum(kills.values()) < n:
        out = home/f'run-{done}'
        while True:
            more = ('--resume',) if (out/'config.yaml').is_file() else ()
            pid = fork(cli.main, words(data, out, *more), log=home/'log')
            if sum(kills.values()) < n: kill_after(pid, out, rng)
            code = wait(pid)
            if code == 0: break
            if code != -signal.SIGKILL: raise SystemExit(f'exit {code}: ' + (home/'log').read_text()[-2000:])
            kills[stage_of(out)] += 1
        got, done = fingerprint(out), done + 1
        bad += [f'{out.name}: {k}' for k in want if got[k] != want[k]]
        shutil.rmtree(out)
    shutil.rmtree(home)
    return dict(kills), done, bad


def write_forever(kind, path):
    "A child that overwrites one checkpoint of 4 MB again and again."
    net = torch.nn.Linear(1024, 1024)
    learn = learner.Learner(net, None, device='cpu')
    ours = learner.Checkpoint(path)
    while True:
        learn.done += 1
        if kind == 'ours': ours.save(learn)
        elif kind == 'torch': torch.save(dict(model=net.state_dict(), step=learn.done), path)
        elif kind == 'distributed': dcp.save(dict(model=net.state_dict(), step=torch.tensor(learn.done)), checkpoint_id=path, no_dist=True)
        else: raise ValueError(kind)
        if learn.done == 1: path.with_name('begun').touch()      # from here on every moment is one of writing


def step_in(kind, path):
    "The step of a checkpoint; raises where it cannot be read."
    if kind == 'ours': return learner.Checkpoint(path).read()[1]['step']
    if kind == 'torch': return torch.load(path, weights_only=True)['step']
    state = dict(model=torch.nn.Linear(1024, 1024).state_dict(), step=torch.tensor(0))
    dcp.load(state, checkpoint_id=path, no_dist=True)
    return int(state['step'])


def kill_writes(kind, n, seed=0):
    "How many of n checkpoints cannot be read after their writer was killed."
    home, rng, bad, n_read = Path(tempfile.mkdtemp()), random.Random(seed), 0, 0
    path = home/('folder' if kind == 'distributed' else 'c.safetensors')
    for _ in range(n):
        begun = path.with_name('begun')
        begun.unlink(missing_ok=True)
        pid = fork(write_forever, kind, path)
        while not begun.exists(): time.sleep(.001)
        time.sleep(rng.uniform(0, .06))
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        try:
            n_read += step_in(kind, path) > 0
        except (Exception, dcp.api.CheckpointException): bad += 1      # the latter is a BaseException
    shutil.rmtree(home)
    assert bad + n_read == n
    return bad


if __name__ == '__main__':
    what, n, seed = sys.argv[1], int(sys.argv[2]), int((sys.argv[3:] or [0])[0])
    start = time.monotonic()
    if what == 'runs':
        kills, done, bad = kill_runs(n, seed)
        print(f'{sum(kills.values())} kills ({kills}), {done} runs went on to their end: {len(bad)} differences {bad[:5]}')
    else:
        for kind in ('ours', 'torch', 'distributed'): print(f'{kind}: {kill_writes(kind, n, seed)} of {n} unreadable', flush=True)
    print(f'{time.monotonic() - start:.0f} s')
