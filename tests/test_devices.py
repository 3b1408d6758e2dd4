"Two processes on the CPU, with whole models (DDP) or shares (FSDP 2), do what one does. This file is also the script they run."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn as nn

from fmri_ldm.core import InputError, end_gently, load_tensors, say
from fmri_ldm.devices import asks_for, heard, rank
from fmri_ldm.learner import (EMA, Accumulate, Callback, Checkpoint, ClipGrad, Learner, LogCSV, LogJSON, MixedPrecision,
                              NonFinite, Progress, Record, TimeLimit, Validate, WarmupCosine, shuffled)
from fmri_ldm.quantize import VectorQuantizer
from fmri_ldm.shards import devices

rng = torch.Generator().manual_seed(0)
X = torch.randn(240, 6, generator=rng)
Y = (X @ torch.randn(6, 3, generator=rng)).tanh()
STEPS = 20


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.norm, self.dec = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
        self.extra = nn.Linear(3, 3)
        self.book = VectorQuantizer(8, 16, decay=.8, kmeans=False, restart=0)   # it restarts from rows of one process


def noisy(model, batch):
    "Random, and around `forward`."
    x, y = batch[:2]
    z = model.enc(x + .3*torch.randn_like(x)).tanh()
    loss = (model.extra(model.dec(z).float()) - y).square().mean()
    return loss, dict(rmse=loss.detach().sqrt(), one=1)


def quantized(model, batch):
    x, y = batch
    z, commit, logs = model.book(model.enc(x).tanh())
    return (model.extra(model.dec(z)) - y).square().mean() + commit, logs


def normed(model, batch):
    x, y = batch
    return (model.dec(model.norm(model.enc(x))) - y).square().mean(), {}


def sometimes(model, batch):
    "The last layer takes part in some parts only."
    loss, logs = noisy(model, batch)
    if batch[0].sum() > 0: loss = loss + model.norm.weight.square().mean()
    return loss, logs


def poisoned(model, batch):
    "A bad number in a row of the second half of step 7's batch."
    loss, logs = noisy(model, batch)
    return loss + batch[2].sum(), dict(logs, poison=batch[2].sum())


def rows(n): return shuffled(X, Y, batch_size=n)


def poison(step):
    bad = torch.zeros(24)
    if step == 6: bad[20] = torch.nan
    return *rows(24)(step), bad


FROZEN = dict(quantized=['norm'], normed=['book', 'extra'], sometimes=['book'])


def fit(n, step, *cbs, steps=STEPS, data=rows(24), frozen=None, opt=None, seed=3):
    "Train with n parts in each process; what came out, as lists."
    torch.manual_seed(1 + rank())                         # weights differ at first: process 0's count
    d, model, record, ema = devices('cpu', unused=step is sometimes), Net(), Record(), EMA(.9)
    for k in FROZEN.get(step.__name__, ['book', 'norm']) if frozen is None else frozen:
        getattr(model, k).requires_grad_(False)
    cbs = [*cbs, record, ema, *([d] if d else []), *([Accumulate(n)] if n > 1 else [])]
    learn = Learner(model, step, lr=1e-2, opt=opt, cbs=cbs, device='cpu', seed=seed).fit(data, steps)
    def flat(m): return {k: v.double().flatten().tolist() for k, v in m.state_dict().items()}
    return dict(losses=record.losses, logs=learn.numbers(), done=learn.done, model=flat(model), ema=flat(ema.model))


def many(n, folder):
    "Fits that must give the same with n parts in one process and n/2 in two."
    return dict(noise=fit(n, noisy, ClipGrad(.3), WarmupCosine(5), NonFinite(), Progress(10)),
                bf16=fit(n, noisy, ClipGrad(.3), NonFinite(), MixedPrecision('bf16')),
                fp16=fit(n, noisy, ClipGrad(.3), NonFinite(), MixedPrecision('fp16')),
                odd=fit(n, noisy, data=rows(23)),
                few=fit(n, noisy, data=rows(2)),
                some=refused(n, sometimes) if asks_for('FSDP') else fit(n, sometimes),
                sgd=fit(n, noisy, opt=torch.optim.SGD))


def refused(*args, **kw):
    "The words of the error that a fit meets, and what it met before."
    seen = []
    class Seen(Callback):
        def after_step(self, learn): seen.append(learn.done)
    try: fit(*args, Seen(), **kw)
    except InputError as e: return [str(e), len(seen), getattr(e, 'agreed', False)]
    raise AssertionError('no error')


class Stop(Callback):
    "One process wants to stop after a step."
    def __init__(self, who, when): self.who, self.when = who, when
    def after_step(self, learn): learn.stop |= rank() == self.who and learn.done == self.when


def pair(folder):
    "What the two processes do; each writes what it found."
    own = folder/f'own-{rank()}'
    out = dict(many(2, folder), codebook=fit(1, quantized), norm=fit(1, normed))
    fit(2, noisy, Checkpoint(own/'last.safetensors', 7), LogCSV(own/'l.csv'), LogJSON(own/'l.jsonl'), Validate([(X, Y)], every=5, best=own/'best.safetensors'))
    fit(2, noisy, Checkpoint(folder/'pair.safetensors', 7), LogCSV(folder/'pair.csv'), LogJSON(folder/'pair.jsonl'), steps=10)
    out['after_one'] = fit(2, noisy, Checkpoint(folder/'single.safetensors'), LogCSV(folder/'single.csv'))
    out['stopped'] = [fit(2, noisy, Stop(1, 4))['done'], fit(2, noisy, *[TimeLimit(0)]*rank())['done']]
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    out['nan'] = refused(2, poisoned, NonFinite(), Checkpoint(folder/'nan.safetensors'), data=poison)
    out['late'] = refused(2, noisy, NonFinite(), MixedPrecision('no'), Burst())
    out['data'] = refused(2, noisy, data=lambda k: (X[:24] + rank(), Y[:24]))
    out['names'] = refused(2, noisy, steps=10 + rank())
    out['rows'] = refused(2, noisy, data=rows(1))
    out['idle'] = refused(2, noisy, frozen=['book'])
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    (folder/f'pair-{rank()}.json').write_text(json.dumps(out))


class Burst(Callback):
    "A gradient that is too large, in all processes."
    order = 35
    def after_backward(self, learn):
        if learn.done == 3: learn.params[0].grad.fill_(torch.inf)


def wrong(model, batch):
    if rank() == 1: raise InputError('rank 1', 'has a bad disk', 'change it')
    return noisy(model, batch)
def slow(model, batch):
    time.sleep(.05)
    return noisy(model, batch)


def script(folder, name):
    end_gently()
    cbs = [NonFinite(), Checkpoint(folder/f'{name}.safetensors'), LogCSV(folder/f'{name}.csv')]
    try:
        if name == 'pair': pair(folder)
        if name == 'nan': fit(2, poisoned, *cbs, data=poison)
        if name == 'wrong': fit(2, wrong, *cbs)
        if name == 'slow': fit(2, slow, *cbs, steps=2000)
    except (InputError, KeyboardInterrupt) as e:
        if heard(e): say(f'{type(e).__name__}: {e}', always=True)
        sys.exit(2)


KINDS = dict(ddp={}, fsdp={}, layers=dict(AUTO_WRAP_POLICY='SIZE_BASED_WRAP', MIN_NUM_PARAMS='20', ACTIVATION_CHECKPOINTING='true',
                                          OFFLOAD_PARAMS='true', CPU_RAM_EFFICIENT_LOADING='true'),
             blocks=dict(AUTO_WRAP_POLICY='TRANSFORMER_BASED_WRAP'))


def launch(folder, name, file=__file__):
    words = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', file, str(folder), name]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    kind = folder.name.split('-')[0]                      # what accelerate's launcher would set from its configuration
    if kind != 'ddp': env.update(CUDA_VISIBLE_DEVICES='', ACCELERATE_USE_FSDP='true', FSDP_VERSION='2', **{f'FSDP_{k}': v for k, v in KINDS[kind].items()})
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def finish(p, seconds=90):
    "Exit code and stderr; a launch that hangs is an error."
    try: err = p.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        p.terminate()                                     # the launcher kills its processes
        raise
    return p.returncode, err


@pytest.fixture(scope='module', params=['ddp', 'fsdp', 'layers'])
def home(tmp_path_factory, request): return tmp_path_factory.mktemp(request.param + '-')


@pytest.fixture(scope='module')
def run(home):
    "What one process found, and what each of two found."
    pytest.importorskip('accelerate')
    torch.set_num_threads(1)
    one = dict(many(4, home), codebook=fit(1, quantized))
    one['after_one'] = one['after_two'] = fit(4, noisy)
    fit(4, noisy, Checkpoint(home/'single.safetensors'), LogCSV(home/'single.csv'), steps=10)
    code, err = finish(launch(home, 'pair'))
    assert code == 0, err
    return one, *(json.loads((home/f'pair-{i}.json').read_text()) for i in (0, 1)), err


def gap(a, b):
    "Largest difference of losses, logs, weights, averages and buffers."
    assert a['done'] == b['done'] and a['logs'].keys() == b['logs'].keys()
    n = min(len(a['losses']), len(b['losses']))           # a resumed one has seen the last losses only
    def flat(d):
        return torch.tensor([*d['losses'][-n:], *d['logs'].values(), *sum(d['model'].values(), []), *sum(d['ema'].values(), [])]).double()
    a, b = flat(a), flat(b)
    assert a.isfinite().all() and len(a) == len(b)
    return (a - b).abs().max().item()


TOLERANCE = dict(bf16=5e-3, fp16=1e-3)                    # other numbers: 1e-5; their products have 8 and 11 bits


@pytest.mark.parametrize('name', ['noise', 'bf16', 'fp16', 'odd', 'few', 'some', 'sgd', 'codebook', 'after_one'])
def test_same(run, name):
    "Losses, logs, weights, averages, codebook: as with one process and twice the parts."
    one, a, b, _ = run
    if name == 'some' and isinstance(a[name], list):      # FSDP waits for the gradient of each parameter, and says so
        assert a[name] == b[name] and 'is not possible with FSDP' in a[name][0] and a[name][1] == 0
        return
    assert gap(a[name], b[name]) == 0
    print(name, gap(one[name], a[name]))
    assert gap(one[name], a[name]) <= TOLERANCE.get(name, 1e-5)


def test_learns(run):
    "What is compared is a training: weights move far, and each scenario is another one."
    one = run[0]
    start = torch.tensor(sum(fit(1, noisy, steps=1)['model'].values(), [])).double()
    for name in 'noise', 'bf16', 'odd', 'some', 'codebook':
        moved = torch.tensor(sum(one[name]['model'].values(), [])).double() - start
        assert moved.abs().max() > .05 and one[name]['losses'][-1] < .9*one[name]['losses'][0]
    other = fit(2, noisy, ClipGrad(.3), WarmupCosine(5))  # half as many parts, so other noise
    for b in one['bf16'], one['some'], one['after_two'], other:
        assert max(abs(p - q) for p, q in zip(one['noise']['losses'], b['losses'])) > 1e-3


def test_norm(run):
    "A batch norm sees the rows of process 0; both processes keep the same running means."
    _, a, b, _ = run
    assert gap(a['norm'], b['norm']) == 0
    assert max(map(abs, a['norm']['model']['norm.running_mean'])) > .1


def test_files(run, home):
    "Process 0 writes, each step once; process 1 writes nothing."
    assert {p.name for p in (home/'own-0').iterdir()} >= {'last.safetensors', 'last.json', 'l.csv', 'l.jsonl', 'best.safetensors'}
    assert not (home/'own-1').exists()
    for name, n in ('pair', 10), ('single', STEPS):
        assert [int(k.split(',')[0]) for k in (home/f'{name}.csv').read_text().splitlines()[1:]] == [*range(1, n + 1)]
    assert [json.loads(k)['step'] for k in (home/'pair.jsonl').read_text().splitlines()] == [*range(1, 11)]
    names = {k for k in load_tensors(home/'pair.safetensors')[0] if k.startswith('model.')}
    assert names == {f'model.{k}' for k in Net().state_dict()}
    assert run[3].count(' 10/20 ') == 1                   # Progress, too


def test_resume_on_one(run, home):
    "A checkpoint of two processes goes on in one."
    assert gap(run[0]['after_two'], fit(4, noisy, Checkpoint(home/'pair.safetensors'))) <= 1e-5


def test_stops_together(run):
    assert run[1]['stopped'] == run[2]['stopped'] == [4, 1]


def test_errors_of_all(run, home):
    "All processes meet the same error at the same step, and know that it is everybody's."
    one, a, b, _ = run
    words = dict(nan='step 7: the loss (poison) is not finite', late='step 4: the gradient', data='differ in the batch',
                 names='differ in steps', rows='has 1 rows for 2', idle='parameter norm.weight')
    for name, text in words.items():
        assert a[name] == b[name] and text in a[name][0], a[name]
        assert a[name][2] or name == 'idle'
    assert [a[k][1] for k in words] == [6, 3, 0, 0, 0, 0]
    assert load_tensors(home/'nan.safetensors')[1]['step'] == 6


def test_nan_on_one(home):
    "A bad number in one process ends both, with one line; the good steps are kept."
    code, err = finish(launch(home, 'nan'))
    said = [k for k in err.splitlines() if 'InputError' in k]
    assert code != 0 and len(said) == 1 and 'step 7: the loss (poison)' in said[0], err
    assert '[rank' not in err and 'learner.py' not in err                 # no traceback but the launcher's
    assert load_tensors(home/'nan.safetensors')[1]['step'] == 6


def test_error_on_one(home):
    "An error in one process says its line and ends the launch."
    code, err = finish(launch(home, 'wrong'))
    assert code != 0 and err.count('rank 1: has a bad disk') == 1 and '[rank' not in err, err


def test_sigterm(home):
    "SIGTERM to the launcher: both stop after the same step, and it is kept."
    p, log = launch(home, 'slow'), home/'slow.csv'
    end = time.monotonic() + 40
    while time.monotonic() < end and not (log.is_file() and len(log.read_text().splitlines()) > 3): time.sleep(.1)
    p.send_signal(signal.SIGTERM)
    code, err = finish(p)
    done = load_tensors(home/'slow.safetensors')[1]['step']
    assert code != 0 and 3 <= done < 2000 and len(log.read_text().splitlines()) == done + 1, err
    assert err.count('Terminated: ') == 1, err
    assert gap(fit(4, noisy, steps=done + 5), fit(4, noisy, Checkpoint(home/'slow.safetensors'), steps=done + 5)) <= 1e-5


if __name__ == '__main__':
    torch.set_num_threads(1)
    script(Path(sys.argv[1]), sys.argv[2])
