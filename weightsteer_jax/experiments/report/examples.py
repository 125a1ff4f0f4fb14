"""The sweep's rows for the page: how many answers each number rests on, and examples to look
through.

Two passes over rows.jsonl: the first counts everything, the second keeps the few examples that the
page embeds. So counts are always of the whole sweep, however long it is, and memory is bounded by
what is shown.
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

EXAMPLES_PER_TASK = 60
ROWS_PER_TASK = 2000  # fewer examples are shown where each has many alphas, arms and samples
TEXT_LIMIT = 4000  # characters of one text


@dataclasses.dataclass
class Counts:
  """Rows of one (arm, task, alpha) by status, and how many of them carry no value."""

  statuses: collections.Counter
  without_value: int = 0

  @property
  def total(self) -> int:
    return self.statuses.total()

  @property
  def failed(self) -> dict[str, int]:
    """{status: rows} of what is not ok, commonest first."""
    return {status: count for status, count in self.statuses.most_common() if status != 'ok'}


@dataclasses.dataclass(frozen=True)
class Survey:
  """Counts of every (arm, task, alpha), and the names of every task's examples."""

  counts: dict[tuple[str, str, float], Counts]
  examples: dict[str, tuple[str, ...]]
  rows: dict[str, int]  # rows of each task
  values: dict[str, tuple[float, float]]  # smallest and largest value of each task, for its colours

  @property
  def arms(self) -> list[str]:
    return list(dict.fromkeys(arm for arm, _, _ in self.counts))


def count_rows(workdir: str | Path, tasks: Sequence[SweptTask]) -> Survey:
  """One pass over all rows: counts and names, nothing else kept.

  Raises:
    InputError: a row of a task that the config does not name, or the same row twice.
  """
  counts: dict[tuple[str, str, float], Counts] = {}
  names: dict[str, dict[str, None]] = {task.name: {} for task in tasks}
  rows, values, seen = collections.Counter(), {}, set()
  for row in study.sample_rows(workdir):
    key = (row['arm'], row['alpha'], row['task'], str(row['example']), row['sample'])
    if row['task'] not in names:
      raise InputError(
        f'sweep/rows.jsonl: task {row["task"]!r} is not in config.json, which has '
        f'{", ".join(sorted(names)) or "no tasks"}'
      )
    if key in seen:
      raise InputError(
        f'sweep/rows.jsonl holds the row (arm, alpha, task, example, sample) = {key} twice, so '
        'counts would be wrong; remove one of the two'
      )
    seen.add(key)
    count = counts.setdefault(
      (row['arm'], row['task'], row['alpha']), Counts(collections.Counter())
    )
    count.statuses[str(row['status'])] += 1
    names[row['task']][str(row['example'])] = None
    rows[row['task']] += 1
    if math.isfinite(row['value']):
      low, high = values.get(row['task'], (row['value'], row['value']))
      values[row['task']] = (min(low, row['value']), max(high, row['value']))
    else:
      count.without_value += 1
  return Survey(counts, {task: tuple(column) for task, column in names.items()}, dict(rows), values)


def choose(survey: Survey, task: str) -> list[str]:
  """Names of the examples of `task` to embed, in natural order.

  Where there are too many, those whose names hash lowest: the draw cannot lean towards short
  prompts or good answers, and it is the same in every report of the same task.
  """
  names = survey.examples[task]
  if not names:
    return []
  per_example = max(1, survey.rows[task] // len(names))
  limit = min(EXAMPLES_PER_TASK, max(5, ROWS_PER_TASK // per_example))
  drawn = sorted(names, key=lambda name: hashlib.sha256(name.encode('utf-8', 'replace')).digest())[
    :limit
  ]
  return sorted(drawn, key=_natural)


def payload(
  workdir: str | Path, tasks: Sequence[SweptTask], survey: Survey
) -> list[dict[str, Any]]:
  """For each task that has rows, what the page's browser shows of it, as plain JSON without NaN.

  A row is [arm, alpha, sample, value or null, status, completion or null, log-probabilities or
  null].
  """
  shown = {task.name: {name: None for name in choose(survey, task.name)} for task in tasks}
  for row in study.sample_rows(workdir):
    examples, name = shown[row['task']], str(row['example'])
    if name not in examples:
      continue
    if examples[name] is None:
      examples[name] = _example(row)
    examples[name]['rows'].append(_row(row))
  return [_task(task, survey, shown[task.name]) for task in tasks if shown[task.name]]


def cut(text: str, limit: int = TEXT_LIMIT) -> str:
  """The text, or its beginning and how much is missing.

  >>> cut('abcdef', 4)
  'abcd [2 more characters in sweep/rows.jsonl]'
  """
  return (
    text
    if len(text) <= limit
    else f'{text[:limit]} [{len(text) - limit} more characters in sweep/rows.jsonl]'
  )


def _task(task: SweptTask, survey: Survey, examples: dict[str, dict]) -> dict[str, Any]:
  low, high = survey.values.get(task.name, (0.0, 1.0))
  # Rates keep the scale from 0 to 1 even where all answers were alike.
  low, high = (0.0, 1.0) if 0 <= low and high <= 1 else (low, high)
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
  messages = [
    [str(message.get('role', '')), cut(str(message.get('content', '')))]
    for message in row.get('messages') or []
  ]
  choices = [cut(str(choice)) for choice in row.get('choices') or []]
  return {
    'id': str(row['example']),
    'messages': messages,
    'choices': choices,
    'target': row.get('target'),
    'rows': [],
  }


def _row(row: dict[str, Any]) -> list[Any]:
  completion, logprobs = row.get('completion'), row.get('logprobs')
  return [
    row['arm'],
    row['alpha'],
    row['sample'],
    _finite(row['value']),
    str(row['status']),
    None if completion is None else cut(str(completion)),
    None if logprobs is None else [_finite(logprob) for logprob in logprobs],
  ]


def _finite(value: float | None) -> float | None:
  """A number that JSON can hold, at six digits; null for the rest."""
  return None if value is None or not math.isfinite(value) else float(f'{value:.6g}')


def _natural(name: str) -> list[tuple[int, int, str]]:
  """Sorting key that puts item 9 before item 10."""
  return [
    (0, int(part), '') if part.isdecimal() else (1, 0, part) for part in re.split(r'(\d+)', name)
  ]
