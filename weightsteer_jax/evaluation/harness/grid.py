"""lm-evaluation-harness over a grid of strengths, into a folder:

plan.json                         what the results were made from
alpha=<alpha>/results.json        lm-eval's own results
alpha=<alpha>/samples_<task>.jsonl   lm-eval's own record of every document: what was asked,
answered and counted
results.jsonl                     a row per arm, alpha, task and metric
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

BOOTSTRAPS = (
  1000  # resamples behind the standard error of a metric that has no formula for it; few have none
)


def find_tasks(
  names: Sequence[str], include_path: str | os.PathLike = '', *, include_defaults: bool = True
) -> tuple[list[str], TaskManager]:
  """(names of lm-eval's tasks, groups and tags, patterns such as 'mmlu_*' resolved; what loads
  them).

  Reads lm-eval's own thousands of tasks, which takes a while, only where the folder of
  `include_path` has not all that is asked for.

  Args:
    include_path: folder with further tasks. include_defaults: whether lm-eval's own are there too.

  Raises:
    InputError: no names, no such folder, a task that is not there, or one whose options are not
      supported.
  """
  if not names:
    raise InputError('no tasks were given: expected at least one of lm-eval')
  if include_path and not pathlib.Path(include_path).is_dir():
    raise InputError(
      f'no folder {include_path} to read tasks from{files.nearest(pathlib.Path(include_path))}'
    )
  for defaults in [*[False] * bool(include_path), *[True] * include_defaults]:
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
  """The rows of all strengths; those that the folder has no results of yet are computed, all of
  them together.

  Args:
    lm: makes the model of the strengths that are missing.
    inputs: {name: value} of what the results depend on, as errors name it.
    options: of lm-eval's `simple_evaluate`.

  Raises:
    InputError: a folder with results of other inputs. NotFiniteError: the model broke at some
      strengths; the results of the others are written.
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
  alphas = [float(alpha) + 0.0 for alpha in dict.fromkeys(alphas)]
  missing = [alpha for alpha in alphas if not (folder / _place(alpha)).exists()]
  broken = []
  grid = lm(missing) if missing else None
  for alpha in missing:
    try:
      found = simple_evaluate(
        grid.at(alpha),
        tasks=list(tasks),
        task_manager=manager,
        bootstrap_iters=BOOTSTRAPS,
        **options,
      )
    except NotFiniteError as error:
      broken.append(str(error))
      continue
    _write(folder / _place(alpha), found)
  rows = [
    row
    for alpha in alphas
    if (folder / _place(alpha)).exists()
    for row in rows_of(_read(folder, alpha))
  ]
  files.write_jsonl(folder / 'results.jsonl', rows)
  if broken:
    raise NotFiniteError(
      f'{len(broken)} of {len(alphas)} strengths have no results: {"; ".join(broken)}'
    )
  return rows


def rows_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Result rows {arm, task, metric, alpha, mean, sem, n} of lm-eval's results at one strength.

  A metric of a filter that has a name is 'metric,filter'. A mean or an error that is not there, or
  not finite, is null.
  """
  arm, alpha = found['config']['arm'], found['config']['alpha']
  rows = []
  for task, values in found['results'].items():
    for key, value in values.items():
      name, comma, kept = key.partition(',')
      if not comma or name.endswith('_stderr'):
        continue
      counted = values.get('sample_count', {}).get(key) or found['n-samples'].get(task, {}).get(
        'effective'
      )
      rows.append(
        dict(
          arm=arm,
          task=task,
          metric=name if kept == 'none' else key,
          alpha=alpha,
          mean=_number(value),
          sem=_number(values.get(f'{name}_stderr,{kept}')),
          n=counted,
        )
      )
  return rows


def _number(value: Any) -> float | None:
  return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _place(alpha: float) -> str:
  return f'alpha={alpha:g}'


def _read(folder: pathlib.Path, alpha: float) -> Any:
  return files.read_json(folder / _place(alpha) / 'results.json', what='the results of lm-eval')


def _write(folder: pathlib.Path, found: dict[str, Any]) -> None:
  samples = found.pop('samples')
  with files.new_folder(folder, what='the results of lm-eval') as partial:
    files.write_json(partial / 'results.json', _plain(found))
    for task, documents in samples.items():
      files.write_jsonl(
        partial / f'samples_{re.sub("[^A-Za-z0-9_.-]", "_", task)}.jsonl', map(_plain, documents)
      )


def _plain(value: Any) -> Any:
  """The value as JSON has it; lm-eval's objects as it writes them, NaN and infinities as null."""
  return json.loads(
    json.dumps(value, default=handle_non_serializable), parse_constant=lambda name: None
  )
