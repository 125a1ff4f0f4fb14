"""Sums, multiples, lengths and angles of directions, exact: low-rank changes stay factors.

A sum of low-rank changes is the concatenation of their factors:

  A1 B1 + A2 B2 = [A1 | A2] [B1 ; B2]

Adding or subtracting factor by factor is wrong: `(A1 - A2) (B1 - B2)` has cross terms,
ignores each adapter's scale, and is the same for w and -w.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions import gram
from weightsteer_jax.directions.direction import Direction
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.runtime import tree

PyTree = Any


def add(x: Direction, y: Direction, *, allow_other_base: bool = False) -> Direction:
  """The direction x + y.

  Where both are low-rank, the ranks add up; where either is dense, the sum is dense.

  Raises:
    InputError: if the architectures differ, or the bases do and `allow_other_base` is false.
  """
  base = _common_base(x, y, allow_other_base=allow_other_base)
  delta = add_deltas(x.delta, y.delta)
  # Each source keeps its whole record, so that the history of a sum of sums can be read.
  meta = {
    'kind': 'sum',
    'base': base.to_json(),
    'sources': [dict(x.meta), dict(y.meta)],
  }
  return Direction(delta, meta)


def subtract(x: Direction, y: Direction, *, allow_other_base: bool = False) -> Direction:
  """The direction x - y, with the ranks and errors of `add`."""
  base = _common_base(x, y, allow_other_base=allow_other_base)
  # x - y = [A_x | A_y] [B_x ; -B_y]: a change of sign is exact in float32.
  minus_y = scale_delta(y.delta, -1.0)
  delta = add_deltas(x.delta, minus_y)
  meta = {
    'kind': 'difference',
    'base': base.to_json(),
    'sources': [dict(x.meta), dict(y.meta)],
  }
  return Direction(delta, meta)


def scale(x: Direction, factor: float) -> Direction:
  """The direction factor * x; of a low-rank change, B takes the multiple."""
  delta = scale_delta(x.delta, factor)
  meta = {
    'kind': 'multiple',
    'factor': factor,
    'base': x.meta['base'],
    'sources': [dict(x.meta)],
  }
  return Direction(delta, meta)


def negate(x: Direction) -> Direction:
  """The direction -x."""
  return scale(x, -1.0)


def project(x: Direction, y: Direction) -> Direction:
  """The multiple of y that is nearest to x: `<x, y> / <y, y> y`, zero where y is zero."""
  squared_length = dot(y, y)
  # Not only zero: rounding can take the product of factors that cancel out below zero.
  if squared_length <= 0:
    return scale(y, 0.0)
  multiple = dot(x, y) / squared_length
  return scale(y, multiple)


def dot(x: Direction, y: Direction) -> float:
  """The inner product over all sites, each site taken as a flat vector."""
  products = dot_per_site(x, y)
  # Sites may nearly cancel, so their sum is exact.
  return math.fsum(products.values())


def dot_per_site(x: Direction, y: Direction) -> dict[str, float]:
  """{path: inner product} for the sites that both change.

  Raises:
    InputError: if the architectures differ.
  """
  bases.same_architecture(x.base.config, y.base.config, what='the two directions')
  return gram.inner_products(x.delta, y.delta)


def norm(x: Direction) -> float:
  """The Frobenius norm of the whole change."""
  # Sites share no element, so their squared norms add up.
  squares = gram.squared_norms(x.delta)
  return math.sqrt(math.fsum(squares.values()))


def norm_per_site(x: Direction) -> dict[str, float]:
  """{path: Frobenius norm of the change at the site}."""
  squares = gram.squared_norms(x.delta)
  return {path: math.sqrt(square) for path, square in squares.items()}


def cosine(x: Direction, y: Direction) -> float:
  """The cosine between the two over the whole parameter vector; 0 if either is zero.

  Source: the global cosine of arXiv 2511.05408, section 5.
  """
  return _cosine(dot(x, y), norm(x), norm(y))


def cosine_per_site(x: Direction, y: Direction) -> dict[str, float]:
  """{path: cosine at the site}, for the sites that both change."""
  norms_x = norm_per_site(x)
  norms_y = norm_per_site(y)
  cosines = {}
  for path, product in dot_per_site(x, y).items():
    cosines[path] = _cosine(product, norms_x[path], norms_y[path])
  return cosines


def to_dense(x: Direction) -> Direction:
  """The same change with every site dense: as large as the model, for tests and small models."""
  leaves = tree.flatten(x.delta, models.is_delta_leaf)
  for path, leaf in leaves.items():
    change = dense_change(path, leaf)
    leaves[path] = Dense(jnp.asarray(change))
  return Direction(tree.unflatten(leaves), x.meta)


def add_deltas(x: PyTree, y: PyTree) -> PyTree:
  """The sum of two deltas, site by site (see `add`)."""
  leaves = tree.flatten(x, models.is_delta_leaf)
  leaves_y = tree.flatten(y, models.is_delta_leaf)
  for path, leaf in leaves_y.items():
    # A site that one delta does not change is changed by zero there, so the other's leaf stands.
    if path in leaves:
      leaves[path] = _add_leaves(path, leaves[path], leaf)
    else:
      leaves[path] = leaf
  return tree.unflatten(leaves)


def scale_delta(x: PyTree, factor: float) -> PyTree:
  """The delta factor * x, float32, with each leaf's scale folded into B."""
  # NumPy multiplies float32 by a float64 scalar in float64; deltas are float32.
  multiple = np.float32(factor)
  leaves: dict[str, LowRank | Dense] = {}
  for path, leaf in tree.flatten(x, models.is_delta_leaf).items():
    if isinstance(leaf, Dense):
      change = multiple * np.asarray(leaf.value, np.float32)
      leaves[path] = Dense(jnp.asarray(change))
    else:
      # factor * (A B) = A (factor * B), so one of the two factors takes the multiple.
      a, b = _factors(leaf)
      b = multiple * b
      leaves[path] = LowRank(jnp.asarray(a), jnp.asarray(b))
  return tree.unflatten(leaves)


def dense_change(path: str, leaf: LowRank | Dense) -> np.ndarray:
  """The leaf's change as an array of the parameter's shape, float32."""
  layers = list(gram.layer_changes(path, leaf))
  changes = np.stack(layers)
  # Inputs and outputs are one axis each in a layer's change, and several in some parameters.
  shape = gram.change_shape(path, leaf)
  return changes.reshape(shape)


def _add_leaves(path: str, x: LowRank | Dense, y: LowRank | Dense) -> LowRank | Dense:
  # A dense change may be of full rank, so factors are multiplied out before the sum.
  if isinstance(x, Dense) or isinstance(y, Dense):
    change_x = dense_change(path, x)
    change_y = dense_change(path, y)
    return Dense(jnp.asarray(change_x + change_y))
  a_x, b_x = _factors(x)
  a_y, b_y = _factors(y)
  # R is the last axis of A, and the first axis of B behind layers and experts.
  rank_axis = gram.stack_axes(path)
  a = np.concatenate([a_x, a_y], axis=-1)
  b = np.concatenate([b_x, b_y], axis=rank_axis)
  return LowRank(jnp.asarray(a), jnp.asarray(b))


def _factors(leaf: LowRank) -> tuple[np.ndarray, np.ndarray]:
  """Both factors in their own shapes, float32, the scale folded into B."""
  # On the host: in jax, each shape of an adapter would be a program to compile.
  a = np.asarray(leaf.a, np.float32)
  b = np.asarray(leaf.b, np.float32)
  # Factors of several scales can only stand side by side once each scale is in its B.
  return a, np.float32(leaf.scale) * b


def _common_base(x: Direction, y: Direction, *, allow_other_base: bool) -> bases.Base:
  bases.same_base(x.base, y.base, what='the two directions', allow_other_base=allow_other_base)
  # A difference of two checkpoints has no digest; the other direction may know the base.
  return x.base if x.base.digest else y.base


def _cosine(product: float, norm_x: float, norm_y: float) -> float:
  # Zero has no direction, and 0 / 0 would be an error.
  if norm_x <= 0 or norm_y <= 0:
    return 0.0
  return product / (norm_x * norm_y)
