"""Deltas: changes of parameters, kept apart from the model and applied at a strength per row.

A delta is a nested dict parallel to the parameters, whose leaves say how one site is changed:

  LowRank at a projection's kernel       y = x W + alpha * scale * (x A) B
  Dense at any parameter                 its own matmul, look-up or elementwise sum, times alpha
  Dense at `<projection>/bias`           also if the base model has no bias
  Dense at `layers/residual` [L, D]      a vector added to the residual stream after each block

LoRA training is a delta being trained at alpha 1, weight steering a direction applied at alpha,
activation steering a residual delta: one forward pass serves every method. An `Edit` pairs a delta
with its coefficients, one per row of the batch (or per token).
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax.models.products import narrow_einsum, wide_einsum
from weightsteer_jax.runtime import sharding

PyTree = Any
Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
  """The change `scale * a @ b` of a kernel.

  Attributes:
    a: [L, inputs..., R]; no L outside the layer stack, and [L, E, ...] for experts.
    b: [L, R, outputs...], likewise.
    scale: LoRA's lora_alpha / R; 1 if the factors hold the whole change.
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
  """A delta and its strength.

  Attributes:
    delta: nested dict of LowRank and Dense leaves, parallel to the parameters.
    alpha: float32, [B] one per row, or [B, T] one per token.
    key: random key for dropout in training; None for none.
    dropout: probability with which a low-rank branch drops each input.
  """

  delta: PyTree
  alpha: jax.Array
  key: jax.Array | None = None
  dropout: float = dataclasses.field(default=0.0, metadata=dict(static=True))


Edits = Sequence[Edit]


def is_delta_leaf(node: Any) -> bool:
  """Whether the node is a leaf of a delta, not a dict on the way to a leaf."""
  return isinstance(node, (LowRank, Dense))


def at(edits: Edits, name: str) -> tuple[Edit, ...]:
  """The edits below the child `name`; edits without such a child are left out."""
  # Unlike Python's hash, the same number in every process.
  number = zlib.crc32(name.encode())
  return tuple(
    dataclasses.replace(fold(edit, number), delta=edit.delta[name])
    for edit in edits
    if name in edit.delta
  )


def fold(edit: Edit, number: int | jax.Array) -> Edit:
  """The edit with its random key, if any, made particular to a site or a layer."""
  if edit.key is None:
    return edit
  return dataclasses.replace(edit, key=jax.random.fold_in(edit.key, number))


def add_kernel_edits(
  y: jax.Array,
  x: jax.Array,
  einsum: str,
  edits: Edits,
  *,
  dot: Callable[..., jax.Array] | None = None,
) -> jax.Array:
  """Outputs y plus alpha * (x . delta) for each edit of the kernel that maps x to y.

  Products are computed in the dtype of x; alpha multiplies in float32.

  Args:
    einsum: the kernel's product, 'inputs,kernel->outputs'.
    dot: computes a product from (einsum, x, kernel, dtype of the result); an einsum if None.
  """
  for edit in edits:
    leaf = edit.delta
    if isinstance(leaf, LowRank):
      down, up = factor_einsums(einsum)
      product = dot or narrow_einsum
      z = product(down, _drop(x, edit), leaf.a.astype(x.dtype), x.dtype)
      # At the rank, where the array is smallest, strength and scale multiply in one step.
      z = (z.astype(jnp.float32) * _align(edit.alpha * leaf.scale, z)).astype(x.dtype)
      y = y + product(up, z, leaf.b.astype(x.dtype), y.dtype)
    else:
      # A product of the kernel's size: x @ change in place of merging the change into W.
      change = leaf.value.astype(x.dtype)
      if dot:
        dy = dot(einsum, x, change, y.dtype)
      elif y.dtype == jnp.float32 != x.dtype:
        dy = wide_einsum(einsum, x, change)
      else:
        dy = jnp.einsum(einsum, x, change)
      y = y + (dy.astype(jnp.float32) * _align(edit.alpha, dy)).astype(y.dtype)
  return y


def add_vector_edits(y: jax.Array, edits: Edits) -> jax.Array:
  """Array y [B, T, ...] plus alpha * vector for each edit of a bias or the residual stream."""
  for edit in edits:
    y = y + (_align(edit.alpha, y) * edit.delta.value).astype(y.dtype)
  return y


def look_up(table_VD: jax.Array, tokens_BT: Array) -> jax.Array:
  """The tokens' rows of a table [B, T, D]; NaN for ids beyond the table."""
  # Cut over V alone: fsdp gathers the table once, but rows cut along D would move between devices
  # token by token.
  table_VD = sharding.constrain(jnp.asarray(table_VD), 'VD')
  # Plain indexing would clamp an id beyond the table in silence.
  return table_VD.at[tokens_BT].get(mode='fill', fill_value=jnp.nan)


def add_lookup_edits(x_BTD: jax.Array, tokens_BT: Array, edits: Edits) -> jax.Array:
  """Embeddings plus alpha * the same rows of each edit's dense change of the table."""
  for edit in edits:
    dx_BTD = look_up(edit.delta.value, tokens_BT)
    x_BTD = x_BTD + (_align(edit.alpha, x_BTD) * dx_BTD).astype(x_BTD.dtype)
  return x_BTD


def edited_scale(scale: jax.Array, x: jax.Array, edits: Edits) -> jax.Array:
  """A norm's scale in float32 with all edits added, ready to multiply x [B, T, ...]."""
  scale = scale.astype(jnp.float32)
  for edit in edits:
    scale = scale + _align(edit.alpha, x) * edit.delta.value
  return scale


def pin(x: jax.Array) -> jax.Array:
  """Array x, rounded to its dtype at this place of the program.

  Between two operations the compiler may keep more bits of a bfloat16 value than the dtype has,
  depending on the operations. A program with edits at alpha 0 would then differ from a program
  without edits. A pinned value is the same number in both.
  """
  if x.dtype == jnp.float32:
    return x
  # The compiler may remove a pair of casts, but not a reduce_precision.
  bits = jnp.finfo(x.dtype)
  return jax.lax.reduce_precision(x.astype(jnp.float32), bits.nexp, bits.nmant).astype(x.dtype)


def factor_einsums(einsum: str) -> tuple[str, str]:
  """The two einsums of a low-rank kernel: inputs to rank, and rank to outputs.

  A kernel axis that is neither in x nor in y (E) counts kernels of a stack; both factors have it.

  >>> factor_einsums('BTD,DNH->BTNH')
  ('BTD,DR->BTR', 'BTR,RNH->BTNH')
  >>> factor_einsums('JD,EDF->JF')
  ('JD,EDR->JR', 'JR,ERF->JF')
  """
  # Kernel axes belong to the inputs (in x), the outputs (in y alone) or a stack (in neither).
  x, kernel, y = einsum.replace('->', ',').split(',')
  inputs = ''.join(axis for axis in kernel if axis in x)
  outputs = ''.join(axis for axis in kernel if axis in y and axis not in x)
  stack = ''.join(axis for axis in kernel if axis not in x + y)
  batch = ''.join(axis for axis in x if axis not in inputs)
  return f'{x},{stack}{inputs}R->{batch}R', f'{batch}R,{stack}R{outputs}->{y}'


def _drop(x: jax.Array, edit: Edit) -> jax.Array:
  if edit.key is None or not edit.dropout:
    return x
  # Dropout as in PEFT: of the inputs to the first factor, rescaled to keep their mean.
  kept = jax.random.bernoulli(edit.key, 1 - edit.dropout, x.shape)
  return jnp.where(kept, x / (1 - edit.dropout), 0).astype(x.dtype)


def _align(alpha: jax.Array, y: jax.Array) -> jax.Array:
  """Strengths [B] or [B, T] with trailing axes of size 1, ready to multiply y [B, T, ...]."""
  alpha = jnp.asarray(alpha, jnp.float32)
  return alpha.reshape(alpha.shape + (1,) * (y.ndim - alpha.ndim))
