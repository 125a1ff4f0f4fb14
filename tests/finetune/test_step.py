"""The step: accumulation, one trace per shape, and what happens to a state when numbers stop being
numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from weightsteer_jax import models
from weightsteer_jax.data import batches
from weightsteer_jax.finetune import optimizer
from weightsteer_jax.finetune import step as steps
from weightsteer_jax.runtime import sharding


def start(case, options, seed=0):
  """(compiled step, state with random factors, schedule)."""
  recipe = optimizer.adamw(options)
  delta = models.init_delta(case.model.config, 'lora', jax.random.key(0), rank=3, lora_alpha=5.0)
  delta = tiny.randomised(delta, seed=seed, scale=0.02)
  state = steps.TrainState(delta, optimizer.transformation(recipe).init(delta), jnp.int32(0))
  state = jax.device_put(
    state, steps.state_shardings(case.model.config, recipe, sharding.single(), state)
  )
  return (
    steps.train_step_fn(case.model.config, recipe),
    state,
    optimizer.schedule(options, peak=1e-2, total=10),
  )


def uneven_batch(make_examples):
  """Four rows of which the first has one target token and the last seventeen."""
  examples = make_examples(4, seed=5, shortest=18)
  masks = [np.zeros(len(example), bool) for example in examples]
  for mask, first in zip(masks, (-1, -4, -9, 1)):
    mask[first:] = True
  examples = [
    type(example)(example.tokens, mask, example.name) for example, mask in zip(examples, masks)
  ]
  return batches.fill(examples, [[0], [1], [2], [3]], num_rows=4, row_length=20)


def test_accumulation_equals_the_large_batch(checkpoint, options, make_examples):
  """And not the mean of the microbatches' means, which weighs the one token of the first row like
  all of the last."""
  case, batch = checkpoint('llama3'), uneven_batch(make_examples)
  delta = start(case, options())[1].delta

  def summed(parts):
    total, count, grads = jax.jit(
      lambda: steps.accumulate(
        case.model.config, case.model.params, delta, batches.microbatches(batch, parts)
      )
    )()
    return total / count, jax.tree.map(lambda g: g / count, grads)

  loss, grads = summed(1)
  many_loss, many_grads = summed(4)
  np.testing.assert_allclose(many_loss, loss, rtol=1e-6)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
  for one, many in zip(jax.tree.leaves(grads), jax.tree.leaves(many_grads)):
    np.testing.assert_allclose(many, one, rtol=1e-4, atol=3e-6 * largest)
  eval_loss = steps.eval_loss_fn(case.model.config)
  rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(4)]
  means = [
    total / count for total, count in (eval_loss(delta, case.model.params, row) for row in rows)
  ]
  assert abs(np.mean(means) - loss) > 1e-2


def test_the_step_is_traced_once_per_shape(checkpoint, options, make_examples, monkeypatch):
  """Whatever the step, the learning rate, the batch's contents or the side of the contrast."""
  case = checkpoint('llama3')
  traces, accumulate = [], steps.accumulate

  def counted(config, params, delta, batch, **options):
    traces.append(batch.tokens_BT.shape)
    return accumulate(config, params, delta, batch, **options)

  monkeypatch.setattr(steps, 'accumulate', counted)
  steps.train_step_fn.cache_clear()
  for side in range(2):
    train_step, state, _ = start(case, options(), seed=side)
    for rows, peak in ((3, 1e-3), (3, 1e-2), (2, 1e-3), (3, 1e-4)):
      examples = make_examples(rows, seed=side + rows)
      batch = batches.fill(examples, [[i] for i in range(rows)], num_rows=rows, row_length=20)
      schedule = optimizer.schedule(options(), peak=peak, total=10 + side)
      state, _ = train_step(
        state, case.model.params, batches.microbatches(batch, 1), schedule, side
      )
  assert traces == [(1, 3, 20), (1, 2, 20)]
  steps.train_step_fn.cache_clear()


@pytest.mark.parametrize('where', ['loss', 'gradient'])
def test_a_step_that_is_not_finite_changes_nothing_and_says_so(
  checkpoint, options, make_examples, where
):
  case = checkpoint('llama3')
  train_step, state, schedule = start(case, options())
  batch = batches.microbatches(uneven_batch(make_examples), 1)
  state, metrics = train_step(state, case.model.params, batch, schedule, 0)
  state, metrics = train_step(state, case.model.params, batch, schedule, 0)
  before = jax.tree.map(np.asarray, state)
  assert metrics['finite'] and before.step == 2
  params = dict(case.model.params)
  if where == 'loss':
    params['final_norm'] = {'scale': params['final_norm']['scale'].at[0].set(jnp.nan)}
  else:  # Finite losses, but squared gradients beyond float32.
    params['final_norm'] = {'scale': params['final_norm']['scale'] * 1e25}
  state, metrics = train_step(state, params, batch, schedule, 0)
  assert not metrics['finite']
  assert np.isfinite(metrics['train_loss']) == (where == 'gradient')
  jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), before)
  state, metrics = train_step(state, case.model.params, batch, schedule, 0)
  assert metrics['finite'] and state.step == 3


def test_dropout_depends_on_seed_and_step_only(checkpoint, options, make_examples):
  case, batch = checkpoint('llama3'), batches.microbatches(uneven_batch(make_examples), 2)
  _, state, schedule = start(case, options())
  train_step = steps.train_step_fn(case.model.config, optimizer.adamw(options()), dropout=0.5)

  def loss(seed, step):
    # A copy: the step consumes its state.
    copied = jax.tree.map(jnp.copy, steps.TrainState(state.delta, state.opt_state, jnp.int32(step)))
    return float(train_step(copied, case.model.params, batch, schedule, seed)[1]['train_loss'])

  assert loss(1, 3) == loss(1, 3)
  assert len({loss(1, 3), loss(1, 4), loss(2, 3)}) == 3
