"""The file of finished rows: appended row by row, repaired after a crash, never rewritten."""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from weightsteer_jax.storage import journal


class RowKey(NamedTuple):
  """What makes a row one of its kind."""

  arm: str
  alpha: float
  task: str
  example: str
  sample: int


def key_of(row: Mapping[str, Any]) -> RowKey:
  """The key of a row."""
  return RowKey(row['arm'], float(row['alpha']), row['task'], row['example'], row['sample'])


# Columns of every row, and what errors call a row and its maker.
_NEEDS = (*RowKey._fields, 'value', 'status')
_WHAT = 'a row of a sweep'
_AGAIN = 'the sweep'


class Rows(journal.Journal):
  """The rows in a jsonl file, as a journal of {RowKey: row}."""

  def __init__(self, path: pathlib.Path):
    super().__init__(path, key=key_of, needs=_NEEDS, what=_WHAT, again=_AGAIN)


def read(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
  """The rows of a file, in the order in which they finished.

  A last line that is cut short is left out: the sweep may still be at work.

  Raises:
    InputError: if there is no such file.
    CorruptError: if a line is not a row; names the line.
  """
  return journal.read(path, needs=_NEEDS, what=_WHAT, again=_AGAIN)
