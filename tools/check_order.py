"""A notebook imports only modules of lower-numbered notebooks. Notebooks that export nothing, journeys and index.ipynb
may import all.

python tools/check_order.py [NBS_FOLDER]
"""
import ast
import json
import re
import sys
from pathlib import Path


def imported(source, lib='fmri_ldm'):
    "Names of our modules that a cell imports, at the top or inside a function."
    source = re.sub(r'(?m)^(\s*)[%!].*$', r'\1pass', source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level: names = [f'{lib}.{node.module or ""}']
        elif isinstance(node, ast.ImportFrom) and node.module == lib: names = [f'{lib}.{a.name}' for a in node.names]
        elif isinstance(node, ast.ImportFrom): names = [node.module]
        else: continue
        yield from (n.split('.')[1] for n in names if n.startswith(f'{lib}.') and not n.startswith(f'{lib}._'))


def code_cells(book):
    "(id, source) of the cells that are Python."
    for cell in json.loads(book.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or re.match(r'%%(bash|sh|html|javascript|writefile)', source): continue
        yield cell['id'], source


def exports(cells): return any(re.search(r'(?m)^#\|\s*(exports?|default_exp)\b', source) for _, source in cells)


def main(folder=Path(__file__).resolve().parents[1]/'nbs'):
    books = sorted(Path(folder).glob('[0-9]*.ipynb'))  # 23_x < 23a_y < 24_z also as text
    cells = {b: list(code_cells(b)) for b in books}
    rank, bad = {b.stem.split('_', 1)[1]: i for i, b in enumerate(books) if exports(cells[b])}, 0
    for i, book in enumerate(books):
        top = i if exports(cells[book]) else len(books) - 1   # nothing can depend on what exports nothing
        for cell, source in cells[book]:
            last = top - 1 if source.startswith('#| export') else top  # a demo may import its own chapter
            for name in imported(source):
                if rank.get(name, len(books)) <= last: continue
                bad += 1
                print(f'{book.name}, cell {cell}: imports {name}, '
                      + ('which does not come earlier' if name in rank else 'which no notebook exports'))
    print(f'{len(books)} notebooks: ' + (f'{bad} imports out of order' if bad else 'in order'))
    return bool(bad)


if __name__ == '__main__': sys.exit(main(*sys.argv[1:2]))
