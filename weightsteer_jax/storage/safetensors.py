"""Safetensors files: read whole, or as ranges of bytes, and written from front to back.

A file of any size is read and written without being whole in memory. The format: 8 bytes with the
length of a JSON header, the header {name: {dtype, shape, data_offsets}}, the tensors in a row.

Source: github.com/huggingface/safetensors, "Format".
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from weightsteer_jax.runtime import json_text
from weightsteer_jax.runtime.errors import CorruptError, InputError, OutputError
from weightsteer_jax.storage import files

# The NumPy dtype of an element as read. NumPy has no bfloat16: its bits are the upper half of a
# float32's.
STORED_AS: dict[str, type[np.generic]] = {
  'BF16': np.uint16,
  'F16': np.float16,
  'F32': np.float32,
  'F64': np.float64,
}
DTYPES = {'bfloat16': 'BF16', 'float32': 'F32'}
METADATA = '__metadata__'
# After so many bytes the disk is set to work, while more are computed.
SYNC_BYTES = 2**27


@dataclasses.dataclass(frozen=True)
class Raw:
  """A tensor in a file, unread.

  Attributes:
    path: the file.
    name: the tensor's name in the file.
    dtype: the dtype's name in safetensors, a key of STORED_AS.
    offset: bytes from the start of the file to the tensor's first element.
  """

  path: pathlib.Path
  name: str
  dtype: str
  shape: tuple[int, ...]
  offset: int

  @property
  def size(self) -> int:
    """The number of elements."""
    return math.prod(self.shape)

  def read(self, start: int, out: np.ndarray) -> None:
    """Fills an array with the elements from number `start` on.

    Args:
      out: contiguous, of the dtype in STORED_AS for the tensor.

    Raises:
      CorruptError: if the file ends before `out` is full.
    """
    view = memoryview(out.data).cast('B')
    position = self.offset + start * out.itemsize
    descriptor = os.open(self.path, os.O_RDONLY)
    try:
      # One call reads at most 2 GiB.
      while view:
        count = os.preadv(descriptor, [view], position)
        if not count:
          raise CorruptError(f"{self.path} ends within '{self.name}'; copy or make it again")
        view = view[count:]
        position += count
    finally:
      os.close(descriptor)


def tensors_of(path: pathlib.Path) -> dict[str, Raw]:
  """{name: tensor} of a file, in the order of the file.

  Raises:
    CorruptError: if the file is no whole safetensors file.
  """
  try:
    size = path.stat().st_size
    length, header = _header(path)
    # The metadata stands among the tensors.
    header.pop(METADATA, None)
    start = 8 + length
    tensors = []
    ends = []
    for name, entry in header.items():
      first, last = entry['data_offsets']
      tensors.append(Raw(path, name, entry['dtype'], tuple(entry['shape']), start + first))
      ends.append(start + last)
    end = max(ends)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise CorruptError(
      f'{path} is no whole safetensors file ({error}); copy or make it again'
    ) from error
  # A file that was cut short has a whole header, and one that was appended to is not ours.
  if size != end:
    raise CorruptError(
      f'{path} is no whole safetensors file ({size} bytes, expected {end}); copy or make it again'
    )
  return {tensor.name: tensor for tensor in sorted(tensors, key=lambda tensor: tensor.offset)}


def _header(path: pathlib.Path) -> tuple[int, dict[str, Any]]:
  """(bytes of the header, the header); raises ValueError if it is none."""
  with open(path, 'rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    # In a damaged file the length may be anything, and is not to be read at one go.
    if length > path.stat().st_size - 8:
      raise ValueError('its header is longer than the file')
    return length, json_text.parse(file.read(length), unique=True)


def read(path: pathlib.Path, *, remedy: str) -> dict[str, np.ndarray]:
  """The tensors of a safetensors file, all in memory.

  Args:
    remedy: the advice of an error, as in 'copy or train the adapter again'.

  Raises:
    CorruptError: if the file is missing or not whole.
  """
  with found_whole(path, remedy=remedy):
    return load_file(path)


@contextlib.contextmanager
def found_whole(path: pathlib.Path, *, remedy: str) -> Iterator[None]:
  """A block to open or read a safetensors file with the library's own functions.

  Raises:
    CorruptError: if the library finds the file missing or not whole, or a name stands there twice,
      of which the library reads one.
  """
  try:
    yield
    _header(path)
  except (SafetensorError, OSError, ValueError) as error:
    raise CorruptError(f'{path} is no whole safetensors file ({error}); {remedy}') from error


def save(
  path: files.Path, tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, str] | None = None
) -> None:
  """Writes a new safetensors file, with the permissions of any other new file.

  Raises:
    InputError: if the file exists.
    OutputError: if the file could not be written whole; nothing is left behind.
  """
  path = pathlib.Path(path)
  # Opening exclusively refuses a file that exists, and tells which permissions a new file has here.
  try:
    path.open('xb').close()
    mode = path.stat().st_mode
  except FileExistsError as error:
    raise InputError(
      f'{path} exists already and is never overwritten: name another output, or move it away'
    ) from error
  except OSError as error:
    raise OutputError(f'{path} could not be written: {error.strerror or error}') from error
  try:
    save_file(
      {name: np.asarray(tensor, order='C') for name, tensor in tensors.items()},
      str(path),
      metadata=dict(metadata or {}),
    )
    # safetensors makes files for the owner alone (0600).
    path.chmod(mode)
    files.sync_to_disk(path)
  # An interrupt leaves no half behind either.
  except BaseException as error:
    path.unlink(missing_ok=True)
    if isinstance(error, (SafetensorError, OSError)):
      raise OutputError(f'{path} could not be written: {error}; nothing was left behind') from error
    raise


class FileWriter:
  """Writes a safetensors file from front to back; a context manager.

  Every block is read back and compared.
  """

  def __init__(
    self,
    path: pathlib.Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
    *,
    hashed: bool = True,
    sync: bool = True,
  ):
    """Makes the file and writes the header.

    Args:
      tensors: {name: (dtype as safetensors calls it, shape)}, in the order of writing.
      hashed: whether `sha256` is wanted.
      sync: whether the disk is set to work while more is written.
    """
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
      start = end
      end += math.prod(shape) * np.dtype(STORED_AS[dtype]).itemsize
      header[name] = {'dtype': dtype, 'shape': list(shape), 'data_offsets': [start, end]}
    text = json.dumps(header, separators=(',', ':')).encode()
    # As the library does, so that the tensors begin at a multiple of 8 bytes.
    text += b' ' * (-len(text) % 8)
    self.path = path
    self._hash = hashlib.sha256() if hashed else None
    self._syncer = futures.ThreadPoolExecutor(1) if sync else None
    self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    self._position = 0
    self._left = end + 8 + len(text)
    self._unsynced = 0
    # Kept between blocks: new memory of this size would be cleared by the system each time.
    self._scratch = np.empty(0, np.uint8)
    self.write(np.frombuffer(len(text).to_bytes(8, 'little') + text, np.uint8))

  def write(self, block: np.ndarray) -> None:
    """Adds a contiguous block of any dtype.

    Raises:
      OutputError: if the block, read back, is not what was written.
    """
    block = block.reshape(-1).view(np.uint8)
    view = block.data
    position = self._position
    while view:
      count = os.pwrite(self._descriptor, view, position)
      view = view[count:]
      position += count
    if self._hash:
      self._hash.update(block.data)
    self._read_back(block)
    self._position = position
    self._left -= len(block)
    self._unsynced += len(block)
    if self._syncer and self._unsynced >= SYNC_BYTES:
      self._syncer.submit(os.fdatasync, self._descriptor)
      self._unsynced = 0

  def _read_back(self, block: np.ndarray) -> None:
    if len(self._scratch) < len(block):
      self._scratch = np.empty(len(block), np.uint8)
    got = self._scratch[: len(block)]
    count = os.preadv(self._descriptor, [got.data], self._position)
    if count != len(block) or not np.array_equal(got, block):
      raise OutputError(
        f'{self.path.name} was not written: read back, it differs near byte {self._position} from '
        'what was to be written. Nothing was left behind'
      )

  @property
  def sha256(self) -> str:
    """The SHA-256 of all bytes as given to `write`, in hex digits."""
    assert self._hash is not None, 'asked for with hashed=True only'
    return self._hash.hexdigest()

  def __enter__(self) -> 'FileWriter':
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    # The last sync may be under way, and needs the descriptor.
    if self._syncer:
      self._syncer.shutdown()
    os.close(self._descriptor)
    if kind is None and (self._left or self.path.stat().st_size != self._position):
      raise OutputError(
        f'{self.path.name} was not written whole: {self._left} bytes are missing. Nothing was left '
        'behind'
      )
