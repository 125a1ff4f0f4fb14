"""Sums, lengths and angles of directions against dense float64 arithmetic in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from weightsteer_jax import directions, models
from weightsteer_jax.directions import Direction
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

from . import oracle


def dense64(direction) -> dict[str, np.ndarray]:
  """{path: change, flat, float64}."""
  changes = {}
  for path, leaf in oracle.leaves_of(direction.delta).items():
    if isinstance(leaf, Dense):
      changes[path] = np.asarray(leaf.value, np.float64).ravel()
      continue
    # Every low-rank site here is stacked along layers.
    a = np.asarray(leaf.a, np.float64)
    b = leaf.scale * np.asarray(leaf.b, np.float64)
    layers = []
    for a_layer, b_layer in zip(a, b):
      a_IR = a_layer.reshape(-1, a_layer.shape[-1])
      b_RO = b_layer.reshape(b_layer.shape[0], -1)
      layers.append(a_IR @ b_RO)
    changes[path] = np.stack(layers).ravel()
  return changes


def flat64(direction, paths) -> np.ndarray:
  """The whole change as a vector, float64, with zeros at the paths that do not change."""
  dense = dense64(direction)
  return np.concatenate([dense.get(path, np.zeros(size)) for path, size in paths.items()])


@pytest.fixture(scope='module')
def pair(untied_model):
  """A direction of factors, embedding and head, and one that is dense.

  The dense direction has no embedding, and changes the residual stream.
  """
  x = oracle.random_direction(untied_model, 1, rank=3)
  random = np.random.default_rng(2)
  shapes = {
    path: site.shape
    for path, site in models.sites(untied_model.config).items()
    if path != 'embed/embedding'
  }
  shapes['layers/residual'] = (2, 16)
  leaves = {
    path: Dense(jnp.asarray(random.standard_normal(shape), jnp.float32))
    for path, shape in shapes.items()
  }
  return x, Direction(tree.unflatten(leaves), x.meta)


def sizes(*items) -> dict[str, int]:
  return {path: change.size for item in items for path, change in dense64(item).items()}


def test_dot_norm_and_cosine(untied_model, pair):
  low_rank, dense = pair
  other = oracle.random_direction(untied_model, 3, rank=5)
  for x, y in [
    (low_rank, other),
    (low_rank, dense),
    (dense, low_rank),
    (dense, dense),
    (low_rank, low_rank),
  ]:
    paths = sizes(x, y)
    u = flat64(x, paths)
    v = flat64(y, paths)
    length = np.linalg.norm(u) * np.linalg.norm(v)
    assert abs(directions.dot(x, y) - u @ v) < 1e-5 * length
    assert abs(directions.cosine(x, y) - u @ v / length) < 1e-5
    assert abs(directions.norm(x) - np.linalg.norm(u)) < 1e-5 * np.linalg.norm(u)


def test_per_site(pair):
  x, y = pair
  dense_x = dense64(x)
  dense_y = dense64(y)
  cosines = directions.cosine_per_site(x, y)
  assert set(cosines) == set(dense_x) & set(dense_y)
  assert 'embed/embedding' not in cosines
  for path, cosine in cosines.items():
    u = dense_x[path]
    v = dense_y[path]
    assert abs(cosine - u @ v / np.linalg.norm(u) / np.linalg.norm(v)) < 1e-5
  for path, norm in directions.norm_per_site(x).items():
    assert abs(norm / np.linalg.norm(dense_x[path]) - 1) < 1e-5


def test_nearly_equal_sides_keep_their_difference(untied_model):
  # The two sides of a direction may have a cosine of 0.999; their difference must still be right.
  x = oracle.random_direction(untied_model, 1, kinds='low_rank')
  random = np.random.default_rng(5)

  def nudge(factor):
    return factor + 0.002 * np.float32(random.standard_normal(factor.shape))

  nudged = Direction(jax.tree.map(nudge, x.delta), x.meta)
  difference = directions.subtract(x, nudged)
  exact = np.concatenate(list(dense64(difference).values()))
  assert directions.cosine(x, nudged) > 0.999
  assert abs(directions.norm(difference) / np.linalg.norm(exact) - 1) < 1e-3


def test_sums_multiples_and_projection(untied_model, pair):
  x, y = pair
  z = oracle.random_direction(untied_model, 4, rank=2)
  paths = sizes(x, y, z)
  u, v, w = (flat64(direction, paths) for direction in (x, y, z))
  nearest = (u @ w) / (w @ w) * w
  np.testing.assert_allclose(flat64(directions.add(x, y), paths), u + v, atol=1e-6)
  np.testing.assert_allclose(flat64(directions.subtract(x, z), paths), u - w, atol=1e-6)
  np.testing.assert_allclose(flat64(directions.scale(x, -2.5), paths), -2.5 * u, atol=1e-6)
  np.testing.assert_allclose(flat64(directions.negate(y), paths), -v, atol=0)
  np.testing.assert_allclose(flat64(directions.project(x, z), paths), nearest, atol=1e-6)
  np.testing.assert_allclose(flat64(directions.to_dense(x), paths), u, atol=1e-6)
  q = directions.subtract(x, z).delta['layers']['attn']['q']['kernel']
  assert isinstance(q, LowRank)
  assert q.a.shape[-1] == 3 + 2
  assert q.scale == 1.0


def test_other_architectures_and_bases_are_refused(untied_model, tied_model, tmp_path):
  x = oracle.random_direction(untied_model, 1)
  y = oracle.random_direction(tied_model, 2)
  with pytest.raises(InputError, match='different architectures: tied False / True'):
    directions.cosine(x, y)
  other = models.load(oracle.make_checkpoint(tmp_path / 'other', tied=False, seed=3))
  z = oracle.random_direction(other, 2)
  with pytest.raises(InputError, match=f'{x.base.digest}.*{z.base.digest}'):
    directions.add(x, z)
  assert directions.add(x, z, allow_other_base=True).base.digest == x.base.digest
  # Monitoring measures angles between directions of different fine-tunes.
  directions.cosine(x, z)
