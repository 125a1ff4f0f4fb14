"""Rotary position embeddings: tables of angles, and the rotation of queries and keys."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax.models.config import Rope

# Cosines and sines.
Tables = tuple[jax.Array, jax.Array]


def rotate(x_BTNH: jax.Array, tables: Tables) -> jax.Array:
  """Heads with the pairs (i, i + h) of dimensions turned by the position's angles.

  Computed in float32, returned in the dtype of x. The tables hold h angles; dimensions of a head
  beyond the first 2h stay as they are.
  """
  cos_BT1h, sin_BT1h = tables
  half = cos_BT1h.shape[-1]
  x32_BTNH = x_BTNH.astype(jnp.float32)
  first_BTNh, second_BTNh, rest = jnp.split(x32_BTNH, (half, 2 * half), axis=-1)
  parts = [
    first_BTNh * cos_BT1h - second_BTNh * sin_BT1h,
    second_BTNh * cos_BT1h + first_BTNh * sin_BT1h,
  ]
  if rest.shape[-1] > 0:
    parts.append(rest)
  return jnp.concatenate(parts, axis=-1).astype(x_BTNH.dtype)


def tables(
  rope: Rope | None, rotary_dim: int, positions_BT: jax.Array | np.ndarray, *, length: int
) -> Tables:
  """Cosines and sines [B, T, 1, h] of the positions' angles, float32.

  Without a rope all angles are 0, which turn nothing. `length` as in `rope_frequencies`.
  """
  factor = 1.0
  frequencies_h = np.zeros(rotary_dim // 2)
  if rope is not None:
    factor = rope.attention_factor
    frequencies_h = rope_frequencies(rope, rotary_dim, length=length)
  positions_BT11 = positions_BT[..., None, None].astype(jnp.float32)
  angles_BT1h = positions_BT11 * jnp.asarray(frequencies_h, jnp.float32)
  cos_BT1h = jnp.cos(angles_BT1h)
  sin_BT1h = jnp.sin(angles_BT1h)
  if factor == 1.0:
    return cos_BT1h, sin_BT1h
  return cos_BT1h * factor, sin_BT1h * factor


def stacked_tables(
  ropes: Sequence[Rope | None],
  rotary_dim: int,
  positions_BT: jax.Array | np.ndarray,
  *,
  length: int,
) -> Tables:
  """The tables of several ropes, [rope, B, T, 1, h]."""
  pairs = [tables(rope, rotary_dim, positions_BT, length=length) for rope in ropes]
  cosines, sines = zip(*pairs, strict=True)
  return jnp.stack(cosines), jnp.stack(sines)


def rope_frequencies(rope: Rope, rotary_dim: int, *, length: int = 0) -> np.ndarray:
  """Radians per position of each pair, [h] float64.

  Args:
    length: positions that the call can address: its tokens, or the slots of its cache. Above the
      original context, 'longrope' takes the long factors, for every position and row. transformers
      decides by the highest position in a batch, at every step anew: both agree if a batch fills
      its length, but as a sequence grows, transformers turns earlier keys by other factors than
      later keys.

  Source: RoPE, arXiv 2104.09864; 'llama3' and 'longrope' (arXiv 2402.13753) as transformers
  `modeling_rope_utils.py`.
  """
  frequencies = rope.theta ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
  if rope.kind == 'default':
    return frequencies
  if rope.kind == 'linear':
    return frequencies / rope.factor
  if rope.kind == 'longrope':
    long = length > rope.original_max_positions
    return frequencies / np.asarray(rope.long_factors if long else rope.short_factors)
  # 'llama3': by its turns in the original context, a frequency is kept, divided, or in between.
  turns = rope.original_max_positions * frequencies / (2 * np.pi)
  band = rope.high_freq_factor - rope.low_freq_factor
  keep = np.clip((turns - rope.low_freq_factor) / band, 0, 1)
  return frequencies * (keep + (1 - keep) / rope.factor)
