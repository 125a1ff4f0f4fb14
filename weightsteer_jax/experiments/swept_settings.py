"""config.json of a workdir that is swept more than once.

It says what the results beside it were made with: the settings of the last sweep, with the
strengths of all sweeps, and under `grids` what each sweep was (see evaluation/grids.py).
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax import evaluation
from weightsteer_jax.config import Run
from weightsteer_jax.evaluation import grids
from weightsteer_jax.storage import files

CONFIG = 'config.json'
RESULTS = 'results.jsonl'


def describes_results(workdir: pathlib.Path) -> bool:
  """Whether the workdir has results, and a config.json that says what these were made with."""
  return (workdir / RESULTS).is_file() and (workdir / CONFIG).is_file()


def strengths(run: Run) -> dict[str, Any]:
  """What a run's config says of strengths, to be kept with its sweep."""
  return {
    'alphas': list(run.sweep.alphas),
    'arms': {name: list(arm.alphas) for name, arm in run.arms.items()},
  }


def adopt_rows(workdir: pathlib.Path) -> None:
  """Records the rows of an earlier version as one sweep, by config.json; once.

  Raises:
    CorruptError: if a row is broken.
  """
  path = workdir / 'sweep' / 'rows.jsonl'
  plan = workdir / 'sweep' / 'plan.json'
  if grids.path_of(workdir).exists() or not (path.is_file() and plan.is_file()):
    return
  rows = list(evaluation.rows.read(path))
  if not rows:
    return
  config: dict[str, Any] = {}
  if (workdir / CONFIG).is_file():
    config = files.read_json(workdir / CONFIG, what='the config of a run')
  swept = sorted({float(row['alpha']) for row in rows})
  named = config.get('sweep', {}).get('alphas', [])
  arms = {name: list(arm.get('alphas', ())) for name, arm in config.get('arms', {}).items()}
  # An earlier version left the last of several sweeps in config.json: rows know of all.
  whole = bool(arms) or sorted(named) == swept
  grids.adopt(
    workdir,
    rows,
    files.read_json(plan, what='the plan of a sweep').get('inputs', {}),
    command=str(config.get('command', '')) if whole else '',
    settings={'alphas': named if whole else swept, 'arms': arms},
  )


def write(workdir: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Writes config.json, with the strengths of all sweeps on record.

  Args:
    record: the settings of the last sweep; nothing is written without any.
  """
  if not record:
    return
  swept = grids.read(workdir)
  settings = [grid.settings for grid in swept]
  alphas = _all(record['sweep']['alphas'], [each.get('alphas', ()) for each in settings])
  arms = {}
  for name, arm in record['arms'].items():
    others = [each.get('arms', {}).get(name, ()) for each in settings]
    # Without strengths of its own, an arm has those of the sweep.
    arms[name] = {**arm, 'alphas': _all(arm['alphas'], others) if arm['alphas'] else ()}
  about = []
  for grid in swept:
    fields = dataclasses.asdict(grid)
    about.append({key: fields[key] for key in ('grid', 'begun', 'finished', 'command', 'alphas')})
  whole = {**record, 'sweep': {**record['sweep'], 'alphas': alphas}, 'arms': arms, 'grids': about}
  files.write_json(workdir / CONFIG, whole)


def _all(alphas: Sequence[float], others: Sequence[Sequence[float]]) -> list[float]:
  """All strengths, ascending, each once."""
  return sorted({float(alpha) + 0.0 for each in (alphas, *others) for alpha in each})
