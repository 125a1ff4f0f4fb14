"""A finished sweep, read from the files of a workdir alone: no model, no jax.

The report trusts no file: a missing key, an unknown task or a repeated row is an error that names
the file and the line, because a figure drawn from half a table looks exactly like a figure drawn
from a whole one.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsteer_jax.evaluation import rows
from weightsteer_jax.runtime import json_text
from weightsteer_jax.runtime.errors import CorruptError, InputError
from weightsteer_jax.storage import files, line_checks

# Share of unreadable answers above which a mean is marked.
MOSTLY_UNREAD = 0.5
# What plain texts are called in results.
TEXTS = 'texts'
# What the keys of a line of results.jsonl hold.
_TEXTS = ('arm', 'task', 'metric', 'groups')
_NUMBERS = (
  'alpha',
  'mean',
  'sem',
  'low',
  'high',
  'change',
  'change_sem',
  'change_low',
  'change_high',
)
_WHOLES = ('n', 'values', 'answers', 'unreadable', 'asked', 'grid')
# In the order in which tables show tasks.
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
# Metrics of which less is better.
LOSSES = ('nats_per_token', 'bits_per_byte')
# What became of thoughts, where a model thinks.
THOUGHTS = (
  'thought_rate',
  'thought_tokens',
  'thought_cut_rate',
  'thought_leak_rate',
  'thought_only_rate',
)


@dataclasses.dataclass(frozen=True)
class SweptTask:
  """One task of the sweep, as the config has the task.

  Attributes:
    role: 'behaviour', to be moved by the direction, or 'capability', to be kept.
  """

  name: str
  role: str
  kind: str = ''
  description: str = ''


@dataclasses.dataclass(frozen=True)
class Cell:
  """One measured number.

  Results of earlier versions have no intervals, changes and counts of what could not be read.

  Attributes:
    mean: NaN where not measured.
    sem: standard error of the mean; NaN where not known.
    n: number of questions behind the mean.
    low, high: ends of the mean's 95 % interval; NaN where not known.
    change: the mean less that at alpha 0; NaN where not known, as are its error (paired by
      question) and the ends of its 95 % interval.
    answers: number of answers behind the mean.
    groups: what the n questions are called.
    unreadable, asked: answers that could not be read, of how many.
    grid: number of the sweep that the answers come from; 0 where not on record.
  """

  mean: float
  sem: float
  n: int
  low: float = math.nan
  high: float = math.nan
  change: float = math.nan
  change_sem: float = math.nan
  change_low: float = math.nan
  change_high: float = math.nan
  answers: int = 0
  groups: str = 'questions'
  unreadable: int = 0
  asked: int = 0
  grid: int = 0

  @property
  def measured(self) -> bool:
    """Whether the number was measured."""
    return math.isfinite(self.mean)

  @property
  def bar(self) -> tuple[float, float]:
    """Ends of the bar to draw: the 95 % interval.

    Results of earlier versions have no interval, and get one standard error either way.
    """
    if math.isfinite(self.low):
      return self.low, self.high
    sem = self.sem if math.isfinite(self.sem) else 0.0
    return self.mean - sem, self.mean + sem

  @property
  def unread(self) -> float:
    """Share of the answers that could not be read."""
    return self.unreadable / self.asked if self.asked else 0.0

  @property
  def few(self) -> bool:
    """Whether most answers could not be read, so that the mean says little."""
    return self.unread > MOSTLY_UNREAD

  @property
  def counted(self) -> str:
    """The answers behind the mean, and the questions behind these.

    >>> Cell(0.5, 0.1, 47, answers=100, groups='claims').counted
    '100 answers on 47 claims'
    >>> Cell(2.1, 0.1, 9, answers=9, groups='texts').counted
    '9 texts'
    """
    things = self.things.removesuffix('s') if self.answers == 1 else self.things
    words = f'{self.answers} {things}'
    return words if self.answers == self.n else f'{words} on {self.n} {self.groups}'

  @property
  def things(self) -> str:
    """What the mean is over: texts where a loss was measured, answers elsewhere."""
    return TEXTS if self.groups == TEXTS else 'answers'


# {task: {alpha: Cell}} of one arm.
Cells = dict[str, dict[float, Cell]]


@dataclasses.dataclass(frozen=True)
class Study:
  """The parsed files of a sweep.

  Attributes:
    tasks: in the order of the config.
    results: rows of results.jsonl.
    directions: {name: provenance} of each direction.
    agreement: rows of agreement.jsonl, if several judges were asked.
    times: lines of times.jsonl: what each stage took.
  """

  workdir: Path
  config: dict[str, Any]
  tasks: tuple[SweptTask, ...]
  results: tuple[dict[str, Any], ...]
  directions: dict[str, dict[str, Any]]
  agreement: tuple[dict[str, Any], ...] = ()
  times: tuple[dict[str, Any], ...] = ()

  @property
  def arms(self) -> list[str]:
    """Names of the arms, in the order of the results."""
    # A dict keeps the order of first appearance, and a set would not.
    return list(dict.fromkeys(row['arm'] for row in self.results))

  @property
  def roles(self) -> dict[str, str]:
    """{task: role}."""
    return {task.name: task.role for task in self.tasks}


def read(workdir: str | Path) -> Study:
  """The sweep in a workdir.

  Read are config.json, results.jsonl, directions/*/direction.json, and agreement.jsonl if present.

  Raises:
    InputError: if a file or a key is missing, a task has an unknown role, or results name a task
      that the config lacks.
    CorruptError: if a file is not JSON.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise InputError(
      f'no such workdir: {workdir}; expected a folder with config.json and results.jsonl'
    )
  config = files.read_json(workdir / 'config.json', what='the config of the run')
  tasks = _tasks(config, workdir / 'config.json')
  known = {task.name for task in tasks}
  results = tuple(_results(workdir / 'results.jsonl', known))
  directions = {}
  for path in sorted(workdir.glob('directions/*/direction.json')):
    # A hidden folder is a direction still being written.
    if path.parent.name[0] != '.':
      record = files.read_json(path, what='the provenance of a direction')
      directions[path.parent.name] = record
  # Only sweeps with several judges have the first file, and earlier versions wrote no times.
  agreement = _optional(workdir / 'agreement.jsonl')
  times = _optional(workdir / 'times.jsonl')
  return Study(workdir, config, tasks, results, directions, agreement, times)


def _optional(path: Path) -> tuple[dict[str, Any], ...]:
  """The JSON objects in the lines of a file that need not be there."""
  if not path.is_file():
    return ()
  lines = []
  for where, line in _json_lines(path):
    _require(line, (), where)
    lines.append(line)
  return tuple(lines)


def sample_rows(workdir: str | Path) -> Iterator[dict[str, Any]]:
  """The sweep's rows, one at a time, so that a long sweep never has to fit in memory.

  A last line without newline is left out: a running sweep has not finished writing.

  Raises:
    InputError: if sweep/rows.jsonl is missing, or a row lacks a naming key.
    CorruptError: if a line is not JSON, or a key holds what it cannot hold.
  """
  for _, row in placed_rows(workdir):
    yield row


def placed_rows(workdir: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """The sweep's rows as `sample_rows`, each behind the byte at which its line begins."""
  path = rows_path(workdir)
  chain = rows.FORMAT.chain()
  for place, where, text in _lines(path, skip_unfinished=True):
    line = _parse(text, where)
    row = _as_row(line, where)
    # A row that is there twice, the same both times, counts once.
    if chain.take(text, line, where):
      yield place, row
  chain.tell(path)


def rows_path(workdir: str | Path) -> Path:
  """The file of the sweep's rows."""
  return Path(workdir) / 'sweep' / 'rows.jsonl'


def parse_row(line: bytes, where: str) -> dict[str, Any]:
  """A line of rows.jsonl as a row, its values checked as far as a page reads them.

  Args:
    where: the line in an error's words.

  Raises:
    InputError, CorruptError: as `sample_rows`.
  """
  return _as_row(_parse(line, where), where)


def _as_row(row: Any, where: str) -> dict[str, Any]:
  _require(row, ('arm', 'alpha', 'task', 'example', 'sample', 'status'), where)
  _check_types(row, where, wholes=('sample', 'target'), lists=('logprobs', 'messages', 'choices'))
  try:
    # Failed rows have no value.
    parsed = {**row, 'alpha': float(row['alpha']), 'value': _number(row.get('value'))}
    logprobs = [_number(logprob) for logprob in row.get('logprobs') or []]
    parsed['messages'] = [dict(message) for message in row.get('messages') or []]
  except (TypeError, ValueError, OverflowError) as error:
    raise _of_other_type(where, str(error)) from None
  if not math.isfinite(parsed['alpha']):
    raise _of_other_type(where, 'alpha is no number')
  fault = rows.fault_of({'value': None, **row})
  if fault:
    raise CorruptError(f'{where}: {fault}; remove that line, run the sweep again')
  parsed.pop(line_checks.KEY, None)
  # Names are keys of tables, whatever JSON holds.
  for key in ('arm', 'task', 'example'):
    parsed[key] = str(row[key])
  if 'logprobs' in row:
    parsed['logprobs'] = logprobs
  return parsed


def _check_types(
  row: Mapping[str, Any],
  where: str,
  *,
  texts: Sequence[str] = (),
  numbers: Sequence[str] = (),
  wholes: Sequence[str] = (),
  lists: Sequence[str] = (),
) -> None:
  """Raises CorruptError if a key that is there holds neither null nor what its list says.

  JSON's NaN and Infinity count as numbers, and as no whole ones.
  """
  kinds: list[tuple[Sequence[str], type | tuple[type, ...], str]] = [
    (texts, str, 'a text'),
    (numbers, (int, float), 'a number'),
    (wholes, int, 'a whole number'),
    (lists, list, 'a list'),
  ]
  for keys, types, name in kinds:
    for key in keys:
      value = row.get(key)
      if value is None:
        continue
      # A bool is an int for Python, and a float holds no more than 10^308.
      too_large = isinstance(value, int) and abs(value) > 2**63
      # No figure can be drawn with half a surrogate pair.
      is_torn = isinstance(value, str) and json_text.half_pair(value) >= 0
      if not isinstance(value, types) or isinstance(value, bool) or too_large or is_torn:
        raise _of_other_type(where, f'{key} is {str(value)[:40]!r}, expected {name}')


def _of_other_type(where: str, problem: str) -> CorruptError:
  return CorruptError(
    f'{where}: a value is of another type than a sweep writes ({problem}); remove that line, run '
    'the sweep again'
  )


def judgements(workdir: str | Path) -> Iterator[dict[str, Any]]:
  """The lines of sweep/judgements.jsonl in order; none where the sweep has no judges.

  Raises:
    InputError: if a line lacks a key.
    CorruptError: if a line is not JSON, or holds what it cannot hold.
  """
  path = Path(workdir) / 'sweep' / 'judgements.jsonl'
  if not path.is_file():
    return
  keys = ('arm', 'alpha', 'task', 'example', 'sample', 'judge', 'purpose', 'score', 'status')
  chain = line_checks.Chain('the judges')
  for _, where, text in _lines(path, skip_unfinished=True):
    line = _parse(text, where)
    _require(line, keys, where)
    chain.take(text, line, where)
    try:
      score = _number(line['score'])
      alpha = _number(line['alpha'])
    except (TypeError, ValueError) as error:
      raise CorruptError(f'{where}: {error}; remove that line, judge again') from None
    texts = {key: str(line[key]) for key in ('arm', 'task', 'example', 'judge', 'purpose')}
    known = score if math.isfinite(score) else None
    yield {**line, **texts, 'alpha': alpha, 'score': known, 'status': str(line['status'])}


def cells(results: Sequence[Mapping[str, Any]], arm: str) -> Cells:
  """{task: {alpha: Cell}} of an arm, from result rows.

  A task with several metrics is shown by the first metric.

  >>> row = {'arm': 'a', 'task': 't', 'metric': 'rate', 'alpha': 0}
  >>> cells([{**row, 'mean': 0.5, 'sem': None, 'n': 4}], 'a')['t'][0.0].mean
  0.5

  Raises:
    InputError: if two rows give the same number.
  """
  metrics: dict[str, str] = {}
  table: Cells = {}
  for row in results:
    if row['arm'] != arm:
      continue
    # The first metric of a task is the task's; others are shown in a table only.
    if metrics.setdefault(row['task'], row['metric']) != row['metric']:
      continue
    column = table.setdefault(row['task'], {})
    alpha = float(row['alpha'])
    # Two runs written to one file: neither number can be told to be the right one.
    if alpha in column:
      raise InputError(
        f'results hold {row["metric"]} of task {row["task"]!r} twice at arm {arm!r}, alpha '
        f'{alpha:g}; write results.jsonl anew from the rows'
      )
    column[alpha] = cell_of(row)
  return table


def cell_of(row: Mapping[str, Any]) -> Cell:
  """A row of results.jsonl as a number."""
  # Results of earlier versions have the number of values alone, which of a loss are tokens.
  values = row['n'] if row['metric'] in LOSSES else row.get('values')
  answers = row.get('answers') or values or row['n']
  return Cell(
    mean=_number(row['mean']),
    sem=_number(row['sem']),
    n=int(row['n']),
    low=_number(row.get('low')),
    high=_number(row.get('high')),
    change=_number(row.get('change')),
    change_sem=_number(row.get('change_sem')),
    change_low=_number(row.get('change_low')),
    change_high=_number(row.get('change_high')),
    answers=int(answers),
    groups=str(row.get('groups') or 'questions'),
    unreadable=int(row.get('unreadable') or 0),
    asked=int(row.get('asked') or 0),
    grid=int(row.get('grid') or 0),
  )


def column(
  results: Sequence[Mapping[str, Any]], arm: str, task: str, metric: str
) -> dict[float, Cell]:
  """{alpha: Cell} of one metric of a task under an arm; empty where not measured."""
  chosen = {}
  for row in results:
    if (row['arm'], row['task'], row['metric']) == (arm, task, metric):
      chosen[float(row['alpha'])] = cell_of(row)
  return chosen


def metric_of(results: Sequence[Mapping[str, Any]], task: str) -> str:
  """Name of the metric that `cells` reads for `task`; '' where the task has no results."""
  return next((row['metric'] for row in results if row['task'] == task), '')


def alphas_of(table: Cells) -> list[float]:
  """All alphas of an arm, ascending."""
  return sorted({alpha for column in table.values() for alpha in column})


def format_alpha(alpha: float) -> str:
  """An alpha as the report writes alphas: signed, except for the base.

  >>> [format_alpha(alpha) for alpha in (-0.5, 0.0, 1.0)]
  ['-0.5', '0', '+1']
  """
  return '0' if alpha == 0 else f'{alpha:+g}'


def _check_config(config: Mapping[str, Any], path: Path) -> None:
  """Raises InputError if an entry that the page shows is of another type than a run writes."""
  kinds: list[tuple[str, type | tuple[type, ...], str]] = [
    ('tasks', (Mapping, list), 'a JSON object'),
    ('command', (str, list), 'a text'),
    ('chat_template', Mapping, 'a JSON object'),
  ]
  for key, types, name in kinds:
    value = config.get(key)
    if value is not None and not isinstance(value, types):
      raise InputError(f'{path}: {key} is {value!r:.40}, expected {name}')


def _tasks(config: Mapping[str, Any], path: Path) -> tuple[SweptTask, ...]:
  """The tasks of a config.json, checked."""
  _require(config, ('tasks',), str(path))
  _check_config(config, path)
  entries = config['tasks']
  # A config of ours names tasks by key; a list is as good.
  if isinstance(entries, Mapping):
    entries = [{'name': name, **dict(entry or {})} for name, entry in entries.items()]
  tasks = []
  for index, entry in enumerate(entries):
    where = f'{path}: tasks[{index}]'
    _require(entry, ('name', 'role'), where)
    for key in ('name', 'role', 'kind', 'description'):
      # Kind and description may be missing or null.
      default = None if key in ('name', 'role') else ''
      if not isinstance(entry.get(key) or default, str):
        raise InputError(f'{where}: {key} is {entry[key]!r:.40}, expected a text')
    if entry['role'] not in ROLES:
      raise InputError(
        f'{path}: task {entry["name"]!r} has role {entry["role"]!r}; expected one of '
        f'{", ".join(ROLES)}'
      )
    kind = entry.get('kind') or ''
    description = entry.get('description') or ''
    tasks.append(SweptTask(entry['name'], entry['role'], kind, description))
  return tuple(tasks)


def _results(path: Path, known: set[str]) -> Iterator[dict[str, Any]]:
  """The rows of results.jsonl, checked against the known tasks."""
  for where, row in _json_lines(path):
    _require(row, ('arm', 'task', 'metric', 'alpha', 'mean', 'sem', 'n'), where)
    _check_types(row, where, texts=_TEXTS, numbers=_NUMBERS, wholes=_WHOLES)
    # Without these there is no number to show.
    missing = [key for key in ('arm', 'task', 'metric', 'alpha', 'n') if row[key] is None]
    if missing or not math.isfinite(row['alpha']):
      raise _of_other_type(where, f'{", ".join(missing) or "alpha"} is null or no number')
    if row['task'] not in known:
      raise InputError(
        f'{where}: task {row["task"]!r} is not in config.json, which has {", ".join(sorted(known))}'
      )
    yield row


def _require(mapping: Any, keys: Sequence[str], where: str) -> None:
  """Raises InputError if a JSON value is no object or lacks a key."""
  if not isinstance(mapping, Mapping):
    raise InputError(f'{where}: expected a JSON object, got {type(mapping).__name__}')
  missing = [key for key in keys if key not in mapping]
  if missing:
    present = ', '.join(map(str, mapping)) or 'no keys'
    raise InputError(f'{where}: missing {", ".join(missing)}; there are {present}')


def _number(value: Any) -> float:
  """The number, or NaN for JSON's null: not measured."""
  return math.nan if value is None else float(value)


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
  """(file:line, value) of each line, blank lines left out."""
  for _, where, line in _lines(path):
    yield where, _parse(line, where)


def _lines(path: Path, skip_unfinished: bool = False) -> Iterator[tuple[int, str, bytes]]:
  """(first byte, file:line, line) of each line, blank lines left out."""
  if not path.is_file():
    raise InputError(f'no {path}; the report needs it: run the sweep first')
  place = 0
  # Bytes and no text: places in the file are bytes.
  with path.open('rb') as lines:
    for number, line in enumerate(lines, start=1):
      # A sweep may be running.
      if skip_unfinished and not line.endswith(b'\n'):
        return
      if line.strip():
        yield place, f'{path}:{number}', line
      place += len(line)


def _parse(line: bytes, where: str) -> Any:
  """The JSON value of a line."""
  try:
    return json_text.parse(line)
  except ValueError as error:
    raise CorruptError(
      f'{where} is not JSON ({error}); remove that line, run the sweep again'
    ) from None
