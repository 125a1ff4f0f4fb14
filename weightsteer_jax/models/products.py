"""Matrix products whose results are wider than what is multiplied."""
import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def wide_einsum(einsum: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The einsum of two arrays, in float32; its gradients are computed from a cotangent rounded to their dtype.

  For logits: their cotangent in float32 would make the two largest products of a bfloat16 model's backward pass float32
  ones. torch rounds it too, where the logits are made float32.
  """
  return jnp.einsum(einsum, x, kernel, preferred_element_type=jnp.float32)


def _wide_forward(einsum, x, kernel):
  return wide_einsum(einsum, x, kernel), (x, kernel)


def _wide_backward(einsum, kept, dy):
  x, kernel = kept
  x_axes, kernel_axes, y_axes = einsum.replace('->', ',').split(',')
  dy = dy.astype(x.dtype)
  return jnp.einsum(f'{y_axes},{kernel_axes}->{x_axes}', dy, kernel), jnp.einsum(f'{y_axes},{x_axes}->{kernel_axes}', dy, x)


wide_einsum.defvjp(_wide_forward, _wide_backward)
