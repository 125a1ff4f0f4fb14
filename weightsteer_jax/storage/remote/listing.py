"""The listing of a workdir in a bucket: which files, of which size and content, are the state of
the run.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping

from weightsteer_jax.runtime.errors import CorruptError, InputError

NAME = '.mirror.json'
FORMAT = 1

Entry = tuple[int, int, str]  # size, time of the last change in ns, sha256


@dataclasses.dataclass(frozen=True)
class Listing:
  """A state of the run. `removed`: names of an earlier one whose files may still be there."""

  owner: str = ''
  generation: int = 0
  files: Mapping[str, Entry] = dataclasses.field(default_factory=dict)
  removed: tuple[str, ...] = ()
  id: str = ''

  def contents(self) -> dict[str, tuple[int, str]]:
    """{name: (size, sha256)}."""
    return {name: (size, sha) for name, (size, _, sha) in self.files.items()}

  def encode(self) -> bytes:
    """As a file holds it."""
    return json.dumps({'format': FORMAT, **dataclasses.asdict(self)}).encode()


def parse(content: bytes, where: str) -> Listing:
  """The listing in a file; `where` is how to call it.

  Raises:
    CorruptError: it is none. InputError: it is of another format.
  """
  try:
    value = json.loads(content)
    if value.pop('format') != FORMAT:
      raise InputError(f'{where} is of a format that this version does not read')
    found = Listing(**value)
    entries = {
      name: (int(size), int(changed), str(sha))
      for name, (size, changed, sha) in found.files.items()
    }
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise CorruptError(
      f'{where} is cut short or damaged ({type(error).__name__}: {error}); bring an earlier '
      'version of it back, or name another --workdir'
    ) from error
  for name in (*entries, *found.removed):
    if not name or any(part.startswith('.') or not part for part in name.split('/')):
      raise CorruptError(f'{where} names {name!r}, which is no file of a workdir')
  return dataclasses.replace(
    found, generation=int(found.generation), files=entries, removed=tuple(found.removed)
  )


def walk(folder: pathlib.Path, prefix: str = '') -> Iterator[tuple[str, os.stat_result]]:
  """(name, stat) of the files in a folder, but for hidden files and folders, and for folders that
  are linked to.
  """
  try:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
  except (FileNotFoundError, NotADirectoryError):
    return
  for entry in entries:
    if entry.name.startswith('.'):
      continue
    if entry.is_dir(follow_symlinks=False):
      yield from walk(folder / entry.name, f'{prefix}{entry.name}/')
    elif entry.is_file():
      try:
        yield prefix + entry.name, os.stat(entry.path)
      except FileNotFoundError:
        pass


def same(found: os.stat_result, entry: Entry) -> bool:
  """Whether a file is the one that was listed, by size and time."""
  return (found.st_size, found.st_mtime_ns) == entry[:2]
