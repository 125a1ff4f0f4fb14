"""Files of finished work: appended to line by line, repaired after a crash, never rewritten."""

import io
import json
import logging
import os
import pathlib
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from weightsteer_jax.runtime import processes
from weightsteer_jax.runtime.errors import CorruptError, InputError, OutputError
from weightsteer_jax.storage import locks

_LOG = logging.getLogger(__name__)

Line = Mapping[str, Any]


class Journal:
  """The lines of a jsonl file, by key; a context manager.

  Every process holds all lines, and the main process writes the file.

  Args:
    path: the file, made if missing.
    key: the function from a line to its key.
    needs: the columns of every line.
    what: a line in an error's words, as in 'a row of a sweep'.
    again: the program to make lines, as in 'the sweep'.
    replaces: whether a later line may replace an earlier line of the same key; otherwise the second
      line of a key is an error.

  Attributes:
    done: {key: line} of the lines in the file.

  Raises:
    Busy: if another process, or another part of this one, has the file open for writing.
    CorruptError: if a line is not JSON or lacks a column, or a key comes twice.
    OutputError: if the file cannot be written.
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
    self.path = pathlib.Path(path)
    self.done: dict[Hashable, dict[str, Any]] = {}
    self._key = key
    # Open on the main process only.
    self._file: io.FileIO | None = None
    self._end = 0
    self._lock = threading.Lock()
    # A second writer would write every line again.
    self._writer: locks.Lock | None = None
    try:
      # The main process repairs the file first, and the others wait until they see that size.
      processes.see(self.path, processes.on_main(self._open))
      for line in read(self.path, needs=needs, what=what, again=again):
        line_key = key(line)
        if line_key in self.done and not replaces:
          # A named tuple is shown as a plain one.
          shown = tuple(line_key) if isinstance(line_key, tuple) else line_key
          raise CorruptError(
            f'{path} holds {what} {shown} twice: two runs wrote to it at once; '
            'move it away and start again'
          )
        self.done[line_key] = line
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> 'Journal':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Closes the file, and gives the right to write back."""
    if self._file:
      self._file.close()
    if self._writer:
      self._writer.release()

  def append(self, line: Line) -> None:
    """Adds a finished line; several threads may call this.

    Raises:
      OutputError: if the line could not be written whole (a full disk); the file is as before.
    """
    with self._lock:
      if self._file:
        text = json.dumps(line, ensure_ascii=False, allow_nan=False) + '\n'
        # Half of a surrogate pair, which a model can write, becomes the escape that JSON reads as
        # the same character.
        self._write(self._file, text.encode('utf-8', 'backslashreplace'))
      self.done[self._key(line)] = dict(line)

  def _open(self) -> int:
    """Opens the file for writing, drops half a line at the end, and returns the size in bytes."""
    self._writer = locks.Lock(self.path, what='the file')
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      # Unbuffered: when `append` returns, the operating system has the whole line or no part of it.
      self._file = open(self.path, 'a+b', buffering=0)
    except OSError as error:
      raise OutputError(f'{self.path} cannot be written: {error.strerror or error}') from error
    size = self._file.seek(0, os.SEEK_END)
    self._file.seek(0)
    self._end = self._file.read().rfind(b'\n') + 1
    if self._end < size:
      _LOG.warning(
        '%s: the last line was cut short when an earlier run ended; its %d bytes are dropped and '
        'that row is made again',
        self.path,
        size - self._end,
      )
      os.ftruncate(self._file.fileno(), self._end)
    return self._end

  def _write(self, file: io.FileIO, line: bytes) -> None:
    try:
      if file.write(line) != len(line):
        raise OSError('no space left')
    except OSError as error:
      # The part that was written goes, so that the next line does not continue it.
      os.ftruncate(file.fileno(), self._end)
      raise OutputError(
        f'{self.path}: a row could not be written ({error.strerror or error}); the '
        f'{len(self.done)} rows before it are safe: make room and start again'
      ) from error
    self._end += len(line)


def read(
  path: str | os.PathLike, *, needs: tuple[str, ...], what: str, again: str
) -> Iterator[dict[str, Any]]:
  """The lines of a file, in the order of finishing.

  A last line cut short is left out: the writing process may still be at work.

  Raises:
    InputError: if the file is missing.
    CorruptError: if a line is not JSON or lacks a column; the error names the line.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(f'no {path.stem} at {path}: run {again} first')
  with path.open('rb') as lines:
    for number, line in enumerate(lines, 1):
      # Only a whole line ends so.
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
  # JSON that is no object lacks every column.
  columns = line if isinstance(line, dict) else {}
  missing = [name for name in needs if name not in columns]
  if missing:
    raise CorruptError(
      f'{where} is not {what}: it lacks {", ".join(missing)}; remove that line and run '
      f'{again} again'
    )
  return line
