"""Attention: a reference that says what is computed, and kernels that compute the same faster.

  reference   einsums and a softmax in float32, for every platform and option; scores [B, N, T, S]
              are in memory
  blocked     flash attention in plain JAX, for CPUs; leaves out blocks that no query sees (see
              blocked.py)
  cudnn       flash attention of cuDNN, through `jax.nn.dot_product_attention`, for GPUs in bfloat16
              (see kernels.py)
  splash      flash attention in Pallas, of jax.experimental, for TPUs (see kernels.py)

Axes as in decoder.py. The kernel is chosen when a model is loaded (see `choose`) and named by the
model's config. Calls that the kernel cannot take (a softcap, a sliding window except in `blocked`,
a shape) are computed by the reference.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from weightsteer_jax.models import blocked, kernels
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.runtime.errors import InputError

REFERENCE = 'reference'
BLOCKED = 'blocked'
CUDNN = 'cudnn'
SPLASH = 'splash'
KERNELS = (REFERENCE, BLOCKED, CUDNN, SPLASH)
# Not a kernel: the fastest one for the platform and the model.
AUTO = 'auto'
# The platform of each kernel that does not run everywhere.
PLATFORMS = {BLOCKED: 'cpu', CUDNN: 'gpu', SPLASH: 'tpu'}

# Inputs of a program, which tests and callers may give as numpy arrays.
Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seen:
  """Which keys a query sees.

  Attributes:
    slots_BT: how far along each query is; a query sees no key of a later slot. The keys of a
      segment lie in the order of their slots.
    segment_ids_BT: the segment of each token; a query sees only keys of the same segment. None if
      each row is one segment.
    branches_BT: the branch of each token of a segment, 0 in the trunk; a query sees keys of the
      trunk and of the same branch. None if no segment branches.
    own: whether the keys belong to the queries' own tokens, with the same slots; otherwise keys
      come from a cache, with slots 0, 1, 2, ...
  """

  slots_BT: Array
  segment_ids_BT: Array | None = None
  branches_BT: Array | None = None
  own: bool = dataclasses.field(default=True, metadata=dict(static=True))

  def mask(self, keys: int, window: jax.Array | None = None) -> Array:
    """Whether query t sees key s, bool [B, T, S].

    Args:
      keys: S, the number of keys in a row.
      window: keys a query sees at most, counted back from the query's own; None for all.
    """
    # The slots of a cache are the positions of its keys.
    slots_BS = self.slots_BT if self.own else jnp.arange(keys)[None]
    behind_BTS = self.slots_BT[:, :, None] - slots_BS[:, None, :]
    # Causal: a query sees its own key, 0 slots behind, and earlier keys.
    mask_BTS = behind_BTS >= 0
    if window is not None:
      mask_BTS = mask_BTS & (behind_BTS < window)
    if self.segment_ids_BT is not None:
      query_segments_BT1 = self.segment_ids_BT[:, :, None]
      key_segments_B1S = self.segment_ids_BT[:, None, :]
      mask_BTS = mask_BTS & (query_segments_BT1 == key_segments_B1S)
    if self.branches_BT is not None:
      key_branches_B1S = self.branches_BT[:, None, :]
      in_trunk_B1S = key_branches_B1S == 0
      same_branch_BTS = self.branches_BT[:, :, None] == key_branches_B1S
      mask_BTS = mask_BTS & (in_trunk_B1S | same_branch_BTS)
    return mask_BTS


def with_kernel(config: ModelConfig, choice: str, *, platform: str, dtype: Any) -> ModelConfig:
  """The config with the kernel that `choose` takes for the model; errors as in `choose`."""
  kernel = choose(
    choice, platform, dtype=dtype, head_dim=config.head_dim, softcap=config.score_softcap
  )
  return dataclasses.replace(config, attention=kernel)


def choose(choice: str, platform: str, *, dtype: Any, head_dim: int, softcap: float | None) -> str:
  """The kernel for a model: the chosen one, or with 'auto' the platform's fastest.

  Raises:
    InputError: if no kernel has that name, the kernel belongs to another platform, or the model
      cannot use the kernel.
  """
  if choice not in (AUTO, *KERNELS):
    raise InputError(
      f"model.attention is '{choice}', expected one of {', '.join((AUTO, *KERNELS))}"
    )
  if choice == REFERENCE:
    return REFERENCE
  if choice == AUTO:
    # A platform has one kernel, so that the order of the table does not matter.
    for kernel in PLATFORMS:
      if not _why_unfit(kernel, platform, dtype, head_dim, softcap):
        return kernel
    return REFERENCE
  why = _why_unfit(choice, platform, dtype, head_dim, softcap)
  if why:
    raise InputError(f"model.attention is '{choice}', but {why}; take 'auto' or '{REFERENCE}'")
  return choice


def _why_unfit(kernel: str, platform: str, dtype: Any, head_dim: int, softcap: float | None) -> str:
  """Why the kernel is not for this model, or ''."""
  if platform != PLATFORMS[kernel]:
    return f'that kernel runs on {PLATFORMS[kernel].upper()}s and this is a {platform.upper()}'
  if softcap is not None:
    return 'the model bends its attention scores (a softcap), which the kernel does not'
  if kernel == CUDNN and jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
    return f'the kernel computes in bfloat16 and the model is {jnp.dtype(dtype).name}'
  # Source: jax/_src/cudnn/fused_attention_stablehlo.py, the limits on Hopper and later.
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
  """Softmax attention [B, T, N, H] of queries over the keys of the same rows.

  Query head n reads kv head n // G.

  Args:
    kernel: one of KERNELS.
    scale: factor of the scores; 1 / sqrt(H) if None.
    softcap: bound of the scores; see config.ModelConfig.
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
    # At T = 64 modulo 128, cuDNN's masked backward pass gave NaN on Hopper (pytorch issue 196678).
    if kernel == CUDNN and window is None and length % 128 != 64:
      causal = seen.segment_ids_BT is None and seen.branches_BT is None
      mask_BTS = None if causal else seen.mask(length)
      return kernels.cudnn(q_BTNH, k_BTKH, v_BTKH, mask_BTS, scale=scale)
    if kernel == SPLASH and window is None and length % kernels.TILE == 0:
      return kernels.splash(
        q_BTNH, k_BTKH, v_BTKH, seen.segment_ids_BT, seen.branches_BT, scale=scale
      )
  # No kernel, or none that takes the call: the reference, which wants keys as a cache holds them.
  k_BKTH = jnp.swapaxes(k_BTKH, 1, 2)
  v_BKTH = jnp.swapaxes(v_BTKH, 1, 2)
  # A backward pass computes the scores again: keeping [B, N, T, T] of each layer takes longer, and
  # most of the memory.
  with_options = functools.partial(attend_cached, scale=scale, softcap=softcap)
  reference = jax.checkpoint(with_options, prevent_cse=False)
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
  """Softmax attention [B, T, N, H] over keys and values as a cache holds them.

  This is the reference, also for decoding: no kernel is faster for few queries. The arguments are
  those of `attend`.
  """
  scale = 1 / math.sqrt(q_BTNH.shape[-1]) if scale is None else scale
  mask_BTS = seen.mask(k_BKSH.shape[2], window)
  # The few queries are moved, so that the many scores come out in the order of their use. Queries
  # that share a kv head are one axis G: keys and values are not repeated for each query head, as
  # transformers' eager attention does (`repeat_kv` of modeling_llama.py).
  q_BKGTH = rearrange(q_BTNH, 'B T (K G) H -> B K G T H', K=k_BKSH.shape[1])
  # Scores leave the product in float32: transformers' eager attention rounds the scores to the
  # dtype of the queries, and casts them for the softmax.
  scores_BKGTS = jnp.einsum(
    'BKGTH,BKSH->BKGTS', q_BKGTH, k_BKSH, preferred_element_type=jnp.float32
  )
  scores_BKGTS = scores_BKGTS * scale
  mask_B11TS = mask_BTS[:, None, None]
  # The cap comes before the mask, as in transformers' modeling_gemma2.py: bent afterwards, the
  # score of an unseen key would be no lower than minus the cap.
  scores_BKGTS = soften(scores_BKGTS, softcap)
  # The lowest finite number, not -inf, from which a row without any seen key would become NaN.
  lowest = jnp.finfo(jnp.float32).min
  scores_BKGTS = jnp.where(mask_B11TS, scores_BKGTS, lowest)
  weights32_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1)
  weights_BKGTS = weights32_BKGTS.astype(v_BKSH.dtype)
  attended_BKGTH = jnp.einsum('BKGTS,BKSH->BKGTH', weights_BKGTS, v_BKSH)
  return rearrange(attended_BKGTH, 'B K G T H -> B T (K G) H')


def soften(x: jax.Array, cap: float | None) -> jax.Array:
  """Array x, bent to stay within plus and minus the cap; x itself without a cap.

  Source: Gemma 2, arXiv 2408.00118, section 2.
  """
  if cap is None:
    return x
  return cap * jnp.tanh(x / cap)
