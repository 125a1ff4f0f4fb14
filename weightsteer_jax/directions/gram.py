"""Inner products of deltas, through matrices of the size of their ranks.

The dense products of the factors are never formed. For one layer, with the axes of the kernel's
inputs merged to I and those of its outputs to O:

  <A1 B1, A2 B2> = sum((A1^T A2) * (B1 B2^T))      two [R, r] matrices
  <A B, V>       = sum((A^T V) * B)                one [R, O] matrix

Products are float32 at the highest precision, on whatever device holds the factors; sums over
layers and sites are float64. Below, L counts every matrix of a site: layers, or experts of layers.
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
  """{path: inner product of the two changes}, for the sites that both deltas change.

  The products at all other sites are zero.

  Raises:
    InputError: if a site has different shapes in the two deltas.
  """
  flat_x = tree.flatten(x, models.is_delta_leaf)
  flat_y = tree.flatten(y, models.is_delta_leaf)
  products = {}
  for path, leaf in flat_x.items():
    if path in flat_y:
      products_L = matrix_products(path, leaf, flat_y[path])
      products[path] = float(np.sum(products_L))
  return products


def squared_norms(delta: PyTree) -> dict[str, float]:
  """{path: squared Frobenius norm of the change}."""
  products = inner_products(delta, delta)
  # Factors that cancel out can have a sum of rounding errors below zero, where no root is real.
  return {path: max(product, 0.0) for path, product in products.items()}


def stack_axes(path: str) -> int:
  """Number of leading axes of a leaf that count layers and experts."""
  return len(models.stack_axes(path))


def factors(path: str, leaf: LowRank) -> tuple[jax.Array, jax.Array]:
  """The factors as stacks of matrices: a [L, I, R] and b [L, R, O], float32, the scale in b."""
  a = jnp.asarray(leaf.a, jnp.float32)
  b = jnp.asarray(leaf.b, jnp.float32)
  # 1 outside the layer stack: an empty product.
  stack_shape = a.shape[: stack_axes(path)]
  matrices = math.prod(stack_shape)
  rank = a.shape[-1]
  a_LIR = a.reshape(matrices, -1, rank)
  b_LRO = b.reshape(matrices, rank, -1)
  return a_LIR, leaf.scale * b_LRO


def matrices(path: str, leaf: Dense, inputs: int) -> np.ndarray | jax.Array:
  """A dense change as a stack of matrices [L, I, O]; a vector is a matrix of one row.

  Args:
    inputs: number of input axes of the parameter; 0 for a table, a norm or a bias.
  """
  stack = stack_axes(path)
  shape = leaf.value.shape
  # The rows of a table are the inputs; a norm or a bias has an empty product, one row.
  inputs = inputs or len(shape) - stack - 1
  first_output = stack + inputs
  count = math.prod(shape[:stack])
  rows = math.prod(shape[stack:first_output])
  return leaf.value.reshape(count, rows, -1)


def layer_changes(path: str, leaf: LowRank | Dense) -> Iterator[np.ndarray]:
  """Yields the dense change of each layer in turn, float32, computed on the host.

  A low-rank change has the shape [I, O], or [E, I, O] with experts; a dense change has the
  parameter's own shape, without L.
  """
  stack = stack_axes(path)
  if isinstance(leaf, Dense):
    value = np.asarray(leaf.value, np.float32)
    # A parameter outside the layer stack is a single layer.
    layers = value if stack else value[None]
    yield from layers
    return
  a = np.asarray(leaf.a, np.float32)
  b = np.float32(leaf.scale) * np.asarray(leaf.b, np.float32)
  # Inputs and outputs become one axis each, so that @ multiplies matrices, expert by expert.
  rank = a.shape[-1]
  a = a.reshape(*a.shape[:stack], -1, rank)
  b = b.reshape(*b.shape[:stack], rank, -1)
  if not stack:
    yield a @ b
    return
  # One layer at a time: the dense changes of all layers may be as large as the model.
  for a_layer, b_layer in zip(a, b):
    yield a_layer @ b_layer


def change_shape(path: str, leaf: LowRank | Dense) -> tuple[int, ...]:
  """Shape of the parameter that the leaf changes."""
  if isinstance(leaf, Dense):
    return tuple(leaf.value.shape)
  # a is [stack..., inputs..., R] and b is [stack..., R, outputs...].
  stack_and_inputs = leaf.a.shape[:-1]
  outputs = leaf.b.shape[stack_axes(path) + 1 :]
  return (*stack_and_inputs, *outputs)


def matrix_products(path: str, x: LowRank | Dense, y: LowRank | Dense) -> np.ndarray:
  """Inner products of two changes of a site, matrix by matrix: float64 [L].

  Raises:
    InputError: if the leaves have different shapes.
  """
  terms_L = jax.device_get(terms(path, x, y))
  # Summed here and not in the program, which has no float64.
  summands = np.asarray(terms_L, np.float64)
  summands = summands.reshape(len(summands), -1)
  return summands.sum(axis=1)


def terms(path: str, x: LowRank | Dense, y: LowRank | Dense) -> jax.Array:
  """Float32 [L, ...] whose sums over all but the first axis are `matrix_products`.

  The function may be traced.

  Raises:
    InputError: if the leaves have different shapes.
  """
  shape_x = change_shape(path, x)
  shape_y = change_shape(path, y)
  if shape_x != shape_y:
    raise InputError(
      f"'{path}' has shape {shape_x} in one delta and {shape_y} in the other: they were made for "
      'different architectures'
    )
  if isinstance(x, LowRank):
    if isinstance(y, LowRank):
      return _low_rank_terms(*factors(path, x), *factors(path, y))
    return _mixed(path, x, y)
  # An inner product is symmetric, so one formula serves both orders.
  if isinstance(y, LowRank):
    return _mixed(path, y, x)
  value_x = jnp.asarray(x.value, jnp.float32)
  value_y = jnp.asarray(y.value, jnp.float32)
  row_terms = _dense_terms(value_x, value_y)
  stack_shape = shape_x[: stack_axes(path)]
  return row_terms.reshape(math.prod(stack_shape), -1)


def _mixed(path: str, low_rank: LowRank, dense: Dense) -> jax.Array:
  a_LIR, b_LRO = factors(path, low_rank)
  layers, inputs, _ = a_LIR.shape
  outputs = b_LRO.shape[-1]
  value = jnp.asarray(dense.value, jnp.float32)
  v_LIO = value.reshape(layers, inputs, outputs)
  return _mixed_terms(a_LIR, b_LRO, v_LIO)


@jax.jit
def _low_rank_terms(
  a_LIR: jax.Array, b_LRO: jax.Array, other_a_LIr: jax.Array, other_b_LrO: jax.Array
) -> jax.Array:
  # r is the rank of the other change. GPUs and TPUs multiply float32 in fewer bits by default.
  inputs_LRr = jnp.einsum('LIR,LIr->LRr', a_LIR, other_a_LIr, precision='highest')
  outputs_LRr = jnp.einsum('LRO,LrO->LRr', b_LRO, other_b_LrO, precision='highest')
  return inputs_LRr * outputs_LRr


@jax.jit
def _mixed_terms(a_LIR: jax.Array, b_LRO: jax.Array, v_LIO: jax.Array) -> jax.Array:
  projected_LRO = jnp.einsum('LIR,LIO->LRO', a_LIR, v_LIO, precision='highest')
  # Summed over O here and over R on the host, in float64.
  return jnp.sum(projected_LRO * b_LRO, axis=-1)


@jax.jit
def _dense_terms(x: jax.Array, y: jax.Array) -> jax.Array:
  # One term per row: short sums keep float32 exact enough for tables of any length.
  return jnp.sum(x * y, axis=-1)
