"""Random controls: as singular values go they are the direction, and their cosines vary as they
must."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from directions import oracle

from weightsteer_jax import directions, models
from weightsteer_jax.experiments.monitoring import controls, measure
from weightsteer_jax.experiments.monitoring.changes import Held
from weightsteer_jax.experiments.monitoring.controls import Draws
from weightsteer_jax.models import Dense
from weightsteer_jax.runtime import tree


def some(delta, *paths):
  """The delta at some of its sites: each shape is a program to compile."""
  return tree.unflatten({path: tree.flatten(delta, models.is_delta_leaf)[path] for path in paths})


def test_a_control_has_the_rank_and_the_singular_values_of_the_direction():
  random = np.random.default_rng(0)
  a, b = (
    jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((2, 12, 3), (2, 3, 20))
  )
  keys = jax.random.split(jax.random.key(1), 2)
  for leaf in ((a, b), (jnp.matmul(a, b),)):
    shuffled = controls._shuffled(keys, leaf)
    for m in range(2):
      matrices = [
        np.linalg.multi_dot([np.asarray(part[m], np.float64) for part in parts])
        if len(parts) > 1
        else np.asarray(parts[0][m], np.float64)
        for parts in (leaf, shuffled)
      ]
      values = [np.linalg.svd(matrix, compute_uv=False) for matrix in matrices]
      np.testing.assert_allclose(*values, atol=1e-5)
      assert np.abs(matrices[0] - matrices[1]).max() > 0.5


def test_products_are_those_of_the_control_written_out():
  """Low-rank or dense on either side, the same draw is the same control."""
  random = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(random.standard_normal(shape), jnp.float32)

  x, y, numbers = (draw(2, 12, 3), draw(2, 3, 20)), (draw(2, 12, 4), draw(2, 4, 20)), jnp.arange(2)
  dense_x, dense_y = (jnp.matmul(*x),), (jnp.matmul(*y),)
  found = [
    controls._products(jax.random.key(3), numbers, u, v, 5)
    for u in (x, dense_x)
    for v in (y, dense_y)
  ]
  keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 4), m) for m in range(2)]
  for m in range(2):
    (control,) = (
      np.asarray(part[0], np.float64)
      for part in controls._shuffled(keys[m][None], (dense_x[0][m : m + 1],))
    )
    assert found[0][4, m] == pytest.approx(
      np.sum(control * np.asarray(dense_y[0][m], np.float64)), rel=1e-4
    )
  for other in found[1:]:
    np.testing.assert_allclose(found[0], other, rtol=1e-4, atol=1e-3)


def test_cosines_of_random_directions_have_the_known_variance(model):
  """Mean 0, and for each matrix |M|^2 |W|^2 / (I O): rank 3 against rank 2, and against dense
  tables."""
  x, y = (
    some(
      oracle.random_direction(model, rank, rank=rank).delta,
      'layers/attn/q/kernel',
      'layers/mlp/up/kernel',
      'lm_head/kernel',
    )
    for rank in (3, 2)
  )
  measured = measure.measure(Held(x), {'w': Held(y)}, draws={'w': Draws(model.config, 0, 1000)})[
    'w'
  ]
  expected = measured.whole.null_std
  assert abs(measured.random.mean()) < 4 * expected / np.sqrt(1000)
  assert measured.random.std() == pytest.approx(expected, rel=4 / np.sqrt(2 * 1000))


def test_one_rank_one_matrix_has_the_variance_of_its_size():
  """The cosine of two unrelated rank-1 matrices of I x O entries has variance 1 / (I O), whatever
  they hold."""
  random = np.random.default_rng(0)
  u, v = (
    tuple(
      jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((1, 10, 1), (1, 1, 30))
    )
    for _ in range(2)
  )
  found = np.asarray(controls._products(jax.random.key(0), jnp.arange(1), u, v, 20000))[:, 0]
  lengths = [np.linalg.norm(np.asarray(a[0] @ b[0], np.float64)) for a, b in (u, v)]
  assert (found / np.prod(lengths)).var() == pytest.approx(1 / 300, rel=0.05)


def test_draws_do_not_depend_on_the_pieces(model):
  """A layer by itself meets the same controls as within its leaf, and another seed other ones."""
  paths = 'layers/mlp/down/kernel', 'lm_head/kernel'
  x = some(oracle.random_direction(model, 1).delta, *paths)
  y = some(directions.to_dense(oracle.random_direction(model, 2)).delta, *paths)
  draws = Draws(model.config, 7, 4)
  whole = measure.measure(Held(y), {'w': Held(x)}, draws={'w': draws})['w'].random

  class Pieces(Held):
    def pieces(self, path):
      first, leaf = next(super().pieces(path))
      layers = leaf.value.shape[0] if path.startswith('layers/') else 1
      for layer in range(layers):
        yield layer, self.piece(path, layer, 1)

  np.testing.assert_allclose(
    measure.measure(Pieces(y), {'w': Held(x)}, draws={'w': draws})['w'].random,
    whole,
    rtol=1e-4,
    atol=1e-6,
  )
  other = measure.measure(Held(y), {'w': Held(x)}, draws={'w': Draws(model.config, 8, 4)})[
    'w'
  ].random
  assert np.abs(other - whole).min() > 1e-6


def test_vectors_have_controls_too(model):
  random = np.random.default_rng(0)

  def delta():
    return tree.unflatten(
      {
        'final_norm/scale': Dense(jnp.asarray(random.standard_normal(16), jnp.float32)),
        'layers/mlp/down/bias': Dense(jnp.asarray(random.standard_normal((2, 16)), jnp.float32)),
      }
    )

  measured = measure.measure(
    Held(delta()), {'w': Held(delta())}, draws={'w': Draws(model.config, 0, 2000)}
  )['w']
  assert measured.random.std() == pytest.approx(measured.whole.null_std, rel=4 / np.sqrt(4000))
