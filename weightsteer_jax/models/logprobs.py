"""Log-probabilities of tokens, without holding the logits of all tokens at once.

Axes as in decoder.py.
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

# Logits that a device holds at once: half a GiB in float32. The backward pass has two to three
# arrays of that size: little beside the weights of a model whose vocabulary is large enough to
# matter. Its matmul still has enough rows to be efficient: some 900 for 152k tokens.
LOGITS = 2**27
# Wanted tokens are picked out of at most this many chunks, of at least this many tokens each.
CHUNKS = 8
TOKENS = 256


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
  """log p(target) in nats, float32 [B, T], of final-normed hidden states.

  Tokens are taken in chunks, one after the other. A device holds the logits of one chunk, at most
  LOGITS, and does not keep them for the backward pass.

  Args:
    wanted_BT: where the result is wanted; elsewhere the result is 0. One device computes only the
      wanted tokens and the rest of their chunks.
    frozen: promises that only `x_BTD` is differentiated, and that no edit changes the head. The
      gradient is then computed from the logits while they are in memory, not from recomputed ones.
    chunk: most positions of a chunk; `chunk_length` of the shapes if None.
    copies: how many calls run at once under a `vmap`, which the shapes do not show.
  """
  batch, length = targets_BT.shape
  check_edits(config, edits, batch, length)
  if chunk is None:
    rows = copies * batch // sharding.row_shards(batch)
    chunk = chunk_length(config.vocab_size // _vocab_shards(), rows, length)
  # Devices, or copies, would have to agree on what to leave out.
  if wanted_BT is None or sharding.is_cut() or copies > 1:
    logprobs_BT = _in_chunks(
      config, params, x_BTD, targets_BT, edits=edits, chunk=chunk, frozen=frozen
    )
    return logprobs_BT if wanted_BT is None else jnp.where(wanted_BT, logprobs_BT, 0.0)
  # All tokens go into one row, the wanted ones first, so that most chunks hold none of the others.
  order_Z = jnp.argsort(~jnp.ravel(wanted_BT), stable=True)

  def in_one_row(x_BT):
    x_Z = jnp.reshape(jnp.asarray(x_BT), (-1, *x_BT.shape[2:]))
    return x_Z.at[order_Z].get(unique_indices=True)[None]

  def per_token(alpha):
    alpha = alpha[:, None] if jnp.ndim(alpha) == 1 else alpha
    return jnp.broadcast_to(alpha, (batch, length))

  edits = [dataclasses.replace(edit, alpha=in_one_row(per_token(edit.alpha))) for edit in edits]
  logprobs_1Z = _in_chunks(
    config,
    params,
    in_one_row(x_BTD),
    in_one_row(targets_BT),
    wanted_BT=in_one_row(wanted_BT),
    edits=edits,
    chunk=min(batch * chunk, max(math.ceil(batch * length / CHUNKS), TOKENS)),
    frozen=frozen,
  )
  logprobs_Z = jnp.zeros(batch * length).at[order_Z].set(logprobs_1Z[0], unique_indices=True)
  return jnp.where(wanted_BT, logprobs_Z.reshape(batch, length), 0.0)


def changes_head(config: ModelConfig, delta: PyTree) -> bool:
  """Whether the delta changes the head, which is the embedding of a tied model."""
  return ('embed' if config.tied else 'lm_head') in delta


def chunk_length(vocab_size: int, rows: int, length: int) -> int:
  """Positions of a chunk of `token_logprobs`, from one device's share of the sizes.

  >>> chunk_length(152064, rows=8, length=4096), chunk_length(2560, rows=8, length=256)
  (110, 256)
  >>> chunk_length(10**9, rows=1, length=9)
  1
  """
  return min(length, max(1, LOGITS // (rows * vocab_size)))


def _vocab_shards() -> int:
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1
  return math.prod(mesh.shape[axis] for axis in sharding.ACTIVATIONS['V'])


def _in_chunks(
  config: ModelConfig,
  params: PyTree,
  x_BTD: jax.Array,
  targets_BT: jax.Array,
  *,
  wanted_BT: jax.Array | None = None,
  edits: deltas.Edits,
  chunk: int,
  frozen: bool,
) -> jax.Array:
  """log p(target) [B, T], scanned over chunks; 0 in chunks where nothing is wanted."""
  length = targets_BT.shape[1]
  chunks = math.ceil(length / chunk)
  padding = -length % chunks

  def split(x_BT):
    padded = jnp.pad(x_BT, [(0, 0), (0, padding)] + [(0, 0)] * (x_BT.ndim - 2))
    return rearrange(padded, 'B (c t) ... -> c B t ...', c=chunks)

  def compute(index, x_BtD, targets_Bt, alphas):
    if frozen:
      return _frozen_logprobs(config, params, x_BtD, targets_Bt)
    chunk_edits = [
      # Folded: each chunk draws its own dropout.
      deltas.fold(edit if alpha is None else dataclasses.replace(edit, alpha=alpha), index)
      for edit, alpha in zip(edits, alphas, strict=True)
    ]
    return _logprobs(config, params, x_BtD, targets_Bt, chunk_edits)

  def chunk_logprobs(carry, scanned):
    *arguments, wanted_Bt = scanned
    if wanted_Bt is None:
      return carry, compute(*arguments)

    def nothing(*_):
      return jnp.zeros(wanted_Bt.shape, jnp.float32)

    return carry, jax.lax.cond(jnp.any(wanted_Bt), compute, nothing, *arguments)

  if not frozen:
    # prevent_cse: inside a scan, a common subexpression cannot keep anything alive.
    chunk_logprobs = jax.checkpoint(chunk_logprobs, prevent_cse=False)
  # None: a strength per row holds for all chunks.
  alphas = [split(edit.alpha) if jnp.ndim(edit.alpha) == 2 else None for edit in edits]
  scanned = (
    jnp.arange(chunks),
    split(x_BTD),
    split(targets_BT),
    alphas,
    None if wanted_BT is None else split(wanted_BT),
  )
  _, logprobs_cBt = jax.lax.scan(chunk_logprobs, None, scanned)
  return rearrange(logprobs_cBt, 'c B t -> B (c t)')[:, :length]


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
  def logprobs(x_BTD):
    return _logprobs(config, params, x_BTD, targets_BT, ())

  # A log-probability depends on its own row of x alone, so the gradient of the sum holds each.
  logprobs_BT, pull = jax.vjp(logprobs, x_BTD)
  return logprobs_BT, pull(jnp.ones_like(logprobs_BT))[0]


def _frozen_backward(_, dx_BTD, dlogprobs_BT):
  return None, (dx_BTD * dlogprobs_BT[..., None]).astype(dx_BTD.dtype), None


_frozen_logprobs.defvjp(_frozen_forward, _frozen_backward)
