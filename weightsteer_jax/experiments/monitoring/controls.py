"""What a cosine is by chance: with random directions of the same rank and spectrum.

A control of a direction is the direction with the inputs and the outputs of each matrix shuffled
and their signs drawn anew: `P A B Q` with random signed permutations P and Q. They are orthogonal,
so that each matrix keeps its rank and its singular values, exactly, and no decomposition is needed.
As with rotations drawn uniformly, the product with a fixed matrix W has the mean 0 and the variance

  E <P M Q, W>^2 = |M|^2 |W|^2 / (I O)

(the signs leave the terms with equal indices alone, and the permutations take each entry everywhere
alike). It is never formed where the direction is low-rank.

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
from weightsteer_jax.experiments.monitoring.changes import Leaf
from weightsteer_jax.models import LowRank


@dataclasses.dataclass(frozen=True)
class Draws:
  """The random controls of one direction, the same for each update they are compared with.

  Attributes:
    config: the model's. seed: what they are a function of. count: how many.
  """

  config: models.ModelConfig
  seed: int
  count: int

  def products(self, path: str, first: int, direction: Leaf, update: Leaf) -> np.ndarray:
    """<control, update> of each control at the layers from `first` on, float64 [count]."""
    inputs = models.delta_sites(self.config)[path].inputs
    x, y = (_matrices(path, leaf, inputs) for leaf in (direction, update))
    matrices = x[0].shape[0]
    start = first * (matrices // _layers(path, direction))
    keys = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(path.encode()))
    found = _products(keys, jnp.arange(start, start + matrices), x, y, self.count)
    return np.asarray(found, np.float64).sum(axis=1)


def num_entries(path: str, leaf: Leaf) -> int:
  """Entries of one matrix of the parameter: inputs times outputs."""
  return math.prod(gram.change_shape(path, leaf)[gram.stack_axes(path) :])


def _layers(path: str, leaf: Leaf) -> int:
  return jax.tree.leaves(leaf)[0].shape[0] if models.stack_axes(path) else 1


def _matrices(path: str, leaf: Leaf, inputs: int) -> tuple[jax.Array, ...]:
  """The leaf as matrices, factors ([L, I, R], [L, R, O]) or whole ([L, I, O],); a vector is a
  matrix of one row.
  """
  if isinstance(leaf, LowRank):
    return gram.factors(path, leaf)
  stack, shape = gram.stack_axes(path), leaf.value.shape
  inputs = inputs or len(shape) - stack - 1  # A table's rows are its inputs.
  matrices, rows = math.prod(shape[:stack]), math.prod(shape[stack : stack + inputs])
  return (jnp.asarray(leaf.value, jnp.float32).reshape(matrices, rows, -1),)


@functools.partial(jax.jit, static_argnums=4)
def _products(key, numbers_L, x, y, count):
  """<control, y> of `count` controls of x, one of each matrix [count, L]; a matrix's luck goes by
  its number.
  """

  def one(draw):
    keys_L = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, draw), numbers_L)
    return jax.vmap(_product)(_shuffled(keys_L, x), y)

  return jax.lax.map(one, jnp.arange(count))


def _shuffled(keys_L, x):
  if len(x) == 1:
    keys_L2 = jax.vmap(jax.random.split)(keys_L)
    rows = jax.vmap(_shuffle)(keys_L2[:, 0], x[0])
    return (jnp.swapaxes(jax.vmap(_shuffle)(keys_L2[:, 1], jnp.swapaxes(rows, 1, 2)), 1, 2),)
  keys_L2 = jax.vmap(jax.random.split)(keys_L)
  return (
    jax.vmap(_shuffle)(keys_L2[:, 0], x[0]),
    jnp.swapaxes(jax.vmap(_shuffle)(keys_L2[:, 1], jnp.swapaxes(x[1], 1, 2)), 1, 2),
  )


def _shuffle(key, rows):
  """The rows of a matrix in random order, with random signs."""
  order, signs = jax.random.split(key)
  size = rows.shape[0]
  shuffled = jnp.take(rows, jax.random.permutation(order, size), axis=0)
  return shuffled * jax.random.rademacher(signs, (size, 1), rows.dtype)


def _product(x, y):
  """<x, y> of two matrices, each whole or as its factors."""
  if len(x) == 2 and len(y) == 2:
    inputs, outputs = (
      jnp.matmul(x[0].T, y[0], precision='highest'),
      jnp.matmul(x[1], y[1].T, precision='highest'),
    )
    return jnp.sum(inputs * outputs)
  if len(x) == 1 and len(y) == 1:
    return jnp.sum(x[0] * y[0])
  (a, b), (v,) = (x, y) if len(x) == 2 else (y, x)
  return jnp.sum(jnp.matmul(a.T, v, precision='highest') * b)
