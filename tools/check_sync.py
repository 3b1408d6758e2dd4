"""Check that cleaning and exporting the notebooks would change nothing.   python tools/check_sync.py [ROOT]

Runs nbdev_clean and nbdev_export in a copy and compares it with the tree, byte for byte.
"""
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SETTINGS = ('settings.ini', 'setup.py', 'pyproject.toml')


def files(root):
    "What the two commands read and write, as bytes by name."
    found = [root/s for s in SETTINGS] + sorted((root/'fmri_ldm').rglob('*.py')) + sorted((root/'nbs').rglob('*.ipynb'))
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in found
            if p.exists() and '.ipynb_checkpoints' not in p.parts}


def main(root=Path(__file__).resolve().parents[1]):
    root = Path(root).resolve()
    here = files(root)
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/'copy'
        for name, data in here.items():
            if name.startswith('fmri_ldm/') and name != 'fmri_ldm/__init__.py': continue  # a leftover module must show
            (copy/name).parent.mkdir(parents=True, exist_ok=True)
            (copy/name).write_bytes(data)
        for command in 'nbdev_clean', 'nbdev_export':
            tool = shutil.which(command, path=str(Path(sys.executable).parent)) or command
            done = subprocess.run([tool], cwd=copy, capture_output=True, text=True)
            if done.returncode: print(done.stderr[-2000:], f'{command} failed', sep='\n'); return 1
        there = files(copy)
    bad = sorted(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
    for n in bad: print(f'{n}: ' + ('no notebook exports it' if n not in there else 'missing' if n not in here else 'differs'))
    print('in sync' if not bad else f'{len(bad)} files out of sync: run nbdev_clean && nbdev_export')
    return int(bool(bad))


if __name__ == '__main__': sys.exit(main(*sys.argv[1:2]))
