"""Reports of runs as one Markdown table: the median over the runs, beside real data and PCA-Gaussian.

python benchmarks/table.py fmri_ldm_demo fmri_ldm_demo/seed-1 fmri_ldm_demo/seed-2
"""
import json
import sys
from pathlib import Path
from statistics import median


def middle(values):
    "Median of what is a number, as text."
    values = [v for v in values if v is not None]
    return f'{median(values):.3g}' if values else '–'


def main(folders):
    reports = [json.loads((Path(f)/'report.json').read_text(encoding='utf-8')) for f in folders]
    print(f'{len(reports)} runs, seeds {", ".join(str(r["seed"]) for r in reports)}; '
          f'seconds {", ".join(str(r["seconds"]) for r in reports)}; {reports[0]["machine"]}\n')
    print('| metric | generated (median) | each run | real against real | PCA-Gaussian | patch-PCA |')
    print('|---|---|---|---|---|---|')
    for name in reports[0]['metrics']:
        m = [r['metrics'][name] for r in reports]
        each = ', '.join('–' if e['value'] is None else f'{e["value"]:.3g}' for e in m)
        rivals = [middle([e['baselines'].get(k) for e in m]) for k in ('pca_gaussian', 'patch_pca')]
        print(f'| {name} | {middle([e["value"] for e in m])} | {each} | '
              f'{middle([e["floor"] for e in m])} | {rivals[0]} | {rivals[1]} |')


if __name__ == '__main__': main(sys.argv[1:] or ['fmri_ldm_demo'])
