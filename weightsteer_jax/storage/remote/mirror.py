"""A workdir at a URL: a local staging folder, where all work is done, and a mirror.

The URL is anything within reach of fsspec. The URL holds the files under their own names, and

  .mirror.json       the listing: the files of the run's state, with size and content; written last
  .mirror/<sha256>   contents on their way: a file takes its name after a listing names its content

The staging's own .mirror.json is no listing but a record: owner, generation and URL of the state
that the staging goes on from.

A push cut short at any point leaves the state of the last listing whole. Listings are numbered
(generation), and name the staging behind them (owner). The owner, if no generation behind, goes on
from its own files. Any other staging begins with the URL's files, and becomes the owner. A staging
that has lost ownership finds out at the next push, and stops.
"""

import concurrent.futures
import dataclasses
import functools
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
# A network may refuse by chance. Pauses between tries double, from FIRST_PAUSE seconds on.
TRIES = 5
FIRST_PAUSE = 1.0
# Seconds between two pushes when pushes keep failing.
LONGEST_PAUSE = 600.0
# Files on their way at once.
WORKERS = 4
# Bytes read at once.
CHUNK = 1 << 22
# Files that an error lists, and characters of a driver's error that are shown.
NAMED = 5
LINE_LENGTH = 300


class _Moved(Exception):
  """A file was replaced while it was read."""


class Mirror:
  """A staging folder and a URL; only process 0 has a mirror.

  Attributes:
    url: the URL without a slash at the end.
    staging: the local folder.
  """

  def __init__(self, url: str, staging: files.Path):
    """Connects to the URL.

    Raises:
      InputError: if the URL cannot be used (see `store.Store`), or contains the staging folder.
    """
    self.staging = pathlib.Path(staging)
    self._store = store.Store(url)
    self.url = self._store.url
    self._store.refuse_inside(self.staging)
    self._lock = threading.Lock()
    self._closed = threading.Event()
    # The URL's state as this staging last wrote it, and as it last tried to.
    self._listing = Listing()
    self._tried = Listing()
    # Whether files on their way, or removed files, may be left at the URL.
    self._unsettled = True

  def begin(self) -> None:
    """Brings the staging to the URL's state or a later one, and takes ownership.

    Raises:
      InputError: if the URL holds something else than a workdir, cannot be read, or is being
        written to.
      CorruptError: if a file at the URL is not as listed.
      OutputError: if the URL or the staging cannot be written.
    """
    remote = self._pulled()
    # A number above both, so that neither an earlier push nor the listing there looks newer.
    owner, generation = self._read_record()
    claim = dataclasses.replace(
      remote,
      owner=owner or secrets.token_hex(8),
      id=secrets.token_hex(8),
      generation=max(generation, remote.generation) + 1,
    )
    try:
      _patiently(lambda: self._commit(claim))
    except (FileNotFoundError, PermissionError) as error:
      raise InputError(
        f'{self.url} cannot be written: {_reason(error)}; is there such a bucket, and may you '
        'write to it?'
      ) from error
    except Exception as error:
      raise OutputError(f'{self.url} cannot be written: {_reason(error)}') from error

  def push(self) -> None:
    """Brings the URL to the state of the staging.

    Raises:
      Conflict: if another staging, or another process on this staging, has written to the URL.
      OutputError: if the URL could not be written.
    """
    with self._lock:
      if self._closed.is_set():
        return
      try:
        self._push()
      except WeightSteerError:
        raise
      # Each driver has errors of its own.
      except Exception as error:
        raise OutputError(
          f'{self.url} could not be written: {_reason(error)}; {self._behind()}'
        ) from error

  def keep_pushing(self, seconds: float) -> None:
    """Pushes every so many seconds, in a thread, and less often after a failure."""
    threading.Thread(target=self._keep_pushing, args=(seconds,), daemon=True).start()

  def finish(self) -> None:
    """Pushes the rest of a finished run, and closes the mirror.

    Raises:
      Conflict: if another staging has written to the URL.
      OutputError: if the URL could not be written in TRIES tries; the error names missing files.
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
    """Pushes the rest of a failed run, and closes the mirror; a failure is a warning."""
    if self._closed.is_set():
      return
    try:
      # Schedulers give a run that ends only so much time.
      _patiently(self.push, tries=2)
    except WeightSteerError as error:
      logging.warning('%s', error)
    self._closed.set()

  # Begin.

  def _pulled(self) -> Listing:
    """The listing of the URL, once the staging has all files."""
    for _ in range(TRIES):
      remote = self._read_listing()
      self._prepare(remote)
      corrupt = None
      try:
        self._pull(remote)
      except CorruptError as error:
        corrupt = error
      # Where the listing has changed in the meantime, another run is writing: begin again.
      if self._read_listing() == remote:
        if corrupt is not None:
          raise corrupt
        return remote
    raise InputError(
      f'{self.url}: another run is writing to it; end that one, or name another --workdir'
    )

  def _read_listing(self) -> Listing:
    """The listing of the URL; a listing of generation 0 if the URL is empty."""
    try:
      content = _patiently(lambda: self._store.read(LISTING))
      stranger = '' if content is not None else _patiently(self._store.first)
      if stranger:
        raise InputError(
          f'{self.url} holds {stranger}, but no {LISTING}: it is no workdir that was pushed there; '
          'name another --workdir'
        )
    except WeightSteerError:
      raise
    except (FileNotFoundError, PermissionError) as error:
      raise InputError(f'{self.url} cannot be read: {_reason(error)}') from error
    except Exception as error:
      raise OutputError(f'{self.url} cannot be reached: {_reason(error)}') from error
    return Listing() if content is None else listing.parse(content, f'{self.url}/{LISTING}')

  def _read_record(self) -> tuple[str, int]:
    """(owner, generation) of the staging.

    The owner is '' while the staging is being filled. A staging without a record is of generation
    -1.
    """
    path = self.staging / LISTING
    if not path.exists():
      return '', -1
    record = files.read_json(path, what='what a staging folder says of itself')
    return str(record['owner']), int(record['generation'])

  def _write_record(self, owner: str, generation: int) -> None:
    record = {'owner': owner, 'generation': generation, 'url': self.url}
    files.write_json(self.staging / LISTING, record)

  def _prepare(self, remote: Listing) -> None:
    """Leaves a staging to go on from, or a staging to fill with the URL's files."""
    owner, generation = self._read_record()
    has_files = any(self._scan())
    state = f'generation {remote.generation}, {len(remote.files)} files'
    say(f'workdir: {self.url} ({state}), staged in {self.staging}')
    is_new = not remote.generation
    is_current = owner == remote.owner and generation >= remote.generation
    if is_new or is_current:
      if has_files:
        say(f'{self.staging} goes on from there')
      return
    if has_files and (owner or generation < 0):
      self._set_aside()
    self._write_record('', 0)
    # Files of a pull that was cut short stay where they are what the listing says.
    for name, stat in self._scan().items():
      if name not in remote.files or not listing.same(stat, remote.files[name]):
        (self.staging / name).unlink()

  def _set_aside(self) -> None:
    number = 1
    while self._aside(number).exists():
      number += 1
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

  def _pull(self, remote: Listing) -> None:
    """Fetches the listed files missing from the staging."""
    # Present files are as listed, or newer ones of a staging that goes on.
    present = self._scan()
    missing = [name for name in remote.files if name not in present]
    if remote.generation and missing:
      size = file_size(sum(remote.files[name][0] for name in missing))
      say(f'pulling {len(missing)} files ({size}) from {self.url}')
    elif remote.generation:
      say(f'{self.staging} lacks nothing of it')

    def fetch(name: str) -> None:
      _patiently(lambda: self._fetch(name, remote.files[name]))

    try:
      _in_parallel(fetch, missing)
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
    # Hidden until it is whole, so that it is neither read nor pushed.
    partial = files.partial_path(path)
    try:
      # The file may be given its name between the first two looks.
      for source in (name, f'{COMING}/{entry[2]}', name):
        if self._store.fetch(source, partial) and hashes.of_file(partial) == entry[2]:
          # The listed time, by which the file counts as unchanged at the next push.
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
      # Uploads may have taken long, and another staging the URL.
      self._check_owner()
      self._commit(new)
      self._unsettled = True
    else:
      # Times may have changed without the contents.
      self._listing = dataclasses.replace(self._listing, files=new.files)
    if self._unsettled:
      self._settle()

  def _check_owner(self) -> None:
    content = self._store.read(LISTING)
    remote = Listing() if content is None else listing.parse(content, f'{self.url}/{LISTING}')
    # A write may have been done whose answer was lost.
    if remote.id == self._tried.id:
      self._listing = self._tried
    if remote.id != self._listing.id:
      self._closed.set()
      raise Conflict(
        f'{self.url}: another run has taken it over (generation {remote.generation} there, '
        f'{self._listing.generation} was the last of this one), so that this one stops; '
        f'{self.staging} keeps what it has made'
      )

  def _uploaded(self) -> Listing:
    """The listing of the present staging, with every content at the URL.

    A content may still be without a name there.
    """
    for _ in range(TRIES):
      present = self._scan()
      known = self._listing.files
      changed = {name: present[name] for name in self._differing(present)}
      upload = functools.partial(self._upload, stats=changed)
      try:
        entries = dict(zip(changed, _in_parallel(upload, changed)))
      except _Moved:
        # The run went on: look again.
        continue
      now = {name: entries.get(name) or known[name] for name in present}
      # Names of earlier states stay on the list until `_settle` has removed their files.
      gone = {*self._listing.removed, *known} - now.keys()
      return Listing(
        owner=self._listing.owner,
        generation=self._listing.generation + 1,
        files=now,
        removed=tuple(sorted(gone)),
        id=secrets.token_hex(8),
      )
    raise OutputError(f'{self.staging} changes faster than it can be pushed; {self._behind()}')

  def _upload(self, name: str, stats: Mapping[str, os.stat_result]) -> Entry:
    """The entry of a file, once the content is at the URL.

    The content is as many bytes as the file had at the time of `stats`: journals grow.
    """
    stat = stats[name]
    with self._open(name) as file:
      now = os.fstat(file.fileno())
      if now.st_ino != stat.st_ino or now.st_size < stat.st_size:
        raise _Moved
      digest = hashes.of_chunks(_chunks(file, stat.st_size))
      # A file that was only touched need not travel.
      known = self._listing.contents().get(name)
      if known != (stat.st_size, digest):
        file.seek(0)
        if self._store.write_from(_chunks(file, stat.st_size), f'{COMING}/{digest}') != digest:
          raise _Moved
    return stat.st_size, stat.st_mtime_ns, digest

  def _open(self, name: str) -> BinaryIO:
    try:
      return open(self.staging / name, 'rb')
    except FileNotFoundError as error:
      raise _Moved from error

  def _commit(self, new: Listing) -> None:
    # The staging first: if the process ends in between, the staging must not look as if behind.
    self._write_record(new.owner, new.generation)
    self._tried = new
    self._store.write(LISTING, new.encode())
    self._listing = new

  def _settle(self) -> None:
    """Gives contents their names, and removes files without a place in the listing."""
    names_by_content: dict[str, list[str]] = {}
    for name, (_, _, digest) in self._listing.files.items():
      names_by_content.setdefault(digest, []).append(name)
    come = self._store.names(COMING)
    moves = []
    for digest in come:
      for name in names_by_content.get(digest, ()):
        moves.append((f'{COMING}/{digest}', name))
    # Manifests and markers are JSON, and come last: other programs that look at the URL find them
    # only where everything else is.
    for is_json in (False, True):
      now = [move for move in moves if move[1].endswith('.json') == is_json]
      _in_parallel(lambda move: self._store.copy(*move), now)
    done = [f'{COMING}/{digest}' for digest in come]
    _in_parallel(self._store.remove, [*done, *self._listing.removed])
    self._listing = dataclasses.replace(self._listing, removed=())
    self._unsettled = False

  def _keep_pushing(self, seconds: float) -> None:
    failures = 0
    longest = max(seconds, LONGEST_PAUSE)
    # The exponent is limited, since a float has only so large a range.
    while not self._closed.wait(min(seconds * 2 ** min(failures, 10), longest)):
      try:
        self.push()
        failures = 0
      except Conflict as error:
        ending.tell_and_end(str(error), error.exit_code)
      except WeightSteerError as error:
        failures += 1
        logging.warning('%s; the run goes on, and it is tried again', error)

  def _behind(self) -> str:
    """The words of an error about files missing at the URL."""
    names = self._differing(self._scan())
    state = f'not there are {listed(names, NAMED)}' if names else 'all files are there'
    return f'{state}; {self.staging} holds everything, and the same command goes on from it'

  def _differing(self, present: Mapping[str, os.stat_result]) -> list[str]:
    """The names of files missing from the listing, or changed since."""
    known = self._listing.files
    names = []
    for name, stat in present.items():
      if name not in known or not listing.same(stat, known[name]):
        names.append(name)
    return names

  def _scan(self) -> dict[str, os.stat_result]:
    """{name: stat} of the files in the staging at one moment, without hidden files."""
    while True:
      present = dict(listing.walk(self.staging))
      # If a file is gone, a folder may have been renamed while we looked, and be here in part.
      if all((self.staging / name).exists() for name in present):
        return present


def is_url(path: str) -> bool:
  """Whether a workdir is given as an address, not as a path."""
  return '://' in path


def begin(url: str, staging: files.Path, *, push_seconds: float) -> Mirror:
  """The mirror of a new run, pulled once, and pushed from now on.

  Args:
    push_seconds: seconds between two pushes.

  Raises:
    InputError, CorruptError, OutputError: as `Mirror` and `Mirror.begin`.
  """
  mirror = Mirror(url, staging)
  mirror.begin()
  mirror.keep_pushing(push_seconds)
  return mirror


def peek(url: str, name: str, folder: files.Path) -> None:
  """Copies a file of a workdir at a URL into a folder, if the URL holds the file.

  Nothing is written to the URL.

  Raises:
    InputError, CorruptError, OutputError: as `Mirror.begin`.
  """
  mirror = Mirror(url, folder)
  remote = mirror._read_listing()
  if name in remote.files:
    mirror._fetch(name, remote.files[name])


def probe(url: str) -> None:
  """Writes, reads and removes a file at the URL, as a test.

  Raises:
    InputError: if the URL cannot be used (see `store.Store`).
    OutputError: if the file cannot be written, or is read with other content.
  """
  target = store.Store(url)
  name = f'.probe-{secrets.token_hex(8)}'
  content = secrets.token_bytes(64)
  try:
    target.write(name, content)
    same = target.read(name) == content
    target.remove(name)
  except Exception as error:
    raise OutputError(f'{url} cannot be written and read: {_reason(error)}') from error
  if not same:
    raise OutputError(f'{url} did not give back what was written to it')


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
  """The next `size` bytes of a file, or fewer if the file ends."""
  while size > 0 and (chunk := file.read(min(size, CHUNK))):
    yield chunk
    size -= len(chunk)


def _in_parallel(action: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
  """The results for all items, in order; raises the first error when all are done."""
  # The block ends when all are done, and only then an error is raised.
  with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
    return list(pool.map(action, items))


def _patiently(action: Callable[[], Any], *, tries: int = TRIES) -> Any:
  """The action's result, tried again with growing pauses where another try may help."""
  for number in range(tries):
    try:
      return action()
    # Another try would meet the same.
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
