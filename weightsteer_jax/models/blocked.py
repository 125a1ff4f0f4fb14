"""Flash attention in plain JAX: blocks of queries against blocks of keys, those alone in which some
query sees a key.

The pairs of blocks that are computed are found on the device, and a loop runs over as many as there
are: of a row of packed segments few, of a whole row half. No array [T, S] is ever in memory.
Source: Dao, FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2.

Axes as in decoder.py, and: t positions of a block, M queries of a block with all heads that share a
kv head, P blocks of all rows. A pair of blocks is (queries of block i, keys of block j), both
counted over the P blocks.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

from weightsteer_jax.models import kernels

LOWEST = jnp.finfo(jnp.float32).min
LAST = jnp.iinfo(jnp.int32).max


def block_length(length: int, head_dim: int) -> int:
  """Positions of a block, or 0 where a row of that length is not worth cutting (measured by
  benchmarks/attention.py).

  >>> block_length(512, 32), block_length(192, 128), block_length(512, 128), block_length(64, 32)
  (64, 64, 128, 0)
  """
  sizes = (64,) if head_dim < 64 else (128, 64)
  return next((size for size in sizes if length % size == 0 and length > size), 0)


def attend(
  q_BTNH: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
  slots_BT: jax.Array,
  segments_BT: jax.Array | None,
  branches_BT: jax.Array | None,
  window: jax.Array | None,
  *,
  scale: float,
  block: int,
) -> jax.Array:
  """Softmax attention [B, T, N, H] in blocks of so many positions; the other arguments are those of
  attention.attend.
  """
  batch, length, *_ = q_BTNH.shape
  segments_BT = jnp.ones((batch, length), jnp.int32) if segments_BT is None else segments_BT
  windows_BT = jnp.broadcast_to(jnp.int32(length) if window is None else window, (batch, length))
  where_BT = (slots_BT, segments_BT, windows_BT) + (() if branches_BT is None else (branches_BT,))
  return kernels.by_device(_attention(scale, block))(q_BTNH, k_BTKH, v_BTKH, *where_BT)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Blocks:
  """Where queries and keys are, block by block.

  Attributes:
    slots_Pt, segments_Pt, windows_Pt, branches_Pt: of each query, or key; see attention.Seen.
    queries, keys: the blocks of the pairs, those to compute first. count: how many these are.
    per_row: blocks of a row.
  """

  slots_Pt: jax.Array
  segments_Pt: jax.Array
  windows_Pt: jax.Array
  branches_Pt: jax.Array | None
  queries: jax.Array
  keys: jax.Array
  count: jax.Array
  per_row: int = dataclasses.field(metadata=dict(static=True))

  def seen(self, i: jax.Array, j: jax.Array, heads: int) -> jax.Array:
    """Whether a query of block i sees a key of block j, bool [M, t], alike for all of so many
    heads.
    """
    behind = self.slots_Pt[i][:, None] - self.slots_Pt[j]
    seen = (
      (behind >= 0)
      & (behind < self.windows_Pt[i][:, None])
      & (self.segments_Pt[i][:, None] == self.segments_Pt[j])
    )
    if self.branches_Pt is not None:
      seen &= (self.branches_Pt[j] == 0) | (self.branches_Pt[i][:, None] == self.branches_Pt[j])
    return jnp.tile(seen, (heads, 1))


def _blocks(where_BT, length: int) -> _Blocks:
  """Finds the pairs by the first and last slot and segment of each block: a few more than there
  are, never fewer.
  """
  slots, segments, windows, *branches = (
    rearrange(x, 'B (n t) -> B n t', t=length) for x in where_BT
  )
  batch, per_row, _ = slots.shape
  segments_up = jnp.where(
    segments == 0, LAST, segments
  )  # Padding comes last; blocks of nothing else are left out.
  low, high = segments_up.min(-1), segments_up.max(-1)
  live = (low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])
  live &= (low < LAST)[:, :, None] & (low < LAST)[:, None]
  live &= jnp.tri(per_row, dtype=bool)  # No key lies before a query that it is farther than.
  live &= (slots - windows).min(-1)[:, :, None] < slots.max(-1)[:, None]
  live |= jnp.eye(per_row, dtype=bool)  # What sees nothing gets a number too.
  row, query, key = jnp.nonzero(live, size=live.size)
  flat = [x.reshape(-1, length) for x in (slots, segments, windows, *branches)]
  return _Blocks(
    *flat,
    *[None] * (4 - len(flat)),
    row * per_row + query,
    row * per_row + key,
    live.sum(),
    per_row,
  )


@functools.cache
def _attention(scale: float, length: int) -> Callable[..., jax.Array]:
  """(q, k, v, slots, segments, windows, branches if any) -> [B, T, N, H]; it may be differentiated
  once, and then mapped over fine-tunes.
  """
  forward = kernels.as_rows(functools.partial(_forward, scale=scale, length=length))
  backward = kernels.as_rows(functools.partial(_backward, scale=scale, length=length))

  def keep(*arrays):
    out, log_sums = forward(*arrays)
    return out, (*arrays, out, log_sums)

  differentiable = jax.custom_vjp(lambda *arrays: forward(*arrays)[0])
  differentiable.defvjp(
    keep, lambda kept, dout: (*backward(*kept, dout), *[None] * (len(kept) - 5))
  )
  return differentiable


def _forward(q_BTNH, k_BTKH, v_BTKH, *where_BT, scale, length):
  """(attention [B, T, N, H], the log of each query's sum of exponentials [B, T, N])."""
  blocks = _blocks(where_BT, length)
  q_PKMH, k_PKtH, v_PKtH = (
    _cut_queries(q_BTNH, k_BTKH, length),
    _cut(k_BTKH, length),
    _cut(v_BTKH, length),
  )
  heads = q_BTNH.shape[2] // k_BTKH.shape[2]

  def add(pair, carry):
    top_PKM, sum_PKM, out_PKMH = carry
    i, j = blocks.queries[pair], blocks.keys[pair]
    scores_KMt = _dot('KMH,KtH->KMt', q_PKMH[i], k_PKtH[j]) * scale
    scores_KMt = jnp.where(blocks.seen(i, j, heads), scores_KMt, LOWEST)
    top_KM = jnp.maximum(top_PKM[i], scores_KMt.max(-1))
    weights_KMt = jnp.exp(scores_KMt - top_KM[..., None])
    before_KM = jnp.exp(top_PKM[i] - top_KM)
    out_KMH = out_PKMH[i] * before_KM[..., None] + _dot(
      'KMt,KtH->KMH', weights_KMt.astype(v_PKtH.dtype), v_PKtH[j]
    )
    return (
      top_PKM.at[i].set(top_KM),
      sum_PKM.at[i].set(sum_PKM[i] * before_KM + weights_KMt.sum(-1)),
      out_PKMH.at[i].set(out_KMH),
    )

  zeros_PKMH = jnp.zeros(q_PKMH.shape, jnp.float32)
  start = jnp.full(q_PKMH.shape[:3], LOWEST), zeros_PKMH[..., 0], zeros_PKMH
  top_PKM, sum_PKM, out_PKMH = jax.lax.fori_loop(0, blocks.count, add, start)
  log_sums_PKM = top_PKM + jnp.log(sum_PKM)

  def join(x):
    return _join_queries(x, blocks.per_row, heads)

  return join(out_PKMH / sum_PKM[..., None]).astype(q_BTNH.dtype), join(log_sums_PKM[..., None])[
    ..., 0
  ]


def _backward(q_BTNH, k_BTKH, v_BTKH, *others, scale, length):
  """The gradients of q, k and v."""
  *where_BT, out_BTNH, log_sums_BTN, dout_BTNH = others
  blocks = _blocks(where_BT, length)
  k_PKtH, v_PKtH = _cut(k_BTKH, length), _cut(v_BTKH, length)
  heads = q_BTNH.shape[2] // k_BTKH.shape[2]

  def cut(x):
    return _cut_queries(x, k_BTKH, length)

  q_PKMH, dout_PKMH, log_sums_PKM = (
    cut(q_BTNH),
    cut(dout_BTNH),
    cut(log_sums_BTN[..., None])[..., 0],
  )
  # The sum over keys of weight times its gradient.
  mean_PKM = cut(jnp.sum(out_BTNH.astype(jnp.float32) * dout_BTNH, axis=-1, keepdims=True))[..., 0]

  def add(pair, carry):
    dq_PKMH, dk_PKtH, dv_PKtH = carry
    i, j = blocks.queries[pair], blocks.keys[pair]
    scores_KMt = _dot('KMH,KtH->KMt', q_PKMH[i], k_PKtH[j]) * scale
    weights_KMt = jnp.where(
      blocks.seen(i, j, heads), jnp.exp(scores_KMt - log_sums_PKM[i][..., None]), 0
    )
    dweights_KMt = _dot('KMH,KtH->KMt', dout_PKMH[i], v_PKtH[j])
    dscores_KMt = (weights_KMt * (dweights_KMt - mean_PKM[i][..., None]) * scale).astype(
      q_PKMH.dtype
    )
    return (
      dq_PKMH.at[i].add(_dot('KMt,KtH->KMH', dscores_KMt, k_PKtH[j])),
      dk_PKtH.at[j].add(_dot('KMt,KMH->KtH', dscores_KMt, q_PKMH[i])),
      dv_PKtH.at[j].add(_dot('KMt,KMH->KtH', weights_KMt.astype(q_PKMH.dtype), dout_PKMH[i])),
    )

  start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q_PKMH, k_PKtH, v_PKtH))
  dq, dk, dv = jax.lax.fori_loop(0, blocks.count, add, start)
  return tuple(
    _join_queries(x, blocks.per_row, number).astype(q_BTNH.dtype)
    for x, number in ((dq, heads), (dk, 1), (dv, 1))
  )


def _dot(einsum: str, x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.einsum(einsum, x, y, preferred_element_type=jnp.float32)


def _cut(x_BTKH: jax.Array, length: int) -> jax.Array:
  return rearrange(x_BTKH, 'B (n t) K H -> (B n) K t H', t=length)


def _cut_queries(x_BTNH: jax.Array, k_BTKH: jax.Array, length: int) -> jax.Array:
  return rearrange(x_BTNH, 'B (n t) (K G) H -> (B n) K (G t) H', t=length, K=k_BTKH.shape[2])


def _join_queries(x_PKMH: jax.Array, per_row: int, heads: int) -> jax.Array:
  return rearrange(x_PKMH, '(B n) K (G t) H -> B (n t) (K G) H', n=per_row, G=heads)
