"Images as strangers send them: damaged, hostile, or odd but valid. `make_nifti_corpus` writes them."
import gzip
import os
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

SECRET = 'TOPSECRET'                        # in every text of every header: must never be shown
SHAPE = 12, 14, 10
ROWS = [[2, 0, 0, -11], [0, 2.5, 0, -16], [0, 0, 3, -14]]


def brain(shape=SHAPE, seed=0):
    "Noise in a box, 0 around it; a 4-D shape gives volumes that differ."
    out = np.zeros(shape)
    box = tuple(slice(n//6, n - n//6) if n > 2 else slice(None) for n in shape[:3])
    out[box] = np.random.default_rng(seed).normal(size=out[box].shape)
    return out


def nifti(data=None, dtype='f4', *, order='<', version=1, raw=None, extension=b'', magic=None, **fields):
    "The bytes of a NIfTI file; `fields` are written over a good header, `raw` over the voxels."
    data = brain() if data is None else data
    dtype = np.dtype(dtype).newbyteorder(order)
    cls = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    hdr = cls(endianness=order)
    hdr.set_data_shape(data.shape)
    hdr.set_data_dtype(dtype)
    offset = hdr.template_dtype.itemsize + 4 + len(extension)
    good = dict(pixdim=[1, 2, 2.5, 3, *[1]*4], srow_x=ROWS[0], srow_y=ROWS[1], srow_z=ROWS[2], sform_code=1,
                qoffset_x=-11, qoffset_y=-16, qoffset_z=-14, qform_code=1, xyzt_units=10, vox_offset=offset,
                scl_slope=1, scl_inter=0, descrip=f'\x1b[31m{SECRET}', aux_file=SECRET, intent_name=SECRET)
    if version == 1: good['db_name'] = SECRET
    head = hdr.structarr
    for k, v in {**good, **fields}.items():
        if isinstance(k, str) and '__' in k:
            name, at = k.split('__')
            head[name][int(at)] = v
        else: head[k] = v
    if magic is not None: head['magic'] = magic
    if raw is None: raw = np.asarray(data).astype(dtype).tobytes(order='F')
    flag = b'\1\0\0\0' if extension else b'\0\0\0\0'
    return head.tobytes() + flag + extension + raw


def pack(raw, level=6): return gzip.compress(raw, level, mtime=0)


def flip(raw, at, bit=0):
    raw = bytearray(raw)
    raw[at] ^= 1 << bit
    return bytes(raw)


def ext(text, size=64): return struct.pack('<2i', size, 6) + text.encode().ljust(size - 8, b'\0')


def oddities():
    "Files that are fine, or fine with a word of warning: (name, bytes, 'ok' or 'warn')."
    good, four, inf = nifti(), brain((*SHAPE, 3)), np.inf
    for kind in ('i1', 'u1', 'i2', 'u2', 'i4', 'u4', 'i8', 'u8', 'f4', 'f8'):
        whole = brain()*20 + (100 if kind[0] == 'u' else 0)
        yield f'type_{kind}.nii', nifti(whole, kind), 'ok'
        yield f'type_{kind}_swapped.nii.gz', pack(nifti(whole, kind, order='>')), 'ok'
    yield 'nifti2.nii', nifti(version=2), 'ok'
    yield 'nifti2_swapped.nii.gz', pack(nifti(version=2, order='>')), 'ok'
    yield 'UPPER.NII', good, 'ok'
    yield 'UPPER.NII.GZ', pack(good), 'ok'
    yield 'four.nii.gz', pack(nifti(four)), 'ok'
    yield 'four_msec.nii', nifti(four, xyzt_units=2 + 16, pixdim__4=2500), 'ok'
    yield 'four_bad_tr.nii', nifti(four, pixdim__4=np.nan), 'ok'
    yield 'one_of_four.nii', nifti(brain((*SHAPE, 1)), dim=[4, *SHAPE, 1, 1, 1, 1]), 'ok'
    yield 'ones_behind.nii', nifti(dim=[7, *SHAPE, 1, 1, 1, 1]), 'ok'
    yield 'rest_of_dim.nii', nifti(dim=[3, *SHAPE, 9, 9, -9, 0]), 'ok'
    yield 'slab.nii', nifti(brain((12, 14, 1))), 'ok'
    yield 'pencil.nii', nifti(brain((1, 14, 1))), 'ok'
    yield 'extension.nii', nifti(extension=ext(f'<p>{SECRET}</p>')), 'ok'
    yield 'extension_broken.nii.gz', pack(nifti(extension=struct.pack('<2i', -5, 99) + SECRET.encode()*5)), 'ok'
    yield 'offset_0.nii', nifti(vox_offset=0), 'ok'
    yield 'offset_0_nifti2.nii', nifti(version=2, vox_offset=0), 'ok'
    yield 'slope_0.nii', nifti(scl_slope=0, scl_inter=7), 'ok'
    yield 'slope_0_inter_nan.nii', nifti(scl_slope=0, scl_inter=np.nan), 'ok'
    yield 'slope_negative.nii', nifti(brain()*99, 'i2', scl_slope=-.01, scl_inter=5), 'ok'
    yield 'large_values.nii', nifti(brain()*1e30, 'f8'), 'ok'
    yield 'sform_alone.nii', nifti(qform_code=0, quatern_b=9, pixdim=[np.nan]*8), 'ok'
    yield 'qform_alone.nii', nifti(sform_code=0, srow_x=np.nan), 'ok'
    yield 'qfac_0.nii', nifti(sform_code=0, pixdim__0=0), 'ok'
    yield 'qfac_minus.nii', nifti(sform_code=0, pixdim__0=-1), 'ok'
    yield 'half_turn.nii', nifti(sform_code=0, quatern_c=1, quatern_b=3e-4), 'ok'
    yield 'forms_differ.nii', nifti(qoffset_x=40, quatern_b=.3), 'ok'
    yield 'oblique.nii', nifti(srow_x=[1.9, .3, 0, -9], srow_y=[-.3, 2.4, .1, 4], qform_code=0), 'ok'
    yield 'mirrored_both.nii', nifti(srow_x=[-2, 0, 0, 11], pixdim__0=-1, quatern_c=1), 'ok'
    yield 'odd_fields.nii', nifti(cal_max=np.nan, slice_start=-4, slice_code=9, intent_code=999, toffset=inf), 'ok'
    yield 'two_members.nii.gz', pack(good[:999]) + pack(good[999:]), 'ok'
    yield 'header_in_parts.nii.gz', pack(good[:3]) + pack(b'') + pack(good[3:400]) + pack(good[400:]), 'ok'
    yield 'padded.nii.gz', pack(good) + bytes(5000), 'ok'
    yield 'members_padded.nii.gz', pack(good[:999]) + pack(good[999:]) + bytes(7), 'ok'
    yield 'stored.nii.gz', pack(good, 0), 'ok'
    named = zlib.compressobj(6, wbits=-15)
    yield 'gzip_name.nii.gz', (b'\x1f\x8b\x08\x08' + bytes(6) + SECRET.encode() + b'\0' + named.compress(good)
                               + named.flush() + struct.pack('<2I', zlib.crc32(good), len(good))), 'ok'
    for name in ('[a]*?.nii.gz', 'tönnchen_脳.nii.gz', 'a b;c&d\'"$(x).nii.gz', 'line\nbreak.nii.gz',
                 '\x1b[31mred\x07.nii.gz', 'x'*200 + '.nii.gz', '-rf.nii', '.hidden.nii', 'a.b.c.nii', '~.nii', '%s{0}.nii'):
        yield name, pack(good) if name.endswith('.gz') else good, 'ok'
    spm = np.where(brain() == 0, np.nan, brain())
    yield 'nan_background.nii', nifti(spm), 'warn'
    yield 'nan_background_f8.nii.gz', pack(nifti(spm, 'f8', version=2)), 'warn'
    yield 'inf_background.nii', nifti(np.where(brain() == 0, -inf, brain())), 'warn'
    yield 'four_background.nii.gz', pack(nifti(np.stack([brain(), spm, brain()*2], -1))), 'warn'
    corner = brain()
    corner[0, 0, 0] = np.nan
    yield 'nan_corner.nii', nifti(corner), 'warn'
    yield 'no_forms.nii', nifti(sform_code=0, qform_code=0), 'warn'
    yield 'negative_codes.nii', nifti(sform_code=-1, qform_code=-7), 'warn'
    yield 'meters.nii', nifti(xyzt_units=1 + 8), 'warn'
    yield 'microns.nii', nifti(xyzt_units=3 + 8), 'warn'
    for name, size in ('tiny', .001), ('giant', 400):
        yield f'{name}_voxels.nii', nifti(qform_code=0, srow_x=[size, 0, 0, 0]), 'warn'
    yield 'bitpix.nii', nifti(bitpix=16), 'warn'
    yield 'bitpix_0.nii.gz', pack(nifti(bitpix=0)), 'warn'
    yield 'qform_damaged.nii', nifti(quatern_b=3), 'warn'
    yield 'qform_nan.nii', nifti(quatern_d=np.nan), 'warn'


def faults():
    "Files that must be refused: (name, bytes, a word of the message)."
    good, packed, nan, inf = nifti(), pack(nifti()), np.nan, np.inf
    end, four = len(good), brain((*SHAPE, 4))
    # another kind of file
    yield 'empty.nii', b'', 'empty'
    yield 'empty.nii.gz', b'', 'empty'
    yield 'one_byte.nii', b'\x01', 'NIfTI'
    yield 'gzip_of_nothing.nii.gz', pack(b''), 'NIfTI'
    yield 'zeros.nii', bytes(5000), 'NIfTI'
    yield 'noise.nii', np.random.default_rng(0).bytes(5000), 'NIfTI'
    yield 'noise.nii.gz', np.random.default_rng(1).bytes(5000), 'NIfTI'
    yield 'text.nii', f'{SECRET},age\n'.encode()*99, 'text'
    yield 'text.nii.gz', pack(f'{SECRET},age\n'.encode()*99), 'text'
    yield 'page.nii.gz', f'<!DOCTYPE html><html>{SECRET}</html>'.encode(), 'web page'
    yield 'page.nii', f'\n <HTML lang="en"><head>{SECRET}'.encode(), 'web page'
    yield 'denied.nii.gz', f'<?xml version="1.0"?><Error>{SECRET}</Error>'.encode(), 'XML'
    yield 'lfs.nii.gz', b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n', 'git-lfs'
    yield 'annex.nii.gz', b'/annex/objects/MD5E-s123--abc.nii.gz\n', 'git-annex'
    yield 'packed.nii', packed, 'rename it to .nii.gz'
    yield 'plain.nii.gz', good, 'rename it to .nii'
    yield 'plain_swapped.nii.gz', nifti(order='>'), 'rename it to .nii'
    yield 'twice.nii.gz', pack(packed), 'twice'
    yield 'zip.nii', b'PK\3\4' + bytes(600), 'zip'
    yield 'zip.nii.gz', b'PK\3\4' + bytes(600), 'zip'
    yield 'tar.nii.gz', pack(bytes(257) + b'ustar' + bytes(600)), 'tar'
    yield 'bz2.nii.gz', b'BZh91AY&SY' + bytes(600), 'bzip2'
    yield 'dicom.nii', bytes(128) + b'DICM' + bytes(600), 'DICOM'
    yield 'surfer.nii.gz', pack(b'\0\0\0\1' + bytes(600)), 'FreeSurfer'
    yield 'numpy.nii', b'\x93NUMPY\1\0' + bytes(600), 'numpy'
    yield 'scan.mgz', pack(b'\0\0\0\1' + bytes(600)), 'FreeSurfer'
    yield 'scan.dcm', bytes(128) + b'DICM', 'DICOM'
    yield 'scan.img', good, 'pair'
    yield 'scan.hdr', good, 'pair'
    yield 'scan.nii.bz2', good, 'not a .nii'
    yield 'scan.nii.gz.part', packed, 'not a .nii'
    yield 'pair.nii', nifti(magic=b'ni1'), 'pair'
    yield 'pair2.nii', nifti(version=2, magic=b'ni2'), 'pair'
    yield 'analyze.nii', nifti(magic=b''), 'Analyze'
    yield 'magic.nii', nifti(magic=b'n+7'), 'magic'
    yield 'magic2.nii', nifti(version=2, magic=b'n+1'), 'magic'
    yield 'as_text.nii', nifti(version=2, eol_check=[10, 10, 26, 10]), 'text'
    # length
    for at in 4, 100, 347: yield f'cut_{at}.nii', good[:at], 'cut off'
    for at in 348, 351, 352, 353, end//2, end - 1: yield f'cut_{at}.nii', good[:at], ''
    for at in 1, 5, 12, 40, len(packed)//2, len(packed) - 9, len(packed) - 8, len(packed) - 1:
        yield f'cut_{at}.nii.gz', packed[:at], ''
    yield 'cut_inside.nii.gz', pack(good[:-1]), 'cut off'
    yield 'cut_header_inside.nii.gz', pack(good[:300]), 'cut off'
    yield 'cut_nifti2.nii', nifti(version=2)[:500], 'cut off'
    yield 'long.nii', good + b'\0', 'more'
    yield 'long.nii.gz', pack(good + b'\0'), 'more'
    yield 'long_member.nii.gz', packed + packed, 'more'
    yield 'four_short.nii.gz', pack(nifti(four)[:-1]), 'cut off'
    yield 'tail.nii.gz', packed + b'tail of something', 'damaged'
    yield 'crc.nii.gz', flip(packed, len(packed) - 8), 'damaged'
    yield 'isize.nii.gz', flip(packed, len(packed) - 4), 'damaged'
    for at in 11, 60, len(packed)//3, len(packed)//2, len(packed) - 20:
        yield f'flip_{at}.nii.gz', flip(packed, at, 3), ''
    stored = pack(good, 0)
    yield 'flip_voxel.nii.gz', flip(stored, len(stored)//2), 'damaged'
    yield 'four_flip_late.nii.gz', flip(pack(nifti(four), 0), -5000), 'damaged'
    # dimensions
    for n in 0, -1, 8, 1000: yield f'dim0_{n}.nii', nifti(dim__0=n), 'dimensions'
    yield '1d.nii', nifti(dim__0=1), '1 dimensions'
    yield '2d.nii', nifti(dim__0=2), '2 dimensions'
    yield '5d.nii', nifti(dim=[5, 12, 14, 5, 1, 2, 1, 1]), '5 dimensions'
    yield '6d.nii', nifti(dim=[6, 12, 14, 5, 1, 1, 2, 1]), '6 dimensions'
    yield 'dim_negative.nii', nifti(dim__1=-12), 'shape'
    yield 'dim_zero.nii', nifti(dim__2=0), 'shape'
    yield 'dim_zero_behind.nii', nifti(dim=[5, *SHAPE, 1, 0, 1, 1]), 'shape'
    yield 'dim_small.nii', nifti(dim__3=9), 'more'
    yield 'dim_large.nii', nifti(dim__3=11), 'cut off'
    yield 'dim_large.nii.gz', pack(nifti(dim__3=11)), 'cut off'
    # voxels
    types = dict(unknown=0, binary=1, complex64=32, RGB=128, all=255, float128=1536, complex128=1792, RGBA=2304)
    for name, code in {**types, 'nonsense': 77, 'minus': -3}.items():
        yield f'type_{name}.nii', nifti(datatype=code), name if name not in ('all', 'nonsense', 'minus') else 'type'
    for name, at in dict(nan=nan, inf=inf, fraction=352.5, early=348, one=1, negative=-352, past=1e6, vast=1e30).items():
        yield f'offset_{name}.nii', nifti(vox_offset=at), 'byte'
    yield 'offset_early2.nii', nifti(version=2, vox_offset=352), 'byte'
    yield 'offset_vast2.nii', nifti(version=2, vox_offset=2**62), 'byte'
    yield 'offset_vast.nii.gz', pack(nifti(vox_offset=1e9)), 'byte'
    yield 'offset_past.nii.gz', pack(nifti(vox_offset=6e7)), 'cannot be'
    yield 'offset_shifted.nii', nifti(vox_offset=356), 'cut off'
    for name, (slope, inter) in dict(nan=(nan, 0), inf=(inf, 0), minus_inf=(-inf, 1), inter=(1, nan), inter_inf=(2, -inf)).items():
        yield f'slope_{name}.nii', nifti(scl_slope=slope, scl_inter=inter), 'slope'
    yield 'slope_overflow.nii', nifti(brain()*3e4, 'i4', scl_slope=3e38), 'finite'
    yield 'overflow.nii', nifti(brain()*1e300, 'f8'), 'finite'
    hole, slab = brain(), brain()
    hole[5:8, 6:9, 5] = nan
    slab[:, 6:8] = nan
    yield 'hole.nii', nifti(hole), 'finite'
    yield 'hole_inf.nii.gz', pack(nifti(np.where(np.isnan(hole), inf, hole))), 'finite'
    yield 'slab_lost.nii', nifti(slab), 'finite'
    yield 'all_nan.nii', nifti(np.full(SHAPE, nan)), 'finite'
    yield 'all_inf.nii.gz', pack(nifti(np.full(SHAPE, -inf))), 'finite'
    yield 'all_zero.nii', nifti(np.zeros(SHAPE)), 'every voxel is 0'
    yield 'constant.nii.gz', pack(nifti(np.full(SHAPE, 7), 'i2')), 'every voxel is 7'
    yield 'constant_or_nan.nii', nifti(np.where(brain() == 0, nan, 0)), 'every voxel is 0'
    yield 'slope_tiny.nii', nifti(brain()*9, 'i2', scl_slope=1e-38, scl_inter=1), 'every voxel is 1'
    for name, v in dict(zero=0, nan=nan).items():
        worse = four.copy()
        worse[..., 2] = v
        yield f'four_{name}.nii.gz', pack(nifti(worse)), 'volume 2'
    # orientation
    yield 'affine_nan.nii', nifti(srow_y=nan), 'affine'
    yield 'affine_inf.nii', nifti(srow_x__3=inf), 'affine'
    yield 'affine_zero.nii', nifti(qform_code=0, srow_x=0, srow_y=0, srow_z=0), 'affine'
    yield 'affine_singular.nii', nifti(qform_code=0, srow_y=ROWS[0]), 'affine'
    yield 'affine_flat.nii', nifti(qform_code=0, srow_z=[0, 0, 0, 5]), 'affine'
    yield 'affine_vast2.nii', nifti(version=2, qform_code=0, srow_x=1e300, srow_y__1=1e300), 'affine'
    yield 'forms_mirrored.nii', nifti(srow_x=[-2, 0, 0, 11]), 'left and right'
    yield 'forms_mirrored2.nii.gz', pack(nifti(version=2, pixdim__0=-1)), 'left and right'
    qform = dict(sform_code=0)
    yield 'quaternion.nii', nifti(**qform, quatern_b=.9, quatern_c=.9), 'quaternion'
    yield 'quaternion_nan.nii', nifti(**qform, quatern_b=nan), 'quaternion'
    yield 'quaternion_offset.nii', nifti(**qform, qoffset_y=inf), 'affine'
    for name, v in dict(zero=0, minus=-2, nan=nan, inf=inf).items():
        yield f'pixdim_{name}.nii', nifti(**qform, pixdim__2=v), 'voxel size'
        yield f'pixdim_{name}_alone.nii', nifti(**qform, qform_code=0, pixdim__1=v), 'voxel size'
    yield 'qfac_nan.nii', nifti(**qform, pixdim__0=nan), 'voxel size'


def bombs():
    "Files that ask for far more than they are: (name, bytes, length if sparse, expected)."
    zeros = pack(bytes(2**23), 9)                                       # 8 MB in 8 kB
    def head(*shape, **kw): return nifti(np.zeros((1, 1, 1)), raw=b'', dim=[len(shape), *shape, *[1]*(7 - len(shape))], **kw)
    most = 2**63 - 1
    yield 'bomb_dims.nii', head(32767, 32767, 32767), 0, 'bad:max-gb'
    yield 'bomb_dims.nii.gz', pack(head(32767, 32767, 32767, 32767)), 0, 'bad:max-gb'
    yield 'bomb_int64.nii', head(most, most, most, most, version=2), 0, 'bad:max-gb'
    yield 'bomb_wrap.nii', head(2**32, 2**32, 1, version=2), 0, 'bad:max-gb'     # 2^64 voxels: 0 in 64 bits
    yield 'bomb_wrap_t.nii.gz', pack(head(2, 2, 2, 2**62, version=2)), 0, 'bad:max-gb'
    yield 'bomb_volume.nii', head(700, 700, 700), 352 + 4*700**3, 'bad:max-gb'
    yield 'bomb_series.nii', head(500, 500, 500, 9), 352 + 36*500**3, 'bad:max-gb'
    yield 'bomb_uint8.nii.gz', pack(head(1000, 1000, 300, datatype=2, bitpix=8)), 0, 'bad:max-gb'
    yield 'bomb_promise.nii.gz', pack(head(600, 600, 600)), 0, 'bad:cannot be'
    yield 'bomb_sparse.nii', head(600, 600, 600), 352 + 4*600**3, 'bad:every voxel is 0'
    yield 'bomb_zeros.nii.gz', pack(head(512, 512, 512)) + 64*zeros, 0, 'bad:every voxel is 0'
    yield 'bomb_more.nii.gz', pack(nifti()) + 512*zeros, 0, 'bad:more'
    yield 'bomb_extension.nii.gz', pack(head(12, 14, 10, vox_offset=352 + 2**29)) + 64*zeros, 0, 'bad:byte'
    yield 'bomb_members.nii.gz', pack(nifti()[:352]) + 200_000*pack(b''), 0, 'bad:damaged'
    yield 'bomb_nan.nii.gz', pack(head(512, 512, 64)) + 8*pack(b'\xff'*2**23, 9), 0, 'bad:finite'
    yield 'bomb_series.nii.gz', pack(head(256, 256, 128, 120)) + 480*zeros, 0, 'bad:volume 0'


def make_nifti_corpus(folder):  # list of (name below `folder`, 'ok' | 'warn' | 'bad:word of the message')
    "Write the corpus: some 250 small files; the same ones each time."
    folder, out = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    def put(name, raw, want, length=0):
        with open(folder/name, 'wb') as f:
            f.write(raw)
            if length: f.truncate(length)
        out.append((name, want))
    for name, raw, want in oddities(): put(name, raw, want)
    for name, raw, word in faults(): put(name, raw, f'bad:{word}')
    for name, raw, length, want in bombs(): put(name, raw, want, length)
    (folder/'folder.nii.gz').mkdir(exist_ok=True)
    out.append(('folder.nii.gz', 'bad:folder'))
    links = {'link.nii': ('type_f4.nii', 'ok'), 'dangling.nii.gz': ('.git/annex/objects/nowhere', 'bad:link'),
             'circle.nii': ('circle.nii', 'bad:link'), 'device.nii': (os.devnull, 'bad:regular')}
    for name, (to, want) in links.items():
        try:
            (folder/name).unlink(missing_ok=True)
            (folder/name).symlink_to(to)
            out.append((name, want))
        except OSError: pass                                            # no links on this system
    if hasattr(os, 'mkfifo'):
        if not (folder/'pipe.nii.gz').exists(): os.mkfifo(folder/'pipe.nii.gz')
        out.append(('pipe.nii.gz', 'bad:regular'))
    out.append(('missing.nii', 'bad:no such file'))
    return out
