"""Log-probabilities of tokens, without the logits of all of them in memory at once. Axes as in
decoder.py.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from weightsteer_jax.models import delta as deltas
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.forward import check_edits, logits
from weightsteer_jax.runtime import sharding

PyTree = Any

# Logits that are held at once on a device: half a GiB in float32. The backward pass has two to
# three arrays of that size, which is little beside the weights of a model with a vocabulary for
# which it matters; and its matmul has rows enough to be efficient: some 900 with 152k tokens.
LOGITS = 2**27
# Where what is wanted is chosen: in so many chunks, of at least so many tokens.
CHUNKS, TOKENS = 8, 256


def token_logprobs(
  config: ModelConfig,
  params: PyTree,
  x_BTD: jax.Array,
  targets_BT: jax.Array,
  *,
  wanted_BT: jax.Array | None = None,
  frozen: bool = False,
  edits: deltas.Edits = (),
  chunk: int | None = None,
  copies: int = 1,
) -> jax.Array:
  """log p(target) in nats, float32 [B, T], of final-normed hidden states, holding LOGITS logits at
  most.

  Tokens are taken in chunks, one after the other, whose logits are not kept for the backward pass.

  Args:
    wanted_BT: where the result is wanted; elsewhere it is 0. On one device, what is not wanted is
      not computed, but for the rest of a chunk.
    frozen: promises that only `x_BTD` is differentiated, and that no edit is of the head. Its
      gradient is then computed from the logits while they are there; otherwise they are computed
      again.
    chunk: positions of a chunk at most; by default what `chunk_length` says.
    copies: that are computed at once, where this is under a `vmap`, which does not show in the
      shapes.
  """
  batch, length = targets_BT.shape
  check_edits(config, edits, batch, length)
  if chunk is None:
    mesh = jax.sharding.get_abstract_mesh()
    shards = math.prod(1 if mesh.empty else mesh.shape[axis] for axis in sharding.ACTIVATIONS['V'])
    chunk = chunk_length(
      config.vocab_size // shards, copies * batch // sharding.row_shards(batch), length
    )
  if (
    wanted_BT is None or sharding.is_cut() or copies > 1
  ):  # Devices, or copies, would have to agree on what to leave out.
    logprobs_BT = _in_chunks(config, params, x_BTD, targets_BT, None, edits, chunk, frozen)
    return logprobs_BT if wanted_BT is None else jnp.where(wanted_BT, logprobs_BT, 0.0)
  # All tokens in one row, those that are wanted first.
  order_Z = jnp.argsort(~jnp.ravel(wanted_BT), stable=True)

  def ordered(x_BT):
    return (
      jnp.reshape(jnp.asarray(x_BT), (-1, *x_BT.shape[2:]))
      .at[order_Z]
      .get(unique_indices=True)[None]
    )

  def whole(alpha):
    return jnp.broadcast_to(alpha[:, None] if jnp.ndim(alpha) == 1 else alpha, (batch, length))

  edits = [dataclasses.replace(edit, alpha=ordered(whole(edit.alpha))) for edit in edits]
  chunk = min(batch * chunk, max(math.ceil(batch * length / CHUNKS), TOKENS))
  logprobs_1Z = _in_chunks(
    config, params, ordered(x_BTD), ordered(targets_BT), ordered(wanted_BT), edits, chunk, frozen
  )
  logprobs_Z = jnp.zeros(batch * length).at[order_Z].set(logprobs_1Z[0], unique_indices=True)
  return jnp.where(wanted_BT, logprobs_Z.reshape(batch, length), 0.0)


def changes_head(config: ModelConfig, delta: PyTree) -> bool:
  """Whether the delta is of the head, which is the embedding where they are tied."""
  return ('embed' if config.tied else 'lm_head') in delta


def chunk_length(vocab_size: int, rows: int, length: int) -> int:
  """Positions of a chunk of `token_logprobs`, for so many of the vocabulary, rows and positions on
  a device.

  >>> chunk_length(152064, rows=8, length=4096), chunk_length(2560, rows=8, length=256), chunk_length(10**9, 1, 9)
  (110, 256, 1)
  """
  return min(length, max(1, LOGITS // (rows * vocab_size)))


def _in_chunks(config, params, x_BTD, targets_BT, wanted_BT, edits, chunk, frozen):
  batch, length = targets_BT.shape
  chunks = math.ceil(length / chunk)
  padding = -length % chunks

  def split(array):
    padded = jnp.pad(array, [(0, 0), (0, padding)] + [(0, 0)] * (array.ndim - 2))
    return rearrange(padded, 'B (C t) ... -> C B t ...', C=chunks)

  def compute(index, x_BtD, targets_Bt, alphas):
    if frozen:
      return _frozen_logprobs(config, params, x_BtD, targets_Bt)
    here = [
      deltas.fold(edit if alpha is None else dataclasses.replace(edit, alpha=alpha), index)
      for edit, alpha in zip(edits, alphas)
    ]
    return _logprobs(config, params, x_BtD, targets_Bt, here)

  def chunk_logprobs(carry, scanned):
    *arguments, wanted_Bt = scanned
    if wanted_Bt is None:
      return carry, compute(*arguments)
    return carry, jax.lax.cond(
      jnp.any(wanted_Bt), compute, lambda *_: jnp.zeros(wanted_Bt.shape, jnp.float32), *arguments
    )

  if (
    not frozen
  ):  # prevent_cse: inside a scan there is nothing that a common subexpression could keep alive.
    chunk_logprobs = jax.checkpoint(chunk_logprobs, prevent_cse=False)
  alphas = [split(edit.alpha) if jnp.ndim(edit.alpha) == 2 else None for edit in edits]
  scanned = (
    jnp.arange(chunks),
    split(x_BTD),
    split(targets_BT),
    alphas,
    None if wanted_BT is None else split(wanted_BT),
  )
  return rearrange(jax.lax.scan(chunk_logprobs, None, scanned)[1], 'C B t -> B (C t)')[:, :length]


def _logprobs(
  config: ModelConfig,
  params: PyTree,
  x_BTD: jax.Array,
  targets_BT: jax.Array,
  edits: Sequence[deltas.Edit],
) -> jax.Array:
  logits_BTV = logits(config, params, x_BTD, edits=edits)
  picked_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
  return picked_BT - jax.nn.logsumexp(logits_BTV, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _frozen_logprobs(
  config: ModelConfig, params: PyTree, x_BTD: jax.Array, targets_BT: jax.Array
) -> jax.Array:
  return _logprobs(config, params, x_BTD, targets_BT, ())


def _frozen_forward(config, params, x_BTD, targets_BT):
  logprobs_BT, pull = jax.vjp(lambda x_BTD: _logprobs(config, params, x_BTD, targets_BT, ()), x_BTD)
  return logprobs_BT, pull(jnp.ones_like(logprobs_BT))[0]


def _frozen_backward(_, dx_BTD, dlogprobs_BT):
  return None, (dx_BTD * dlogprobs_BT[..., None]).astype(dx_BTD.dtype), None


_frozen_logprobs.defvjp(_frozen_forward, _frozen_backward)
