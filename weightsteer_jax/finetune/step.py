"""One optimizer step as a pure function of (state, params, batch), compiled once per batch shape.

The compiled functions are cached by their static arguments: both sides of a contrast and every
learning rate share a program. The step and the validation loss come in two kinds: for one
fine-tune, and (`together`) for several at once. The second kind has a leading axis on state, batch,
schedule and seed, and none on the base parameters: products with the base are then one matmul over
the rows of all fine-tunes, and only the low-rank branches and the trained arrays are batched. Axes
as in models/decoder.py.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from weightsteer_jax import models
from weightsteer_jax.data import Batch
from weightsteer_jax.finetune import optimizer
from weightsteer_jax.finetune.loss import loss
from weightsteer_jax.runtime import sharding
from weightsteer_jax.runtime.sharding import Layout

PyTree = Any
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """What a step changes; the same class holds the shapes or the shardings of the arrays.

  Attributes:
    delta: the change being trained, float32.
    opt_state: the moments of AdamW, float32.
    step: steps taken, int32.
  """

  delta: PyTree
  opt_state: PyTree
  step: Any


def state_shardings(
  config: models.ModelConfig,
  recipe: optimizer.AdamW,
  layout: Layout,
  state: TrainState,
  *,
  together: bool = False,
) -> TrainState:
  """The shardings of a state; each moment lies like its array of the delta.

  Args:
    state: the arrays, or their shapes.
    together: whether the state is of several fine-tunes. Their leading axis is whole on every
      device.

  Raises:
    InputError: if the mesh does not divide an axis.
  """
  if together:
    # The shardings of one fine-tune, with a leading axis that no mesh axis cuts.
    alone = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state)
    shardings = state_shardings(config, recipe, layout, alone)
    return jax.tree.map(
      lambda at: jax.sharding.NamedSharding(at.mesh, jax.P(None, *at.spec)), shardings
    )
  delta = models.delta_shardings(config, state.delta, layout)
  # Moments have the delta's structure somewhere inside; all other arrays are step counts.
  opt_state = optax.tree.map_params(
    optimizer.transformation(recipe),
    lambda _, sharding: sharding,
    state.opt_state,
    delta,
    transform_non_params=lambda _: layout.replicated,
  )
  return TrainState(delta, opt_state, layout.replicated)


@functools.lru_cache(maxsize=16)
def initial_state_fn(
  config: models.ModelConfig,
  kind: str,
  rank: int,
  lora_alpha: float,
  recipe: optimizer.AdamW,
  layout: Layout | None = None,
  *,
  targets: tuple[str, ...] = (),
) -> Callable[[int], TrainState]:
  """The compiled function from a seed to the state before the first step.

  The state is placed as `state_shardings` says, on one device without a layout.

  The random factors A are a function of the seed alone. Both sides of a contrast are given the same
  seed: B starts at zero and A moves little, so with one common A the difference of the two runs,
  about A (B+ - B-), is the difference of the two behaviours; with two draws of A, the part due to
  the draw would not cancel.
  """

  def initial_state(seed):
    key = jax.random.key(seed)
    delta = models.init_delta(config, kind, key, rank=rank, lora_alpha=lora_alpha, targets=targets)
    opt_state = optimizer.transformation(recipe).init(delta)
    step = jnp.zeros((), jnp.int32)
    return TrainState(delta, opt_state, step)

  # Every device makes the part that it holds: the state is never whole on one device.
  shapes = jax.eval_shape(initial_state, 0)
  layout = layout or sharding.single()
  placed = state_shardings(config, recipe, layout, shapes)
  return jax.jit(initial_state, out_shardings=placed)


@functools.lru_cache(maxsize=16)
def train_step_fn(
  config: models.ModelConfig,
  recipe: optimizer.AdamW,
  layout: Layout | None = None,
  *,
  remat: str = 'none',
  dropout: float = 0.0,
  together: bool = False,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """The compiled step (state, params, batch [A, B, T], schedule, seed) -> (state, metrics).

  Call the step in `layout.context()`. The state is consumed; where the loss or the gradient is not
  finite, the state comes back as it was. `seed` decides dropout, whose masks are a function of
  (seed, step, microbatch). The metrics are float32 scalars `train_loss` (nats per target token),
  `target_tokens`, `grad_norm` (before clipping) and `learning_rate`, and the bool `finite`.

  Args:
    remat: see config.FineTune; not 'auto'.
    together: whether all arguments but `params` have a leading axis, and all results too. Gradients
      are clipped, and what is not finite is held back, for each fine-tune by itself.
  """
  state_layout = layout or sharding.single()

  # The state is donated: the new one is written into the memory of the old one.
  @functools.partial(jax.jit, donate_argnums=0)
  def placed_step(state, params, batch, schedule, seed):
    placed = state_shardings(config, recipe, state_layout, state, together=together)
    copies = seed.shape[0] if together else 1
    step = functools.partial(
      _train_step, config, recipe, remat=remat, dropout=dropout, copies=copies
    )
    if together:
      # Everything but the base parameters has an axis of fine-tunes.
      step = jax.vmap(step, in_axes=(0, None, 0, 0, 0))
    state, metrics = step(state, params, batch, schedule, seed)
    # Left to itself, XLA may place the new state otherwise, and the next call would compile again.
    return jax.lax.with_sharding_constraint(state, placed), metrics

  return placed_step


def _train_step(
  config: models.ModelConfig,
  recipe: optimizer.AdamW,
  state: TrainState,
  params: PyTree,
  batch: Batch,
  schedule: optimizer.Schedule,
  seed: jax.Array,
  *,
  remat: str,
  dropout: float,
  copies: int,
) -> tuple[TrainState, Metrics]:
  """(state, metrics) after a step; see `train_step_fn`."""
  # A step's masks are the same in a run that was interrupted. Without dropout there is no key, and
  # no random number in the program.
  key = None
  if dropout:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
  # The loss and its gradient, per target token of the whole batch.
  total, count, grads = accumulate(
    config, params, state.delta, batch, remat=remat, key=key, dropout=dropout, copies=copies
  )
  mean = total / count
  grads = jax.tree.map(lambda g: g / count, grads)
  # A NaN or infinity in any gradient shows in the norm.
  norm = optax.global_norm(grads)
  finite = jnp.isfinite(mean) & jnp.isfinite(norm)
  # AdamW; the learning rate is applied here, as data of the program.
  rate = schedule(state.step)
  transformation = optimizer.transformation(recipe)
  updates, opt_state = transformation.update(grads, state.opt_state, state.delta)
  delta = jax.tree.map(lambda x, update: x - rate * update, state.delta, updates)
  after = TrainState(delta, opt_state, state.step + 1)
  # A broken step changes nothing, so that the last checkpoint is good.
  state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
  metrics = {
    'train_loss': mean,
    'grad_norm': norm,
    'learning_rate': rate,
    'target_tokens': count,
    'finite': finite,
  }
  return state, metrics


@functools.lru_cache(maxsize=16)
def eval_loss_fn(
  config: models.ModelConfig, *, together: bool = False
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """The compiled (delta, params, batch [B, T]) -> (sum, count) of `loss`.

  Args:
    together: as in `train_step_fn`.
  """

  @jax.jit
  def eval_loss(delta, params, batch):
    copies = batch.tokens_BT.shape[0] if together else 1

    def loss_of(delta, batch):
      return loss(config, params, delta, batch, copies=copies)

    # The base parameters are closed over, not mapped: all copies share them.
    losses = jax.vmap(loss_of) if together else loss_of
    return losses(delta, batch)

  return eval_loss


@functools.lru_cache(maxsize=16)
def stack_fn(
  config: models.ModelConfig, recipe: optimizer.AdamW, layout: Layout
) -> Callable[[Sequence[TrainState]], TrainState]:
  """The compiled function that joins states along a new leading axis.

  The new axis is whole on every device.
  """

  @jax.jit
  def stack(states):
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    placed = state_shardings(config, recipe, layout, stacked, together=True)
    return jax.lax.with_sharding_constraint(stacked, placed)

  return stack


@functools.lru_cache(maxsize=16)
def unstack_fn(
  config: models.ModelConfig, recipe: optimizer.AdamW, layout: Layout
) -> Callable[[TrainState], list[TrainState]]:
  """The compiled function that undoes `stack_fn`."""

  @jax.jit
  def unstack(stacked):
    first = jax.tree.map(lambda x: x[0], stacked)
    placed = state_shardings(config, recipe, layout, first)
    count = stacked.step.shape[0]
    states = []
    # One program for all states, not one indexing program for each array.
    for i in range(count):
      states.append(jax.tree.map(lambda x, i=i: x[i], stacked))
    return jax.lax.with_sharding_constraint(states, [placed] * count)

  return unstack


def accumulate(
  config: models.ModelConfig,
  params: PyTree,
  delta: PyTree,
  batch: Batch,
  *,
  remat: str = 'none',
  key: jax.Array | None = None,
  dropout: float = 0.0,
  copies: int = 1,
) -> tuple[jax.Array, jax.Array, PyTree]:
  """(sum, count, gradient of the sum) of the loss over the microbatches of a batch [A, B, T].

  Microbatches are computed one after the other. Sums are added, not means: microbatches differ in
  their number of target tokens, and the large batch weighs tokens alike.

  Args:
    remat: see config.FineTune; not 'auto'.
    key: random key for dropout; None drops nothing.
    dropout: probability that an input of a LoRA branch is dropped.
    copies: fine-tunes that are computed at once (see `loss`).
  """

  @functools.partial(jax.value_and_grad, has_aux=True)
  def sum_and_grads(delta, part, index):
    # Every microbatch draws masks of its own.
    part_key = None
    if key is not None:
      part_key = jax.random.fold_in(key, index)
    return loss(
      config, params, delta, part, remat=remat, key=part_key, dropout=dropout, copies=copies
    )

  def add(carry, scanned):
    part, index = scanned
    (total, count), grads = sum_and_grads(delta, part, index)
    sums = jax.tree.map(jnp.add, carry, (total, count, grads))
    # A scan returns (carry, output of this turn): nothing is put out.
    return sums, None

  # A scan, so that the activations of one microbatch at a time are in memory.
  zero = jnp.zeros((), jnp.float32)
  zero_grads = jax.tree.map(jnp.zeros_like, delta)
  parts = (batch, jnp.arange(batch.tokens_BT.shape[0]))
  sums, _ = jax.lax.scan(add, (zero, zero, zero_grads), parts)
  return sums
