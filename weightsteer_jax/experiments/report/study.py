"""What a workdir says about a finished sweep, read from its files alone: no model, no jax.

The report trusts nothing it reads: a missing key, an unknown task or a repeated row is an error
that names the file and the line, because a figure drawn from half a table looks exactly like a
figure drawn from a whole one.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsteer_jax.runtime.errors import CorruptError, InputError
from weightsteer_jax.storage import files

ROLES = ('behaviour', 'capability')
# The failure accounting that every task reports beside its own metrics.
FAILURES = (
  'valid_rate',
  'refused_rate',
  'truncated_rate',
  'repetitive_rate',
  'unparsable_rate',
  'unjudged_rate',
)


@dataclasses.dataclass(frozen=True)
class SweptTask:
  """One task of the sweep: what it measures and in which role."""

  name: str
  role: str  # 'behaviour': what the direction should move; 'capability': what it should leave alone
  kind: str = ''
  description: str = ''


@dataclasses.dataclass(frozen=True)
class Cell:
  """One measured number: a mean, its standard error and the number of examples behind it. Not
  measured is NaN.
  """

  mean: float
  sem: float
  n: int

  @property
  def measured(self) -> bool:
    return math.isfinite(self.mean)


# {task: {alpha: Cell}} of one arm.
Cells = dict[str, dict[float, Cell]]


@dataclasses.dataclass(frozen=True)
class Study:
  """A sweep's files, parsed: config, tasks in the order of the config, result rows, each
  direction's provenance, and how far judges agree, if several were asked.
  """

  workdir: Path
  config: dict[str, Any]
  tasks: tuple[SweptTask, ...]
  results: tuple[dict[str, Any], ...]
  directions: dict[str, dict[str, Any]]
  agreement: tuple[dict[str, Any], ...] = ()

  @property
  def arms(self) -> list[str]:
    """Names of the arms, in the order in which the results first mention them."""
    return list(dict.fromkeys(row['arm'] for row in self.results))

  @property
  def roles(self) -> dict[str, str]:
    return {task.name: task.role for task in self.tasks}


def read(workdir: str | Path) -> Study:
  """The `Study` in `workdir`: config.json, results.jsonl, directions/*/direction.json, and
  agreement.jsonl if it is there.

  Raises:
    InputError: a file or a key is missing, a task has an unknown role, or results name a task that
      the config does not.
    CorruptError: a file is not JSON.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise InputError(
      f'no such workdir: {workdir}; expected a folder with config.json and results.jsonl'
    )
  config = files.read_json(workdir / 'config.json', what='the config of the run')
  tasks = _tasks(config, workdir / 'config.json')
  results = tuple(_results(workdir / 'results.jsonl', {task.name for task in tasks}))
  directions = {
    path.parent.name: files.read_json(path, what='the provenance of a direction')
    # A hidden folder is a direction still being written.
    for path in sorted(workdir.glob('directions/*/direction.json'))
    if path.parent.name[0] != '.'
  }
  path = workdir / 'agreement.jsonl'
  agreement = tuple(row for _, row in _json_lines(path)) if path.is_file() else ()
  return Study(workdir, config, tasks, results, directions, agreement)


def sample_rows(workdir: str | Path) -> Iterator[dict[str, Any]]:
  """The sweep's rows, one at a time, so that a long sweep never has to fit in memory.

  A last line without its newline is what a running sweep has not finished writing: it is left out.

  Raises:
    InputError: there is no sweep/rows.jsonl, or a row lacks one of its naming keys.
    CorruptError: a line is not JSON.
  """
  path = Path(workdir) / 'sweep' / 'rows.jsonl'
  for where, row in _json_lines(path, skip_unfinished=True):
    _require(row, ('arm', 'alpha', 'task', 'example', 'sample', 'status'), where)
    yield {**row, 'alpha': _number(row['alpha']), 'value': _number(row.get('value'))}


def cells(results: Sequence[Mapping[str, Any]], arm: str) -> Cells:
  """{task: {alpha: Cell}} of `arm`, from result rows; of a task with several metrics, the metric
  that comes first.

  >>> cells([{'arm': 'a', 'task': 't', 'metric': 'rate', 'alpha': 0, 'mean': 0.5, 'sem': None, 'n': 4}], 'a')
  {'t': {0.0: Cell(mean=0.5, sem=nan, n=4)}}

  Raises:
    InputError: two rows give the same number twice.
  """
  metrics: dict[str, str] = {}
  table: Cells = {}
  for row in results:
    if row['arm'] != arm or metrics.setdefault(row['task'], row['metric']) != row['metric']:
      continue
    column, alpha = table.setdefault(row['task'], {}), float(row['alpha'])
    if alpha in column:
      raise InputError(
        f'results hold {row["metric"]} of task {row["task"]!r} twice at arm {arm!r}, alpha '
        f'{alpha:g}; write results.jsonl anew from the rows'
      )
    column[alpha] = Cell(_number(row['mean']), _number(row['sem']), int(row['n']))
  return table


def metric_of(results: Sequence[Mapping[str, Any]], task: str) -> str:
  """Name of the metric that `cells` reads for `task`; '' where the task has no results."""
  return next((row['metric'] for row in results if row['task'] == task), '')


def alphas_of(table: Cells) -> list[float]:
  """All alphas of an arm, ascending."""
  return sorted({alpha for column in table.values() for alpha in column})


def format_alpha(alpha: float) -> str:
  """An alpha as the report writes it: signed, except for the base.

  >>> [format_alpha(alpha) for alpha in (-0.5, 0.0, 1.0)]
  ['-0.5', '0', '+1']
  """
  return '0' if alpha == 0 else f'{alpha:+g}'


def _tasks(config: Mapping[str, Any], path: Path) -> tuple[SweptTask, ...]:
  _require(config, ('tasks',), str(path))
  entries = config['tasks']
  if isinstance(entries, Mapping):
    entries = [{'name': name, **entry} for name, entry in entries.items()]
  tasks = []
  for index, entry in enumerate(entries):
    _require(entry, ('name', 'role'), f'{path}: tasks[{index}]')
    if entry['role'] not in ROLES:
      raise InputError(
        f'{path}: task {entry["name"]!r} has role {entry["role"]!r}; expected one of '
        f'{", ".join(ROLES)}'
      )
    tasks.append(
      SweptTask(
        entry['name'], entry['role'], entry.get('kind') or '', entry.get('description') or ''
      )
    )
  return tuple(tasks)


def _results(path: Path, known: set[str]) -> Iterator[dict[str, Any]]:
  for where, row in _json_lines(path):
    _require(row, ('arm', 'task', 'metric', 'alpha', 'mean', 'sem', 'n'), where)
    if row['task'] not in known:
      raise InputError(
        f'{where}: task {row["task"]!r} is not in config.json, which has {", ".join(sorted(known))}'
      )
    yield row


def _require(mapping: Any, keys: Sequence[str], where: str) -> None:
  if not isinstance(mapping, Mapping):
    raise InputError(f'{where}: expected a JSON object, got {type(mapping).__name__}')
  missing = [key for key in keys if key not in mapping]
  if missing:
    raise InputError(
      f'{where}: missing {", ".join(missing)}; there are '
      f'{", ".join(map(str, mapping)) or "no keys"}'
    )


def _number(value: Any) -> float:
  """A float, where JSON's null means not measured."""
  return math.nan if value is None else float(value)


def _json_lines(path: Path, skip_unfinished: bool = False) -> Iterator[tuple[str, Any]]:
  if not path.is_file():
    raise InputError(f'no {path}; the report needs it: run the sweep first')
  with path.open(encoding='utf-8') as lines:
    for number, line in enumerate(lines, start=1):
      if skip_unfinished and not line.endswith('\n'):
        return
      if line.strip():
        try:
          yield f'{path}:{number}', json.loads(line)
        except ValueError as error:
          raise CorruptError(
            f'{path}:{number} is not JSON ({error}); remove that line, run the sweep again'
          ) from None
