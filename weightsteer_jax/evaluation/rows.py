"""The file of finished rows: appended to one row at a time, repaired after a crash, never rewritten."""
import json
import logging
import os
import pathlib
from typing import Any, Iterator, Mapping, NamedTuple

from weightsteer_jax import distributed
from weightsteer_jax.errors import CorruptError, InputError, OutputError

_LOG = logging.getLogger(__name__)


class RowKey(NamedTuple):
  """What makes a row one of its kind."""
  arm: str
  alpha: float
  task: str
  example: str
  sample: int


class Rows:
  """The rows in a jsonl file; use as a context manager. Every process holds them, the main one writes them.

  Attributes:
    done: {RowKey: row} of what the file holds.
  Raises:
    CorruptError: a line that is not a row, or a row twice. OutputError: the file cannot be written.
  """
  def __init__(self, path: pathlib.Path):
    self.path = path
    self.done: dict[RowKey, dict[str, Any]] = {}
    self._file, self._end = None, 0
    distributed.see(path, distributed.on_main(self._open))
    for row in read(path):
      key = key_of(row)
      if key in self.done:
        raise CorruptError(
            f'{path} holds the row {tuple(key)} twice: two sweeps wrote to it at once; move it away and start again')
      self.done[key] = row

  def __enter__(self) -> 'Rows':
    return self

  def __exit__(self, *_) -> None:
    if self._file:
      self._file.close()

  def append(self, row: Mapping[str, Any]) -> None:
    """Adds a finished row.

    Raises:
      OutputError: it could not be written whole (a full disk); the file is as it was before.
    """
    if self._file:
      self._write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b'\n')
    self.done[key_of(row)] = dict(row)

  def _open(self) -> int:
    """Opens the file for writing; its size."""
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      # Unbuffered: a row is on its way to disk, or not at all, when `append` returns.
      self._file = open(self.path, 'a+b', buffering=0)
    except OSError as error:
      raise OutputError(f'{self.path} cannot be written: {error.strerror or error}') from error
    self._end = self._repair()
    return self._end

  def _write(self, line: bytes) -> None:
    try:
      if self._file.write(line) != len(line):
        raise OSError('no space left')
    except OSError as error:
      os.ftruncate(self._file.fileno(), self._end)
      raise OutputError(f'{self.path}: a row could not be written ({error.strerror or error}); '
                        f'the {len(self.done)} rows before it are safe: make room and start again') from error
    self._end += len(line)

  def _repair(self) -> int:
    """The size of the file, once a last line that a crash cut short has been dropped."""
    size = self._file.seek(0, os.SEEK_END)
    self._file.seek(0)
    whole = self._file.read().rfind(b'\n') + 1 if size else 0
    if whole < size:
      _LOG.warning('%s: the last line was cut short when an earlier run ended; its %d bytes are dropped and that row '
                   'is computed again', self.path, size - whole)
      os.ftruncate(self._file.fileno(), whole)
    return whole


def read(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
  """The rows of a file, in the order in which they finished; a last line without its end is left out.

  Raises:
    InputError: no such file. CorruptError: a line that is not a row; names it.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(f'no rows at {path}: run the sweep first')
  with path.open('rb') as lines:
    for number, line in enumerate(lines, 1):
      if line.endswith(b'\n'):
        yield _parse(line, f'{path}:{number}')


def key_of(row: Mapping[str, Any]) -> RowKey:
  """The key of a row."""
  return RowKey(row['arm'], float(row['alpha']), row['task'], row['example'], row['sample'])


def _parse(line: bytes, where: str) -> dict[str, Any]:
  try:
    row = json.loads(line)
  except ValueError as error:
    raise CorruptError(f'{where} is not JSON ({error}); remove that line and run the sweep again') from error
  missing = [name for name in (*RowKey._fields, 'value', 'status') if not isinstance(row, dict) or name not in row]
  if missing:
    raise CorruptError(
        f'{where} is no row of a sweep: it lacks {", ".join(missing)}; remove that line and run the sweep again')
  return row
