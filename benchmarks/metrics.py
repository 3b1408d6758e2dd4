"""MS-SSIM, MMD and Frechet distance beside MONAI's and torchmetrics', at equal numbers. Prints a table in markdown.

python benchmarks/metrics.py [--samples 200] [--pairs 12] [--relabel 500] [--repeats 5] [--threads 1] [--full]

Samples are heads of 60x60x45 voxels: T1-weighted scans (FMRI_LDM_DATA/ixi_t1_2mm, averaged to 4 mm, mirrored, shifted), or shaded and
warped copies of the MNI152 template where that folder is absent. "Generated" ones are averages of two. Features are the means of parcels.
Rivals are used as their documentation shows: MS-SSIM pair by pair, MMD and Frechet distance set by set, on the same features and pairs;
every number is asserted to agree, to 1e-4 for MONAI's MS-SSIM, which computes in single precision, to 1e-6 elsewhere.
Times are of the processor, not of the clock, so that a shared machine does not matter; repeats are interleaved, medians are given.
Three things to know. MONAI's MMD has a linear kernel: to give our numbers it gets explicit features of our kernel matrix (by an
eigendecomposition; a row of its own leaves that out). The permutation test of `mmd_test` is compared with its metric in a loop over the same relabellings.
And MS-SSIM is timed on a circle of PAIRS samples, the same work for a pair as 200 samples have (batches of pairs are no faster for
MONAI); --full times all of ours as well. Needs the dev extra (monai, torchmetrics). One core, a minute of it.
"""
import argparse
import os
import platform
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from fmri_ldm.core import generator
from fmri_ldm.distances import bandwidths, frechet, mmd2, mmd_test, parcel_features, parcels
from fmri_ldm.metrics import SCALES, _circle, variety

with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    import monai
    import torchmetrics
    from monai.metrics import FIDMetric, MMDMetric, MultiScaleSSIMMetric
    from torchmetrics.image.fid import FrechetInceptionDistance
warnings.filterwarnings('ignore', message='.*disp', category=DeprecationWarning)    # SciPy's sqrtm, as MONAI calls it

SHAPE = 60, 60, 45


def scans(folder):
    "T1-weighted heads at 4 mm, 1 at the 99th percentile."
    import nibabel as nib
    x = torch.stack([torch.from_numpy(nib.load(p).get_fdata(dtype=np.float32)) for p in sorted(folder.rglob('*.nii*'))])
    x = F.avg_pool3d(x[:, None], 2)
    return x/x.flatten(1).quantile(.99, dim=1).view(-1, 1, 1, 1, 1)


def template(n, rng):
    "The MNI152 template at 4 mm, warped and shaded."
    from nilearn.datasets import load_mni152_template
    from scipy.ndimage import gaussian_filter, map_coordinates
    t = load_mni152_template(resolution=4).get_fdata().astype('f4')[:SHAPE[0], :SHAPE[1], :SHAPE[2]]
    t = np.pad(t, [(0, s - n) for s, n in zip(SHAPE, t.shape)])

    def field(width):
        f = gaussian_filter(rng.standard_normal(SHAPE), width)
        return f/f.std()
    at = np.indices(SHAPE)
    x = [map_coordinates(t, at + np.stack([field(4) for _ in range(3)]), order=1)*(1 + .1*field(4)) for _ in range(n)]
    x = torch.as_tensor(np.stack(x), dtype=torch.float32)[:, None]
    return x*(x > 1e-3)                                              # no squares so small that a processor is slow at them


def samples(n):
    "n heads and where they are from."
    rng, folder = np.random.default_rng(0), Path(os.environ.get('FMRI_LDM_DATA', ''))/'ixi_t1_2mm'
    real, out = 'FMRI_LDM_DATA' in os.environ and folder.is_dir(), []
    x = scans(folder) if real else template(40, rng)
    assert x.shape[2:] == SHAPE, x.shape
    while sum(map(len, out)) < n:
        v = x.flip(4) if len(out) % 2 else x
        out.append(v.roll(len(out)//2, 3))
    return torch.cat(out)[:n], f'{len(x)} {"IXI scans" if real else "warped templates"}, mirrored and shifted'


def interleave(ways, repeats):
    "Median seconds of the processor of each way, and its value; all take turns."
    spent, value = {k: [] for k in ways}, {}
    for _ in range(repeats + 1):
        for name, f in ways.items():
            start = time.process_time()
            value[name] = f()
            spent[name].append(time.process_time() - start)
    return {k: statistics.median(v[1:]) for k, v in spent.items()}, value    # the first turn warms up


def agree(values, tol):
    ours = np.asarray(values['ours'], dtype=float)
    for k, v in values.items(): assert np.allclose(np.asarray(v, dtype=float), ours, rtol=tol, atol=0), (k, v, ours)


def ms_ssim(x, pairs, repeats):
    "Mean MS-SSIM over a circle of samples; MONAI pair by pair."
    x = x[:pairs]
    fit = SCALES[:min((n//11).bit_length() for n in SHAPE)]
    weights = [w*sum(SCALES)/sum(fit) for w in fit]
    metric, at = MultiScaleSSIMMetric(3, data_range=1., weights=weights), _circle(np.zeros(pairs), pairs, 0)
    assert len(at) == pairs
    return interleave({'ours': lambda: variety(x, data_range=1., n_pairs=pairs),
                       'MONAI': lambda: statistics.mean(float(metric(x[i:i+1], x[j:j+1])) for i, j in at)}, repeats)


def explicit(gen, real):
    "Features whose inner products are our kernel matrix."
    z, w = torch.cat([gen, real]), bandwidths(real)
    d = torch.cdist(z, z).square()
    value, vector = torch.linalg.eigh(sum(torch.exp(-d/(2*v**2)) for v in w)/len(w))
    return vector*value.clamp_min(0).sqrt()


def mmd(gen, real, repeats):
    def rival():
        phi = explicit(gen, real)
        return float(MMDMetric()(phi[len(gen):], phi[:len(gen)]))
    phi = explicit(gen, real)
    return interleave({'ours': lambda: mmd2(gen, real), 'MONAI': rival,
                       'MONAI, features given': lambda: float(MMDMetric()(phi[len(gen):], phi[:len(gen)]))}, repeats)


def relabelled(gen, real, n, repeats):
    "MMD and its p; MONAI's metric over the relabellings of `mmd_test`, its features given."
    phi, g, size = explicit(gen, real), generator(0, 'mmd_test'), len(gen)
    orders = [torch.randperm(len(phi), generator=g) for _ in range(n)]
    sides = [(torch.arange(len(phi)) < size)] + [o < size for o in orders]
    metric = MMDMetric()

    def rival():
        v = [float(metric(phi[~s], phi[s])) for s in sides]
        return v[0], (1 + sum(a >= v[0] - 1e-12 for a in v[1:]))/(1 + n)
    return interleave({'ours': lambda: mmd_test(gen, real, n_perm=n), 'MONAI': rival}, repeats)


class Given(torch.nn.Module):
    "torchmetrics' place for a network; the features are there already."
    def __init__(self, d):
        super().__init__()
        self.num_features = d

    def forward(self, x): return x


def distance(gen, real, repeats, calls=20):
    "Frechet distance; a call takes less than the clock resolves well, so many."
    def fid():
        metric = FrechetInceptionDistance(Given(gen.shape[1])).set_dtype(torch.float64)
        metric.update(real, real=True)
        metric.update(gen, real=False)
        return float(metric.compute())
    ways = {'ours': lambda: frechet(gen, real), 'MONAI': lambda: float(FIDMetric()(gen, real)), 'torchmetrics': fid}
    t, v = interleave({k: (lambda f=f: [f() for _ in range(calls)][0]) for k, f in ways.items()}, repeats)
    return {k: s/calls for k, s in t.items()}, v


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--samples', type=int, default=200)
    p.add_argument('--pairs', type=int, default=12, help='samples on the circle whose MS-SSIM is timed, 3 or more')
    p.add_argument('--relabel', type=int, default=500)
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--full', action='store_true', help='time our MS-SSIM on all samples, a pair each')
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    x, name = samples(args.samples)
    made = (x + x.roll(1, 0))/2
    rows = []

    def add(what, n, result, tol):
        agree(result[1], tol)
        rows.append((what, result[0], n))
    add(f'MS-SSIM, a pair of {"x".join(map(str, SHAPE))}', args.pairs, ms_ssim(x, args.pairs, args.repeats), 1e-4)
    whole = parcels(np.ones(SHAPE), 200)
    real, gen = (parcel_features(v[:, 0], whole) for v in (x, made))
    add(f'MMD, {args.samples} and {args.samples} samples, 200 features', 1, mmd(gen, real, args.repeats), 1e-6)
    add(f'MMD and p, {args.relabel} relabellings', 1, relabelled(gen, real, args.relabel, args.repeats), 1e-6)
    for d in (20, 64, 150):
        few = parcels(np.ones(SHAPE), d)
        sets = (parcel_features(v[:, 0], few) for v in (made, x))
        add(f'Frechet distance, {d} features', 1, distance(*sets, args.repeats), 1e-6)

    cpu = next((s.split(':')[1].strip() for s in Path('/proc/cpuinfo').read_text().splitlines() if s.startswith('model name')),
               platform.processor()) if Path('/proc/cpuinfo').exists() else platform.processor()
    print(f'{cpu}, {os.cpu_count()} cores, {args.threads} thread(s), {platform.system()}, torch {torch.__version__}, '
          f'MONAI {monai.__version__}, torchmetrics {torchmetrics.__version__}; {name}; medians of {args.repeats}, processor time\n')
    print('| | ours, ms | rival | rival, ms | faster |\n|---|---|---|---|---|')
    for what, t, n in rows:
        for k in list(t)[1:]: print(f'| {what} | {1e3*t["ours"]/n:.3g} | {k} | {1e3*t[k]/n:.3g} | {t[k]/t["ours"]:.1f}x |')
    if args.full:
        start, clock = time.process_time(), time.perf_counter()
        v = variety(x, data_range=1., n_pairs=args.samples)
        print(f'\nvariety of {args.samples} samples, {args.samples} pairs: {v:.4f} in {time.process_time() - start:.1f} s of the '
              f'processor, {time.perf_counter() - clock:.1f} s of the clock')


if __name__ == '__main__': main()
