"""The autoencoder beside patch-PCA, trilinear interpolation and MONAI's AutoencoderKL on T1-weighted heads.

python benchmarks/autoencoder.py --data FOLDER [--out DIR] [--seconds 600] [--seeds 0 1 2] [--rates 8 16]

FOLDER holds scans of 2 mm, one for each person (IXI names). For each rate and seed, people are split (a fifth held out), and both networks
train in processes of one thread, two at a time, with the same crops, loss, clipping and cosine, each with its own rate and warm-up, for
the same seconds of processor time (on a quiet machine: of the clock; evaluation is not counted). What is done stays in DIR, so a run that was cut short
goes on. Prints tables in markdown. Needs the dev extra (monai). 2 cores: 6 x 10 minutes and a few more.
"""
import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WAYS = 'ours', 'monai'
AT = dict(ours=(0, 10, 20, 40, 60, 90, 120, 180, 240, 300, 420), monai=())    # seconds of training, when looked at


def load(folder, seed):
    "Volumes of training and held-out people, and where their heads are."
    import numpy as np
    import torch
    import torch.nn.functional as F
    from fmri_ldm.fetch import ixi_source
    from fmri_ldm.rows import level_images
    from fmri_ldm.volume import Geometry
    src = level_images(ixi_source(folder))
    order = np.random.default_rng([seed, 7]).permutation(len(src.rows))
    assert len({r.subject for r in src.rows}) == len(src.rows), 'one scan for each person'
    x = torch.stack([Geometry.fit(img, stride=4).to_grid(img) for img in (src.image(i) for i in order)])
    inside = F.avg_pool3d(x, 5, 1, 2) > .1
    n = len(x)//5
    return x[n:], inside[n:], x[:n], inside[:n]


def psnrs(model, x, inside):
    "PSNR (dB) within each head; the range is 1, the 98th percentile of an image's positive voxels."
    import torch
    out = []
    for v, m in zip(x.split(1), inside.split(1)):
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16): y = model(v).float()
        out.append(-10*math.log10((y - v)[m].square().mean()))
    return out


def psnr(*args): return statistics.mean(psnrs(*args))


def build(way, rate, x):
    "A model that is called as x -> reconstruction, a function x, mask -> loss, the rate, and the steps of its warm-up."
    import torch
    k, heavy = 64//rate, 1e-6                               # latents for a block of 4x4x4; weight of the KL
    if way == 'ours':
        from fmri_ldm.autoencoder import Autoencoder
        model = Autoencoder(1, k, hidden=64, depth=1, fine=32, bottleneck=heavy).fit_linear(x)
        model = model.to(memory_format=torch.channels_last_3d)
        return model, lambda v, m: model.loss(v, m)[0], 2e-3, 300
    from monai.networks.nets import AutoencoderKL

    class Model(AutoencoderKL):
        def forward(self, v): return self.decode(self.encode(v)[0])

        def loss(self, v, m):
            mu, sd = (a.float() for a in self.encode(v))
            error = (self.decode(mu + sd*torch.randn_like(mu)).float() - v).square()
            kl = .5*(mu.square() + sd.square() - 1 - 2*sd.log()).mean()
            return (error*m).sum()/m.sum() + heavy*kl
    model = Model(3, 1, 1, num_res_blocks=MONAI['blocks'], channels=MONAI['channels'], latent_channels=k, norm_num_groups=16,
                  attention_levels=(False,)*3, with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False)
    return model, model.loss, MONAI['lr'], MONAI['warm']


MONAI = dict(channels=(16, 32, 64), blocks=1, lr=1e-3, warm=50, last=False)   # channels_last_3d is no faster for it here


def crop(x, size, rng):
    "Place of a random crop, corners at multiples of 4. Anywhere: group norm must see as much air as in whole volumes."
    i, at = int(rng.integers(len(x))), [int(rng.integers((n - size)//4 + 1))*4 for n in x.shape[2:]]
    return i, slice(None), *(slice(a, a + size) for a in at)


def train(args):
    "One network in this process; writes its curve."
    import numpy as np
    import torch
    torch.set_num_threads(1)
    x, inside, x_out, inside_out = load(args.data, args.seed)
    torch.manual_seed(args.seed)
    begin = time.process_time()
    model, loss, lr, warm = build(args.way, args.rate, x)
    fit, size, curve = time.process_time() - begin, 64, []
    if args.way == 'monai' and MONAI['last']: model = model.to(memory_format=torch.channels_last_3d)
    opt = torch.optim.AdamW(model.parameters(), lr)
    rng, used, step, due, start = np.random.default_rng(args.seed), fit, 0, list(AT[args.way]), time.time()
    while used < args.seconds:
        if due and used >= due[0]:
            due = [a for a in due if a > used]
            curve.append((used, psnr(model.eval(), x_out[:4], inside_out[:4])))
            print(f'{args.way} {args.rate}:1 seed {args.seed} {used:.0f} s, step {step}: {curve[-1][1]:.2f} dB', flush=True)
            model.train()
        begin = time.process_time()
        for g in opt.param_groups: g['lr'] = lr*min(1, (step + 1)/warm)*.5*(1 + math.cos(math.pi*used/args.seconds))
        cut = [crop(x, size, rng) for _ in range(2)]
        v, m = (torch.stack([t[c] for c in cut]) for t in (x, inside))
        with torch.autocast('cpu', torch.bfloat16): value = loss(v, m)
        opt.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step()
        used, step = used + time.process_time() - begin, step + 1
    wall = time.time() - start
    each = psnrs(model.eval(), x_out, inside_out)
    curve.append((used, statistics.mean(each[:4])))
    out = dict(way=args.way, rate=args.rate, seed=args.seed, psnr=statistics.mean(each), each=each, curve=curve, steps=step, cpu=used,
               wall=wall, fit=fit, train=psnr(model, x[:3], inside[:3]), parameters=sum(p.numel() for p in model.parameters()))
    args.file.write_text(json.dumps(out))


def baselines(args, rate, seed):
    "PSNR of patch-PCA, trilinear interpolation, the mean training head, and the training head that is nearest (real against real)."
    from fmri_ldm.autoencoder import Autoencoder
    from fmri_ldm.latent import trilinear
    x, inside, x_out, inside_out = load(args.data, seed)
    pca = Autoencoder(1, 64//rate, hidden=4, depth=0).fit_linear(x).eval()
    mean = x.mean(0, keepdim=True)
    near = [max(-10*math.log10((other - v)[m].square().mean()) for other in x) for v, m in zip(x_out, inside_out)]
    return {'patch-PCA': psnr(pca, x_out, inside_out), 'trilinear': psnr(lambda v: trilinear(v, rate), x_out, inside_out),
            'mean head': psnr(lambda v: mean, x_out, inside_out), 'nearest real head': statistics.mean(near), 'n': [len(x), len(x_out)]}


def reached(curve, level):
    "Seconds of training until a curve is at a level for good."
    last = max([t for t, v in curve if v < level], default=-1)
    return min((t for t, v in curve if t > last), default=math.inf)


def tables(out):
    "Two tables in markdown from what lies in a folder."
    runs = [json.loads(p.read_text()) for p in sorted(out.glob('*.json'))]
    done = {(r['way'], r['rate'], r['seed']): r for r in runs}
    print('\n| rate | seed | patch-PCA | trilinear | mean head | nearest real head | MONAI AutoencoderKL | ours | ours - patch-PCA | ours - MONAI |')
    print('|---|---|---|---|---|---|---|---|---|---|')
    both = [k[1:] for k in done if k[0] == 'ours' and ('monai', *k[1:]) in done and ('base', *k[1:]) in done]
    for k in both:
        a, m, b = (done[(way, *k)] for way in ('ours', 'monai', 'base'))
        v = b['patch-PCA'], b['trilinear'], b['mean head'], b['nearest real head'], m['psnr'], a['psnr'], a['psnr'] - b['patch-PCA'], a['psnr'] - m['psnr']
        print(f'| {k[0]}:1 | {k[1]} | ' + ' | '.join(f'{n:.2f}' for n in v) + ' |')
    print('\n| rate | seed | way | parameters | steps | processor s | clock s | PSNR on training heads | s to reach what MONAI ends with |')
    print('|---|---|---|---|---|---|---|---|---|')
    for k in both:
        end = done[('monai', *k)]['curve'][-1][1]
        for way in WAYS:
            r = done[(way, *k)]
            print(f"| {k[0]}:1 | {k[1]} | {way} | {r['parameters']/1e6:.2f} M | {r['steps']} | {r['cpu']:.0f} | {r['wall']:.0f} | "
                  f"{r['train']:.2f} | {reached(r['curve'], end):.0f} |")


def start(args, way, rate, seed):
    "Train one network in a process of its own, unless that is done."
    file = args.out/f'{way}_{rate}_{seed}.json'
    command = [sys.executable, __file__, '--data', args.data, '--seconds', args.seconds, '--way', way, '--file', file,
               '--rate', rate, '--seed', seed]
    if not file.exists(): subprocess.run([str(c) for c in command], env={**os.environ, 'OMP_NUM_THREADS': '1'}, check=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, required=True)
    p.add_argument('--out', type=Path, default=Path('autoencoder_runs'))
    p.add_argument('--seconds', type=float, default=600)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--rates', type=int, nargs='+', default=[8, 16])
    for name in ('--way', '--file', '--rate', '--seed'): p.add_argument(name, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.way:
        args.file, args.rate, args.seed = Path(args.file), int(args.rate), int(args.seed)
        return train(args)
    args.out.mkdir(parents=True, exist_ok=True)
    todo = [(way, rate, seed) for seed in args.seeds for rate in args.rates for way in WAYS]
    with ThreadPoolExecutor(2) as pool: list(pool.map(lambda job: start(args, *job), todo))
    for seed in args.seeds:
        for rate in args.rates:
            file = args.out/f'base_{rate}_{seed}.json'
            if not file.exists(): file.write_text(json.dumps(dict(way='base', rate=rate, seed=seed, **baselines(args, rate, seed))))
    print(f'{platform.processor() or platform.machine()}, Python {platform.python_version()}')
    tables(args.out)


if __name__ == '__main__': main()
