"""The file of finished rows: appended row by row, repaired after a crash, never rewritten."""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

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
# The words of error messages: a line, and the program to start again.
_WHAT = 'a row of a sweep'
_AGAIN = 'the sweep'


class Rows(journal.Journal):
  """The rows in a jsonl file, as a journal of {RowKey: row}."""

  def __init__(self, path: pathlib.Path):
    super().__init__(
      path,
      key=key_of,
      needs=_NEEDS,
      what=_WHAT,
      again=_AGAIN,
    )


def read(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
  """The rows of a file, in the order of finishing.

  A last line without an end is left out, because the sweep may still be at work.

  Raises:
    InputError: if the file does not exist.
    CorruptError: if a line is not a row; names the line.
  """
  return journal.read(path, needs=_NEEDS, what=_WHAT, again=_AGAIN)
