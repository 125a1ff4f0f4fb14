"""Runs preflight for several models on several pods, and renders the table of what came out.

python benchmarks/preflight.py run     appends what is missing to benchmarks/preflight.jsonl;
minutes for each
python benchmarks/preflight.py table   prints the table in Markdown
"""

import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / 'preflight.jsonl'
MODELS = ('Qwen2.5-7B', 'Llama-2-7B', 'Llama-3.3-70B', 'Qwen3-30B-A3B')
TOPOLOGIES = ('v5e:4x4', 'v5p:2x2x4', 'v6e:4x4', 'v5e:16x16')
PROGRAMS = ('training step', 'decoding step', 'scoring', 'prefill', 'export')
GIB = 2**30


def read() -> dict[tuple[str, str, str], dict]:
  """{(model, topology, program): row}."""
  if not RESULTS.exists():
    return {}
  rows = map(json.loads, RESULTS.read_text().splitlines())
  return {(pathlib.Path(row['model']).name, row['topology'], row['program']): row for row in rows}


def run() -> None:
  """What is missing, the same program of all cells before the next one."""
  for program in PROGRAMS:
    for model in MODELS:
      for topology in TOPOLOGIES:
        if (model, topology, program) in read():
          continue
        command = [
          sys.executable,
          'launch/preflight.py',
          f'--config=configs/preflight.py:{model}',
          f'--topology={topology}',
          f'--programs={program}',
          f'--json={RESULTS}',
        ]
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
        said = (done.stdout + done.stderr).strip().splitlines() or ['']
        print(model, topology, program, '->', done.returncode, said[-1], flush=True)


def table() -> None:
  """A line for each model and pod, the programs that were compiled so far."""
  rows = read()
  print(
    '| model | pod | mesh; weights cut in training, evaluation | fits | peak, GiB of memory: '
    'train / score / prefill / decode / export | training step | sent in it | decoding step |'
  )
  print('|---|---|---|---|---|---:|---:|---:|')
  for model in MODELS:
    for topology in TOPOLOGIES:
      found = {
        program: rows[model, topology, program]
        for program in PROGRAMS
        if (model, topology, program) in rows
      }
      if found:
        print(_line(model, topology, found))


def _line(model: str, topology: str, found: dict[str, dict]) -> str:
  one = next(iter(found.values()))
  order = ('training step', 'scoring', 'prefill', 'decoding step', 'export')
  peaks = ' / '.join(f'{found[name]["peak"] / GIB:.1f}' if name in found else '-' for name in order)
  missing = [name for name in order if name in found and not found[name]['fits']]
  fits = f'no: {", ".join(missing)}' if missing else 'yes' if len(found) == len(order) else 'so far'
  moved = found.get('training step', {}).get('collectives', {}).values()
  sent = f'{sum(kind["sent"] for kind in moved) / 1e9:.2g} GB' if moved else '-'
  return (
    f'| {model} | {topology} | {one["mesh"]}; {one["train"]}; {one["evaluate"]} | {fits} | '
    f'{peaks} of {one["memory"] / GIB:.1f} | {_time(found.get("training step"))} | {sent} | '
    f'{_time(found.get("decoding step"))} |'
  )


def _time(row: dict | None) -> str:
  if not row or not row['time']:
    return '-'
  bound = max(row['time'], key=row['time'].get)
  return f'{1e3 * row["time"][bound]:.3g} ms, {bound}'


if __name__ == '__main__':
  {'run': run, 'table': table}.get(sys.argv[-1], lambda: print(__doc__))()
