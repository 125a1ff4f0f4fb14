"""Processes as files on disk name them, and whether a named process is gone.

A process is named by its place, its number and when the system started it: numbers are used again,
and alike numbers of two hosts or containers are two processes.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import socket


@dataclasses.dataclass(frozen=True)
class Writer:
  """A process that writes, or wrote.

  Attributes:
    place: host and space of process numbers, 8 hex digits (see `place`).
    pid: number of the process.
    started: when the system started the process, in ticks since the system's own start; '0' where
      the system does not tell.
  """

  place: str
  pid: int
  started: str

  def word(self) -> str:
    """The process as a part of a file's name."""
    return f'{self.place}-{self.pid}-{self.started}'

  def is_here(self) -> bool:
    """Whether the process is or was one of this host."""
    return self.place == place()

  def is_gone(self) -> bool:
    """Whether the process is known to have ended; never known of another host's."""
    if not self.is_here():
      return False
    now = started(self.pid)
    # '': no process of the number. Another start: the number belongs to another process by now.
    return not now or (now != self.started and '0' not in (now, self.started))


# As `Writer.word` writes the name of a process.
WORD = re.compile(r'(?P<place>[0-9a-f]{8})-(?P<pid>[0-9]+)-(?P<started>[0-9]+)')


def this() -> Writer:
  """The present process."""
  return Writer(place(), os.getpid(), started(os.getpid()) or '0')


def parse(word: str) -> Writer | None:
  """The process in a part of a file's name; None if there is none."""
  match = WORD.fullmatch(word)
  return match and Writer(match['place'], int(match['pid']), match['started'])


@functools.cache
def place() -> str:
  """8 hex digits for this host and its space of process numbers.

  Hosts may share a name, and containers a host; containers then have numbers of their own.
  """
  parts = [socket.gethostname()]
  with_identity = ('/etc/machine-id', '/var/lib/dbus/machine-id')
  for path in with_identity:
    try:
      parts.append(pathlib.Path(path).read_text(encoding='utf-8').strip())
      break
    except OSError:
      # A container or a system without the file: the name has to do.
      continue
  try:
    parts.append(os.readlink('/proc/self/ns/pid'))
  except OSError:
    # No Linux.
    pass
  return hashlib.blake2b('\n'.join(parts).encode(), digest_size=4).hexdigest()


def started(pid: int) -> str:
  """When the system started a process of this host; '' if no such process lives, '0' if unknown."""
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text(encoding='utf-8', errors='replace')
  except FileNotFoundError:
    return _without_proc(pid)
  except OSError:
    # ESRCH: the process ended while the file was read.
    return ''
  # Source: proc(5). The name, in brackets, may hold blanks; the state comes behind the name, and
  # the start is the 20th field from the state on. A zombie has ended, and only waits to be counted.
  fields = text.rpartition(')')[2].split()
  return '' if fields[0] in 'ZX' else fields[19]


def _without_proc(pid: int) -> str:
  if pathlib.Path('/proc/self/stat').exists():
    return ''
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return ''
  except OSError:
    # Another user's.
    pass
  return '0'
