"Each tool accepts a good tree and fails on a planted fault."
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT/'tools'/f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cell(kind, source, **kw):
    c = dict(cell_type=kind, id='', metadata={}, source=source.splitlines(True))
    if kind == 'code': c.update(execution_count=None, outputs=[])
    return {**c, **kw}


def figure(): return [dict(output_type='display_data', metadata={}, data={'image/png': 'AAAA', 'text/plain': ['<Figure>']})]


def chapter(name, *extra):
    "A small chapter without faults."
    cells = [cell('markdown', f'# {name}\n\n> What {name} is for.'), cell('code', f'#| default_exp {name}'),
             cell('code', '#| export\nimport math'),
             cell('code', f'#| export\ndef {name}(\n    x, # number\n): # number\n    "Its double."\n    return 2*x'),
             cell('code', f'assert {name}(2) == 4'),
             cell('code', 'plot_it(3)', outputs=figure()), *extra]
    for i, c in enumerate(cells): c['id'] = c['id'] or f'{name}{i}'
    return dict(cells=cells, metadata=dict(kernelspec=dict(display_name='python3', language='python', name='python3')),
                nbformat=4, nbformat_minor=5)


def put(path, nb):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + '\n', encoding='utf-8')


@pytest.fixture
def nbs(tmp_path):
    folder = tmp_path/'nbs'
    put(folder/'00_low.ipynb', chapter('low'))
    put(folder/'05_mid.ipynb', chapter('mid', cell('code', '#| export\nfrom fmri_ldm.low import low\nfrom fmri_ldm import __version__'),
                                       cell('code', 'from fmri_ldm.mid import mid\nassert mid(1) == 2')))
    put(folder/'10_high.ipynb', chapter('high', cell('code', '#| export\nimport fmri_ldm.mid as m\nfrom fmri_ldm import low')))
    put(folder/'index.ipynb', dict(chapter('index'), cells=[cell('markdown', '# Title', id='a')]))
    names = ''.join(f'      - {p.name}\n' for p in sorted(folder.glob('*.ipynb')))
    (folder/'sidebar.yml').write_text(f'website:\n  sidebar:\n    contents:\n{names}', encoding='utf-8')
    return folder


def change(path, func):
    nb = json.loads(path.read_text(encoding='utf-8'))
    func(nb)
    put(path, nb)


# order
def test_order_accepts(nbs): assert tool('check_order').main(nbs) == 0


@pytest.mark.parametrize('source', [
    '#| export\nfrom fmri_ldm.high import high', '#| export\nimport fmri_ldm.high', '#| export\nfrom fmri_ldm import high',
    '#| export\nfrom .high import high', '#| export\nfrom . import high', 'from fmri_ldm.high import *',
    '#| export\ndef f():\n    "Later."\n    from fmri_ldm.high import high', '#| export\nfrom fmri_ldm.mid import mid',
    '%matplotlib inline\nimport fmri_ldm.high', '%%time\nimport fmri_ldm.high', '#| export\nfrom fmri_ldm.nowhere import x'])
def test_order_refuses(nbs, capsys, source):
    change(nbs/'05_mid.ipynb', lambda nb: nb['cells'].append(cell('code', source, id='bad')))
    assert tool('check_order').main(nbs) == 1
    assert '05_mid.ipynb, cell bad' in capsys.readouterr().out


def guide(nbs, source, *extra):
    "A chapter that exports nothing, between the others."
    put(nbs/'07_guide.ipynb', dict(chapter('guide'), cells=[cell('markdown', '# Guide\n\n> All of it.', id='a'), cell('code', source, id='bad'), *extra]))


def test_order_lets_a_guide_import_all(nbs):
    guide(nbs, 'from fmri_ldm.low import low\nfrom fmri_ldm.high import high\nimport fmri_ldm.mid')
    assert tool('check_order').main(nbs) == 0


@pytest.mark.parametrize('source, extra', [
    ('from fmri_ldm.nowhere import x', ()), ('from fmri_ldm.guide import x', ()),          # nobody exports these
    ('from fmri_ldm.high import high', [cell('code', '#| export\nimport math', id='b')]),   # it exports: the rule holds
    ('from fmri_ldm.high import high', [cell('code', '#| default_exp guide', id='b')])])
def test_order_refuses_a_guide(nbs, capsys, source, extra):
    guide(nbs, source, *extra)
    assert tool('check_order').main(nbs) == 1
    assert '07_guide.ipynb, cell bad' in capsys.readouterr().out


def test_order_knows_who_exports(nbs, capsys):
    guide(nbs, 'from fmri_ldm.high import high')
    change(nbs/'10_high.ipynb', lambda nb: nb['cells'].append(cell('code', 'from fmri_ldm.guide import x', id='bad')))
    assert tool('check_order').main(nbs) == 1
    assert '10_high.ipynb, cell bad: imports guide, which no notebook exports' in capsys.readouterr().out


# notebooks
def test_notebooks_accepts(nbs, capsys):
    assert tool('check_notebooks').main(nbs) == 0, capsys.readouterr().out


def add(kind, source, **kw): return lambda nb: nb['cells'].append(cell(kind, source, **{'id': 'bad', **kw}))
def output(**kw): return add('code', '1', outputs=[dict(dict(metadata={}, output_type='display_data'), **kw)])
def first(source): return lambda nb: nb['cells'][0].update(source=source)
def swap(i, source): return lambda nb: nb['cells'][i].update(source=source)


FAULTS = {
    'metadata has widgets': lambda nb: nb['metadata'].update(widgets={}),
    'metadata has language_info': lambda nb: nb['metadata'].update(language_info={}),
    'same id': lambda nb: nb['cells'][1].update(id=nb['cells'][0]['id']),
    'without an id': lambda nb: nb['cells'][1].pop('id'),
    'has metadata': lambda nb: nb['cells'][1].update(metadata=dict(scrolled=True)),
    'stores an execution count': lambda nb: nb['cells'][1].update(execution_count=3),
    'stores an error': output(output_type='error', ename='E', evalue='', traceback=[]),
    'stores stderr': output(output_type='stream', name='stderr', text='careful'),
    'stores a widget': output(data={'application/vnd.jupyter.widget-view+json': {}}),
    "machine in its output": output(output_type='stream', name='stdout', text=['saved /tmp/', 'x\n']),
    "machine in its output ": output(data={'text/html': '<a href="/root/x">x</a>'}),
    "names a path": add('code', "p = '/home/me/x'"),
    "names a path ": add('markdown', 'look in /work/main'),
    'draws, but has no output': add('code', 'plot_it(4)'),
    'longer than 100': add('code', f'#| export\nx = {"1"*100}'),
    'f has no docstring': add('code', '#| export\ndef f(x): return x'),
    'C has no docstring': add('code', '#| export\nclass C: pass'),
    'begin with a title': first('text\n\n> sub'),
    'no subtitle': first('# Title'),
    'default_exp': swap(1, '#| default_exp other'),
    'code cells assert': swap(4, 'print(1)'),
    'KB; 400 are allowed': lambda nb: nb['cells'][5]['outputs'][0]['data'].update({'image/png': 'A'*400_001}),
}


@pytest.mark.parametrize('message', FAULTS)
def test_notebooks_refuses(nbs, capsys, message):
    change(nbs/'00_low.ipynb', FAULTS[message])
    assert tool('check_notebooks').main(nbs) == 1
    out = capsys.readouterr().out
    assert '00_low.ipynb' in out and message.strip() in out and ' 1 problems' in out


def test_notebooks_sidebar(nbs, capsys):
    put(nbs/'11_more.ipynb', chapter('more'))
    (nbs/'10_high.ipynb').unlink()
    assert tool('check_notebooks').main(nbs) == 1
    out = capsys.readouterr().out
    assert '11_more.ipynb is not listed' in out and '10_high.ipynb is listed, but is not there' in out


def test_notebooks_apps_may_be_larger(nbs):
    app = chapter('app')
    app['cells'][5]['outputs'][0]['data']['image/png'] = 'A'*500_000
    put(nbs/'apps/60_app.ipynb', app)
    with open(nbs/'sidebar.yml', 'a', encoding='utf-8') as f: f.write('      - apps/60_app.ipynb\n')
    assert tool('check_notebooks').main(nbs) == 0


# README
def test_readme(nbs, capsys):
    readme, root = tool('readme'), nbs.parent
    stream = dict(output_type='stream', name='stdout', text=['4\n'])
    picture = dict(output_type='display_data', metadata={}, data={'image/png': 'AAAA', 'text/plain': ['<Figure>']})
    cells = [cell('markdown', '# T\n[a](00_low.ipynb) [b](../docs/data.md) [c](https://x.org) [d](#t)', id='a'),
             cell('code', '#| hide\nsecret = 1', id='b'),
             cell('code', '#| eval: false\nprint(2 + 2)', id='c', outputs=[stream, picture])]
    put(nbs/'index.ipynb', dict(chapter('index'), cells=cells))
    assert readme.main(['--root', str(root), '--check']) == 1
    assert readme.main(['--root', str(root)]) == 0
    text = (root/'README.md').read_text(encoding='utf-8')
    assert '[a](nbs/00_low.ipynb) [b](docs/data.md) [c](https://x.org) [d](#t)' in text
    assert '```python\nprint(2 + 2)\n```\n\n```\n4\n```\n' in text
    assert 'secret' not in text and 'Figure' not in text and '#|' not in text
    assert readme.main(['--root', str(root), '--check']) == 0
    (root/'README.md').write_text(text.replace('4', '5'), encoding='utf-8')
    capsys.readouterr()
    assert readme.main(['--root', str(root), '--check']) == 1
    assert '+4' in capsys.readouterr().out


# sync
@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A project in sync, made by nbdev itself."
    root = tmp_path_factory.mktemp('project')
    for name in 'settings.ini', 'setup.py', 'pyproject.toml': shutil.copy(ROOT/name, root)
    put(root/'nbs/00_low.ipynb', chapter('low'))
    (root/'fmri_ldm').mkdir()
    (root/'fmri_ldm/__init__.py').write_text('__version__ = "0.1.0"\n', encoding='utf-8')
    for command in 'nbdev_clean', 'nbdev_export':
        subprocess.run([shutil.which(command, path=str(Path(sys.executable).parent)) or command], cwd=root, check=True)
    return root


def test_sync_accepts(project): assert tool('check_sync').main(project) == 0


@pytest.mark.parametrize('name, old, new, message', [
    ('fmri_ldm/low.py', '2*x', '3*x', 'fmri_ldm/low.py: differs'),
    ('nbs/00_low.ipynb', '"execution_count": null', '"execution_count": 7', 'nbs/00_low.ipynb: differs'),
    ('nbs/00_low.ipynb', '2*x', '3*x', 'fmri_ldm/low.py: differs'),
    ('fmri_ldm/old.py', '', 'x = 1\n', 'fmri_ldm/old.py: no notebook exports it')])
def test_sync_refuses(project, tmp_path, capsys, name, old, new, message):
    root = tmp_path/'copy'
    shutil.copytree(project, root)
    path = root/name
    text = path.read_text(encoding='utf-8') if path.exists() else ''
    path.write_text(text.replace(old, new, 1) if old else new, encoding='utf-8')
    assert tool('check_sync').main(root) == 1
    assert message in capsys.readouterr().out


# exit codes, as CI sees them
@pytest.mark.parametrize('name', ['check_order', 'check_notebooks'])
def test_exit_code(nbs, name):
    run = lambda: subprocess.run([sys.executable, str(ROOT/'tools'/f'{name}.py'), str(nbs)], capture_output=True).returncode
    assert run() == 0
    change(nbs/'05_mid.ipynb', lambda nb: nb['cells'].append(cell('code', "import fmri_ldm.high; p = '/tmp/x'", id='bad')))
    assert run() == 1


# the runner keeps what readers should see
def test_run_nbs(tmp_path):
    path = tmp_path/'00_low.ipynb'
    put(path, chapter('low', cell('code', 'import sys\nprint("kept"); print("dropped", file=sys.stderr); 3', id='x'),
                      cell('code', '#| eval: false\n1/0', id='y')))
    change(path, swap(5, 'pass'))
    command = [sys.executable, str(ROOT/'tools/run_nbs.py'), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    nb = json.loads(path.read_text(encoding='utf-8'))
    x, y = nb['cells'][-2:]
    assert [o['output_type'] for o in x['outputs']] == ['stream', 'execute_result'] and y['outputs'] == []
    assert x['outputs'][0]['text'] == ['kept\n'] and x['execution_count'] is None
    change(path, swap(5, '1/0'))
    before = path.read_text(encoding='utf-8')
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and 'ZeroDivisionError' in done.stderr
    assert path.read_text(encoding='utf-8') == before
