"""Tables, folders, configs and strange files, good and bad, made anew: what `fmri_ldm check` must tell apart.

`make_study_corpus(folder)` gives (name, expected) for each: 'ok', 'warn' (accepted, with a warning that matters), or
'bad:<word>' (refused; the word stands in the message, '|' between alternatives).
"""
import gzip
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

EYE = np.diag([3., 3, 3, 1])
PEOPLE, LABELS = ('01', '02', '03', '04'), ('lh', 'rh')


def brain(seed, shape=(8, 9, 7)): return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def save(path, x, affine=EYE, t_r=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    img = nib.Nifti1Image(x, affine)
    if t_r is not None: img.header.set_zooms((*img.header.get_zooms()[:3], t_r))
    nib.save(img, path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


class Corpus:
    def __init__(self, folder): self.folder, self.cases = Path(folder), []

    def add(self, name, expected):
        self.cases.append((name, expected))
        return self.folder/name

    def images(self, folder, names=None):
        for i, n in enumerate(names or [f'{p}_{k}.nii.gz' for p in PEOPLE for k in LABELS]): save(folder/n, brain(i))

    def table(self, name, expected, text, table='manifest.tsv', check_table=False):
        "A folder of eight maps with a table in it."
        folder = self.folder/name
        self.images(folder)
        write(folder/table, text)
        self.cases.append((f'{name}/{table}' if check_table else name, expected))
        return folder

    def config(self, name, expected, text):
        write(self.folder/f'{name}.yaml', text)
        self.cases.append((f'{name}.yaml', expected))


def rows(change=lambda i, r: r, columns=('path', 'label', 'subject', 'run'), sep='\t', end='\n'):
    lines = [list(columns)]
    for i, (p, k) in enumerate((p, k) for p in PEOPLE for k in LABELS):
        d = dict(path=f'{p}_{k}.nii.gz', label=k, subject=p, run='1', split='train', age='30', volume='')
        lines.append(change(i, [d[c] for c in columns]))
    return end.join(sep.join(line) for line in lines if line is not None) + end


def at(i, j, value):
    def change(k, row):
        if k == i: row[j] = value
        return row
    return change


def tables(c):
    c.table('t_plain', 'ok', rows())
    c.table('t_table_itself', 'ok', rows(), check_table=True)
    c.table('t_bom', 'ok', b'\xef\xbb\xbf' + rows().encode())
    c.table('t_crlf', 'ok', rows(end='\r\n'))
    c.table('t_cr', 'ok', rows(end='\r'))
    c.table('t_csv', 'ok', rows(sep=','), 'manifest.csv')
    c.table('t_semicolon', 'ok', rows(sep=';'), 'manifest.csv')
    c.table('t_upper_ending', 'ok', rows(sep=','), 'TABLE.CSV', check_table=True)
    c.table('t_quotes', 'ok', rows(lambda i, r: [f'"{x}"' for x in r], sep=','), 'manifest.csv')
    c.table('t_quoted_comma', 'ok', rows(lambda i, r: [*r[:3], '"a, b"'], sep=','), 'manifest.csv')
    c.table('t_quoted_newline', 'ok', rows(lambda i, r: [*r[:3], '"a\nb"'], sep=',').replace('run', 'note', 1), 'manifest.csv')
    c.table('t_blank_lines', 'ok', rows().replace('\n', '\n\n'))
    c.table('t_no_last_newline', 'ok', rows().rstrip('\n'))
    c.table('t_na_is_a_person', 'ok', rows(lambda i, r: [*r[:2], 'NA' if i < 2 else r[2], r[3]]))
    c.table('t_na_is_a_label', 'ok', rows(lambda i, r: [r[0], {'lh': 'NA', 'rh': 'control'}[r[1]], *r[2:]]))
    c.table('t_bids_na', 'ok', rows(at(2, 3, 'n/a')))
    c.table('t_unicode', 'ok', rows(lambda i, r: [*r[:2], f'Jörg{r[2]}', r[3]]))
    c.table('t_filename_column', 'ok', rows().replace('path', 'filename', 1).replace('subject', 'participant_id', 1))
    c.table('t_extra_columns', 'ok', rows(columns=('path', 'label', 'subject', 'run', 'age')))
    c.table('t_dot_paths', 'ok', rows(lambda i, r: ['./' + r[0], *r[1:]]))
    c.table('t_good_split', 'ok', rows(lambda i, r: [*r[:3], 'test' if i > 5 else 'train'], columns=('path', 'label', 'subject', 'split')))
    c.table('t_no_label', 'ok', rows(columns=('path', 'subject')))
    c.table('t_empty', 'bad:empty|no row|header', '')
    c.table('t_header_only', 'bad:row', 'path\tlabel\n')
    c.table('t_no_header', 'bad:column', rows().split('\n', 1)[1])
    c.table('t_no_path_column', 'bad:column path', rows().replace('path', 'image', 1))
    c.table('t_ragged_short', 'bad:row 3', rows(lambda i, r: r[:3] if i == 2 else r))
    c.table('t_ragged_long', 'bad:row 3', rows(lambda i, r: [*r, 'x'] if i == 2 else r))
    c.table('t_column_twice', 'bad:column', rows().replace('run', 'label', 1))
    c.table('t_column_unnamed', 'bad:column', rows().replace('\trun', '\t', 1))
    c.table('t_missing_file', 'bad:row 4', rows(at(3, 0, 'gone.nii.gz')))
    c.table('t_empty_path', 'bad:row 4', rows(at(3, 0, '')))
    c.table('t_two_missing', 'bad:row 6', rows(lambda i, r: ['gone.nii.gz', *r[1:]] if i in (1, 5) else r))
    c.table('t_outside', 'bad:row 1', rows(at(0, 0, '../t_plain/01_lh.nii.gz')))
    c.table('t_outside_twisted', 'bad:row 1', rows(at(0, 0, 'x/../../t_plain/01_lh.nii.gz')))
    c.table('t_absolute', 'bad:row 1', rows(at(0, 0, str(c.folder/'t_plain'/'01_lh.nii.gz'))))
    c.table('t_etc_passwd', 'bad:row 1', rows(at(0, 0, '/etc/passwd')))
    c.table('t_backslash', 'bad:row 1', rows(at(0, 0, '..\\01_lh.nii.gz')))
    c.table('t_url', 'bad:row 1', rows(at(0, 0, 'https://example.org/a.nii.gz')))
    c.table('t_home', 'bad:row 1', rows(at(0, 0, '~/a.nii.gz')))
    c.table('t_folder_as_path', 'bad:row 1', rows(at(0, 0, '.')))
    c.table('t_table_as_image', 'bad:row 1', rows(at(0, 0, 'manifest.tsv')))
    c.table('t_npz_as_image', 'bad:row 1', rows(at(0, 0, 'a.npz')))
    c.table('t_row_twice', 'bad:row', rows(lambda i, r: ['01_lh.nii.gz', *r[1:]] if i == 1 else r))
    c.table('t_unknown_split', 'bad:row 2', rows(lambda i, r: [*r[:3], 'trian' if i == 1 else 'train'], columns=('path', 'label', 'subject', 'split')))
    c.table('t_person_divided', 'bad:several splits|two splits', rows(lambda i, r: [*r[:3], ('train', 'test')[i % 2]], columns=('path', 'label', 'subject', 'split')))
    c.table('t_untrained_label', 'bad:label', rows(lambda i, r: [r[0], 'tongue' if i > 5 else r[1], r[2], 'test' if i > 5 else 'train'], columns=('path', 'label', 'subject', 'split')))
    c.table('t_label_case', 'bad:LH', rows(at(0, 1, 'LH')))
    c.table('t_label_typo', 'bad:row 2', rows(lambda i, r: [r[0], 'lhh' if i == 1 else ('lh', 'rh', 'lf', 'rf', 't')[i % 5], *r[2:]]))
    for name, value in dict(negative='-1', word='one', half='0.5', large='7', huge='9'*30).items():
        c.table(f't_volume_{name}', 'bad:row 1', rows(at(0, 1, value), columns=('path', 'volume', 'subject')))
    folder = c.table('t_volume_needed', 'bad:row 1', rows())
    save(folder/'01_lh.nii.gz', brain(0, (8, 9, 7, 3)), t_r=2.)
    folder = c.table('t_volume_given', 'ok', rows(at(0, 1, '2'), columns=('path', 'volume', 'subject')))
    save(folder/'01_lh.nii.gz', brain(0, (8, 9, 7, 3)), t_r=2.)
    c.table('t_latin1', 'bad:UTF-8', rows(at(0, 2, 'Jörg')).encode('latin-1'))
    c.table('t_utf16', 'bad:UTF', rows().encode('utf-16'))
    c.table('t_nul', 'bad:', rows(at(0, 2, 'a\0b')))
    c.table('t_binary', 'bad:', np.random.default_rng(0).bytes(4096))
    c.table('t_escape_in_name', 'bad:row 1', rows(at(0, 0, 'a\x1b[31m.nii.gz')))
    c.table('t_open_quote', 'bad:', rows(at(0, 2, '"01'), sep=','), 'manifest.csv')
    c.table('t_wide', 'bad:', rows(at(0, 2, 'x'*200_000)))
    c.table('t_many_columns', 'bad:', '\t'.join(['path', *map(str, range(5000))]) + '\n')
    c.table('t_many_rows', 'bad:', 'path\n' + 'a\n'*1_500_000)
    c.table('t_one_long_line', 'bad:', 'x'*20_000_000)
    folder = c.table('t_bad_image', 'bad:01_rh', rows())
    (folder/'01_rh.nii.gz').write_bytes((folder/'01_rh.nii.gz').read_bytes()[:300])
    folder = c.table('t_copy_other_person', 'bad:duplicate', rows())
    shutil.copy(folder/'01_lh.nii.gz', folder/'03_lh.nii.gz')
    folder = c.table('t_copy_recompressed', 'bad:duplicate', rows())
    (folder/'03_lh.nii.gz').write_bytes(gzip.compress(gzip.decompress((folder/'01_lh.nii.gz').read_bytes()), 1))
    folder = c.table('t_copy_same_person', 'warn', rows(lambda i, r: [r[0], 'lh', '01', r[3]] if i < 2 else r))
    shutil.copy(folder/'01_lh.nii.gz', folder/'01_rh.nii.gz')
    folder = c.table('t_mixed_grid', 'warn', rows())
    save(folder/'02_lh.nii.gz', brain(2, (9, 9, 9)))
    folder = c.table('t_mixed_orientation', 'warn', rows())
    save(folder/'02_lh.nii.gz', brain(2), np.diag([-3., 3, 3, 1]))
    folder = c.table('t_bad_mask', 'bad:mask', rows())
    save(folder/'mask.nii.gz', np.zeros((8, 9, 7), np.float32))
    folder = c.table('t_link_outside', 'bad:row 1', rows())
    (folder/'01_lh.nii.gz').unlink()
    (folder/'01_lh.nii.gz').symlink_to(c.folder/'t_plain'/'01_lh.nii.gz')


def folders(c):
    c.images(c.add('f_flat', 'ok'))
    folder = c.add('f_bids', 'ok')
    c.images(folder, [f'sub-{p}/anat/sub-{p}_T1w.nii.gz' for p in PEOPLE])
    write(folder/'participants.tsv', 'participant_id\tage\tsex\n' + ''.join(f'sub-{p}\t2{p[1]}\tF\n' for p in PEOPLE))
    folder = c.add('f_people_twice', 'bad:row 2')
    c.images(folder, [f'sub-{p}_T1w.nii.gz' for p in PEOPLE])
    write(folder/'participants.tsv', 'participant_id\tage\nsub-01\t20\nsub-01\t21\n')
    folder = c.add('f_people_without_image', 'warn')
    c.images(folder, [f'sub-{p}_T1w.nii.gz' for p in PEOPLE])
    write(folder/'participants.tsv', 'participant_id\tage\n' + ''.join(f'sub-{p}\t20\n' for p in (*PEOPLE, '05')))
    c.add('f_empty', 'bad:no').mkdir()
    write(c.add('f_no_images', 'bad:no')/'notes.txt', 'nothing')
    for name, lines in dict(f_glob_names=['[ab]*.nii.gz', 'a?.nii.gz', '{x}.nii.gz'], f_spaces=['a b.nii.gz', 'c  d.nii']).items():
        c.images(c.add(name, 'ok'), lines)
    c.images(c.add('f_[glob]*folder', 'ok'))
    c.images(c.add('f_unicode_ü_脑', 'ok'))
    c.images(c.add('f_newline_name', 'ok'), ['a\nb.nii.gz', 'c\x1b[31md.nii.gz'])
    folder = c.add('f_hidden_and_masks', 'ok')
    c.images(folder)
    write(folder/'._01_lh.nii.gz', b'\0\x05\x16\x07')
    save(folder/'01_mask.nii.gz', (brain(0) > 0).astype(np.uint8))
    folder = c.add('f_one_bad', 'bad:02_lh')
    c.images(folder)
    write(folder/'02_lh.nii.gz', b'')
    folder = c.add('f_two_bad', 'bad:03_rh')
    c.images(folder)
    for n in '02_lh', '03_rh': write(folder/f'{n}.nii.gz', b'<!DOCTYPE html><html></html>')
    folder = c.add('f_all_bad', 'bad:04_rh')
    c.images(folder)
    for p in folder.iterdir(): p.write_bytes(p.read_bytes()[:200])
    folder = c.add('f_copy', 'bad:duplicate')
    c.images(folder)
    shutil.copy(folder/'01_lh.nii.gz', folder/'02_lh.nii.gz')
    folder = c.add('f_loop', 'ok')
    c.images(folder)
    (folder/'self').symlink_to(folder)
    folder = c.add('f_dangling', 'bad:gone')
    c.images(folder)
    (folder/'gone.nii.gz').symlink_to('nowhere.nii.gz')
    folder = c.add('f_folder_named_nii', 'ok')
    c.images(folder)
    save(folder/'05_lh.nii.gz'/'06_lh.nii.gz', brain(20))
    folder = c.add('f_mixed_orientation', 'warn')
    c.images(folder)
    save(folder/'05_lh.nii.gz', brain(9), np.diag([-3., 3, 3, 1]))
    folder = c.add('f_mixed_grid', 'warn')
    c.images(folder)
    save(folder/'05_lh.nii.gz', brain(9, (6, 6, 6)))
    folder = c.add('f_pair', 'bad:')
    folder.mkdir()
    nib.save(nib.Nifti1Pair(brain(0), EYE), folder/'a.img')
    if hasattr(os, 'mkfifo'):
        folder = c.add('f_fifo', 'bad:pipe')
        c.images(folder)
        os.mkfifo(folder/'pipe.nii.gz')


def series(c):
    def bids(name, expected, events='onset\tduration\ttrial_type\n0\t4\tlh\n8\t4\trh\n', n=8, t_r=2., x=None):
        folder = c.add(name, expected)
        for r in '12':
            stem = folder/f'sub-01/func/sub-01_task-motor_run-{r}'
            save(Path(f'{stem}_bold.nii.gz'), 100 + brain(int(r), (6, 7, 5, n)) if x is None else x, t_r=t_r)
            write(Path(f'{stem}_events.tsv'), events)
        return folder
    bids('s_bids', 'ok')
    bids('s_no_trial_type', 'bad:trial_type', 'onset\tduration\n0\t4\n')
    bids('s_onset_word', 'bad:row 1', 'onset\tduration\ttrial_type\nearly\t4\tlh\n')
    bids('s_negative_duration', 'bad:row 1', 'onset\tduration\ttrial_type\n0\t-4\tlh\n')
    bids('s_ragged', 'bad:row 1', 'onset\tduration\ttrial_type\n0\t4\n')
    bids('s_late_event', 'warn', 'onset\tduration\ttrial_type\n0\t4\tlh\n100\t4\trh\n')
    bids('s_no_tr', 'bad:TR|t_r', t_r=0.)
    flat = 100 + brain(0, (6, 7, 5, 8))
    flat[..., 3] = 0
    bids('s_empty_volume', 'bad:volume 3', x=flat)
    def listed(name, expected, text, n=8):
        folder = c.add(name, expected)
        save(folder/'bold.nii.gz', 100 + brain(0, (6, 7, 5, n)), t_r=2.)
        write(folder/'volumes.tsv', text)
    good = 'volume\tlabel\trun\n' + ''.join(f'{i}\t{("lh", "rh")[i % 2]}\t{i//4}\n' for i in range(8))
    listed('s_volumes', 'ok', good)
    listed('s_short_run', 'bad:run', good.replace('\t1\n', '\t0\n', 2))
    listed('s_volume_twice', 'bad:row 2', good.replace('\n1\t', '\n0\t', 1))
    listed('s_volume_beyond', 'bad:row 8', good.replace('\n7\t', '\n70\t', 1))
    listed('s_volume_negative', 'bad:row 2', good.replace('\n1\t', '\n-1\t', 1))
    listed('s_no_volume_column', 'bad:column', good.replace('volume', 'vol', 1))
    folder = c.add('s_volumes_alone', 'bad:bold')
    write(folder/'volumes.tsv', good)


def configs(c):
    c.config('c_empty', 'ok', '')
    c.config('c_plain', 'ok', 'seed: 3\n')
    c.config('c_bom_crlf', 'ok', b'\xef\xbb\xbfseed: 3\r\n')
    c.config('c_no_is_text', 'ok', 'data:\n  labels: [no, yes]\n')
    c.config('c_unknown_key', 'bad:seed', 'sede: 3\n')
    c.config('c_unknown_deep', 'bad:denoiser', 'denoiser:\n  networc: {}\n')
    c.config('c_wrong_kind', 'bad:seed', 'seed: many\n')
    c.config('c_list', 'bad:mapping', '- a\n- b\n')
    c.config('c_tab', 'bad:YAML', 'a:\n\tb: 1\n')
    c.config('c_unclosed', 'bad:YAML', 'seed: [1, 2\n')
    c.config('c_twice', 'bad:twice', 'seed: 1\nseed: 2\n')
    c.config('c_python', 'bad:YAML', 'seed: !!python/object/apply:os.system ["true"]\n')
    c.config('c_aliases', 'bad:alias', 'a: &a [x, x]\nb: *a\n')
    c.config('c_bomb', 'bad:alias', 'a: &a [x]\n' + ''.join(f'{chr(98 + i)}: &{chr(98 + i)} [{", ".join([f"*{chr(97 + i)}"]*9)}]\n' for i in range(20)))
    c.config('c_deep', 'bad:', '['*100_000)
    c.config('c_large', 'bad:larger', '# ' + 'x'*5_000_000)
    c.config('c_binary', 'bad:', bytes(range(256)))
    c.config('c_latin1', 'bad:UTF-8', 'title: Jörg\n'.encode('latin-1'))
    c.config('c_huge_number', 'bad:', 'seed: 1' + '0'*10_000 + '\n')
    c.config('c_nan', 'bad:', 'train_denoiser:\n  lr: .nan\n')


def others(c):
    for name, raw in {'o_matrix.npy': b'\x93NUMPY', 'o_matlab.mat': b'MATLAB 5.0', 'o_text.txt': b'hello', 'o_pickle.pkl': b'\x80\x04.',
                      'o_freesurfer.mgz': gzip.compress(b'\0\0\0\1'), 'o_dicom.dcm': b'\0'*128 + b'DICM', 'o_zip.zip': b'PK\5\6' + b'\0'*18,
                      'o_json.json': b'{}', 'o_noname': b'', 'o_archive.tar.gz': gzip.compress(b'x'*1024)}.items():
        write(c.add(name, 'bad:'), raw)
    c.cases.append(('o_not_there', 'bad:no such'))
    c.cases.append(('o_not_there.nii.gz', 'bad:no such'))
    c.cases.append(('o_not_there*.nii.gz', 'bad:no such'))
    c.add('o_dangling', 'bad:').symlink_to('nowhere')


def make_study_corpus(folder):
    "Write the corpus into an empty folder; list of (name, expected)."
    c = Corpus(folder)
    for part in tables, folders, series, configs, others: part(c)
    return c.cases
