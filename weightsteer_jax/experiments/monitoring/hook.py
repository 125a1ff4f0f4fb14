"""Cosines inside training: one small compiled program between two steps.

The program works from the factors at hand in the training step.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import gram
from weightsteer_jax.experiments.monitoring import controls
from weightsteer_jax.finetune import Watch
from weightsteer_jax.runtime import sharding, tree
from weightsteer_jax.runtime.sharding import Layout

PyTree = Any


def watch(
  directions: Mapping[str, PyTree],
  config: models.ModelConfig,
  *,
  every: int,
  layout: Layout | None = None,
) -> Watch:
  """A watch that logs a fine-tune's angles to directions.

  Logged are `monitor/<direction>/cosine`, `.../alpha` (the update's component along the direction,
  in multiples of the direction) and `.../null_std` (the standard deviation of the cosine with a
  random direction of the same rank and spectrum).

  Args:
    directions: {name: delta}; placed as the trained delta.
    every: steps from one look to the next.

  Raises:
    InputError: if a direction is of another architecture.
  """
  layout = layout or sharding.single()
  placed = {}
  squares: dict[str, dict[str, np.ndarray]] = {}
  for name, delta in directions.items():
    shardings = models.delta_shardings(config, delta, layout)
    placed[name] = jax.tree.map(sharding.put, delta, shardings)
    # From the delta as given: of placed arrays a process may hold only a part.
    leaves = tree.flatten(delta, models.is_delta_leaf)
    squares[name] = {path: gram.matrix_products(path, leaf, leaf) for path, leaf in leaves.items()}
  # Squared norms of the directions never change, so they are constants of the program.
  angles = functools.partial(_angles, squares)
  compiled = jax.jit(angles, out_shardings=layout.replicated)

  def look(delta):
    # The mesh under which the compiler places the products.
    with layout.context():
      return compiled(delta, placed)

  return Watch(every, look)


def _angles(
  squares: Mapping[str, Mapping[str, np.ndarray]], delta: PyTree, directions: Mapping[str, PyTree]
) -> dict[str, jax.Array]:
  """The logged values of a look.

  Args:
    squares: {direction: {path: squared norm of each matrix [L]}}, constants of the program.
  """
  update = tree.flatten(delta, models.is_delta_leaf)
  norms_L = {path: _sums(path, leaf, leaf) for path, leaf in update.items()}
  update_square = sum(jnp.sum(norm_L) for norm_L in norms_L.values())
  update_length = jnp.sqrt(update_square)
  values = {}
  for name, direction in directions.items():
    product = jnp.zeros(())
    variance = jnp.zeros(())
    for path, leaf in tree.flatten(direction, models.is_delta_leaf).items():
      # A site that only one of the two changes adds nothing to the product.
      if path not in update:
        continue
      product_L = _sums(path, leaf, update[path])
      product += jnp.sum(product_L)
      # E <P M Q, W>^2 = |M|^2 |W|^2 / (I O); see controls.py.
      expected_L = squares[name][path] / controls.num_entries(path, leaf)
      variance += jnp.sum(norms_L[path] * expected_L)
    direction_squares = [float(square_L.sum()) for square_L in squares[name].values()]
    direction_length = math.sqrt(math.fsum(direction_squares))
    both = update_length * direction_length
    # Before the first step nothing has changed; the cosine of nothing is logged as 0.
    known = both > 0
    divisor = jnp.where(known, both, 1.0)
    cosine = product / divisor
    values[f'monitor/{name}/cosine'] = jnp.where(known, cosine, 0.0)
    null_std = jnp.sqrt(variance) / divisor
    values[f'monitor/{name}/null_std'] = jnp.where(known, null_std, 0.0)
    # <update, direction> / |direction|^2: a constant of the program, so no division by zero is
    # compiled.
    alpha = jnp.zeros(())
    if direction_length:
      alpha = product / direction_length**2
    values[f'monitor/{name}/alpha'] = alpha
  return values


def _sums(path: str, x: Any, y: Any) -> jax.Array:
  """Inner products [L] of the matrices of two leaves, float32."""
  terms = gram.terms(path, x, y)
  # All axes but L.
  axes = tuple(range(1, terms.ndim))
  return jnp.sum(terms, axis=axes)
