"""Flash attention in plain JAX: only pairs of blocks in which some query sees a key.

The pairs (a block of queries, a block of keys) are found on the device, and a loop runs over as
many pairs as were found: few for a row of packed segments, half of all for a whole row. No array
[T, S] is ever in memory.

Source: Dao, FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2.

Axes as in decoder.py: t positions of a block, Q queries of a block with all heads that share a kv
head, Y blocks of all rows. A pair of blocks is (queries of block i, keys of block j), both counted
over the Y blocks.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from weightsteer_jax.models import kernels

Array = jax.Array | np.ndarray

# In place of -inf, whose difference with itself is NaN.
LOWEST = jnp.finfo(jnp.float32).min
# A segment number behind every other.
LAST = jnp.iinfo(jnp.int32).max


def block_length(length: int, head_dim: int) -> int:
  """Positions of a block, or 0 if a row of that length is not worth cutting.

  The sizes are the fastest in benchmarks/attention.py.

  >>> block_length(512, 32), block_length(192, 128), block_length(512, 128), block_length(64, 32)
  (64, 64, 128, 0)
  """
  sizes = (64,) if head_dim < 64 else (128, 64)
  for size in sizes:
    # A row of one block has no pair to leave out.
    if length % size == 0 and length > size:
      return size
  return 0


def attend(
  q_BTNH: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
  slots_BT: Array,
  segment_ids_BT: Array | None,
  branches_BT: Array | None,
  window: jax.Array | None,
  *,
  scale: float,
  block: int,
) -> jax.Array:
  """Softmax attention [B, T, N, H] in blocks of `block` positions.

  The other arguments are those of `attention.attend` and the fields of `attention.Seen`.
  """
  batch, length, *_ = q_BTNH.shape
  if segment_ids_BT is None:
    segment_ids_BT = jnp.ones((batch, length), jnp.int32)
  # A window of the whole row is none.
  if window is None:
    window = jnp.int32(length)
  windows_BT = jnp.broadcast_to(window, (batch, length))
  where_BT = [slots_BT, segment_ids_BT, windows_BT]
  if branches_BT is not None:
    where_BT.append(branches_BT)
  attention = kernels.by_device(_attention(scale, block))
  return attention(q_BTNH, k_BTKH, v_BTKH, *where_BT)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Blocks:
  """Where queries and keys are, block by block, and the pairs of blocks to compute.

  Attributes:
    slots_Yt, segment_ids_Yt, branches_Yt: see attention.Seen.
    windows_Yt: keys that each query sees at most.
    queries: the block of queries of each pair; pairs to compute come first.
    keys: the block of keys of each pair.
    count: number of pairs to compute.
    per_row: blocks of a row.
  """

  slots_Yt: jax.Array
  segment_ids_Yt: jax.Array
  windows_Yt: jax.Array
  branches_Yt: jax.Array | None
  queries: jax.Array
  keys: jax.Array
  count: jax.Array
  per_row: int = dataclasses.field(metadata=dict(static=True))

  def seen(self, i: jax.Array, j: jax.Array, heads: int) -> jax.Array:
    """Whether a query of block i sees a key of block j, bool [Q, t], alike for all heads."""
    # The rules of `attention.Seen.mask`, of one pair of blocks.
    behind = self.slots_Yt[i][:, None] - self.slots_Yt[j]
    seen = behind >= 0
    seen &= behind < self.windows_Yt[i][:, None]
    seen &= self.segment_ids_Yt[i][:, None] == self.segment_ids_Yt[j]
    if self.branches_Yt is not None:
      in_trunk = self.branches_Yt[j] == 0
      seen &= in_trunk | (self.branches_Yt[i][:, None] == self.branches_Yt[j])
    return jnp.tile(seen, (heads, 1))


def _blocks(where_BT, length: int) -> _Blocks:
  """The blocks of all rows, with pairs found by the ends of what a block holds.

  A few pairs more than necessary are found, never fewer.
  """
  slots, segments, windows, *branches = (
    rearrange(x_BT, 'B (n t) -> B n t', t=length) for x_BT in where_BT
  )
  per_row = slots.shape[1]
  # Padding comes last, so that blocks of nothing else are left out.
  segments_up = jnp.where(segments == 0, LAST, segments)
  low = segments_up.min(-1)
  high = segments_up.max(-1)
  # A pair may share a segment if the ranges of segments, from low to high, overlap.
  live = (low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])
  live &= (low < LAST)[:, :, None] & (low < LAST)[:, None]
  # Causal: no block of keys lies behind the block of queries.
  live &= jnp.tri(per_row, dtype=bool)
  # The last key of a block must lie within the window of some query.
  first_seen = (slots - windows).min(-1)
  live &= first_seen[:, :, None] < slots.max(-1)[:, None]
  # A query sees keys of the trunk, which is branch 0, and of its own branch.
  if branches:
    low_branch = branches[0].min(-1)
    high_branch = branches[0].max(-1)
    in_trunk = (low_branch == 0)[:, None]
    overlapping = (low_branch[:, :, None] <= high_branch[:, None]) & (
      low_branch[:, None] <= high_branch[:, :, None]
    )
    live &= in_trunk | overlapping
  # Queries that see no key need a number too.
  live |= jnp.eye(per_row, dtype=bool)
  # A static size, as jit needs: pairs to compute come first, and `count` says how many there are.
  row, query, key = jnp.nonzero(live, size=live.size)
  return _Blocks(
    slots_Yt=slots.reshape(-1, length),
    segment_ids_Yt=segments.reshape(-1, length),
    windows_Yt=windows.reshape(-1, length),
    branches_Yt=branches[0].reshape(-1, length) if branches else None,
    queries=row * per_row + query,
    keys=row * per_row + key,
    count=live.sum(),
    per_row=per_row,
  )


@functools.cache
def _attention(scale: float, length: int) -> Callable[..., jax.Array]:
  """The function (q, k, v, slots, segments, windows, branches if any) -> [B, T, N, H].

  The function may be differentiated once, and then mapped over fine-tunes.
  """
  forward = kernels.as_rows(functools.partial(_forward, scale=scale, length=length))
  backward = kernels.as_rows(functools.partial(_backward, scale=scale, length=length))

  def forward_and_kept(*arrays):
    out, log_sums = forward(*arrays)
    return out, (*arrays, out, log_sums)

  def gradients(kept, dout):
    # q, k and v have gradients; the integers after them, less out and log_sums, have none.
    integers = len(kept) - 5
    return (*backward(*kept, dout), *[None] * integers)

  differentiable = jax.custom_vjp(lambda *arrays: forward(*arrays)[0])
  differentiable.defvjp(forward_and_kept, gradients)
  return differentiable


def _forward(q_BTNH, k_BTKH, v_BTKH, *where_BT, scale, length):
  """(attention [B, T, N, H], the log of each query's sum of exponentials [B, T, N])."""
  blocks = _blocks(where_BT, length)
  q_YKQH = _cut_queries(q_BTNH, k_BTKH, length)
  k_YKtH = _cut(k_BTKH, length)
  v_YKtH = _cut(v_BTKH, length)
  heads = q_BTNH.shape[2] // k_BTKH.shape[2]

  def add(pair, carry):
    top_YKQ, sum_YKQ, out_YKQH = carry
    i = blocks.queries[pair]
    j = blocks.keys[pair]
    scores_KQt = _dot('KQH,KtH->KQt', q_YKQH[i], k_YKtH[j]) * scale
    scores_KQt = jnp.where(blocks.seen(i, j, heads), scores_KQt, LOWEST)
    # Exponentials are taken of scores less the highest score so far, and cannot overflow.
    top_KQ = jnp.maximum(top_YKQ[i], scores_KQt.max(-1))
    weights_KQt = jnp.exp(scores_KQt - top_KQ[..., None])
    # What was summed under an earlier, lower top is scaled down to the new one.
    before_KQ = jnp.exp(top_YKQ[i] - top_KQ)
    kept_KQH = out_YKQH[i] * before_KQ[..., None]
    # Weights are rounded to the dtype of the values, as in the reference; sums stay in float32.
    rounded_KQt = weights_KQt.astype(v_YKtH.dtype)
    out_KQH = kept_KQH + _dot('KQt,KtH->KQH', rounded_KQt, v_YKtH[j])
    return (
      top_YKQ.at[i].set(top_KQ),
      sum_YKQ.at[i].set(sum_YKQ[i] * before_KQ + weights_KQt.sum(-1)),
      out_YKQH.at[i].set(out_KQH),
    )

  zeros_YKQH = jnp.zeros(q_YKQH.shape, jnp.float32)
  start = (jnp.full(q_YKQH.shape[:3], LOWEST), zeros_YKQH[..., 0], zeros_YKQH)
  top_YKQ, sum_YKQ, out_YKQH = jax.lax.fori_loop(0, blocks.count, add, start)
  # One number for each query is all that the backward pass needs to have the weights again.
  log_sums_YKQ = top_YKQ + jnp.log(sum_YKQ)

  def join(x):
    return _join_queries(x, blocks.per_row, heads)

  # Divided once at the end, not in every pair (FlashAttention-2, section 3.1).
  mean_YKQH = out_YKQH / sum_YKQ[..., None]
  out_BTNH = join(mean_YKQH).astype(q_BTNH.dtype)
  log_sums_BTN = join(log_sums_YKQ[..., None])[..., 0]
  return out_BTNH, log_sums_BTN


def _backward(q_BTNH, k_BTKH, v_BTKH, *others, scale, length):
  """The gradients of q, k and v."""
  *where_BT, out_BTNH, log_sums_BTN, dout_BTNH = others
  blocks = _blocks(where_BT, length)
  k_YKtH = _cut(k_BTKH, length)
  v_YKtH = _cut(v_BTKH, length)
  heads = q_BTNH.shape[2] // k_BTKH.shape[2]

  def cut(x):
    return _cut_queries(x, k_BTKH, length)

  q_YKQH = cut(q_BTNH)
  dout_YKQH = cut(dout_BTNH)
  log_sums_YKQ = cut(log_sums_BTN[..., None])[..., 0]
  # The sum over keys of weight times its gradient, from output and cotangent alone: D of
  # FlashAttention-2, algorithm 2.
  products_BTNH = out_BTNH.astype(jnp.float32) * dout_BTNH
  mean_BTN1 = jnp.sum(products_BTNH, axis=-1, keepdims=True)
  mean_YKQ = cut(mean_BTN1)[..., 0]

  def add(pair, carry):
    dq_YKQH, dk_YKtH, dv_YKtH = carry
    i = blocks.queries[pair]
    j = blocks.keys[pair]
    scores_KQt = _dot('KQH,KtH->KQt', q_YKQH[i], k_YKtH[j]) * scale
    # Weights, computed again from scores and the logs of sums.
    seen_Qt = blocks.seen(i, j, heads)
    weights_KQt = jnp.exp(scores_KQt - log_sums_YKQ[i][..., None])
    weights_KQt = jnp.where(seen_Qt, weights_KQt, 0)
    # Back through the softmax, to the scores.
    dweights_KQt = _dot('KQH,KtH->KQt', dout_YKQH[i], v_YKtH[j])
    centred_KQt = dweights_KQt - mean_YKQ[i][..., None]
    dscores_KQt = weights_KQt * centred_KQt * scale
    dscores_KQt = dscores_KQt.astype(q_YKQH.dtype)
    # Back through the products, and added to the sums of both blocks.
    dq_YKQH = dq_YKQH.at[i].add(_dot('KQt,KtH->KQH', dscores_KQt, k_YKtH[j]))
    dk_YKtH = dk_YKtH.at[j].add(_dot('KQt,KQH->KtH', dscores_KQt, q_YKQH[i]))
    rounded_KQt = weights_KQt.astype(q_YKQH.dtype)
    dv_YKtH = dv_YKtH.at[j].add(_dot('KQt,KQH->KtH', rounded_KQt, dout_YKQH[i]))
    return dq_YKQH, dk_YKtH, dv_YKtH

  # Summed in float32 over all pairs, and rounded once at the end.
  start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q_YKQH, k_YKtH, v_YKtH))
  dq_YKQH, dk_YKtH, dv_YKtH = jax.lax.fori_loop(0, blocks.count, add, start)

  def join(x, heads):
    return _join_queries(x, blocks.per_row, heads).astype(q_BTNH.dtype)

  # A kv head stands for itself alone.
  return join(dq_YKQH, heads), join(dk_YKtH, 1), join(dv_YKtH, 1)


def _dot(einsum: str, x: jax.Array, y: jax.Array) -> jax.Array:
  # Products of bfloat16 arrays leave the multiplication in float32, unrounded.
  return jnp.einsum(einsum, x, y, preferred_element_type=jnp.float32)


def _cut(x_BTKH: jax.Array, length: int) -> jax.Array:
  return rearrange(x_BTKH, 'B (n t) K H -> (B n) K t H', t=length)


def _cut_queries(x_BTNH: jax.Array, k_BTKH: jax.Array, length: int) -> jax.Array:
  return rearrange(x_BTNH, 'B (n t) (K G) H -> (B n) K (G t) H', t=length, K=k_BTKH.shape[2])


def _join_queries(x_YKQH: jax.Array, per_row: int, heads: int) -> jax.Array:
  return rearrange(x_YKQH, '(B n) K (G t) H -> B (n t) (K G) H', n=per_row, G=heads)
