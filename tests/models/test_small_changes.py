"""Changes far below a step of bfloat16, applied unmerged: what is left of each kind of change.

A bfloat16 number has 8 significant bits: a step is 0.4 to 0.8 % of its size. A change of 0.1 % is
lost in most outputs if it is added after they are rounded. Added before, it moves an output by a
whole step as often as is right on average: the slope of what is left is 1.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.test_deltas import CONFIG, random_params
from weightsteer_jax import models
from weightsteer_jax.models import Dense, Edit, LowRank
from weightsteer_jax.models import moe as mixtures
from weightsteer_jax.models.decoder import Embedding
from weightsteer_jax.models.layers import Projection

# Of the outputs' size: a quarter of bfloat16's smallest step.
SMALL = 0.001
# As wide as a small model: narrower sums come out alike whatever their order.
SIZES = dict(B=1, T=256, D=576, F=384, E=4)


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def slope(outputs, edit_of, expected):
  """Share of the expected change that is left in bfloat16, by least squares over all outputs.

  Args:
    outputs: maps a tuple of edits to outputs in bfloat16.
    edit_of: maps a factor to the edit with the change times the factor.
    expected: the change of the outputs for a factor of 1, in float64.
  """
  run = jax.jit(outputs)
  base = np.asarray(run(()), np.float64)
  factor = SMALL * base.std() / expected.std()
  assert np.array_equal(run((edit_of(0.0),)), run(())), 'at alpha 0 it is not the base'
  change = np.asarray(run((edit_of(factor),)), np.float64) - base
  exact = factor * expected
  return (change * exact).sum() / np.square(exact).sum()


def projection(bias=False):
  rngs = nnx.Rngs(0)
  layer = Projection('BTD,DF->BTF', SIZES, bias=bias, dtype=jnp.bfloat16, rngs=rngs)
  if bias:
    layer.bias[...] = normal(5, SIZES['F']).astype(jnp.bfloat16)
  return layer


X_BTD = normal(1, 1, SIZES['T'], SIZES['D']).astype(jnp.bfloat16)
A_DR = normal(2, SIZES['D'], 8)
B_RF = normal(3, 8, SIZES['F'])
VECTOR_F = normal(4, SIZES['F'])


def product(x, *kernels):
  factors = [np.asarray(array, np.float64) for array in (x, *kernels)]
  return functools.reduce(np.matmul, factors)


CHANGES = {
  'low rank': ('kernel', LowRank(A_DR, B_RF), product(X_BTD, A_DR, B_RF)),
  'dense': ('kernel', Dense(A_DR @ B_RF), product(X_BTD, A_DR @ B_RF)),
  'bias': ('bias', Dense(VECTOR_F), np.broadcast_to(np.float64(VECTOR_F), (1, 256, 384))),
}


@pytest.mark.parametrize('has_bias', [False, True], ids=['plain', 'with a bias'])
@pytest.mark.parametrize('kind', CHANGES)
def test_a_small_change_of_a_projection_is_whole_on_average(kind, has_bias):
  layer = projection(has_bias)
  part, leaf, expected = CHANGES[kind]

  def edit_of(factor):
    return Edit({part: leaf}, jnp.full(1, factor))

  # 98,304 outputs: the slope's own error is 0.02.
  assert slope(functools.partial(layer, X_BTD), edit_of, expected) == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize('kind', ['low rank', 'dense', 'bias'])
def test_a_small_change_of_experts_is_whole_on_average(kind):
  """Each row has one expert, and all experts have the same change."""
  part, leaf, expected = CHANGES[kind]
  kernel_EDF = normal(6, 4, SIZES['D'], SIZES['F']).astype(jnp.bfloat16)
  stacked = jax.tree.map(lambda array: jnp.stack([array] * 4), leaf)
  sizes_E = jnp.array([100, 0, 56, 100])
  expert_J = jnp.repeat(jnp.arange(4), sizes_E, total_repeat_length=256)

  def outputs(edits):
    changes = {'kernel': (), 'bias': ()} | {part: edits}
    return mixtures._project(X_BTD[0], kernel_EDF, 'JD,EDF->JF', changes, sizes_E, expert_J, None)

  def edit_of(factor):
    return Edit(stacked, jnp.full(256, factor))

  assert slope(outputs, edit_of, expected[0]) == pytest.approx(1, abs=0.08)


def test_a_small_vector_on_the_residual_stream_is_whole_on_average():
  """The mean of the stream over 2,048 tokens moves by the vector."""
  config = dataclasses.replace(CONFIG, num_layers=1)
  params = random_params(config, jnp.bfloat16)
  tokens = jax.random.randint(jax.random.key(7), (64, 32), 0, config.vocab_size)
  weights = jnp.full(tokens.shape, 1 / tokens.size)
  vector_LD = normal(8, 1, config.width)

  @jax.jit
  def mean_D(edits):
    batch = models.TokenBatch(tokens)
    return models.residual_sums(config, params, batch, weights, edits=edits)[1]

  def edit_of(factor):
    return Edit({'layers': {'residual': Dense(vector_LD)}}, jnp.full(64, factor))

  assert slope(mean_D, edit_of, np.float64(vector_LD[0])) == pytest.approx(1, abs=0.05)


def test_a_small_change_of_scaled_embeddings_is_whole_on_average():
  """Gemma scales its embeddings: a changed row is rounded after the scale, not before."""
  config = dataclasses.replace(CONFIG, vocab_size=1024, width=96, embedding_scale=96**0.5)
  table_VD = normal(9, 1024, 96).astype(jnp.bfloat16)
  embed = Embedding(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  embed.embedding[...] = table_VD
  tokens = jnp.arange(1024)[None]
  change_VD = normal(10, 1024, 96)
  scale = np.float64(jnp.bfloat16(config.embedding_scale))

  def edit_of(factor):
    return Edit({'embedding': Dense(change_VD)}, jnp.full(1, factor))

  expected = scale * np.float64(change_VD)[None]
  outputs = functools.partial(embed, tokens)
  assert slope(outputs, edit_of, expected) == pytest.approx(1, abs=0.08)
