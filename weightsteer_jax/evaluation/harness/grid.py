"""lm-evaluation-harness over a grid of strengths, into a folder.

plan.json                           what the results were made from
alpha=<alpha>/results.json          lm-eval's own results
alpha=<alpha>/samples_<task>.jsonl  lm-eval's own record of every document: what was asked,
                                    answered and counted
results.jsonl                       a row per arm, alpha, task and metric
"""

import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# lm-eval's bootstrap otherwise forks a process per core, which a process with a running jax should
# not do.
os.environ.setdefault('DISABLE_MULTIPROC', '1')

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable

from weightsteer_jax.evaluation.harness.model import SteeredLM
from weightsteer_jax.evaluation.harness.stops import check_generation
from weightsteer_jax.runtime.errors import InputError, NotFiniteError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.storage import files, made_from

# Resamples behind the standard error of a metric without a formula for the error; few have none.
BOOTSTRAPS = 1000


def find_tasks(
  names: Sequence[str], include_path: str | os.PathLike = '', *, include_defaults: bool = True
) -> tuple[list[str], TaskManager]:
  """(names of lm-eval's tasks, groups and tags with patterns resolved, what loads the tasks).

  A pattern is 'mmlu_*', say. lm-eval's own thousands of tasks, which take a while to read, are read
  only if the folder of `include_path` lacks a task.

  Args:
    include_path: folder with further tasks.
    include_defaults: whether lm-eval's own tasks may be used.

  Raises:
    InputError: if there are no names, no such folder, no such task, or a task's options are not
      supported.
  """
  if not names:
    raise InputError('no tasks were given: expected at least one of lm-eval')
  if include_path and not pathlib.Path(include_path).is_dir():
    raise InputError(
      f'no folder {include_path} to read tasks from{files.nearest(pathlib.Path(include_path))}'
    )
  # The folder alone first, if there is one; then with lm-eval's own tasks, if they may be used.
  attempts = [False] * bool(include_path) + [True] * include_defaults
  for defaults in attempts:
    manager = TaskManager(include_path=str(include_path) or None, include_defaults=defaults)
    found = {name: manager.match_tasks([name]) for name in names}
    if all(found.values()):
      break
  else:
    unknown = [
      f"'{name}'{did_you_mean(name, manager.all_tasks)}" for name in names if not found[name]
    ]
    raise InputError(
      f'lm-eval has no task {", ".join(unknown)}; `lm_eval ls tasks` lists them, and '
      '--include_path names a folder with others'
    )
  chosen = list(dict.fromkeys(name for matches in found.values() for name in matches))
  for name, task in manager.load(chosen)['tasks'].items():
    if task.get_config('output_type') == 'generate_until':
      check_generation(task.get_config('generation_kwargs') or {}, where=f"task '{name}'")
  return chosen, manager


def run(
  lm: Callable[[Sequence[float]], SteeredLM],
  alphas: Sequence[float],
  tasks: Sequence[str],
  manager: TaskManager,
  output: str | os.PathLike,
  *,
  inputs: Mapping[str, Any],
  **options: Any,
) -> list[dict[str, Any]]:
  """The result rows of all strengths.

  Strengths without results in the folder are computed, all of them together.

  Args:
    lm: makes the model of the strengths that are missing.
    inputs: {name: value} of what the results depend on, as errors name it.
    options: keywords of lm-eval's `simple_evaluate`.

  Raises:
    InputError: if the folder holds results of other inputs.
    NotFiniteError: if the model broke at some strengths; the results of the others are written.
  """
  folder = pathlib.Path(output)
  fresh = not (folder / 'plan.json').exists()
  if fresh:
    files.refuse_existing(folder, what='a run of lm-eval')
  made_from.check(
    folder / 'plan.json',
    _plain({**inputs, 'tasks': list(tasks), 'options': options}),
    fresh=fresh,
    what='a run of lm-eval',
    rows='results',
    remedy='Name another --output, or move that folder away',
  )
  # Adding zero turns -0.0 into 0.0.
  alphas = [float(alpha) + 0.0 for alpha in dict.fromkeys(alphas)]
  missing = [alpha for alpha in alphas if not (folder / _place(alpha)).exists()]
  broken: list[str] = []
  # Models at one strength each, which share what is computed.
  grid = lm(missing) if missing else None
  models = [grid.at(alpha) for alpha in missing] if grid is not None else []
  for model in models:
    try:
      evaluated = simple_evaluate(
        model, tasks=list(tasks), task_manager=manager, bootstrap_iters=BOOTSTRAPS, **options
      )
    except NotFiniteError as error:
      broken.append(str(error))
      continue
    _write(folder / _place(model.alpha), evaluated)
  rows = []
  for alpha in alphas:
    place = folder / _place(alpha)
    # A broken strength has no results.
    if place.exists():
      evaluated = files.read_json(place / 'results.json', what='the results of lm-eval')
      rows += rows_of(evaluated)
  files.write_jsonl(folder / 'results.jsonl', rows)
  if broken:
    raise NotFiniteError(
      f'{len(broken)} of {len(alphas)} strengths have no results: {"; ".join(broken)}'
    )
  return rows


def rows_of(evaluated: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Result rows {arm, task, metric, alpha, mean, sem, n} of lm-eval's results at one strength.

  A metric of a named filter is 'metric,filter'. A mean or an error that is missing or not finite is
  null.
  """
  rows = []
  for task, values in evaluated['results'].items():
    documents = evaluated['n-samples'].get(task, {}).get('effective')
    for key, value in values.items():
      # Keys are 'metric,filter'; those without a comma ('alias', 'sample_count') are no metrics.
      name, comma, filtered_by = key.partition(',')
      if not comma or name.endswith('_stderr'):
        continue
      rows.append(
        {
          'arm': evaluated['config']['arm'],
          'task': task,
          # lm-eval's name for no filter is 'none'.
          'metric': name if filtered_by == 'none' else key,
          'alpha': evaluated['config']['alpha'],
          'mean': _number(value),
          'sem': _number(values.get(f'{name}_stderr,{filtered_by}')),
          'n': values.get('sample_count', {}).get(key) or documents,
        }
      )
  return rows


def _number(value: Any) -> float | None:
  is_number = isinstance(value, (int, float)) and math.isfinite(value)
  return float(value) if is_number else None


def _place(alpha: float) -> str:
  return f'alpha={alpha:g}'


def _write(folder: pathlib.Path, evaluated: dict[str, Any]) -> None:
  samples = evaluated.pop('samples')
  with files.new_folder(folder, what='the results of lm-eval') as partial:
    files.write_json(partial / 'results.json', _plain(evaluated))
    for task, documents in samples.items():
      # Tasks may be named by a path.
      name = re.sub('[^A-Za-z0-9_.-]', '_', task)
      files.write_jsonl(partial / f'samples_{name}.jsonl', map(_plain, documents))


def _plain(value: Any) -> Any:
  """The value as JSON has it: lm-eval's objects as lm-eval writes them, no NaN, no infinity."""
  text = json.dumps(value, default=handle_non_serializable)
  # NaN and infinities, which JSON does not have, become null.
  return json.loads(text, parse_constant=lambda name: None)
