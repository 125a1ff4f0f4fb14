"""Attention: one meaning, written out as `reference`, and the kernels that compute the same faster.

  reference   einsums and a softmax in float32: everywhere, for everything; its scores [B, N, T, S] are in memory
  cudnn       flash attention of cuDNN, through `jax.nn.dot_product_attention`: GPUs, bfloat16
  splash      flash attention in Pallas, of jax.experimental: TPUs

Axes as in decoder.py. A kernel is chosen when a model is loaded (see `choose`) and named by its config; a call that the
kernel cannot take (a softcap, a sliding window, a shape) is computed by `reference`.
"""
import dataclasses
import functools
import math
from typing import Any, Callable

from einops import rearrange
import jax
import jax.numpy as jnp

from weightsteer_jax import sharding
from weightsteer_jax.errors import InputError
from weightsteer_jax.models.config import ModelConfig

PyTree = Any

REFERENCE, CUDNN, SPLASH = 'reference', 'cudnn', 'splash'
AUTO = 'auto'
KERNELS = (REFERENCE, CUDNN, SPLASH)
PLATFORMS = {CUDNN: 'gpu', SPLASH: 'tpu'}
# What splash tiles a sequence by. Source: jax.experimental.pallas.ops.tpu.splash_attention, NUM_LANES.
TILE = 128
IMPLEMENTATION = 'cudnn'  # of jax.nn.dot_product_attention
INTERPRET = False  # run Pallas kernels without their hardware, slowly


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seen:
  """Which keys a query sees.

  Attributes:
    slots_BT: the place of each query among the keys; it sees none behind it.
    segments_BT: it sees those of its own segment only; None where a row is one.
    own: whether the keys are those of the queries themselves, in the same places; otherwise they are those of a cache.
  """
  slots_BT: jax.Array
  segments_BT: jax.Array | None = None
  own: bool = dataclasses.field(default=True, metadata=dict(static=True))

  def mask(self, keys: int, window: jax.Array | None = None) -> jax.Array:
    """Whether query t sees key s, bool [B, T, S]; with a window, only the last so many before it, itself included."""
    behind_BTS = self.slots_BT[:, :, None] - jnp.arange(keys)
    mask_BTS = behind_BTS >= 0
    if window is not None:
      mask_BTS = mask_BTS & (behind_BTS < window)
    if self.segments_BT is not None:
      mask_BTS = mask_BTS & (self.segments_BT[:, :, None] == self.segments_BT[:, None, :])
    return mask_BTS


def with_kernel(config: ModelConfig, asked: str, *, platform: str, dtype: Any) -> ModelConfig:
  """The config with the kernel that `choose` takes for it (errors as there)."""
  kernel = choose(asked, platform, dtype=dtype, head_dim=config.head_dim, softcap=config.score_softcap)
  return dataclasses.replace(config, attention=kernel)


def choose(asked: str, platform: str, *, dtype: Any, head_dim: int, softcap: float | None) -> str:
  """The kernel for a model: the one asked for, or with 'auto' the fastest that the platform has and the model can use.

  Raises:
    InputError: one that there is not, that belongs to another platform, or that the model cannot use.
  """
  if asked not in (AUTO, *KERNELS):
    raise InputError(f"model.attention is '{asked}', expected one of {', '.join((AUTO, *KERNELS))}")
  if asked in (AUTO, REFERENCE):
    fitting = (kernel for kernel in PLATFORMS if not _unfit(kernel, platform, dtype, head_dim, softcap))
    return next(fitting, REFERENCE) if asked == AUTO else REFERENCE
  if why := _unfit(asked, platform, dtype, head_dim, softcap):
    raise InputError(f"model.attention is '{asked}', but {why}; take 'auto' or '{REFERENCE}'")
  return asked


def _unfit(kernel: str, platform: str, dtype: Any, head_dim: int, softcap: float | None) -> str:
  """Why the kernel is not for this model, or ''."""
  if platform != PLATFORMS[kernel]:
    return f'that kernel runs on {PLATFORMS[kernel].upper()}s and this is a {platform.upper()}'
  if softcap is not None:
    return 'the model bends its attention scores (a softcap), which the kernel does not'
  if kernel == CUDNN and jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
    return f'the kernel computes in bfloat16 and the model is {jnp.dtype(dtype).name}'
  if kernel == CUDNN and (head_dim % 8 or head_dim > 256):
    return f'the kernel takes heads of up to 256 dimensions, a multiple of 8, and these have {head_dim}'
  return ''


def attend(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, seen: Seen, *, kernel: str = REFERENCE,
           scale: float | None = None, softcap: float | None = None, window: jax.Array | None = None) -> jax.Array:
  """Softmax attention [B, T, N, H] over the queries' own keys, those that are seen; query head n reads kv head n // G.

  Args:
    kernel: one of KERNELS.
    scale: scores are multiplied by it; by 1 / sqrt(H) if None. softcap: see config.ModelConfig.
    window: keys a query sees at most, a scalar; None for all.
  """
  length = q_BTNH.shape[1]
  if softcap is None and window is None:
    scale = 1 / math.sqrt(q_BTNH.shape[-1]) if scale is None else scale
    # T = 64 modulo 128: where cuDNN's masked backward pass gave NaN on Hopper (pytorch issue 196678).
    if kernel == CUDNN and length % 128 != 64:
      return _cudnn(q_BTNH, k_BTKH, v_BTKH, seen, scale)
    if kernel == SPLASH and length % TILE == 0:
      return _splash(q_BTNH, k_BTKH, v_BTKH, seen, scale)
  k_BKTH, v_BKTH = (jnp.swapaxes(x, 1, 2) for x in (k_BTKH, v_BTKH))
  # A backward pass computes the scores again: to keep [B, N, T, T] of each layer takes longer, and most of the memory.
  reference = jax.checkpoint(functools.partial(attend_cached, scale=scale, softcap=softcap), prevent_cse=False)
  return reference(q_BTNH, k_BKTH, v_BKTH, seen, window=window)


def attend_cached(q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, seen: Seen, *, scale: float | None = None,
                  softcap: float | None = None, window: jax.Array | None = None) -> jax.Array:
  """The reference, on keys and values as a cache holds them: few queries, for which no kernel is faster."""
  scale = 1 / math.sqrt(q_BTNH.shape[-1]) if scale is None else scale
  mask_BTS = seen.mask(k_BKSH.shape[2], window)
  # The queries are moved, so that the scores, which are many more, come out in the order they are used in.
  q_BKGTH = rearrange(q_BTNH, 'B T (K G) H -> B K G T H', K=k_BKSH.shape[1])
  scores_BKGTS = jnp.einsum('BKGTH,BKSH->BKGTS', q_BKGTH, k_BKSH, preferred_element_type=jnp.float32) * scale
  scores_BKGTS = jnp.where(mask_BTS[:, None, None], soften(scores_BKGTS, softcap), jnp.finfo(jnp.float32).min)
  weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BKSH.dtype)
  return rearrange(jnp.einsum('BKGTS,BKSH->BKGTH', weights_BKGTS, v_BKSH), 'B K G T H -> B T (K G) H')


def soften(x: jax.Array, cap: float | None) -> jax.Array:
  """x bent to stay within plus and minus the cap, if there is one. Source: Gemma 2, arXiv 2408.00118, section 2."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def _cudnn(q_BTNH, k_BTKH, v_BTKH, seen, scale):
  if seen.segments_BT is None:
    return _library(q_BTNH, k_BTKH, v_BTKH, scale=scale, is_causal=True)
  return _masked(scale)(q_BTNH, k_BTKH, v_BTKH, seen.mask(k_BTKH.shape[1])[:, None])


def _library(q_BTNH, k_BTKH, v_BTKH, **options):
  return jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, implementation=IMPLEMENTATION, **options)


@functools.cache
def _masked(scale: float) -> Callable[..., jax.Array]:
  """(q, k, v, mask [B, 1, T, S]) -> attention, which may be differentiated and then mapped over fine-tunes.

  jax's rule for that (0.10, 0.11) asks for a mask of each head; here what is mapped over becomes rows. The gradient
  computes the forward kernel once more, a fiftieth of a training step.
  """
  def attention(q_BTNH, k_BTKH, v_BTKH, mask_B1TS):
    return _library(q_BTNH, k_BTKH, v_BTKH, mask=mask_B1TS, scale=scale)

  def gradient(q_BTNH, k_BTKH, v_BTKH, mask_B1TS, dy_BTNH):
    return jax.vjp(lambda q, k, v: attention(q, k, v, mask_B1TS), q_BTNH, k_BTKH, v_BTKH)[1](dy_BTNH)

  forward, backward = _as_rows(attention), _as_rows(gradient)
  differentiable = jax.custom_vjp(lambda *arrays: forward(*arrays))
  differentiable.defvjp(lambda *arrays: (forward(*arrays), arrays), lambda arrays, dy: (*backward(*arrays, dy), None))
  return differentiable


def _as_rows(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
  """The function of arrays [B, ...], under `vmap` called once with all there is as rows."""
  mapped = jax.custom_batching.custom_vmap(function)

  @mapped.def_vmap
  def rule(size, is_mapped, *arrays):
    whole = [x if there else jnp.broadcast_to(x, (size, *x.shape)) for x, there in zip(arrays, is_mapped)]
    found = mapped(*(rearrange(x, 'n B ... -> (n B) ...') for x in whole))
    return jax.tree.map(lambda y: rearrange(y, '(n B) ... -> n B ...', n=size), found), jax.tree.map(lambda y: True, found)

  return mapped


def _splash(q_BTNH, k_BTKH, v_BTKH, seen, scale):
  """The kernel on each device's rows and heads; a Pallas call is a black box to the partitioner."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  batch, length, heads, _ = q_BTNH.shape
  segments_BT = jnp.ones((batch, length), jnp.int32) if seen.segments_BT is None else seen.segments_BT
  rows, cut = sharding.axes_of('B', batch), sharding.axes_of('K', k_BTKH.shape[2])

  def local(q_BTNH, k_BTKH, v_BTKH, segments_BT):
    kernel = _splash_kernel(q_BTNH.shape[2], length)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BTNH * jnp.asarray(scale, q_BTNH.dtype), k_BTKH, v_BTKH))
    out = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=splash.SegmentIds(ids, ids)))(q, k, v, segments_BT)
    return jnp.swapaxes(out, 1, 2)

  if not rows and not cut:
    return local(q_BTNH, k_BTKH, v_BTKH, segments_BT)
  spec = jax.P(rows or None, None, cut or None, None)
  return jax.shard_map(local, in_specs=(spec, spec, spec, jax.P(rows or None, None)), out_specs=spec,
                       check_vma=False)(q_BTNH, k_BTKH, v_BTKH, segments_BT)


def _splash_kernel(heads: int, length: int) -> Any:
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
  block = next(size for size in (512, 384, 256, TILE) if length % size == 0)
  sizes = splash.BlockSizes(block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
                            block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block)
  mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
  return splash.make_splash_mha(mask=mask, head_shards=1, q_seq_shards=1, block_sizes=sizes, interpret=INTERPRET)
