"""Mixes of K directions: each alone, each pair, all, and each orthogonal to the others.

Every mix is linear, so K deltas are held whatever the number of mixes. The part of w_j in the span
of the others is `sum_k c_k w_k`, with c from the normal equations of the Gram matrix over the whole
parameter vector.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from weightsteer_jax import directions

# Coefficients of the directions, in their order.
Mix = tuple[float, ...]
TOGETHER = ' + '
WITHOUT = ' without the others'
# Below this share of the largest eigenvalue a Gram matrix of float32 factors holds rounding.
ROUNDING = 1e-6


def gram_matrix(held: Sequence[directions.Direction]) -> np.ndarray:
  """Inner products [K, K] over all parameters."""
  count = len(held)
  products_KK = np.zeros((count, count))
  for i, j in itertools.combinations_with_replacement(range(count), 2):
    products_KK[i, j] = directions.dot(held[i], held[j])
    products_KK[j, i] = products_KK[i, j]
  return products_KK


def cosines(gram_KK: np.ndarray) -> np.ndarray:
  """Cosines [K, K] from inner products."""
  lengths_K = np.sqrt(np.diag(gram_KK))
  return gram_KK / np.outer(lengths_K, lengths_K)


def projection(gram_KK: np.ndarray, j: int) -> Mix:
  """Coefficients of w_j less its part in the span of the others.

  >>> [round(c, 6) for c in projection(np.array([[4.0, 1.0], [1.0, 2.0]]), 0)]
  [1.0, -0.5]
  """
  others = [k for k in range(len(gram_KK)) if k != j]
  inverse = np.linalg.pinv(gram_KK[np.ix_(others, others)], rcond=ROUNDING, hermitian=True)
  shares = inverse @ gram_KK[others, j]
  mix = np.zeros(len(gram_KK))
  mix[j] = 1.0
  mix[others] = -shares
  return tuple(float(coefficient) for coefficient in mix)


def all_of(alphas: Mapping[str, float], gram_KK: np.ndarray) -> dict[str, Mix]:
  """{name: coefficients} of every mix, the single directions first.

  Args:
    alphas: {direction: the strength of the direction in every mix}.
  """
  names = list(alphas)
  strengths_K = np.array([alphas[name] for name in names])
  mixes: dict[str, Mix] = {}
  sizes = sorted({1, 2, len(names)})
  for size in sizes:
    for chosen in itertools.combinations(range(len(names)), size):
      taken_K = np.isin(np.arange(len(names)), chosen)
      name = TOGETHER.join(names[k] for k in chosen)
      mixes[name] = tuple((strengths_K * taken_K).tolist())
  for j, name in enumerate(names):
    rest_K = strengths_K[j] * np.array(projection(gram_KK, j))
    mixes[f'{name}{WITHOUT}'] = tuple(rest_K.tolist())
  return mixes
