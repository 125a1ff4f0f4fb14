"""A single writer for a workdir, a journal or an output: the second is refused at once.

Beside the thing lie two hidden files, or within it if it is a workdir: `.NAME.lock`, which the
writer holds by flock, and `.NAME.writer`, which says who writes: host, process, since when. On a
file system where flock does not hold across hosts, the second file alone decides: its writer
touches it every BEAT_SECONDS, and another host takes over once that was STALE_SECONDS ago. A writer
of this host that has ended is replaced at once. With several processes, process 0 holds the lock
for all.
"""

import contextlib
import dataclasses
import datetime
import errno
import functools
import json
import os
import pathlib
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import filelock

from weightsteer_jax.runtime import ending, json_text, processes
from weightsteer_jax.runtime.errors import Busy, Conflict, OutputError
from weightsteer_jax.storage import files, writers

# Seconds between two signs of life of a writer, and from the last sign until another host takes
# over. Six missed signs: a network file system may stand still for a minute.
BEAT_SECONDS = 20.0
STALE_SECONDS = 120.0
# How long a record may be empty: its writer died as it was made.
EMPTY_SECONDS = 2.0

# What file systems without flock say (flock(2), and NFS without a lock daemon).
WITHOUT_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)

# The locks of this process; a lock that nobody holds any more releases itself.
_all: weakref.WeakSet['Lock'] = weakref.WeakSet()
# {absolute path: (lock, how many blocks hold it)} of this process.
_held: dict[pathlib.Path, tuple['Lock', int]] = {}
_held_guard = threading.RLock()


@dataclasses.dataclass(frozen=True)
class _Record:
  """What `.NAME.writer` says.

  Attributes:
    host: name of the host, for people.
    writer: the process.
    since: when the process began to write, with the host's time zone.
    token: random, to tell two records apart.
  """

  host: str
  writer: writers.Writer
  since: str
  token: str

  def encode(self) -> bytes:
    """The record as the bytes of a file."""
    return json.dumps(dataclasses.asdict(self)).encode() + b'\n'


class Lock:
  """The right to write to a thing, held until `release`.

  Args:
    path: what is written: a file, a folder to come, or a workdir that is there.
    what: the thing in an error's words, as in 'the workdir'.
    within: whether the two files lie within the path, a folder.
    remedy: what else a user may do, as in 'name another --workdir'.

  Raises:
    Busy: if another process, or another part of this one, holds the lock.
    OutputError: if the files cannot be written.
  """

  def __init__(self, path: files.Path, *, what: str, within: bool = False, remedy: str = ''):
    self.path = pathlib.Path(path)
    self._released = False
    self._made: list[pathlib.Path] = []
    self._what = what
    self._remedy = remedy
    folder, stem = (self.path, '') if within else (self.path.parent, f'.{self.path.name}')
    self._record_file = folder / f'{stem}.writer'
    self._lock_file = folder / f'{stem}.lock'
    self._mine = _Record(
      host=socket.gethostname(),
      writer=writers.this(),
      since=datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
      token=secrets.token_hex(8),
    )
    self._flock = filelock.FileLock(self._lock_file, timeout=0, thread_local=False)
    try:
      self._made = _make_folder(folder)
      self._take()
    except OSError as error:
      self.release()
      raise OutputError(f'{what} {path} cannot be written: {error.strerror or error}') from error
    except BaseException:
      self.release()
      raise
    _all.add(self)
    _begin_to_beat()

  def __del__(self) -> None:
    self.release()

  def release(self) -> None:
    """Gives the right back; once is enough."""
    if self._released:
      return
    self._released = True
    # A child that was forked has no part in the lock.
    if self._mine.writer.pid != os.getpid():
      return
    with contextlib.suppress(OSError):
      if self._token() == self._mine.token:
        self._record_file.unlink(missing_ok=True)
        self._lock_file.unlink(missing_ok=True)
    self._flock.release()
    for folder in reversed(self._made):
      # Only where nothing was written after all.
      with contextlib.suppress(OSError):
        folder.rmdir()

  def _take(self) -> None:
    try:
      self._flock.acquire()
    except filelock.Timeout:
      raise self._busy(_read(self._record_file)) from None
    except NotImplementedError:
      pass
    except OSError as error:
      if error.errno not in WITHOUT_FLOCK:
        raise
    # From here on the record decides, with flock or without.
    deadline = time.monotonic() + 5.0
    while not self._claim():
      record = _read(self._record_file)
      if not self._is_over(record):
        # A record without content is being written.
        if record or time.monotonic() > deadline:
          raise self._busy(record)
        time.sleep(0.05)
        continue
      # Aside, and not removed: of two that take over at once, one finds nothing to rename.
      aside = files.partial_path(self._record_file)
      with contextlib.suppress(FileNotFoundError):
        os.rename(self._record_file, aside)
        aside.unlink()

  def _claim(self) -> bool:
    """Whether the record is now this process's: nobody had one there."""
    try:
      # Alone among open's modes, this one is atomic on network file systems too.
      with open(self._record_file, 'xb') as file:
        file.write(self._mine.encode())
    except FileExistsError:
      return False
    return True

  def _is_over(self, record: _Record | None) -> bool:
    """Whether the writer on record no longer writes."""
    if record is None:
      return self._silence() > EMPTY_SECONDS
    if record.writer.is_here():
      return record.writer.is_gone()
    return self._silence() > STALE_SECONDS

  def _silence(self) -> float:
    """Seconds since the last sign of life of the writer on record."""
    # Both times are of the system that holds the files: clocks of hosts may differ by minutes.
    probe = files.partial_path(self._record_file)
    try:
      probe.touch()
      now = probe.stat().st_mtime
      return now - self._record_file.stat().st_mtime
    except FileNotFoundError:
      return float('inf')
    finally:
      probe.unlink(missing_ok=True)

  def _busy(self, record: _Record | None) -> Busy:
    about = f'{self._what} {self.path} is being written by another process'
    if record is None:
      # Between the two files of the other's beginning or end.
      return Busy(f'{about}: start again when it has ended')
    pid = record.writer.pid
    if record.writer == self._mine.writer:
      who = f'this very process ({pid}), which opened it before'
    else:
      who = f'process {pid} on {record.host}'
    advice = 'start again when that has ended'
    if record.writer.is_here() and pid != os.getpid():
      advice += f', end it (kill {pid})'
    elif not record.writer.is_here():
      advice += (
        f' (a host that was lost counts as ended {STALE_SECONDS:.0f} s after its last sign of '
        f'life, now {max(self._silence(), 0.0):.0f} s ago)'
      )
    if self._remedy:
      advice += f', or {self._remedy}'
    return Busy(
      f'{self._what} {self.path} is being written by {who} since {record.since}: {advice}'
    )

  def _token(self) -> str | None:
    record = _read(self._record_file)
    return record.token if record else None

  def beat(self) -> None:
    """Shows that the writer lives, and ends the run if another has taken over."""
    token = self._token()
    if token == self._mine.token:
      # The folder may be moved, or out of reach for a while: whoever writes will see.
      with contextlib.suppress(OSError):
        os.utime(self._record_file)
    elif token and not self._released:
      ending.tell_and_end(
        f'{self._what} {self.path} was taken over by another process, because this one gave no '
        f'sign of life for {STALE_SECONDS:.0f} s; what was finished is kept',
        Conflict.exit_code,
      )


@functools.cache
def _begin_to_beat() -> None:
  """Starts the thread of all locks, and has locks given back at the end; once is enough."""
  ending.at_exit(_release_all)
  threading.Thread(target=_beat, daemon=True).start()


def _beat() -> None:
  while True:
    time.sleep(BEAT_SECONDS)
    for lock in list(_all):
      lock.beat()


def _release_all() -> None:
  for lock in list(_all):
    lock.release()


def _make_folder(folder: pathlib.Path) -> list[pathlib.Path]:
  """The folders made, outermost first."""
  missing = []
  for each in (folder, *folder.parents):
    if each.is_dir():
      break
    missing.append(each)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OutputError(f'{folder} cannot be written: {error.strerror or error}') from error
  return missing[::-1]


def _read(path: pathlib.Path) -> _Record | None:
  """The record in a file; None if there is none, or none yet."""
  try:
    value: dict[str, Any] = json_text.parse(path.read_bytes())
    return _Record(**{**value, 'writer': writers.Writer(**value['writer'])})
  except (OSError, ValueError, TypeError, KeyError):
    return None


@contextlib.contextmanager
def held(path: files.Path, *, what: str, within: bool = False, remedy: str = '') -> Iterator[None]:
  """A block in which this run alone writes to a thing; blocks of one process may be nested.

  All processes of a run enter and leave together.

  Raises:
    Busy, OutputError: as `Lock`, on all processes.
  """
  key = pathlib.Path(path).absolute()

  def enter() -> None:
    with _held_guard:
      lock, count = _held.get(key, (None, 0))
      lock = lock or Lock(path, what=what, within=within, remedy=remedy)
      _held[key] = lock, count + 1

  processes.on_main(enter)
  try:
    yield
  finally:
    if processes.is_main():
      _leave(key)


def _leave(key: pathlib.Path) -> None:
  with _held_guard:
    lock, count = _held.pop(key)
    if count > 1:
      _held[key] = lock, count - 1
    else:
      lock.release()
