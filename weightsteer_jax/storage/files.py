"""Files and folders that appear whole or not at all."""

import contextlib
import functools
import json
import os
import pathlib
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from weightsteer_jax.runtime import json_text, messages
from weightsteer_jax.runtime.errors import CorruptError, InputError, OutputError
from weightsteer_jax.storage import writers

Path = str | pathlib.Path

# How long a failed folder is removed again: orbax's threads go on for a moment when one has met a
# full disk.
REMOVAL_SECONDS = 5.0
# Times that a removed folder is looked for before it counts as gone.
LOOKS = 4
# How old what another host's process left has to be until it is removed. Nobody here can tell
# whether that process lives, and none writes one folder for a week.
FOREIGN_SECONDS = 7 * 24 * 3600.0
# What `partial_path` and earlier versions name what is being written: the process, where the name
# tells of one, is in the group `writer`.
_PARTIAL = re.compile(
  rf'\..+\.(?:(?P<writer>{writers.WORD.pattern})-[0-9a-f]{{8}}|[0-9]+(?:-[0-9a-f]{{8}})?'
  r'|[0-9a-f]{8})\.partial'
)


def read_json(path: Path, *, what: str, finite: bool = False) -> Any:
  """The JSON value in a file.

  Args:
    what: the file in an error's words, as in 'the config of a run'.
    finite: see `json_text.parse`.

  Raises:
    InputError: if the file is missing, or the user may not read the file.
    CorruptError: if the file holds no whole JSON.
  """
  try:
    return json_text.parse(_read(path, what), finite=finite)
  except ValueError as error:
    raise CorruptError(f'{path} ({what}) is not valid JSON: {error}') from error


def _read(path: Path, what: str) -> bytes:
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(f'{what} was expected at {path}, but there is no such file{path_hint(path)}')
  try:
    return path.read_bytes()
  except OSError as error:
    raise InputError(f'{path} ({what}) cannot be read: {error.strerror or error}') from error


def write_bytes(path: Path, content: bytes) -> None:
  """Writes a file whole, or not at all, in place of an earlier file of the name.

  Raises:
    OutputError: if the file could not be written; nothing is left behind.
  """
  path = pathlib.Path(path)
  # Renaming replaces a file at once, where both names are in the same folder.
  temporary = partial_path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers_once(path.parent.absolute())
    with open(temporary, 'wb') as file:
      file.write(content)
      file.flush()
      # Before the rename: after a power cut the name must not stand for an empty file.
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise OutputError(
      f'{path} could not be written: {error.strerror or error}; nothing was left behind'
    ) from error


def write_text(path: Path, text: str) -> None:
  """Writes a UTF-8 file as `write_bytes` does."""
  # Half of a surrogate pair, which a model can write, becomes an escape as in \ud83d: JSON reads
  # that as the same character.
  write_bytes(path, text.encode('utf-8', 'backslashreplace'))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes one JSON object a line as `write_bytes` does, NaN refused."""
  lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + '\n' for row in rows]
  write_text(path, ''.join(lines))


def read_jsonl(path: Path, *, what: str) -> Iterator[Any]:
  """The JSON value of each line of a file that we wrote.

  Args:
    what: the file in an error's words, as in 'the results of a sweep'.

  Raises:
    InputError: if the file is missing, or the user may not read the file.
    CorruptError: if a line holds no whole JSON.
  """
  for number, line in enumerate(_read(path, what).splitlines(), start=1):
    try:
      yield json_text.parse(line)
    except ValueError as error:
      raise CorruptError(f'{path}:{number} ({what}) is not valid JSON: {error}') from error


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON file in one piece, indented, NaN refused."""
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + '\n')


def append_json(path: Path, value: Any) -> None:
  """Adds a value to a jsonl file as a line.

  Raises:
    OutputError: if the line could not be written.
  """
  try:
    with open(path, 'a', encoding='utf-8') as file:
      file.write(json.dumps(value, allow_nan=False) + '\n')
  except OSError as error:
    raise OutputError(f'{path} could not be written: {error.strerror or error}') from error


@contextlib.contextmanager
def new_folder(folder: Path, *, what: str, sync: bool = True) -> Iterator[pathlib.Path]:
  """A hidden folder to write into, renamed to the wanted name when the block ends.

  If the block fails, the hidden folder is removed.

  Args:
    what: the folder in an error's words, as in 'an adapter'.
    sync: wait until everything is on the disk, safe from a power cut.

  Raises:
    InputError: if the folder exists already.
    OutputError: if the folder could not be written (a full disk, no permission).
  """
  folder = pathlib.Path(folder)
  refuse_existing(folder, what=what)
  remove_leftovers(folder.parent)
  partial = partial_path(folder)
  try:
    partial.mkdir(parents=True)
  except OSError as error:
    raise OutputError(f'{what} cannot be written to {folder}: {error.strerror or error}') from error
  try:
    yield partial
    if sync:
      for path in (*partial.rglob('*'), partial):
        sync_to_disk(path)
    # Another process may have made the folder in the meantime.
    refuse_existing(folder, what=what)
    os.rename(partial, folder)
    if sync:
      sync_to_disk(folder.parent)
  except OSError as error:
    raise OutputError(
      f'{what} could not be written to {folder}: {error.strerror or error}; nothing was left behind'
    ) from error
  finally:
    # After the rename nothing of this name is left.
    _remove(partial)


def partial_path(path: Path) -> pathlib.Path:
  """A hidden name beside a path, to write to until the content is whole.

  The name tells which process writes, for `remove_leftovers`.
  """
  path = pathlib.Path(path)
  # Random digits, since several threads may write beside each other.
  return path.with_name(f'.{path.name}.{writers.this().word()}-{secrets.token_hex(4)}.partial')


def remove_leftovers(folder: pathlib.Path) -> None:
  """Removes what processes that were killed have left half written in a folder.

  Processes of this host are gone if no process of their number and start is there. What other
  hosts' processes left, or versions that did not name the host, is removed after a week.
  """
  try:
    entries = list(os.scandir(folder))
  except OSError:
    return
  for entry in entries:
    match = _PARTIAL.fullmatch(entry.name)
    if match and _is_left(entry, writers.parse(match['writer'] or '')):
      path = pathlib.Path(entry.path)
      if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(path, ignore_errors=True)
      else:
        with contextlib.suppress(OSError):
          path.unlink()


def _is_left(entry: os.DirEntry, writer: writers.Writer | None) -> bool:
  if writer and writer.is_here():
    return writer.is_gone()
  try:
    changed = entry.stat(follow_symlinks=False).st_mtime
  except OSError:
    return False
  return time.time() - changed > FOREIGN_SECONDS


@functools.cache
def _remove_leftovers_once(folder: pathlib.Path) -> None:
  # A folder may get many files, and what was left there was left before.
  remove_leftovers(folder)


def _remove(folder: pathlib.Path) -> None:
  """Removes a folder into which threads of a library may still be writing."""
  deadline = time.monotonic() + REMOVAL_SECONDS
  # A folder that has got its name is not there.
  absent = LOOKS if not folder.exists() else 0
  while absent < LOOKS and time.monotonic() < deadline:
    # A file that appears meanwhile keeps its folder from being removed, or makes it again.
    shutil.rmtree(folder, ignore_errors=True)
    time.sleep(0.05)
    absent = 0 if folder.exists() else absent + 1


def refuse_existing(folder: Path, *, what: str) -> None:
  """Raises InputError if the name belongs to a file, or to a folder with entries."""
  folder = pathlib.Path(folder)
  is_empty = folder.is_dir() and not any(folder.iterdir())
  # A link to nowhere is in the way too.
  if not is_empty and os.path.lexists(folder):
    raise InputError(
      f'{folder} exists already, and {what} never overwrites: name another output, or move it away'
    )


def sync_to_disk(path: pathlib.Path) -> None:
  """Waits until a file, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def path_hint(path: pathlib.Path) -> str:
  """Words for an error about a missing path: its nearest sibling, or that the parent is missing.

  '' where no sibling has a near name.
  """
  parent = path.parent
  if not parent.is_dir():
    return f'; {parent} is no folder either'
  # An ending that the names share is no likeness: negative.jsonl is no slip for positive.jsonl.
  names = {child.name.removesuffix(path.suffix): child.name for child in parent.iterdir()}
  near = messages.nearest(path.name.removesuffix(path.suffix), names, cutoff=0.6)
  return '' if near is None else f" (did you mean '{parent / names[near]}'?)"
