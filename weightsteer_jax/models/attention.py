"""Attention: one meaning, written out as `reference`, and the kernels that compute the same faster.

  reference   einsums and a softmax in float32: everywhere, for everything; its scores [B, N, T, S]
              are in memory
  blocked     flash attention in plain JAX, which leaves out blocks that nothing sees: CPUs (see
              blocked.py)
  cudnn       flash attention of cuDNN, through `jax.nn.dot_product_attention`: GPUs, bfloat16 (see
              kernels.py)
  splash      flash attention in Pallas, of jax.experimental: TPUs (see kernels.py)

Axes as in decoder.py. A kernel is chosen when a model is loaded (see `choose`) and named by its
config; a call that the kernel cannot take (a softcap, a sliding window but for `blocked`, a shape)
is computed by `reference`.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from weightsteer_jax.models import blocked, kernels
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.runtime.errors import InputError

REFERENCE, BLOCKED, CUDNN, SPLASH = 'reference', 'blocked', 'cudnn', 'splash'
AUTO = 'auto'
KERNELS = (REFERENCE, BLOCKED, CUDNN, SPLASH)
PLATFORMS = {BLOCKED: 'cpu', CUDNN: 'gpu', SPLASH: 'tpu'}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seen:
  """Which keys a query sees.

  Attributes:
    slots_BT: how far along each query is; it sees no key that is farther. A segment's keys lie in
      the order of their slots.
    segment_ids_BT: it sees those of its own segment only; None where a row is one.
    branches_BT: where a segment branches, 0 in its trunk, and otherwise which branch: it sees the
      trunk and its own branch. None where none does.
    own: whether the keys are those of the queries themselves, with their slots; otherwise they are
      those of a cache, and have the slots 0, 1, 2, ...
  """

  slots_BT: jax.Array
  segment_ids_BT: jax.Array | None = None
  branches_BT: jax.Array | None = None
  own: bool = dataclasses.field(default=True, metadata=dict(static=True))

  def mask(self, keys: int, window: jax.Array | None = None) -> jax.Array:
    """Whether query t sees key s, bool [B, T, S]; with a window, only the last so many before it,
    itself included.
    """
    slots_BS = self.slots_BT if self.own else jnp.arange(keys)[None]
    behind_BTS = self.slots_BT[:, :, None] - slots_BS[:, None, :]
    mask_BTS = behind_BTS >= 0
    if window is not None:
      mask_BTS = mask_BTS & (behind_BTS < window)
    if self.segment_ids_BT is not None:
      mask_BTS = mask_BTS & (self.segment_ids_BT[:, :, None] == self.segment_ids_BT[:, None, :])
    if self.branches_BT is not None:
      theirs_B1S = self.branches_BT[:, None, :]
      mask_BTS = mask_BTS & ((theirs_B1S == 0) | (self.branches_BT[:, :, None] == theirs_B1S))
    return mask_BTS


def with_kernel(config: ModelConfig, asked: str, *, platform: str, dtype: Any) -> ModelConfig:
  """The config with the kernel that `choose` takes for it (errors as there)."""
  kernel = choose(
    asked, platform, dtype=dtype, head_dim=config.head_dim, softcap=config.score_softcap
  )
  return dataclasses.replace(config, attention=kernel)


def choose(asked: str, platform: str, *, dtype: Any, head_dim: int, softcap: float | None) -> str:
  """The kernel for a model: the one asked for, or with 'auto' the fastest that the platform has and
  the model can use.

  Raises:
    InputError: one that there is not, that belongs to another platform, or that the model cannot
      use.
  """
  if asked not in (AUTO, *KERNELS):
    raise InputError(f"model.attention is '{asked}', expected one of {', '.join((AUTO, *KERNELS))}")
  if asked in (AUTO, REFERENCE):
    fitting = (
      kernel for kernel in PLATFORMS if not _unfit(kernel, platform, dtype, head_dim, softcap)
    )
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
    return (
      f'the kernel takes heads of up to 256 dimensions, a multiple of 8, and these have {head_dim}'
    )
  return ''


def attend(
  q_BTNH: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
  seen: Seen,
  *,
  kernel: str = REFERENCE,
  scale: float | None = None,
  softcap: float | None = None,
  window: jax.Array | None = None,
) -> jax.Array:
  """Softmax attention [B, T, N, H] over the queries' own keys, those that are seen; query head n
  reads kv head n // G.

  Args:
    kernel: one of KERNELS.
    scale: scores are multiplied by it; by 1 / sqrt(H) if None. softcap: see config.ModelConfig.
    window: keys a query sees at most, a scalar; None for all.
  """
  _, length, _, head_dim = q_BTNH.shape
  scale = 1 / math.sqrt(head_dim) if scale is None else scale
  if softcap is None:
    if kernel == BLOCKED and (block := blocked.block_length(length, head_dim)):
      return blocked.attend(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        seen.slots_BT,
        seen.segment_ids_BT,
        seen.branches_BT,
        window,
        scale=scale,
        block=block,
      )
    # T = 64 modulo 128: where cuDNN's masked backward pass gave NaN on Hopper (pytorch issue
    # 196678).
    if kernel == CUDNN and window is None and length % 128 != 64:
      mask_BTS = (
        None if seen.segment_ids_BT is None and seen.branches_BT is None else seen.mask(length)
      )
      return kernels.cudnn(q_BTNH, k_BTKH, v_BTKH, mask_BTS, scale=scale)
    if kernel == SPLASH and window is None and length % kernels.TILE == 0:
      return kernels.splash(
        q_BTNH, k_BTKH, v_BTKH, seen.segment_ids_BT, seen.branches_BT, scale=scale
      )
  k_BKTH, v_BKTH = (jnp.swapaxes(x, 1, 2) for x in (k_BTKH, v_BTKH))
  # A backward pass computes the scores again: to keep [B, N, T, T] of each layer takes longer, and
  # most of the memory.
  reference = jax.checkpoint(
    functools.partial(attend_cached, scale=scale, softcap=softcap), prevent_cse=False
  )
  return reference(q_BTNH, k_BKTH, v_BKTH, seen, window=window)


def attend_cached(
  q_BTNH: jax.Array,
  k_BKSH: jax.Array,
  v_BKSH: jax.Array,
  seen: Seen,
  *,
  scale: float | None = None,
  softcap: float | None = None,
  window: jax.Array | None = None,
) -> jax.Array:
  """The reference, on keys and values as a cache holds them: few queries, for which no kernel is
  faster.
  """
  scale = 1 / math.sqrt(q_BTNH.shape[-1]) if scale is None else scale
  mask_BTS = seen.mask(k_BKSH.shape[2], window)
  # The queries are moved, so that the scores, which are many more, come out in the order they are
  # used in.
  q_BKGTH = rearrange(q_BTNH, 'B T (K G) H -> B K G T H', K=k_BKSH.shape[1])
  scores_BKGTS = (
    jnp.einsum('BKGTH,BKSH->BKGTS', q_BKGTH, k_BKSH, preferred_element_type=jnp.float32) * scale
  )
  scores_BKGTS = jnp.where(
    mask_BTS[:, None, None], soften(scores_BKGTS, softcap), jnp.finfo(jnp.float32).min
  )
  weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BKSH.dtype)
  return rearrange(
    jnp.einsum('BKGTS,BKSH->BKGTH', weights_BKGTS, v_BKSH), 'B K G T H -> B T (K G) H'
  )


def soften(x: jax.Array, cap: float | None) -> jax.Array:
  """x bent to stay within plus and minus the cap, if there is one. Source: Gemma 2, arXiv
  2408.00118, section 2.
  """
  return x if cap is None else cap * jnp.tanh(x / cap)
