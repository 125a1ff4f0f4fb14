"""The table of README.md and benchmarks/README.md, from results/: how many times as long as ours
the others took.

python benchmarks/table.py
"""

import json
import re

import compare

JOBS = {
  'sweep': '9 alphas x multiple choice',
  'generation': '9 alphas x {prompts} prompts x {tokens} tokens',
  'contrast': 'two LoRA fine-tunes on chats of mixed length',
  'handover': 'a direction from two checkpoints, and a steered checkpoint',
}
SIDES = {
  'peft': 'PEFT',
  'merge_and_reload': 'merging, saving and loading for each alpha',
  'reference': 'torch, whole models in memory',
}


def main():
  rows = [
    row
    for path in sorted(compare.RESULTS.glob('*.json'), key=lambda path: order(path.stem))
    for row in rows_of(json.loads(path.read_text()))
  ]
  print('| job | on | other side | ours | theirs | times as long | least to most |')
  print('|---|---|---|---:|---:|---:|---|')
  for row in rows:
    print('|', ' | '.join(row), '|')


def order(stem: str) -> tuple[int, str]:
  """In the order of JOBS."""
  job = stem.split('_')[0]
  return list(JOBS).index(job) if job in JOBS else len(JOBS), stem


def rows_of(record: dict) -> list[list[str]]:
  """One for each other side of a comparison; none of a record that is none."""
  result = record.get('result', {})
  if 'gigabytes' in record:
    return [handover(record, mode, found) for mode, found in result.items()]
  if record.get('job') not in JOBS or 'ratio' not in result:
    return []
  seconds, found = result['seconds'], []
  some = re.search(r'--layers=([1-9]\d*)', record['command'])
  size = record['size'] + (f' ({some[1]} layers)' if some else '')
  where = (
    f"{size}, {record['dtype']}, "
    f"{'CPU' if record['device'] == 'cpu' else record['device'].split()[-1]}"
  )
  job = JOBS[record['job']]
  if 'continuations' in result:
    job = job.format(
      prompts=result['continuations'] // 9, tokens=result['tokens'] // result['continuations']
    )
  for side, ratio in result['ratio'].items():
    ours = seconds[compare.OURS]['median']
    found.append(
      [
        job,
        where,
        SIDES[side],
        f'{ours:.3g} s',
        f"{seconds[side]['median']:.3g} s",
        f"**{ratio['median']:.2g}**",
        f"{ratio['min']:.2g} to {ratio['max']:.2g}",
      ]
    )
  if 'ours_compiled' in seconds and 'peft' in seconds:
    again = seconds['ours_compiled']['median']
    found.append(
      [
        f'{job}, compiled before',
        where,
        SIDES['peft'],
        f'{again:.3g} s',
        f"{seconds['peft']['median']:.3g} s",
        f"{seconds['peft']['median'] / again:.2g}",
        '',
      ]
    )
  return found


def handover(record: dict, mode: str, found: dict) -> list[str]:
  """The row of a mode of handover.py."""
  ratio, seconds = found['seconds_ratio']['reference / ours'], found['seconds']
  return [
    JOBS['handover'],
    f"{record['gigabytes']:g} GB, bfloat16, CPU, to the {mode}",
    SIDES['reference'],
    f"{seconds['ours']['median']:.3g} s",
    f"{seconds['reference']['median']:.3g} s",
    f"**{ratio['median']:.2g}**",
    f"{ratio['min']:.2g} to {ratio['max']:.2g}",
  ]


if __name__ == '__main__':
  main()
