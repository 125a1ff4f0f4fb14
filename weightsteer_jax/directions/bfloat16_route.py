"""The loss of merging into bfloat16 before subtracting.

A change below half a step of the weight that it is added to vanishes in the sum.
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

  The route adds each task vector to the base, rounds both sums to bfloat16, and subtracts the
  rounded sums, as the reference code of arXiv 2511.05408 does.

  Args:
    positive, negative: the two task vectors, deltas of the base.

  Returns:
    `cosine` between the route's result and the exact difference, over all sites; `norm_ratio`, the
    length of the result over the length of the difference; `cosines` per site.
  """
  flat_positive = tree.flatten(positive, models.is_delta_leaf)
  flat_negative = tree.flatten(negative, models.is_delta_leaf)
  sums = {
    path: _route_at(path, flat_positive.get(path), flat_negative.get(path), base)
    for path in {**flat_positive, **flat_negative}
  }
  # Sites may nearly cancel, so their sums are exact.
  product = math.fsum(product for product, _, _ in sums.values())
  route = math.fsum(route for _, route, _ in sums.values())
  exact = math.fsum(exact for _, _, exact in sums.values())
  return {
    'cosine': _ratio(product, math.sqrt(route * exact)),
    'norm_ratio': _ratio(math.sqrt(route), math.sqrt(exact)),
    'cosines': {
      path: _ratio(product, math.sqrt(route * exact))
      for path, (product, route, exact) in sums.items()
    },
  }


def _route_at(
  path: str, positive: LowRank | Dense | None, negative: LowRank | Dense | None, base: Checkpoint
) -> tuple[float, float, float]:
  """Three sums over a site: route times exact change, squared route, squared exact change."""
  site = models.delta_sites(base.config)[path]
  layers = site.shape[0] if site.stack else 1
  plus_changes = _changes(path, positive, layers)
  minus_changes = _changes(path, negative, layers)
  product = 0.0
  route = 0.0
  exact = 0.0
  for layer, (plus, minus) in enumerate(zip(plus_changes, minus_changes)):
    plus = plus.reshape(-1)
    minus = minus.reshape(-1)
    # A bias that the base does not have starts from zero.
    weight = np.zeros(1, np.float32)
    if path in base.rows:
      weight = _round(base.layer(path, layer).reshape(-1))
    # What the merged checkpoints hold is subtracted in full precision.
    merged_plus = _round(weight + plus).astype(np.float64)
    merged_minus = _round(weight + minus)
    rounded = merged_plus - merged_minus
    difference = plus.astype(np.float64) - minus
    product += float((rounded * difference).sum())
    route += float(np.square(rounded).sum())
    exact += float(np.square(difference).sum())
  return product, route, exact


def _changes(path: str, leaf: LowRank | Dense | None, layers: int) -> Iterable[np.ndarray]:
  if leaf is None:
    # One zero is broadcast against the other side's change.
    return [np.zeros(1, np.float32)] * layers
  return gram.layer_changes(path, leaf)


def _round(x: Any) -> np.ndarray:
  return np.asarray(x, np.float32).astype(jnp.bfloat16).astype(np.float32)


def _ratio(x: float, y: float) -> float:
  return x / y if y > 0 else 0.0
