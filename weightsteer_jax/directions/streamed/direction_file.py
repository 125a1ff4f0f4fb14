"""A direction's tensors written as they are computed: from files on disk to another file."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from weightsteer_jax.directions.streamed import blocks, on_disk
from weightsteer_jax.directions.streamed.on_disk import Part, Values
from weightsteer_jax.storage.safetensors import FileWriter


@dataclasses.dataclass(frozen=True)
class ChangeBlock:
  """A block of a change, computed and ready to be written.

  Attributes:
    name, path: the tensor, and the parameter that the block belongs to.
    values: float32, at least `count` elements; the rest are zeros.
    square: the sum of squares of the values.
    words: the block's part of the tensor's fingerprint.
  """

  name: str
  path: str
  count: int
  values: np.ndarray
  square: float
  words: int


def write(
  path: pathlib.Path,
  flat: Mapping[str, Any],
  parts: Mapping[str, list[Part]],
  *,
  beside: Mapping[str, np.ndarray] = MappingProxyType({}),
  sync: bool = True,
) -> tuple[dict[str, float], dict[str, str]]:
  """Writes changes that are all on disk, as float32 under the names of a checkpoint.

  A few blocks are in memory at a time.

  Args:
    flat: {path: change}.
    parts: {tensor of a checkpoint: its parts}.
    beside: {name: float32 tensor} of other changes, written behind.

  Returns:
    {path: squared norm of the change}, {tensor: fingerprint}.

  Raises:
    NotFiniteError: if a value is NaN or infinite.
    CorruptError: if a change does not match its fingerprint.
  """
  tensors = on_disk.tensors_of(flat)
  # By parameter: the norms of a direction. By tensor: the words of the fingerprints.
  squares = dict.fromkeys(flat, 0.0)
  totals = dict.fromkeys(tensors, 0)
  shapes = {name: values.plus.shape for name, values in tensors.items()}
  # The header of a safetensors file stands before the tensors, and shapes are all it needs.
  header = {name: ('F32', shape) for name, shape in shapes.items()}
  header |= {name: ('F32', tensor.shape) for name, tensor in beside.items()}
  # Blocks come back in the order of their tasks, the order of the header.
  with FileWriter(path, header, hashed=False, sync=sync) as file:
    for block in blocks.in_order(_tasks(tensors, parts)):
      # A finite sum of squares says that all elements are finite; an infinite sum may overflow.
      if not np.isfinite(block.square) and not blocks.finite(block.values):
        raise tensors[block.name].not_finite()
      totals[block.name] += block.words
      # A fused tensor may hold parameters that the direction does not change.
      if block.path in squares:
        squares[block.path] += block.square
      # Without the zeros that fill the last block of a part.
      elements = block.values.reshape(-1)
      file.write(elements[: block.count])
    for tensor in beside.values():
      file.write(np.ascontiguousarray(tensor, np.float32))
  # Only now are the sums complete. A caller writes into a new folder, which an error takes back.
  for name, values in tensors.items():
    values.check(totals[name])
  prints = {}
  for name, shape in shapes.items():
    prints[name] = blocks.fingerprint(totals[name], shape, 'float32')
  return squares, prints


def _tasks(
  tensors: Mapping[str, Values], parts: Mapping[str, list[Part]]
) -> Iterator[Callable[[], ChangeBlock]]:
  for name, values in tensors.items():
    for part in parts[name]:
      for start, stop in blocks.ranges(part.start, part.stop):
        yield functools.partial(_block, name, part.path, values, start, stop)


def _block(name: str, path: str, values: Values, start: int, stop: int) -> ChangeBlock:
  change = values.read(start, stop)
  if values.minus is None:
    # Out of the buffer that the thread's next block is read into.
    change = change.copy()
  return ChangeBlock(
    name=name,
    path=path,
    count=stop - start,
    values=change,
    square=blocks.squares(change),
    words=blocks.words_from(change, start),
  )
