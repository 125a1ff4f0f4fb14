"""Parts of a page inside of the page, or in files beside the page where they are large.

A file beside the page is a script that hands its content to the page, because a page opened from a
disk may not read files. Names hold a digest of the content: while a new report is written, the old
page still finds the old files.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from weightsteer_jax.experiments.report.parts import Part
from weightsteer_jax.runtime.errors import OutputError
from weightsteer_jax.storage import files

# Folder of the files beside the page.
FOLDER = 'examples'
# Characters of all parts up to which a page holds them itself, so that one file is the whole report
# and can be sent by mail.
INSIDE = 4_000_000


@dataclasses.dataclass
class Placed:
  """Where the parts of a page are.

  Attributes:
    inside: {part: JSON} for the page to hold.
    beside: {part: file, relative to the page}.
    size: characters of all parts, which are ASCII.
  """

  inside: dict[str, str] = dataclasses.field(default_factory=dict)
  beside: dict[str, str] = dataclasses.field(default_factory=dict)
  size: int = 0


def place(folder: Path, parts: Iterable[Part], *, inside: int = INSIDE) -> Placed:
  """The parts placed, files written into the folder of the page where they are large.

  Args:
    folder: the page's folder.
    inside: most characters that the page holds itself.

  Raises:
    OutputError: if a file cannot be written; the files of this call are removed again.
  """
  placed = Placed()
  new: list[Path] = []
  try:
    for part in parts:
      placed.size += len(part.text)
      placed.inside[part.name] = part.text
      if placed.size > inside:
        for name, text in placed.inside.items():
          placed.beside[name] = _write(folder, name, text, new)
        placed.inside.clear()
  except OutputError:
    discard(new)
    raise
  return placed


def tidy(folder: Path, placed: Placed) -> None:
  """Removes the files beside a page that the page no longer names."""
  named = {folder / name for name in placed.beside.values()}
  discard([path for path in (folder / FOLDER).glob('*.js') if path not in named])


def discard(paths: Iterable[Path]) -> None:
  """Removes files, and their folder once it is empty."""
  for path in paths:
    # A file that cannot be removed does no harm: no page names it.
    with contextlib.suppress(OSError):
      path.unlink()
    with contextlib.suppress(OSError):
      path.parent.rmdir()


def _write(folder: Path, name: str, text: str, new: list[Path]) -> str:
  """Name of the file of a part, relative to the page; a file that was not there enters `new`."""
  digest = hashlib.sha256(text.encode()).hexdigest()[:12]
  relative = f'{FOLDER}/{name.replace("/", "-")}-{digest}.js'
  path = folder / relative
  # The same content under the same name: an earlier report wrote the file whole.
  if not path.exists():
    files.write_text(path, f'weightsteer({json.dumps(name)}, {text});\n')
    new.append(path)
  return relative
