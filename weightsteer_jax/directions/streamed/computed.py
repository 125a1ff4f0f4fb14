"""Changes that are computed when they are read, tensor by tensor, in the axes of a checkpoint.

A computed tensor stands where a tensor of a file does (see on_disk.Values), so that a change as
large as the model is saved or exported with few tensors of it in memory at a time.
"""

import dataclasses
import functools
import math
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import algebra
from weightsteer_jax.directions.streamed import on_disk
from weightsteer_jax.directions.streamed.on_disk import Part, Values
from weightsteer_jax.models import Dense, LowRank, ModelConfig, stored
from weightsteer_jax.models.families import Family
from weightsteer_jax.runtime import tree
from weightsteer_jax.storage.safetensors import Raw

PyTree = Any
# Blocks are read by several threads, in the order of tensors: at the end of one tensor, the next
# has been begun.
KEPT = 2


class Recent:
  """The tensors that were computed last, shared by the tensors of one delta."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._values: dict[str, np.ndarray] = {}

  def get(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The tensor of a name, flat float32, computed if it is not among the last."""
    # Held while computing, so that threads which read blocks of one tensor compute it once.
    with self._lock:
      if name not in self._values:
        while len(self._values) >= KEPT:
          oldest = next(iter(self._values))
          del self._values[oldest]
        values = np.asarray(compute(), np.float32)
        self._values[name] = np.ascontiguousarray(values).reshape(-1)
      return self._values[name]


@dataclasses.dataclass(frozen=True)
class Computed(Raw):
  """A tensor that is computed when it is read, float32; `path` and `offset` say where it stands.

  Attributes:
    compute: computes the tensor.
    recent: the tensors computed last.
  """

  compute: Callable[[], np.ndarray]
  recent: Recent

  def read(self, start: int, out: np.ndarray) -> None:
    """Fills an array with the elements from number `start` on."""
    flat = self.recent.get(self.name, self.compute)
    out[:] = flat[start : start + len(out)]


def leaves(
  config: ModelConfig,
  family: Family,
  computes: Mapping[str, Callable[[], np.ndarray]],
  path: pathlib.Path = pathlib.Path(),
) -> dict[str, Dense]:
  """{path: change} of the parameters that lie in computed tensors.

  Args:
    computes: {tensor of a checkpoint: computes its change in the tensor's shape}.
    path: the file that the changes come from, if it is one, for errors.
  """
  recent = Recent()
  parts_of = on_disk.parts_of(config, family)
  values = {}
  paths = set()
  for place, (name, parts) in enumerate(parts_of.items()):
    if name not in computes:
      continue
    shape = stored.stored_shape(parts[0].row, config)
    values[name] = Values(Computed(path, name, 'F32', shape, place, computes[name], recent))
    paths |= {part.path for part in parts}
  return on_disk.leaves(config, family, values, paths)


def is_computed(delta: PyTree) -> bool:
  """Whether some change of a delta is not in memory."""
  changes = tree.flatten(delta, models.is_delta_leaf)
  return any(map(on_disk.is_on_disk, changes.values()))


def in_memory(delta: PyTree) -> PyTree:
  """The delta with every change read or computed."""
  changes = tree.flatten(delta, models.is_delta_leaf)
  for path, leaf in changes.items():
    if on_disk.is_on_disk(leaf):
      # As an array, all layers are read.
      changes[path] = Dense(jnp.asarray(np.asarray(leaf.value)))
  return tree.unflatten(changes)


def subtract(x: PyTree, y: PyTree, config: ModelConfig, family: Family) -> PyTree:
  """x - y of two deltas of one model, computed where either is.

  Sites that are in memory in both are left to `algebra.subtract`.
  """
  flat_x = tree.flatten(x, models.is_delta_leaf)
  flat_y = tree.flatten(y, models.is_delta_leaf)
  streamed = set()
  for path, leaf in (*flat_x.items(), *flat_y.items()):
    if on_disk.is_on_disk(leaf):
      streamed.add(path)
  computes = {}
  paths = set()
  for name, parts in on_disk.parts_of(config, family).items():
    # The parameters of a fused tensor stay together.
    if any(part.path in streamed for part in parts):
      computes[name] = functools.partial(_difference, parts, config, flat_x, flat_y)
      paths |= {part.path for part in parts}
  made: dict[str, LowRank | Dense] = dict(leaves(config, family, computes))
  rest_x = tree.unflatten({path: leaf for path, leaf in flat_x.items() if path not in paths})
  rest_y = tree.unflatten({path: leaf for path, leaf in flat_y.items() if path not in paths})
  rest = algebra.add_deltas(rest_x, algebra.scale_delta(rest_y, -1.0))
  return tree.unflatten(made | tree.flatten(rest, models.is_delta_leaf))


def _difference(
  parts: list[Part],
  config: ModelConfig,
  plus: Mapping[str, LowRank | Dense],
  minus: Mapping[str, LowRank | Dense],
) -> np.ndarray:
  """A tensor of the checkpoint: plus - minus of all parameters that lie in it, flat."""
  return tensor_of(parts, config, plus) - tensor_of(parts, config, minus)


def tensor_of(
  parts: Sequence[Part], config: ModelConfig, changes: Mapping[str, LowRank | Dense]
) -> np.ndarray:
  """The change of a tensor of a checkpoint, flat float32; 0 where nothing changes.

  Args:
    parts: the parameters that lie in the tensor.
    changes: {path: change}.
  """
  shape = stored.stored_shape(parts[0].row, config)
  out = np.zeros(math.prod(shape), np.float32)
  for part in parts:
    if part.path in changes:
      out[part.start : part.stop] += _values(changes[part.path], part, config)
  return out


def _values(leaf: LowRank | Dense, part: Part, config: ModelConfig) -> np.ndarray:
  """The elements of a change in a part of a tensor of the checkpoint."""
  if isinstance(leaf, Dense) and isinstance(leaf.value, on_disk.OnDisk):
    values = leaf.value.values.get(part.at)
    # Layers without a tensor do not change.
    return np.zeros(1, np.float32) if values is None else values.whole()[part.start : part.stop]
  if isinstance(leaf, Dense):
    change = np.asarray(leaf.value, np.float32)[part.at]
  else:
    a = np.asarray(leaf.a, np.float32)[part.at]
    b = np.float32(leaf.scale) * np.asarray(leaf.b, np.float32)[part.at]
    rank = a.shape[-1]
    product = a.reshape(-1, rank) @ b.reshape(rank, -1)
    change = product.reshape(*a.shape[:-1], *b.shape[1:])
  return stored.to_theirs(change, part.row.pattern, config).reshape(-1)
