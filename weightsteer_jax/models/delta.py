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
    alpha: float32, [B] one per row, [B, T] one per token, or [] one for all.
    key: random key for dropout in training; None drops nothing.
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
  # A CRC is the same number in every process; Python's hash of a text is not.
  number = zlib.crc32(name.encode())
  below = []
  for edit in edits:
    if name in edit.delta:
      folded = fold(edit, number)
      below.append(dataclasses.replace(folded, delta=edit.delta[name]))
  return tuple(below)


def fold(edit: Edit, number: int | jax.Array) -> Edit:
  """The edit with its random key, if any, made particular to a site or a layer."""
  if edit.key is None:
    return edit
  key = jax.random.fold_in(edit.key, number)
  return dataclasses.replace(edit, key=key)


def add_kernel_edits(
  y: jax.Array,
  x: jax.Array,
  einsum: str,
  edits: Edits,
  *,
  dot: Callable[..., jax.Array] | None = None,
) -> jax.Array:
  """Outputs y plus alpha * (x . delta) for each edit of the kernel that maps x to y.

  Products multiply arrays in the dtype of x; alpha multiplies in float32, and the sums are float32.

  Args:
    einsum: the kernel's product, 'inputs,kernel->outputs'.
    dot: computes a product from (einsum, x, kernel, dtype of the result); an einsum if None.
  """
  for edit in edits:
    leaf = edit.delta
    if isinstance(leaf, LowRank):
      # First the inputs are brought down to the rank, then up to the outputs: the product a b, of
      # the kernel's size, is never formed.
      down, up = factor_einsums(einsum)
      product = dot or narrow_einsum
      dropped_x = _drop(x, edit)
      a = leaf.a.astype(x.dtype)
      z = product(down, dropped_x, a, x.dtype)
      # At the rank, where the array is smallest, strength and scale multiply in one step.
      z32 = z.astype(jnp.float32)
      strength = _align(edit.alpha * leaf.scale, z)
      scaled_z = (z32 * strength).astype(x.dtype)
      b = leaf.b.astype(x.dtype)
      y = y + product(up, scaled_z, b, jnp.float32)
    else:
      # A product of the kernel's size: x @ change in place of merging the change into W.
      change = leaf.value.astype(x.dtype)
      dy = dot(einsum, x, change, jnp.float32) if dot else wide_einsum(einsum, x, change)
      y = y + dy * _align(edit.alpha, dy)
  return y


def add_vector_edits(y: jax.Array, edits: Edits) -> jax.Array:
  """Array y [B, T, ...] plus alpha * vector for each edit of a bias or the residual stream.

  The sum with an edit is float32: the caller rounds it.
  """
  for edit in edits:
    change = _align(edit.alpha, y) * edit.delta.value
    y = y + change
  return y


def look_up(table_VD: jax.Array, tokens_BT: Array) -> jax.Array:
  """The tokens' rows of a table [B, T, D]; NaN for ids beyond the table."""
  # Cut over V alone: fsdp gathers the table once, but rows cut along D would move between devices
  # token by token.
  table_VD = sharding.constrain(jnp.asarray(table_VD), 'VD')
  # Plain indexing would clamp an id beyond the table in silence.
  return table_VD.at[tokens_BT].get(mode='fill', fill_value=jnp.nan)


def add_lookup_edits(x_BTD: jax.Array, tokens_BT: Array, edits: Edits) -> jax.Array:
  """Embeddings plus alpha * the same rows of each edit's dense change of the table.

  The sum with an edit is float32: the caller rounds it.
  """
  for edit in edits:
    # Only the rows of the batch's tokens are scaled, never the table.
    dx_BTD = look_up(edit.delta.value, tokens_BT)
    scaled_dx_BTD = _align(edit.alpha, x_BTD) * dx_BTD
    x_BTD = x_BTD + scaled_dx_BTD
  return x_BTD


def edited_scale(scale: jax.Array, x: jax.Array, edits: Edits) -> jax.Array:
  """A norm's scale in float32 with all edits added, ready to multiply x [B, T, ...]."""
  # With an edit the scale gets axes of x: rows at different alphas are scaled differently.
  scale = scale.astype(jnp.float32)
  for edit in edits:
    change = _align(edit.alpha, x) * edit.delta.value
    scale = scale + change
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
  x32 = x.astype(jnp.float32)
  rounded32 = jax.lax.reduce_precision(x32, bits.nexp, bits.nmant)
  return rounded32.astype(x.dtype)


def factor_einsums(einsum: str) -> tuple[str, str]:
  """The two einsums of a low-rank kernel: inputs to rank, and rank to outputs.

  A kernel axis that is neither in x nor in y (E) counts kernels of a stack; both factors keep the
  axis.

  >>> factor_einsums('BTD,DNH->BTNH')
  ('BTD,DR->BTR', 'BTR,RNH->BTNH')
  >>> factor_einsums('JD,EDF->JF')
  ('JD,EDR->JR', 'JR,ERF->JF')
  """
  # Kernel axes belong to the inputs (in x), the outputs (in y alone) or a stack (in neither).
  x, kernel, y = einsum.replace('->', ',').split(',')
  inputs = ''
  outputs = ''
  stack = ''
  for axis in kernel:
    if axis in x:
      inputs += axis
    elif axis in y:
      outputs += axis
    else:
      stack += axis
  # What is left of x when the inputs are contracted.
  batch = ''.join(axis for axis in x if axis not in inputs)
  down = f'{x},{stack}{inputs}R->{batch}R'
  up = f'{batch}R,{stack}R{outputs}->{y}'
  return down, up


def _drop(x: jax.Array, edit: Edit) -> jax.Array:
  if edit.key is None or not edit.dropout:
    return x
  # Dropout as in PEFT: of the inputs to the first factor, rescaled to keep their mean.
  kept_share = 1 - edit.dropout
  kept = jax.random.bernoulli(edit.key, kept_share, x.shape)
  scaled = x / kept_share
  dropped = jnp.where(kept, scaled, 0)
  return dropped.astype(x.dtype)


def _align(alpha: jax.Array, y: jax.Array) -> jax.Array:
  """Strengths [], [B] or [B, T] with trailing axes of size 1, to multiply y [B, T, ...]."""
  # Float32 also in a bfloat16 model: bfloat16 has 8 significant bits, and most alphas need more.
  alpha = jnp.asarray(alpha, jnp.float32)
  trailing = (1,) * (y.ndim - alpha.ndim)
  return alpha.reshape(alpha.shape + trailing)
