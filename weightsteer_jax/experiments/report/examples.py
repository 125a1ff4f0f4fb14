"""The sweep's rows for the page: counts of answers, and examples to look through.

Two passes over rows.jsonl: the first counts everything, the second keeps the few examples that the
page embeds. So counts are always of the whole sweep, and memory is bounded by the examples shown,
however long the sweep is.
"""

import collections
import dataclasses
import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightsteer_jax.experiments.report import study
from weightsteer_jax.experiments.report.study import SweptTask
from weightsteer_jax.runtime.errors import InputError

# Limits that keep a page at some megabytes: examples of a task, rows of a task (an example has a
# row for every arm, alpha and sample), characters of a text.
EXAMPLES_PER_TASK = 60
ROWS_PER_TASK = 2000
TEXT_LIMIT = 4000


@dataclasses.dataclass
class Counts:
  """Rows of one (arm, task, alpha).

  Attributes:
    statuses: {status: rows}.
    without_value: rows without a value.
  """

  statuses: collections.Counter
  without_value: int = 0

  @property
  def total(self) -> int:
    """Number of all rows."""
    return self.statuses.total()

  @property
  def failed(self) -> dict[str, int]:
    """{status: rows} of all but the ok rows, commonest first."""
    return {status: count for status, count in self.statuses.most_common() if status != 'ok'}


@dataclasses.dataclass(frozen=True)
class Survey:
  """Counts over all rows of a sweep.

  Attributes:
    counts: {(arm, task, alpha): Counts}.
    examples: {task: names of the examples}.
    rows: {task: number of rows}.
    values: {task: (smallest, largest) value}, for the colours of the page.
    cut: {task: {how generation ended: rows whose thought was cut}}.
    behind: {task: what its choices are scored behind}, where it is not the model's own prompt.
  """

  counts: dict[tuple[str, str, float], Counts]
  examples: dict[str, tuple[str, ...]]
  rows: dict[str, int]
  values: dict[str, tuple[float, float]]
  cut: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
  behind: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def arms(self) -> list[str]:
    """Names of the arms, in the order of the rows."""
    return list(dict.fromkeys(arm for arm, _, _ in self.counts))


def count_rows(workdir: str | Path, tasks: Sequence[SweptTask]) -> Survey:
  """The counts of a sweep, from one pass over all rows.

  Raises:
    InputError: if the config lacks a row's task, or the same row comes twice.
  """
  counts: dict[tuple[str, str, float], Counts] = {}
  names: dict[str, dict[str, None]] = {task.name: {} for task in tasks}
  rows: collections.Counter[str] = collections.Counter()
  values: dict[str, tuple[float, float]] = {}
  cut: dict[str, collections.Counter[str]] = {}
  behind: dict[str, str] = {}
  # Keys and no rows, so that a long sweep fits in memory.
  seen = set()
  for row in study.sample_rows(workdir):
    task = row['task']
    key = (row['arm'], row['alpha'], task, str(row['example']), row['sample'])
    if task not in names:
      raise InputError(
        f'sweep/rows.jsonl: task {task!r} is not in config.json, which has '
        f'{", ".join(sorted(names)) or "no tasks"}'
      )
    if key in seen:
      raise InputError(
        f'sweep/rows.jsonl holds the row (arm, alpha, task, example, sample) = {key} twice, so '
        'counts would be wrong; remove one of the two'
      )
    seen.add(key)
    count = counts.setdefault((row['arm'], task, row['alpha']), Counts(collections.Counter()))
    count.statuses[str(row['status'])] += 1
    # A dict as a set that keeps the order.
    names[task][str(row['example'])] = None
    rows[task] += 1
    if row.get('thought_cut'):
      cut.setdefault(task, collections.Counter())[str(row.get('finish'))] += 1
    if row.get('behind'):
      behind[task] = str(row['behind'])
    value = row['value']
    # Infinite values have no colour, and JSON has none.
    if math.isfinite(value):
      low, high = values.get(task, (value, value))
      values[task] = (min(low, value), max(high, value))
    else:
      count.without_value += 1
  examples = {task: tuple(names_of) for task, names_of in names.items()}
  return Survey(counts, examples, dict(rows), values, cut, behind)


def choose(survey: Survey, task: str) -> list[str]:
  """Names of the examples of `task` to embed, in natural order.

  Of too many examples, the names with the lowest hashes are taken. The draw cannot lean towards
  short prompts or good answers, and every report of a task draws the same examples.
  """
  names = survey.examples[task]
  if not names:
    return []
  per_example = max(1, survey.rows[task] // len(names))
  # Five at least, however many rows an example has.
  limit = max(5, ROWS_PER_TASK // per_example)
  limit = min(limit, EXAMPLES_PER_TASK)

  def digest(name: str) -> bytes:
    # Half of a surrogate pair, which JSON may hold, has no UTF-8.
    return hashlib.sha256(name.encode('utf-8', 'replace')).digest()

  # Digits as numbers: item 9 stands before item 10.
  def natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r'(\d+)', name)
    return [(0, int(part), '') if part.isdecimal() else (1, 0, part) for part in parts]

  drawn = sorted(names, key=digest)[:limit]
  return sorted(drawn, key=natural)


def payload(
  workdir: str | Path, tasks: Sequence[SweptTask], survey: Survey
) -> list[dict[str, Any]]:
  """Each task with rows, for the page's browser, as plain JSON without NaN.

  A row is [arm, alpha, sample, value or null, status, completion or null, log-probabilities or
  null], and where the model thought, also the thought and whether it leaked.
  """
  shown: dict[str, dict[str, dict[str, Any]]] = {}
  for task in tasks:
    # Empty until the example's first row is read; the order is the order on the page.
    shown[task.name] = {name: {} for name in choose(survey, task.name)}
  for row in study.sample_rows(workdir):
    examples = shown[row['task']]
    example = examples.get(str(row['example']))
    if example is None:
      continue
    # Prompt and choices are the same in all rows of an example.
    if not example:
      example.update(_example(row))
    example['rows'].append(_row(row))
  # A reader comes for the behaviours; sorted() keeps the order of the config within a role.
  ordered = sorted(tasks, key=lambda task: study.ROLES.index(task.role))
  return [_task(task, survey, shown[task.name]) for task in ordered if shown[task.name]]


def cut(text: str, limit: int = TEXT_LIMIT) -> str:
  """The text, or the beginning with a note of how much is missing.

  >>> cut('abcdef', 4)
  'abcd [2 more characters in sweep/rows.jsonl]'
  """
  if len(text) <= limit:
    return text
  return f'{text[:limit]} [{len(text) - limit} more characters in sweep/rows.jsonl]'


def _task(task: SweptTask, survey: Survey, examples: dict[str, dict]) -> dict[str, Any]:
  low, high = survey.values.get(task.name, (0.0, 1.0))
  # Rates keep the scale from 0 to 1 even where all answers were alike.
  if 0 <= low and high <= 1:
    low = 0.0
    high = 1.0
  # By alpha, then by sample.
  for example in examples.values():
    example['rows'].sort(key=lambda row: (row[1], row[2]))
  return {
    'name': task.name,
    'role': task.role,
    'description': task.description,
    'low': low,
    'high': high,
    'total': len(survey.examples[task.name]),
    'examples': list(examples.values()),
  }


def _example(row: dict[str, Any]) -> dict[str, Any]:
  # Foreign JSON: texts may be missing or of another type.
  messages = []
  for message in row.get('messages') or []:
    role = str(message.get('role', ''))
    content = str(message.get('content', ''))
    messages.append([role, cut(content)])
  choices = [cut(str(choice)) for choice in row.get('choices') or []]
  return {
    'id': str(row['example']),
    'messages': messages,
    'choices': choices,
    'target': row.get('target'),
    'rows': [],
  }


def _row(row: dict[str, Any]) -> list[Any]:
  # Generated answers have a completion, choices have log-probabilities.
  completion = row.get('completion')
  if completion is not None:
    completion = cut(str(completion))
  logprobs = row.get('logprobs')
  if logprobs is not None:
    logprobs = [_finite(logprob) for logprob in logprobs]
  # Rows of models without thoughts are no longer than they were.
  thought = []
  if row.get('thought'):
    thought = [cut(str(row['thought'])), bool(row.get('thought_leaked'))]
  # A list and not an object: the same keys in thousands of rows would make the page longer.
  return [
    row['arm'],
    row['alpha'],
    row['sample'],
    _finite(row['value']),
    str(row['status']),
    completion,
    logprobs,
    *thought,
  ]


def _finite(value: float | None) -> float | None:
  """The number at six digits, or None where JSON has no number."""
  if value is None or not math.isfinite(value):
    return None
  return float(f'{value:.6g}')
