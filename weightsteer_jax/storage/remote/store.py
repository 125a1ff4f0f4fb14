"""Files at a URL, through fsspec: an object store, a folder, or memory."""

import hashlib
import os
import pathlib
import urllib.parse
from collections.abc import Iterable

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import files

# What to install for a scheme, where fsspec does not bring its driver.
DRIVERS = {
  'gs': 'gcsfs',
  'gcs': 'gcsfs',
  's3': 's3fs',
  's3a': 's3fs',
  'abfs': 'adlfs',
  'abfss': 'adlfs',
  'az': 'adlfs',
  'oci': 'ocifs',
}


class Store:
  """The files under a URL, by name. Errors are those of the driver.

  Attributes:
    url: without a slash at its end.
  """

  def __init__(self, url: str):
    """Raises InputError: an unknown scheme, a driver that is not installed or fails, or a secret in
    the URL.
    """
    self.url = url.rstrip('/')
    scheme = url.partition('://')[0]
    parts = urllib.parse.urlsplit(url)
    if '::' in url or parts.password or parts.query or parts.fragment:
      raise InputError(
        f'{scheme}://{parts.hostname or ""}/...: expected an address without user:password, ?, # '
        'or ::; credentials belong where the driver looks for them (its environment variables or '
        'files)'
      )
    if not url.partition('://')[2].strip('/'):
      raise InputError(f'{url}: expected a folder in it, as in {scheme}://BUCKET/runs/mine')
    self._fs, self._root = self._connect(scheme)

  def _connect(self, scheme: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
      fsspec.get_filesystem_class(scheme)
      # What others wrote a moment ago must be seen.
      fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
      return fs, root.rstrip('/')
    except ImportError as error:
      remedy = f'pip install {DRIVERS[scheme]}' if scheme in DRIVERS else str(error)
      raise InputError(
        f'{self.url}: the driver of {scheme}:// is not installed: {remedy}'
      ) from error
    except Exception as error:
      raise InputError(f'{self.url} cannot be used: {type(error).__name__}: {error}') from error

  def refuse_inside(self, folder: pathlib.Path) -> None:
    """Raises InputError: the URL is this local folder, or one of them is within the other."""
    if isinstance(self._fs, LocalFileSystem):
      one, other = pathlib.Path(self._root).resolve(), folder.resolve()
      if one.is_relative_to(other) or other.is_relative_to(one):
        raise InputError(
          f'{self.url} and the staging folder {folder} are one within the other: name '
          'another --staging'
        )

  def read(self, name: str) -> bytes | None:
    """What a small file holds, None if it is not there."""
    try:
      return self._fs.cat_file(self._path(name))
    except FileNotFoundError:
      return None

  def write(self, name: str, content: bytes) -> None:
    """Writes a small file in one piece, as object stores do."""
    if isinstance(self._fs, LocalFileSystem):
      files.write_bytes(self._path(name), content)
    else:
      self._make_parent(name)
      self._fs.pipe_file(self._path(name), content)

  def write_from(self, chunks: Iterable[bytes], name: str) -> str:
    """The sha256 of the chunks, which are the file's now."""
    self._make_parent(name)
    sha = hashlib.sha256()
    with self._fs.open(self._path(name), 'wb') as file:
      for chunk in chunks:
        sha.update(chunk)
        file.write(chunk)
    return sha.hexdigest()

  def fetch(self, name: str, path: pathlib.Path) -> bool:
    """Whether the file is there, and its copy at the local path."""
    try:
      self._fs.get_file(self._path(name), str(path))
      return True
    except FileNotFoundError:
      return False

  def copy(self, name: str, to: str) -> None:
    """Copies within the store."""
    self._make_parent(to)
    self._fs.cp_file(self._path(name), self._path(to))

  def remove(self, name: str) -> None:
    """Removes a file, if it is there, and the folders that are empty without it."""
    try:
      self._fs.rm_file(self._path(name))
    except FileNotFoundError:
      pass
    if isinstance(
      self._fs, LocalFileSystem
    ):  # A folder is one here, and may mean something: a checkpoint's, say.
      for folder in [*pathlib.PurePosixPath(name).parents][:-1]:
        try:
          os.rmdir(self._path(str(folder)))
        except OSError:  # Not empty.
          break

  def names(self, folder: str) -> list[str]:
    """The files right in a folder, without its name."""
    try:
      found = self._fs.ls(self._path(folder), detail=True)
    except FileNotFoundError:
      return []
    return sorted(
      filter(None, (os.path.basename(entry['name']) for entry in found if entry['type'] == 'file'))
    )

  def first(self) -> str:
    """The name of something right under the URL that is not hidden, '' if there is nothing."""
    try:
      found = [path.rstrip('/') for path in self._fs.ls(self._root, detail=False)]
    except FileNotFoundError:
      return ''
    names = [
      os.path.basename(path) for path in sorted(found) if path.strip('/') != self._root.strip('/')
    ]
    return next((name for name in names if not name.startswith('.')), '')

  def _path(self, name: str) -> str:
    return f'{self._root}/{name}'

  def _make_parent(self, name: str) -> None:
    if not isinstance(
      self._fs, AsyncFileSystem
    ):  # Object stores know no folders, and would look for the bucket.
      self._fs.makedirs(os.path.dirname(self._path(name)), exist_ok=True)
