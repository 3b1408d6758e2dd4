"""The ladder of chapter 36 at the size of `fmri_ldm demo`: 4 mm, 200 maps of 40 people to train, 60 maps of 12 new people to judge.

python benchmarks/ladder.py OUT [--seeds 0 1 2] [--arms NAME...] [--table] [--new 120] [--demos RUN...]

For each seed: the demo's phantom, split and autoencoder, made once; then each arm trains a denoiser with the demo's budget (600 steps of
16 latents) and draws 24 maps of each of five movements. What is done stays in OUT, so a run that was cut short goes on. The maps are
kept (`OUT/maps`), so that other judges can be asked later: `--new 120` makes 120 more people of each phantom, ten times as many as the
demo holds out, and judges all kept maps beside theirs: the distances of chapter 30, and the random forest of chapter 30a, which looks at
the quantiles of a map's voxels (area under the ROC curve, 0.5: cannot tell). `--demos` names finished runs of `fmri_ldm demo`, one for each
seed; they draw as many maps, once as the decoder says and once with its remainder (chapter 12b), and are judged with the others. Prints tables
in markdown.
"""
import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from fmri_ldm.core import generator
from fmri_ldm.diffusion import GaussianDenoiser
from fmri_ldm.distances import bandwidths, class_mmd2, density_coverage, mmd2, parcel_features, parcels, precision_recall
from fmri_ldm.features import c2st_forest, histogram_features
from fmri_ldm.latent import LatentDiffusion
from fmri_ldm.ladder import ASKED, arm_table, draw_arm, judge_arm, train_arm
from fmri_ldm.monitor import linear_denoiser
from fmri_ldm.phantom import motor_study
from fmri_ldm.report import Real, draw_like, pca_gaussian
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


def keep_demo(run, out, seed):
    "120 maps of a finished demo, with and without the remainder, beside the arms' maps."
    model, maps = LatentDiffusion.from_pretrained(run/'model'), out/'maps'
    maps.mkdir(exist_ok=True)
    for name, share in ('demo, decoder alone', 0.), ('demo, with its remainder', 1.):
        x = model.generate_volumes(None, 24, seed=seed, remainder=share)
        labels = model.label_ids(None, 24)
        np.savez_compressed(maps/f'{name.replace(" ", "_")}_{seed}.npz', x=x.numpy().astype('float16'), labels=labels)


def new_people(study, out, seed, n):
    "Maps of people of the same phantom whom nothing has seen."
    file, old = out/f'new_{seed}_{n}.npz', sum(study.config['split']['counts'])
    if not file.exists():
        more = motor_study(old + n, seed=seed)
        rows = [i for i, s in enumerate(more.subjects) if int(s[4:]) > old]
        x, ids = study.model.volumes([more.image(i) for i in rows], [more.labels[i] for i in rows])
        np.savez_compressed(file, x=x.numpy().astype('float16'), labels=ids, subjects=[more.subjects[i] for i in rows])
    with np.load(file) as f: return Real(torch.tensor(f['x']).float(), f['labels'], f['subjects'])


def judge_new(study, out, seed, n):
    "All kept maps of one seed beside the new people's."
    new, train, mask = new_people(study, out, seed, n), study.real['train'], torch.as_tensor(np.asarray(study.geometry.mask))
    places = parcels(mask.numpy(), 64, affine=study.geometry.grid_affine)[mask.numpy()]
    features = lambda x: parcel_features(x[:, 0][:, mask].float(), places)
    shape = lambda x: histogram_features(x[:, 0][:, mask])
    first = np.isin(new.subjects, np.unique(new.subjects)[::2])     # the forest learns half of them, the others are its floor
    real, some_shape, rows = features(new.x), shape(new.x[torch.as_tensor(first)]), {}
    widths = bandwidths(real[::2])
    def forest(x, who): return c2st_forest(shape(x), some_shape, groups=np.array([*map(str, who), *new.subjects[first]]))
    def judge(x, y, who=None):
        f = features(x)
        (p, r), (d, c) = precision_recall(real, f, k=5), density_coverage(real, f, k=5)
        within = class_mmd2(f, real, gen_labels=y, real_labels=new.labels)
        return {k: float(v) for k, v in dict(mmd=mmd2(f, real, bandwidths=widths), class_mmd=within, precision=p, recall=r, density=d,
                                             coverage=c, forest=forest(x, range(len(x)) if who is None else who)).items()}
    ids, floor = np.repeat(np.arange(5), 24), []
    for i in range(3):
        some = draw_like(train, ids, seed=i)
        rows.setdefault('real against real: maps of the training people', []).append(
            judge(train.x[some], train.labels[some], train.subjects[some]))
        others = Real(new.x[torch.as_tensor(~first)], new.labels[~first], new.subjects[~first])
        fresh = draw_like(others, ids, seed=i)
        floor.append(forest(others.x[fresh], others.subjects[fresh]))
        back = study.model.decode(study.model.encode(train.x[some]))
        rows.setdefault('the same, encoded and decoded', []).append(judge(back, train.labels[some], train.subjects[some]))
        back += study.model.remainder.sample([generator(i, 'back', k) for k in range(len(back))])
        rows.setdefault('the same, and the remainder', []).append(judge(back, train.labels[some], train.subjects[some]))
        rows.setdefault('PCA-Gaussian of voxels', []).append(judge(pca_gaussian(train, ids, seed=i), ids))
    rows['other new people (forest only)'] = [dict(forest=sum(floor)/len(floor))]
    for file in sorted((out/'maps').glob(f'*_{seed}.npz')):
        with np.load(file) as f: rows[file.stem[:-2].replace('_', ' ').replace('and', '+')] = [judge(torch.tensor(f['x']), f['labels'])]
    return {k: {m: sum(r[m] for r in v)/len(v) for m in v[0]} for k, v in rows.items()}


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
    p.add_argument('--new', type=int, metavar='N', help='judge what is there beside N new people of each seed')
    p.add_argument('--demos', type=Path, nargs='+', default=[], metavar='RUN', help='with --new: finished demos, one for each seed')
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if args.new:
        rows = {}
        for run, seed in zip(args.demos, args.seeds): keep_demo(run, args.out, seed)
        for seed in args.seeds:
            for k, v in judge_new(base(args.out, seed), args.out, seed, args.new).items(): rows.setdefault(k, []).append(v)
        return print(arm_table(rows))
    for seed in [] if args.table else args.seeds:
        study = base(args.out, seed)
        for arm in ('Gaussian of latents', *args.arms): work(study, args.out, arm, seed)
    show(args.out)


if __name__ == '__main__': main()
