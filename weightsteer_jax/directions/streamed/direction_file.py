"""A direction's tensors written as they are computed: changes that are on the disk go to another
place on it.
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from weightsteer_jax.directions.streamed import blocks, on_disk
from weightsteer_jax.directions.streamed.on_disk import Part, Values
from weightsteer_jax.storage.safetensors import Writer


def write(
  path: pathlib.Path, flat: Mapping[str, Any], parts: Mapping[str, list[Part]], *, sync: bool = True
) -> tuple[dict[str, float], dict[str, str]]:
  """Writes the changes, all of them on disk, as float32 under the names of a checkpoint.

  A few blocks are in memory at a time.

  Returns:
    {path: squared norm of its change}, {tensor: fingerprint}.

  Raises:
    NotFiniteError: a value is NaN or infinite. CorruptError: a change that was read does not match
      its fingerprint.
  """
  tensors = on_disk.tensors_of(flat)
  squares, totals = dict.fromkeys(flat, 0.0), dict.fromkeys(tensors, 0)
  shapes = {name: values.plus.shape for name, values in tensors.items()}
  with Writer(
    path, {name: ('F32', shape) for name, shape in shapes.items()}, hashed=False, sync=sync
  ) as file:
    for name, part, count, block, square, words in blocks.in_order(_tasks(tensors, parts)):
      if not np.isfinite(square) and not blocks.finite(block):
        raise tensors[name].not_finite()
      totals[name] += words
      if part in squares:
        squares[part] += square
      file.write(block.reshape(-1)[:count])
  for name, values in tensors.items():
    values.check(totals[name])
  return squares, {
    name: blocks.fingerprint(totals[name], shape, 'float32') for name, shape in shapes.items()
  }


def _tasks(tensors: Mapping[str, Values], parts: Mapping[str, list[Part]]) -> Iterator[Any]:
  for name, values in tensors.items():
    for part in parts[name]:
      for start, stop in blocks.ranges(part.start, part.stop):
        yield functools.partial(_block, name, part.path, values, start, stop)


def _block(
  name: str, path: str, values: Values, start: int, stop: int
) -> tuple[str, str, int, np.ndarray, float, int]:
  change = values.read(start, stop)
  if values.minus is None:
    change = change.copy()  # Out of the buffer that the thread's next block is read into.
  return name, path, stop - start, change, blocks.squares(change), blocks.words_from(change, start)
