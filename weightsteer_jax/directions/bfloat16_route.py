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
  # Merged as dicts and not as sets, so that the sites keep their order.
  paths = {**flat_positive, **flat_negative}
  products = {}
  routes = {}
  exacts = {}
  cosines = {}
  for path in paths:
    plus = flat_positive.get(path)
    minus = flat_negative.get(path)
    product, route, exact = _route_at(path, plus, minus, base)
    products[path] = product
    routes[path] = route
    exacts[path] = exact
    cosines[path] = _ratio(product, math.sqrt(route * exact))
  # Sites may nearly cancel, so their sums are exact.
  product = math.fsum(products.values())
  route = math.fsum(routes.values())
  exact = math.fsum(exacts.values())
  return {
    'cosine': _ratio(product, math.sqrt(route * exact)),
    'norm_ratio': _ratio(math.sqrt(route), math.sqrt(exact)),
    'cosines': cosines,
  }


def _route_at(
  path: str, positive: LowRank | Dense | None, negative: LowRank | Dense | None, base: Checkpoint
) -> tuple[float, float, float]:
  """Three sums over a site: route times exact change, squared route, squared exact change."""
  site = models.delta_sites(base.config)[path]
  layers = site.shape[0] if site.stack else 1
  plus_changes = _changes(path, positive, layers)
  minus_changes = _changes(path, negative, layers)
  # A site's dense changes may be too large to hold at once, so the sums grow layer by layer.
  product = 0.0
  route = 0.0
  exact = 0.0
  for layer, (plus, minus) in enumerate(zip(plus_changes, minus_changes)):
    # Flat, as a layer and the changes of its factors have their axes grouped differently.
    plus = plus.reshape(-1)
    minus = minus.reshape(-1)
    # A bias that the base does not have starts from zero.
    weight = np.zeros(1, np.float32)
    # The route begins with a base in bfloat16, whatever dtype its checkpoint has.
    if path in base.rows:
      weight = _round(base.layer(path, layer).reshape(-1))
    # What the merged checkpoints hold is subtracted in full precision.
    merged_plus = _round(weight + plus).astype(np.float64)
    merged_minus = _round(weight + minus)
    rounded = merged_plus - merged_minus
    # float64 takes the float32 changes exactly, so no rounding of ours is counted as the route's.
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
  """The values rounded to bfloat16, held in float32."""
  wide = np.asarray(x, np.float32)
  rounded = wide.astype(jnp.bfloat16)
  # Back in float32: NumPy would round every sum of bfloat16 arrays again.
  return rounded.astype(np.float32)


def _ratio(x: float, y: float) -> float:
  # The route's length is 0 where both changes vanish in every sum.
  return x / y if y > 0 else 0.0
