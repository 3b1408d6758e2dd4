"Copies that must be caught, people who must not be accused, and the time that it takes."
import time

import numpy as np
import pytest
import torch
from fmri_ldm.privacy import Frame, People, Space, audit, audit_metrics, auc, plant, search_moves
from scipy.ndimage import gaussian_filter

SHAPE = (14, 16, 12)
MASK = sum(((g - (n - 1)/2)/(n/2))**2 for g, n in zip(np.indices(SHAPE), SHAPE)) < 1
SHARED = gaussian_filter(np.random.default_rng(99).standard_normal((3, *SHAPE)), (0, 2, 2, 2), mode='wrap')*20


def people(n, seed):
    "n people with a map of each of three classes; a pattern of their own in all of them."
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.standard_normal((n, 4, *SHAPE)), (0, 0, 1.2, 1.2, 1.2), mode='wrap')
    x = (SHARED + (.8*noise[:, :3] + .6*noise[:, 3:])/noise.std()).reshape(-1, 1, *SHAPE)*MASK
    return People(torch.from_numpy(x).float(), np.tile(np.arange(3), n), np.repeat([f'{seed}-{i}' for i in range(n)], 3))


def gaussian(train, n, seed):
    "Draws of a Gaussian with the class means and the covariance of the training maps."
    means = torch.stack([train.x[train.labels == k].mean(0) for k in range(3)])
    w = torch.randn(n, len(train.x), generator=torch.Generator().manual_seed(seed))/(len(train.x) - 3)**.5
    return (w@(train.x - means[train.labels]).flatten(1)).view(n, 1, *SHAPE) + means[np.arange(n) % 3]


@pytest.mark.parametrize('sizes', [(20, 10, 10), (10, 10, 14)])
def test_other_people_and_gaussians_pass(sizes):
    for seed in range(5):
        train, test, fresh = (people(n, 10*seed + i) for i, n in enumerate(sizes))
        a, b = (audit(x, train, test, mask=MASK, seed=seed) for x in (fresh.x, gaussian(train, 60, seed)))
        assert a.verdict == b.verdict == 'pass', (seed, a.reasons, b.reasons)
        assert a.membership_ci[0] < .5 < b.membership_ci[0]             # a Gaussian tells who was there


def test_one_planted_copy_among_fresh_maps_fails_and_is_named():
    train, test, fresh = people(16, 1), people(10, 2), people(10, 3)
    frame, home = Frame(MASK), (False, (0, 0, 0))
    for kind, x in plant(frame, frame.flat(train.x[20:21]), noise=.5).items():
        gen = fresh.x.clone()
        gen[7] = frame.volumes(x[:, frame.reads(home)])[0]
        a = audit(gen, train, test, mask=MASK)
        assert (a.verdict, a.copies_found) == ('fail', 1), kind
        p = a.pairs[0]
        assert (p['generated'], p['training'], p['flip'], p['copy']) == (7, 20, kind == 'flipped', True)
        assert train.subjects[20] in p['name'] and a.reasons[0].startswith('Fail')
        assert audit_metrics(a)['copies_found']['met'] is False


def test_held_out_maps_are_no_copies_of_train_but_are_of_themselves():
    train, test = people(14, 5), people(10, 6)
    assert audit(test.x, train, test, mask=MASK).verdict == 'pass'
    swapped = audit(test.x, test, train, mask=MASK)
    assert swapped.copies_found == len(test.x) and swapped.membership_auc == 1


def test_no_verdict_where_nothing_can_be_known():
    train, test = people(2, 1), people(4, 2)
    a = audit(test.x, train, test, mask=MASK)
    assert a.verdict == 'cannot tell' and 'too few' in a.reasons[0]
    assert audit_metrics(a)['copies_found']['met'] is None
    alike = torch.from_numpy(SHARED*MASK).float()[:, None].repeat(6, 1, 1, 1, 1)    # maps without anybody in them
    alike = alike + 1e-3*people(6, 3).x.mean(0) + 1e-3*torch.from_numpy(MASK).float()*torch.arange(18.).view(18, 1, 1, 1, 1)
    a = audit(test.x, People(alike, np.tile(np.arange(3), 6), np.repeat(np.arange(6), 3)), test, mask=MASK)
    assert a.verdict != 'fail'


def test_without_held_out_people():
    train, fresh = people(14, 1), people(8, 2)
    a = audit(fresh.x, train, mask=MASK)
    assert a.verdict == 'pass' and a.membership_auc is None and 'membership_auc' not in audit_metrics(a)
    with pytest.raises(Exception, match='in train and in test'): audit(fresh.x, train, train, mask=MASK)
    with pytest.raises(Exception, match='do not fit'): audit(fresh.x[..., 1:], train, mask=MASK)


def test_features_are_looked_at_too():
    train, test, fresh = people(14, 1), people(10, 2), people(8, 3)
    a = audit(fresh.x, train, test, mask=MASK, features=lambda x: torch.nn.functional.avg_pool3d(x, 2).flatten(1))
    assert set(a.spaces) == {'voxels', 'parcels', 'features'} and a.verdict == 'pass'


def test_a_slice_and_volumes_without_labels():
    train, test, fresh = (people(n, n).x[..., 5:7] for n in (14, 10, 8))
    a = audit(fresh, train, test, mask=MASK[..., 5:7])
    assert a.verdict in ('pass', 'cannot tell') and a.people == dict(train=42, test=30)


def test_search_equals_the_slow_way():
    train, fresh, frame = people(6, 1), people(2, 2), Frame(MASK)
    flat, moves = frame.flat(train.x), search_moves(SHAPE, shift=1)
    space = Space(lambda x, m: x[:, frame.reads(m)], flat, train.labels, moves=moves)
    got, which = space.near(frame.flat(fresh.x))
    B, want = space.base.double(), []
    for m in moves:
        v = frame.flat(fresh.x)[:, frame.reads(m)].double()
        v = v - (v@B)@B.T
        want.append(np.corrcoef(v, space.real)[:len(v), len(v):])
    np.testing.assert_allclose(got, np.max(want, 0), atol=1e-4)
    assert (which.numpy() == np.argmax(want, 0)).mean() > .99


def test_auc_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score
    rng = np.random.default_rng(0)
    a, b = rng.normal(.5, 1, 40).round(1), rng.normal(0, 1, 30).round(1)
    assert abs(auc(a, b) - roc_auc_score(np.r_[np.ones(40), np.zeros(30)], np.r_[a, b])) < 1e-12


def test_120_samples_against_200_volumes_of_30000_voxels_within_a_minute():
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    mask = np.ones((36, 30, 28), bool)
    train, gen = (torch.randn(n, 1, *mask.shape, generator=g) for n in (200, 120))
    gen[3] = torch.roll(train[50], (1, 0), (1, 2)).flip(1)
    frame = Frame(mask)
    begin = time.process_time()
    space = Space(lambda x, m: x[:, frame.reads(m)], frame.flat(train), np.zeros(200, int),
                  moves=search_moves(mask.shape), further=search_moves(mask.shape, shift=2))
    r, _ = space.near(frame.flat(gen))
    assert time.process_time() - begin < 60 and len(frame.at) == 30_240
    assert r[3].argmax() == 50 and r[3].max() > .9 and r[:3].max() < .1
