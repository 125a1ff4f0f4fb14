"""AdamW as the Hugging Face trainer runs it: clipping by global norm, weight decay, linear warm-up
and decay.

The learning rate is data of the compiled step (see `Schedule`), so that a sweep over learning rates
compiles once.
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
  """Linear from 0 to `peak` in `warmup` steps, then linear to 0 at step `total`; all float32
  scalars.
  """

  peak: jax.Array
  warmup: jax.Array
  total: jax.Array

  def __call__(self, step: jax.Array) -> jax.Array:
    """The learning rate of step number `step`, counted from 0.

    With a warm-up the rate of step 0 is 0, as there; that of the last step is not quite.

    Source: transformers `optimization.get_linear_schedule_with_warmup`.
    """
    step = step.astype(jnp.float32)
    rising = step / jnp.maximum(self.warmup, 1)
    falling = jnp.maximum(self.total - step, 0) / jnp.maximum(self.total - self.warmup, 1)
    return self.peak * jnp.where(step < self.warmup, rising, falling)


def adamw(options: config.FineTune) -> AdamW:
  """The part of a fine-tune's options that the optimizer needs."""
  return AdamW(
    options.beta1, options.beta2, options.epsilon, options.weight_decay, options.clip_norm
  )


def schedule(options: config.FineTune, *, peak: float, total: int) -> Schedule:
  """The learning rates of a run of `total` steps."""
  return Schedule(*(jnp.float32(value) for value in (peak, options.warmup_steps, total)))


def transformation(recipe: AdamW) -> optax.GradientTransformation:
  """Gradients to updates, still to be multiplied by minus the learning rate.

  Weight decay works on the leaves being trained. On LoRA factors, embeddings and head that is what
  the Hugging Face trainer (and so axolotl) decays; norm scales and biases are left out, as there. A
  dense leaf is a *change* of a weight, so here it decays towards the base model, whereas torch,
  which trains the weight itself, decays that towards zero. The difference is meant: decay towards
  zero puts a multiple of the base model into every fine-tune (weight_decay * sum of the learning
  rates, 5e-6 of it in 100 steps at 1e-5), which is no part of a behaviour and cancels between two
  runs only if both stop at the same step.

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
    InputError: a leaf that no rule covers.
  """
  rules = {'kernel': True, 'embedding': True, 'bias': False, 'scale': False, 'residual': False}

  def rule(path):
    *_, parameter, _ = path.split('/')  # The last name is the leaf's own field: a, b or value.
    if parameter not in rules:
      raise InputError(
        f"no rule says whether '{path}' decays; there are rules for {', '.join(rules)}"
      )
    return rules[parameter]

  return jax.tree.unflatten(jax.tree.structure(delta), [rule(path) for path in tree.flatten(delta)])
