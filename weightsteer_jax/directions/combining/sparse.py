"""TIES and DARE: of each tensor some elements are kept, and where signs disagree the majority's.

Tensors are those of a checkpoint, as in mergekit: the share that is kept is a share of a tensor.

Source: TIES, arXiv 2306.01708; DARE, arXiv 2311.03099; both as in mergekit 0.1.4,
mergekit/sparsify.py and merge_methods/generalized_task_arithmetic.py: `rescale` restores the sum of
absolute values, where DARE's paper divides by the density.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from weightsteer_jax.directions.combining.recipe import Recipe

# A sum of sizes below it is not restored.
LEAST_SUM = 1e-7


def merged(
  deltas: Sequence[np.ndarray],
  weights: Sequence[float],
  densities: Sequence[float],
  recipe: Recipe,
  tensor: str,
) -> np.ndarray:
  """The merge of some tensors, flat float32.

  Args:
    deltas: flat float32 tensors of one size.
    weights: what each is multiplied by once its elements are chosen.
    densities: shares of elements to keep.
    tensor: the name, on which DARE's draws depend.
  """
  kept = []
  for place, (delta, density) in enumerate(zip(deltas, densities)):
    if density >= 1:
      kept.append(delta)
      continue
    if recipe.method == 'ties':
      mask = largest(delta, density)
    else:
      mask = drawn(delta.size, density, recipe.seed, f'{place} {tensor}')
    kept.append(_masked(delta, mask, recipe.rescale))
  weights_K1 = np.asarray(weights, np.float32)[:, None]
  weighted_KN = np.stack(kept) * weights_K1
  if recipe.method == 'dare_linear':
    total = weighted_KN.sum(axis=0)
    divisor = np.full_like(total, weights_K1.sum())
    divisor[np.abs(divisor) < 1e-8] = 1
  else:
    agrees_KN = agreeing(weighted_KN)
    total = (weighted_KN * agrees_KN).sum(axis=0)
    divisor = (weights_K1 * agrees_KN).sum(axis=0)
    divisor[divisor == 0] = 1
  if recipe.normalize:
    total = total / divisor
  return np.float32(recipe.factor) * total


def largest(values: np.ndarray, density: float) -> np.ndarray:
  """A mask of the elements of largest size, so many as the density says, rounded down.

  >>> largest(np.array([1.0, -3.0, 2.0, 0.5]), 0.5)
  array([False,  True,  True, False])
  """
  count = int(density * values.size)
  mask = np.zeros(values.size, bool)
  if count:
    sizes = np.abs(values)
    mask[np.argpartition(sizes, values.size - count)[values.size - count :]] = True
  return mask


def drawn(size: int, density: float, seed: int, name: str) -> np.ndarray:
  """A mask of elements that are kept by chance; a function of seed and name alone."""
  word = int.from_bytes(hashlib.sha256(f'{seed} {name}'.encode()).digest()[:16], 'little')
  return np.random.Generator(np.random.Philox(word)).random(size, np.float32) < density


def agreeing(weighted_KN: np.ndarray) -> np.ndarray:
  """A mask of the elements whose sign is that of the sum over all directions.

  A sum of zero counts as positive; an element of zero agrees with nothing.

  >>> agreeing(np.array([[1.0, -2.0, 0.0], [-0.5, 1.0, 0.0]])).tolist()
  [[True, True, False], [False, False, False]]
  """
  majority_N = np.where(weighted_KN.sum(axis=0) >= 0, 1, -1)
  return np.sign(weighted_KN) == majority_N


def _masked(values: np.ndarray, mask: np.ndarray, rescale: bool) -> np.ndarray:
  masked = values * mask
  if not rescale:
    return masked
  before = np.abs(values).sum(dtype=np.float64)
  after = np.abs(masked).sum(dtype=np.float64)
  if before < LEAST_SUM or after < LEAST_SUM:
    return masked
  return masked * np.float32(before / after)
