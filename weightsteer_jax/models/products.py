"""Matrix products whose gradients are not left to the transposition rules of jax."""

import functools
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def wide_einsum(einsum: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The einsum of two arrays, in float32, with gradients in the dtype of the arrays.

  The cotangent is rounded to the arrays' dtype. Otherwise the two largest products of a bfloat16
  model's backward pass, those of the logits, would be float32. torch rounds at the same place,
  where logits are cast to float32.
  """
  return jnp.einsum(einsum, x, kernel, preferred_element_type=jnp.float32)


def _wide_forward(einsum, x, kernel):
  return wide_einsum(einsum, x, kernel), (x, kernel)


def _wide_backward(einsum, kept, dy):
  x, kernel = kept
  x_axes, kernel_axes, y_axes = einsum.replace('->', ',').split(',')
  # The gradient of a factor of a product is the cotangent times the other factor.
  dx_einsum = f'{y_axes},{kernel_axes}->{x_axes}'
  dkernel_einsum = f'{y_axes},{x_axes}->{kernel_axes}'
  # Rounded before the products, which then multiply two arrays of the model's dtype.
  dy = dy.astype(x.dtype)
  dx = jnp.einsum(dx_einsum, dy, kernel)
  dkernel = jnp.einsum(dkernel_einsum, dy, x)
  return dx, dkernel


wide_einsum.defvjp(_wide_forward, _wide_backward)


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


@jax.custom_vjp
def _wide_grouped(x_JI, kernel_EIO, sizes_E):
  return _ragged_dot(x_JI, kernel_EIO, sizes_E, jnp.float32)


def _wide_grouped_forward(x_JI, kernel_EIO, sizes_E):
  return _wide_grouped(x_JI, kernel_EIO, sizes_E), (x_JI, kernel_EIO, sizes_E)


def _wide_grouped_backward(kept, dy_JO):
  x_JI, kernel_EIO, sizes_E = kept

  def product(x_JI, kernel_EIO):
    return _ragged_dot(x_JI, kernel_EIO, sizes_E, x_JI.dtype)

  _, transposed = jax.vjp(product, x_JI, kernel_EIO)
  # Rounded before the products, which then multiply two arrays of the model's dtype.
  dx_JI, dkernel_EIO = transposed(dy_JO.astype(x_JI.dtype))
  # The sizes are counts, and have no gradient.
  return dx_JI, dkernel_EIO, None


_wide_grouped.defvjp(_wide_grouped_forward, _wide_grouped_backward)
