"""Bytes of good files are changed, lost, doubled and moved: `fmri_ldm check` says yes or says no, and never fails.

FMRI_LDM_FUZZ=2000 pytest tests/test_fuzz.py     more examples of each kind than the usual 120
"""
import contextlib
import gzip
import io
import os
import time
import warnings
import zipfile

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmri_ldm.cli import main

N = int(os.environ.get('FMRI_LDM_FUZZ', 120))
x = np.random.default_rng(0).normal(size=(5, 6, 4)).astype(np.float32)


def nifti(img):
    buffer = io.BytesIO()
    img.to_file_map({'image': nib.FileHolder(fileobj=buffer)})
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


NII = nifti(nib.Nifti1Image(x, np.diag([2., 2, 2, 1])))
NII2 = nifti(nib.Nifti2Image((100*x).astype(np.int16), np.diag([-2., 2, 2, 1])))
BOLD = nifti(nib.Nifti1Image(np.stack([100 + x]*6, -1) + np.arange(6, dtype=np.float32), np.eye(4)))
NPZ = npz(ann=x.reshape(20, 6), bob=2*x.reshape(20, 6))
TABLE = b'path\tlabel\tsubject\tvolume\na.nii\tlh\tann\t\nb.nii\trh\t"bob"\t\n'
EVENTS = b'onset\tduration\ttrial_type\n0\t2\tlh\n4\t2\trh\n'
PEOPLE = b'participant_id\tage\nsub-a\t20\nsub-b\tn/a\n'
CONFIG = b'seed: 3\ndata: {labels: [lh, rh]}\ntrain_denoiser:\n  lr: 1e-3\n'

changes = st.lists(st.tuples(st.sampled_from(['flip', 'set', 'cut', 'drop', 'double', 'insert', 'number']),
                             st.floats(0, 1), st.integers(0, 255), st.integers(1, 12)), min_size=1, max_size=4)


def mutate(raw, edits):
    "Apply edits at relative places."
    raw = bytearray(raw)
    for kind, place, value, length in edits:
        at = int(place*max(len(raw) - 1, 0))
        if kind == 'flip' and raw: raw[at] ^= 1 << value % 8
        elif kind == 'set' and raw: raw[at] = value
        elif kind == 'cut': del raw[at:]
        elif kind == 'drop': del raw[at:at + length]
        elif kind == 'double': raw[at:at] = raw[at:at + length]
        elif kind == 'insert': raw[at:at] = bytes([value])*length
        elif kind == 'number': raw[at:at + 4] = (value*16843009).to_bytes(4, 'little')
    return bytes(raw)


def head_mutate(raw, edits): return mutate(raw[:352], edits)[:352].ljust(352, b'\0') + raw[352:]


def zip_again(raw, edits):
    "Change the array inside a zip that is whole."
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as a, zipfile.ZipFile(out, 'w') as b:
        for name in a.namelist(): b.writestr(name, mutate(a.read(name), edits))
    return out.getvalue()


def verdict(path):
    "check must end in time, with 0 or 2, and with one error line if 2."
    out, err, start = io.StringIO(), io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        code = main(['check', str(path), '--json'])
    text = err.getvalue()
    assert code in (0, 2), text
    assert 'Traceback' not in text and '--debug' not in text, text
    assert len([line for line in text.splitlines() if line.startswith('error: ')]) == (code == 2), text
    assert time.monotonic() - start < 20
    return code


KINDS = {
    'nii': lambda d, e: (d/'a.nii', mutate(NII, e)), 'header': lambda d, e: (d/'a.nii', head_mutate(NII, e)),
    'nifti2': lambda d, e: (d/'a.nii', mutate(NII2, e)), 'gz': lambda d, e: (d/'a.nii.gz', mutate(gzip.compress(NII, mtime=0), e)),
    'inside_gz': lambda d, e: (d/'a.nii.gz', gzip.compress(head_mutate(NII, e))), 'bold': lambda d, e: (d/'a.nii', head_mutate(BOLD, e)),
    'npz': lambda d, e: (d/'a.npz', mutate(NPZ, e)), 'inside_npz': lambda d, e: (d/'a.npz', zip_again(NPZ, e)),
    'config': lambda d, e: (d/'a.yaml', mutate(CONFIG, e)), 'manifest': lambda d, e: (d/'manifest.tsv', mutate(TABLE, e)),
    'csv': lambda d, e: (d/'manifest.csv', mutate(TABLE.replace(b'\t', b','), e)), 'people': lambda d, e: (d/'participants.tsv', mutate(PEOPLE, e)),
    'events': lambda d, e: (d/'sub-1_task-m_events.tsv', mutate(EVENTS, e)), 'volumes': lambda d, e: (d/'volumes.tsv', mutate(b'volume\tlabel\n' + b''.join(b'%d\tlh\n' % i for i in range(6)), e))}


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('fuzz')


@pytest.mark.parametrize('kind', KINDS)
def test_fuzz(kind, folder):
    d, codes = folder/kind, []
    d.mkdir()
    if kind in ('manifest', 'csv'): names = {'a.nii': NII, 'b.nii': NII2}
    elif kind == 'people': names = {'sub-a_T1w.nii': NII, 'sub-b_T1w.nii': NII2}
    elif kind == 'events': names = {'sub-1_task-m_bold.nii': BOLD}
    elif kind == 'volumes': names = {'bold.nii': BOLD}
    else: names = {}
    for n, raw in names.items(): (d/n).write_bytes(raw)

    @settings(max_examples=N, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(changes)
    def one(edits):
        path, raw = KINDS[kind](d, edits)
        path.write_bytes(raw)
        codes.append(verdict(d if names else path))

    one()
    assert 2 in codes  # some were refused
