"""Check what nbdev does not: what the notebooks store, how large they are, whether chapters test and document.

python tools/check_notebooks.py [NBS_FOLDER]
"""
import ast
import json
import re
import sys
from pathlib import Path

KB = {'chapter': 400, 'app': 1200, 'all': 12000}
MACHINE = re.compile(r'(?<![\w.])/(?:tmp|root|home|work|Users)/|[A-Z]:\\+Users')
FLAG = re.compile(r'(?m)^#\|\s*(.+?)\s*$')


def text(x): return x if isinstance(x, str) else ''.join(x or ())


def tree(source):
    "The cell as a syntax tree, magics left out; None where it is not Python."
    if re.match(r'%%(?!time|capture)', source): return None
    try: return ast.parse(re.sub(r'(?m)^(\s*)[%!].*$', r'\1pass', source))
    except SyntaxError: return None


def called(node):
    "Name of the function that a call calls."
    return getattr(node.func, 'id', getattr(node.func, 'attr', ''))


def asserts(source):
    "Whether a cell can fail because something is not true."
    nodes = list(ast.walk(tree(source) or ast.Module([], [])))
    names = {called(n) for n in nodes if isinstance(n, ast.Call)}
    return any(isinstance(n, ast.Assert) for n in nodes) or any(
        n.startswith('test_') or n in ('test', 'ExceptionExpected') for n in names)


def draws(source):
    "Whether a cell draws when it runs (not only in a function that it defines)."
    top = [n for n in (tree(source) or ast.Module([], [])).body
           if not isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    names = {called(n) for t in top for n in ast.walk(t) if isinstance(n, ast.Call)}
    return 'close' not in names and any(n.startswith('plot') or n in ('imshow', 'subplots') for n in names)


def only_imports(source):
    body = (tree(source) or ast.Module([ast.Pass()], [])).body
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body)


def check_output(out):
    "Problems of one stored output."
    kind, data = out['output_type'], out.get('data', {})
    if kind == 'error': yield f'stores an error ({out.get("ename")})'
    if kind == 'stream' and out.get('name') == 'stderr': yield 'stores stderr'
    if 'application/vnd.jupyter.widget-view+json' in data: yield 'stores a widget'
    if out.get('execution_count') is not None: yield 'stores an execution count'
    words = [text(out.get('text'))] + [text(v) for k, v in data.items() if k.startswith('text/')]
    if any(MACHINE.search(w) for w in words): yield "shows a path of somebody's machine in its output"


def check_cell(cell):
    "Problems of one cell, whatever notebook it is in."
    source = text(cell['source'])
    if cell.get('metadata'): yield f'has metadata ({", ".join(cell["metadata"])}); run nbdev_clean'
    if MACHINE.search(source): yield "names a path of somebody's machine"
    if cell['cell_type'] != 'code': return
    if cell.get('execution_count') is not None: yield 'stores an execution count'
    for out in cell.get('outputs', []): yield from check_output(out)
    flags = FLAG.findall(source)
    if not flags and draws(source) and not cell.get('outputs'): yield 'draws, but has no output; run tools/run_nbs.py'
    if 'export' not in flags and 'exports' not in flags: return
    long = [n for n, line in enumerate(source.splitlines(), 1) if len(line) > 100]
    if long: yield f'line {long[0]} is longer than 100 characters'
    for node in (tree(source) or ast.Module([], [])).body:
        public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_')
        if public and not ast.get_docstring(node): yield f'{node.name} has no docstring'


def check_chapter(path, cells):
    "Problems of a chapter as a whole."
    sources = [text(c['source']) for c in cells]
    first = sources[0] if cells else ''
    if not re.match(r'# \S', first): yield 'does not begin with a title'
    if not re.search(r'(?m)^> \S', first): yield 'has no subtitle (> ...) in its first cell'
    name = path.stem.split('_', 1)[1]
    flags = [f for s in sources for f in FLAG.findall(s)]
    wanted = {f'default_exp {name}', f'default_exp __{name}__'}
    silent = not any(re.match(r'(default_exp|exports?\b)', f) for f in flags)      # it exports nothing, and says so by silence
    if not wanted & set(flags) and not silent: yield f'has no `#| default_exp {name}`'
    code = [text(c['source']) for c in cells if c['cell_type'] == 'code']
    code = [s for s in code if not re.search(r'(?m)^#\|\s*(default_exp|eval: *false)', s) and not only_imports(s)]
    share = sum(map(asserts, code))/max(len(code), 1)
    if share < .25: yield f'only {share:.0%} of {len(code)} code cells assert something; a quarter should'


def check_notebook(path, nbs):
    "Problems of one notebook."
    nb = json.loads(path.read_text(encoding='utf-8'))
    extra = set(nb['metadata']) - {'kernelspec'}
    if extra: yield f'metadata has {", ".join(sorted(extra))}; only kernelspec may stay'
    ids = [c.get('id') for c in nb['cells']]
    if None in ids: yield 'has cells without an id; run nbdev_clean'
    elif len(set(ids)) < len(ids): yield 'has two cells with the same id'
    kind = 'chapter' if path.parent == nbs else 'app'
    kb = path.stat().st_size/1000
    if kb > KB[kind]: yield f'{kb:.0f} KB; {KB[kind]} are allowed'
    for cell in nb['cells']:
        for problem in check_cell(cell): yield f'cell {cell.get("id")}: {problem}'
    if kind == 'chapter' and path.stem != 'index': yield from check_chapter(path, nb['cells'])


def check_sidebar(paths, nbs):
    "The sidebar of the site lists every notebook, and no other."
    sidebar = nbs/'sidebar.yml'
    if not sidebar.exists(): return
    listed = set(re.findall(r'[\w./-]+\.ipynb', sidebar.read_text(encoding='utf-8')))
    here = {p.relative_to(nbs).as_posix() for p in paths}
    for p in sorted(here - listed): yield f'{p} is not listed'
    for p in sorted(listed - here): yield f'{p} is listed, but is not there'


def main(folder=Path(__file__).resolve().parents[1]/'nbs'):
    nbs = Path(folder)
    paths = sorted(p for p in nbs.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts and '_proc' not in p.parts)
    problems = [f'{p.relative_to(nbs)}: {x}' for p in paths for x in check_notebook(p, nbs)]
    problems += [f'sidebar.yml: {x}' for x in check_sidebar(paths, nbs)]
    kb = sum(p.stat().st_size for p in paths)/1000
    if kb > KB['all']: problems.append(f'all notebooks: {kb:.0f} KB; {KB["all"]} are allowed')
    for p in problems: print(p)
    print(f'{len(paths)} notebooks, {kb:.0f} KB: {len(problems)} problems')
    return bool(problems)


if __name__ == '__main__': sys.exit(main(*sys.argv[1:2]))
