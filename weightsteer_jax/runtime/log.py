"""The log of a run: what its programs say, with the time and without secrets, in one file.

A program speaks before it knows its workdir is good: such lines are kept, and written first.
"""

import contextlib
import datetime
import os
import pathlib

from weightsteer_jax.runtime import redaction

# Lines said before a file was named; the newest of a program that never names one.
_KEPT_LINES = 1000

_path: pathlib.Path | None = None
_kept: list[str] = []


def write_to(path: str | os.PathLike) -> None:
  """Appends what was said so far to a file, and from now on each line when it is said."""
  global _path
  _path = pathlib.Path(path)
  lines = ''.join(_kept)
  _kept.clear()
  _append(lines)


def keep(text: str) -> None:
  """Puts a text into the log, each of its lines behind the time."""
  now = datetime.datetime.now().astimezone().isoformat(sep=' ', timespec='seconds')
  lines = ''.join(f'{now} {redaction.redact(line)}\n' for line in text.splitlines())
  if _path:
    _append(lines)
  else:
    _kept.append(lines)
    del _kept[:-_KEPT_LINES]


def _append(text: str) -> None:
  # What cannot be logged has been said; a full disk is told by what must be written.
  with contextlib.suppress(OSError):
    with open(_path or os.devnull, 'a', encoding='utf-8') as file:
      file.write(text)
