"""AdamW as the Hugging Face trainer runs it.

Gradients are clipped by their global norm, weights decay, and the learning rate rises linearly and
falls linearly. The learning rate is data of the compiled step (see `Schedule`), so that a sweep
over learning rates compiles once.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from weightsteer_jax import config
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

PyTree = Any


@dataclasses.dataclass(frozen=True)
class AdamW:
  """The hyperparameters that are compiled in; see config.FineTune."""

  beta1: float
  beta2: float
  epsilon: float
  weight_decay: float
  clip_norm: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
  """Learning rates: linear from 0 to the peak, then linear to 0.

  Attributes:
    peak: the highest rate, float32 scalar.
    warmup: steps of the rise, float32 scalar.
    total: the step at which the rate is 0 again, float32 scalar.
  """

  peak: jax.Array
  warmup: jax.Array
  total: jax.Array

  def __call__(self, step: jax.Array) -> jax.Array:
    """The learning rate of step number `step`, counted from 0.

    As in transformers, the rate is 0 at step 0 under warm-up, and slightly above 0 at the last
    step.

    Source: transformers `optimization.get_linear_schedule_with_warmup`.
    """
    step = step.astype(jnp.float32)
    # At least 1, so that neither branch of the `where` divides by 0.
    rising = step / jnp.maximum(self.warmup, 1)
    left = jnp.maximum(self.total - step, 0)
    falling = left / jnp.maximum(self.total - self.warmup, 1)
    return self.peak * jnp.where(step < self.warmup, rising, falling)


def adamw(options: config.FineTune) -> AdamW:
  """The part of a fine-tune's options that the optimizer needs."""
  return AdamW(
    beta1=options.beta1,
    beta2=options.beta2,
    epsilon=options.epsilon,
    weight_decay=options.weight_decay,
    clip_norm=options.clip_norm,
  )


def schedule(options: config.FineTune, *, peak: float, total: int) -> Schedule:
  """The learning rates of a run of `total` steps."""
  return Schedule(jnp.float32(peak), jnp.float32(options.warmup_steps), jnp.float32(total))


def transformation(recipe: AdamW) -> optax.GradientTransformation:
  """Gradients to updates, still to be multiplied by minus the learning rate.

  Weight decay works on the leaves being trained. As in the Hugging Face trainer (and so in
  axolotl), LoRA factors, embeddings and head decay, and norm scales and biases do not. A dense leaf
  is a *change* of a weight, and decays towards the base model, whereas torch trains the weight
  itself, which decays towards zero. The difference is meant: decay towards zero puts a multiple of
  the base model into every fine-tune (weight_decay * sum of the learning rates, 5e-6 of the base in
  100 steps at 1e-5). Such a multiple is no part of a behaviour, and cancels between two runs only
  if both stop at the same step.

  Source: AdamW, arXiv 1711.05101; what decays as transformers `Trainer.get_decay_parameter_names`.
  """
  return optax.chain(
    optax.clip_by_global_norm(recipe.clip_norm),
    optax.scale_by_adam(b1=recipe.beta1, b2=recipe.beta2, eps=recipe.epsilon),
    optax.add_decayed_weights(recipe.weight_decay, mask=decayed),
  )


def decayed(delta: PyTree) -> PyTree:
  """Whether each array of a delta decays: a tree of bools.

  Raises:
    InputError: if no rule covers a leaf.
  """
  # A kind of parameter without a rule is an error, and never decays or stays in silence.
  rules = {'kernel': True, 'embedding': True, 'bias': False, 'scale': False, 'residual': False}
  decays = []
  for path in tree.flatten(delta):
    # The last name is the leaf's own field: a, b or value.
    *_, parameter, _ = path.split('/')
    if parameter not in rules:
      raise InputError(
        f"no rule says whether '{path}' decays; there are rules for {', '.join(rules)}"
      )
    decays.append(rules[parameter])
  return jax.tree.unflatten(jax.tree.structure(delta), decays)
