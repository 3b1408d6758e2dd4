"Archives of subjects, good and bad: make_npz_corpus(folder) -> [(name, 'ok' | 'warn' | 'bad:WORD')]."
import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib import format as npy


def member(array=None, *, descr=None, shape=None, data=None, fortran=False, version=1):
    "The bytes of a .npy file; header and data need not agree."
    if array is not None:
        buf = io.BytesIO()
        npy.write_array(buf, array, allow_pickle=True)
        return buf.getvalue()
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    text += ' '*(-(len(text) + 11) % 64) + '\n'
    return b'\x93NUMPY' + bytes([version, 0]) + struct.pack('<H', len(text)) + text.encode('latin1') + data


def pack(members, method=zipfile.ZIP_DEFLATED):
    "A zip archive with fixed dates."
    buf = io.BytesIO()
    with zipfile.ZipFile(buf, 'w') as z:
        for name, raw in members:
            z.writestr(zipfile.ZipInfo(name), raw, method, 9)
    return buf.getvalue()


def raw_zip(entries, *, n=None, directory=None):
    "A zip archive by hand: entries are dicts of what the two headers say."
    out, central = b'', b''
    for e in entries:
        name, packed = e['name'], e['packed']
        own = dict(flags=0, method=8, crc=zlib.crc32(e.get('data', b'')), size=len(e.get('data', b'')), length=len(packed), at=len(out)) | e
        inner = e.get('inner', name)
        common = struct.pack('<4H3L', own['flags'], own['method'], 0, 33, own['crc'], own['length'], own['size'])
        if 'at' not in e: out += b'PK\3\4' + struct.pack('<H', 20) + common + struct.pack('<2H', len(inner), 0) + inner + packed
        central += b'PK\1\2' + struct.pack('<2H', 20, 20) + common + struct.pack('<5H2L', len(name), 0, 0, 0, 0, 0, own['at']) + name
    central = central if directory is None else directory
    count = (len(entries) if n is None else n) & 0xffff
    return out + central + b'PK\5\6' + struct.pack('<4H2LH', 0, 0, count, count, len(central), len(out), 0)


def deflate(data):
    z = zlib.compressobj(9, wbits=-15)
    return z.compress(data) + z.flush()


def zeros(shape, descr, byte=b'\0'):
    "A deflated .npy of one byte repeated, made in pieces: (packed, crc, size)."
    head = member(descr=descr, shape=shape, data=b'')
    left = int(np.prod(shape, dtype=object))*np.dtype(descr).itemsize
    z, crc, size = zlib.compressobj(9, wbits=-15), zlib.crc32(head), len(head) + left
    packed, piece = [z.compress(head)], byte*2**22
    while left:
        part = piece[:min(left, len(piece))]
        left, crc = left - len(part), zlib.crc32(part, crc)
        packed.append(z.compress(part))
    return b''.join([*packed, z.flush()]), crc, size


def edit(raw, old, new):
    assert old in raw and len(old) == len(new)
    return raw.replace(old, new)


def make_npz_corpus(folder):
    "Write the archives; the same bytes every time."
    folder, rng, files = Path(folder), np.random.default_rng(7), {}
    folder.mkdir(parents=True, exist_ok=True)
    a, b = (rng.normal(size=(20, 15)).astype(np.float32) for _ in 'ab')
    run, finger = np.repeat([1, 2, 3, 4], 5), np.tile(['thumb', 'index', 'middle', 'ring', 'little'], 4)
    one = [('sub-1.npy', member(a)), ('sub-2.npy', member(b))]
    good, stored = pack(one), pack(one, zipfile.ZIP_STORED)
    npys = member(a)

    def put(name, raw, expected): files[name] = raw, expected
    def bad(name, array, word): put(name, pack([one[0], ('sub-2.npy', array)]), f'bad:{word}')

    # what must be read
    put('ok_deflated', good, 'ok')
    put('ok_stored', stored, 'ok')
    put('ok_betas', pack([('sub-1_betas.npy', npys), ('sub-1_run.npy', member(run)), ('sub-1_finger.npy', member(finger)),
                          ('sub-2_betas.npy', member(b)), ('sub-2_run.npy', member(run))]), 'ok')
    put('ok_plain_columns', pack([*one, ('sub-1_run.npy', member(run)), ('sub-1_age.npy', member(np.full(20, np.nan)))]), 'ok')
    put('ok_fortran', pack([('s.npy', member(np.asfortranarray(a)))]), 'ok')
    put('ok_big_endian', pack([('s.npy', member(a.astype('>f8')))]), 'ok')
    put('ok_float16', pack([('s.npy', member(a.astype('f2')))]), 'ok')
    put('ok_int16', pack([('s.npy', member((100*a).astype('>i2')))]), 'ok')
    put('ok_uint8_fortran', pack([('s.npy', member(np.asfortranarray((9*a).astype('i4').astype('u1'))))]), 'ok')
    put('ok_lengths_differ', pack([('x.npy', npys), ('y.npy', member(b[:7, :4]))]), 'ok')
    put('ok_header_v2', pack([('s.npy', b'\x93NUMPY\2\0' + struct.pack('<L', len(npys[10:128])) + npys[10:])]), 'ok')
    # what is read with a word
    flat = a.copy()
    flat[:, 3:6] = 2
    put('warn_constant_voxels', pack([one[1], ('sub-1.npy', member(flat))]), 'warn')
    put('warn_duplicate', pack([*one, ('sub-3.npy', npys)]), 'warn')
    # no archive, or a damaged one
    put('bad_empty_file', b'', 'bad:not a zip')
    put('bad_text', b'subject,age\n'*20, 'bad:not a zip')
    put('bad_bare_npy', npys, 'bad:single .npy')
    put('bad_pickle_file', b'\x80\x04]\x94.', 'bad:not a zip')
    put('bad_cut_in_half', good[:len(good)//2], 'bad:cut off')
    put('bad_byte_missing', good[:-1], 'bad:cut off')
    put('bad_byte_more', good + b'\0', 'bad:more follows')
    put('bad_head_missing', good[300:], 'bad:not a zip')
    put('bad_no_member', pack([]), 'bad:no array')
    put('bad_crc_stored', edit(stored, a.tobytes()[80:84], b'\0\1\2\3'), 'bad:checksum')
    put('bad_crc_deflated', raw_zip([dict(name=b'a.npy', data=npys, packed=deflate(npys), crc=1)]), 'bad:checksum')
    put('bad_deflate_code', raw_zip([dict(name=b'a.npy', data=npys, packed=b'\7' + deflate(npys))]), 'bad:damaged')
    put('bad_deflate_cut', raw_zip([dict(name=b'a.npy', data=npys, packed=deflate(npys)[:-9])]), 'bad:ends after')
    put('bad_deflate_more', raw_zip([dict(name=b'a.npy', data=npys, packed=deflate(npys) + b'xyz')]), 'bad:more data')
    put('bad_shifted_directory', stored[:40] + b'\0'*7 + stored[40:], 'bad:wrong place')
    put('bad_local_name', raw_zip([dict(name=b'a.npy', inner=b'b.npy', data=npys, packed=deflate(npys))]), 'bad:inside')
    put('bad_encrypted', raw_zip([dict(name=b'a.npy', data=npys, packed=deflate(npys), flags=1)]), 'bad:encrypted')
    put('bad_bzip2', pack(one, zipfile.ZIP_BZIP2), 'bad:deflated')
    put('bad_lzma', pack(one, zipfile.ZIP_LZMA), 'bad:deflated')
    # names
    for i, name in enumerate(['../a.npy', '/a.npy', 'b/a.npy', '..\\a.npy', 'C:a.npy', 'a\nb.npy', 'a\0.npy', '.npy']):
        put(f'bad_name_{i}', raw_zip([dict(name=name.encode(), data=npys, packed=deflate(npys))]), 'bad:name')
    put('bad_not_npy', pack([*one, ('readme.txt', b'hello')]), 'bad:not an .npy')
    put('bad_same_name', edit(good, b'sub-2.npy', b'sub-1.npy'), 'bad:twice')
    # arrays
    bad('bad_object', member(np.array([[1, 'a'], [2, None]], object)), 'pickle')
    bad('bad_structured', member(np.zeros((4, 5), [('x', 'f4'), ('y', 'i2')])), 'structured')
    bad('bad_complex', member(a.astype('c8')), 'complex')
    bad('bad_bool', member(a > 0), 'bool')
    bad('bad_datetime', member(np.zeros((4, 5), 'M8[s]')), 'datetime')
    bad('bad_strings', member(np.array([['a', 'b'], ['c', 'd']])), 'type')
    bad('bad_scalar', member(np.array(3.)), '0 dimensions')
    bad('bad_3d', member(np.zeros((3, 4, 5))), '3 dimensions')
    bad('bad_no_voxels', member(np.zeros((5, 0))), 'empty')
    bad('bad_no_times', member(np.zeros((0, 5))), 'empty')
    bad('bad_one_time', member(a[:1]), 'one time point')
    bad('bad_nan', member(np.where(a == a[3, 3], np.nan, a)), '1 values are not finite')
    bad('bad_inf', member(np.where(a > 1, np.inf, a)), 'not finite')
    bad('bad_too_large_for_float32', member(np.where(a > 1, 1e300, a.astype('f8'))), 'not finite')
    bad('bad_zero', member(0*a), 'every value is 0')
    bad('bad_constant', member(0*a + 3), 'every value is 3')
    bad('bad_frozen', member(np.tile(a[:1], (9, 1))), 'nothing varies')
    bad('bad_more_rows', member(descr='<f4', shape=(21, 15), data=a.tobytes()), 'holds 1200 bytes')
    bad('bad_fewer_rows', member(descr='<f4', shape=(19, 15), data=a.tobytes()), 'holds 1200 bytes')
    bad('bad_negative', member(descr='<f4', shape=(-20, -15), data=a.tobytes()), 'header')
    bad('bad_header', b'\x93NUMPY\1\0\x40\0' + b'('*64, 'header')
    bad('bad_code_in_header', member(descr='<f4', shape='(__import__("os").getpid(), 2)', data=b''), 'header')
    bad('bad_version', npys[:6] + b'\7\0' + npys[8:], 'header')
    bad('bad_no_header', b'', 'header')
    put('bad_column_length', pack([*one, ('sub-1_run.npy', member(run[:-1]))]), 'bad:19 values')
    put('bad_column_owner', pack([*one, ('sub-9_run.npy', member(run))]), 'bad:no subject')
    put('bad_column_object', pack([*one, ('sub-1_run.npy', member(run.astype(object)))]), 'bad:pickle')
    put('bad_column_text', pack([*one, ('sub-1_name.npy', member(descr='<U1', shape=(20,), data=b'\xff'*80))]), 'bad:text')
    put('bad_only_columns', pack([('sub-1_run.npy', member(run))]), 'bad:no matrix')
    # bombs
    big = member(descr='<f4', shape=(10**5, 10**5), data=b'')
    put('bomb_header', raw_zip([dict(name=b'a.npy', data=big, packed=deflate(big))]), 'bad:GiB')
    put('bomb_size', raw_zip([dict(name=b'a.npy', data=npys, packed=deflate(npys), size=2**31)]), 'bad:zip bomb')
    packed, crc, size = zeros((1000, 5*10**4), '<f4')
    put('bomb_zeros', raw_zip([dict(name=b'a.npy', packed=packed, crc=crc, size=size)]), 'bad:every value is 0')
    put('bomb_longer', raw_zip([dict(name=b'a.npy', packed=packed, crc=crc, size=2*10**8)]), 'bad:holds')
    small = member(descr='<f4', shape=(1000, 3*10**4), data=b'')
    put('bomb_longer_and_agreed', raw_zip([dict(name=b'a.npy', packed=zeros_behind(small), crc=0, size=len(small) + 12*10**7)]), 'bad:stated')
    packed, crc, size = b'\0'*1_060_000, 0, 2**30   # never inflated
    put('bomb_together', raw_zip([dict(name=b'%d.npy' % i, packed=packed, crc=crc, size=size) for i in range(5)]), 'bad:GiB')
    put('bomb_overlap', raw_zip([dict(name=b'a.npy', packed=packed, crc=crc, size=size),
                                 *[dict(name=b'%d.npy' % i, packed=packed, crc=crc, size=size, at=0) for i in range(3)]]), 'bad:overlaps')
    put('bomb_members', raw_zip([dict(name=b'%d.npy' % i, data=b'', packed=b'\3\0') for i in range(10_001)]), 'bad:too many')
    put('bomb_directory', raw_zip([dict(name=b'a.npy', data=npys, packed=deflate(npys))], directory=b'PK\1\2' + b'\0'*(2**22)), 'bad:too many')
    put('bomb_hidden_members', raw_zip([dict(name=b'a', data=b'', packed=b'\3\0') for _ in range(20_000)], n=1), 'bad:too many')
    packed, crc, size = zeros((2, 2**23 + 1), '<f4')
    put('bomb_voxels', raw_zip([dict(name=b'a.npy', packed=packed, crc=crc, size=size)]), 'bad:too large')

    out = []
    for name, (raw, expected) in files.items():
        (folder/f'{name}.npz').write_bytes(raw)
        out.append((f'{name}.npz', expected))
    (folder/'bad_folder.npz').mkdir(exist_ok=True)
    return [*out, ('bad_folder.npz', 'bad:folder'), ('bad_absent.npz', 'bad:no such file')]


def zeros_behind(head, n=2*10**8):
    "A deflated header with more zeros behind it than it speaks of."
    z = zlib.compressobj(9, wbits=-15)
    return b''.join([z.compress(head), *[z.compress(bytes(2**22)) for _ in range(n//2**22)], z.flush()])
