"""Dense changes that stay on the disk, in the names and the axes of a Hugging Face checkpoint,
until they are used.

Such a change is a tensor of a saved direction, or the difference of two checkpoints' tensors that
nobody has written down. As an array (`np.asarray`) it is read whole, checked and brought into our
axes; block by block, no axis is moved and nothing is held.
"""

import dataclasses
from collections.abc import Mapping
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
  """A layer (and expert) of a parameter as a range of elements of the tensor that holds it, beside
  others or alone.
  """

  row: TensorRow
  at: tuple[int, ...]
  name: str
  start: int
  stop: int

  @property
  def path(self) -> str:
    """The parameter's."""
    return self.row.path


@dataclasses.dataclass(frozen=True)
class Values:
  """One tensor of changes: `plus - minus`, or plus alone, of a known fingerprint if there is
  one.
  """

  plus: Raw
  minus: Raw | None = None
  fingerprint: str = ''

  def read(self, start: int, stop: int) -> np.ndarray:
    """The elements as a block (see blocks.read), float32, valid until this thread reads the
    next.
    """
    plus = blocks.read(self.plus, start, stop, 'plus')
    plus = blocks.wide(plus) if self.minus is None else plus
    return (
      plus
      if self.minus is None
      else blocks.difference(plus, blocks.read(self.minus, start, stop, 'minus'))
    )

  def whole(self) -> np.ndarray:
    """All of it, flat, float32.

    Raises:
      CorruptError: it does not match its fingerprint. NotFiniteError: a value is NaN or infinite.
    """
    out, total = np.empty(self.plus.size, np.float32), 0
    for start, stop in blocks.ranges(0, out.size):
      block = self.read(start, stop)
      total += blocks.words_from(block, start) if self.fingerprint else 0
      out[start:stop] = block.reshape(-1)[: stop - start]
    self.check(total)
    if not np.isfinite(out).all():
      raise self.not_finite()
    return out

  def check(self, total: int) -> None:
    """Nothing, if the words of all blocks add up to the fingerprint.

    Raises:
      CorruptError: they do not.
    """
    if (
      self.fingerprint and blocks.fingerprint(total, self.plus.shape, 'float32') != self.fingerprint
    ):
      where = f'the direction {self.plus.path.parent}'
      raise sealed.mismatch(where, [self.plus.name], remedy='copy or make it again')

  def finite(self) -> bool:
    """Whether all of it is."""
    return all(np.isfinite(self.read(*part)).all() for part in blocks.ranges(0, self.plus.size))

  def not_finite(self) -> NotFiniteError:
    """The error that names the file with a value that is NaN or infinite."""
    for raw in (self.plus, self.minus):
      if raw is not None and not Values(raw).finite():
        return NotFiniteError(f"{raw.path.parent}: '{raw.name}' holds NaN or infinite values")
    return NotFiniteError(
      f"'{self.plus.name}' of {self.plus.path.parent} and of {self.minus.path.parent} are further "
      'apart than float32 can say'
    )


class OnDisk:
  """A dense change of a parameter, as an array that is read when it is asked for.

  Attributes:
    row: how the parameter is stored. values: {index into its stack: tensor}; what is not there does
      not change.
  """

  dtype = np.dtype(np.float32)

  def __init__(self, config: ModelConfig, row: TensorRow, values: Mapping[tuple[int, ...], Values]):
    self.config, self.row, self.values = config, row, dict(values)
    self.shape = models.sites(config)[row.path].shape
    self.ndim, self.size = len(self.shape), int(np.prod(self.shape))

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    out = np.zeros(self.shape, np.float32)
    rows, shape = (
      stored.stored_rows(self.row, self.config),
      stored.stored_shape(self.row, self.config),
    )
    for at, values in self.values.items():
      out[at] = stored.to_ours(values.whole().reshape(shape)[rows], self.row.pattern, self.config)
    return out if dtype is None else out.astype(dtype, copy=False)

  def __jax_array__(self) -> jax.Array:
    return jnp.asarray(np.asarray(self))


def parts_of(config: ModelConfig, family: Family) -> dict[str, list[Part]]:
  """{tensor: what it holds, in the order it does}, of every tensor of a checkpoint."""
  found: dict[str, list[Part]] = {}
  for row in stored.tensor_rows(config, family).values():
    rows, shape = stored.stored_rows(row, config), stored.stored_shape(row, config)
    width = int(np.prod(shape[1:]))
    for at, name in stored.stored_names(row, config).items():
      found.setdefault(name, []).append(Part(row, at, name, rows.start * width, rows.stop * width))
  return {name: sorted(parts, key=lambda part: part.start) for name, parts in found.items()}


def leaves(
  config: ModelConfig, family: Family, values: Mapping[str, Values], paths: Any
) -> dict[str, Dense]:
  """{path: its change} of the paths, from the tensors that hold one."""
  found: dict[str, dict[tuple[int, ...], Values]] = {}
  for name, parts in parts_of(config, family).items():
    for part in parts:
      if name in values and part.path in paths:
        found.setdefault(part.path, {})[part.at] = values[name]
  rows = stored.tensor_rows(config, family)
  return {path: Dense(OnDisk(config, rows[path], found[path])) for path in rows if path in found}


def tensors_of(flat: Mapping[str, Any]) -> dict[str, Values]:
  """{tensor: its change} of the leaves that are on the disk, in the order of the files."""
  there = [leaf.value for leaf in flat.values() if is_on_disk(leaf)]
  found = {values.plus.name: values for change in there for values in change.values.values()}
  return dict(sorted(found.items(), key=lambda item: (str(item[1].plus.path), item[1].plus.offset)))


def is_on_disk(leaf: Any) -> bool:
  """Whether a delta's leaf is one of these."""
  return isinstance(leaf, Dense) and isinstance(leaf.value, OnDisk)
