"""Lower ranks against the SVD of the dense change in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from weightsteer_jax import directions, models
from weightsteer_jax.directions import Direction
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

from . import oracle


def kernel64(direction, path: str) -> np.ndarray:
  """The change of a kernel, float64 [L, I, O]."""
  leaf = tree.get(direction.delta, path)
  if isinstance(leaf, Dense):
    value = np.asarray(leaf.value, np.float64)
    return value.reshape(value.shape[0], value.shape[1], -1)
  a = np.asarray(leaf.a, np.float64)
  b = leaf.scale * np.asarray(leaf.b, np.float64)
  a_LIR = a.reshape(len(a), -1, a.shape[-1])
  b_LRO = b.reshape(len(b), b.shape[1], -1)
  return np.einsum('LIR,LRO->LIO', a_LIR, b_LRO)


def best_error(change: np.ndarray, rank: int) -> float:
  """Relative Frobenius error of the nearest matrices of that rank, over all layers."""
  squares_LR = np.square(np.linalg.svd(change, compute_uv=False))
  lost = squares_LR[:, rank:].sum()
  return float(np.sqrt(lost / squares_LR.sum()))


def test_recompress_finds_the_rank_and_keeps_the_change(untied_model):
  x = oracle.random_direction(untied_model, 1, kinds='low_rank', rank=2)
  y = oracle.random_direction(untied_model, 2, kinds='low_rank', rank=2)
  # x comes twice: six factors for a change of rank four.
  redundant = directions.add(directions.add(x, y), directions.scale(x, 0.5))
  small = directions.recompress(redundant)
  for path in ('layers/attn/o/kernel', 'layers/mlp/down/kernel'):
    np.testing.assert_allclose(kernel64(small, path), kernel64(redundant, path), atol=2e-6)
  assert tree.get(redundant.delta, 'layers/mlp/up/kernel').a.shape[-1] == 6
  assert tree.get(small.delta, 'layers/mlp/up/kernel').a.shape[-1] == 4


@pytest.mark.parametrize('rank', [1, 4, 12])
def test_compress_is_the_best_of_its_rank_and_tells_its_error(untied_model, rank):
  random = np.random.default_rng(0)
  sites = models.sites(untied_model.config)
  shapes = {name: sites[f'layers/mlp/{name}/kernel'].shape for name in ('gate', 'up', 'down')}
  leaves = {
    name: {'kernel': Dense(jnp.asarray(random.standard_normal(shape), jnp.float32))}
    for name, shape in shapes.items()
  }
  low_rank = oracle.random_direction(untied_model, 1)
  delta = {**low_rank.delta, 'layers': {'mlp': leaves, 'attn': low_rank.delta['layers']['attn']}}
  full = Direction(delta, low_rank.meta)
  small, errors = directions.compress(full, rank)
  for name in ('gate', 'up', 'down'):
    path = f'layers/mlp/{name}/kernel'
    change = kernel64(full, path)
    compressed = kernel64(small, path)
    error = np.linalg.norm(compressed - change) / np.linalg.norm(change)
    assert isinstance(tree.get(small.delta, path), LowRank)
    assert abs(error - best_error(change, rank)) < 1e-5
    assert abs(errors[path] - error) < 1e-5
  q = kernel64(full, 'layers/attn/q/kernel')
  assert abs(errors['layers/attn/q/kernel'] - best_error(q, rank)) < 1e-5
  assert isinstance(small.delta['embed']['embedding'], Dense)
  assert 'embed/embedding' not in errors
  assert small.meta['compression'] == {'rank': rank, 'relative_errors': errors}


def test_a_rank_below_one_is_refused(untied_model):
  with pytest.raises(InputError, match='must be 1 or more, not 0'):
    directions.compress(oracle.random_direction(untied_model, 1), 0)
