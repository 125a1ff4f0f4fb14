"""What bfloat16 takes away: a change below half a step of the weight it is added to vanishes in the
sum.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import gram
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.runtime import tree

PyTree = Any


def bfloat16_route(positive: PyTree, negative: PyTree, base: Checkpoint) -> dict[str, Any]:
  """How near the route over merged checkpoints comes to the exact direction.

  That route adds each task vector to the base, rounds both sums to bfloat16, and subtracts those,
  as the paper's reference code does.

  Args:
    positive, negative: the two task vectors, deltas of the base.

  Returns:
    `cosine` between its result and the exact difference, over all sites; `norm_ratio`, its length
    over the exact one's; `cosines` per site.
  """
  flat_positive, flat_negative = (
    tree.flatten(positive, models.is_delta_leaf),
    tree.flatten(negative, models.is_delta_leaf),
  )
  paths = {**flat_positive, **flat_negative}
  sums = {
    path: _route_at(path, flat_positive.get(path), flat_negative.get(path), base) for path in paths
  }
  product, route, exact = (math.fsum(parts[i] for parts in sums.values()) for i in range(3))
  return {
    'cosine': _ratio(product, math.sqrt(route * exact)),
    'norm_ratio': _ratio(math.sqrt(route), math.sqrt(exact)),
    'cosines': {
      path: _ratio(parts[0], math.sqrt(parts[1] * parts[2])) for path, parts in sums.items()
    },
  }


def _route_at(
  path: str, positive: LowRank | Dense | None, negative: LowRank | Dense | None, base: Checkpoint
) -> tuple[float, float, float]:
  """(inner product with the exact change, squared norm of the route's, squared norm of the exact
  one) at one site.
  """
  layers = models.delta_sites(base.config)[path].shape[0] if gram.stack_axes(path) else 1
  product = route = exact = 0.0
  for l, plus, minus in zip(
    range(layers), _changes(path, positive, layers), _changes(path, negative, layers)
  ):
    plus, minus = plus.reshape(-1), minus.reshape(-1)
    # A bias the base does not have starts from zero.
    weight = _round(base.layer(path, l).reshape(-1)) if path in base.rows else np.float32(0)
    rounded = _round(weight + plus).astype(np.float64) - _round(weight + minus)
    difference = plus.astype(np.float64) - minus
    product += float((rounded * difference).sum())
    route += float(np.square(rounded).sum())
    exact += float(np.square(difference).sum())
  return product, route, exact


def _changes(path: str, leaf: LowRank | Dense | None, layers: int) -> Iterable[np.ndarray]:
  return [np.zeros(1, np.float32)] * layers if leaf is None else gram.layer_changes(path, leaf)


def _round(x: Any) -> np.ndarray:
  return np.asarray(x, np.float32).astype(jnp.bfloat16).astype(np.float32)


def _ratio(x: float, y: float) -> float:
  return x / y if y > 0 else 0.0
