"""Files of finished work: appended to one line at a time, repaired after a crash, never
rewritten.
"""

import json
import logging
import os
import pathlib
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from weightsteer_jax.runtime import processes
from weightsteer_jax.runtime.errors import CorruptError, InputError, OutputError

_LOG = logging.getLogger(__name__)

Line = Mapping[str, Any]


class Journal:
  """The lines of a jsonl file; use as a context manager. Every process holds them, the main one
  writes them.

  Args:
    path: of the file, made if it is not there.
    key: a line -> what makes it one of its kind.
    needs: the columns a line must have.
    what: one line, in words, as in 'a row of a sweep'.
    again: the program that makes the lines, as in 'the sweep'.
    replaces: whether a later line may take an earlier one's place; otherwise a key that comes twice
      is an error.

  Attributes:
    done: {key: line} of what the file holds.

  Raises:
    CorruptError: a line that is none, or a key twice. OutputError: the file cannot be written.
  """

  def __init__(
    self,
    path: pathlib.Path,
    *,
    key: Callable[[Line], Hashable],
    needs: tuple[str, ...],
    what: str,
    again: str,
    replaces: bool = False,
  ):
    self.path, self._key, self._again = pathlib.Path(path), key, again
    self.done: dict[Hashable, dict[str, Any]] = {}
    self._file, self._end, self._lock = None, 0, threading.Lock()
    processes.see(self.path, processes.on_main(self._open))
    for line in read(self.path, needs=needs, what=what, again=again):
      if key(line) in self.done and not replaces:
        raise CorruptError(
          f'{path} holds {what} {_words(key(line))} twice: two runs wrote to it at once; '
          'move it away and start again'
        )
      self.done[key(line)] = line

  def __enter__(self) -> 'Journal':
    return self

  def __exit__(self, *_) -> None:
    if self._file:
      self._file.close()

  def append(self, line: Line) -> None:
    """Adds a finished line; several threads may.

    Raises:
      OutputError: it could not be written whole (a full disk); the file is as it was before.
    """
    with self._lock:
      if self._file:
        # Half of a surrogate pair, which a model can write, becomes the escape that JSON reads as
        # the same character.
        self._write(
          json.dumps(line, ensure_ascii=False, allow_nan=False).encode('utf-8', 'backslashreplace')
          + b'\n'
        )
      self.done[self._key(line)] = dict(line)

  def _open(self) -> int:
    """Opens the file for writing; its size."""
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      # Unbuffered: a line is on its way to disk, or not at all, when `append` returns.
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
      raise OutputError(
        f'{self.path}: a row could not be written ({error.strerror or error}); the '
        f'{len(self.done)} rows before it are safe: make room and start again'
      ) from error
    self._end += len(line)

  def _repair(self) -> int:
    """The size of the file, once a last line that a crash cut short has been dropped."""
    size = self._file.seek(0, os.SEEK_END)
    self._file.seek(0)
    whole = self._file.read().rfind(b'\n') + 1 if size else 0
    if whole < size:
      _LOG.warning(
        '%s: the last line was cut short when an earlier run ended; its %d bytes are dropped and '
        'that row is made again',
        self.path,
        size - whole,
      )
      os.ftruncate(self._file.fileno(), whole)
    return whole


def read(
  path: str | os.PathLike, *, needs: tuple[str, ...], what: str, again: str
) -> Iterator[dict[str, Any]]:
  """The lines of a file, in the order in which they finished; a last one without its end is left
  out.

  Raises:
    InputError: no such file. CorruptError: a line that is none; names it.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(f'no {path.stem} at {path}: run {again} first')
  with path.open('rb') as lines:
    for number, line in enumerate(lines, 1):
      if line.endswith(b'\n'):
        yield _parse(line, f'{path}:{number}', needs, what, again)


def _parse(
  text: bytes, where: str, needs: tuple[str, ...], what: str, again: str
) -> dict[str, Any]:
  try:
    line = json.loads(text)
  except ValueError as error:
    raise CorruptError(
      f'{where} is not JSON ({error}); remove that line and run {again} again'
    ) from error
  missing = [name for name in needs if not isinstance(line, dict) or name not in line]
  if missing:
    raise CorruptError(
      f'{where} is not {what}: it lacks {", ".join(missing)}; remove that line and run '
      f'{again} again'
    )
  return line


def _words(key: Hashable) -> str:
  return str(tuple(key) if isinstance(key, tuple) else key)
