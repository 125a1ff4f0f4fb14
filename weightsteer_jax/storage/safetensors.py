"""Safetensors files as ranges of bytes: read at any place, and written from front to back, never
whole in memory.

The format: 8 bytes with the length of a JSON header, the header {name: {dtype, shape,
data_offsets}}, the tensors one after the other. Source: github.com/huggingface/safetensors,
"Format".
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

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from weightsteer_jax.runtime.errors import CorruptError, OutputError

# What an element is read as: bfloat16 as the upper half of a float32's bits, everything else as
# numpy has it.
STORED_AS = {'BF16': np.uint16, 'F16': np.float16, 'F32': np.float32, 'F64': np.float64}
DTYPES = {'bfloat16': 'BF16', 'float32': 'F32'}
METADATA = '__metadata__'
SYNC_BYTES = 2**27  # After so many the disk is set to work, while more are computed.


@dataclasses.dataclass(frozen=True)
class Raw:
  """Where a tensor lies: dtype as safetensors calls it, offset in bytes from the start of the
  file.
  """

  path: pathlib.Path
  name: str
  dtype: str
  shape: tuple[int, ...]
  offset: int

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.shape)

  def read(self, start: int, out: np.ndarray) -> None:
    """Fills `out` (of STORED_AS its dtype) with the elements from number `start` on.

    Raises:
      CorruptError: the file ends before.
    """
    view, at = memoryview(out).cast('B'), self.offset + start * out.itemsize
    descriptor = os.open(self.path, os.O_RDONLY)
    try:
      while view:
        count = os.preadv(descriptor, [view], at)
        if not count:
          raise CorruptError(f"{self.path} ends within '{self.name}'; copy or make it again")
        view, at = view[count:], at + count
    finally:
      os.close(descriptor)


def tensors_of(path: pathlib.Path) -> dict[str, Raw]:
  """{name: where it lies}, in the order of the file.

  Raises:
    CorruptError: it is no whole safetensors file.
  """
  try:
    with open(path, 'rb') as file:
      length, size = int.from_bytes(file.read(8), 'little'), path.stat().st_size
      header = json.loads(file.read(length)) if length <= size - 8 else {}
    header.pop(METADATA, None)
    found = {
      name: Raw(
        path, name, entry['dtype'], tuple(entry['shape']), 8 + length + entry['data_offsets'][0]
      )
      for name, entry in header.items()
    }
    end = max(8 + length + entry['data_offsets'][1] for entry in header.values())
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise CorruptError(
      f'{path} is no whole safetensors file ({error}); copy or make it again'
    ) from error
  if size != end:
    raise CorruptError(
      f'{path} is no whole safetensors file ({size} bytes, expected {end}); copy or make it again'
    )
  return dict(sorted(found.items(), key=lambda item: item[1].offset))


def read(path: pathlib.Path, *, remedy: str) -> dict[str, np.ndarray]:
  """The tensors of a safetensors file, all in memory.

  Args:
    remedy: what an error tells the user to do, as in 'copy or train the adapter again'.

  Raises:
    CorruptError: if the file is missing or not whole.
  """
  with found_whole(path, remedy=remedy):
    return load_file(path)


@contextlib.contextmanager
def found_whole(path: pathlib.Path, *, remedy: str) -> Iterator[None]:
  """A block that opens or reads a safetensors file with the library's own functions.

  Raises:
    CorruptError: if the library finds that the file is missing or not whole.
  """
  try:
    yield
  except (SafetensorError, OSError) as error:
    raise CorruptError(f'{path} is no whole safetensors file ({error}); {remedy}') from error


class Writer:
  """Writes a safetensors file, its tensors in the order given, as the bytes come; what was written
  is read back.

  Attributes:
    sha256: of the bytes that were meant to be written.
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
    """`tensors`: {name: (dtype as safetensors calls it, shape)}."""
    self.path, self._left, self._unsynced = path, 0, 0
    header: dict = {METADATA: dict(metadata)} if metadata else {}
    for name, (dtype, shape) in tensors.items():
      size = math.prod(shape) * np.dtype(STORED_AS[dtype]).itemsize
      header[name] = {
        'dtype': dtype,
        'shape': list(shape),
        'data_offsets': [self._left, self._left + size],
      }
      self._left += size
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    self._hash = hashlib.sha256() if hashed else None
    self._syncer = futures.ThreadPoolExecutor(1) if sync else None
    self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    self._at, self._left = 0, self._left + 8 + len(text)
    self._scratch = np.empty(0, np.uint8)
    self.write(np.frombuffer(len(text).to_bytes(8, 'little') + text, np.uint8))

  def write(self, block: np.ndarray) -> None:
    """Adds a contiguous block.

    Raises:
      OutputError: what is read back is not what was written.
    """
    block = block.reshape(-1).view(np.uint8)
    view, at = memoryview(block), self._at
    while view:
      count = os.pwrite(self._descriptor, view, at)
      view, at = view[count:], at + count
    if self._hash:
      self._hash.update(block)
    self._read_back(block)
    self._at, self._left, self._unsynced = at, self._left - len(block), self._unsynced + len(block)
    if self._syncer and self._unsynced >= SYNC_BYTES:
      self._syncer.submit(os.fdatasync, self._descriptor)
      self._unsynced = 0

  def _read_back(self, block: np.ndarray) -> None:
    if len(self._scratch) < len(block):
      self._scratch = np.empty(len(block), np.uint8)
    got = self._scratch[: len(block)]
    if os.preadv(self._descriptor, [got], self._at) != len(block) or not np.array_equal(got, block):
      raise OutputError(
        f'{self.path.name} was not written: read back, it differs near byte {self._at} from what '
        'was to be written. Nothing was left behind'
      )

  @property
  def sha256(self) -> str:
    """The SHA-256 of all that was written, in hex digits."""
    return self._hash.hexdigest()

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, kind: type | None, *_) -> None:
    if self._syncer:
      self._syncer.shutdown()
    os.close(self._descriptor)
    if kind is None and (self._left or self.path.stat().st_size != self._at):
      raise OutputError(
        f'{self.path.name} was not written whole: {self._left} bytes are missing. Nothing was left '
        'behind'
      )
