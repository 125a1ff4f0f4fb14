"""Runs preflight for several models on several pods, and renders the table of what came out.

  python benchmarks/preflight.py run     appends what is missing to benchmarks/preflight.jsonl; about an hour on two cores
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
            sys.executable, 'launch/preflight.py', f'--config=configs/preflight.py:{model}', f'--topology={topology}',
            f'--programs={program}', f'--json={RESULTS}'
        ]
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
        said = (done.stdout + done.stderr).strip().splitlines() or ['']
        print(model, topology, program, '->', done.returncode, said[-1], flush=True)


def table() -> None:
  """One line for each model and pod."""
  rows = read()
  print(
      '| model | pod | mesh | fits | peak, GiB of memory: train / score / prefill / decode / export | training step, bound | decoding step, bound | sent in a training step |'
  )
  print('|---|---|---|---|---:|---:|---:|---:|')
  for model in MODELS:
    for topology in TOPOLOGIES:
      found = {program: rows.get((model, topology, program)) for program in PROGRAMS}
      if any(found.values()):
        print(_line(model, topology, found))


def _line(model: str, topology: str, found: dict[str, dict | None]) -> str:
  one = next(row for row in found.values() if row)
  peaks = ' / '.join(f'{row["peak"] / GIB:.1f}' if row else '?' for row in (found[name]
                                                                            for name in ('training step', 'scoring',
                                                                                         'prefill', 'decoding step',
                                                                                         'export')))
  fits = 'yes' if all(row and row['fits'] for row in found.values()) else 'no: ' + ', '.join(
      name for name, row in found.items() if row and not row['fits'])
  cut = one['train'] if one['train'] == one['evaluate'] else f'{one["train"]}, then {one["evaluate"]}'
  sent = sum(moved['sent'] for moved in (found['training step'] or {'collectives': {}})['collectives'].values())
  return (
      f'| {model} | {topology} | {one["mesh"]} ({cut}) | {fits} | {peaks} of {one["memory"] / GIB:.1f} | {_time(found["training step"])} | '
      f'{_time(found["decoding step"])} | {sent / 1e9:.2g} GB |')


def _time(row: dict | None) -> str:
  if not row or not row['time']:
    return '?'
  bound = max(row['time'], key=row['time'].get)
  return f'{1e3 * row["time"][bound]:.3g} ms, {bound}'


if __name__ == '__main__':
  {'run': run, 'table': table}.get(sys.argv[-1], lambda: print(__doc__))()
