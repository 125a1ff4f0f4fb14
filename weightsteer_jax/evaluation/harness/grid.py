"""lm-evaluation-harness over a grid of strengths, into a folder.

plan.json                     what the results were made from
alpha=<alpha>/                a strength, named and filled as lm-eval fills the folder of a model:
  results_<time>.json         lm-eval's own results
  samples_<task>_<time>.jsonl lm-eval's own record of every document: what was asked, answered and
                              counted
results.jsonl                 a row per arm, alpha, task and metric

Source of the names: lm_eval/loggers/evaluation_tracker.py and lm_eval/utils.py, 0.4.13.
"""

import datetime
import itertools
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
  """(names of lm-eval's tasks, groups and tags with patterns resolved, manager of the tasks).

  A pattern is 'mmlu_*', say. lm-eval's own thousands of tasks take a while to read, and are read
  only if the folder of `include_path` lacks a task.

  Args:
    include_path: folder with further tasks.
    include_defaults: whether lm-eval's own tasks may be used.

  Raises:
    InputError: if no names are given, the folder or a task is missing, or a task's options are not
      supported.
  """
  if not names:
    raise InputError('no tasks were given: expected at least one of lm-eval')
  if include_path and not pathlib.Path(include_path).is_dir():
    near = files.path_hint(pathlib.Path(include_path))
    raise InputError(f'no folder {include_path} to read tasks from{near}')
  # The folder alone first, if there is one; then with lm-eval's own tasks, if they may be used.
  attempts = [False] * bool(include_path) + [True] * include_defaults
  for defaults in attempts:
    manager = TaskManager(include_path=str(include_path) or None, include_defaults=defaults)
    matches = {name: manager.match_tasks([name]) for name in names}
    if all(matches.values()):
      break
  else:
    missing = [name for name in names if not matches[name]]
    unknown = [f"'{name}'{did_you_mean(name, manager.all_tasks)}" for name in missing]
    raise InputError(
      f'lm-eval has no task {", ".join(unknown)}; `lm_eval ls tasks` lists them, and '
      '--include_path names a folder with others'
    )
  # Two patterns may match one task, which is run once.
  chosen = list(dict.fromkeys(itertools.chain(*matches.values())))
  # Groups and tags are checked by their tasks, before anything is computed.
  for name, task in manager.load(chosen)['tasks'].items():
    if task.get_config('output_type') == 'generate_until':
      options = task.get_config('generation_kwargs') or {}
      check_generation(options, where=f"task '{name}'")
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
    lm: makes the model of the missing strengths.
    inputs: {name in errors: value} of everything that the results depend on.
    options: keywords of lm-eval's `simple_evaluate`.

  Raises:
    InputError: if the folder holds results of other inputs.
    NotFiniteError: if the model broke at some strengths; the results of the others are written.
  """
  folder = pathlib.Path(output)
  plan = folder / 'plan.json'
  fresh = not plan.exists()
  if fresh:
    files.refuse_existing(folder, what='a run of lm-eval')
  made_from.check_and_record(
    plan,
    _plain({**inputs, 'tasks': list(tasks), 'options': options}),
    fresh=fresh,
    what='a run of lm-eval',
    rows='results',
    remedy='Name another --output, or move that folder away',
  )
  # Adding zero turns -0.0 into 0.0.
  alphas = [float(alpha) + 0.0 for alpha in dict.fromkeys(alphas)]
  missing = [alpha for alpha in alphas if not _place(folder, alpha).exists()]
  broken: list[str] = []
  if missing:
    broken = _evaluate(lm(missing), missing, folder, tasks, manager, options)
  rows = []
  for alpha in alphas:
    place = _place(folder, alpha)
    # A broken strength has no results.
    if place.exists():
      rows += rows_of(files.read_json(_results_file(place), what='the results of lm-eval'))
  files.write_jsonl(folder / 'results.jsonl', rows)
  if broken:
    raise NotFiniteError(
      f'{len(broken)} of {len(alphas)} strengths have no results: {"; ".join(broken)}'
    )
  return rows


def _evaluate(
  grid: SteeredLM,
  alphas: Sequence[float],
  folder: pathlib.Path,
  tasks: Sequence[str],
  manager: TaskManager,
  options: Mapping[str, Any],
) -> list[str]:
  """Writes the results at each strength; returns a message for each broken strength."""
  broken = []
  for alpha in alphas:
    # Models at one strength each, which share the answers computed for the whole grid.
    model = grid.at(alpha)
    try:
      evaluated = simple_evaluate(
        model, tasks=list(tasks), task_manager=manager, bootstrap_iters=BOOTSTRAPS, **options
      )
    except NotFiniteError as error:
      # The other strengths may be whole.
      broken.append(str(error))
      continue
    _write(_place(folder, alpha), evaluated)
  return broken


def rows_of(evaluated: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Result rows {arm, task, metric, alpha, mean, sem, n} of lm-eval's results at one strength.

  A metric of a named filter is 'metric,filter'. A mean or an error is None if missing or not
  finite.
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
  # lm-eval writes 'N/A' for an error without a formula.
  if not isinstance(value, (int, float)) or not math.isfinite(value):
    return None
  return float(value)


def _place(folder: pathlib.Path, alpha: float) -> pathlib.Path:
  return folder / f'alpha={alpha:g}'


def _results_file(place: pathlib.Path) -> pathlib.Path:
  """The results at a strength; earlier versions wrote no time into the name."""
  return max(place.glob('results_*.json'), default=place / 'results.json')


def _write(folder: pathlib.Path, evaluated: dict[str, Any]) -> None:
  # The documents go into files of their own, one a task.
  samples = evaluated.pop('samples')
  # As lm-eval spells a time in the name of a file.
  now = datetime.datetime.now().isoformat().replace(':', '-')
  with files.new_folder(folder, what='the results of lm-eval') as partial:
    files.write_json(partial / f'results_{now}.json', _plain(evaluated))
    for task, documents in samples.items():
      # Tasks may be named by a path.
      name = re.sub('[^A-Za-z0-9_.-]', '_', task)
      rows = map(_plain, documents)
      files.write_jsonl(partial / f'samples_{name}_{now}.jsonl', rows)


def _plain(value: Any) -> Any:
  """The value in JSON's types: lm-eval's objects as lm-eval writes them, no NaN, no infinity."""
  text = json.dumps(value, default=handle_non_serializable)
  # NaN and infinities, which JSON does not have, become null.
  return json.loads(text, parse_constant=lambda name: None)
