"""Coarse to fine beside from scratch, at equal processor time: 8 -> 4 -> 2 mm (phantom) and 4 -> 2 mm (IXI).

python benchmarks/progressive.py OUT [--data FOLDER] [--seconds 40] [--rates 1e-3 3e-3 9e-3] [--seeds 0 1] [--table]

FOLDER holds ixi_t1_2mm (scans of 2 mm, one for each person); without it, only the phantom is done. Every denoiser trains for the same
seconds of processor time of one thread, every autoencoder for half of them; what is spent at coarse levels counts, and so does fitting
the linear starts; looking at the result does not. Both ways choose among the same learning rates by the same rule: the best held-out
value of the validation people at 2 mm, seed 0. The chosen rate is trained with the other seeds too. The judge is at 2 mm for all, also
for what is still at a coarse level: PSNR in the mask for autoencoders; for denoisers the squared error of the velocity at seven fixed
times and fixed noise. All denoisers of a set share one autoencoder (trained at 2 mm). What is done stays in OUT, so a run that was cut
short goes on. Then 30 maps drawn by the phantom's denoisers are judged, and the noise shift of each level is measured. Prints tables in
markdown. 2 cores: about an hour.
"""
import argparse
import copy
import json
import math
import statistics
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from fmri_ldm.autoencoder import Autoencoder
from fmri_ldm.core import generator, load_tensors, plain, save_tensors
from fmri_ldm.diffusion import add_noise
from fmri_ldm.ladder import arm_table, draw_arm, judge_arm
from fmri_ldm.latent import Latents, LatentDiffusion, build_denoiser, denoising_step
from fmri_ldm.monitor import linear_prior
from fmri_ldm.phantom import MOTOR_LABELS, draw_subject, grid_coords, mni_grid, paint, smooth_noise
from fmri_ldm.progressive import carry, coarsen, coarser, filter_share, measured_shift, shifted_by
from fmri_ldm.report import Real, draw_like
from fmri_ldm.volume import Geometry, Scale

FACTORS = dict(phantom=(4, 2, 1), ixi=(2, 1))
SHARES = dict(phantom=(.1, .25, .65), ixi=(.3, .7))         # of the time, coarse to fine
PEOPLE = dict(phantom=(24, 4, 8), ixi=(50, 8, 12))
CHANNELS, BATCH = dict(phantom=8, ixi=4), dict(autoencoder={4: 16, 2: 4, 1: 2}, denoiser={4: 16, 2: 16, 1: 4})
NET = dict(hidden=[32, 48])
LOOKS = .1, .2, .35, .5, .65, .8                            # shares of the time when looked at
TIMES = torch.linspace(.05, .95, 7)


def person(subject, seed, at, coarse, mask):
    "Five z maps of 2 mm: the phantom's foci and deformation, smooth noise of 6 mm FWHM."
    from scipy.ndimage import map_coordinates
    rng = np.random.default_rng([seed, subject])
    warp, truth = draw_subject(rng, coarse.shape)
    ijk = nib.affines.apply_affine(np.linalg.inv(coarse.affine), at).T
    at = at + np.stack([map_coordinates(warp[..., k], ijk, order=1, mode='nearest') for k in range(3)], -1)
    out = np.zeros((5, *mask.shape), np.float32)
    for o, label in zip(out, MOTOR_LABELS):
        o[mask] = 7*paint([f for f in truth['foci'] if f['label'] == label], at)
        o[mask] += smooth_noise(rng, mask.shape, 6/2.355/2)[mask]
    return out


def phantom(out):
    "Maps (n, 1, x, y, z) in half precision, their geometry, class and person of each."
    mask_img, coarse = mni_grid(2)[1], mni_grid(4)[1]
    geo, file = Geometry.fit(mask_img, stride=16, mask_img=mask_img), out/'phantom.npy'
    n = sum(PEOPLE['phantom'])
    if not file.exists():
        mask = mask_img.get_fdata() > 0
        at = grid_coords(mask_img.affine, mask.shape)[mask]
        x = [geo.to_grid(nib.Nifti1Image(m, mask_img.affine)).half() for i in range(n) for m in person(i, 0, at, coarse, mask)]
        np.save(file, torch.stack(x).numpy())
    return torch.tensor(np.load(file)), geo, torch.arange(5*n) % 5, torch.arange(5*n)//5


def heads(folder):
    from fmri_ldm.fetch import ixi_source
    from fmri_ldm.rows import level_images
    src = level_images(ixi_source(folder/'ixi_t1_2mm'))
    assert len({r.subject for r in src.rows}) == len(src.rows), 'one scan for each person'
    order = np.random.default_rng(7).permutation(len(src.rows))[:sum(PEOPLE['ixi'])]
    images = [src.image(i) for i in order]
    geo = Geometry.fit(images[0], stride=8)
    return torch.stack([Geometry.fit(v, stride=8).to_grid(v).half() for v in images]), geo, None, torch.arange(len(images))


class Data:
    "Volumes of one set on all its levels, split by person, scaled once: on the finest level's training people."
    def __init__(self, name, args):
        self.name, self.factors = name, FACTORS[name]
        x, self.geo, self.y, who = phantom(args.out) if name == 'phantom' else heads(args.data)
        a, b, _ = PEOPLE[name]
        self.side = dict(train=who < a, val=(who >= a) & (who < a + b), test=who >= a + b)
        self.who, mask = who, self.geo.mask
        if name == 'ixi': self.mask = coarsen(x.float(), 4).repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4) > .1
        else: self.mask = mask[None, None]
        self.scale = Scale.fit(x[self.side['train']].float(), mask)
        self.x = {1: torch.cat([self.scale.encode(v.float()).half() for v in x.split(8)])}
        self.geos, self.masks = {1: self.geo}, {1: self.mask}
        for f in self.factors[:-1]:
            self.x[f] = torch.cat([coarsen(v.float(), f).half() for v in self.x[1].split(8)])
            self.geos[f] = coarser(self.geo, f)
            self.masks[f] = torch.cat([coarsen(v.float(), f) for v in self.mask.split(8)]) >= .5

    def rows(self, side): return self.side[side].nonzero()[:, 0]

    def mask_of(self, i, f=1):
        i = torch.as_tensor(i)
        return self.masks[f][i if len(self.masks[f]) > 1 else 0*i]


class Clock:
    "Processor seconds of what stands in its `with` blocks."
    used = 0.
    def __enter__(self): self.start = time.process_time()
    def __exit__(self, *_): self.used += time.process_time() - self.start


@torch.no_grad()
def voxel_error(ae, data, side, most=8):
    "Squared error in the mask of held-out volumes at 2 mm, as PSNR (dB); phantom: the range is that of the data."
    top = 1/data.scale.scale if data.name == 'ixi' else 20/data.scale.scale
    i, out = data.rows(side), []
    for k in i[torch.linspace(0, len(i) - 1, min(most, len(i))).long()]:
        v, m = data.x[1][k][None].float(), data.mask_of([k])
        with torch.autocast('cpu', torch.bfloat16): y = ae(v).float()
        out.append(-10*math.log10((y - v)[m].square().mean()/top**2))
    return statistics.mean(out)


@torch.no_grad()
def denoising_error(den, z, y, *, most):
    "Mean squared error of the velocity at fixed times and noise."
    pick = torch.linspace(0, len(z) - 1, min(most, len(z))).long()
    z, cond, each = z[pick], None if y is None else {'label': y[pick]}, []
    eps = torch.randn(z.shape, generator=generator(1, 'judge'))
    for t in TIMES:
        t = torch.full((len(z),), float(t))
        with torch.autocast('cpu', torch.bfloat16): v = den.predict(add_noise(z, eps, t, den.schedule), t, cond)
        each.append((v - eps + z).square().mean().item())
    return sum(each)/len(each)


def cut(shape, size, g):
    "Slices of a random crop with corners at multiples of 4."
    at = [int(torch.randint((n - min(n, size))//4 + 1, (1,), generator=g))*4 for n in shape]
    return tuple(slice(a, a + size) for a in at)


def descend(model, batch, loss, seconds, clock, *, lr, seed, ema, look):
    "Adam, warm-up and cosine for some processor seconds; the averaged weights."
    params, mean, step, end, begin = list(model.parameters()), copy.deepcopy(model).eval(), 0, clock.used + seconds, clock.used
    opt, g = torch.optim.AdamW(params, lr), generator(seed, 'batches')
    torch.manual_seed(seed)
    while clock.used < end:
        with clock:
            share = (clock.used - begin)/seconds
            for group in opt.param_groups: group['lr'] = lr*min(1, (step + 1)/20)*max(.02, .5*(1 + math.cos(math.pi*share)))
            model.train()
            with torch.autocast('cpu', torch.bfloat16): value = loss(model, batch(g))
            opt.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.)
            opt.step()
            step += 1
            decay = min(ema, (1 + step)/(10 + step))
            with torch.no_grad(): torch._foreach_lerp_(list(mean.parameters()), params, 1 - decay)
        look(mean)
    return mean, step


def new_autoencoder(data, seed, start):
    torch.manual_seed(seed)
    return Autoencoder(1, CHANNELS[data.name], hidden=32, depth=1, fine=16, bottleneck=1e-6)


def fit_start(ae, data, f, start):
    "PCA of the blocks of this level's training people."
    if start: ae.fit_linear(data.x[f][data.rows('train')[::2]].float(), data.masks[f][0, 0] if data.name == 'phantom' else None)
    return ae


def refit(ae, data, f):
    "The linear part anew, and networks whose last layers start at zero again."
    fit_start(ae, data, f, True)
    k = ae.config['latent_channels']
    with torch.no_grad():
        for conv in ae.decoder.out, ae.fine_out.out: conv.weight.zero_(), conv.bias.zero_()
        ae.encoder.out.weight[:k], ae.encoder.out.bias[:k] = 0, 0
    return ae


def train_autoencoder(data, args, *, way, lr, seed, start=True, linear='carry', seconds=None):
    "One autoencoder; its curve of PSNR at 2 mm."
    clock, seconds, curve, steps, ae = Clock(), seconds or .5*args.seconds, [], [], None
    plan = list(zip(data.factors, SHARES[data.name])) if way == 'coarse to fine' else [(1, 1.)]
    due, train = [a*seconds for a in LOOKS], data.rows('train')
    def look(model):
        if due and clock.used >= due[0]:
            due.pop(0)
            curve.append((clock.used, voxel_error(model.eval(), data, 'val', 3)))
    total = 0
    for f, share in plan:
        total += share*seconds
        with clock:
            if ae is None: ae = fit_start(new_autoencoder(data, seed, start), data, f, start)
            else:
                ae = carry(ae, new_autoencoder(data, seed, start))
                if linear == 'refit': refit(ae, data, f)
        if f == 1: curve.append((clock.used, voxel_error(ae.eval(), data, 'val', 3)))
        def batch(g):
            i = train[torch.randint(len(train), (BATCH['autoencoder'][f],), generator=g)]
            at = [(slice(None), *cut(data.x[f].shape[2:], 64, g)) for _ in i]
            m = data.mask_of(i, f)
            return torch.stack([data.x[f][k][a].float() for k, a in zip(i, at)]), torch.stack([v[a] for v, a in zip(m, at)])
        def loss(model, b): return model.loss(*b)[0]
        ae, n = descend(ae, batch, loss, max(.1, total - clock.used), clock, lr=lr, seed=seed, ema=.98, look=look)
        steps.append(n)
    ae.eval()
    curve.append((clock.used, voxel_error(ae, data, 'val', 3)))
    return ae, dict(curve=curve, steps=steps, cpu=clock.used, val=voxel_error(ae, data, 'val'), test=voxel_error(ae, data, 'test'))


def base(data, args):
    "The autoencoder that all denoisers of a set share, and latents of every level: unit size, by the level's training people."
    file = args.out/f'base_{data.name}.safetensors'
    ae = new_autoencoder(data, 0, True)
    if file.exists(): ae.load_state_dict(load_tensors(file)[0])
    else:
        ae, row = train_autoencoder(data, args, way='from scratch', lr=2e-3, seed=0, seconds=40)
        save_tensors(ae.state_dict(), file, dict(test=row['test'], steps=row['steps']))
    z, stats = {}, {}
    for f in data.factors:
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            raw = torch.cat([ae.eval().encode(v.float()).float() for v in data.x[f].split(2)])
        stats[f] = Latents(raw.shape[1]).fit(raw[data.side['train']])
        z[f] = stats[f].encode(raw)
    return ae, z, stats


def new_denoiser(data, z, f, *, seed, start, shift):
    i, n = data.rows('train'), 5 if data.name == 'phantom' else 0
    cond = None if data.y is None else {'label': data.y[i]}
    schedule = shifted_by(None, shift)
    prior = linear_prior(z[f][i], cond, schedule=schedule, n_labels=n, rank=16) if start else None
    torch.manual_seed(seed)
    return build_denoiser(z[f].shape[1:], n_labels=n, schedule=schedule, prior=prior, network=NET)


def train_denoiser(data, args, z, *, way, lr, seed, start=True, shifts=None, keep=None):
    "One denoiser; its curve of held-out error at 2 mm."
    clock, curve, steps, den, seconds = Clock(), [], [], None, args.seconds
    plan = list(zip(data.factors, SHARES[data.name])) if way == 'coarse to fine' else [(1, 1.)]
    shifts = shifts or {f: 1. for f in data.factors}
    due, train = [a*seconds for a in LOOKS], data.rows('train')
    held = {k: (z[1][data.side[k]], None if data.y is None else data.y[data.side[k]]) for k in ('val', 'test')}
    final = new_denoiser(data, z, 1, seed=seed, start=start, shift=shifts[1])
    def look(model):
        if due and clock.used >= due[0]:
            due.pop(0)
            fine = copy.deepcopy(final)
            curve.append((clock.used, denoising_error(carry_all(model, fine), *held['val'], most=3 if data.y is None else 4)))
    def carry_all(old, new):
        carry(old.net, new.net)
        return new.eval()
    total = 0
    curve.append((0, denoising_error(final.eval(), *held['val'], most=3 if data.y is None else 4)))
    for f, share in plan:
        total += share*seconds
        with clock:
            new = new_denoiser(data, z, f, seed=seed, start=start, shift=shifts[f])
            den = new if den is None else carry_all(den, new)
        if f == 1 and way != 'from scratch': curve.append((clock.used, denoising_error(den.eval(), *held['val'], most=3 if data.y is None else 4)))
        def batch(g):
            i = train[torch.randperm(len(train), generator=g)[:BATCH['denoiser'][f]//(2 if f == 1 and data.y is None else 1)]]
            return z[f][i] if data.y is None else (z[f][i], data.y[i])
        def loss(model, b): return denoising_step(model, b)[0]
        den, n = descend(den, batch, loss, max(.1, total - clock.used), clock, lr=lr, seed=seed, ema=.99, look=look)
        steps.append(n)
    row = {k: denoising_error(den, *held[k], most=6 if data.y is None else 10) for k in held}
    curve.append((clock.used, denoising_error(den, *held['val'], most=3 if data.y is None else 4)))
    if keep: save_tensors(den.state_dict(), keep)
    return dict(curve=curve, steps=steps, cpu=clock.used, **row)


WAYS = 'from scratch', 'coarse to fine'
GRID = 1e-3, 3e-3, 9e-3
EXTRA = {                                                   # more trainings of the phantom and of heads, at the chosen rates, seed 0
    ('autoencoder', 'no start'): dict(start=False), ('autoencoder', 'linear part anew'): dict(linear='refit'),
    ('denoiser', 'no start'): dict(start=False), ('denoiser', 'shift by sqrt(n)'): 'coarsest', ('denoiser', 'shift, finest is 1'): 'finest'}


class Bench:
    "What is asked for, what is there."
    def __init__(self, args): self.args, self.kept = args, {}

    def file(self, *key): return self.args.out/('_'.join(str(k).replace(' ', '-') for k in key) + '.json')

    def data(self, name):
        if name not in self.kept:
            self.kept.clear()
            self.kept[name] = Data(name, self.args)
        return self.kept[name]

    def latents(self, name):
        if 'z' not in self.kept or name not in self.kept: self.kept['z'] = (self.data(name), base(self.data(name), self.args))[1]
        return self.kept['z']

    def best(self, stage, name, way):
        "The rate with the lowest validation error of seed 0."
        found = {lr: self.read(stage, name, way, lr, 0) for lr in self.args.rates}
        if not all(found.values()): return None
        sign = -1 if stage == 'autoencoder' else 1
        return min(found, key=lambda lr: sign*found[lr]['val'])

    def read(self, *key): return json.loads(self.file(*key).read_text()) if self.file(*key).exists() else None

    def train(self, stage, name, way, lr, seed, extra=None):
        key = (stage, name, way, lr, seed) + ((extra,) if extra else ())
        if self.file(*key).exists(): return
        data, more = self.data(name), EXTRA.get((stage, extra), {})
        if isinstance(more, str):
            f0 = max(data.factors) if more == 'coarsest' else 1
            more = dict(shifts={f: (f0/f)**1.5 for f in data.factors})
        kw, start = dict(way=way, lr=lr, seed=seed, **more), time.time()
        if stage == 'autoencoder': row = train_autoencoder(data, self.args, **kw)[1]
        else:
            keep = self.file(*key).with_suffix('.safetensors')
            row = train_denoiser(data, self.args, self.latents(name)[1], keep=keep, **kw)
        row.update(stage=stage, name=name, way=way, lr=lr, seed=seed, extra=extra, clock=time.time() - start)
        self.file(*key).write_text(json.dumps(row))
        print(*key, 'steps', row['steps'], f"val {row['val']:.4f} test {row['test']:.4f} cpu {row['cpu']:.0f} clock {row['clock']:.0f}", flush=True)

    def run(self):
        "Rates first; of the phantom's denoiser more seeds and what else was asked; then more seeds of the others."
        names, stages = ['phantom', *(['ixi'] if self.args.data else [])], self.args.stages
        for name in names:
            for stage in stages:
                for way in WAYS:
                    for lr in self.args.rates: self.train(stage, name, way, lr, 0)
                if (name, stage) == ('phantom', 'denoiser'):
                    self.again(name, stage)
                    self.extras(name, stage)
                    self.samples()
        for name in reversed(names):
            for stage in stages: self.again(name, stage)
        if 'autoencoder' in stages: self.extras('phantom', 'autoencoder')

    def samples(self, n=6, seed=0):
        "What the phantom's denoisers of seed 0 draw at 2 mm, beside real maps; n of each movement."
        todo = {'Gaussian of latents': None, **{way: self.file('denoiser', 'phantom', way, self.best('denoiser', 'phantom', way), 0) for way in WAYS}}
        if all(self.file('samples', k).exists() for k in todo): return
        data, (ae, z, stats) = self.data('phantom'), self.latents('phantom')
        model = LatentDiffusion(ae, data.geo, data.scale, labels=MOTOR_LABELS, device='cpu')
        model.stats.load_state_dict(stats[1].state_dict())
        real = {k: Real(data.scale.decode(data.x[1][i].float()), data.y[i].numpy(), np.array([f'sub-{j}' for j in data.who[i]]))
                for k, i in ((k, data.rows(k)) for k in ('train', 'test'))}
        for k, file in todo.items():
            if self.file('samples', k).exists(): continue
            den = new_denoiser(data, z, 1, seed=seed, start=True, shift=1.)
            if not file: den = den.prior                     # as numbers: an untrained network fades it out where noise is low
            else: den.load_state_dict(load_tensors(file.with_suffix('.safetensors'))[0])
            x, ids, _ = draw_arm(model, den.eval(), n, seed=seed, num_inference_steps=12)
            got, floor, pca = judge_arm(model, real, x, ids, seed=seed)
            m, train = data.mask[0, 0], real['train']
            def maps(x, y): return torch.stack([x[torch.as_tensor(y == c)].mean(0)[0][m] for c in range(5)])
            want = maps(real['test'].x, real['test'].labels)
            some = draw_like(train, ids, seed=seed)
            pair = (maps(x, ids), maps(train.x[some], train.labels[some]))
            got['map_r'], floor['map_r'] = (statistics.mean(np.corrcoef(a, b)[0, 1] for a, b in zip(p, want)) for p in pair)
            self.file('samples', k).write_text(json.dumps(plain(dict(row=got, floor=floor, pca=pca))))
            print('samples', k, got, floor, pca, flush=True)

    def again(self, name, stage):
        for seed in self.args.seeds[1:]:
            for way in WAYS: self.train(stage, name, way, self.best(stage, name, way), seed)

    def extras(self, name, stage):
        for of, extra in EXTRA:
            if of != stage: continue
            for way in WAYS if extra == 'no start' else WAYS[1:]:
                self.train(stage, name, way, self.best(stage, name, way), 0, extra)


def reached(curve, level, down):
    "Seconds until a curve is as good as a level for good, between looks by a straight line; inf if it never is."
    good = [(v <= level) if down else (v >= level) for _, v in curve]
    if not good[-1]: return math.inf
    k = len(good) - 1
    while k and good[k - 1]: k -= 1
    if not k: return curve[0][0]
    (t0, v0), (t1, v1) = curve[k - 1], curve[k]
    return t1 if v1 == v0 else t0 + (t1 - t0)*(level - v0)/(v1 - v0)


def tables(b):
    "Tables in markdown from what is there."
    out = [json.loads(p.read_text()) for p in sorted(b.args.out.glob('*.json'))]
    rows = [r for r in out if isinstance(r, dict) and 'stage' in r]
    def find(**kw): return sorted((r for r in rows if all(r[k] == v for k, v in kw.items())), key=lambda r: (r['lr'], r['seed']))
    print('\n| set | stage | way | validation of seed 0 at rates ' + ', '.join(f'{v:g}' for v in b.args.rates) + ' | chosen | test, seeds '
          + ', '.join(map(str, b.args.seeds)) + ' | steps at each level | s to the end of from scratch |')
    print('|' + '---|'*8)
    for name in FACTORS:
        for stage in 'denoiser', 'autoencoder':
            for way in WAYS:
                some, best = find(name=name, stage=stage, way=way, extra=None), b.best(stage, name, way)
                if not best or not b.best(stage, name, WAYS[0]): continue
                chosen = [r for r in some if r['lr'] == best]
                ends = {r['seed']: r['curve'][-1][1] for r in find(name=name, stage=stage, way=WAYS[0], extra=None, lr=b.best(stage, name, WAYS[0]))}
                when = [reached(r['curve'], ends[r['seed']], stage == 'denoiser') for r in chosen if r['seed'] in ends]
                rates = ', '.join(f"{r['val']:.4g}" for r in some if r['seed'] == 0)
                print(f"| {name} | {stage} | {way} | {rates} | {best:g} | " + ', '.join(f"{r['test']:.4g}" for r in chosen) + ' | '
                      + '; '.join('+'.join(map(str, r['steps'])) for r in chosen) + ' | ' + ', '.join(f'{v:.0f}' for v in when) + ' |')
    print('\n| set | stage | way | seed | ' + 'seconds: judged value at 2 mm |\n|' + '---|'*5)
    for r in rows:
        if r['extra'] or r['lr'] != b.best(r['stage'], r['name'], r['way']): continue
        print(f"| {r['name']} | {r['stage']} | {r['way']} | {r['seed']} | " + ', '.join(f'{t:.0f}: {v:.4g}' for t, v in r['curve']) + ' |')
    print('\n| changed | way | rate | test, seed 0 | steps |\n|' + '---|'*5)
    for r in rows:
        if r['extra']: print(f"| {r['stage']}: {r['extra']} | {r['way']} | {r['lr']:g} | {r['test']:.4g} | {'+'.join(map(str, r['steps']))} |")
    samples = {p.stem[8:].replace('-', ' '): json.loads(p.read_text()) for p in sorted(b.args.out.glob('samples_*.json'))}
    if samples:
        first = next(iter(samples.values()))
        table = {'real against real': [first['floor']], 'PCA-Gaussian of voxels': [first['pca']]} | {k: [v['row']] for k, v in samples.items()}
        print('\n' + arm_table(table, [*first['row']]))


def shifts(b, names):
    "What sigma/alpha gains from a level to the next, in voxels and in latents: `measured_shift`."
    logsnr = torch.linspace(-14, 8, 45)
    for name in names:
        (data, (_, z, _)), found = (b.data(name), b.latents(name)), {}
        i = data.rows('train')[:60]
        for kind, of in dict(voxels=data.x, latents=z).items():
            share = {f: filter_share(of[f][i].float(), logsnr) for f in data.factors}
            found[kind] = [round(measured_shift(logsnr, share[a], share[c]), 2) for a, c in zip(data.factors, data.factors[1:])]
        b.args.out.joinpath(f'shift_{name}.json').write_text(json.dumps(found))
        print(name, found, flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path)
    p.add_argument('--data', type=Path)
    p.add_argument('--seconds', type=float, default=40)
    p.add_argument('--rates', type=float, nargs='+', default=GRID)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    p.add_argument('--stages', nargs='+', default=['denoiser', 'autoencoder'], choices=['denoiser', 'autoencoder'])
    p.add_argument('--table', action='store_true', help='only print what is there')
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    b = Bench(args)
    if not args.table:
        b.run()
        shifts(b, ['phantom', *(['ixi'] if args.data else [])])
    tables(b)


if __name__ == '__main__': main()
