"""Matrix products whose gradients are not left to the transposition rules of jax."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero


def wide_einsum(einsum: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The einsum of two arrays, in float32, with gradients in the dtype of the arrays.

  The cotangent is rounded to the arrays' dtype. Otherwise the products of a bfloat16 model's
  backward pass would be float32. torch rounds at the same place, where a product is cast.
  """
  # In a float32 model there is nothing to widen or to round.
  if x.dtype == jnp.float32:
    return jnp.einsum(einsum, x, kernel)
  return _wide_einsum(einsum, x, kernel)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _wide_einsum(einsum, x, kernel):
  return jnp.einsum(einsum, x, kernel, preferred_element_type=jnp.float32)


@functools.partial(_wide_einsum.defjvp, symbolic_zeros=True)
def _wide_einsum_jvp(einsum, primals, tangents):
  def product(x, kernel):
    return jnp.einsum(einsum, x, kernel)

  return _wide_einsum(einsum, *primals), _rounded_tangent(product, primals, tangents)


def _rounded_tangent(product, primals, tangents):
  """The change of a product in the dtype of its factors, as float32."""
  x, kernel = primals
  dx, dkernel = tangents
  # A factor that does not change costs nothing, and the other factor is not kept for its gradient.
  parts = []
  if not isinstance(dx, SymbolicZero):
    parts.append(product(dx, kernel))
  if not isinstance(dkernel, SymbolicZero):
    parts.append(product(x, dkernel))
  wide = [part.astype(jnp.float32) for part in parts]
  return functools.reduce(jnp.add, wide)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def narrow_einsum(einsum: str, x: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
  """The einsum with a factor of a low-rank change, which has an axis R, in the given dtype.

  The gradient of the factor is a product over all tokens of a narrow and a wide array. With jax's
  own rule, the compiler for CPUs transposes the wide array in memory and recomputes its origin: a
  fifth of a training step of the 3M model of benchmarks/cases.py. Here the narrow array comes
  first, and is transposed.
  """
  return jnp.einsum(einsum, x, kernel, preferred_element_type=dtype)


def _narrow_forward(einsum, x, kernel, dtype):
  return narrow_einsum(einsum, x, kernel, dtype), (x, kernel)


def _narrow_backward(einsum, dtype, kept, dy):
  x, kernel = kept
  x_axes, kernel_axes, y_axes = einsum.replace('->', ',').split(',')
  # Logits are float32 in a bfloat16 model, and so is their cotangent.
  dy = dy.astype(x.dtype)
  dx_einsum = f'{y_axes},{kernel_axes}->{x_axes}'
  dx = jnp.einsum(dx_einsum, dy, kernel)
  # The second factor: x is narrow already, and comes first.
  if 'R' in x_axes:
    dkernel_einsum = f'{x_axes},{y_axes}->{kernel_axes}'
    dkernel = jnp.einsum(dkernel_einsum, x, dy)
    return dx, dkernel
  # The first factor: the narrow cotangent comes first, and R is the first axis of the result.
  rank_first = 'R' + kernel_axes.replace('R', '')
  dkernel = jnp.einsum(f'{y_axes},{x_axes}->{rank_first}', dy, x)
  rank_axis = kernel_axes.index('R')
  return dx, jnp.moveaxis(dkernel, 0, rank_axis)


narrow_einsum.defvjp(_narrow_forward, _narrow_backward)


def grouped_product(
  x_JI: jax.Array, kernel_EIO: jax.Array, sizes_E: jax.Array, dtype: Any = None
) -> jax.Array:
  """Rows [J, I] times the kernels of their groups [J, O]; kernel e has the next sizes_E[e] rows.

  The result is float32 if `dtype` says so, with gradients as by `wide_einsum`, otherwise in the
  dtype of the rows.
  """
  if dtype == jnp.float32 != x_JI.dtype:
    return _wide_grouped(x_JI, kernel_EIO, sizes_E)
  return _ragged_dot(x_JI, kernel_EIO, sizes_E, dtype)


def _ragged_dot(x_JI, kernel_EIO, sizes_E, dtype):
  # A higher precision has no meaning for bfloat16, and the TPU's kernel would not compile.
  precision = None if x_JI.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
  return jax.lax.ragged_dot(x_JI, kernel_EIO, sizes_E, precision, dtype)


@jax.custom_jvp
def _wide_grouped(x_JI, kernel_EIO, sizes_E):
  return _ragged_dot(x_JI, kernel_EIO, sizes_E, jnp.float32)


@functools.partial(_wide_grouped.defjvp, symbolic_zeros=True)
def _wide_grouped_jvp(primals, tangents):
  x_JI, kernel_EIO, sizes_E = primals

  def product(x_JI, kernel_EIO):
    return _ragged_dot(x_JI, kernel_EIO, sizes_E, x_JI.dtype)

  # The sizes are counts, and do not change.
  change_JO = _rounded_tangent(product, (x_JI, kernel_EIO), tangents[:2])
  return _wide_grouped(*primals), change_JO
