"""Finished runs to one grid: their directions mixed, their behaviours measured under each mix."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from weightsteer_jax import config as configs
from weightsteer_jax import directions, evaluation
from weightsteer_jax.config import Run, Task
from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.experiments.interaction import effects, mixes
from weightsteer_jax.experiments.interaction.mixes import TOGETHER, WITHOUT
from weightsteer_jax.experiments.sources import direction_folder
from weightsteer_jax.inference.arms import BASE
from weightsteer_jax.runtime import processes
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import files, locks

Path = str | pathlib.Path
# The strength of every mix: coefficients hold the directions' own.
ON = 1.0


def interact(alphas: Mapping[str, float], output: Path) -> dict[str, Any]:
  """The summary, also written to `<output>/summary.json`; rows are kept, and go on if stopped.

  Each run gives its direction, the behaviour it picks by (else its first), and its capabilities.
  Files: `sweep/rows.jsonl` has every answer, `effects.jsonl` the table.

  Args:
    alphas: {workdir of a finished run: the strength of its direction}.

  Raises:
    InputError: if there are fewer than two runs, two have one name, a run has no behaviour, or a
      direction is not of the first run's model or is zero.
  """
  if len(alphas) < 2:
    raise InputError(f'an interaction takes two or more runs; got {len(alphas)}')
  runs = {folder: _run_of(pathlib.Path(folder)) for folder in alphas}
  names = _distinct([run.name for run in runs.values()])
  held = {}
  for name, folder in zip(names, alphas):
    held[name] = directions.load(direction_folder(folder))
  behaviours, tasks = _tasks(dict(zip(names, runs.values())))
  gram_KK = mixes.gram_matrix(list(held.values()))
  for k, name in enumerate(names):
    if gram_KK[k, k] <= 0:
      raise InputError(f"the direction of '{name}' is zero: there is nothing to project out of")
  strengths = dict(zip(names, alphas.values()))
  table = mixes.all_of(strengths, gram_KK)
  first = next(iter(runs.values()))
  with locks.held(output, what='the output', remedy='name another --output'):
    run = dataclasses.replace(first, tasks=tasks, judges={}, validation={})
    experiment = Experiment(run, output)
    rows = _sweep(experiment, held, table)
    effect_rows = effects.table(effects.estimates(rows, tasks))
    summary = {
      'directions': {name: str(folder) for name, folder in zip(names, alphas)},
      'alphas': strengths,
      'behaviours': behaviours,
      'capabilities': [name for name, task in tasks.items() if task.role == 'capability'],
      'cosines': mixes.cosines(gram_KK).tolist(),
      'mixes': {name: list(mix) for name, mix in table.items()},
      'effects': effect_rows,
      'verdict': verdict(behaviours, effect_rows, mixes.cosines(gram_KK).tolist()),
    }
    processes.on_main(lambda: _write(pathlib.Path(output), effect_rows, summary))
  return summary


def verdict(
  behaviours: Mapping[str, str], rows: list[dict[str, Any]], cosines: list[list[float]]
) -> list[str]:
  """A sentence for each direction and each other's behaviour, then one for all at once."""
  by_cell = {(row['mix'], row['task']): row for row in rows}
  names = list(behaviours)
  lines = []
  for i, direction in enumerate(names):
    for j, other in enumerate(names):
      if i == j:
        continue
      task = behaviours[other]
      before = by_cell[direction, task]
      after = by_cell[f'{direction}{WITHOUT}', task]
      own = by_cell[f'{direction}{WITHOUT}', behaviours[direction]]
      lines.append(
        f"{direction} (cosine {cosines[i][j]:+.3f} with {other}) moves {other}'s {task} by "
        f'{told(before)}; orthogonal to the others by {told(after)}, and its own by {told(own)}'
      )
  everything = TOGETHER.join(names)
  for name in names:
    row = by_cell[everything, behaviours[name]]
    beyond = told({'change': row['beyond_sum'], 'change_sem': row['beyond_sum_sem']})
    lines.append(
      f'all at once move {behaviours[name]} by {told(row)}, {beyond} beyond the sum of each alone'
    )
  return lines


def told(row: Mapping[str, Any]) -> str:
  """A change with its standard error, as in '+0.31 ± 0.04'.

  >>> told({'change': 0.314, 'change_sem': 0.04})
  '+0.31 ± 0.04'
  """
  if row['change'] is None:
    return 'an unknown amount'
  error = row['change_sem']
  return f'{row["change"]:+.2f}' + ('' if error is None else f' ± {error:.2f}')


def _run_of(workdir: pathlib.Path) -> Run:
  workdir = workdir.expanduser()
  if not (workdir / 'config.json').is_file():
    raise InputError(f'{workdir} is no workdir of a run: expected a folder with config.json')
  record = files.read_json(workdir / 'config.json', what='the config of the run')
  keys = {field.name for field in dataclasses.fields(Run)}
  # A workdir's record also says how and when the run ran.
  return configs.resolve({key: value for key, value in record.items() if key in keys})


def _distinct(names: list[str]) -> list[str]:
  """The names; of several that are the same, each with its number."""
  told = []
  for i, name in enumerate(names):
    # These words stand between the names of a mix.
    plain = name.replace(TOGETHER, ' and ')
    told.append(plain if names.count(name) == 1 else f'{plain} {names[: i + 1].count(name)}')
  return told


def _tasks(runs: Mapping[str, Run]) -> tuple[dict[str, str], dict[str, Task]]:
  """{direction: its behaviour's task} and the tasks, capabilities last."""
  behaviours: dict[str, str] = {}
  tasks: dict[str, Task] = {}
  for name, run in runs.items():
    own = [task for task, options in run.tasks.items() if options.role == 'behaviour']
    chosen = run.sweep.pick_by if run.sweep.pick_by in own else next(iter(own), '')
    if not chosen:
      raise InputError(f"the run '{name}' has no task of the role 'behaviour' to measure")
    key = chosen
    # Two runs may call different items by one name.
    if key in tasks and tasks[key] != run.tasks[chosen]:
      key = f'{chosen} of {name}'
    behaviours[name] = key
    tasks[key] = run.tasks[chosen]
  for run in runs.values():
    for task, options in run.tasks.items():
      if options.role == 'capability' and task not in tasks:
        tasks[task] = options
  return behaviours, tasks


def _sweep(
  experiment: Experiment,
  held: Mapping[str, directions.Direction],
  table: Mapping[str, mixes.Mix],
) -> list[dict[str, Any]]:
  model = experiment.model(experiment.layouts.evaluate)
  for direction in held.values():
    directions.check_base(direction, model)
  deltas = [direction.delta for direction in held.values()]
  arms = {}
  for name, mix in table.items():
    # {ON: c}: at the one strength of the grid the delta takes part with c.
    arms[name] = [(delta, {ON: c}) for delta, c in zip(deltas, mix)]
  return evaluation.sweep.run(
    experiment.engine(arms),
    experiment.tasks,
    alphas={BASE: (0.0,), **{name: (ON,) for name in table}},
    workdir=experiment.workdir,
    seed=experiment.run.sweep.seed,
  )


def _write(folder: pathlib.Path, rows: list[dict[str, Any]], summary: Mapping[str, Any]) -> None:
  # matplotlib is not needed, but the page's parts take a moment to import.
  from weightsteer_jax.experiments.report import interaction_page

  files.write_jsonl(folder / 'effects.jsonl', rows)
  files.write_json(folder / 'summary.json', summary)
  interaction_page.write(folder, summary)
