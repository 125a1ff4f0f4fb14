"""The file of finished rows: appended row by row, repaired after a crash, never rewritten."""

import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from weightsteer_jax.runtime import progress
from weightsteer_jax.storage import journal


class RowKey(NamedTuple):
  """The five columns that together name a row of a sweep."""

  arm: str
  alpha: float
  task: str
  example: str
  sample: int


def key_of(row: Mapping[str, Any]) -> RowKey:
  """The key of a row."""
  return RowKey(
    arm=row['arm'],
    # An alpha may come as an integer; 1 and 1.0 are one strength.
    alpha=float(row['alpha']),
    task=row['task'],
    example=row['example'],
    sample=row['sample'],
  )


# Columns of every row; a line that lacks a column is no row.
_NEEDS = (*RowKey._fields, 'value', 'status')


def fault_of(row: Mapping[str, Any]) -> str:
  """What is wrong with the values of a row, or ''.

  >>> row = {'alpha': 1, 'value': 9.0, 'status': 'ok', 'completion': 'Yes.'}
  >>> fault_of(row)
  'value is 9.0, and a rate lies between 0 and 1'
  >>> fault_of({**row, 'value': 1})
  ''
  """
  for name in ('arm', 'task', 'example', 'sample'):
    if not isinstance(row.get(name, ''), (str, int)):
      return f'{name} is {row[name]!r}, and no name'
  if not _is_finite(row['alpha']):
    return f'alpha is {row["alpha"]!r}, and no number'
  value = row['value']
  choices = _list(row.get('choices'))
  if value is None:
    # Answers in text may be for a judge to score.
    if choices and row['status'] == 'ok':
      return 'value is null, and the status ok'
  elif not _is_finite(value):
    return f'value is {value!r}, and no number'
  # A text alone is scored by its loss, which has no upper bound.
  elif ('completion' in row or len(choices) > 1) and not 0 <= value <= 1:
    return f'value is {value!r}, and a rate lies between 0 and 1'
  for logprob in _list(row.get('logprobs')):
    if logprob is not None and not _is_finite(logprob):
      return f'a log-probability is {logprob!r}'
  return ''


def _list(value: Any) -> list[Any]:
  return value if isinstance(value, list) else []


def _is_finite(value: Any) -> bool:
  return isinstance(value, (int, float)) and math.isfinite(value)


FORMAT = journal.Format(
  needs=_NEEDS, what='a row of a sweep', again='the sweep', key=key_of, fault=fault_of
)


class Rows(journal.Journal):
  """The rows in a jsonl file, as a journal of {RowKey: row}."""

  def __init__(self, path: pathlib.Path):
    super().__init__(
      path,
      key=key_of,
      needs=FORMAT.needs,
      what=FORMAT.what,
      again=FORMAT.again,
      fault=FORMAT.fault,
    )


def read(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
  """The rows of a file, in the order of finishing.

  A last line without an end is left out, because the sweep may still be at work. Rows without a
  value among rows of their task that have one are told.

  Raises:
    InputError: if the file does not exist.
    CorruptError: as `journal.read`; names the line.
  """
  # task -> rows of status ok, with a value and without.
  counts: dict[str, list[int]] = {}
  for row in journal.read(path, FORMAT):
    if row['status'] == 'ok':
      counts.setdefault(row['task'], [0, 0])[row['value'] is None] += 1
    yield row
  for task, (valued, missing) in counts.items():
    if valued and missing:
      progress.say_once(
        f"{path}: {missing} rows of task '{task}' have no value (null), although their status is "
        f'ok, and count in no mean; {valued} have one'
      )
