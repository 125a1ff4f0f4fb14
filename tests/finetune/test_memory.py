"""What a step needs of memory, against the compiler's own count; what is chosen by it; and that
nothing changes by it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from meshes import CONFIG
from runtime.test_sharding import QWEN_7B, mesh

from weightsteer_jax import config as configs
from weightsteer_jax import models
from weightsteer_jax.data import batches
from weightsteer_jax.finetune import memory, optimizer
from weightsteer_jax.finetune import step as steps
from weightsteer_jax.finetune.loss import loss
from weightsteer_jax.runtime import sharding
from weightsteer_jax.runtime.sharding import Layout

GIB = 2**30


@pytest.fixture
def gradient(checkpoint, make_examples):
  """(kind, policy) -> (delta, its compiled gradient)."""

  def make(kind, policy):
    model = checkpoint('qwen2').model
    delta = tiny.randomised(
      models.init_delta(model.config, kind, jax.random.key(0), rank=3), scale=0.02
    )
    batch = batches.fill(
      make_examples(4, shortest=17), [[0], [1], [2], [3]], num_rows=4, row_length=20
    )
    return delta, jax.jit(
      jax.grad(
        lambda delta: loss(
          model.config, model.params, delta, batch, remat=policy, key=jax.random.key(1), dropout=0.1
        )[0]
      )
    )

  return make


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['lora', 'full'])
def test_all_policies_give_the_same_gradients(gradient, kind):
  found = {}
  for policy in memory.POLICIES:
    delta, function = gradient(kind, policy)
    found[policy] = function(delta)
  largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(found['none']))
  for policy in ('dots', 'full'):
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6 * largest),
      found['none'],
      found[policy],
    )


@pytest.mark.parametrize('kind', ['lora', 'full'])
def test_a_policy_computes_again_what_it_says(gradient, kind):
  """Products in the traced gradient: 'dots' repeats the two of attention and those of low-rank
  changes, two for each of seven projections; 'full' all of the layer's, but for the last."""
  counts = {}
  for policy in memory.POLICIES:
    delta, function = gradient(kind, policy)
    counts[policy] = str(function.trace(delta).jaxpr).count('dot_general')
  assert counts['none'] < counts['dots'] <= counts['none'] + 2 + (14 if kind == 'lora' else 0)
  assert counts['full'] >= counts['dots'] + 6


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['lora', 'full'])
@pytest.mark.parametrize('policy', memory.POLICIES)
def test_the_estimate_is_within_a_factor_of_the_compilers(kind, policy):
  """Of a model that is deep and has long rows, so that what is kept is most of it: between 0.8 and
  1.6 times as much."""
  config = dataclasses.replace(
    CONFIG,
    num_layers=12,
    width=128,
    num_heads=8,
    num_kv_heads=4,
    head_dim=16,
    mlp_width=384,
    vocab_size=512,
    max_positions=512,
  )
  options = configs.FineTune(kind=kind, rank=8)
  load, recipe, layout = (
    memory.Load(kind, 8, 'float32', 4, 192),
    optimizer.adamw(options),
    sharding.single(),
  )
  state = memory.state_shapes(config, options, layout)
  numbers = jax.ShapeDtypeStruct((1, load.rows, load.tokens), jnp.int32)
  weights = jax.ShapeDtypeStruct(numbers.shape, jnp.float32)
  compiled = (
    steps.train_step_fn(config, recipe, remat=policy)
    .lower(
      state,
      models.abstract_params(config),
      batches.Batch(numbers, numbers, weights, numbers, numbers),
      optimizer.schedule(options, peak=1.0, total=1),
      0,
    )
    .compile()
  )
  used = compiled.memory_analysis().temp_size_in_bytes - 2 * sharding.bytes_on_device(state.delta)
  assert 0.8 < memory.activations(config, load, policy) / used < 1.6


@pytest.mark.parametrize('policy', memory.POLICIES)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('kind', ['lora', 'full', 'bias'])
def test_what_is_kept_of_a_layer_is_what_the_traced_step_keeps(kind, dtype, policy):
  """All that the pullback of the loss holds with an axis of layers and one of rows, but for a few
  numbers a token."""
  load, layers = memory.Load(kind, 8, dtype, 3, 60), 5
  config = dataclasses.replace(
    CONFIG, num_layers=layers, width=128, num_heads=8, head_dim=16, mlp_width=384
  )
  delta = jax.eval_shape(lambda: models.init_delta(config, kind, jax.random.key(0), rank=8))
  numbers, weights = (
    jax.ShapeDtypeStruct((load.rows, load.tokens), dtype) for dtype in (jnp.int32, jnp.float32)
  )
  batch = batches.Batch(numbers, numbers, weights, numbers, numbers)

  def pullback(params, delta, batch):
    return jax.vjp(lambda d: loss(config, params, d, batch, remat=policy)[0], delta)[1]

  kept = sum(
    math.prod(x.shape) * x.dtype.itemsize
    for x in jax.tree.leaves(
      jax.eval_shape(pullback, models.abstract_params(config, dtype), delta, batch)
    )
    if x.shape[:1] == (layers,) and load.rows in x.shape[1:2]
  )
  by_formula = layers * load.rows * load.tokens * memory._kept(config, load, policy, 1)
  assert 0.98 < by_formula / kept < 1.001


def test_less_is_computed_again_the_more_memory_there_is():
  """A 7B model in bfloat16, eight rows of 1,024 tokens: 14 GiB of weights, and of activations 41,
  28 or 8."""
  options, load = configs.FineTune(kind='lora'), memory.Load('lora', 32, 'bfloat16', 8, 1024)

  def choose(gib, **changes):
    return memory.choose_remat(
      QWEN_7B, dataclasses.replace(options, **changes), load, sharding.single(), memory=gib * GIB
    )

  assert [choose(gib) for gib in (20, 40, 56, 80, 140)] == ['full', 'full', 'dots', 'none', 'none']
  assert choose(20, remat='none') == 'none'


def test_as_many_go_together_as_are_worth_it_and_fit(monkeypatch):
  lora, full = configs.FineTune(kind='lora'), configs.FineTune(kind='full')
  layout, row = sharding.single(), memory.Load('lora', 32, 'bfloat16', 1, 256)

  def plan(options, load, gib, count=4):
    return memory.plan(QWEN_7B, options, load, layout, count=count, memory=gib * GIB)

  assert plan(lora, row, 140) == memory.Plan(1, 'none'), 'on a CPU it is not worth it'
  monkeypatch.setitem(memory.ENOUGH, 'cpu', memory.ENOUGH['gpu'])
  assert plan(lora, row, 140) == memory.Plan(4, 'none')
  assert plan(lora, dataclasses.replace(row, rows=64), 10_000).together == 1, (
    'rows enough by themselves'
  )
  assert plan(lora, row, 25).together < 4, 'a change takes memory too'
  assert (
    plan(
      dataclasses.replace(full, together='auto'), dataclasses.replace(row, kind='full'), 250
    ).together
    == 1
  )
  assert plan(dataclasses.replace(lora, together='off'), row, 140).together == 1
  assert plan(dataclasses.replace(lora, together='on'), row, 1) == memory.Plan(4, 'full')
  crowded = plan(lora, dataclasses.replace(row, rows=8, tokens=512), 80)
  assert (
    crowded.remat == plan(lora, dataclasses.replace(row, rows=8, tokens=512), 80, count=1).remat
  )


def test_a_device_of_a_mesh_holds_its_part():
  load = memory.Load('lora', 32, 'bfloat16', 8, 1024)
  whole = memory.activations(QWEN_7B, load, 'none')
  assert memory.activations(QWEN_7B, load, 'none', shards=8) == pytest.approx(whole / 8, rel=0.3)
  assert memory.activations(QWEN_7B, load, 'none', tensor=4) < 0.45 * whole
  options = configs.FineTune(kind='full')

  def fits(layout):
    return memory.fits(
      QWEN_7B, options, dataclasses.replace(load, kind='full'), layout, 'full', memory=40 * GIB
    )

  assert fits(Layout(mesh(1, 8, 1))) and not fits(Layout(mesh(8, 1, 1)))
