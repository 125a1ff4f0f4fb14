"""Sums, multiples, lengths and angles of directions, exact: low-rank changes stay factors.

A sum of low-rank changes is their concatenation, `A1 B1 + A2 B2 = [A1 | A2] [B1 ; B2]`. Adding or
subtracting factor by factor is another thing altogether: `(A1 - A2) (B1 - B2)` has cross terms,
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
  """x + y; at sites where both are low-rank the ranks add up, where one is dense the sum is dense.

  Raises:
    InputError: they are of different architectures or bases (the latter may be allowed by name).
  """
  base = _common_base(x, y, allow_other_base=allow_other_base)
  meta = {'kind': 'sum', 'base': base.to_json(), 'sources': [dict(x.meta), dict(y.meta)]}
  return Direction(add_deltas(x.delta, y.delta), meta)


def subtract(x: Direction, y: Direction, *, allow_other_base: bool = False) -> Direction:
  """x - y, as `add`."""
  base = _common_base(x, y, allow_other_base=allow_other_base)
  delta = add_deltas(x.delta, scale_delta(y.delta, -1.0))
  return Direction(
    delta, {'kind': 'difference', 'base': base.to_json(), 'sources': [dict(x.meta), dict(y.meta)]}
  )


def scale(x: Direction, factor: float) -> Direction:
  """factor * x; the second factor of each low-rank change takes the multiple."""
  meta = {'kind': 'multiple', 'factor': factor, 'base': x.meta['base'], 'sources': [dict(x.meta)]}
  return Direction(scale_delta(x.delta, factor), meta)


def negate(x: Direction) -> Direction:
  """-x."""
  return scale(x, -1.0)


def project(x: Direction, y: Direction) -> Direction:
  """The multiple of y that is nearest to x: `<x, y> / <y, y> y`, zero where y is."""
  length = dot(y, y)
  return scale(y, dot(x, y) / length if length > 0 else 0.0)


def dot(x: Direction, y: Direction) -> float:
  """The inner product over all sites, each taken as one flat vector."""
  return math.fsum(dot_per_site(x, y).values())


def dot_per_site(x: Direction, y: Direction) -> dict[str, float]:
  """{path: inner product} for the sites both change.

  Raises:
    InputError: they are of different architectures.
  """
  bases.same_architecture(x.base.config, y.base.config, what='the two directions')
  return gram.inner_products(x.delta, y.delta)


def norm(x: Direction) -> float:
  """The Frobenius norm of the whole change."""
  return math.sqrt(math.fsum(gram.squared_norms(x.delta).values()))


def norm_per_site(x: Direction) -> dict[str, float]:
  """{path: Frobenius norm of the change there}."""
  return {path: math.sqrt(value) for path, value in gram.squared_norms(x.delta).items()}


def cosine(x: Direction, y: Direction) -> float:
  """The cosine of the angle between the two over the whole parameter vector; 0 if either is zero.

  Source: the global cosine of arXiv 2511.05408, section 5.
  """
  return _cosine(dot(x, y), norm(x), norm(y))


def cosine_per_site(x: Direction, y: Direction) -> dict[str, float]:
  """{path: cosine there}, over the sites both change."""
  norms_x, norms_y = norm_per_site(x), norm_per_site(y)
  return {
    path: _cosine(value, norms_x[path], norms_y[path]) for path, value in dot_per_site(x, y).items()
  }


def to_dense(x: Direction) -> Direction:
  """The same change with every site dense: as large as the model, for tests and small models."""
  leaves = {
    path: Dense(jnp.asarray(dense_change(path, leaf)))
    for path, leaf in tree.flatten(x.delta, models.is_delta_leaf).items()
  }
  return Direction(tree.unflatten(leaves), x.meta)


def add_deltas(x: PyTree, y: PyTree) -> PyTree:
  """The sum of two deltas, site by site (see `add`)."""
  flat_x, flat_y = tree.flatten(x, models.is_delta_leaf), tree.flatten(y, models.is_delta_leaf)
  leaves = {
    path: _add_leaves(path, leaf, flat_y[path]) if path in flat_y else leaf
    for path, leaf in flat_x.items()
  }
  return tree.unflatten(
    leaves | {path: leaf for path, leaf in flat_y.items() if path not in flat_x}
  )


def scale_delta(x: PyTree, factor: float) -> PyTree:
  """factor * delta, scales folded into the second factors, float32."""
  return tree.unflatten(
    {
      path: _scale_leaf(leaf, factor)
      for path, leaf in tree.flatten(x, models.is_delta_leaf).items()
    }
  )


def dense_change(path: str, leaf: LowRank | Dense) -> np.ndarray:
  """The leaf's change as an array of the parameter's shape, float32."""
  return np.stack(list(gram.layer_changes(path, leaf))).reshape(gram.change_shape(path, leaf))


def _add_leaves(path: str, x: LowRank | Dense, y: LowRank | Dense) -> LowRank | Dense:
  if isinstance(x, Dense) or isinstance(y, Dense):
    return Dense(jnp.asarray(dense_change(path, x) + dense_change(path, y)))
  (a1, b1), (a2, b2) = _factors(x), _factors(y)
  a = np.concatenate([a1, a2], axis=-1)
  b = np.concatenate([b1, b2], axis=gram.stack_axes(path))
  return LowRank(jnp.asarray(a), jnp.asarray(b))


def _scale_leaf(leaf: LowRank | Dense, factor: float) -> LowRank | Dense:
  if isinstance(leaf, Dense):
    return Dense(jnp.asarray(np.float32(factor) * np.asarray(leaf.value, np.float32)))
  a, b = _factors(leaf)
  return LowRank(jnp.asarray(a), jnp.asarray(np.float32(factor) * b))


def _factors(leaf: LowRank) -> tuple[np.ndarray, np.ndarray]:
  """Both factors in their own shapes, the scale folded into the second; on the host, with nothing
  to compile.
  """
  return np.asarray(leaf.a, np.float32), np.float32(leaf.scale) * np.asarray(leaf.b, np.float32)


def _common_base(x: Direction, y: Direction, *, allow_other_base: bool) -> bases.Base:
  bases.same_base(x.base, y.base, what='the two directions', allow_other_base=allow_other_base)
  return x.base if x.base.digest else y.base


def _cosine(product: float, norm_x: float, norm_y: float) -> float:
  return product / (norm_x * norm_y) if norm_x > 0 and norm_y > 0 else 0.0
