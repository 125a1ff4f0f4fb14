"""The file of finished rows: appended to one row at a time, repaired after a crash, never
rewritten.
"""

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


_KIND = dict(needs=(*RowKey._fields, 'value', 'status'), what='a row of a sweep', again='the sweep')


class Rows(journal.Journal):
  """The rows in a jsonl file, as a journal of {RowKey: row}."""

  def __init__(self, path: pathlib.Path):
    super().__init__(path, key=key_of, **_KIND)


def read(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
  """The rows of a file, in the order in which they finished; a last line without its end is left
  out.

  Raises:
    InputError: no such file. CorruptError: a line that is not a row; names it.
  """
  return journal.read(path, **_KIND)
