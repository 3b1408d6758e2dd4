"""The ladder of chapter 36 at the size of `fmri_ldm demo`: 4 mm, 200 maps of 40 people to train, 60 maps of 12 new people to judge.

python benchmarks/ladder.py OUT [--seeds 0 1 2] [--arms NAME...] [--table]

For each seed: the demo's phantom, split and autoencoder, made once; then each arm trains a denoiser with the demo's budget (600 steps of
16 latents) and draws 24 maps of each of five movements. What is done stays in OUT, so a run that was cut short goes on. The maps are
kept (`OUT/maps`), so that other judges can be asked later. Prints a table in markdown.
"""
import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from fmri_ldm.core import generator
from fmri_ldm.diffusion import GaussianDenoiser
from fmri_ldm.ladder import ASKED, arm_table, draw_arm, judge_arm, train_arm
from fmri_ldm.monitor import linear_denoiser
from fmri_ldm.study import Study, demo_config, phantom_folder

UNET = dict(hidden=[64, 96])
DIT = dict(kind='dit', hidden=128, depth=4, heads=4, patch_size=1)
COSINE, LINEAR = dict(name='ddpm_cosine'), dict(name='ddpm_linear')
ARMS = {                                            # of `train_arm`
    'network alone': dict(start=False), 'network + start': {}, 'full start': dict(fade='full'),
    'transformer + start': dict(network=DIT, lr=1e-3),
    'cosine v + start': dict(schedule=COSINE, target='v'), 'cosine v alone': dict(schedule=COSINE, target='v', start=False),
    'transformer alone': dict(network=DIT, lr=1e-3, start=False),
    'edm + start': dict(schedule=dict(name='edm'), target='edm'), 'edm alone': dict(schedule=dict(name='edm'), target='edm', start=False),
    'linear eps + start': dict(schedule=LINEAR, target='eps')}


def base(out, seed):
    "The demo's study up to its latents; quick when its autoencoder is there."
    cfg, out = demo_config(seed=seed), out/f'base_{seed}'
    cfg['data']['path'] = str(out/'study')
    phantom_folder(out/'study', sum(cfg['split']['counts']), seed=seed)
    return Study(cfg, out).open().load().fit_autoencoder().encode_latents()


def held_loss(study, den, side):
    "Loss on the latents of one group, the same noise for all."
    m, labels = study.model, torch.as_tensor(study.real[side].labels)
    z = study.latents.get(side)
    if z is None: z = m.stats.encode(m.encode(study.real[side].x).to(study.device)).cpu()
    with torch.no_grad(): v = [den.loss(z, {'label': labels}, generator=generator(1, i))[0].item() for i in range(4)]
    return sum(v)/4


def work(study, out, arm, seed):
    "Train, draw, judge one arm; keep its maps."
    file = out/f'{arm.replace(" ", "_").replace("+", "and")}_{seed}.json'
    if file.exists(): return
    z, y = study.latents, {k: {'label': torch.as_tensor(study.real[k].labels)} for k in study.latents}
    begin, held = time.process_time(), (z['val'], y['val'])
    if arm == 'Gaussian of latents': den = linear_denoiser(z['train'], y['train'], held, n_labels=5, network=UNET, fade='full').eval()
    else: den = train_arm(z['train'], y['train'], held, steps=600, seed=seed, ema=.995, **dict(network=UNET) | ARMS[arm])
    cpu = time.process_time() - begin
    if arm == 'Gaussian of latents':                # as numbers: a network that is not trained draws the same
        den = den.prior if isinstance(den.prior, GaussianDenoiser) else den
    x, ids, calls = draw_arm(study.model, den, 24, seed=seed)
    got, floor, pca = judge_arm(study.model, study.real, x, ids, seed=seed)
    row = got | dict(calls=calls, cpu=cpu)
    if hasattr(den, 'loss'):
        row['loss'] = held_loss(study, den, 'test')
        row['gap'] = row['loss'] - held_loss(study, den, 'train')
    (out/'maps').mkdir(exist_ok=True)
    np.savez_compressed(out/'maps'/f'{file.stem}.npz', x=x.cpu().numpy().astype('float16'), labels=ids)
    file.write_text(json.dumps(dict(arm=arm, seed=seed, row=row, floor=floor, pca=pca)))
    print(arm, seed, {k: round(v, 4) for k, v in row.items()}, flush=True)


def show(out):
    "The table of what is there."
    rows = {'real against real': [], 'PCA-Gaussian of voxels': []}
    for arm in ('Gaussian of latents', *ARMS):
        for f in sorted(out.glob(f'{arm.replace(" ", "_").replace("+", "and")}_[0-9]*.json')):
            r = json.loads(f.read_text())
            rows.setdefault(arm, []).append(r['row'])
            if arm == 'Gaussian of latents':
                rows['real against real'].append(r['floor']), rows['PCA-Gaussian of voxels'].append(r['pca'])
    print(arm_table(rows, ['loss', 'gap', *ASKED, 'calls', 'cpu']))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--arms', nargs='+', default=list(ARMS)[:6], choices=list(ARMS))
    p.add_argument('--table', action='store_true', help='only print what is there')
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for seed in [] if args.table else args.seeds:
        study = base(args.out, seed)
        for arm in ('Gaussian of latents', *args.arms): work(study, args.out, arm, seed)
    show(args.out)


if __name__ == '__main__': main()
