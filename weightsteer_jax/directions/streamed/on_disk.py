"""Dense changes that stay on disk, in the names and axes of a Hugging Face checkpoint, until used.

Such a change is a tensor of a saved direction, or the difference of two checkpoints' tensors that
was never written down. As an array (`np.asarray`) a change is read whole, checked and brought into
our axes; block by block, no axis is moved and nothing is held.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions.streamed import blocks
from weightsteer_jax.models import Dense, ModelConfig, stored
from weightsteer_jax.models.families import Family, TensorRow
from weightsteer_jax.runtime.errors import NotFiniteError
from weightsteer_jax.storage import sealed
from weightsteer_jax.storage.safetensors import Raw


@dataclasses.dataclass(frozen=True)
class Part:
  """A layer (and expert) of a parameter, as a range of elements of a stored tensor.

  Attributes:
    row: how the parameter is stored.
    at: index into the parameter's stack: (), (layer,) or (layer, expert).
    name: the tensor, which may hold other parameters too.
    start, stop: the range of elements.
  """

  row: TensorRow
  at: tuple[int, ...]
  name: str
  start: int
  stop: int

  @property
  def path(self) -> str:
    """The parameter's path."""
    return self.row.path


@dataclasses.dataclass(frozen=True)
class Values:
  """One stored tensor of changes: `plus - minus`, or plus alone.

  Attributes:
    fingerprint: of the change, '' where none is known.
  """

  plus: Raw
  minus: Raw | None = None
  fingerprint: str = ''

  def read(self, start: int, stop: int) -> np.ndarray:
    """The elements as a float32 block (see blocks.read), valid until this thread's next read."""
    plus = blocks.read(self.plus, start, stop, 'plus')
    if self.minus is None:
      return blocks.wide(plus)
    # Under another key: the two sides must be in memory at once.
    minus = blocks.read(self.minus, start, stop, 'minus')
    return blocks.difference(plus, minus)

  def whole(self) -> np.ndarray:
    """All elements, flat, float32.

    Raises:
      CorruptError: if the change does not match its fingerprint.
      NotFiniteError: if a value is NaN or infinite.
    """
    out = np.empty(self.plus.size, np.float32)
    total = 0
    for start, stop in blocks.ranges(0, out.size):
      block = self.read(start, stop)
      if self.fingerprint:
        total += blocks.words_from(block, start)
      elements = block.reshape(-1)
      out[start:stop] = elements[: stop - start]
    # Damage first: a flipped bit may look like an infinite value.
    self.check(total)
    if not np.isfinite(out).all():
      raise self.not_finite()
    return out

  def check(self, total: int) -> None:
    """Raises CorruptError if the words of all blocks do not add up to the fingerprint.

    Args:
      total: the sum of `blocks.words` over the tensor.
    """
    if not self.fingerprint:
      return
    # Only a saved direction has fingerprints, and saving writes float32.
    if blocks.fingerprint(total, self.plus.shape, 'float32') != self.fingerprint:
      where = f'the direction {self.plus.path.parent}'
      raise sealed.mismatch(where, [self.plus.name], remedy='copy or make it again')

  def finite(self) -> bool:
    """Whether no element is NaN or infinite."""
    for start, stop in blocks.ranges(0, self.plus.size):
      block = self.read(start, stop)
      if not np.isfinite(block).all():
        return False
    return True

  def not_finite(self) -> NotFiniteError:
    """The error that names the file with a NaN or infinite value."""
    sides = [self.plus] if self.minus is None else [self.plus, self.minus]
    # Read again, side by side: the difference alone does not show which file is at fault.
    for raw in sides:
      if not Values(raw).finite():
        return NotFiniteError(f"{raw.path.parent}: '{raw.name}' holds NaN or infinite values")
    # Each side is finite, so their difference overflowed.
    folders = ' and of '.join(str(raw.path.parent) for raw in sides)
    name = self.plus.name
    return NotFiniteError(f"'{name}' of {folders} are further apart than float32 can say")


class OnDisk:
  """A dense change of a parameter, as an array that is read when used.

  Attributes:
    config: of the base model.
    row: how the parameter is stored.
    values: {index into the parameter's stack: tensor}; layers without a tensor do not change.
    shape, ndim, size, dtype: of the parameter, as of an array.
  """

  dtype = np.dtype(np.float32)

  def __init__(self, config: ModelConfig, row: TensorRow, values: Mapping[tuple[int, ...], Values]):
    self.config = config
    self.row = row
    self.values = dict(values)
    self.shape = models.sites(config)[row.path].shape
    self.ndim = len(self.shape)
    self.size = math.prod(self.shape)

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    out = np.zeros(self.shape, np.float32)
    # A fused tensor holds several parameters: only this one's rows are taken.
    rows = stored.stored_rows(self.row, self.config)
    shape = stored.stored_shape(self.row, self.config)
    for at, values in self.values.items():
      tensor = values.whole().reshape(shape)
      parameter = tensor[rows]
      out[at] = stored.to_ours(parameter, self.row.pattern, self.config)
    # NumPy's protocol: without a dtype, the array's own.
    return out if dtype is None else out.astype(dtype, copy=False)

  # jnp.asarray and other functions of jax call this method.
  def __jax_array__(self) -> jax.Array:
    return jnp.asarray(np.asarray(self))


def parts_of(config: ModelConfig, family: Family) -> dict[str, list[Part]]:
  """{tensor: the parts that it holds, in the order of its elements} of a whole checkpoint."""
  parts: dict[str, list[Part]] = {}
  for row in stored.tensor_rows(config, family).values():
    rows = stored.stored_rows(row, config)
    _, *row_shape = stored.stored_shape(row, config)
    # Rows are the first axis on disk, so the rows of a parameter are one range of elements.
    width = math.prod(row_shape)
    start = rows.start * width
    stop = rows.stop * width
    for at, name in stored.stored_names(row, config).items():
      part = Part(row, at, name, start, stop)
      parts.setdefault(name, []).append(part)
  # Parameters come by path, and files are written from front to back.
  for parts_of_tensor in parts.values():
    parts_of_tensor.sort(key=lambda part: part.start)
  return parts


def leaves(
  config: ModelConfig, family: Family, values: Mapping[str, Values], paths: Collection[str]
) -> dict[str, Dense]:
  """{path: change on disk} of the given paths, where a tensor holds a change.

  Args:
    values: {tensor: change}.
  """
  of_path: dict[str, dict[tuple[int, ...], Values]] = {}
  for name, parts in parts_of(config, family).items():
    # A layer may be unchanged.
    if name not in values:
      continue
    for part in parts:
      # A fused tensor may hold parameters that are not wanted.
      if part.path in paths:
        layers = of_path.setdefault(part.path, {})
        layers[part.at] = values[name]
  changes = {}
  for path, row in stored.tensor_rows(config, family).items():
    if path in of_path:
      array = OnDisk(config, row, of_path[path])
      # jax and NumPy take an OnDisk for an array wherever a leaf is used.
      changes[path] = Dense(array)  # type: ignore[arg-type]
  return changes


def tensors_of(flat: Mapping[str, Any]) -> dict[str, Values]:
  """{tensor: change} of the leaves that are on disk, in the order of the files."""
  tensors: dict[str, Values] = {}
  for leaf in flat.values():
    if not is_on_disk(leaf):
      continue
    # The parameters of a fused tensor bring the same tensor, which is kept once.
    for values in leaf.value.values.values():
      tensors[values.plus.name] = values

  def place(values: Values) -> tuple[str, int]:
    return str(values.plus.path), values.plus.offset

  # From front to back through each file, as disks read fastest.
  in_order = sorted(tensors.values(), key=place)
  return {values.plus.name: values for values in in_order}


def is_on_disk(leaf: Any) -> bool:
  """Whether a delta's leaf is a dense change on disk."""
  return isinstance(leaf, Dense) and isinstance(leaf.value, OnDisk)
