"""Steered parameters: base plus alpha times the change, added in float32 and rounded, with what the
rounding lost.
"""

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
  """The steered parameters (numpy, added in float32, rounded to `dtype`), and what rounding did to
  the change.

  One layer of one parameter is dense at a time.

  Returns:
    The parameters, and {'dtype', 'realised_error': |(merged - base) - alpha * delta| / |alpha *
    delta| over all changed sites, 'realised_errors': per site}.

  Raises:
    InputError: the delta does not fit, or the base has no parameter for a change (see
      folding.fold).
  """
  models.check_delta(base.config, delta)
  flat, changes, sums = tree.flatten(base.params), tree.flatten(delta, models.is_delta_leaf), {}
  for path in changes:
    if path not in flat:
      raise InputError(f"the direction changes '{path}', for which the model has no parameter")
  merged = {path: np.array(leaf, dtype) for path, leaf in flat.items()}
  for path, leaf in changes.items():
    before = np.asarray(flat[path])
    stack = gram.stack_axes(path)
    layers = zip(before, merged[path]) if stack else [(before, merged[path])]
    changed = gram.layer_changes(path, leaf)
    sums[path] = [
      _merge_layer(weight, target, alpha * change)
      for (weight, target), change in zip(layers, changed)
    ]
  errors = {path: relative(parts) for path, parts in sums.items()}
  realised = relative([part for parts in sums.values() for part in parts])
  return tree.unflatten(merged), {
    'dtype': dtype,
    'realised_error': realised,
    'realised_errors': errors,
  }


def _merge_layer(before: np.ndarray, target: np.ndarray, change: np.ndarray) -> tuple[float, float]:
  """Writes `before + change` into target; squared norms of what rounding lost of the change, and of
  the change.
  """
  change = change.reshape(before.shape)
  before = before.astype(np.float32)
  target[...] = before + change
  lost = (target.astype(np.float32) - before) - change
  return tuple(float(np.square(x).sum(dtype=np.float64)) for x in (lost, change))


def relative(parts: Sequence[tuple[float, float]]) -> float:
  """The relative norm of what is lost, from (squared norm of it, of the whole) of each part."""
  lost, total = (math.fsum(values) for values in zip(*parts))
  return math.sqrt(lost / total) if total > 0 else 0.0
