"""The loss of a batch as a sum and a count: whoever adds batches up divides once, so all target
tokens weigh alike.
"""

from typing import Any

import jax
import jax.numpy as jnp

from weightsteer_jax import models
from weightsteer_jax.data import Batch

PyTree = Any


def loss(
  config: models.ModelConfig,
  params: PyTree,
  delta: PyTree,
  batch: Batch,
  *,
  remat: str = 'none',
  key: jax.Array | None = None,
  dropout: float = 0.0,
  copies: int = 1,
) -> tuple[jax.Array, jax.Array]:
  """(sum, count), float32 scalars: cross-entropy in nats over the target tokens of a batch [B, T],
  and their number.

  The model is the base with `delta` at strength 1. The mean, sum / count, is what transformers
  reports for labels that are -100 wherever the weight is 0. With a `key`, inputs of LoRA branches
  are dropped with probability `dropout`. `copies` of it are computed at once, where it is under a
  `vmap`: they share a bound on memory.
  """
  edits = (models.Edit(delta, jnp.ones(batch.tokens_BT.shape[0], jnp.float32), key, dropout),)
  x_BTD, _ = models.hidden(config, params, batch.inputs, edits=edits, remat=remat)
  logprobs_BT = models.token_logprobs(
    config,
    params,
    x_BTD,
    batch.targets_BT,
    wanted_BT=batch.weights_BT > 0,
    frozen=not models.changes_head(config, delta),
    edits=edits,
    copies=copies,
  )
  return -jnp.sum(logprobs_BT * batch.weights_BT), jnp.sum(batch.weights_BT)
