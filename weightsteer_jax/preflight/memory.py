"""Bytes of a program's arrays on one device, by what they are."""
import dataclasses
import math
from typing import Any

import jax

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Bytes:
  """Of one device: what goes into a program by kind, and what the compiler needs beside it (`activations`)."""
  weights: int = 0
  deltas: int = 0
  optimizer: int = 0
  cache: int = 0
  batch: int = 0
  activations: int = 0

  @property
  def total(self) -> int:
    return sum(dataclasses.astuple(self))


def placed(shapes: PyTree, shardings: PyTree) -> PyTree:
  """The shapes, each with its sharding: what a program is compiled from."""
  return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings)


def on_device(shapes: PyTree) -> int:
  """Bytes that one device holds of arrays with these shapes and shardings."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
