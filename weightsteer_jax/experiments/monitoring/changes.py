"""A change of a model's weights that is read piece by piece: held as a delta, or streamed from what
lies on disk.

A piece is a leaf of a delta with the layers from some first one on; of a full checkpoint it is one
layer of one parameter, so that of two models never more than a layer each is in memory.
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
  """What is measured: where it changes the model, and how."""

  def paths(self) -> list[str]:
    """Sites that it may change."""

  def pieces(self, path: str) -> Iterator[tuple[int, Leaf]]:
    """(first layer, leaf of the layers from there), together the change at a site; outside the
    stack, (0, leaf).
    """

  def piece(self, path: str, first: int, count: int) -> Leaf:
    """The leaf of those layers."""


@dataclasses.dataclass(frozen=True)
class Held:
  """A delta in memory."""

  delta: PyTree

  def paths(self) -> list[str]:
    return list(tree.flatten(self.delta, models.is_delta_leaf))

  def pieces(self, path: str) -> Iterator[tuple[int, Leaf]]:
    yield 0, tree.flatten(self.delta, models.is_delta_leaf)[path]

  def piece(self, path: str, first: int, count: int) -> Leaf:
    return layers_of(path, tree.flatten(self.delta, models.is_delta_leaf)[path], first, count)


@dataclasses.dataclass(frozen=True)
class Stored:
  """The delta of a training state on disk (see checkpoint.py), read and verified one leaf at a
  time.

  Attributes:
    folder: the checkpoint's. shapes: the delta with shapes in place of its arrays.
  """

  folder: pathlib.Path
  shapes: PyTree

  def paths(self) -> list[str]:
    return list(tree.flatten(self.shapes, models.is_delta_leaf))

  def pieces(self, path: str) -> Iterator[tuple[int, Leaf]]:
    leaf = tree.unflatten({f'delta/{path}': tree.flatten(self.shapes, models.is_delta_leaf)[path]})
    restored = checkpoint.restore(self.folder, leaf, part=True)
    yield 0, tree.flatten(restored, models.is_delta_leaf)[f'delta/{path}']

  def piece(self, path: str, first: int, count: int) -> Leaf:
    return layers_of(path, next(self.pieces(path))[1], first, count)


@dataclasses.dataclass(frozen=True)
class Streamed:
  """An open checkpoint minus the open base it was trained from, float32.

  Attributes:
    checkpoint, base: of one architecture.
    allow_any: see `Raises`.

  Raises:
    InputError: reading it, a parameter of the checkpoint lies as far from the base's as one that
      has nothing to do with it would (and not `allow_any`). NotFiniteError: a value that is NaN or
      infinite.
  """

  checkpoint: Checkpoint
  base: Checkpoint
  allow_any: bool = False

  def paths(self) -> list[str]:
    return list(self.checkpoint.rows)

  def pieces(self, path: str) -> Iterator[tuple[int, Leaf]]:
    for l in range(self.checkpoint.num_layers(path)):
      yield l, self.piece(path, l, 1)

  def piece(self, path: str, first: int, count: int) -> Leaf:
    value = np.stack([self._layer(path, l) for l in range(first, first + count)])
    return Dense(jnp.asarray(value if self.checkpoint.is_stacked(path) else value[0]))

  def _layer(self, path: str, l: int) -> np.ndarray:
    base = self.base.layer(path, l)
    change = self.checkpoint.layer(path, l) - base
    # Two independent matrices of one size are sqrt 2 apart; norms and biases say nothing, they are
    # alike in all models.
    if base.ndim > 1 and not self.allow_any and np.linalg.norm(change) > np.linalg.norm(base):
      raise InputError(
        f"{self.checkpoint.folder}: '{path}' (layer {l}) is further from that of "
        f"'{self.base.source}' than that is from zero: this is no fine-tune of it; name the base "
        'it was trained from, or go on with --allow_other_base'
      )
    return change


def layers_of(path: str, leaf: Leaf, first: int, count: int) -> Leaf:
  """The leaf with `count` of its layers; as it is outside the stack."""
  if not models.stack_axes(path) or (first, count) == (0, num_layers(path, leaf)):
    return leaf
  return jax.tree.map(lambda x: x[first : first + count], leaf)


def num_layers(path: str, leaf: Leaf) -> int:
  """Layers of a leaf; 1 outside the stack."""
  return jax.tree.leaves(leaf)[0].shape[0] if models.stack_axes(path) else 1


def stored(folder: pathlib.Path, config: models.ModelConfig, options: Mapping[str, Any]) -> Stored:
  """The delta in a training state of ours, whose options.json has these `options`."""

  def shapes():
    return models.init_delta(
      config,
      options['kind'],
      jax.random.key(0),
      rank=options['rank'],
      lora_alpha=options['lora_alpha'],
    )

  return Stored(folder, jax.eval_shape(shapes))
