"""Execute notebooks in order and store their outputs as readers will see them.

python tools/run_nbs.py                      every chapter, in the order of the numbers
python tools/run_nbs.py nbs/20_schedules.ipynb --figures figs
What is kept: figures, printed text, tables. What is dropped: stderr (warnings), progress bars, widgets,
execution counts.
"""
import argparse
import base64
import os
import re
import sys
from pathlib import Path

import nbformat
from jupyter_client.manager import start_new_kernel

ROOT = Path(__file__).resolve().parents[1]


def keep(output):
    "Whether readers should see this output."
    if output.output_type == 'stream': return output.name == 'stdout'
    data = output.get('data', {})
    bar = re.search(r'<progress|progress \{', data.get('text/html', ''))
    return not bar and 'application/vnd.jupyter.widget-view+json' not in data


def gather(outputs, msg):
    "Add what the kernel says to the outputs of a cell, as a notebook would."
    kind, content = msg['msg_type'], msg['content']
    if kind == 'clear_output': outputs.clear()
    if kind == 'update_display_data':
        name = content.get('transient', {}).get('display_id')
        for shown, out in outputs:
            if name and shown == name: out.data = nbformat.from_dict(content['data'])
    if kind not in ('stream', 'display_data', 'execute_result', 'error'): return
    out = nbformat.v4.output_from_msg(msg)
    last = outputs[-1][1] if outputs else None
    if kind == 'stream' and last is not None and last.get('name') == out.name: last.text += out.text
    else: outputs.append((content.get('transient', {}).get('display_id'), out))


def run_cell(client, source, timeout):
    "Run one cell; give its outputs. An error in it stops everything."
    outputs = []
    reply = client.execute_interactive(source, timeout=timeout, allow_stdin=False,
                                       output_hook=lambda msg: gather(outputs, msg))
    content = reply['content']
    if content['status'] == 'ok': return [o for _, o in outputs]
    trace = re.sub(r'\x1b\[[0-9;]*m', '', '\n'.join(content.get('traceback', [])))
    raise SystemExit(f'{source}\n{"-" * 40}\n{trace}')


def slim(png):
    "The same picture with 256 colours of its own, if nobody could see the difference; base64 in, base64 out."
    from io import BytesIO
    import numpy as np
    from PIL import Image
    old = Image.open(BytesIO(base64.b64decode(png))).convert('RGBA')
    flat = Image.new('RGBA', old.size, 'white')
    flat.alpha_composite(old)
    few, out = flat.convert('RGB').quantize(256, dither=Image.Dither.NONE), BytesIO()
    far = np.abs(np.asarray(few.convert('RGB'), int) - np.asarray(flat.convert('RGB'), int)).max(-1)
    few.save(out, 'png', optimize=True)
    new = base64.b64encode(out.getvalue()).decode()
    return new if far.mean() < 1 and np.quantile(far, .999) < 12 and len(new) < len(png) else png


def execute(path, figures=None, timeout=1800):
    "Run one notebook in a fresh kernel, in its own folder, and write it back."
    nb = nbformat.read(path, as_version=4)
    manager, client = start_new_kernel(
        kernel_name='python3', cwd=str(path.parent), extra_arguments=['--log-level=ERROR'])
    try:
        for n, cell in enumerate(nb.cells):
            cell.metadata.pop('execution', None)
            if cell.cell_type != 'code': continue
            cell.execution_count = None
            if re.search(r'(?m)^#\|\s*eval:\s*false', cell.source): continue
            cell.outputs = [o for o in run_cell(client, cell.source, timeout) if keep(o)]
            for m, out in enumerate(cell.outputs):
                if out.output_type == 'execute_result': out.execution_count = None
                png = out.get('data', {}).get('image/png')
                if png: png = out.data['image/png'] = slim(png)
                if figures and png:
                    Path(figures).mkdir(parents=True, exist_ok=True)
                    (Path(figures)/f'{n:03d}_{m}.png').write_bytes(base64.b64decode(png))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    nb.metadata.pop('widgets', None)
    nb.metadata.pop('language_info', None)
    nbformat.write(nb, path)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('notebooks', nargs='*', help='notebooks to run; all chapters by default')
    p.add_argument('--figures', help='also write every figure as PNG into this folder')
    args = p.parse_args()
    os.environ['PYTHONPATH'] = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    paths = [Path(n).resolve() for n in args.notebooks] or sorted((ROOT/'nbs').rglob('[0-9]*.ipynb'))
    for path in paths:
        print(f'run {path.name}', file=sys.stderr, flush=True)
        execute(path, args.figures)


if __name__ == '__main__': main()
