"""The same cosines inside training: one small compiled program between two steps, from the factors
that are there.
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
  """What a fine-tune is watched for: its angles to these directions' deltas, which are placed as
  its own is.

  Logged are `monitor/<direction>/cosine`, `.../alpha` (the update's component along the direction,
  in multiples of it) and `.../null_std` (the cosine's standard deviation, were the direction a
  random one of its rank and spectrum).

  Raises:
    InputError: a direction of another architecture.
  """
  layout = layout or sharding.single()
  placed = {
    name: jax.tree.map(sharding.put, delta, models.delta_shardings(config, delta, layout))
    for name, delta in directions.items()
  }
  # From what this process holds: of placed arrays a process may hold a part only.
  squares = {
    name: {
      path: gram.matrix_products(path, leaf, leaf)
      for path, leaf in tree.flatten(delta, models.is_delta_leaf).items()
    }
    for name, delta in directions.items()
  }
  compiled = jax.jit(functools.partial(_angles, squares), out_shardings=layout.replicated)

  def look(delta):
    with layout.context():
      return compiled(delta, placed)

  return Watch(every, look)


def _angles(
  squares: Mapping[str, Mapping[str, np.ndarray]], delta: PyTree, directions: Mapping[str, PyTree]
) -> dict[str, jax.Array]:
  """`squares`: {direction: {path: its squared norm in each matrix [L]}}, which are constants of the
  program.
  """
  update = tree.flatten(delta, models.is_delta_leaf)
  norms_L = {path: _sums(path, leaf, leaf) for path, leaf in update.items()}
  length = jnp.sqrt(sum(jnp.sum(found) for found in norms_L.values()))
  found = {}
  for name, direction in directions.items():
    product, variance = jnp.zeros(()), jnp.zeros(())
    for path, leaf in tree.flatten(direction, models.is_delta_leaf).items():
      if path in update:
        product += jnp.sum(_sums(path, leaf, update[path]))
        variance += jnp.sum(
          norms_L[path] * (squares[name][path] / controls.num_entries(path, leaf))
        )
    own = math.sqrt(math.fsum(float(part.sum()) for part in squares[name].values()))
    both = length * own
    known = (
      both > 0
    )  # Before the first step nothing has changed; the cosine of nothing is told as 0.
    found[f'monitor/{name}/cosine'] = jnp.where(known, product / jnp.where(known, both, 1.0), 0.0)
    found[f'monitor/{name}/null_std'] = jnp.where(
      known, jnp.sqrt(variance) / jnp.where(known, both, 1.0), 0.0
    )
    found[f'monitor/{name}/alpha'] = product / own**2 if own else jnp.zeros(())
  return found


def _sums(path: str, x: Any, y: Any) -> jax.Array:
  """Inner products [L] of the matrices of two leaves, float32."""
  found = gram.terms(path, x, y)
  return jnp.sum(found, axis=tuple(range(1, found.ndim)))
