"""Weighted sums of deltas that stay exact in factors, and directions projected out of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import algebra, gram
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

PyTree = Any
Leaf = LowRank | Dense
# {path: a weight for each layer (and expert), in the shape of the path's stack}
Weights = Mapping[str, np.ndarray]

# {path: inner products, one for each layer and expert, float64 [L]}
Products = dict[str, np.ndarray]

# Below this share of a direction's norm, what is left after a projection is rounding: norms come
# from sums of squares in float32, and the root of their rounding is 3e-4.
NOTHING = 1e-3


def scaled(delta: PyTree, weights: Weights) -> PyTree:
  """The delta with each layer of each site multiplied by a weight, without sites of weight 0."""
  leaves = {}
  for path, leaf in tree.flatten(delta, models.is_delta_leaf).items():
    weight = np.asarray(weights[path], np.float32)
    if weight.any():
      leaves[path] = _scaled(leaf, weight)
  return tree.unflatten(leaves)


def weighted_sum(deltas: Sequence[PyTree], weights: Sequence[Weights]) -> PyTree:
  """The sum of weighted deltas; the ranks of factors add up."""
  total: PyTree = {}
  for delta, its in zip(deltas, weights):
    total = algebra.add_deltas(total, scaled(delta, its))
  return total


def is_zero(delta: PyTree) -> bool:
  """Whether a delta changes nothing; the first site that does ends the search."""
  for path, leaf in tree.flatten(delta, models.is_delta_leaf).items():
    if gram.matrix_products(path, leaf, leaf).sum() > 0:
      return False
  return True


def projected_out(
  delta: PyTree, others: Sequence[tuple[str, PyTree]], *, by_module: bool
) -> tuple[PyTree, float]:
  """The delta without its parts along other deltas, and the share of its norm that is left.

  Others that are not at right angles to each other are a subspace, and all of it is projected out:
  with G the inner products of the others and b those with the delta, c solves G c = b, and the
  delta becomes delta - sum of c_i other_i.

  Args:
    others: (name, delta).
    by_module: each layer of each site is a vector of its own, not the whole delta.

  Raises:
    InputError: if an other is zero, or nothing is left of the delta.
  """
  names = ' and '.join(name for name, _ in others)
  products = [_products(delta, other) for _, other in others]
  grams = [[_products(x, y) for _, y in others] for _, x in others]
  for i, (name, _) in enumerate(others):
    if not any(values.any() for values in grams[i][i].values()):
      raise InputError(f'{name} is zero where the recipe applies: there is nothing to project out')
  solve = _solved_by_module if by_module else _solved
  coefficients = solve(products, grams)
  before = _norm(delta)
  for (_, other), its in zip(others, coefficients):
    part = scaled(other, _in_stack_shape(its, other))
    delta = algebra.add_deltas(delta, algebra.scale_delta(part, -1.0))
  left = _norm(delta) / before if before else 0.0
  if left < NOTHING:
    raise InputError(f'nothing is left when {names} is projected out: all of it lies along there')
  return delta, left


def _scaled(leaf: Leaf, weight: np.ndarray) -> Leaf:
  if isinstance(leaf, Dense):
    value = np.asarray(leaf.value, np.float32)
    return Dense(jnp.asarray(_stretched(weight, value) * value))
  b = np.asarray(leaf.b, np.float32)
  return LowRank(leaf.a, jnp.asarray(_stretched(np.float32(leaf.scale) * weight, b) * b))


def _stretched(weight: np.ndarray, like: np.ndarray) -> np.ndarray:
  """The weights with as many axes as the array, which has their axes first."""
  return weight.reshape(weight.shape + (1,) * (like.ndim - weight.ndim))


def _products(x: PyTree, y: PyTree) -> Products:
  """The inner products at the sites that both change."""
  flat_y = tree.flatten(y, models.is_delta_leaf)
  products = {}
  for path, leaf in tree.flatten(x, models.is_delta_leaf).items():
    if path in flat_y:
      products[path] = gram.matrix_products(path, leaf, flat_y[path])
  return products


def _solved(products: list[Products], grams: list[list[Products]]) -> list[Products]:
  """{path: a coefficient for each layer}, the same everywhere, for each of the others."""
  matrix = np.array([[_total(one) for one in row] for row in grams])
  right = np.array([_total(one) for one in products])
  solution = np.linalg.lstsq(matrix, right, rcond=None)[0]
  found = []
  for i, coefficient in enumerate(solution):
    found.append({path: np.full(len(its), coefficient) for path, its in grams[i][i].items()})
  return found


def _solved_by_module(products: list[Products], grams: list[list[Products]]) -> list[Products]:
  """{path: a coefficient for each layer}, of each layer's own, for each of the others."""
  count = len(products)
  # Where the delta changes nothing, nothing is to be taken out.
  found: list[Products] = [
    {path: np.zeros(len(its)) for path, its in grams[i][i].items()} for i in range(count)
  ]
  for path in {path for one in products for path in one}:
    present = [i for i in range(count) if path in products[i]]
    right_LK = np.stack([products[i][path] for i in present], axis=-1)
    gram_KKL = np.array([[grams[i][j][path] for j in present] for i in present])
    inverse_LKK = np.linalg.pinv(np.moveaxis(gram_KKL, -1, 0), hermitian=True)
    solution_LK = (inverse_LKK @ right_LK[..., None])[..., 0]
    for place, i in enumerate(present):
      found[i][path] = solution_LK[:, place]
  return found


def _in_stack_shape(coefficients: Products, delta: PyTree) -> Weights:
  """The coefficients with an axis for layers and one for experts, as in the delta's leaves."""
  shaped = {}
  for path, leaf in tree.flatten(delta, models.is_delta_leaf).items():
    stack = gram.change_shape(path, leaf)[: gram.stack_axes(path)]
    shaped[path] = coefficients[path].reshape(stack)
  return shaped


def _total(products: Products) -> float:
  return math.fsum(float(value) for values in products.values() for value in values)


def _norm(delta: PyTree) -> float:
  return math.sqrt(math.fsum(gram.squared_norms(delta).values()))
