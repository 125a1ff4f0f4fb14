"""Attention kernels of libraries, made to be called as attention.py calls them. Axes as in
decoder.py.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from weightsteer_jax.runtime import sharding

PyTree = Any

# What splash tiles a sequence by. Source: jax.experimental.pallas.ops.tpu.splash_attention,
# NUM_LANES.
TILE = 128
IMPLEMENTATION = 'cudnn'  # of jax.nn.dot_product_attention
INTERPRET = False  # run Pallas kernels without their hardware, slowly


def cudnn(
  q_BTNH: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
  mask_BTS: jax.Array | None,
  *,
  scale: float,
) -> jax.Array:
  """Attention [B, T, N, H], causal or by a mask."""
  if mask_BTS is None:
    return _library(q_BTNH, k_BTKH, v_BTKH, scale=scale, is_causal=True)
  return _masked(scale)(q_BTNH, k_BTKH, v_BTKH, mask_BTS[:, None])


def _library(q_BTNH, k_BTKH, v_BTKH, **options):
  return jax.nn.dot_product_attention(
    q_BTNH, k_BTKH, v_BTKH, implementation=IMPLEMENTATION, **options
  )


@functools.cache
def _masked(scale: float) -> Callable[..., jax.Array]:
  """(q, k, v, mask [B, 1, T, S]) -> attention, which may be differentiated and then mapped over
  fine-tunes.

  jax's rule for that (0.10, 0.11) asks for a mask of each head; here what is mapped over becomes
  rows. The gradient computes the forward kernel once more, a fiftieth of a training step.
  """

  def attention(q_BTNH, k_BTKH, v_BTKH, mask_B1TS):
    return _library(q_BTNH, k_BTKH, v_BTKH, mask=mask_B1TS, scale=scale)

  def gradient(q_BTNH, k_BTKH, v_BTKH, mask_B1TS, dy_BTNH):
    return jax.vjp(lambda q, k, v: attention(q, k, v, mask_B1TS), q_BTNH, k_BTKH, v_BTKH)[1](
      dy_BTNH
    )

  forward, backward = as_rows(attention), as_rows(gradient)
  differentiable = jax.custom_vjp(lambda *arrays: forward(*arrays))
  differentiable.defvjp(
    lambda *arrays: (forward(*arrays), arrays), lambda arrays, dy: (*backward(*arrays, dy), None)
  )
  return differentiable


def as_rows(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
  """The function of arrays [B, ...], under `vmap` called once with all there is as rows."""
  mapped = jax.custom_batching.custom_vmap(function)

  @mapped.def_vmap
  def rule(size, is_mapped, *arrays):
    whole = [
      x if there else jnp.broadcast_to(x, (size, *x.shape)) for x, there in zip(arrays, is_mapped)
    ]
    found = mapped(*(rearrange(x, 'n B ... -> (n B) ...') for x in whole))
    return jax.tree.map(
      lambda y: rearrange(y, '(n B) ... -> n B ...', n=size), found
    ), jax.tree.map(lambda y: True, found)

  return mapped


def splash(
  q_BTNH: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
  segment_ids_BT: jax.Array | None,
  branches_BT: jax.Array | None = None,
  *,
  scale: float,
) -> jax.Array:
  """Attention [B, T, N, H], causal, within segments and their branches; these cannot be
  differentiated.
  """
  segment_ids_BT = (
    jnp.ones(q_BTNH.shape[:2], jnp.int32) if segment_ids_BT is None else segment_ids_BT
  )

  def local(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, *branches_BT):
    q, k, v = (
      jnp.swapaxes(x, 1, 2) for x in (q_BTNH * jnp.asarray(scale, q_BTNH.dtype), k_BTKH, v_BTKH)
    )
    if branches_BT:
      return jnp.swapaxes(_splash_branches(q, k, v, segment_ids_BT, *branches_BT), 1, 2)
    return jnp.swapaxes(
      jax.vmap(_splash_kernel(*q.shape[1:3]))(q, k, v, _ids(segment_ids_BT, segment_ids_BT)), 1, 2
    )

  return by_device(local)(
    q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, *(() if branches_BT is None else (branches_BT,))
  )


def _splash_branches(q_BNTH, k_BKTH, v_BKTH, segment_ids_BT, branches_BT):
  """Branches' queries over the keys of their trunks, and all over their own pieces of a row: two
  calls, whose softmaxes are joined by their sums.
  """
  kernel = jax.vmap(_splash_kernel(*q_BNTH.shape[1:3], save_residuals=True))
  in_branch_BT = branches_BT > 0
  begins_BT = jnp.diff(segment_ids_BT, prepend=0) != 0
  pieces_BT = jnp.cumsum(begins_BT | (jnp.diff(branches_BT, prepend=0) != 0), axis=1)
  trunks = _ids(
    jnp.where(in_branch_BT, segment_ids_BT, -1), jnp.where(in_branch_BT, -2, segment_ids_BT)
  )
  parts = [kernel(q_BNTH, k_BKTH, v_BKTH, ids) for ids in (trunks, _ids(pieces_BT, pieces_BT))]
  log_sums = [
    log_sums_BNT for _, (log_sums_BNT,) in parts
  ]  # Of a query that sees nothing, finite and far below any other.
  shares = jax.nn.softmax(jnp.stack(log_sums), axis=0)[..., None]
  return sum(
    share * out_BNTH.astype(jnp.float32) for share, (out_BNTH, _) in zip(shares, parts)
  ).astype(q_BNTH.dtype)


def _ids(queries_BT: jax.Array, keys_BT: jax.Array) -> Any:
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

  return splash_attention_kernel.SegmentIds(queries_BT, keys_BT)


def by_device(local: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """The function (q, k, v, *others [B, T]) -> [B, T, N, H] on each device's rows and heads by
  themselves.

  For what the partitioner cannot look into: a Pallas call, a loop over blocks of rows.
  """

  def attention(q_BTNH, k_BTKH, v_BTKH, *others_BT):
    rows, cut = sharding.axes_of('B', q_BTNH.shape[0]), sharding.axes_of('K', k_BTKH.shape[2])
    if not rows and not cut:
      return local(q_BTNH, k_BTKH, v_BTKH, *others_BT)
    heads, row = jax.P(rows or None, None, cut or None, None), jax.P(rows or None, None)
    mapped = jax.shard_map(
      local,
      in_specs=(heads, heads, heads, *(row for _ in others_BT)),
      out_specs=heads,
      check_vma=False,
    )
    return mapped(q_BTNH, k_BTKH, v_BTKH, *others_BT)

  return attention


def _splash_kernel(heads: int, length: int, **options: Any) -> Any:
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  block = next(size for size in (512, 384, 256, TILE) if length % size == 0)
  sizes = splash_attention_kernel.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
  return splash_attention_kernel.make_splash_mha(
    mask=mask, head_shards=1, q_seq_shards=1, block_sizes=sizes, interpret=INTERPRET, **options
  )
