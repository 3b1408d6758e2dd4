"Agreement beside scikit-learn, scipy, nilearn and brute force; what it accepts, what it refuses, how long it takes."
import itertools
import time
import warnings

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.signal import lfilter
from sklearn.metrics import f1_score

from fmri_ldm.agreement import (ar1, band_power, compare_rdms, connectivity, edge_agreement, fir_response, first_level,
                                glm_agreement, group_stat, map_agreement, noise_ceiling, rdm, response_shape)
from fmri_ldm.core import InputError
from fmri_ldm.series import fit_maps

MASK = np.zeros((9, 10, 8), bool)
MASK[1:8, 1:9, 1:7] = True
OBLIQUE = nib.affines.from_matvec([[2.5, .4, 0], [-.4, 3, .2], [0, -.3, 4]], [10, -20, 30])
V = MASK.sum()


@pytest.fixture
def rng(): return np.random.default_rng(0)


def maps(rng, n=8, k=4, noise=1.):
    "Maps, labels and subjects of a known population."
    true = np.random.default_rng(99).standard_normal((k, V))
    y = np.tile(np.arange(k), n)
    return true[y] + noise*rng.standard_normal((n*k, V)), y, np.repeat(np.arange(n), k)


def test_two_maps_by_hand(rng):
    a, b = rng.standard_normal((2, V))
    got, k = glm_agreement(a, b, MASK, OBLIQUE), round(.05*V)
    hot = [v >= np.sort(v)[-k] for v in (a, b)]
    assert got['dice'] == pytest.approx(f1_score(*hot))
    assert got['r'] == pytest.approx(stats.pearsonr(a, b)[0])
    assert got['slope'] == pytest.approx(np.linalg.lstsq(b[:, None], a, rcond=None)[0][0])
    at = nib.affines.apply_affine(OBLIQUE, np.argwhere(MASK))
    assert got['peak_mm'] == pytest.approx(np.linalg.norm(at[a.argmax()] - at[b.argmax()]))
    strong = np.argsort(-np.abs(b))[:k]
    assert got['sign'] == pytest.approx(np.mean(np.sign(a[strong]) == np.sign(b[strong])))


def test_chance(rng):
    "Unrelated maps: r 0, Dice 5 %, sign one half, slope 0."
    each = [glm_agreement(*rng.standard_normal((2, V)), MASK, OBLIQUE) for _ in range(300)]
    mean = {k: np.mean([e[k] for e in each]) for k in each[0]}
    assert abs(mean['r']) < .02 and abs(mean['slope']) < .02
    assert abs(mean['dice'] - .05) < .02 and abs(mean['sign'] - .5) < .03


@pytest.mark.parametrize('n', (3, 6))
def test_slope_is_unbiased(n):
    "Other people of the same population have slope 1, half of them .5, whatever the noise."
    slopes = []
    for i in range(40):
        r = np.random.default_rng([n, i])
        (x, y, _), (z, w, who) = maps(r, n, noise=2.), maps(r, n, noise=2.)
        slopes.append([map_agreement((s*x, y), (z, w), MASK, OBLIQUE, subjects=p)['slope']
                       for s, p in ((1, who), (.5, who), (1, None))])
    mended, half, diluted = np.mean(slopes, 0)
    assert mended == pytest.approx(1, abs=.05) and half == pytest.approx(.5, abs=.03)
    assert diluted == pytest.approx(1/(1 + 4/n), abs=.05)


def test_forms_of_input(rng):
    "Rows, volumes, tensors that need a gradient, half precision, labels that are text."
    x, y, who = maps(rng)
    want = map_agreement((x, y), (x[::-1].copy(), y[::-1]), MASK, OBLIQUE, subjects=who[::-1])
    vol = torch.zeros(len(x), 1, *MASK.shape)
    vol[:, 0, torch.as_tensor(MASK)] = torch.as_tensor(x).float()
    names = np.array(['lh', 'rh', 'lf', 'rf'])
    for gen in ((vol.requires_grad_(), y), (vol.detach()[:, 0], torch.as_tensor(y)), (torch.as_tensor(x), y.tolist())):
        got = map_agreement(gen, (x[::-1].copy(), y[::-1]), MASK, OBLIQUE, subjects=who[::-1])
        assert got == pytest.approx(want, rel=1e-4)
    text = map_agreement((vol.detach(), names[y]), (x, names[y]), MASK, OBLIQUE, subjects=[f's{i}' for i in who])
    assert text['r'] == pytest.approx(1, abs=1e-6)         # labels are sorted on both sides
    low = map_agreement((vol.detach().bfloat16(), y), (x, y), MASK, OBLIQUE)
    assert low['r'] > .999


@pytest.mark.parametrize('spoil', (lambda x, y: (x[:, 1:], y), lambda x, y: (x*np.nan, y), lambda x, y: (x[y > 0], y[y > 0])))
def test_refusals(rng, spoil):
    x, y, _ = maps(rng)
    with pytest.raises(InputError): map_agreement(spoil(x, y), (x, y), MASK, OBLIQUE)


def test_few_conditions(rng):
    x, y, _ = maps(rng)
    for k, undefined in ((1, {'between', 'rsa'}), (2, {'rsa'}), (3, set())):
        got = map_agreement((x, y), (x[y < k], y[y < k]), MASK, OBLIQUE)
        assert {n for n, v in got.items() if np.isnan(v)} == undefined
    flat = map_agreement((np.ones_like(x), y), (x, y), MASK, OBLIQUE)
    assert flat['r'] == flat['between'] == flat['rsa'] == 0 and np.isnan(flat['peak_mm'])


def test_crossed_distances_by_hand(rng):
    x, y, who = maps(rng, n=3)
    got, want = rdm(x, y, folds=who), np.zeros((4, 4))
    pairs = list(itertools.permutations(range(3), 2))
    for a, b in pairs:
        A, B = x[who == a], x[who == b]
        want += ((A[:, None] - A)*(B[:, None] - B)).mean(-1)/len(pairs)
    np.testing.assert_allclose(got, want, atol=1e-12)
    assert np.allclose(got, got.T) and np.allclose(np.diag(got), 0)


@pytest.mark.parametrize('how,oracle', (('spearman', stats.spearmanr), ('kendall', stats.kendalltau), ('pearson', stats.pearsonr)))
def test_rdm_correlations(rng, how, oracle):
    rdms = [rdm(rng.standard_normal((6, 50)), range(6)) for _ in range(7)]
    up = np.triu_indices(6, 1)
    assert compare_rdms(*rdms[:2], how=how) == pytest.approx(oracle(rdms[0][up], rdms[1][up])[0])
    low, high = noise_ceiling(rdms, how=how)
    assert low < high and noise_ceiling([rdms[0]]*3, how=how) == pytest.approx((1, 1))


def series(rng, n=160, rho=.4):
    events = pd.DataFrame(dict(onset=np.arange(10, 2*n - 30, 14.), duration=4.))
    events['trial_type'] = np.array(['a', 'b'])[rng.integers(0, 2, len(events))]
    noise = lfilter([(1 - rho**2)**.5], [1, -rho], rng.standard_normal((n, V)), axis=0)
    return 100 + noise, events


def image(x):
    vol = np.zeros((*MASK.shape, len(x)), 'f4')
    vol[MASK] = x.T
    return nib.Nifti1Image(vol, OBLIQUE)


def test_first_level_beside_our_other_fit(rng):
    from nilearn.glm.first_level import make_first_level_design_matrix
    x, events = series(rng)
    mask_img = nib.Nifti1Image(MASK.astype('u1'), OBLIQUE)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        design = make_first_level_design_matrix(np.arange(len(x))*2., events, drift_model='cosine', high_pass=1/128)
    for output in ('z_score', 'effect_size'):
        got = first_level(image(x), events, t_r=2., mask_img=mask_img, output=output)
        want = fit_maps(x, design, names=['a', 'b'], output=output)
        np.testing.assert_allclose(np.stack([got[k][MASK] for k in 'ab']), want, atol=2e-3)
    raw = first_level(image(x*7 - 600), events, t_r=2., mask_img=mask_img, scale=False)
    np.testing.assert_allclose(raw['a'][MASK], 7*got['a'][MASK]*x.mean(0)/100, rtol=.02, atol=.02)


def test_group_beside_scipy(rng):
    x = .3 + rng.standard_normal((9, V))
    want = stats.ttest_1samp(x, 0, alternative='greater')
    np.testing.assert_allclose(group_stat(x, MASK, OBLIQUE, output='stat'), want.statistic, rtol=1e-4)
    np.testing.assert_allclose(group_stat(x, MASK, OBLIQUE), stats.norm.isf(want.pvalue), rtol=1e-3, atol=1e-4)


def test_ar1_beside_nilearn(rng):
    "nilearn rounds its estimate to steps of .01."
    from nilearn.glm.first_level import run_glm
    x = series(rng)[0]
    labels, _ = run_glm(x, np.ones((len(x), 1)), noise_model='ar1', bins=100)
    theirs = np.array([float(v) for v in labels])
    assert np.abs(ar1(x) - theirs).max() < .03 and abs(ar1(x).mean() - (.4 - 2.6/160)) < .02


@pytest.mark.parametrize('delay', (0, 1, 2))
def test_fir_delay(rng, delay):
    "The same events, later by whole volumes: the peak moves by just that."
    x, events = series(rng)
    from nilearn.glm.first_level import compute_regressor
    e = np.stack([events.onset + 2*delay, events.duration, np.ones(len(events))])
    signal = compute_regressor(e, 'spm', np.arange(len(x))*2.)[0]
    h = fir_response(.02*(x - 100) + signal, events, t_r=2., n=12)
    peaks = [response_shape(v.mean(1), t_r=2.)[0] for v in h.values()]
    assert np.mean(peaks) == pytest.approx(7.3 + 2*delay, abs=.4)


def test_edges(rng):
    x = rng.standard_normal((200, 3))@rng.standard_normal((3, 20)) + rng.standard_normal((200, 20))
    z = connectivity(x)
    np.testing.assert_allclose(np.tanh(z[0, 1:]), [stats.pearsonr(x[:, 0], v)[0] for v in x.T[1:]], atol=1e-12)
    assert edge_agreement(connectivity(x[:100]), connectivity(x[100:])) > .7
    assert np.isfinite(connectivity(np.c_[x, x[:, 0], 0*x[:, 0]])).all()
    assert band_power(x, t_r=2., low=0, high=.25) == pytest.approx(np.ones(20))


def test_speed():
    "200 maps of 30,000 voxels against 200: under 3 s."
    rng, mask = np.random.default_rng(0), np.ones((30, 40, 25), bool)
    x, y = rng.standard_normal((200, 30_000), dtype=np.float32), np.tile(np.arange(5), 40)
    start = time.process_time()
    map_agreement((torch.as_tensor(x), y), (x, y), mask, np.eye(4), subjects=np.repeat(np.arange(40), 5))
    assert time.process_time() - start < 3
