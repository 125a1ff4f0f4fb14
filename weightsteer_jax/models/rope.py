"""Rotary position embeddings: the angles of each kind, and turning queries and keys by them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax.models.config import Rope

Tables = tuple[jax.Array, jax.Array]


def rotate(x_BTNH: jax.Array, tables: Tables) -> jax.Array:
  """x with the pairs (i, i + h) of each head turned by the position's angles; computed in float32.

  The tables are of h angles; what lies beyond the first 2h dimensions of a head stays as it is.
  """
  cos_BT1h, sin_BT1h = tables
  half = cos_BT1h.shape[-1]
  x32_BTNH = x_BTNH.astype(jnp.float32)
  first, second, rest = jnp.split(x32_BTNH, (half, 2 * half), axis=-1)
  turned = [first * cos_BT1h - second * sin_BT1h, second * cos_BT1h + first * sin_BT1h]
  return jnp.concatenate(turned + [rest] * (rest.shape[-1] > 0), axis=-1).astype(x_BTNH.dtype)


def tables(rope: Rope | None, rotary_dim: int, positions_BT: jax.Array, *, length: int) -> Tables:
  """Cosines and sines [B, T, 1, h] of the positions' angles, float32; without a rope, those that
  turn nothing.
  """
  if rope is None:
    frequencies, factor = np.zeros(rotary_dim // 2), 1.0
  else:
    frequencies, factor = rope_frequencies(rope, rotary_dim, length=length), rope.attention_factor
  angles_BT1h = positions_BT[..., None, None].astype(jnp.float32) * jnp.asarray(
    frequencies, jnp.float32
  )
  cos_BT1h, sin_BT1h = jnp.cos(angles_BT1h), jnp.sin(angles_BT1h)
  return (cos_BT1h, sin_BT1h) if factor == 1.0 else (cos_BT1h * factor, sin_BT1h * factor)


def stacked_tables(
  ropes: Sequence[Rope | None], rotary_dim: int, positions_BT: jax.Array, *, length: int
) -> Tables:
  """The tables of several ropes, [rope, B, T, 1, h]."""
  several = [tables(rope, rotary_dim, positions_BT, length=length) for rope in ropes]
  return jax.tree.map(lambda *parts: jnp.stack(parts), *several)


def rope_frequencies(rope: Rope, rotary_dim: int, *, length: int = 0) -> np.ndarray:
  """Radians per position of each pair, [h] float64.

  Args:
    length: positions that the call can address: its tokens, or the slots of its cache. 'longrope'
      takes the long factors where there are more than the original context, for every position and
      row. transformers decides by the highest position it sees in a batch, at every step anew, so
      that it agrees where a batch fills its length, and turns earlier keys of a growing sequence
      otherwise than later ones where we do not.
  Source: RoPE, arXiv 2104.09864; 'llama3' and 'longrope' (arXiv 2402.13753) as transformers
  `modeling_rope_utils.py`.
  """
  frequencies = rope.theta ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
  if rope.kind == 'default':
    return frequencies
  if rope.kind == 'linear':
    return frequencies / rope.factor
  if rope.kind == 'longrope':
    return frequencies / np.asarray(
      rope.long_factors if length > rope.original_max_positions else rope.short_factors
    )
  turns = rope.original_max_positions * frequencies / (2 * np.pi)
  keep = np.clip(
    (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0, 1
  )
  return frequencies * (keep + (1 - keep) / rope.factor)
