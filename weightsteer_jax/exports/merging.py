"""Steered parameters: base plus alpha times the change, rounded, and the loss by rounding."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import gram
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

PyTree = Any


def merge(
  base: models.Model, delta: PyTree, alpha: float, dtype: str
) -> tuple[PyTree, dict[str, Any]]:
  """The steered parameters, and the loss of the change by rounding.

  Added in float32, one layer of one parameter at a time, and rounded to `dtype`.

  Returns:
    The parameters as numpy arrays, and {'dtype', 'realised_error': |(merged - base) - alpha *
    delta| / |alpha * delta| over all changed sites, 'realised_errors': the same per site}.

  Raises:
    InputError: if the delta has other shapes, or the base has no parameter for a change (see
      folding.fold).
  """
  models.check_delta(base.config, delta)
  params = tree.flatten(base.params)
  changes = tree.flatten(delta, models.is_delta_leaf)
  for path in changes:
    if path not in params:
      raise InputError(f"the direction changes '{path}', for which the model has no parameter")
  # Copies in the dtype to write, whose changed layers are overwritten below.
  merged = {path: np.array(leaf, dtype) for path, leaf in params.items()}
  squares: dict[str, list[tuple[float, float]]] = {}
  for path, leaf in changes.items():
    before = np.asarray(params[path])
    after = merged[path]
    layers = [(before, after)]
    # Layer by layer, so that one dense change is in memory at a time.
    if gram.stack_axes(path):
      layers = list(zip(before, after))
    squares[path] = []
    changes_by_layer = gram.layer_changes(path, leaf)
    for (weight, target), change in zip(layers, changes_by_layer):
      pair = _merge_layer(weight, target, alpha * change)
      squares[path].append(pair)
  # Relative to all of the change, and for each site to the site's own.
  all_squares: list[tuple[float, float]] = []
  errors = {}
  for path, pairs in squares.items():
    all_squares += pairs
    errors[path] = relative(pairs)
  facts = {'dtype': dtype, 'realised_error': relative(all_squares), 'realised_errors': errors}
  return tree.unflatten(merged), facts


def _merge_layer(before: np.ndarray, target: np.ndarray, change: np.ndarray) -> tuple[float, float]:
  """Writes `before + change` into target.

  Returns:
    The squared norms of the loss by rounding, and of the change.
  """
  change = change.reshape(before.shape)
  before = before.astype(np.float32)
  # A view of the merged array, whose dtype rounds the sum.
  target[...] = before + change
  # In this order, because target and before are near each other and little of them is lost.
  realised = target.astype(np.float32) - before
  lost = realised - change
  return _squared_norm(lost), _squared_norm(change)


def _squared_norm(x: np.ndarray) -> float:
  # Summed in float64: a kernel has millions of small squares.
  squares = np.square(x)
  return float(squares.sum(dtype=np.float64))


def relative(parts: Sequence[tuple[float, float]]) -> float:
  """The norm of a loss relative to the whole, from (squared norm lost, of the whole) of parts."""
  lost = math.fsum(part[0] for part in parts)
  total = math.fsum(part[1] for part in parts)
  # A direction scaled by 0 has nothing to lose.
  if not total > 0:
    return 0.0
  return math.sqrt(lost / total)
