"""Files of finished work: appended to line by line, repaired after a crash, never rewritten."""

import dataclasses
import gc
import io
import json
import logging
import os
import pathlib
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from weightsteer_jax.runtime import json_text, processes
from weightsteer_jax.runtime.errors import CorruptError, InputError, OutputError
from weightsteer_jax.storage import files, line_checks, locks

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
    replaces: whether a later line may replace an earlier line of the same key; otherwise a second
      line of a key is left out if it is the same, and else an error.
    fault: a line -> what is wrong with its values, or ''.

  Attributes:
    done: {key: line} of the lines in the file.

  Raises:
    Busy: if another process, or another part of this one, has the file open for writing.
    CorruptError: if a line is not JSON, lacks a column, was changed after it was written or has a
      faulty value, or a key comes twice.
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
    fault: Callable[[Line], str] | None = None,
  ):
    self.path = pathlib.Path(path)
    self.done: dict[Hashable, dict[str, Any]] = {}
    self._key = key
    self._format = Format(needs, what, again, None if replaces else key, fault)
    # Open on the main process only.
    self._file: io.FileIO | None = None
    self._end = 0
    self._chain = line_checks.Chain(again)
    self._lock = threading.Lock()
    # A second writer would write every line again.
    self._writer: locks.Lock | None = None
    try:
      # The main process repairs the file first, and the others wait until they see that size.
      processes.see(self.path, processes.on_main(self._open))
      if not processes.is_main():
        self._load()
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
        text = json.dumps(line, ensure_ascii=False, allow_nan=False)
        checked = self._chain.checked(_encoded(text[:-1]))
        self._write(self._file, checked)
        self._chain.advance(checked)
      self.done[self._key(line)] = dict(line)

  def _open(self) -> int:
    """Opens the file for writing, repairs and reads it, and returns the size in bytes."""
    self._writer = locks.Lock(self.path, what='the file')
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      # Unbuffered: when `append` returns, the operating system has the whole line or no part of it.
      self._file = open(self.path, 'a+b', buffering=0)
    except OSError as error:
      raise OutputError(f'{self.path} cannot be written: {error.strerror or error}') from error
    self._cut(self._file)
    self._load()
    if self._chain.gaps:
      self._mend()
    return self._end

  def _cut(self, file: io.FileIO) -> None:
    """Drops half a line at the end."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    self._end = file.read().rfind(b'\n') + 1
    if self._end < size:
      _LOG.warning(
        '%s: the last line was cut short when an earlier run ended; its %d bytes are dropped and '
        'that row is made again',
        self.path,
        size - self._end,
      )
      os.ftruncate(file.fileno(), self._end)

  def _load(self) -> None:
    """Reads the file into `done`."""
    self._chain = self._format.chain(mends=True)
    # Python's collector would go over all lines again and again, for a third of the time.
    collected = gc.isenabled()
    gc.disable()
    try:
      for _, line in _lines(self.path, self._format, self._chain):
        self.done[self._key(line)] = line
    finally:
      if collected:
        gc.enable()

  def _mend(self) -> None:
    """Writes the file anew, with checks that say what is there now."""
    _LOG.warning(
      '%s: lines were removed, doubled or moved at %d places since they were written; what is '
      'missing is made again',
      self.path,
      self._chain.gaps,
    )
    chain = self._format.chain()
    parts = []
    for text, _ in _lines(self.path, self._format, self._format.chain(mends=True)):
      checked = chain.checked(line_checks.strip(text))
      chain.advance(checked)
      parts.append(checked)
    content = b''.join(parts)
    if self._file:
      self._file.close()
    files.write_bytes(self.path, content)
    self._file = open(self.path, 'a+b', buffering=0)
    self._end = len(content)
    self._chain = chain

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


@dataclasses.dataclass(frozen=True)
class Format:
  """What the lines of a file are.

  Attributes:
    needs, what, again, fault: as of `Journal`.
    key: line -> key, where a line that comes twice is left out; None where lines replace lines.
  """

  needs: tuple[str, ...]
  what: str
  again: str
  key: Callable[[Line], Hashable] | None = None
  fault: Callable[[Line], str] | None = None

  def chain(self, *, mends: bool = False) -> line_checks.Chain:
    """The checks of a file of such lines, from its beginning."""
    return line_checks.Chain(self.again, key=self.key, mends=mends)


def read(path: str | os.PathLike, form: Format) -> Iterator[dict[str, Any]]:
  """The lines of a file, in the order of finishing, without their checks.

  A last line cut short is left out: the writing process may still be at work.

  Raises:
    InputError: if the file is missing.
    CorruptError: if a line is not JSON, lacks a column, has a faulty value, was changed after it
      was written, does not follow the line before it, or comes twice; the error names the line.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(f'no {path.stem} at {path}: run {form.again} first')
  for _, line in _lines(path, form, form.chain()):
    yield line


def _lines(
  path: pathlib.Path, form: Format, chain: line_checks.Chain
) -> Iterator[tuple[bytes, dict[str, Any]]]:
  """(text, line) of each whole line that counts."""
  with path.open('rb') as lines:
    for number, text in enumerate(lines, 1):
      # Only a whole line ends so.
      if not text.endswith(b'\n'):
        break
      where = f'{path}:{number}'
      line = _parse(text, where, form)
      if chain.take(text, line, where):
        yield text, line
  chain.tell(path)


def _encoded(text: str) -> bytes:
  # Half of a surrogate pair, which a model can write, becomes the escape that JSON reads as the
  # same character.
  return text.encode('utf-8', 'backslashreplace')


def _parse(text: bytes, where: str, form: Format) -> dict[str, Any]:
  remedy = f'remove that line and run {form.again} again'
  try:
    line = json_text.parse(text)
  except ValueError as error:
    raise CorruptError(f'{where} is not JSON ({error}); {remedy}') from error
  # JSON that is no object lacks every column.
  columns = line if isinstance(line, dict) else {}
  missing = [name for name in form.needs if name not in columns]
  if missing:
    raise CorruptError(f'{where} is not {form.what}: it lacks {", ".join(missing)}; {remedy}')
  fault = form.fault(line) if form.fault else ''
  if fault:
    raise CorruptError(f'{where}: {fault}; {remedy}')
  return line
