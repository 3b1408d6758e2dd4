"""Every metric that scikit-image, torchmetrics, MONAI, scikit-learn, SciPy or nilearn also has, at equal settings.

Features are drawn, never made by a net, so nothing is downloaded. Where a library computes in float32 the tolerance is float32's;
everywhere else it is 1e-9. The dev extra brings all of them.
"""
import math
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import linalg, stats
from scipy.spatial.distance import cdist, jensenshannon, pdist

with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    import torchmetrics.functional as tm
    import torchmetrics.functional.image as tmi
    from monai import metrics as monai
    from torchmetrics.image.fid import FrechetInceptionDistance, _compute_fid
    from torchmetrics.image.kid import poly_mmd

from nilearn.maskers import NiftiMasker
from sklearn import metrics as skm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skimage import metrics as ski

from fmri_ldm import distances as D
from fmri_ldm import metrics as M

WEIGHTS = M.SCALES


def close(a, b, tol=1e-9):
    "Within tol, relative to the larger of the value and 1."
    a, b = (np.asarray(v, dtype=float) for v in (a, b))
    assert a.shape == b.shape, (a.shape, b.shape)
    assert (np.abs(a - b) <= tol*np.maximum(1, np.abs(b))).all(), (a, b)


def smooth(n, shape, seed):
    "Positive volumes of some smoothness, as images are."
    x = torch.rand(n, 1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.avg_pool3d(x, (3, 3, 1) if shape[-1] < 3 else 3, 1, padding=(1, 1, int(shape[-1] > 2)))


@pytest.fixture(scope='module')
def pair():
    "Three truths (3,1,x,y,z) and what was made of them."
    y = 2*smooth(3, (24, 20, 22), 0)
    return .9*y + .3*smooth(3, (24, 20, 22), 1), y


@pytest.fixture(scope='module')
def sets():
    "Features of generated and of real samples: another mean, another covariance."
    rng = np.random.default_rng(0)
    mix = np.eye(12) + .2*rng.standard_normal((12, 12))
    return torch.as_tensor(rng.standard_normal((60, 12))@mix + .3), torch.as_tensor(rng.standard_normal((80, 12)))


# reconstruction

def test_errors(pair):
    x, y = pair
    a, b = (v.flatten(1) for v in (x, y))
    for name, ours in dict(MSE=M.mse, MAE=M.mae, RMSE=M.rmse).items():
        monai_metric = getattr(monai, f'{name}Metric')(reduction='none')
        close(ours(x, y), monai_metric(x, y).flatten())
    close(M.mse(x, y), skm.mean_squared_error(b.T, a.T, multioutput='raw_values'))
    close(M.mae(x, y), skm.mean_absolute_error(b.T, a.T, multioutput='raw_values'))
    close(M.mse(x, y), [tm.mean_squared_error(p, q) for p, q in zip(x, y)])
    close(M.nmse(x, y), [ski.normalized_root_mse(q.numpy(), p.numpy(), normalization='euclidean')**2 for p, q in zip(x, y)])


def test_mask_as_nilearn(pair):
    "Rows in the mask are what NiftiMasker gives, in its order."
    x, mask = pair[0], np.indices((24, 20, 22)).sum(0) % 3 == 0
    inside, series = (nib.Nifti1Image(v, np.eye(4)) for v in (mask.astype('u1'), np.moveaxis(x[:, 0].numpy(), 0, -1)))
    close(M.masked(x, mask), NiftiMasker(inside, dtype=None, standardize=None).fit().transform(series))


def test_psnr(pair):
    x, y = pair
    for r in 1., 2.5:
        ours = M.psnr(x, y, data_range=r)
        close(ours, [ski.peak_signal_noise_ratio(q.numpy(), p.numpy(), data_range=r) for p, q in zip(x, y)])
        close(ours, monai.PSNRMetric(r, reduction='none')(x, y).flatten())
        close(ours, tmi.peak_signal_noise_ratio(x, y, data_range=r, reduction='none', dim=(1, 2, 3, 4)), 1e-6)


def test_snr(pair):
    "torchmetrics' audio SNR of the truth less its mean."
    x, y = (v.flatten(1) for v in pair)
    mean = y.mean(1, keepdim=True)
    close(M.snr(x, y), tm.audio.signal_noise_ratio(x - mean, y - mean), 1e-7)


@pytest.mark.parametrize('axis', ['sample', 'voxel', 'all'])
def test_r2_and_pearson(pair, axis):
    x, y = (v.flatten(1)[:, :400] for v in pair)
    a, b = (dict(sample=v.T, voxel=v, all=v.reshape(-1, 1))[axis] for v in (x, y))     # samples down, outputs across
    ours = M.r2(x, y, axis=axis), M.pearson(x, y, axis=axis)
    assert ours[0].shape == ours[1].shape == ((3,), (400,), ())[('sample', 'voxel', 'all').index(axis)]
    ours = [np.atleast_1d(v) for v in ours]
    close(ours[0], skm.r2_score(b, a, multioutput='raw_values'))
    close(ours[0], np.atleast_1d(tm.r2_score(100*a, 100*b, multioutput='raw_values')), 1e-7)    # theirs calls sums below 1e-4 zero
    close(ours[1], [stats.pearsonr(p, q).statistic for p, q in zip(a.T, b.T)])
    close(ours[1], np.atleast_1d(tm.pearson_corrcoef(a.squeeze(1), b.squeeze(1)))) if axis == 'all' else None


def test_ssim(pair):
    "scikit-image to double precision; MONAI, which averages where whole windows fit, to single; torchmetrics' map inside."
    x, y = pair
    want = [ski.structural_similarity(p[0].numpy(), q[0].numpy(), data_range=2., gaussian_weights=True, sigma=1.5,
                                      use_sample_covariance=False) for p, q in zip(x, y)]
    close(M.ssim3d(x, y, data_range=2.), want)
    close(M.ssim3d(x, y, data_range=2.), monai.SSIMMetric(3, data_range=2., reduction='none')(x, y).flatten(), 1e-5)
    for win, sigma in (7, 1.), (5, .8):
        theirs = monai.SSIMMetric(3, data_range=2., win_size=win, kernel_sigma=sigma, reduction='none')(x, y)
        close(M.ssim3d(x, y, data_range=2., win=win, sigma=sigma), theirs.flatten(), 1e-5)
    x, y, inside = x[:1, :, :14], y[:1, :, :14], (..., slice(5, -5), slice(5, -5), slice(5, -5))
    _, full = tmi.structural_similarity_index_measure(x, y, data_range=2., return_full_image=True)
    close(M.ssim_map(x, y, data_range=2.)[inside], full[inside])


def reference_ms_ssim(x, y, data_range, weights):
    "torchmetrics' contrasts in double precision, and its SSIM map where whole windows fit: eq. 7 of Wang et al. 2003."
    out, inside = 1., (..., slice(5, -5), slice(5, -5), slice(5, -5))
    for j, w in enumerate(weights, 1):
        _, cs = tmi.structural_similarity_index_measure(x, y, data_range=data_range, reduction='none', return_contrast_sensitivity=True)
        if j == len(weights):
            _, cs = tmi.structural_similarity_index_measure(x, y, data_range=data_range, reduction='none', return_full_image=True)
            cs = cs[inside].mean((1, 2, 3, 4))
        out = out*cs.clamp_min(0)**w
        x, y = (torch.nn.functional.avg_pool3d(v, 2) for v in (x, y))
    return out


def kept(n): return tuple(v*sum(WEIGHTS)/sum(WEIGHTS[:n]) for v in WEIGHTS[:n])


def test_ms_ssim_double():
    "Double precision, windows of 11, two scales: the weights that are left keep their sum."
    x, y = smooth(1, (23, 22, 24), 2), smooth(1, (23, 22, 24), 3)
    x = .8*y + .4*x
    ours = M.ms_ssim3d(x, y, data_range=1.)
    close(ours, reference_ms_ssim(x, y, 1., kept(2)))
    close(ours, M.ms_ssim3d(x, y, data_range=1., weights=kept(2)))
    assert .1 < ours < .95


def test_ms_ssim_three_scales():
    "MONAI computes in single precision; volumes about 0 keep its differences of squares exact enough."
    x, y = (smooth(2, (45, 49, 44), s) - .5 for s in (2, 3))
    x = .8*y + .4*x
    theirs = monai.MultiScaleSSIMMetric(3, data_range=1., weights=kept(3), reduction='none')(x, y).flatten()
    close(M.ms_ssim3d(x, y, data_range=1.), theirs, 1e-5)


def test_ms_ssim_five_scales():
    "All five with a window of 3, and channels; the axes need 48."
    x, y = (smooth(4, (50, 48, 49), s).reshape(2, 2, 50, 48, 49) - .5 for s in (4, 5))
    x = .8*y + .4*x
    theirs = monai.MultiScaleSSIMMetric(3, data_range=1., kernel_size=3, kernel_sigma=.8, reduction='none')(x, y)
    close(M.ms_ssim3d(x, y, data_range=1., win=3, sigma=.8), theirs.flatten(), 1e-5)


def test_ms_ssim_of_a_slice():
    "An axis of one: MONAI's in two dimensions."
    x, y = (smooth(2, (60, 52, 1), s) - .5 for s in (6, 7))
    x = .8*y + .4*x
    theirs = monai.MultiScaleSSIMMetric(2, data_range=1., weights=kept(3), reduction='none')(x[..., 0], y[..., 0])
    close(M.ms_ssim3d(x, y, data_range=1.), theirs.flatten(), 1e-5)


def test_variety():
    "The mean over all pairs of a class is a loop over MONAI's metric."
    x, labels = smooth(6, (22, 24, 23), 8) - .5, [0, 1, 0, 0, 1, 0]
    metric = monai.MultiScaleSSIMMetric(3, data_range=1., weights=kept(2))
    want = [float(metric(x[i:i+1], x[j:j+1])) for i in range(6) for j in range(i) if labels[i] == labels[j]]
    assert len(want) == 7
    close(M.variety(x, data_range=1., labels=labels, n_pairs=99), np.mean(want), 1e-5)


# values

def test_distributions(pair):
    x, y = pair
    a, b = (v.flatten().numpy() for v in (x, y))
    close(M.ks_distance(x, y), stats.ks_2samp(a, b).statistic)
    edges = np.histogram_bin_edges(np.concatenate([a, b]), 64)
    close(M.js_divergence(x, y), jensenshannon(*(np.histogram(v, edges)[0] for v in (a, b)), base=2)**2, 1e-7)
    m, rows = M.moments(x), x.flatten(1)
    close(m['skew'], stats.skew(rows, axis=1))
    close(m['kurtosis'], stats.kurtosis(rows, axis=1))


def test_effect_size(sets):
    "From SciPy's t, with the exact correction for small samples."
    for n, m in (60, 80), (3, 4), (2, 2):
        a, b = sets[0][:n], sets[1][:m]
        nu = n + m - 2
        d = stats.ttest_ind(a, b).statistic*math.sqrt(1/n + 1/m)
        unbias = math.exp(math.lgamma(nu/2) - math.lgamma((nu - 1)/2))/math.sqrt(nu/2)
        close(M.effect_size(a, b), d*unbias)


def test_tsnr():
    "SciPy's detrending, then mean over SD."
    from scipy.signal import detrend
    x = 50 + np.random.default_rng(1).standard_normal((40, 30)).cumsum(0)
    close(M.tsnr(x), x.mean(0)/np.sqrt((detrend(x, axis=0)**2).sum(0)/38))
    close(M.tsnr(x, drift=0), x.mean(0)/x.std(0, ddof=1))


def test_voxel_relations(sets):
    a, b = (np.corrcoef(v.T)[np.triu_indices(12, 1)] for v in sets)
    close(M.voxel_relations(*sets), stats.pearsonr(a, b).statistic)


# distances

def kernel(z, widths): return np.mean([rbf_kernel(z, gamma=1/(2*w**2)) for w in widths], axis=0)


def test_mmd(sets):
    "A loop with scikit-learn's kernel; and MONAI's metric, whose kernel is linear, on explicit features of ours."
    (n, m), widths = map(len, sets), [k*np.median(pdist(sets[1])) for k in (.5, 1, 2)]
    close(D.bandwidths(sets[1]), widths, 1e-2)                      # torch takes the lower median, NumPy the middle
    widths = D.bandwidths(sets[1])
    k = kernel(torch.cat(sets), widths)
    off = ~np.eye(n + m, dtype=bool)
    want = k[:n, :n][off[:n, :n]].mean() + k[n:, n:][off[n:, n:]].mean() - 2*k[:n, n:].mean()
    close(D.mmd2(*sets), want)
    assert k[:n, :n].mean() + k[n:, n:].mean() - 2*k[:n, n:].mean() > want + .01       # the biased one is larger
    phi = torch.as_tensor(linalg.cholesky(k + 1e-13*np.eye(n + m), lower=True))        # phi phi' = k
    a, b = (torch.as_tensor(v) for v in sets)
    close(D.mmd2(a, b[:n], bandwidths=widths), monai.MMDMetric()(phi[n:2*n], phi[:n]))     # it needs sets of one size
    close(D.mmd_test(*sets, n_perm=1)[0], want)


def test_kid(sets):
    "torchmetrics' poly_mmd on features standardised by the real ones; its sets have one size."
    a, b = sets[0], sets[1][:60]
    mean, sd = b.mean(0), b.std(0)
    close(D.kid(a, b), poly_mmd((b - mean)/sd, (a - mean)/sd))


class Flat(torch.nn.Module):
    "A feature extractor that gives what it gets."
    num_features = 12

    def forward(self, x): return x


def test_frechet(sets):
    a, b = sets
    root = linalg.sqrtm(np.cov(a.T)@np.cov(b.T)).real
    want = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(np.cov(a.T) + np.cov(b.T) - 2*root)
    close(D.frechet(a, b), want)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                              # SciPy's sqrtm(disp=) is deprecated
        close(D.frechet(a, b), monai.FIDMetric()(a, b))
    cov = [torch.cov(v.T) for v in sets]
    close(D.frechet(a, b), _compute_fid(a.mean(0), cov[0], b.mean(0), cov[1]))
    fid = FrechetInceptionDistance(Flat()).set_dtype(torch.float64)
    fid.update(b, real=True)
    fid.update(a, real=False)
    close(D.frechet(a, b), fid.compute())


def test_frechet_singular(sets):
    "A constant and a doubled feature: the square root exists, the inverse does not."
    a, b = (torch.cat([v, torch.ones(len(v), 1), v[:, :1]], 1) for v in sets)
    c = [np.cov(v.T) for v in (a, b)]
    value = np.linalg.eigvals(c[0]@c[1]).real.clip(0)
    want = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(c[0] + c[1]) - 2*np.sqrt(value).sum()
    close(D.frechet(a, b), want, 1e-6)
    close(D.frechet(b, b), 0, 1e-6)


def neighbours(x, k): return NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, k]


def test_neighbourhoods(sets):
    "Precision, recall, density, coverage and nearest distances with scikit-learn's neighbours."
    gen, real = (v.numpy() for v in sets)
    d = cdist(gen, real)
    for k in 1, 3, 5:
        ball, mine = neighbours(real, k), neighbours(gen, k)
        close(D.precision_recall(real, gen, k=k), [(d <= ball).any(1).mean(), (d <= mine[:, None]).any(0).mean()])
        close(D.density_coverage(real, gen, k=k), [(d <= ball).sum(1).mean()/k, (d <= ball).any(0).mean()])
    close(D.nearest_distances(gen, real), NearestNeighbors(n_neighbors=1).fit(real).kneighbors(gen)[0][:, 0])


def test_memorisation(sets):
    gen, real = (v.numpy() for v in sets)
    near = NearestNeighbors(n_neighbors=1).fit(real[:40])
    limit = np.quantile(near.kneighbors(real[40:])[0], .05)
    gen = np.concatenate([gen, real[:10] + 1e-3])
    share = (near.kneighbors(gen)[0] < limit).mean()
    assert share >= 10/70
    close(D.memorisation_share(gen, real[:40], real[40:]), share)


def test_c2st(sets):
    "scikit-learn's cross-validation of the same classifier; folds of single samples are drawn otherwise, so within noise."
    gen, real = sets[0], sets[1][:60]
    x, y = torch.cat([gen, real]).numpy(), np.arange(120) < 60
    net = make_pipeline(StandardScaler(), LogisticRegression(C=.01, class_weight='balanced'))
    want = [cross_val_score(net, x, y, cv=StratifiedKFold(5, shuffle=True, random_state=s)).mean() for s in range(4)]
    ours = [D.c2st(gen, real, seed=s) for s in range(4)]
    assert abs(np.mean(ours) - np.mean(want)) < .02 and np.mean(want) > .6


def test_intervals(sets):
    "SciPy's t interval of a mean is the jackknife's; its percentile bootstrap is ours, up to the draws."
    u = sets[0][:, 0].numpy()
    def mean(i): return u[i].mean()
    close(D.jackknife_ci(mean, np.arange(60)), stats.t.interval(.95, 59, u.mean(), stats.sem(u)))
    theirs = stats.bootstrap((u,), np.mean, n_resamples=4000, method='percentile', rng=0).confidence_interval
    close(D.bootstrap_ci(mean, np.arange(60), n_boot=4000), theirs, .03)
