"""Patches per second beside MONAI and TorchIO, the first fill beside nibabel alone, and memory. Prints a table in markdown.

python benchmarks/data.py [--files 20] [--patches 2000] [--repeats 5] [--folder DIR]

Synthetic float32 NIfTI of 91x109x91 voxels, gzipped; random patches of 64x64x64. Every way delivers float32 tensors
(8, 1, 64, 64, 64) of its own, contiguous, and touches each of them once. Repeats are interleaved; the table gives medians.
Needs the dev extra (monai, torchio). 2 cores, under 5 minutes.
"""
import argparse
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch.utils.data import DataLoader

from fmri_ldm.cache import Patches, cache_array, map_array, patch_batches
from fmri_ldm.rows import Row, Source
from fmri_ldm.volume import Geometry

SHAPE, SIZE, BATCH = (91, 109, 91), 64, 8


def make_files(folder, n):
    "Round heads of smooth noise in float32, zeros around them; about half the size when compressed."
    rng, paths = np.random.default_rng(0), []
    for i in range(n):
        x = rng.normal(size=SHAPE).astype(np.float32)
        for axis in range(3): x = x + np.roll(x, 1, axis)
        x = (200 + 20*x)*(np.hypot(*np.ogrid[-1:1:91j, -1:1:109j])[..., None] < .8)
        paths.append(folder/f'{i:02d}.nii.gz')
        nib.save(nib.Nifti1Image(x.astype(np.float32), np.diag([2., 2, 2, 1])), paths[-1])
    return paths


def count(batches, n):
    "Patches per second of the first n; each batch is checked and touched."
    begin, done = time.perf_counter(), 0
    for x in batches:
        assert x.shape[1:] == (1, SIZE, SIZE, SIZE) and x.dtype == torch.float32 and x.is_contiguous()
        x[:, 0, ::16, ::16, ::16].sum()
        done += len(x)
        if done >= n: break
    return done/(time.perf_counter() - begin)


def bare(path, n):
    "What the machine can do: slices of a mapped array, copied one by one."
    x, rng = np.load(path, mmap_mode='r'), np.random.default_rng(0)
    x, at = np.asarray(x), rng.integers(0, np.array(SHAPE) - SIZE + 1, (n, 3)).tolist()
    begin = time.perf_counter()
    for k, (a, b, c) in enumerate(at): x[k % len(x), :, a:a + SIZE, b:b + SIZE, c:c + SIZE].copy()
    return n/(time.perf_counter() - begin)


def ours(path, n, workers):
    data = Patches(path, SIZE, each=10**6//BATCH)
    batches = patch_batches(data, BATCH, workers=workers)
    next(batches)                                       # workers are up
    rate = count((b['x'] for b in batches), n)
    batches.close()
    return rate


def monai_loader(paths):
    "CacheDataset with everything in memory, a random crop, MONAI's DataLoader; long epochs, so that none is paid for."
    from monai.data import CacheDataset, DataLoader as MonaiLoader
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandSpatialCropd
    steps = [LoadImaged('image'), EnsureChannelFirstd('image'), RandSpatialCropd('image', SIZE, random_size=False)]
    items = [dict(image=str(p)) for p in paths]*50      # each cached once: hash_as_key
    data = CacheDataset(items, Compose(steps), cache_rate=1., num_workers=2, progress=False, hash_as_key=True)

    def run(n, workers):
        def forever(loader):
            while True: yield from (b['image'] for b in loader)
        loader = MonaiLoader(data, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        batches = ((x.as_tensor() if hasattr(x, 'as_tensor') else x) for x in forever(loader))
        next(batches)
        return count((x.contiguous() for x in batches if len(x) == BATCH), n)
    return run


def torchio_loader(paths):
    "Subjects read beforehand, UniformSampler, batches stacked; with workers a Queue, TorchIO's own way."
    import torchio as tio
    subjects = [tio.Subject(image=tio.ScalarImage(p)) for p in paths]
    for s in subjects: s.load()
    sampler = tio.data.UniformSampler(SIZE)

    def plain():
        rng, patches = np.random.default_rng(0), []
        while True:
            for i in rng.permutation(len(subjects)):
                patches.append(next(sampler(subjects[i], 1))['image'].data)
                if len(patches) == BATCH:
                    yield torch.stack(patches)
                    patches = []

    def run(n, workers):
        if not workers: return count(plain(), n)
        queue = tio.Queue(tio.SubjectsDataset(subjects*50), max_length=160, samples_per_volume=16, sampler=sampler,
                          num_workers=workers)
        def forever():
            while True: yield from (b['image'].data if hasattr(b['image'], 'data') and not isinstance(b['image'], dict)
                                    else b['image'][tio.DATA] for b in DataLoader(queue, batch_size=BATCH, num_workers=0))
        batches = forever()
        next(batches)
        return count((x.contiguous() for x in batches if len(x) == BATCH), n)
    return run


def fill(paths):
    "Seconds until all images are an array on disk, beside reading them with nibabel and forgetting them."
    source = Source([Row(p) for p in paths], [])
    geometry = Geometry.fit(source.image(0), stride=1)

    def nibabel_alone():
        for p in paths: np.asarray(nib.load(p).dataobj, np.float32)

    def seconds(f):
        begin = time.perf_counter()
        f()
        return time.perf_counter() - begin
    with tempfile.TemporaryDirectory(dir=paths[0].parent) as folder:
        return dict(nibabel=seconds(nibabel_alone), ours=seconds(lambda: cache_array(source, geometry, cache=folder)))


MEMORY = '''
import sys
from fmri_ldm.cache import Patches, patch_batches
def own(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon'))/1024
data = Patches(sys.argv[1], 64, each=100)
next(patch_batches(data, 8))
before, most = own(), 0
for b in patch_batches(data, 8): most = max(most, own())
print(most - before, data.array.nbytes/2**20)
'''


def machine():
    cpu = next((l.split(':')[1].strip() for l in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in l), '?') \
        if Path('/proc/cpuinfo').exists() else platform.processor()
    load = f', load {os.getloadavg()[0]:.1f} at the start' if hasattr(os, 'getloadavg') else ''
    import monai
    import torchio
    return (f'{cpu}, {os.cpu_count()} cores, {platform.system()}{load}; Python {platform.python_version()}, torch {torch.__version__}, '
            f'numpy {np.__version__}, MONAI {monai.__version__}, TorchIO {torchio.__version__}, torch threads {torch.get_num_threads()}')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in ('files', 20), ('patches', 2000), ('repeats', 5): p.add_argument(f'--{name}', type=int, default=default)
    p.add_argument('--folder', help='where temporary files go')
    args = p.parse_args()
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    said, n = machine(), args.patches
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        paths = make_files(Path(folder), args.files)
        source = Source([Row(q) for q in paths], [])
        path = cache_array(source, Geometry.fit(source.image(0), stride=1), cache=Path(folder)/'cache')
        assert all(np.array_equal(v[0], np.asarray(nib.load(q).dataobj)) for v, q in zip(map_array(path).numpy(), paths))
        fills = [fill(paths) for _ in range(2*args.repeats + 1)]     # before others' worker processes come and go
        monai, torchio = monai_loader(paths), torchio_loader(paths)
        ways = {'mapped array, bare slices copied': lambda: bare(path, n),
                '**fmri_ldm**, 0 workers': lambda: ours(path, n, 0), '**fmri_ldm**, 2 workers': lambda: ours(path, n, 2),
                'MONAI CacheDataset + RandSpatialCropd, 0 workers': lambda: monai(n, 0),
                'the same, 2 workers': lambda: monai(n, 2),
                'TorchIO preloaded + UniformSampler, 0 workers': lambda: torchio(n, 0),
                'TorchIO Queue, 2 workers': lambda: torchio(n, 2)}
        rates = {k: [] for k in ways}
        for _ in range(args.repeats):
            for k, way in ways.items(): rates[k].append(way())
        memory = None
        if Path('/proc/self/status').exists():
            memory = subprocess.run([sys.executable, '-c', MEMORY, path], capture_output=True, text=True, check=True).stdout.split()
    print(f'{said}\n\n{args.files} files, {n} patches, medians of {args.repeats} interleaved repeats\n')
    base = statistics.median(rates['**fmri_ldm**, 0 workers'])
    print('| random 64³ patches of 91×109×91, float32, batches of 8 | patches/s | range | ours, 0 workers, is |\n|---|---|---|---|')
    for k, v in rates.items():
        print(f'| {k} | {statistics.median(v):.0f} | {min(v):.0f}–{max(v):.0f} | {base/statistics.median(v):.2f}× |')
    print('\n| first epoch | seconds | range |\n|---|---|---|')
    for k, name in ('nibabel', 'nibabel alone, float32, nothing kept'), ('ours', '**fmri_ldm**: hash, check, read, write, map'):
        v = [f[k] for f in fills]
        print(f'| {name} | {statistics.median(v):.2f} | {min(v):.2f}–{max(v):.2f} |')
    if memory: print(f'\nOwn memory while drawing: +{float(memory[0]):.0f} MiB at most, for an array of {float(memory[1]):.0f} MiB.')


if __name__ == '__main__':
    sys.exit(main())
