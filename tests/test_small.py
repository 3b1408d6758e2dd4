"configs/tiny.yaml on any dozen labelled volumes of 16 x 18 x 14 voxels, however they lie in their folder."
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmri_ldm.cli import main

CONFIG = str(Path(__file__).resolve().parents[1]/'configs'/'tiny.yaml')


def volume(k, seed, shape=(16, 18, 14)):
    x = np.random.default_rng(seed).standard_normal(shape)
    x[4*k:4*k + 4] += 3
    return nib.Nifti1Image(x.astype(np.float32), np.diag([4., 4, 4, 1]))


def study(folder, name, labels, people, table=True, columns=('path', 'label', 'subject')):
    "A dozen volumes; name.format(label, person)."
    rows = ['\t'.join(columns)]
    for s in range(people):
        for k, label in enumerate(labels):
            file = folder/name.format(label=label, s=f'{s:02d}')
            file.parent.mkdir(parents=True, exist_ok=True)
            nib.save(volume(k, 10*s + k), file)
            known = dict(path=file.relative_to(folder).as_posix(), label=label, subject=str(s))
            rows.append('\t'.join(known[c] for c in columns))
    if table: (folder/'manifest.tsv').write_text('\n'.join(rows) + '\n')
    return folder


def run(folder, out, *more):
    return main(['run', CONFIG, '--data', str(folder), '--out', str(out), '--device', 'cpu', *more])


LAYOUTS = dict(
    table=(dict(name='{s}{label}.nii.gz', labels='ab', people=6), [], 'ab'),
    three_people=(dict(name='{s}{label}.nii.gz', labels='abcd', people=3), [], 'abcd'),
    names=(dict(name='sub-{s}_label-{label}.nii', labels='ab', people=6, table=False), [], 'ab'),
    folder_of_label=(dict(name='{label}/{s}.nii.gz', labels='ab', people=6, table=False), ['data.options.label_by=folder'], 'ab'),
    folder_of_person=(dict(name='p{s}/T1_{label}.nii.gz', labels='ab', people=6, table=False),
                      ['data.options.subject_by=folder'], ''),
    task=(dict(name='sub-{s}/func/sub-{s}_task-{label}.nii.gz', labels='ab', people=6, table=False), ['data.options.label_by=task'], 'ab'),
    no_labels=(dict(name='v{s}.nii.gz', labels='a', people=12, table=False), [], ''),
)


@pytest.mark.parametrize('name', LAYOUTS)
def test_trains_and_draws(tmp_path, name, capsys):
    how, options, labels = LAYOUTS[name]
    data = study(tmp_path/'data', **how)
    words = [w for o in options for w in ('--set', o)]
    assert run(data, tmp_path/'run', '--mode', 'train', *words) == 0
    made = json.loads((tmp_path/'run'/'model'/'config.json').read_text())
    assert made['labels'] == list(labels)
    capsys.readouterr()
    assert main(['generate', '--model', str(tmp_path/'run'), '--out', str(tmp_path/'drawn'), '--n', '1', '--device', 'cpu']) == 0
    drawn = sorted((tmp_path/'drawn').rglob('*.nii.gz'))
    assert len(drawn) == max(1, len(labels))
    img = nib.load(drawn[0])
    assert img.shape[:3] == (16, 18, 14) and np.array_equal(img.affine, np.diag([4., 4, 4, 1])) and np.isfinite(img.get_fdata()).all()


def test_three_people_cannot_be_judged(tmp_path, capsys):
    "Told before anything is trained."
    data = study(tmp_path/'data', '{s}{label}.nii.gz', 'abcd', 3)
    assert run(data, tmp_path/'run') == 2
    assert 'one image of each label; give more people, or --mode train' in capsys.readouterr().err and not (tmp_path/'run').exists()


def test_nobody_is_split_by_chance(tmp_path, capsys):
    "A table that does not say who is in the images."
    data = study(tmp_path/'data', '{s}{label}.nii.gz', 'ab', 6, columns=('path', 'label'))
    assert run(data, tmp_path/'run', '--mode', 'train') == 2
    assert 'neither subject nor run' in capsys.readouterr().err


@pytest.mark.parametrize('name, words', dict(folder_of_label='label_by=folder', folder_of_person='subject_by=folder').items())
def test_notes(tmp_path, name, words, capsys):
    "What may have been meant is said, by check and by run; nothing is guessed."
    how = dict(LAYOUTS[name][0])
    if name == 'folder_of_person': how.update(name='p{s}/T1.nii.gz', labels='a')
    data = study(tmp_path/'data', **how)
    main(['check', str(data)])
    assert f'data.options.{words}' in ''.join(capsys.readouterr())
    run(data, tmp_path/'run', '--mode', 'train')
    assert 'note: ' in (err := capsys.readouterr().err) and words in err


def tissue(seed, shape=(16, 18, 14)):
    "Two tissues with an edge between them, elsewhere in each person."
    from scipy.ndimage import gaussian_filter
    rng = np.random.default_rng(seed)
    x = 5.*(gaussian_filter(rng.standard_normal(shape), 3) > 0) + .05*rng.standard_normal(shape)
    return nib.Nifti1Image(x.astype(np.float32), np.diag([4., 4, 4, 1]))


def test_remainder_is_drawn_where_it_is_noise(tmp_path, capsys):
    maps = study(tmp_path/'maps', '{s}{label}.nii.gz', 'ab', 6)
    (tmp_path/'heads').mkdir()
    for i in range(12): nib.save(tissue(i), tmp_path/'heads'/f'v{i:02d}.nii.gz')
    share, said = {}, {}
    for name, folder, more in ('maps', maps, ()), ('heads', tmp_path/'heads', ()), ('told', tmp_path/'heads', ('--set', 'sampling.remainder=0.5')):
        assert run(folder, tmp_path/f'{name}-run', '--mode', 'train', *more) == 0
        share[name] = json.loads((tmp_path/f'{name}-run'/'model'/'config.json').read_text())['sampling']['remainder']
        said[name] = 'it follows edges' in capsys.readouterr().err
    assert share == dict(maps=1, heads=0, told=.5)
    assert said == dict(maps=False, heads=True, told=True)

    made = {}                                               # 0 is what the decoder says, for maps too
    for k, more in dict(own=(), means=('--remainder', '0'), again=('--remainder', '1')).items():
        assert main(['generate', '--model', str(tmp_path/'maps-run'), '--out', str(tmp_path/k), '--n', '1', '--device', 'cpu', *more]) == 0
        made[k] = [nib.load(f).get_fdata() for f in sorted((tmp_path/k).rglob('*.nii.gz'))]
        side = json.loads(sorted((tmp_path/k).rglob('sub-*.json'))[0].read_text())
        assert side['Remainder'] == dict(own=1, means=0, again=1)[k]
    assert all((a == b).all() for a, b in zip(made['own'], made['again']))
    assert all(np.abs(a - b).mean() > .01 for a, b in zip(made['own'], made['means']))
    assert main(['generate', '--model', str(tmp_path/'maps-run'), '--out', str(tmp_path/'bad'), '--remainder', '-1']) == 2


def test_model_from_before_the_remainder(tmp_path):
    "Older model folders say nothing of a remainder; they load, and draw what the decoder says."
    from fmri_ldm.core import load_json, load_tensors, save_json, save_tensors
    assert run(study(tmp_path/'data', '{s}{label}.nii.gz', 'ab', 6), tmp_path/'run', '--mode', 'train') == 0
    folder, made = tmp_path/'run'/'model', {}
    def draw(k, *more):
        assert main(['generate', '--model', str(folder), '--out', str(tmp_path/k), '--n', '1', '--device', 'cpu', *more]) == 0
        made[k] = [nib.load(f).get_fdata() for f in sorted((tmp_path/k).rglob('*.nii.gz'))]
    draw('means', '--remainder', '0')
    tensors, meta = load_tensors(folder/'model.safetensors')
    save_tensors({k: v.clone() for k, v in tensors.items() if not k.startswith('remainder.')}, folder/'model.safetensors', meta)
    config = load_json(folder/'config.json')
    del config['remainder'], config['sampling']['remainder']
    save_json(config, folder/'config.json')
    draw('old')
    assert all((a == b).all() for a, b in zip(made['old'], made['means']))


def test_another_autoencoder_gets_its_own_remainder(tmp_path):
    "--mode evaluate --checkpoint: what the other weights leave out is measured, not what the run's own did."
    from fmri_ldm.core import load_tensors
    from fmri_ldm.latent import LatentDiffusion
    from fmri_ldm.study import Study
    data, seen = study(tmp_path/'data', '{s}{label}.nii.gz', 'ab', 6), {}
    assert run(data, tmp_path/'a') == 0
    assert run(data, tmp_path/'b', '--mode', 'train', '--set', 'train_autoencoder.steps=1') == 0
    draw = Study.draw
    def look(self):
        seen.update(spread=self.model.remainder.spread.clone(), weights=self.model.autoencoder.state_dict())
        return draw(self)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Study, 'draw', look)
        other = tmp_path/'b'/'checkpoints'/'autoencoder-best.safetensors'
        assert run(data, tmp_path/'a', '--mode', 'evaluate', '--checkpoint', str(other)) == 0
    own, b = (LatentDiffusion.from_pretrained(tmp_path/k/'model', device='cpu') for k in 'ab')
    assert all((v == load_tensors(other)[0][k]).all() for k, v in seen['weights'].items())
    far = [(seen['spread'] - m.remainder.spread).abs().mean()/m.remainder.spread.mean() for m in (own, b)]
    assert far[1] < 1e-6 and far[0] > .005, far
