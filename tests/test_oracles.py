"Patches and their stitching beside TorchIO, random crops beside MONAI. The dev extra brings both."
import warnings

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    import torchio as tio
    from monai.data.utils import dense_patch_slices
    from monai.inferers import sliding_window_inference

from fmri_ldm.patches import extract, grid_starts, hann_weight, label_weights, random_starts, stitch, tiled

SHAPE, SIZE, OVERLAP = (21, 17, 13), (8, 8, 6), (4, 4, 2)


@pytest.fixture(scope='module')
def volume(): return torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))


def torchio_grid(volume, size=SIZE, overlap=OVERLAP):
    "TorchIO's sampler, its patches and their first corners."
    sampler = tio.GridSampler(tio.Subject(image=tio.ScalarImage(tensor=volume)), size, overlap)
    patches = torch.stack([p['image'].data for p in sampler])
    places = torch.stack([torch.as_tensor(p[tio.LOCATION]) for p in sampler])
    return sampler, patches, places


def torchio_stitch(sampler, patches, places):
    aggregator = tio.GridAggregator(sampler, overlap_mode='hann')
    aggregator.add_batch(patches, places)
    return aggregator.get_output_tensor()


def relative(a, b): return ((a - b).abs().max()/b.abs().max()).item()


def test_grid_and_patches(volume):
    _, patches, places = torchio_grid(volume)
    assert torch.equal(extract(volume, places[:, :3], SIZE), patches)
    ours = grid_starts(SHAPE, SIZE, OVERLAP)
    for axis in range(3):                               # as many patches; both begin and end at the borders
        a, b = ours[:, axis].unique(), places[:, axis].unique()
        assert len(a) == len(b) and (a[0], a[-1]) == (b[0], b[-1])


def test_identity(volume):
    sampler, patches, places = torchio_grid(volume)
    assert relative(torchio_stitch(sampler, patches, places), volume) < 1e-6
    for starts in places[:, :3], grid_starts(SHAPE, SIZE, OVERLAP):
        assert relative(stitch(extract(volume, starts, SIZE), starts, SHAPE), volume) < 1e-6


def test_hann_blend(volume):
    "A function that treats each patch by its own measure: with their window the same blend, with ours a close one."
    sampler, patches, places = torchio_grid(volume)
    patches = patches - patches.mean((2, 3, 4), keepdim=True) + torch.arange(len(patches))[:, None, None, None, None]
    theirs = torchio_stitch(sampler, patches, places)
    x, y, z = (torch.hann_window(n + 2, periodic=False)[1:-1] for n in SIZE)
    window = x[:, None, None]*y[:, None]*z
    assert relative(stitch(patches, places[:, :3], SHAPE, weight=window), theirs) < 1e-5
    ours = stitch(patches, places[:, :3], SHAPE)
    inside = tuple(slice(s//2, -(s//2)) for s in SIZE)
    assert np.corrcoef(ours[0][inside].flatten(), theirs[0][inside].flatten())[0, 1] > .99
    assert (hann_weight(SIZE)/hann_weight(SIZE).max() - window/window.max()).abs().max() < .15


def test_tiled_as_monai(volume):
    "Half-overlapping windows of equal weight: MONAI's sliding window, at its places."
    def f(p): return p*p.std((1, 2, 3, 4), keepdim=True)
    theirs = sliding_window_inference(volume[None], SIZE, 1, f, overlap=.5, mode='constant')[0]
    slices = dense_patch_slices(SHAPE, SIZE, tuple(s//2 for s in SIZE))
    starts = torch.tensor([[s.start for s in at] for at in slices])
    ours = stitch(f(extract(volume, starts, SIZE)), starts, SHAPE, weight=torch.ones(SIZE))
    assert relative(ours, theirs) < 1e-5
    assert relative(tiled(torch.sin, volume, SIZE, overlap=OVERLAP), volume.sin()) < 1e-6


def test_uniform_sampler(volume):
    "Every corner as often, theirs and ours."
    torch.manual_seed(0)
    subject, n = tio.Subject(image=tio.ScalarImage(tensor=volume)), 3000
    theirs = torch.stack([torch.as_tensor(p[tio.LOCATION])[:3] for p in tio.data.UniformSampler(SIZE)(subject, n)])
    ours = random_starts(SHAPE, SIZE, n=n, seed=1)
    for axis in range(3):
        k = SHAPE[axis] - SIZE[axis] + 1
        a, b = (s[:, axis].bincount(minlength=k)/n for s in (theirs, ours))
        assert len(a) == len(b) == k and (a - b).abs().max() < .035 and (b - 1/k).abs().max() < .025


def middles(sampler, subject, n, name):
    half = torch.tensor(SIZE)//2
    at = torch.stack([torch.as_tensor(p[tio.LOCATION])[:3] for p in sampler(subject, n)]) + half
    return subject[name].data[0][tuple(at.T)]


def test_label_sampler(volume):
    "Classes are in the middle as often as asked, theirs and ours, whatever their sizes."
    torch.manual_seed(0)
    labels = torch.zeros(1, *SHAPE)
    labels[0, 8:12, 7:10, 5:8], labels[0, 6, 6, 6] = 1, 2
    subject = tio.Subject(image=tio.ScalarImage(tensor=volume), label=tio.LabelMap(tensor=labels))
    asked, n = {0: .2, 1: .5, 2: .3}, 2000
    theirs = middles(tio.data.LabelSampler(SIZE, 'label', asked), subject, n, 'label')
    ours = labels[0][tuple(random_starts(SHAPE, 1, n=n, weights=label_weights(labels[0], asked)).T)]
    for k, p in asked.items():
        a, b = ((v == k).float().mean().item() for v in (theirs, ours))
        assert abs(a - p) < .045 and abs(b - p) < .035, (k, a, b)


def test_weighted_sampler(volume):
    "Voxels are in the middle as often as they weigh, where a patch around them fits."
    torch.manual_seed(0)
    weights = torch.zeros(1, *SHAPE)
    weights[0, 6:15, 6:12, 5:9] = torch.rand(9, 6, 4, generator=torch.Generator().manual_seed(1))
    subject = tio.Subject(image=tio.ScalarImage(tensor=volume), map=tio.Image(tensor=weights, type='sampling'))
    n, half = 4000, torch.tensor(SIZE)//2
    sampler = tio.data.WeightedSampler(SIZE, 'map')
    theirs = torch.stack([torch.as_tensor(p[tio.LOCATION])[:3] for p in sampler(subject, n)]) + half
    ours = random_starts(SHAPE, SIZE, n=n, weights=weights[0]) + half
    for axis in range(3):
        want = weights[0].sum([a for a in range(3) if a != axis])/weights.sum()
        for at in theirs, ours:
            assert (at[:, axis].bincount(minlength=SHAPE[axis])/n - want).abs().max() < .035
