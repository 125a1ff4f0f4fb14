"""Inner products of deltas, through matrices of the size of their ranks: the dense products are
never formed.

For one layer, with the kernels' inputs and outputs flattened to I and O:

  <A1 B1, A2 B2> = sum((A1^T A2) * (B1 B2^T))      two [R1, R2] matrices
  <A B, V>       = sum((A^T V) * B)                one [R, O] matrix

Products are float32 at the highest precision, on whatever device holds the factors; what is summed
over layers and sites is float64.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

PyTree = Any


def inner_products(x: PyTree, y: PyTree) -> dict[str, float]:
  """{path: inner product of the two changes} for the sites both deltas change; the others' are
  zero.

  Raises:
    InputError: a site has different shapes in the two.
  """
  flat_x, flat_y = tree.flatten(x, models.is_delta_leaf), tree.flatten(y, models.is_delta_leaf)
  return {
    path: float(np.sum(matrix_products(path, leaf, flat_y[path])))
    for path, leaf in flat_x.items()
    if path in flat_y
  }


def squared_norms(delta: PyTree) -> dict[str, float]:
  """{path: squared Frobenius norm of the change}, never negative."""
  return {path: max(value, 0.0) for path, value in inner_products(delta, delta).items()}


def stack_axes(path: str) -> int:
  """Number of leading axes of a leaf that count layers and experts."""
  return len(models.stack_axes(path))


def factors(path: str, leaf: LowRank) -> tuple[jax.Array, jax.Array]:
  """The factors as matrices, one of a layer (or an expert of it), a [L, I, R] and b [L, R, O],
  float32, scale in b.
  """
  a, b = jnp.asarray(leaf.a, jnp.float32), jnp.asarray(leaf.b, jnp.float32)
  layers, rank = math.prod(a.shape[: stack_axes(path)]), a.shape[-1]
  return a.reshape(layers, -1, rank), leaf.scale * b.reshape(layers, rank, -1)


def layer_changes(path: str, leaf: LowRank | Dense) -> Iterator[np.ndarray]:
  """The dense change of each layer in turn, [I, O] ([E, I, O] of experts) or flat, float32,
  computed on the host.
  """
  stack = stack_axes(path)
  if isinstance(leaf, Dense):
    value = np.asarray(leaf.value, np.float32)
    yield from value if stack else value[None]
  else:
    a, b = np.asarray(leaf.a, np.float32), np.float32(leaf.scale) * np.asarray(leaf.b, np.float32)
    a = a.reshape(a.shape[:stack] + (-1, a.shape[-1]))
    b = b.reshape(b.shape[:stack] + (b.shape[stack], -1))
    for a_layer, b_layer in zip(a, b) if stack else [(a, b)]:
      yield a_layer @ b_layer


def change_shape(path: str, leaf: LowRank | Dense) -> tuple[int, ...]:
  """Shape of the parameter the leaf changes."""
  if isinstance(leaf, Dense):
    return tuple(leaf.value.shape)
  return tuple(leaf.a.shape[:-1]) + tuple(leaf.b.shape[stack_axes(path) + 1 :])


def matrix_products(path: str, x: LowRank | Dense, y: LowRank | Dense) -> np.ndarray:
  """Inner products of two leaves' changes, one of each layer, or expert of a layer; one outside the
  stack: float64 [M].

  Raises:
    InputError: the leaves have different shapes.
  """
  found = np.asarray(jax.device_get(terms(path, x, y)), np.float64)
  return found.reshape(found.shape[0], -1).sum(axis=1)


def terms(path: str, x: LowRank | Dense, y: LowRank | Dense) -> jax.Array:
  """Float32 [M, ...] whose sums over all but the first axis are `matrix_products`; may be traced.

  Raises:
    InputError: the leaves have different shapes.
  """
  if change_shape(path, x) != change_shape(path, y):
    raise InputError(
      f"'{path}' has shape {change_shape(path, x)} in one delta and {change_shape(path, y)} in the "
      'other: they were made for different architectures'
    )
  if isinstance(x, LowRank) and isinstance(y, LowRank):
    return _low_rank_terms(*factors(path, x), *factors(path, y))
  if isinstance(x, Dense) and isinstance(y, Dense):
    matrices = math.prod(x.value.shape[: stack_axes(path)])
    found = _dense_terms(jnp.asarray(x.value, jnp.float32), jnp.asarray(y.value, jnp.float32))
    return found.reshape(matrices, -1)
  low_rank, dense = (x, y) if isinstance(x, LowRank) else (y, x)
  a_LIR, b_LRO = factors(path, low_rank)
  v_LIO = jnp.asarray(dense.value, jnp.float32).reshape(
    a_LIR.shape[0], a_LIR.shape[1], b_LRO.shape[-1]
  )
  return _mixed_terms(a_LIR, b_LRO, v_LIO)


@jax.jit
def _low_rank_terms(a1_LIR, b1_LRO, a2_LIr, b2_LrO):
  inputs_LRr = jnp.einsum('LIR,LIr->LRr', a1_LIR, a2_LIr, precision='highest')
  outputs_LRr = jnp.einsum('LRO,LrO->LRr', b1_LRO, b2_LrO, precision='highest')
  return inputs_LRr * outputs_LRr


@jax.jit
def _mixed_terms(a_LIR, b_LRO, v_LIO):
  projected_LRO = jnp.einsum('LIR,LIO->LRO', a_LIR, v_LIO, precision='highest')
  return jnp.sum(projected_LRO * b_LRO, axis=-1)


@jax.jit
def _dense_terms(x, y):
  # One term per row: short sums keep float32 exact enough for tables of any length.
  return jnp.sum(x * y, axis=-1)
