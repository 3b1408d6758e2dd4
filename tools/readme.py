"""Write README.md from nbs/index.ipynb.   python tools/readme.py [--check] [--root FOLDER]

Markdown cells stand as they are, code cells as fenced blocks followed by the text that they printed. Hidden
cells and figures are left out; relative links are turned from nbs/ to the root.
"""
import argparse
import difflib
import json
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = '<!-- Written by tools/readme.py from nbs/index.ipynb: edit that. -->'


def text(x): return x if isinstance(x, str) else ''.join(x or ())


def turn_links(source):
    "Relative links of a notebook in nbs/, as seen from the root."
    def turn(m):
        link = m[2]
        if re.match(r'[a-z]+:|#|/', link): return m[0]
        return f'{m[1]}{posixpath.normpath(posixpath.join("nbs", link))}{m[3]}'
    return re.sub(r'(\]\()([^)\s]+)(\))', turn, source)


def fenced(body, language=''):
    ticks = '`' * max([3] + [len(t) + 1 for t in re.findall(r'`{3,}', body)])
    return f'{ticks}{language}\n{body.rstrip()}\n{ticks}'


def shown(out):
    "The text of one output, or nothing."
    data = out.get('data', {})
    if out['output_type'] == 'stream': return fenced(text(out['text'])) if out['name'] == 'stdout' else ''
    if out['output_type'] == 'error' or any(k.startswith(('image/', 'application/')) for k in data): return ''
    if 'text/markdown' in data: return turn_links(text(data['text/markdown']))
    return fenced(text(data['text/plain'])) if 'text/plain' in data else ''


def render(nb):
    "README.md as text."
    parts = [NOTE]
    for cell in nb['cells']:
        source = text(cell['source']).strip()
        flags = re.findall(r'(?m)^#\|\s*(\S+)', source)
        if not source or {'hide', 'default_exp'} & set(flags): continue
        if cell['cell_type'] == 'markdown': parts.append(turn_links(source))
        if cell['cell_type'] != 'code': continue
        body = re.sub(r'(?m)^#\|.*\n?', '', source).strip()
        if body and not {'echo:', 'hide_input'} & set(flags): parts.append(fenced(body, 'python'))
        if 'hide_output' not in flags: parts += [s for s in map(shown, cell.get('outputs', [])) if s]
    return '\n\n'.join(parts) + '\n'


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--check', action='store_true', help='write nothing; exit with 1 if README.md differs')
    p.add_argument('--root', type=Path, default=ROOT, help='folder of README.md and nbs/')
    args = p.parse_args(argv)
    readme = args.root/'README.md'
    new = render(json.loads((args.root/'nbs/index.ipynb').read_text(encoding='utf-8')))
    old = readme.read_text(encoding='utf-8') if readme.exists() else ''
    if not args.check:
        readme.write_text(new, encoding='utf-8', newline='\n')
        print(f'{readme.name} written')
        return 0
    sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), 'README.md', 'index.ipynb', n=1))
    print('README.md ' + ('is what index.ipynb says' if old == new else 'differs: run python tools/readme.py'))
    return int(old != new)


if __name__ == '__main__': sys.exit(main())
