"Every network of the library in shares: two processes, FSDP 2 by accelerate's configuration. This file is also the script they run."
import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_devices import finish, launch  # noqa: E402

from fmri_ldm.autoencoder import autoencoder_step  # noqa: E402
from fmri_ldm.classify import ResNet3d  # noqa: E402
from fmri_ldm.core import load_tensors  # noqa: E402
from fmri_ldm.devices import rank  # noqa: E402
from fmri_ldm.diffusion import Denoiser  # noqa: E402
from fmri_ldm.ema import PowerEMA  # noqa: E402
from fmri_ldm.finetune import add_lora, param_groups  # noqa: E402
from fmri_ldm.latent import build_autoencoder, build_denoiser, denoising_step  # noqa: E402
from fmri_ldm.learner import (EMA, Accumulate, Checkpoint, ClipGrad, Learner, NonFinite, Record, Validate,  # noqa: E402
                              WarmupCosine, shuffled)
from fmri_ldm.lines import ResMLP, UNet1d  # noqa: E402
from fmri_ldm.monitor import linear_prior  # noqa: E402
from fmri_ldm.schedules import get_schedule  # noqa: E402
from fmri_ldm.shards import devices  # noqa: E402
from fmri_ldm.spacetime import SpaceTime  # noqa: E402
from fmri_ldm.vectors import VectorVAE, vector_step  # noqa: E402
from fmri_ldm.watch import UpdateRatio  # noqa: E402

STEPS = 6


def numbers(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
def classes(n): return torch.arange(n) % 3
def timed(model, batch): return model.loss(batch[0], {'design': batch[1]})
def classify(model, batch): return torch.nn.functional.cross_entropy(model(batch[0]), batch[1]), {}


def denoiser(net): return Denoiser(net, get_schedule('flow'), target='flow')


def adapted():
    "A denoiser with a linear start, frozen but for low-rank additions."
    z = numbers(12, 4, 4, 4, 4)
    prior = linear_prior(z, {'label': classes(12)}, None, schedule=get_schedule('flow'), n_labels=3, rank=3)
    model = build_denoiser((4, 4, 4, 4), n_labels=3, prior=prior, network=dict(hidden=[8, 16], heads=2))
    add_lora(model, rank=2)
    return model


# name: (model, step, data)
NETS = dict(
    autoencoder=lambda: (build_autoencoder(latent_channels=4, hidden=16, depth=1, stride=[2, 2, 2]),
                         autoencoder_step, (numbers(12, 1, 8, 8, 8),)),
    codebook=lambda: (build_autoencoder(latent_channels=4, hidden=16, depth=1, stride=[2, 2, 2], bottleneck=dict(kind='fsq')),
                      autoencoder_step, (numbers(12, 1, 8, 8, 8),)),
    unet=lambda: (build_denoiser((4, 4, 4, 4), n_labels=3, network=dict(hidden=[8, 16], heads=2)),
                  denoising_step, (numbers(12, 4, 4, 4, 4), classes(12))),
    checkpointed=lambda: (build_denoiser((4, 4, 4, 4), n_labels=3, network=dict(hidden=[8, 16], heads=2, checkpoint=True)),
                          denoising_step, (numbers(12, 4, 4, 4, 4), classes(12))),
    dit=lambda: (build_denoiser((4, 4, 4, 4), n_labels=3, network=dict(kind='dit', hidden=32, depth=2, heads=2)),
                 denoising_step, (numbers(12, 4, 4, 4, 4), classes(12))),
    mlp=lambda: (denoiser(ResMLP(20, 20, hidden=32, depth=2, model_channels=16, n_labels=3)),
                 denoising_step, (numbers(12, 20), classes(12))),
    line=lambda: (denoiser(UNet1d(1, 1, hidden=(8, 16), heads=2, n_labels=3)),
                  denoising_step, (numbers(12, 1, 16), classes(12))),
    spacetime=lambda: (denoiser(SpaceTime(1, 1, 5, hidden=(8, 16), heads=2, head_dim=8, n_conditions=3)), timed,
                       (numbers(12, 1, 5, 4, 4, 4), (torch.arange(60) % 3).reshape(12, 5))),
    lora=lambda: (adapted(), denoising_step, (numbers(12, 4, 4, 4, 4), classes(12))),
    vae=lambda: (VectorVAE(30, 4, hidden=(24, 16), norm='layer'), vector_step, (numbers(12, 30),)),
    resnet=lambda: (ResNet3d(3, widths=(8, 16), stride=1), classify, (numbers(12, 1, 8, 8, 8), classes(12))),
)
def fit(name, n, folder=None):
    "Train with much on board; what came out. The large eps keeps AdamW from blowing up gradients that are rounding errors."
    torch.manual_seed(5)
    model, step, data = NETS[name]()
    d, record, ema, power, ratio = devices('cpu'), Record(), EMA(.8), PowerEMA(every=4), UpdateRatio(2)
    total = sum(p.numel() for p in model.parameters())
    cbs = [record, ema, power, ratio, ClipGrad(.5), WarmupCosine(2), NonFinite(), *([d] if d else []), *([Accumulate(n)] if n > 1 else [])]
    if folder:
        held = tuple(v[:4] for v in data)
        cbs += [Checkpoint(folder/f'{name}.safetensors', 2),
                Validate([held if len(held) > 1 else held[0]], every=2, ema=ema, best=folder/f'{name}-best.safetensors')]
    learn = Learner(model, step, opt=torch.optim.AdamW(param_groups(model, lr=3e-3), eps=1e-3), cbs=cbs, device='cpu')
    out, seen = {}, []
    if d:
        wrap = d.wrap
        def look(learn):                                  # what this process holds, and in how many units
            wrap(learn)
            seen.append(sum(p.to_local().numel() for p in learn.model.parameters()))
            seen.append(sum(hasattr(type(m), 'unshard') for m in d.net.modules()))
        d.wrap = look
    learn.fit(shuffled(*data, batch_size=8), STEPS//2)
    learn.fit(shuffled(*data, batch_size=8), STEPS)       # a second fit goes on
    assert learn.model is model and type(next(model.parameters())) is torch.nn.Parameter
    def flat(m): return torch.cat([v.double().flatten() for v in (m.values() if isinstance(m, dict) else m.state_dict().values())]).tolist()
    return dict(losses=record.losses, model=flat(model), ema=flat(ema.model), power=sum((flat(m) for m in power.averages), []),
                snapshots=sum((flat(v) for *_, v in power.snapshots), []),
                ratios=[float(v) for t in ratio.table.values() for v in t['ratio']],
                opt=[float(s['exp_avg_sq'].sum()) for s in learn.opt.state.values()],
                share=seen[0]/total if seen else 1., units=seen[1] if seen else 0)


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "What two processes found, each."
    pytest.importorskip('accelerate')
    home = tmp_path_factory.mktemp('blocks-')
    code, err = finish(launch(home, 'all', __file__), 300)
    assert code == 0, err
    return home, *(json.loads((home/f'{i}.json').read_text()) for i in (0, 1))


@pytest.mark.parametrize('name', NETS)
def test_same(pair, name, tmp_path):
    "Losses, weights, averages, snapshots, update sizes, optimizer: those of one process with twice the parts."
    home, *both = pair
    one = fit(name, 4, tmp_path)
    torch.set_num_threads(1)
    for two in (b[name] for b in both):
        for k in set(one) - {'share', 'units'}:
            a, b = (torch.tensor(d[k]).nan_to_num(-1) for d in (one, two))        # 0/0: updates of weights that are 0
            assert a.shape == b.shape and len(a), k
            assert (a - b).abs().max() <= 1e-5*max(1, a.abs().max()), (k, (a - b).abs().max())
    assert len(one['losses']) == STEPS
    for file in f'{name}.safetensors', f'{name}-best.safetensors':
        a, b = load_tensors(tmp_path/file), load_tensors(home/file)
        assert a[0].keys() == b[0].keys()
        for k in a[0]: assert (a[0][k].double() - b[0][k].double()).abs().max() <= 1e-5*max(1, a[0][k].double().abs().max()), k


@pytest.mark.parametrize('name', NETS)
def test_shares(pair, name):
    "Each process holds about half of the numbers, and gathers them block by block."
    shares = [b[name]['share'] for b in pair[1:]]
    assert sum(shares) == pytest.approx(1) and max(shares) < .62, shares
    assert pair[1][name]['units'] >= (1 if name == 'vae' else 3)          # VectorVAE has no blocks


if __name__ == '__main__':
    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    found = {name: fit(name, 2, home) for name in NETS}
    (home/f'{rank()}.json').write_text(json.dumps(found))
