"""A change of a model's weights, read piece by piece from memory or from disk.

A piece is a leaf of a delta with the layers from some first layer on. A piece of a full checkpoint
is one layer of one parameter, so that never more than a layer of each of two models is in memory.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import checkpoint

PyTree = Any
Leaf = LowRank | Dense


class Change(Protocol):
  """A change to measure: the sites, and the leaf at each site."""

  def paths(self) -> list[str]:
    """Sites of the change."""

  def pieces(self, path: str) -> Iterator[tuple[int, Leaf]]:
    """(first layer, leaf of the layers from there), together the change at a site.

    Outside the stack the only piece is (0, leaf).
    """

  def piece(self, path: str, first: int, count: int) -> Leaf:
    """The leaf of `count` layers from `first` on."""


@dataclasses.dataclass(frozen=True)
class Held:
  """A delta in memory."""

  delta: PyTree

  def paths(self) -> list[str]:
    """See `Change`."""
    leaves = tree.flatten(self.delta, models.is_delta_leaf)
    return list(leaves)

  def pieces(self, path: str) -> Iterator[tuple[int, Leaf]]:
    """See `Change`."""
    leaves = tree.flatten(self.delta, models.is_delta_leaf)
    yield 0, leaves[path]

  def piece(self, path: str, first: int, count: int) -> Leaf:
    """See `Change`."""
    leaves = tree.flatten(self.delta, models.is_delta_leaf)
    return layers_of(path, leaves[path], first, count)


@dataclasses.dataclass(frozen=True)
class Stored:
  """The delta of a training state on disk, read and verified one leaf at a time.

  Attributes:
    folder: the folder of the checkpoint (see checkpoint.py).
    shapes: the delta with shapes in place of the arrays.
  """

  folder: pathlib.Path
  shapes: PyTree

  def paths(self) -> list[str]:
    """See `Change`."""
    leaves = tree.flatten(self.shapes, models.is_delta_leaf)
    return list(leaves)

  def pieces(self, path: str) -> Iterator[tuple[int, Leaf]]:
    """See `Change`."""
    shapes = tree.flatten(self.shapes, models.is_delta_leaf)
    # A training state holds the delta beside the optimizer; only the leaf at hand is read.
    place = f'delta/{path}'
    wanted = tree.unflatten({place: shapes[path]})
    restored = checkpoint.restore(self.folder, wanted, part=True)
    leaves = tree.flatten(restored, models.is_delta_leaf)
    yield 0, leaves[place]

  def piece(self, path: str, first: int, count: int) -> Leaf:
    """See `Change`."""
    _, leaf = next(self.pieces(path))
    return layers_of(path, leaf, first, count)


@dataclasses.dataclass(frozen=True)
class Streamed:
  """An open checkpoint minus the open base of the training, float32.

  Attributes:
    checkpoint, base: open checkpoints of one architecture.
    allow_any: whether to read a checkpoint far from the base.

  Raises:
    InputError: if, when read, a parameter lies as far from the base as an unrelated one would, and
      `allow_any` is off.
    NotFiniteError: if, when read, a value is NaN or infinite.
  """

  checkpoint: Checkpoint
  base: Checkpoint
  allow_any: bool = False

  def paths(self) -> list[str]:
    """See `Change`."""
    return list(self.checkpoint.rows)

  def pieces(self, path: str) -> Iterator[tuple[int, Leaf]]:
    """See `Change`."""
    # Layer by layer, so that never more than a layer of each model is in memory.
    for layer in range(self.checkpoint.num_layers(path)):
      yield layer, self.piece(path, layer, 1)

  def piece(self, path: str, first: int, count: int) -> Leaf:
    """See `Change`."""
    layers = [self._layer(path, layer) for layer in range(first, first + count)]
    if not self.checkpoint.is_stacked(path):
      # Outside the stack the only layer is the parameter.
      return Dense(jnp.asarray(layers[0]))
    return Dense(jnp.asarray(np.stack(layers)))

  def _layer(self, path: str, layer: int) -> np.ndarray:
    base = self.base.layer(path, layer)
    change = self.checkpoint.layer(path, layer) - base
    # Norms and biases say nothing, since they are alike in all models.
    if base.ndim < 2 or self.allow_any:
      return change
    # Two independent matrices of norm 1 are sqrt 2 apart; a fine-tune's are much closer.
    if np.linalg.norm(change) > np.linalg.norm(base):
      raise InputError(
        f"{self.checkpoint.folder}: '{path}' (layer {layer}) is further from that of "
        f"'{self.base.source}' than that is from zero: this is no fine-tune of it; name the base "
        'it was trained from, or go on with --allow_other_base'
      )
    return change


def layers_of(path: str, leaf: Leaf, first: int, count: int) -> Leaf:
  """The leaf with `count` layers from `first` on; outside the stack the leaf itself."""
  if not models.stack_axes(path):
    return leaf
  # All layers are the usual case, which needs no copy.
  if first == 0 and count == num_layers(path, leaf):
    return leaf
  return jax.tree.map(lambda x: x[first : first + count], leaf)


def num_layers(path: str, leaf: Leaf) -> int:
  """Number of layers of a leaf; 1 outside the stack."""
  if not models.stack_axes(path):
    return 1
  # The arrays of a leaf, both factors of a low-rank leaf, are stacked alike.
  array = jax.tree.leaves(leaf)[0]
  return array.shape[0]


def stored(folder: pathlib.Path, config: models.ModelConfig, options: Mapping[str, Any]) -> Stored:
  """The delta in a training state of ours.

  Args:
    options: the entry `options` of the fine-tune's options.json.
  """

  def init() -> PyTree:
    return models.init_delta(
      config,
      options['kind'],
      # Any key: only the shapes are used.
      jax.random.key(0),
      rank=options['rank'],
      lora_alpha=options['lora_alpha'],
      # Absent where a fine-tune named none.
      targets=options.get('targets', ()),
    )

  # Shapes alone: nothing is allocated or drawn.
  return Stored(folder, jax.eval_shape(init))
