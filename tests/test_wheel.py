"A wheel built from the tree: every field of its metadata, and nothing but the package in it."
import email
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# what each dynamic field of pyproject.toml must become
FIELDS = {'version': ['Version'], 'description': ['Summary'], 'readme': ['Description-Content-Type'],
          'authors': ['Author', 'Author-email'], 'license': ['License', 'License-File'], 'keywords': ['Keywords'],
          'classifiers': ['Classifier'], 'urls': ['Project-URL'], 'requires-python': ['Requires-Python'],
          'dependencies': ['Requires-Dist'], 'optional-dependencies': ['Provides-Extra']}


@pytest.fixture(scope='module')
def cfg():
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built in a copy, so that the tree stays clean."
    tmp = tmp_path_factory.mktemp('wheel')
    for name in 'settings.ini', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE': shutil.copy(ROOT/name, tmp)
    for name in 'fmri_ldm', 'tests': shutil.copytree(ROOT/name, tmp/name, ignore=shutil.ignore_patterns('__pycache__'))
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '.', '--no-deps', '--no-build-isolation', '-q', '-w', 'out'], cwd=tmp, check=True)
    return zipfile.ZipFile(next((tmp/'out').glob('*.whl')))


def read(wheel, name): return wheel.read(next(n for n in wheel.namelist() if n.endswith(f'.dist-info/{name}'))).decode()


def test_every_dynamic_field_is_there(wheel):
    meta = email.message_from_string(read(wheel, 'METADATA'))
    block = re.search(r'dynamic = \[(.*?)\]', (ROOT/'pyproject.toml').read_text(encoding='utf-8'), re.S)[1]
    dynamic = set(re.findall(r'"([\w-]+)"', block)) - {'scripts', 'entry-points'}
    assert dynamic == set(FIELDS)
    for field in dynamic:
        for name in FIELDS[field]: assert meta.get(name) not in (None, '', 'UNKNOWN'), name
    assert len(meta.get_payload()) > 1000  # README.md


def test_metadata_is_that_of_settings(wheel, cfg):
    meta = email.message_from_string(read(wheel, 'METADATA'))
    assert (meta['Name'].replace('-', '_'), meta['Version']) == (cfg['lib_name'], cfg['version'])
    assert meta['Requires-Python'] == f'>={cfg["min_python"]}'
    needs = [r for r in meta.get_all('Requires-Dist') if 'extra' not in r]
    names = lambda rs: {re.match(r'[\w-]+', r)[0].lower() for r in rs}
    assert names(needs) == names(cfg['requirements'].split())
    assert not any('<' in r for r in needs)  # what users install is not bounded from above
    version = re.search(r'__version__ = "(.+)"', (ROOT/'fmri_ldm/__init__.py').read_text(encoding='utf-8'))[1]
    assert version == cfg['version'] and f'## {version}' in (ROOT/'CHANGELOG.md').read_text(encoding='utf-8')
    assert f'version: {version}\n' in (ROOT/'CITATION.cff').read_text(encoding='utf-8')


def test_entry_points(wheel):
    points = read(wheel, 'entry_points.txt')
    assert 'fmri_ldm = fmri_ldm.cli:main' in points and 'fmri_ldm = fmri_ldm._modidx:d' in points


def test_contents(wheel):
    modules = {f'fmri_ldm/{p.name}' for p in (ROOT/'fmri_ldm').glob('*.py')}
    assert {n for n in wheel.namelist() if '.dist-info/' not in n} == modules


def test_constraints_cover_what_we_need(cfg):
    text = (ROOT/'constraints.txt').read_text(encoding='utf-8').lower()
    pinned = {n.replace('_', '-') for n in re.findall(r'(?m)^([\w.-]+)==', text)}
    needed = {re.match(r'[\w-]+', r)[0].lower().replace('_', '-') for k in ('requirements', 'dev_requirements') for r in cfg[k].split()}
    assert needed <= pinned
    assert '+cpu' not in text and 'fmri_ldm==' not in text
