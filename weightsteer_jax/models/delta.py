"""Deltas: changes to a model's parameters, kept apart from them and applied at a strength chosen
per row.

A delta is a nested dict parallel to the parameters, whose leaves say how one site is changed:

  LowRank at a projection's kernel       y = x W + alpha * scale * (x A) B
  Dense at any parameter                 its own matmul, look-up or elementwise sum, times alpha
  Dense at `<projection>/bias`           also where the base model has no bias there
  Dense at `layers/residual` [L, D]      a vector added to the residual stream after each block

LoRA training is a delta being trained at alpha 1, weight steering a direction applied at alpha,
activation steering a residual delta: one forward pass serves them all. An `Edit` pairs a delta with
its coefficients, one per row of the batch (or per token).
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from weightsteer_jax.models.products import narrow_einsum, wide_einsum
from weightsteer_jax.runtime import sharding

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
  """The change `scale * a @ b` of a kernel: a [L, inputs..., R], b [L, R, outputs...] (no L outside
  the stack).
  """

  a: jax.Array
  b: jax.Array
  scale: float = dataclasses.field(default=1.0, metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
  """The change of a parameter as an array of its own shape."""

  value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Edit:
  """A delta and its strength: alpha float32, [B] one per row, or [B, T] one per token.

  With a key, low-rank branches drop each of their inputs with probability `dropout`, for training.
  """

  delta: PyTree
  alpha: jax.Array
  key: jax.Array | None = None
  dropout: float = dataclasses.field(default=0.0, metadata=dict(static=True))


Edits = Sequence[Edit]


def is_delta_leaf(node: Any) -> bool:
  """Whether the node is a leaf of a delta (and not a dict on the way to one)."""
  return isinstance(node, (LowRank, Dense))


def at(edits: Edits, name: str) -> tuple[Edit, ...]:
  """The edits below the child `name`, those that have one."""
  number = zlib.crc32(name.encode())
  return tuple(
    dataclasses.replace(fold(edit, number), delta=edit.delta[name])
    for edit in edits
    if name in edit.delta
  )


def fold(edit: Edit, number: int | jax.Array) -> Edit:
  """The edit with its random key, if it has one, made particular to a site or a layer."""
  return (
    edit
    if edit.key is None
    else dataclasses.replace(edit, key=jax.random.fold_in(edit.key, number))
  )


def add_kernel_edits(
  y: jax.Array,
  x: jax.Array,
  einsum: str,
  edits: Edits,
  *,
  dot: Callable[..., jax.Array] | None = None,
) -> jax.Array:
  """y plus alpha * (x . delta) for each edit of a kernel that maps x to y by `einsum`, computed by
  `dot`, if there is one:
  (einsum, x, kernel, dtype of the result).
  """
  for edit in edits:
    leaf = edit.delta
    if isinstance(leaf, LowRank):
      down, up = factor_einsums(einsum)
      z = (dot or narrow_einsum)(down, _drop(x, edit), leaf.a.astype(x.dtype), x.dtype)
      z = (z.astype(jnp.float32) * _align(edit.alpha * leaf.scale, z)).astype(x.dtype)
      y = y + (dot or narrow_einsum)(up, z, leaf.b.astype(x.dtype), y.dtype)
    else:
      change = leaf.value.astype(x.dtype)
      wide = y.dtype == jnp.float32 != x.dtype
      dy = (
        dot(einsum, x, change, y.dtype)
        if dot
        else (wide_einsum if wide else jnp.einsum)(einsum, x, change)
      )
      y = y + (dy.astype(jnp.float32) * _align(edit.alpha, dy)).astype(y.dtype)
  return y


def add_vector_edits(y: jax.Array, edits: Edits) -> jax.Array:
  """y [B, T, ...] plus alpha * vector for each edit of a bias or of the residual stream."""
  for edit in edits:
    y = y + (_align(edit.alpha, y) * edit.delta.value).astype(y.dtype)
  return y


def look_up(table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
  """The tokens' rows of a table [B, T, D]; NaN for ids beyond the table, where an index would be
  clamped in silence.
  """
  # Cut over V alone: rows cut along D would be moved between devices token by token, when fsdp
  # gathers them once.
  table_VD = sharding.constrain(jnp.asarray(table_VD), 'VD')
  return table_VD.at[tokens_BT].get(mode='fill', fill_value=jnp.nan)


def add_lookup_edits(x_BTD: jax.Array, tokens_BT: jax.Array, edits: Edits) -> jax.Array:
  """Embeddings plus alpha * the same rows of each edit's dense change of the table."""
  for edit in edits:
    dx_BTD = look_up(edit.delta.value, tokens_BT)
    x_BTD = x_BTD + (_align(edit.alpha, x_BTD) * dx_BTD).astype(x_BTD.dtype)
  return x_BTD


def edited_scale(scale_D: jax.Array, x_BTD: jax.Array, edits: Edits) -> jax.Array:
  """A norm's scale in float32 with its edits added, ready to multiply x."""
  scale = scale_D.astype(jnp.float32)
  for edit in edits:
    scale = scale + _align(edit.alpha, x_BTD) * edit.delta.value
  return scale


def pin(x: jax.Array) -> jax.Array:
  """x, rounded to its dtype where the program says so.

  The compiler may keep more bits of a bfloat16 value than the dtype has while it flows from one
  operation into the next, depending on what follows it. A program with edits at alpha 0 then
  differs from one without. What is pinned is the same number in both.
  """
  if x.dtype == jnp.float32:
    return x
  bits = jnp.finfo(x.dtype)
  return jax.lax.reduce_precision(x.astype(jnp.float32), bits.nexp, bits.nmant).astype(x.dtype)


def factor_einsums(einsum: str) -> tuple[str, str]:
  """The two einsums of a low-rank kernel: inputs to rank, rank to outputs; one kernel of a stack
  (E) for each row or all.

  >>> factor_einsums('BTD,DNH->BTNH')
  ('BTD,DR->BTR', 'BTR,RNH->BTNH')
  >>> factor_einsums('JD,EDF->JF')
  ('JD,EDR->JR', 'JR,ERF->JF')
  """
  x, kernel, y = einsum.replace('->', ',').split(',')
  inputs = ''.join(axis for axis in kernel if axis in x)
  outputs = ''.join(axis for axis in kernel if axis in y and axis not in x)
  stack = ''.join(axis for axis in kernel if axis not in x + y)
  batch = ''.join(axis for axis in x if axis not in inputs)
  return f'{x},{stack}{inputs}R->{batch}R', f'{batch}R,{stack}R{outputs}->{y}'


def _drop(x: jax.Array, edit: Edit) -> jax.Array:
  if edit.key is None or not edit.dropout:
    return x
  kept = jax.random.bernoulli(edit.key, 1 - edit.dropout, x.shape)
  return jnp.where(kept, x / (1 - edit.dropout), 0).astype(x.dtype)


def _align(alpha: jax.Array, y: jax.Array) -> jax.Array:
  """alpha [B] or [B, T] with trailing axes of size one, so that it multiplies y [B, T, ...]."""
  alpha = jnp.asarray(alpha, jnp.float32)
  return alpha.reshape(alpha.shape + (1,) * (y.ndim - alpha.ndim))
