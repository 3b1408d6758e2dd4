"""Which choices matter for diffusion: starts, schedules, targets, networks, samplers and averages, on the phantom.

python benchmarks/diffusion.py [--out DIR] [--seeds 0 1 2] [--arms NAME...] [--workers 1]

For each seed: the demo's phantom study, its split by subject (40 / 8 / 12) and its autoencoder; then each arm trains a denoiser with
the demo's budget (600 steps of 16 latents, fixed EMA 0.995, weights of the best validation loss) and draws 24 maps of each of five
movements; both ends are judged as `fmri_ldm demo` judges its own: held-out people, parcel features, beside real training maps and the
PCA-Gaussian. What is done stays in DIR, so a run that was cut short goes on. Prints tables in markdown.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DIT = dict(kind='dit', hidden=128, depth=4, heads=4, patch_size=1)
# name: schedule, target, what the Gaussian is to the network (None: nothing), then other settings
ARMS = {
    'flow': ('flow', 'flow', None), 'flow + input': ('flow', 'flow', 'input'), 'flow + fade': ('flow', 'flow', 1.),
    'flow + full': ('flow', 'flow', 'full'), 'flow + fade 2': ('flow', 'flow', 2.), 'flow + fade 1/2': ('flow', 'flow', .5),
    'cosine v': ('ddpm_cosine', 'v', None), 'cosine v + fade': ('ddpm_cosine', 'v', 1.),
    'linear eps': ('ddpm_linear', 'eps', None), 'linear eps + fade': ('ddpm_linear', 'eps', 1.),
    'sigmoid x0': ('sigmoid', 'x0', None), 'sigmoid x0 + fade': ('sigmoid', 'x0', 1.),
    'edm': ('edm', 'edm', None), 'edm + fade': ('edm', 'edm', 1.),
    'dit': ('flow', 'flow', None, DIT), 'dit + fade': ('flow', 'flow', 1., DIT)}
CORE = 'flow', 'flow + fade', 'linear eps', 'dit', 'dit + fade', 'cosine v', 'cosine v + fade', 'linear eps + fade', 'flow + full', 'flow + input'
METRICS = 'mmd', 'precision', 'recall', 'sd_ratio', 'recognition', 'memorisation_share', 'nearest_ratio'
SPREADS = .01, .02, .03, .05, .07, .1, .14, .2, .28


def nothing(t): return 0*t


def base(args, seed):
    "The demo's study up to its latents; quick when its autoencoder is there."
    from fmri_ldm.study import Study, demo_config, phantom_folder
    out = args.out/f'base_{seed}'
    cfg = demo_config(seed=seed)
    cfg['data']['path'] = str(out/'study')
    phantom_folder(out/'study', sum(cfg['split']['counts']), seed=seed)
    study = Study(cfg, out).open().load().fit_autoencoder().encode_latents()
    return study


def fit(study, arm, seed, file):
    "Train one arm. (Denoiser, its Gaussian, snapshots, logs)"
    import torch
    from functools import partial
    from fmri_ldm.diffusion import GaussianDenoiser, choose_rank
    from fmri_ldm.ema import PowerEMA
    from fmri_ldm.latent import build_denoiser, denoising_step
    from fmri_ldm.learner import EMA, ClipGrad, Learner, MixedPrecision, Progress, Validate, WarmupCosine, shuffled
    from fmri_ldm.latent import auto_precision
    from fmri_ldm.core import load_tensors
    from fmri_ldm.schedules import get_schedule
    name, target, start, *network = ARMS[arm]
    schedule, z, c = get_schedule(name), study.latents, study.config['train_denoiser']
    y = {k: torch.as_tensor(study.real[k].labels) for k in z}
    rank, _ = choose_rank(z['train'], y['train'], z['val'], y['val'], 5, schedule=schedule, slack=.05)
    gauss = GaussianDenoiser.fit(z['train'], y['train'], 5, schedule=schedule, rank=rank)
    torch.manual_seed(seed)
    den = build_denoiser(z['train'].shape[1:], n_labels=5, schedule=schedule, target=target, prior=None if start is None else gauss,
                         fade=start if isinstance(start, float) or start == 'full' else 1.,
                         network=network[0] if network else study.config['denoiser']['network'])
    if start == 'input': den.fade = nothing                          # an input, and no part of the answer
    power, ema = PowerEMA(every=c['steps']//16), EMA(c['ema'])
    held = [(z['val'][i:i + 16], y['val'][i:i + 16]) for i in range(0, len(z['val']), 16)]
    best = file.with_suffix('.safetensors')
    cbs = [MixedPrecision(auto_precision()), ClipGrad(c['clip']), ema, power, Progress(100, stage=f'{arm} {seed}'),
           WarmupCosine(c['warmup'], floor=.02), Validate(held, every=50, ema=ema, best=best)]
    lr = 1e-3 if network else c['lr']
    begin, cpu = time.time(), time.process_time()
    learn = Learner(den, partial(denoising_step, dropout=c['label_dropout']), lr=lr, seed=seed, cbs=cbs)
    learn.fit(shuffled(z['train'], y['train'], batch_size=c['batch_size'], seed=seed), c['steps'])
    weights, meta = load_tensors(best)
    best.unlink(), best.with_suffix('.json').unlink(missing_ok=True)
    logs = dict(seconds=time.time() - begin, cpu=time.process_time() - cpu, rank=rank, best_step=int(meta['step']),
                parameters=sum(p.numel() for p in den.parameters()))
    den.eval().load_state_dict(weights)
    return den.requires_grad_(False), gauss, power.snapshots, logs


def losses(study, den, repeats=4):
    "Loss on training and held-out (test) latents, same noise for every denoiser of a schedule."
    import torch
    from fmri_ldm.core import generator
    test = study.model.stats.encode(study.model.encode(study.real['test'].x).to(study.device)).cpu()
    out = {}
    for k, z, labels in (('train', study.latents['train'], study.real['train'].labels), ('test', test, study.real['test'].labels)):
        cond, v = {'label': torch.as_tensor(labels)}, []
        for i in range(repeats):
            with torch.no_grad(): v.append(den.loss(z, cond, generator=generator(1, i))[0].item())
        out[f'loss_{k}'] = statistics.mean(v)
    return out


def draw(study, den, n=24, seed=0, method='dpmpp_2m', steps=16, guidance=1., wrap=None, **kw):
    "Volumes (5n, 1, x, y, z), labels, network calls."
    import torch
    from fmri_ldm.conditioning import Guided
    from fmri_ldm.core import generator
    from fmri_ldm.samplers import sample
    m, calls = study.model, []
    ids = m.label_ids(None, n)
    noise, out, spacing = m.start_noise(ids, seed), [], 'logsnr' if method.startswith('dpm') else 'uniform'
    go = wrap or (lambda d: Guided(d, guidance, **kw) if guidance != 1 else d)
    def counted(x, t, cond=None):
        calls.append(len(x))
        return den(x, t, cond)
    for i in range(0, len(ids), 40):
        with torch.no_grad(), m.half():
            x = sample(go(counted), noise[i:i + 40], cond={'label': ids[i:i + 40]}, schedule=den.schedule, method=method,
                       num_inference_steps=steps, spacing=spacing, generator=generator(seed, 'draw', i))
        out.append(x.float())
    return m.decode(m.stats.decode(torch.cat(out))), ids.numpy(), sum(calls)/len(ids)


def judge(study, gens, n_perm=50):
    "{metric: value, floor, rival} of sets of volumes."
    from fmri_ldm.report import judge_samples
    r = study.config['report']
    got = judge_samples(study.real['train'], study.real['test'], gens, mask=study.geometry.mask, affine=study.geometry.grid_affine,
                        names=study.source.labels, seed=study.config['seed'], n_parcels=r['n_parcels'], k=r['k'], n_perm=n_perm)
    return {k: dict(value=got[k]['value'], floor=got[k]['floor'], pca=got[k]['baselines'].get('pca_gaussian')) for k in METRICS}


def latent_gaussian(study, gauss, seed, n=24):
    "Draws of the Gaussian that the network starts from."
    from fmri_ldm.core import generator
    ids = study.model.label_ids(None, n)
    return study.model.decode(study.model.stats.decode(gauss.sample(ids, generator(seed, 'gauss')))), ids.numpy()


def averages(study, arm, den, snapshots, seed):
    "Every length of the average: validation loss, test loss, and the metrics of the one that validation chooses."
    import copy
    import torch
    from fmri_ldm.core import generator
    from fmri_ldm.ema import average_of, choose_ema
    cond = {'label': torch.as_tensor(study.real['val'].labels)}
    def score(m):
        with torch.no_grad():
            return statistics.mean(m.loss(study.latents['val'], cond, generator=generator(2, i))[0].item() for i in range(4))
    trial, rows = copy.deepcopy(den), {}
    for s in SPREADS:
        trial.load_state_dict({**den.state_dict(), **average_of(snapshots, s)})
        rows[s] = dict(val=score(trial), **losses(study, trial), metrics=judge(study, [draw(study, trial, seed=seed)[:2]]))
    best, table = choose_ema(snapshots, trial, score, sigma_rels=SPREADS)
    return dict(rows=rows, chosen=best, table=table, fixed_val=score(den))


def extras(study, arm, den, seed):
    "What one trained model shows: samplers and guidance."
    out = {}
    if arm in ('flow + fade', 'flow', 'linear eps'):
        plans = [('ddpm', 1000)] if arm == 'linear eps' else []
        plans += [('dpmpp_2m', 8), ('dpmpp_2m', 20), ('heun', 10), ('euler', 16), ('ddim', 50)] if arm == 'flow + fade' else []
        for method, steps in plans:
            begin = time.time()
            x, ids, calls = draw(study, den, seed=seed, method=method, steps=steps)
            out[f'{method} {steps}'] = dict(calls=calls, seconds=time.time() - begin, metrics=judge(study, [(x, ids)]))
    if arm == 'flow + fade':
        for w in (0., 1.5, 2., 3., 5.):
            x, ids, calls = draw(study, den, seed=seed, guidance=w)
            out[f'guidance {w:g}'] = dict(calls=calls, metrics=judge(study, [(x, ids)]))
        for name, kw in {'guidance 3, t in [.2, .7]': dict(interval=(.2, .7)), 'guidance 3, rescaled .7': dict(rescale=.7)}.items():
            x, ids, calls = draw(study, den, seed=seed, guidance=3., **kw)
            out[name] = dict(calls=calls, metrics=judge(study, [(x, ids)]))
    return out


def work(args):
    "One arm and seed in this process."
    import torch
    torch.set_num_threads(1)
    study = base(args, args.seed)
    den, gauss, snapshots, logs = fit(study, args.arm, args.seed, args.file)
    begin = time.time()
    x, ids, calls = draw(study, den, seed=args.seed)
    out = dict(arm=args.arm, seed=args.seed, calls=calls, draw_seconds=time.time() - begin, **logs, **losses(study, den),
               metrics=judge(study, [(x, ids)], n_perm=200))
    args.file.write_text(json.dumps(out))                            # what follows is added when it is done
    if args.arm == 'flow + fade':
        start = lambda x, t, c: torch.zeros(1)
        from fmri_ldm.diffusion import Denoiser
        alone = Denoiser(start, den.schedule, prior=gauss, fade='full')
        out['gaussian'] = dict(metrics=judge(study, [latent_gaussian(study, gauss, args.seed)]), **losses(study, alone))
    out['extras'] = extras(study, args.arm, den, args.seed)
    args.file.write_text(json.dumps(out))
    if args.arm in ('flow', 'flow + fade'): out['ema'] = averages(study, args.arm, den, snapshots, args.seed)
    out['done'] = True
    args.file.write_text(json.dumps(out))


def start(args, arm, seed):
    "One process, unless its work is done."
    file = args.out/f'{arm.replace(" ", "_").replace("/", "")}_{seed}.json'
    if file.exists() and json.loads(file.read_text()).get('done'): return
    command = [sys.executable, __file__, '--out', args.out, '--arm', arm, '--seed', seed, '--file', file]
    subprocess.run([str(c) for c in command], env={**os.environ, 'OMP_NUM_THREADS': '1'}, check=True)


def middle(rows): return f'{statistics.median(rows):.3g} [' + ', '.join(f'{v:.3g}' for v in rows) + ']'


def table(title, rows, names=METRICS):
    "rows: {name: [metrics of each seed]}."
    print(f'\n{title}\n\n| | ' + ' | '.join(names) + ' |\n|' + '---|'*(len(names) + 1))
    for k, seeds in rows.items():
        print(f'| {k} | ' + ' | '.join(middle([s[m] for s in seeds]) for m in names) + ' |')


def tables(out):
    "All tables from what lies in the folder."
    runs = {}
    for p in sorted(out.glob('*.json')): r = json.loads(p.read_text()); runs.setdefault(r['arm'], []).append(r)
    if 'flow + fade' not in runs: return
    pick = lambda r, k='value': {m: r['metrics'][m][k] for m in METRICS}
    main = runs['flow + fade']
    rows = {'real against real': [pick(r, 'floor') for r in main], 'PCA-Gaussian of voxels': [pick(r, 'pca') | dict(nearest_ratio=float('nan'))
            if None in pick(r, 'pca').values() else pick(r, 'pca') for r in main]}
    gs = [r['gaussian'] | {'loss_train': r['gaussian']['loss_train']} for r in main if 'gaussian' in r]
    rows['Gaussian of latents'] = [pick(g) | {k: g[k] for k in ('loss_train', 'loss_test')} for g in gs]
    for arm in ARMS:
        if arm in runs: rows[arm] = [pick(r) | {k: r[k] for k in ('loss_train', 'loss_test', 'seconds')} for r in runs[arm]]
    table('### Starts, schedules, targets, networks', rows)
    has = {k: v for k, v in rows.items() if 'loss_train' in v[0]}
    table('### Losses (comparable within a schedule and target) ', has, ('loss_train', 'loss_test'))
    more = {}
    for arm in runs:
        for k in dict.fromkeys(k for r in runs[arm] for k in r.get('extras', {})):
            more[f'{arm}, {k}'] = [pick(r['extras'][k]) | dict(calls=r['extras'][k]['calls']) for r in runs[arm] if k in r.get('extras', {})]
    table('### Samplers and guidance', more, (*METRICS, 'calls'))
    for arm in ('flow', 'flow + fade'):
        ema = [r['ema'] for r in runs.get(arm, []) if 'ema' in r]
        if not ema: continue
        rows = {f'{arm}, spread {s:g}': [dict(val=e['rows'][str(s)]['val'], test=e['rows'][str(s)]['loss_test'], **pick(e['rows'][str(s)]))
                                        for e in ema] for s in SPREADS}
        table(f'### Averages: {arm}; chosen on validation: {[e["chosen"] for e in ema]}; EMA 0.995 best step, validation loss '
              f'{[round(e["fixed_val"], 4) for e in ema]}', rows, ('val', 'test', *METRICS))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=Path('diffusion_runs'))
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--arms', nargs='+', default=list(CORE), choices=list(ARMS))
    p.add_argument('--workers', type=int, default=1)
    p.add_argument('--table', action='store_true', help='only print the tables of what is done')
    for name in ('--arm', '--file', '--seed'): p.add_argument(name, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.arm:
        args.file, args.seed = Path(args.file), int(args.seed)
        return work(args)
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.table:
        todo = [(arm, seed) for arm in args.arms for seed in args.seeds]
        with ThreadPoolExecutor(args.workers) as pool: list(pool.map(lambda job: start(args, *job), todo))
    tables(args.out)


if __name__ == '__main__': main()
