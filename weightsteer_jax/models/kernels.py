"""Attention kernels of libraries, with the signatures that attention.py calls.

Axes as in decoder.py.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from weightsteer_jax.runtime import sharding

PyTree = Any
Array = jax.Array | np.ndarray

# Splash cuts a sequence into tiles of this length. Source:
# jax.experimental.pallas.ops.tpu.splash_attention, NUM_LANES.
TILE = 128
# The implementation of jax.nn.dot_product_attention; tests take 'xla', which runs anywhere.
IMPLEMENTATION: Literal['cudnn', 'xla'] = 'cudnn'
# Whether Pallas kernels run without their hardware, slowly; for tests.
INTERPRET = False


def cudnn(
  q_BTNH: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
  mask_BTS: Array | None,
  *,
  scale: float,
) -> jax.Array:
  """Attention [B, T, N, H] of cuDNN, causal or by a mask."""
  if mask_BTS is None:
    return _library(q_BTNH, k_BTKH, v_BTKH, scale=scale, is_causal=True)
  return _masked(scale)(q_BTNH, k_BTKH, v_BTKH, mask_BTS[:, None])


def _library(q_BTNH, k_BTKH, v_BTKH, **options):
  return jax.nn.dot_product_attention(
    q_BTNH, k_BTKH, v_BTKH, implementation=IMPLEMENTATION, **options
  )


@functools.cache
def _masked(scale: float) -> Callable[..., jax.Array]:
  """The function (q, k, v, mask [B, 1, T, S]) -> attention [B, T, N, H].

  The function may be differentiated and then mapped over fine-tunes. jax's own batching rule (0.10,
  0.11) asks for a mask of each head; here the mapped axis becomes rows. The gradient computes the
  forward kernel once more, a fiftieth of a training step.
  """

  def attention(q_BTNH, k_BTKH, v_BTKH, mask_B1TS):
    return _library(q_BTNH, k_BTKH, v_BTKH, mask=mask_B1TS, scale=scale)

  def gradient(q_BTNH, k_BTKH, v_BTKH, mask_B1TS, dy_BTNH):
    def of_mask(q_BTNH, k_BTKH, v_BTKH):
      return attention(q_BTNH, k_BTKH, v_BTKH, mask_B1TS)

    _, pull = jax.vjp(of_mask, q_BTNH, k_BTKH, v_BTKH)
    return pull(dy_BTNH)

  forward = as_rows(attention)
  backward = as_rows(gradient)
  differentiable = jax.custom_vjp(lambda *arrays: forward(*arrays))
  differentiable.defvjp(
    lambda *arrays: (forward(*arrays), arrays), lambda arrays, dy: (*backward(*arrays, dy), None)
  )
  return differentiable


def as_rows(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
  """The function of arrays [B, ...]; under `vmap` one call, with the mapped axis as rows."""
  mapped = jax.custom_batching.custom_vmap(function)

  @mapped.def_vmap
  def rule(size, is_mapped, *arrays):
    rows = []
    for x, has_axis in zip(arrays, is_mapped, strict=True):
      x = x if has_axis else jnp.broadcast_to(x, (size, *x.shape))
      rows.append(rearrange(x, 'n B ... -> (n B) ...'))
    results = mapped(*rows)
    results = jax.tree.map(lambda y: rearrange(y, '(n B) ... -> n B ...', n=size), results)
    # Each result is mapped too.
    return results, jax.tree.map(lambda y: True, results)

  return mapped


def splash(
  q_BTNH: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
  segment_ids_BT: Array | None,
  branches_BT: Array | None = None,
  *,
  scale: float,
) -> jax.Array:
  """Attention [B, T, N, H] of splash, causal, within segments and their branches.

  With branches the result cannot be differentiated.
  """
  if segment_ids_BT is None:
    segment_ids_BT = jnp.ones(q_BTNH.shape[:2], jnp.int32)

  def local(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, *branches_BT):
    # splash takes heads before positions, and has no scale of its own.
    q_BNTH = jnp.swapaxes(q_BTNH * jnp.asarray(scale, q_BTNH.dtype), 1, 2)
    k_BKTH = jnp.swapaxes(k_BTKH, 1, 2)
    v_BKTH = jnp.swapaxes(v_BTKH, 1, 2)
    if branches_BT:
      out_BNTH = _splash_branches(q_BNTH, k_BKTH, v_BKTH, segment_ids_BT, *branches_BT)
    else:
      kernel = jax.vmap(_splash_kernel(*q_BNTH.shape[1:3]))
      out_BNTH = kernel(q_BNTH, k_BKTH, v_BKTH, _ids(segment_ids_BT, segment_ids_BT))
    return jnp.swapaxes(out_BNTH, 1, 2)

  branches = () if branches_BT is None else (branches_BT,)
  return by_device(local)(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, *branches)


def _splash_branches(q_BNTH, k_BKTH, v_BKTH, segment_ids_BT, branches_BT):
  """Attention [B, N, T, H] within segments and branches, of two calls joined by their sums.

  In the first call the queries of branches see the keys of their trunks; in the second, every query
  sees the keys of its own piece of the row.
  """
  kernel = jax.vmap(_splash_kernel(*q_BNTH.shape[1:3], save_residuals=True))
  in_branch_BT = branches_BT > 0
  begins_BT = jnp.diff(segment_ids_BT, prepend=0) != 0
  pieces_BT = jnp.cumsum(begins_BT | (jnp.diff(branches_BT, prepend=0) != 0), axis=1)
  trunks = _ids(
    jnp.where(in_branch_BT, segment_ids_BT, -1), jnp.where(in_branch_BT, -2, segment_ids_BT)
  )
  parts = [kernel(q_BNTH, k_BKTH, v_BKTH, ids) for ids in (trunks, _ids(pieces_BT, pieces_BT))]
  # The log-sum of a query that sees nothing is finite, and far below any other.
  log_sums = jnp.stack([log_sums_BNT for _, (log_sums_BNT,) in parts])
  shares = jax.nn.softmax(log_sums, axis=0)[..., None]
  joined_BNTH = sum(
    share * out_BNTH.astype(jnp.float32) for share, (out_BNTH, _) in zip(shares, parts, strict=True)
  )
  return joined_BNTH.astype(q_BNTH.dtype)


def _ids(queries_BT: jax.Array, keys_BT: jax.Array) -> Any:
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

  return splash_attention_kernel.SegmentIds(queries_BT, keys_BT)


def by_device(local: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """The function (q, k, v, *others [B, T]) -> [B, T, N, H], run on each device's rows and heads.

  For programs that the partitioner cannot look into: a Pallas call, a loop over blocks of rows.
  """

  def attention(q_BTNH, k_BTKH, v_BTKH, *others_BT):
    row_axes = sharding.axes_of('B', q_BTNH.shape[0])
    head_axes = sharding.axes_of('K', k_BTKH.shape[2])
    if not row_axes and not head_axes:
      return local(q_BTNH, k_BTKH, v_BTKH, *others_BT)
    spec_BTNH = jax.P(row_axes or None, None, head_axes or None, None)
    spec_BT = jax.P(row_axes or None, None)
    mapped = jax.shard_map(
      local,
      in_specs=(spec_BTNH, spec_BTNH, spec_BTNH, *(spec_BT for _ in others_BT)),
      out_specs=spec_BTNH,
      # A Pallas call does not say over which mesh axes its results vary.
      check_vma=False,
    )
    return mapped(q_BTNH, k_BTKH, v_BTKH, *others_BT)

  return attention


def _splash_kernel(heads: int, length: int, **options: Any) -> Any:
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  # The largest block of whole tiles that divides the length.
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
