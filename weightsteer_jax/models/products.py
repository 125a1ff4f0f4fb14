"""Matrix products whose gradients are not left to the transposition rules of jax."""

import functools
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def wide_einsum(einsum: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The einsum of two arrays, in float32; its gradients are computed from a cotangent rounded to
  their dtype.

  For logits: their cotangent in float32 would make the two largest products of a bfloat16 model's
  backward pass float32 ones. torch rounds it too, where the logits are made float32.
  """
  return jnp.einsum(einsum, x, kernel, preferred_element_type=jnp.float32)


def _wide_forward(einsum, x, kernel):
  return wide_einsum(einsum, x, kernel), (x, kernel)


def _wide_backward(einsum, kept, dy):
  x, kernel = kept
  x_axes, kernel_axes, y_axes = einsum.replace('->', ',').split(',')
  dy = dy.astype(x.dtype)
  return jnp.einsum(f'{y_axes},{kernel_axes}->{x_axes}', dy, kernel), jnp.einsum(
    f'{y_axes},{x_axes}->{kernel_axes}', dy, x
  )


wide_einsum.defvjp(_wide_forward, _wide_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def narrow_einsum(einsum: str, x: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
  """The einsum with a factor of a low-rank change, of which R is an axis, in that dtype.

  The gradient of the factor is a product over all tokens of something narrow and something wide.
  Written as jax's rule has it, the compiler for CPUs turns the wide one around, in memory, and
  computes again what it came from: a fifth of a training step of the 3M model of
  benchmarks/cases.py. Here the narrow one comes first, and is turned.
  """
  return jnp.einsum(einsum, x, kernel, preferred_element_type=dtype)


def _narrow_forward(einsum, x, kernel, dtype):
  return narrow_einsum(einsum, x, kernel, dtype), (x, kernel)


def _narrow_backward(einsum, dtype, kept, dy):
  x, kernel = kept
  x_axes, kernel_axes, y_axes = einsum.replace('->', ',').split(',')
  dy = dy.astype(x.dtype)
  dx = jnp.einsum(f'{y_axes},{kernel_axes}->{x_axes}', dy, kernel)
  if 'R' in x_axes:
    return dx, jnp.einsum(f'{x_axes},{y_axes}->{kernel_axes}', x, dy)
  turned = 'R' + kernel_axes.replace('R', '')
  dkernel = jnp.einsum(f'{y_axes},{x_axes}->{turned}', dy, x)
  return dx, jnp.moveaxis(dkernel, 0, kernel_axes.index('R'))


narrow_einsum.defvjp(_narrow_forward, _narrow_backward)
