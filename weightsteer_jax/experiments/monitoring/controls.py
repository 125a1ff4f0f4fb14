"""Cosines by chance: with random directions of the same rank and spectrum.

A control of a direction is the direction with the inputs and the outputs of each matrix shuffled
and all signs drawn anew: `P A B Q` with random signed permutations P and Q. Signed permutations are
orthogonal, so each matrix keeps rank and singular values exactly, and no decomposition is needed.
As with rotations drawn uniformly, the product with a fixed matrix W has the mean 0 and the variance

  E <P M Q, W>^2 = |M|^2 |W|^2 / (I O)

because the signs cancel all terms but those with equal indices, and the permutations take each
entry everywhere alike. Where the direction is low-rank, the control is never formed as a matrix.

Source: random signed permutations as a subgroup of the rotations in place of all of them;
Weingarten, J. Math. Phys. 19 (1978), 999, for the moments of the latter.
"""

import dataclasses
import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import gram
from weightsteer_jax.experiments.monitoring.changes import Leaf, num_layers
from weightsteer_jax.models import LowRank


@dataclasses.dataclass(frozen=True)
class Draws:
  """The random controls of one direction, the same for every update.

  Attributes:
    config: config of the model.
    seed: seed of the controls.
    count: number of controls.
  """

  config: models.ModelConfig
  seed: int
  count: int

  def products(self, path: str, first: int, direction: Leaf, update: Leaf) -> np.ndarray:
    """<control, update> of each control at the layers from `first` on, float64 [count]."""
    inputs = models.delta_sites(self.config)[path].inputs
    x = _matrices(path, direction, inputs)
    y = _matrices(path, update, inputs)
    # Matrices are numbered over the whole stack, several to a layer of experts, so that a control
    # is the same however the stack is cut into pieces.
    matrices = x[0].shape[0]
    matrices_of_layer = matrices // num_layers(path, direction)
    start = first * matrices_of_layer
    numbers_L = jnp.arange(start, start + matrices)
    # A site's controls depend on the path, not on the site's place among the sites.
    number_of_path = zlib.crc32(path.encode())
    key = jax.random.fold_in(jax.random.key(self.seed), number_of_path)
    products_CL = _products(key, numbers_L, x, y, self.count)
    # Summed in float64 on the host, as all other products of changes.
    return np.asarray(products_CL, np.float64).sum(axis=1)


def num_entries(path: str, leaf: Leaf) -> int:
  """Number of entries of one matrix of the parameter: inputs times outputs."""
  shape = gram.change_shape(path, leaf)
  stack = gram.stack_axes(path)
  return math.prod(shape[stack:])


def _matrices(path: str, leaf: Leaf, inputs: int) -> tuple[jax.Array, ...]:
  """The leaf as factors ([L, I, R], [L, R, O]) or whole ([L, I, O],).

  A vector is a matrix of one row. L counts experts too.

  Args:
    inputs: number of input axes of the parameter; 0 for a table, a norm or a bias.
  """
  if isinstance(leaf, LowRank):
    return gram.factors(path, leaf)
  return (jnp.asarray(gram.matrices(path, leaf, inputs), jnp.float32),)


@functools.partial(jax.jit, static_argnums=4)
def _products(key, numbers_L, x, y, count):
  """<control, y> of `count` controls of x, a number for each matrix [count, L].

  Args:
    numbers_L: numbers of the matrices; a matrix's random bits come from the number.
  """

  def products_of_draw(draw):
    draw_key = jax.random.fold_in(key, draw)
    fold_in = jax.vmap(jax.random.fold_in, (None, 0))
    keys_L = fold_in(draw_key, numbers_L)
    shuffled = _shuffled(keys_L, x)
    return jax.vmap(_product)(shuffled, y)

  # One control at a time: all at once would take `count` times the memory of the direction.
  return jax.lax.map(products_of_draw, jnp.arange(count))


def _shuffled(keys_L, x):
  """Matrices with inputs and outputs shuffled, whole or as factors like `x`."""
  split = jax.vmap(jax.random.split)
  shuffle = jax.vmap(_shuffle)
  keys_L2 = split(keys_L)
  is_whole = len(x) == 1
  # P A B Q: the inputs are the rows of the whole matrix, or of the first factor A,
  rows = shuffle(keys_L2[:, 0], x[0])
  # and the outputs are the columns of the whole matrix, or of the last factor B.
  last = rows if is_whole else x[1]
  columns = shuffle(keys_L2[:, 1], jnp.swapaxes(last, 1, 2))
  shuffled = jnp.swapaxes(columns, 1, 2)
  if is_whole:
    return (shuffled,)
  return (rows, shuffled)


def _shuffle(key, rows):
  """The rows of a matrix in random order, with random signs."""
  order, signs = jax.random.split(key)
  size = rows.shape[0]
  permutation = jax.random.permutation(order, size)
  shuffled = jnp.take(rows, permutation, axis=0)
  # One sign a row.
  signs_of_rows = jax.random.rademacher(signs, (size, 1), rows.dtype)
  return shuffled * signs_of_rows


def _product(x, y):
  """<x, y> of two matrices, each whole or as factors."""
  # The formulas of directions/gram.py: dense products are never formed.
  is_whole_x = len(x) == 1
  is_whole_y = len(y) == 1
  if is_whole_x and is_whole_y:
    return jnp.sum(x[0] * y[0])
  if not is_whole_x and not is_whole_y:
    # <A B, C D> = sum of (A^T C) * (B D^T).
    a, b = x
    c, d = y
    inputs = jnp.matmul(a.T, c, precision='highest')
    outputs = jnp.matmul(b, d.T, precision='highest')
    return jnp.sum(inputs * outputs)
  # <A B, V> = sum of (A^T V) * B.
  a, b = y if is_whole_x else x
  (v,) = x if is_whole_x else y
  projected = jnp.matmul(a.T, v, precision='highest')
  return jnp.sum(projected * b)
