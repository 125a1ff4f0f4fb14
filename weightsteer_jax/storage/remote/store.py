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
  """The files under a URL, by name.

  Methods raise the driver's own errors.

  Attributes:
    url: the URL without a slash at the end.
  """

  def __init__(self, url: str):
    """Connects to the URL.

    Raises:
      InputError: if the scheme is unknown, the driver is not installed or fails, the URL names no
        folder, or the URL holds a secret.
    """
    self.url = url.rstrip('/')
    scheme = url.partition('://')[0]
    parts = urllib.parse.urlsplit(url)
    # Secrets in a URL would end up in logs, configs and shell histories. '::' chains file systems.
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
      # Files that others wrote a moment ago must be seen: no cache of listings.
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
    """Raises InputError if the URL is a local folder around, or within, another folder."""
    if isinstance(self._fs, LocalFileSystem):
      root = pathlib.Path(self._root).resolve()
      other = folder.resolve()
      if root.is_relative_to(other) or other.is_relative_to(root):
        raise InputError(
          f'{self.url} and the staging folder {folder} are one within the other: name '
          'another --staging'
        )

  def read(self, name: str) -> bytes | None:
    """The content of a small file, or None if the file is missing."""
    try:
      return self._fs.cat_file(self._path(name))
    except FileNotFoundError:
      return None

  def write(self, name: str, content: bytes) -> None:
    """Writes a small file in one piece."""
    # Object stores write in one piece; a local folder takes a rename.
    if isinstance(self._fs, LocalFileSystem):
      files.write_bytes(self._path(name), content)
    else:
      self._make_parent(name)
      self._fs.pipe_file(self._path(name), content)

  def write_from(self, chunks: Iterable[bytes], name: str) -> str:
    """Writes chunks to a file, and returns their SHA-256."""
    self._make_parent(name)
    sha = hashlib.sha256()
    with self._fs.open(self._path(name), 'wb') as file:
      for chunk in chunks:
        sha.update(chunk)
        file.write(chunk)
    return sha.hexdigest()

  def fetch(self, name: str, path: pathlib.Path) -> bool:
    """Copies a file to a local path; False if the file is missing."""
    try:
      self._fs.get_file(self._path(name), str(path))
      return True
    except FileNotFoundError:
      return False

  def copy(self, name: str, to: str) -> None:
    """Copies a file within the store."""
    self._make_parent(to)
    self._fs.cp_file(self._path(name), self._path(to))

  def remove(self, name: str) -> None:
    """Removes a file, if present, and the folders left empty."""
    try:
      self._fs.rm_file(self._path(name))
    except FileNotFoundError:
      pass
    # Object stores know no folders. In a local file system an empty folder stays, and may be taken
    # for something: for a checkpoint, say.
    if isinstance(self._fs, LocalFileSystem):
      for folder in [*pathlib.PurePosixPath(name).parents][:-1]:
        try:
          os.rmdir(self._path(str(folder)))
        except OSError:
          # Not empty.
          break

  def names(self, folder: str) -> list[str]:
    """The names of the files right in a folder, without the folder's name."""
    try:
      entries = self._fs.ls(self._path(folder), detail=True)
    except FileNotFoundError:
      return []
    names = [os.path.basename(entry['name']) for entry in entries if entry['type'] == 'file']
    # Some drivers list the folder itself, whose base name is ''.
    return sorted(name for name in names if name)

  def first(self) -> str:
    """The first visible name right under the URL, or ''."""
    try:
      paths = [path.rstrip('/') for path in self._fs.ls(self._root, detail=False)]
    except FileNotFoundError:
      return ''
    for path in sorted(paths):
      name = os.path.basename(path)
      # Some drivers list the folder itself.
      is_root = path.strip('/') == self._root.strip('/')
      if not is_root and not name.startswith('.'):
        return name
    return ''

  def _path(self, name: str) -> str:
    return f'{self._root}/{name}'

  def _make_parent(self, name: str) -> None:
    # Object stores, whose drivers are asynchronous, know no folders, and would look for the bucket.
    if not isinstance(self._fs, AsyncFileSystem):
      self._fs.makedirs(os.path.dirname(self._path(name)), exist_ok=True)
