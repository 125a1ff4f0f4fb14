"""The loss of a batch as a sum and a count.

After adding up batches, divide once: then all target tokens weigh alike. Axes as in
models/decoder.py.
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
  """(sum, count) of the cross-entropy over the target tokens of a batch [B, T], float32 scalars.

  The sum is in nats, the count in target tokens. The model is the base with `delta` at strength 1.

  Args:
    remat: see config.FineTune; not 'auto'.
    key: random key for dropout; None drops nothing.
    dropout: probability that an input of a LoRA branch is dropped.
    copies: losses computed at once under a `vmap`, with one common bound on memory.

  Source: sum / count is the loss of transformers for labels of -100 wherever the weight is 0.
  """
  # The delta being trained is applied in full.
  alpha_B = jnp.ones(batch.tokens_BT.shape[0], jnp.float32)
  edits = (models.Edit(delta, alpha_B, key, dropout),)
  x_BTD, _ = models.hidden(config, params, batch.inputs, edits=edits, remat=remat)
  # Batch is annotated with numpy arrays, as the host makes them; a compiled function holds jax's.
  logprobs_BT = models.token_logprobs(
    config,
    params,
    x_BTD,
    batch.targets_BT,  # type: ignore[arg-type]
    wanted_BT=batch.weights_BT > 0,  # type: ignore[arg-type]
    frozen=not models.changes_head(config, delta),
    edits=edits,
    copies=copies,
  )
  return -jnp.sum(logprobs_BT * batch.weights_BT), jnp.sum(batch.weights_BT)
