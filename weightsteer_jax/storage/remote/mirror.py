"""A workdir at a URL: the staging, a local folder where all work is done, and its mirror in what
fsspec reaches.

The URL holds the files under their own names, and beside them

  .mirror.json       which files, of which size and content, are the state of the run; written last
  .mirror/<sha256>   what is on its way: no file takes its place under its name before a listing
                     names its content

so that a push that was cut short at any point leaves the state that the last listing names, whole.
Listings are numbered (generation), and say which staging wrote them (owner). A staging goes on
where it is the owner and no generation behind; any other one begins with what the URL holds, and
becomes the owner. Who is the owner no longer notices at the next push, and stops.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from absl import logging

from weightsteer_jax.runtime import ending, hashes
from weightsteer_jax.runtime.errors import (
  Conflict,
  CorruptError,
  InputError,
  OutputError,
  WeightSteerError,
)
from weightsteer_jax.runtime.messages import file_size, first_line, listed
from weightsteer_jax.runtime.progress import say
from weightsteer_jax.storage import files
from weightsteer_jax.storage.remote import listing, store
from weightsteer_jax.storage.remote.listing import Entry, Listing

LISTING = listing.NAME
COMING = '.mirror'
TRIES = 5  # of what a network may have refused by chance, with growing pauses
FIRST_PAUSE = 1.0  # seconds
LONGEST_PAUSE = 600.0
WORKERS = 4  # files on their way at once
CHUNK = 1 << 22
NAMED = 5  # files that an error lists
LINE_LENGTH = 300  # characters of what a driver says


class _Moved(Exception):
  """A file was replaced while it was read."""


class Mirror:
  """A staging and its URL. Process 0 has it, alone."""

  def __init__(self, url: str, staging: files.Path):
    """Raises InputError: the URL's scheme is unknown, or its driver is not installed."""
    self.staging = pathlib.Path(staging)
    self._store = store.Store(url)
    self.url = self._store.url
    self._store.refuse_inside(self.staging)
    self._lock, self._closed = threading.Lock(), threading.Event()
    self._listing, self._tried = Listing(), Listing()
    self._unsettled = True

  def begin(self) -> None:
    """Makes the staging hold what the URL does, or finds that it goes on from there; then the URL
    is this staging's.

    Raises:
      InputError: the URL holds something else than a workdir, cannot be read, or is being written
        to. CorruptError:
        what it holds is not what its listing says. OutputError: the URL or the staging cannot be
        written.
    """
    there = self._pulled()
    owner, generation = self._record()
    mine = dataclasses.replace(
      there,
      owner=owner or secrets.token_hex(8),
      id=secrets.token_hex(8),
      generation=max(generation, there.generation) + 1,
    )
    try:
      _patiently(lambda: self._commit(mine))
    except (FileNotFoundError, PermissionError) as error:
      raise InputError(
        f'{self.url} cannot be written: {_reason(error)}; is there such a bucket, and may you '
        'write to it?'
      ) from error
    except Exception as error:
      raise OutputError(f'{self.url} cannot be written: {_reason(error)}') from error

  def push(self) -> None:
    """Brings the URL to the state of the staging, if it is not.

    Raises:
      Conflict: another staging, or another process on this one, has written there. OutputError: it
        could not be done.
    """
    with self._lock:
      if self._closed.is_set():
        return
      try:
        self._push()
      except WeightSteerError:
        raise
      except Exception as error:  # Each driver has errors of its own.
        raise OutputError(
          f'{self.url} could not be written: {_reason(error)}; {self._behind()}'
        ) from error

  def keep_pushing(self, seconds: float) -> None:
    """Pushes every so many seconds, in a thread; after a failure less often."""
    threading.Thread(target=self._keep_pushing, args=(seconds,), daemon=True).start()

  def finish(self) -> None:
    """Pushes what is left, and ends.

    Raises:
      Conflict, OutputError: as `push`, after some tries; names what is not there.
    """
    try:
      _patiently(self.push)
    except (Conflict, OutputError):
      self._closed.set()
      raise
    self._closed.set()
    size = sum(size for size, _, _ in self._listing.files.values())
    say(f'pushed: {self.url} holds all {len(self._listing.files)} files ({file_size(size)})')

  def last_push(self) -> None:
    """Pushes what is left of a run that ends otherwise, and ends; a failure is a warning."""
    if self._closed.is_set():
      return
    try:
      _patiently(self.push, tries=2)
    except WeightSteerError as error:
      logging.warning('%s', error)
    self._closed.set()

  # Begin.

  def _pulled(self) -> Listing:
    """The listing of the URL, which the staging now has all files of."""
    for _ in range(TRIES):
      there = self._read()
      self._prepare(there)
      try:
        self._pull(there)
      except CorruptError:
        if self._read() == there:
          raise
      else:
        if self._read() == there:
          return there
    raise InputError(
      f'{self.url}: another run is writing to it; end that one, or name another --workdir'
    )

  def _read(self) -> Listing:
    """The listing of the URL; an empty one, of generation 0, where nothing is there."""
    try:
      content = _patiently(lambda: self._store.read(LISTING))
      if content is None and (found := _patiently(self._store.first)):
        raise InputError(
          f'{self.url} holds {found}, but no {LISTING}: it is no workdir that was pushed there; '
          'name another --workdir'
        )
    except WeightSteerError:
      raise
    except (FileNotFoundError, PermissionError) as error:
      raise InputError(f'{self.url} cannot be read: {_reason(error)}') from error
    except Exception as error:
      raise OutputError(f'{self.url} cannot be reached: {_reason(error)}') from error
    return Listing() if content is None else listing.parse(content, f'{self.url}/{LISTING}')

  def _record(self) -> tuple[str, int]:
    """(owner, generation) of the staging; owner '' while it is being filled, generation -1 where it
    says nothing.
    """
    path = self.staging / LISTING
    if not path.exists():
      return '', -1
    record = files.read_json(path, what='what a staging folder says of itself')
    return str(record['owner']), int(record['generation'])

  def _note(self, owner: str, generation: int) -> None:
    record = {'owner': owner, 'generation': generation, 'url': self.url}
    files.write_json(self.staging / LISTING, record)

  def _prepare(self, there: Listing) -> None:
    """Sees to it that the staging is one to go on from, or one to fill."""
    owner, generation = self._record()
    held = any(self._scan())
    state = f'generation {there.generation}, {len(there.files)} files'
    say(f'workdir: {self.url} ({state}), staged in {self.staging}')
    if not there.generation or owner == there.owner and generation >= there.generation:
      if held:
        say(f'{self.staging} goes on from there')
      return
    if held and (owner or generation < 0):
      self._set_aside()
    self._note('', 0)
    for name, found in self._scan().items():  # Of a pull that was cut short.
      if name not in there.files or not listing.same(found, there.files[name]):
        (self.staging / name).unlink()

  def _set_aside(self) -> None:
    number = next(i for i in range(1, 10**6) if not self._aside(i).exists())
    try:
      self.staging.rename(self._aside(number))
    except OSError as error:
      raise OutputError(
        f'{self.staging} does not go on from what {self.url} holds, and cannot be renamed: '
        f'{error.strerror or error}; name another --staging'
      ) from error
    say(
      f'{self.staging} does not go on from what {self.url} holds, which counts: it is now '
      f'{self._aside(number)}'
    )

  def _aside(self, number: int) -> pathlib.Path:
    return self.staging.with_name(f'{self.staging.name}.aside-{number}')

  def _pull(self, there: Listing) -> None:
    """Fetches what the listing names and the staging lacks."""
    held = self._scan()
    wanted = [name for name in there.files if name not in held]
    if there.generation:
      size = file_size(sum(there.files[name][0] for name in wanted))
      say(
        f'pulling {len(wanted)} files ({size}) from {self.url}'
        if wanted
        else f'{self.staging} lacks nothing of it'
      )
    try:
      _in_parallel(lambda name: _patiently(lambda: self._fetch(name, there.files[name])), wanted)
    except WeightSteerError:
      raise
    except Exception as error:
      raise OutputError(
        f'{self.url} could not be copied to {self.staging}: {_reason(error)}; what has come stays '
        'there: start again to go on'
      ) from error

  def _fetch(self, name: str, entry: Entry) -> None:
    path = self.staging / name
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.partial')
    try:
      for source in (name, f'{COMING}/{entry[2]}', name):  # It may get its name just then.
        if self._store.fetch(source, partial) and hashes.of_file(partial) == entry[2]:
          os.utime(partial, ns=(time.time_ns(), entry[1]))
          os.replace(partial, path)
          ending.progress()
          return
    finally:
      partial.unlink(missing_ok=True)
    raise CorruptError(
      f'{self.url}/{name} is not what {LISTING} there says (sha256 {entry[2][:16]}...): it was '
      'removed or changed by another hand; bring it back, or name another --workdir'
    )

  # Push.

  def _push(self) -> None:
    self._check_owner()
    new = self._uploaded()
    if new.contents() != self._listing.contents():
      self._check_owner()  # Uploads may have taken long.
      self._commit(new)
      self._unsettled = True
    else:
      self._listing = dataclasses.replace(self._listing, files=new.files)
    if self._unsettled:
      self._settle()

  def _check_owner(self) -> None:
    content = self._store.read(LISTING)
    there = Listing() if content is None else listing.parse(content, f'{self.url}/{LISTING}')
    if there.id == self._tried.id:  # The answer to a write that was done may have been lost.
      self._listing = self._tried
    if there.id != self._listing.id:
      self._closed.set()
      raise Conflict(
        f'{self.url}: another run has taken it over (generation {there.generation} there, '
        f'{self._listing.generation} was the last of this one), so that this one stops; '
        f'{self.staging} keeps what it has made'
      )

  def _uploaded(self) -> Listing:
    """The listing of the staging as it is now, all of which is at the URL now, if not under its
    name.
    """
    for _ in range(TRIES):
      found, known = self._scan(), self._listing.files
      changed = {name: found[name] for name in self._differing(found)}
      try:
        entries = dict(
          _in_parallel(lambda name: (name, self._upload(name, changed[name])), changed)
        )
      except _Moved:  # The run went on: look again.
        continue
      now = {name: entries.get(name) or known[name] for name in found}
      gone = {*self._listing.removed, *known} - now.keys()
      return Listing(
        self._listing.owner,
        self._listing.generation + 1,
        now,
        tuple(sorted(gone)),
        secrets.token_hex(8),
      )
    raise OutputError(f'{self.staging} changes faster than it can be pushed; {self._behind()}')

  def _upload(self, name: str, found: os.stat_result) -> Entry:
    """What is to be said of a file, whose first bytes, as many as it had when it was found, are at
    the URL now.
    """
    with self._open(name) as file:
      now = os.fstat(file.fileno())
      if now.st_ino != found.st_ino or now.st_size < found.st_size:
        raise _Moved
      digest = hashes.of_chunks(_chunks(file, found.st_size))
      known = self._listing.contents().get(name)
      if known != (found.st_size, digest):
        file.seek(0)
        if self._store.write_from(_chunks(file, found.st_size), f'{COMING}/{digest}') != digest:
          raise _Moved
    return found.st_size, found.st_mtime_ns, digest

  def _open(self, name: str) -> BinaryIO:
    try:
      return open(self.staging / name, 'rb')
    except FileNotFoundError as error:
      raise _Moved from error

  def _commit(self, new: Listing) -> None:
    # First here: a staging whose process ends in between must not look as if it were behind.
    self._note(new.owner, new.generation)
    self._tried = new
    self._store.write(LISTING, new.encode())
    self._listing = new

  def _settle(self) -> None:
    """Gives what has come its names, and removes what is in no listing any more."""
    names: dict[str, list[str]] = {}
    for name, (_, _, sha) in self._listing.files.items():
      names.setdefault(sha, []).append(name)
    come = self._store.names(COMING)
    moves = [(sha, name) for sha in come for name in names.get(sha, ())]
    # Manifests and markers are JSON: whoever looks there by other means finds them only where the
    # rest is, too.
    for last in (False, True):
      now = [move for move in moves if move[1].endswith('.json') == last]
      _in_parallel(lambda move: self._store.copy(f'{COMING}/{move[0]}', move[1]), now)
    _in_parallel(self._store.remove, [*(f'{COMING}/{sha}' for sha in come), *self._listing.removed])
    self._listing = dataclasses.replace(self._listing, removed=())
    self._unsettled = False

  def _keep_pushing(self, seconds: float) -> None:
    failures = 0
    while not self._closed.wait(min(seconds * 2 ** min(failures, 10), max(seconds, LONGEST_PAUSE))):
      try:
        self.push()
        failures = 0
      except Conflict as error:
        ending.tell_and_end(str(error), error.exit_code)
      except WeightSteerError as error:
        failures += 1
        logging.warning('%s; the run goes on, and it is tried again', error)

  def _behind(self) -> str:
    """In words, what is not at the URL, and where it is."""
    names = self._differing(self._scan())
    missing = f'not there are {listed(names, NAMED)}' if names else 'all files are there'
    return f'{missing}; {self.staging} holds everything, and the same command goes on from it'

  def _differing(self, found: Mapping[str, os.stat_result]) -> list[str]:
    """Those of the files that are not, or not as such, in the listing."""
    known = self._listing.files
    return [
      name
      for name, stat in found.items()
      if name not in known or not listing.same(stat, known[name])
    ]

  def _scan(self) -> dict[str, os.stat_result]:
    """What the staging holds, but for hidden files and folders, as of one moment."""
    while True:
      found = dict(listing.walk(self.staging))
      if all(
        (self.staging / name).exists() for name in found
      ):  # Else a folder was renamed, and may be here in part.
        return found


def is_url(path: str) -> bool:
  """Whether this is an address rather than a path."""
  return '://' in path


def begin(url: str, staging: files.Path, *, push_seconds: float) -> Mirror:
  """The mirror of a run that begins: pulled, and pushed from now on; also where the run ends badly
  (see lifeline).
  """
  mirror = Mirror(url, staging)
  mirror.begin()
  mirror.keep_pushing(push_seconds)
  return mirror


def peek(url: str, name: str, folder: files.Path) -> None:
  """Copies one file of a workdir at a URL into a folder, if it is there; nothing is written to the
  URL.

  Raises:
    InputError, CorruptError, OutputError: as Mirror.begin.
  """
  mirror = Mirror(url, folder)
  if name in (there := mirror._read()).files:
    mirror._fetch(name, there.files[name])


def probe(url: str) -> None:
  """Nothing, if a file can be written to the URL, read back and removed.

  Raises:
    InputError: as `Store`. OutputError: it cannot.
  """
  there, name, content = store.Store(url), f'.probe-{secrets.token_hex(8)}', secrets.token_bytes(64)
  try:
    there.write(name, content)
    same = there.read(name) == content
    there.remove(name)
  except Exception as error:
    raise OutputError(f'{url} cannot be written and read: {_reason(error)}') from error
  if not same:
    raise OutputError(f'{url} did not give back what was written to it')


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
  """The next so many bytes of a file, or fewer if it has no more."""
  while size > 0 and (chunk := file.read(min(size, CHUNK))):
    yield chunk
    size -= len(chunk)


def _in_parallel(action: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
  """The action's results, in order; the first error after all are done."""
  with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
    return list(pool.map(action, items))


def _patiently(action: Callable[[], Any], *, tries: int = TRIES) -> Any:
  """The action's result, tried again with growing pauses, but not where that is hopeless."""
  for number in range(tries):
    try:
      return action()
    except (InputError, CorruptError, FileNotFoundError, PermissionError):
      raise
    except Exception as error:
      if number + 1 == tries:
        raise
      logging.warning('%s; tried again', _reason(error))
      time.sleep(FIRST_PAUSE * 2**number)


def _reason(error: BaseException) -> str:
  line = first_line(error, LINE_LENGTH)
  if isinstance(error, WeightSteerError) or not str(error).strip():
    return line
  # Drivers raise errors of many classes, which often say more than their text.
  return f'{type(error).__name__}: {line}'
