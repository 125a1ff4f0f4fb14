"""Directions of lower rank: the same change in fewer factors, or the nearest change of a rank.

I and O are the inputs and outputs of a kernel, each as one axis; L counts layers, or experts of
layers.
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
  """The same change with each low-rank site at its numerical rank, its factors balanced.

  The rank of a site is the largest of its layers' ranks. QR of both factors, then SVD of the small
  product of their triangles: the dense change is never formed.
  """
  leaves = tree.flatten(direction.delta, models.is_delta_leaf)
  for path, leaf in leaves.items():
    if not isinstance(leaf, LowRank):
      continue
    left_LIR, values_LR, right_LRO = _svd_of_product(path, leaf)
    # Relative to the layer's own largest: layers may differ in size by orders of magnitude.
    largest = values_LR.max(axis=-1, keepdims=True)
    is_signal = values_LR > ROUNDING * largest
    ranks = is_signal.sum(axis=-1)
    # A change of zero keeps rank 1, so that its site stays low-rank.
    rank = max(1, int(ranks.max()))
    leaves[path] = _from_svd(path, leaf, left_LIR, values_LR, right_LRO, rank)
  return Direction(tree.unflatten(leaves), direction.meta)


def compress(
  direction: Direction, rank: int, *, tables: bool = False
) -> tuple[Direction, dict[str, float]]:
  """The nearest change of at most `rank` at each kernel, and {path: relative Frobenius error}.

  Dense kernels become low-rank, and low-rank changes of a higher rank are cut. Norms and biases
  stay as they are.

  Args:
    tables: take the nearest change of that rank of the embedding too; the change stays dense.

  Raises:
    InputError: if the rank is below 1.
  """
  if rank < 1:
    raise InputError(f'the rank to compress to must be 1 or more, not {rank}')
  sites = models.delta_sites(direction.base.config)
  leaves = tree.flatten(direction.delta, models.is_delta_leaf)
  errors = {}
  for path, leaf in leaves.items():
    nearest: LowRank | Dense
    if isinstance(leaf, LowRank):
      nearest, error = _cut_low_rank(path, leaf, rank)
    # Only kernels have inputs.
    elif sites[path].inputs:
      nearest, error = _factor_dense(leaf, sites[path], rank)
    elif tables and path == EMBEDDING:
      nearest, error = _cut_table(leaf, rank)
    else:
      continue
    leaves[path] = nearest
    errors[path] = error
  # The record stays with the direction, so that nobody takes the nearest change for the exact one.
  record = {'rank': rank, 'relative_errors': errors}
  meta = {**direction.meta, 'compression': record}
  return Direction(tree.unflatten(leaves), meta), errors


def _cut_low_rank(path: str, leaf: LowRank, rank: int) -> tuple[LowRank, float]:
  """The nearest factors of at most the rank, and the relative error over all layers."""
  # Factors that are narrow enough keep their bits.
  if leaf.a.shape[-1] <= rank:
    return leaf, 0.0
  left_LIR, values_LR, right_LRO = _svd_of_product(path, leaf)
  nearest = _from_svd(path, leaf, left_LIR, values_LR, right_LRO, rank)
  # The squared norm of a matrix is the sum of its squared singular values.
  squares_LR = np.square(values_LR)
  lost = squares_LR[:, rank:].sum()
  whole = squares_LR.sum()
  return nearest, _relative(lost, whole)


def _svd_of_product(path: str, leaf: LowRank) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The SVD of each layer's change: left [L, I, R], values [L, R], right [L, R, O], float64."""
  a, b = gram.factors(path, leaf)
  # In float64: the smallest singular values are told from the rounding of float32 by ROUNDING.
  a_LIR = np.asarray(a, np.float64)
  b_LRO = np.asarray(b, np.float64)
  # QR wants the long axis first, so the QR of the second factor is taken of B^T.
  b_LOR = np.swapaxes(b_LRO, 1, 2)
  q_in, r_in = np.linalg.qr(a_LIR)
  q_out, r_out = np.linalg.qr(b_LOR)
  # A B = q_in (r_in r_out^T) q_out^T, and both q are orthonormal: the SVD in the middle is whole.
  middle = r_in @ np.swapaxes(r_out, 1, 2)
  left, values_LR, right = np.linalg.svd(middle, full_matrices=False)
  # middle = left diag(values) right, so A B = (q_in left) diag(values) (right q_out^T).
  left_LIR = q_in @ left
  right_LRO = right @ np.swapaxes(q_out, 1, 2)
  return left_LIR, values_LR, right_LRO


def _from_svd(
  path: str,
  leaf: LowRank,
  left_LIR: np.ndarray,
  values_LR: np.ndarray,
  right_LRO: np.ndarray,
  rank: int,
) -> LowRank:
  # Singular values come in descending order, so the first are the largest.
  kept_left_LIR = left_LIR[..., :rank]
  kept_right_LRO = right_LRO[:, :rank]
  # Each factor takes the root of the singular values, so that both have one size.
  root_LR = np.sqrt(values_LR[:, :rank])
  a_LIR = kept_left_LIR * root_LR[:, None, :]
  b_LRO = root_LR[..., None] * kept_right_LRO
  # Back to the leaf's own axes: a is [stack..., inputs..., R], b is [stack..., R, outputs...].
  stack = gram.stack_axes(path)
  stack_and_inputs = leaf.a.shape[:-1]
  stack_shape = leaf.b.shape[:stack]
  outputs = leaf.b.shape[stack + 1 :]
  a = a_LIR.reshape(*stack_and_inputs, -1)
  b = b_LRO.reshape(*stack_shape, -1, *outputs)
  return _float32_factors(a, b)


def _factor_dense(leaf: Dense, site: models.Site, rank: int) -> tuple[LowRank, float]:
  """The best factors of a dense kernel's change, and the relative error over all layers."""
  # A kernel's shape is its layers and experts, then its inputs, then its outputs.
  first_input = len(site.stack)
  first_output = first_input + site.inputs
  stack = site.shape[:first_input]
  inputs = site.shape[first_input:first_output]
  outputs = site.shape[first_output:]
  num_inputs = math.prod(inputs)
  num_outputs = math.prod(outputs)
  # A matrix has no more singular values than its shorter side.
  rank = min(rank, num_inputs, num_outputs)
  change_LIO = np.asarray(leaf.value).reshape(-1, num_inputs, num_outputs)
  factors_a = []
  factors_b = []
  lost = []
  whole = []
  # In float64 one layer at a time, so that no second model is held.
  for change in change_LIO:
    change_IO = change.astype(np.float64)
    a_IR, b_RO = best_factors(change_IO, rank)
    factors_a.append(a_IR)
    factors_b.append(b_RO)
    rest_IO = change_IO - a_IR @ b_RO
    lost.append(np.square(rest_IO).sum())
    whole.append(np.square(change_IO).sum())
  a_LIR = np.stack(factors_a)
  b_LRO = np.stack(factors_b)
  a = a_LIR.reshape(*stack, *inputs, rank)
  b = b_LRO.reshape(*stack, rank, *outputs)
  # Over all layers at once: a layer that hardly changes should not count as much as the others.
  error = _relative(math.fsum(lost), math.fsum(whole))
  return _float32_factors(a, b), error


def _float32_factors(a: np.ndarray, b: np.ndarray) -> LowRank:
  # Rounded once, at the end of the float64 arithmetic.
  return LowRank(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))


def _cut_table(leaf: Dense, rank: int) -> tuple[Dense, float]:
  change_VD = np.asarray(leaf.value, np.float64)
  rank = min(rank, *change_VD.shape)
  a_VR, b_RD = best_factors(change_VD, rank)
  # Multiplied out, as an embedding's site takes dense changes only.
  nearest_VD = a_VR @ b_RD
  lost = np.linalg.norm(change_VD - nearest_VD)
  whole = np.linalg.norm(change_VD)
  error = float(lost / whole) if whole > 0 else 0.0
  return Dense(jnp.asarray(nearest_VD, jnp.float32)), error


def _relative(lost: float, whole: float) -> float:
  """The relative error from two sums of squares; 0 of a change that is zero."""
  return math.sqrt(lost / whole) if whole > 0 else 0.0


def best_factors(change_IO: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
  """The factors a [I, R] and b [R, O] of the nearest matrix of rank R.

  Source: Eckart and Young, 1936.
  """
  num_inputs, num_outputs = change_IO.shape
  # The nearest matrix of the transpose is the transpose of the nearest: (x y)^T = y^T x^T.
  if num_inputs > num_outputs:
    outputs_OR, inputs_RI = best_factors(change_IO.T, rank)
    return inputs_RI.T, outputs_OR.T
  # Eigenvectors of the smaller Gram matrix cost far less than an SVD of the whole.
  gram_II = change_IO @ change_IO.T
  _, vectors = np.linalg.eigh(gram_II)
  # eigh sorts eigenvalues in ascending order; the largest come first here.
  descending = vectors[:, ::-1]
  basis_IR = descending[:, :rank]
  # The basis is orthonormal, so its transpose gives the nearest coefficients: U U^T W.
  return basis_IR, basis_IR.T @ change_IO
