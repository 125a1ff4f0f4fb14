"""The listing of a workdir in a bucket: the files of the run's state, with size and content."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping

from weightsteer_jax.runtime import json_text
from weightsteer_jax.runtime.errors import CorruptError, InputError

NAME = '.mirror.json'
FORMAT = 1

# (size in bytes, time of the last change in ns, SHA-256).
Entry = tuple[int, int, str]


@dataclasses.dataclass(frozen=True)
class Listing:
  """A state of the run.

  Attributes:
    owner: name of the staging behind the listing.
    generation: number of the listing; 0 for an empty URL.
    files: {name: entry}.
    removed: names of an earlier state, with files perhaps still to be removed.
    id: a random name of this very listing.
  """

  owner: str = ''
  generation: int = 0
  files: Mapping[str, Entry] = dataclasses.field(default_factory=dict)
  removed: tuple[str, ...] = ()
  id: str = ''

  def contents(self) -> dict[str, tuple[int, str]]:
    """{name: (size in bytes, SHA-256)}."""
    return {name: (size, sha) for name, (size, _, sha) in self.files.items()}

  def encode(self) -> bytes:
    """The listing as the bytes of a file."""
    return json.dumps({'format': FORMAT, **dataclasses.asdict(self)}).encode()


def parse(content: bytes, where: str) -> Listing:
  """The listing in a file.

  Args:
    where: the file in an error's words.

  Raises:
    CorruptError: if the content is no whole listing.
    InputError: if the listing is of another format.
  """
  try:
    value = json_text.parse(content)
    # A later version may write fields that this version would lose.
    if value.pop('format') != FORMAT:
      raise InputError(f'{where} is of a format that this version does not read')
    listing = Listing(**value)
    entries = {}
    for name, (size, changed, sha) in listing.files.items():
      entries[name] = int(size), int(changed), str(sha)
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise CorruptError(
      f'{where} is cut short or damaged ({type(error).__name__}: {error}); bring an earlier '
      'version of it back, or name another --workdir'
    ) from error
  # Names become paths below the staging folder, and must not lead out of it.
  for name in (*entries, *listing.removed):
    if not name or any(part.startswith('.') or not part for part in name.split('/')):
      raise CorruptError(f'{where} names {name!r}, which is no file of a workdir')
  return dataclasses.replace(
    listing, generation=int(listing.generation), files=entries, removed=tuple(listing.removed)
  )


def walk(folder: pathlib.Path, prefix: str = '') -> Iterator[tuple[str, os.stat_result]]:
  """(name, stat) of the files in a folder, without hidden names and linked folders."""
  try:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
  except (FileNotFoundError, NotADirectoryError):
    return
  for entry in entries:
    # Hidden names are of work under way, as `files.new_folder` has it, and of the mirror.
    if entry.name.startswith('.'):
      continue
    # A link to a folder may lead out of the staging, or in circles; a link to a file is that file.
    if entry.is_dir(follow_symlinks=False):
      yield from walk(folder / entry.name, f'{prefix}{entry.name}/')
    elif entry.is_file():
      try:
        yield prefix + entry.name, os.stat(entry.path)
      except FileNotFoundError:
        # Removed since the folder was listed, as the run goes on.
        pass


def same(stat: os.stat_result, entry: Entry) -> bool:
  """Whether a file is as listed, by size and time of the last change."""
  return (stat.st_size, stat.st_mtime_ns) == entry[:2]
