"""Directions of lower rank: the same change in fewer factors, or the nearest change of a given
rank.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import gram
from weightsteer_jax.directions.direction import Direction
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

PyTree = Any

# Singular values below this share of the largest are rounding of the float32 factors, not part of
# the change.
ROUNDING = 1e-6
EMBEDDING = 'embed/embedding'


def recompress(direction: Direction) -> Direction:
  """The same change with each low-rank site at its numerical rank (the largest of its layers), its
  factors balanced.

  QR of both factors, then SVD of the small product of their triangles: the dense change is never
  formed.
  """
  flat = tree.flatten(direction.delta, models.is_delta_leaf)
  leaves = {
    path: _recompress_leaf(path, leaf) if isinstance(leaf, LowRank) else leaf
    for path, leaf in flat.items()
  }
  return Direction(tree.unflatten(leaves), direction.meta)


def compress(
  direction: Direction, rank: int, *, tables: bool = False
) -> tuple[Direction, dict[str, float]]:
  """The nearest change of at most `rank` at every projection's kernel, and {path: relative
  Frobenius error} of those.

  Dense kernels become low-rank, low-rank ones of higher rank are cut; what is no kernel (norms,
  biases) stays as it is.

  Args:
    tables: take the nearest change of that rank of the embedding too; it stays a dense array.

  Raises:
    InputError: a rank below 1.
  """
  if rank < 1:
    raise InputError(f'the rank to compress to must be 1 or more, not {rank}')
  known = models.delta_sites(direction.base.config)
  leaves, errors = {}, {}
  for path, leaf in tree.flatten(direction.delta, models.is_delta_leaf).items():
    if known[path].inputs and isinstance(leaf, Dense):
      leaf, errors[path] = _factor_dense(leaf, known[path], rank)
    elif isinstance(leaf, LowRank):
      leaf, errors[path] = _cut_low_rank(path, leaf, rank)
    elif tables and path == EMBEDDING:
      leaf, errors[path] = _cut_table(leaf, rank)
    leaves[path] = leaf
  meta = {**direction.meta, 'compression': {'rank': rank, 'relative_errors': errors}}
  return Direction(tree.unflatten(leaves), meta), errors


def _recompress_leaf(path: str, leaf: LowRank) -> LowRank:
  left, values, right = _svd_of_product(path, leaf)
  largest = values.max(axis=-1, keepdims=True)
  rank = max(1, int((values > ROUNDING * largest).sum(axis=-1).max()))
  return _from_svd(path, leaf, left, values, right, rank)


def _cut_low_rank(path: str, leaf: LowRank, rank: int) -> tuple[LowRank, float]:
  if leaf.a.shape[-1] <= rank:
    return leaf, 0.0
  left, values, right = _svd_of_product(path, leaf)
  total = np.square(values).sum()
  error = math.sqrt(np.square(values[:, rank:]).sum() / total) if total > 0 else 0.0
  return _from_svd(path, leaf, left, values, right, rank), error


def _svd_of_product(path: str, leaf: LowRank) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Singular vectors and values of each layer's change: left [L, I, R], values [L, R], right [L, R,
  O], float64.
  """
  a_LIR, b_LRO = (np.asarray(factor, np.float64) for factor in gram.factors(path, leaf))
  q_in, r_in = np.linalg.qr(a_LIR)
  q_out, r_out = np.linalg.qr(np.swapaxes(b_LRO, 1, 2))
  u, values, v = np.linalg.svd(r_in @ np.swapaxes(r_out, 1, 2), full_matrices=False)
  return q_in @ u, values, v @ np.swapaxes(q_out, 1, 2)


def _from_svd(path: str, leaf: LowRank, left, values, right, rank: int) -> LowRank:
  stack = gram.stack_axes(path)
  root = np.sqrt(values[:, :rank])
  a = (left[..., :rank] * root[:, None, :]).reshape(leaf.a.shape[:-1] + (-1,))
  b = (root[..., None] * right[:, :rank]).reshape(
    leaf.b.shape[:stack] + (-1,) + leaf.b.shape[stack + 1 :]
  )
  return LowRank(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))


def _factor_dense(leaf: Dense, site: models.Site, rank: int) -> tuple[LowRank, float]:
  """The best factors of a dense kernel's change, layer by layer, and the relative error over all
  layers.
  """
  stack = len(site.stack)
  inputs, outputs = site.shape[stack : stack + site.inputs], site.shape[stack + site.inputs :]
  rank = min(rank, math.prod(inputs), math.prod(outputs))
  change_LIO = np.asarray(leaf.value).reshape(-1, math.prod(inputs), math.prod(outputs))
  pairs = [best_factors(change_IO.astype(np.float64), rank) for change_IO in change_LIO]
  lost = math.fsum(np.square(change - a @ b).sum() for change, (a, b) in zip(change_LIO, pairs))
  whole = math.fsum(np.square(change.astype(np.float64)).sum() for change in change_LIO)
  a = np.stack([a for a, _ in pairs]).reshape(site.shape[:stack] + inputs + (rank,))
  b = np.stack([b for _, b in pairs]).reshape(site.shape[:stack] + (rank,) + outputs)
  factors = LowRank(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
  return factors, math.sqrt(lost / whole) if whole > 0 else 0.0


def _cut_table(leaf: Dense, rank: int) -> tuple[Dense, float]:
  change_VD = np.asarray(leaf.value, np.float64)
  a, b = best_factors(change_VD, min(rank, *change_VD.shape))
  whole = np.linalg.norm(change_VD)
  return Dense(jnp.asarray(a @ b, jnp.float32)), float(
    np.linalg.norm(change_VD - a @ b) / whole
  ) if whole > 0 else 0.0


def best_factors(change_IO: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
  """a [I, R] and b [R, O] of the nearest matrix of rank R.

  They come from the eigenvectors of the smaller Gram matrix, which costs far less than an SVD of
  the whole.
  Source: Eckart and Young, 1936.
  """
  if change_IO.shape[0] > change_IO.shape[1]:
    outputs_OR, inputs_RI = best_factors(change_IO.T, rank)
    return inputs_RI.T, outputs_OR.T
  _, vectors = np.linalg.eigh(change_IO @ change_IO.T)
  basis_IR = vectors[:, ::-1][:, :rank]
  return basis_IR, basis_IR.T @ change_IO
