"""The report as other programs, terminals and browsers meet it. The browser test needs playwright and a Chromium."""
import copy
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch

from fmri_ldm.core import InputError, load_json
from fmri_ldm.figures import plot_training
from fmri_ldm.report import (ENTRY, MEANING, REPORT, Real, build_report, check_report, compare_page, judge_samples, pca_gaussian,
                             report_figures, text_summary, verdict, write_report)

SHAPE = (8, 9, 7)


def people(n, seed, shift=0.):
    "n people with three maps each on a tiny grid."
    rng = np.random.default_rng(seed)
    signal = np.stack([np.roll(np.hanning(SHAPE[0]), k)[:, None, None]*np.ones(SHAPE) for k in (-2, 0, 2)])
    x = 2*signal + rng.standard_normal((n, 3, *SHAPE)) + rng.standard_normal((n, 1, 1, 1, 1)) + shift
    return Real(torch.tensor(x.reshape(-1, 1, *SHAPE), dtype=torch.float32), np.tile(np.arange(3), n),
                [f'p{seed}-{i}' for i in range(n) for _ in range(3)])


@pytest.fixture(scope='module')
def world():
    "Real data, a good and a bad generator, and their reports."
    torch.set_num_threads(1)
    train, test, mask = people(14, 0), people(8, 1), np.ones(SHAPE, bool)
    good = [(pca_gaussian(train, np.repeat(np.arange(3), 8), seed=s), np.repeat(np.arange(3), 8)) for s in range(2)]
    bad = [(x + 12, y) for x, y in good]
    kw = dict(mask=mask, names=('a', 'b', '<c>'), n_parcels=12, k=3, n_perm=20, affine=np.eye(4),
              baselines={'vae_prior': (torch.randn(24, 1, *SHAPE), np.repeat(np.arange(3), 8))})
    reports = [build_report(judge_samples(train, test, g, **kw), seed=0, data='', model='', machine='', seconds=1) for g in (good, bad)]
    return train, test, good, kw, *reports


def test_every_metric_has_its_yardsticks(world):
    rep = world[4]
    want = {'recognition', 'sd_ratio', 'precision', 'recall', 'density', 'coverage', 'mmd', 'kid', 'frechet', 'c2st', 'variety',
            'memorisation_share', 'nearest_ratio', 'power_ratio', 'smoothness', 'glm_r', 'glm_dice', 'glm_peak_mm', 'glm_slope',
            'rsa', *(f'map_correlation.{k}' for k in ('a', 'b', '<c>'))}
    assert set(rep['metrics']) == want and {k.split('.')[0] for k in want} <= set(MEANING)
    for k, e in rep['metrics'].items():
        assert e['floor'] is not None and {'pca_gaussian', 'gaussian_mixture', 'vae_prior', 'noise', 'copies'} <= set(e['baselines']), k
        if k not in ('memorisation_share', 'nearest_ratio'): assert set(e['gaps']) <= {'pca_gaussian', 'gaussian_mixture', 'vae_prior'}
    assert check_report(json.loads(json.dumps(rep, allow_nan=False)))


def test_a_shifted_generator_is_found(world):
    a, b = (r['metrics'] for r in world[4:6])
    for k in ('mmd', 'frechet', 'kid', 'c2st'): assert b[k]['value'] > a[k]['value'], k
    assert b['recall']['value'] == 0 < a['recall']['value']
    assert any('beats the model in' in line and 'mmd' in line for line in verdict(b))


def test_only_gives_the_same_numbers(world):
    train, test, good, kw, rep, _ = world
    some = judge_samples(train, test, good, only=('mmd', 'map_correlation'), **kw)
    assert list(some) == ['map_correlation.a', 'map_correlation.b', 'map_correlation.<c>', 'mmd']
    for k, e in some.items(): assert e == rep['metrics'][k]


def test_check_report_names_what_is_wrong(world):
    rep = json.loads(json.dumps(world[4]))
    for k in REPORT:
        with pytest.raises(InputError, match=f'report has no {k}'): check_report({a: v for a, v in rep.items() if a != k})
    for k in ENTRY:
        odd = copy.deepcopy(rep)
        del odd['metrics']['mmd'][k]
        with pytest.raises(InputError, match=f'mmd has no {k}'): check_report(odd)
        odd['metrics']['mmd'][k] = {1}
        with pytest.raises(InputError, match=f'mmd.{k} is'): check_report(odd, 'x.json')


def test_text_fits_a_terminal(world):
    for rep in world[4:6]:
        lines = text_summary(rep).split('\n')
        assert max(map(len, lines)) <= 100 and sum(line.startswith('map_corr') for line in lines) == 3


def test_curves_are_drawn_as_svg(world, tmp_path):
    fig = plot_training({'all': {'loss': ([1, 2, 3], [3., 2., 1.])}})
    text = write_report(tmp_path, world[4], {'losses': fig}, title='t').read_text(encoding='utf-8')
    assert text.count('data:image/svg+xml;base64,') == 1 and 'data:image/png' not in text
    assert load_json(tmp_path/'report.json') == json.loads(json.dumps(world[4]))


BROWSER = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('google-chrome')


def browser():
    "A browser page, or a skip."
    api = pytest.importorskip('playwright.sync_api')
    if not BROWSER: pytest.skip('no Chromium')
    return api.sync_playwright()


def test_in_a_browser(world, tmp_path):
    "The table sorts by mouse and keyboard, no other script runs, nothing is loaded, a phone needs no scrolling sideways."
    train, test, good, _, rep, other = world
    figs = report_figures(test, good[0], ('a', 'b', '<c>'), affine=np.eye(4), train=train)
    path = write_report(tmp_path, rep, figs, title='t', extra_html='<script>document.title="ran"</script><p onclick="x()">hi</p>')
    (tmp_path/'compare.html').write_text(compare_page(rep, other), encoding='utf-8')
    with browser() as p:
        chrome = p.chromium.launch(executable_path=BROWSER, args=['--no-sandbox', '--disable-gpu'])
        page, asked = chrome.new_page(viewport=dict(width=1280, height=900)), []
        page.on('request', lambda r: asked.append(r.url))
        page.goto(path.as_uri())
        assert page.title() == 't'                                     # the strange script did not run
        assert [u for u in asked if not u.startswith('data:')] == [path.as_uri()]
        names = lambda: page.eval_on_selector_all('tbody tr td:first-child b', 'x => x.map(v => v.textContent)')
        assert names() == list(rep['metrics'])
        page.click('thead th:nth-child(2) button')
        value = {k: e['value'] for k, e in rep['metrics'].items()}
        order = [value[k] for k in names()]
        assert order == sorted(order) and page.get_attribute('thead th:nth-child(2)', 'aria-sort') == 'ascending'
        page.focus('thead th:nth-child(1) button')
        page.keyboard.press('Enter'); page.keyboard.press('Enter')
        assert page.get_attribute('thead th:nth-child(1)', 'aria-sort') == 'descending'
        assert page.get_attribute('thead th:nth-child(2)', 'aria-sort') is None
        assert [n[0] for n in names()] == sorted((n[0] for n in names()), reverse=True)
        for url in (path, tmp_path/'compare.html'):
            phone = chrome.new_page(viewport=dict(width=360, height=700))
            phone.goto(url.as_uri())
            assert phone.evaluate('document.documentElement.scrollWidth') <= 360
        plain = chrome.new_context(java_script_enabled=False).new_page()
        plain.goto(path.as_uri())
        assert plain.locator('tbody tr').count() == len(rep['metrics']) and plain.locator('th button').count() == 0
        chrome.close()
    assert len(re.findall('<script>', path.read_text(encoding='utf-8'))) == 2
