"""What blocks are made of: projections, norms, the gated MLP. Axis letters as in decoder.py."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from weightsteer_jax.models import delta as deltas
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.products import wide_einsum
from weightsteer_jax.runtime import sharding

ACTIVATION_FUNCTIONS = {
  'silu': jax.nn.silu,
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_pytorch_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'relu': jax.nn.relu,
}


# Of a function whose backward pass computes it again from its arguments, which are kept anyway: to
# write down and read what is between takes longer, and most of the memory of a training step.
# prevent_cse: the scan over layers keeps the two apart.
cheap = functools.partial(jax.checkpoint, prevent_cse=False)


class Projection(nnx.Module):
  """A linear map over the axes its einsum names, with an optional bias; `inputs` and `axes` follow
  from the einsum.
  """

  def __init__(self, einsum: str, sizes: dict[str, int], *, bias: bool, dtype: Any, rngs: nnx.Rngs):
    self.einsum = einsum
    x_axes, kernel_axes, _ = einsum.replace('->', ',').split(',')
    output_axes = ''.join(axis for axis in kernel_axes if axis not in x_axes)
    shape = tuple(sizes[axis] for axis in kernel_axes)
    self.kernel = nnx.Param(
      0.02 * jax.random.normal(rngs.params(), shape, dtype),
      axes=kernel_axes,
      inputs=len(kernel_axes) - len(output_axes),
    )
    bias_shape = tuple(sizes[axis] for axis in output_axes)
    self.bias = (
      nnx.Param(jnp.zeros(bias_shape, dtype), axes=output_axes, inputs=0) if bias else None
    )

  def __call__(self, x: jax.Array, edits: deltas.Edits, *, wide: bool = False) -> jax.Array:
    """y, in float32 if `wide`, otherwise in the dtype of x."""
    y = deltas.pin((wide_einsum if wide else jnp.einsum)(self.einsum, x, self.kernel[...]))
    if self.bias is not None:
      y = deltas.pin(y + self.bias[...])
    y = deltas.add_kernel_edits(y, x, self.einsum, deltas.at(edits, 'kernel'))
    y = deltas.pin(deltas.add_vector_edits(y, deltas.at(edits, 'bias')))
    return sharding.constrain(y, self.einsum.split('->')[1])


class RMSNorm(nnx.Module):
  """Root-mean-square normalisation over the axes of its learned scale, in float32, times that
  scale.
  """

  def __init__(self, config: ModelConfig, axes: str, *, dtype: Any):
    self.eps, self.offset = config.norm_eps, config.norm_offset
    shape = tuple(config.sizes()[axis] for axis in axes)
    self.scale = nnx.Param(jnp.full(shape, 1.0 - self.offset, dtype), axes=axes, inputs=0)

  def __call__(self, x: jax.Array, edits: deltas.Edits) -> jax.Array:
    scale = deltas.edited_scale(self.scale[...], x, deltas.at(edits, 'scale'))
    if self.offset:
      scale = self.offset + scale

    @cheap
    def normed(x, scale):
      x32 = x.astype(jnp.float32)
      variance = jnp.mean(jnp.square(x32), axis=tuple(range(-self.scale.ndim, 0)), keepdims=True)
      return (x32 * jax.lax.rsqrt(variance + self.eps) * scale).astype(x.dtype)

    return deltas.pin(normed(x, scale))


class MLP(nnx.Module):
  """Gated feed-forward: down(activation(gate(x)) * up(x))."""

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    sizes = config.sizes()
    self.activation = config.activation
    self.gate = Projection('BTD,DF->BTF', sizes, bias=config.mlp_bias, dtype=dtype, rngs=rngs)
    self.up = Projection('BTD,DF->BTF', sizes, bias=config.mlp_bias, dtype=dtype, rngs=rngs)
    self.down = Projection('BTF,FD->BTD', sizes, bias=config.mlp_bias, dtype=dtype, rngs=rngs)

  def __call__(self, x_BTD, edits):
    gated = cheap(lambda gate_BTF, up_BTF: ACTIVATION_FUNCTIONS[self.activation](gate_BTF) * up_BTF)
    hidden_BTF = gated(
      self.gate(x_BTD, deltas.at(edits, 'gate')), self.up(x_BTD, deltas.at(edits, 'up'))
    )
    return self.down(hidden_BTF, deltas.at(edits, 'down'))
