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
  return _wanted_logprobs(
    config, params, x_BTD, targets_BT, wanted_BT, edits=edits, chunk=chunk, frozen=frozen
  )


def _wanted_logprobs(
  config: ModelConfig,
  params: PyTree,
  x_BTD: jax.Array,
  targets_BT: jax.Array,
  wanted_BT: jax.Array,
  *,
  edits: deltas.Edits,
  chunk: int,
  frozen: bool,
) -> jax.Array:
  """log p(target) [B, T] on one device, where wanted; elsewhere 0."""
  batch, length = targets_BT.shape
  # All tokens go into one row, the wanted ones first, so that most chunks hold none of the others.
  order_Z = jnp.argsort(~jnp.ravel(wanted_BT), stable=True)

  def in_one_row(x_BT):
    x_Z = jnp.reshape(jnp.asarray(x_BT), (-1, *x_BT.shape[2:]))
    # Unique indices: the gradient is then a scatter without collisions.
    ordered_Z = x_Z.at[order_Z].get(unique_indices=True)
    return ordered_Z[None]

  def per_token(alpha):
    if jnp.ndim(alpha) == 1:
      alpha = alpha[:, None]
    return jnp.broadcast_to(alpha, (batch, length))

  # A token leaves its row, and takes the strength of the row along.
  token_edits = []
  for edit in edits:
    alpha_1Z = in_one_row(per_token(edit.alpha))
    token_edits.append(dataclasses.replace(edit, alpha=alpha_1Z))
  # As many tokens as a chunk of all rows has, but at most those of one of CHUNKS parts: with few
  # chunks, most would hold a wanted token, and little would be left out.
  part = max(math.ceil(batch * length / CHUNKS), TOKENS)
  logprobs_1Z = _in_chunks(
    config,
    params,
    in_one_row(x_BTD),
    in_one_row(targets_BT),
    wanted_BT=in_one_row(wanted_BT),
    edits=token_edits,
    chunk=min(batch * chunk, part),
    frozen=frozen,
  )
  logprobs_Z = jnp.zeros(batch * length).at[order_Z].set(logprobs_1Z[0], unique_indices=True)
  return jnp.where(wanted_BT, logprobs_Z.reshape(batch, length), 0.0)


def changes_head(config: ModelConfig, delta: PyTree) -> bool:
  """Whether the delta changes the head, which is the embedding of a tied model."""
  head = 'embed' if config.tied else 'lm_head'
  return head in delta


def chunk_length(vocab_size: int, rows: int, length: int) -> int:
  """Positions of a chunk of `token_logprobs`, from one device's share of the sizes.

  >>> chunk_length(152064, rows=8, length=4096), chunk_length(2560, rows=8, length=256)
  (110, 256)
  >>> chunk_length(10**9, rows=1, length=9)
  1
  """
  # A chunk takes the same positions of all rows.
  positions = LOGITS // (rows * vocab_size)
  return min(length, max(1, positions))


def _vocab_shards() -> int:
  # A device holds the logits of its own part of the vocabulary.
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
  # Chunks are made as even as can be, so that less than a position for each chunk is padding.
  padding = -length % chunks

  def split(x_BT):
    whole_axes = [(0, 0)] * (x_BT.ndim - 2)
    padded = jnp.pad(x_BT, [(0, 0), (0, padding), *whole_axes])
    return rearrange(padded, 'B (c t) ... -> c B t ...', c=chunks)

  def compute(index, x_BtD, targets_Bt, alphas):
    if frozen:
      return _frozen_logprobs(config, params, x_BtD, targets_Bt)
    chunk_edits = []
    for edit, alpha in zip(edits, alphas, strict=True):
      if alpha is not None:
        edit = dataclasses.replace(edit, alpha=alpha)
      # Folded: each chunk draws its own dropout.
      chunk_edits.append(deltas.fold(edit, index))
    return _logprobs(config, params, x_BtD, targets_Bt, chunk_edits)

  def chunk_logprobs(carry, scanned):
    *arguments, wanted_Bt = scanned
    if wanted_Bt is None:
      return carry, compute(*arguments)

    def nothing(*_):
      return jnp.zeros(wanted_Bt.shape, jnp.float32)

    # A cond on one device runs one branch alone: a chunk of nothing wanted costs no matmul.
    any_wanted = jnp.any(wanted_Bt)
    return carry, jax.lax.cond(any_wanted, compute, nothing, *arguments)

  if not frozen:
    # prevent_cse: inside a scan, a common subexpression cannot keep anything alive.
    chunk_logprobs = jax.checkpoint(chunk_logprobs, prevent_cse=False)
  # None: a strength per row holds for all chunks.
  alphas = [split(edit.alpha) if jnp.ndim(edit.alpha) == 2 else None for edit in edits]
  numbers_c = jnp.arange(chunks)
  x_cBtD = split(x_BTD)
  targets_cBt = split(targets_BT)
  wanted_cBt = None if wanted_BT is None else split(wanted_BT)
  scanned = (numbers_c, x_cBtD, targets_cBt, alphas, wanted_cBt)
  _, logprobs_cBt = jax.lax.scan(chunk_logprobs, None, scanned)
  padded_BT = rearrange(logprobs_cBt, 'c B t -> B (c t)')
  return padded_BT[:, :length]


def _logprobs(
  config: ModelConfig,
  params: PyTree,
  x_BTD: jax.Array,
  targets_BT: jax.Array,
  edits: Sequence[deltas.Edit],
) -> jax.Array:
  logits_BTV = logits(config, params, x_BTD, edits=edits)
  targets_BT1 = targets_BT[..., None]
  picked_BT1 = jnp.take_along_axis(logits_BTV, targets_BT1, axis=-1)
  picked_BT = picked_BT1[..., 0]
  log_sums_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
  return picked_BT - log_sums_BT


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
  ones_BT = jnp.ones_like(logprobs_BT)
  (dx_BTD,) = pull(ones_BT)
  return logprobs_BT, dx_BTD


def _frozen_backward(_, dx_BTD, dlogprobs_BT):
  # By the chain rule each row is scaled by its own cotangent, in float32. Parameters are promised
  # not to be differentiated, and targets are integers.
  scaled_BTD = dx_BTD * dlogprobs_BT[..., None]
  return None, scaled_BTD.astype(dx_BTD.dtype), None


_frozen_logprobs.defvjp(_frozen_forward, _frozen_backward)
