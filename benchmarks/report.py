"""Seconds of a whole report, part by part: 200 samples on real T1 scans and on a slice of task fMRI.

python benchmarks/report.py [--zooms 4] [--samples 200] [--out FOLDER] [--only t1,slice]

Real data: folders ixi_t1_2mm (70 people; 50 to learn from, 20 held out) and haxby_slice (runs 1-5, runs 6-8 held out) of
FMRI_LDM_DATA. Generated: draws of PCA-Gaussian, so the rival is as good as the model. --zooms 4 makes the grid 60 x 60 x 45.
"""
import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fmri_ldm import judge
from fmri_ldm.cache import load_array
from fmri_ldm.report import (Real, build_report, judge_samples, machine_name, pca_gaussian, report_figures, text_summary,
                             write_report)
from fmri_ldm.sources import level_images, open_source
from fmri_ldm.volume import Geometry


def volumes(source, zooms=None):
    "All volumes of a source on one grid, and the grid."
    g = Geometry.fit(source.image(0), mask_img=source.mask_img, zooms=zooms, stride=(1, 1, 1))
    return load_array(source, g), g


def t1(folder, zooms):
    "(train, test, mask, affine, names): 70 heads, without labels."
    source = level_images(open_source(folder/'ixi_t1_2mm'))
    x, g = volumes(source, (zooms,)*3)
    own = [r.subject for r in source.rows]
    mean = x.mean(0)[0].numpy()
    mask = mean > .3*np.quantile(mean, .98)                            # the head, more or less
    return Real(x[:50], None, own[:50]), Real(x[50:70], None, own[50:70]), mask, g.grid_affine, ()


def haxby(folder, zooms):
    "The same of a slice: 8 categories and rest; runs stand for subjects."
    source = open_source(folder/'haxby_slice')
    x, g = volumes(source)
    y, run = np.array([source.label_index(i) for i in range(len(source))]), np.array([int(r.run) for r in source.rows])
    known = y >= 0
    part = lambda keep: Real(x[torch.from_numpy(keep)], y[keep], run[keep])
    mask = np.asarray(g.mask) > 0
    return part(known & (run <= 5)), part(known & (run > 5)), mask, g.grid_affine, source.labels


def timed(f, spent, name):
    "f, with its time added to `spent`."
    def of(*args, **kw):
        begin = time.perf_counter()
        try: return f(*args, **kw)
        finally: spent[name] = spent.get(name, 0) + time.perf_counter() - begin
    return of


def main(zooms, samples, out, only):
    data = Path(os.environ['FMRI_LDM_DATA'])
    print(f'{machine_name()}; {torch.get_num_threads()} threads')
    for name, load in (('t1', t1), ('slice', haxby)):
        if name not in only: continue
        train, test, mask, affine, names = load(data, zooms)
        kinds = np.unique(train.labels)
        labels = np.resize(kinds, samples)
        known = Real(train.x, np.maximum(train.labels, 0), train.subjects)
        gens, spent = [(pca_gaussian(known, np.maximum(labels, 0), seed=1), labels)], {}
        parts = [k for k in vars(judge) if k.startswith('_') and callable(getattr(judge, k)) and k in (
            '_recognition', '_ceilings', '_group_maps', '_spread', '_neighbours', '_mmd', '_frechet', '_c2st', '_copying',
            '_detail', '_variety', '_agreement')] + ['make_bench']
        old = {k: getattr(judge, k) for k in parts}
        for k in parts: setattr(judge, k, timed(old[k], spent, k))
        begin, cpu = time.perf_counter(), time.process_time()
        metrics = judge_samples(train, test, gens, mask=mask, affine=affine, names=names)
        for k in parts: setattr(judge, k, old[k])
        middle = time.perf_counter()
        figures = report_figures(test, gens[0], names, affine=affine, train=train if len(kinds) > 1 else None)
        rep = build_report(metrics, seed=0, data=name, model='PCA-Gaussian', machine=machine_name(), seconds=0)
        page = write_report(Path(out)/name, rep, figures, title=f'{name}: PCA-Gaussian')
        end = time.perf_counter()
        print(f'\n{name}: {len(train)} train, {len(test)} held out, {samples} samples, grid {tuple(train.x.shape[2:])}, '
              f'{int(mask.sum())} voxels: {end - begin:.0f} s (judge {middle - begin:.0f}, page {end - middle:.0f}), '
              f'CPU {time.process_time() - cpu:.0f} s, page {page.stat().st_size/1e6:.1f} MB')
        print('  ' + ', '.join(f'{k.strip("_")} {v:.1f}' for k, v in sorted(spent.items(), key=lambda kv: -kv[1])))
        print(text_summary(rep))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--zooms', type=float, default=4)
    p.add_argument('--samples', type=int, default=200)
    p.add_argument('--out', default=None)
    p.add_argument('--only', default='t1,slice')
    a = p.parse_args()
    main(a.zooms, a.samples, a.out or tempfile.mkdtemp(), a.only.split(','))
