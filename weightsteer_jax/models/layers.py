"""The parts of a block: projections, norms, the gated MLP. Axis letters as in decoder.py."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from weightsteer_jax.models import delta as deltas
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.products import wide_einsum
from weightsteer_jax.runtime import sharding

# Keys are the names of `hidden_act` in a Hugging Face config.
ACTIVATION_FUNCTIONS = {
  'silu': jax.nn.silu,
  # Hugging Face's 'gelu' is the exact one; jax.nn.gelu approximates by default.
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_pytorch_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'relu': jax.nn.relu,
}

# The name of a projection's outputs, by which a policy of rematerialisation can keep them.
PROJECTED = 'projected'

# A cheap function is computed again in the backward pass, from arguments that are kept anyway.
# Writing and reading its intermediate values takes longer, and most of a training step's memory.
# prevent_cse: the scan over layers keeps the two computations apart.
cheap = functools.partial(jax.checkpoint, prevent_cse=False)


class Projection(nnx.Module):
  """A linear map over the axes of its einsum, with an optional bias.

  Parameters carry the metadata that `sites` reads: `axes`, their letters, and `inputs`, how many of
  the axes are contracted with x. Both follow from the einsum.
  """

  def __init__(self, einsum: str, sizes: dict[str, int], *, bias: bool, dtype: Any, rngs: nnx.Rngs):
    self.einsum = einsum
    x_axes, kernel_axes, _ = einsum.replace('->', ',').split(',')
    # An axis of the kernel is contracted if x has the axis, otherwise an axis of the outputs.
    output_axes = ''.join(axis for axis in kernel_axes if axis not in x_axes)
    inputs = len(kernel_axes) - len(output_axes)
    shape = tuple(sizes[axis] for axis in kernel_axes)
    # 0.02 is the initializer_range of Llama and most later models.
    kernel = 0.02 * jax.random.normal(rngs.params(), shape, dtype)
    self.kernel = nnx.Param(kernel, axes=kernel_axes, inputs=inputs)
    bias_param = None
    if bias:
      bias_shape = tuple(sizes[axis] for axis in output_axes)
      bias_param = nnx.Param(jnp.zeros(bias_shape, dtype), axes=output_axes, inputs=0)
    # One assignment: nnx fixes at the first one whether an attribute holds parameters.
    self.bias = bias_param

  def __call__(self, x: jax.Array, edits: deltas.Edits, *, wide: bool = False) -> jax.Array:
    """The outputs, in float32 if `wide`, otherwise in the dtype of x."""
    # Sums are float32, and the outputs are rounded once, behind all that is added to the product.
    # Were the product rounded first, a change below a step of bfloat16 would be lost. The base
    # without edits has the same sums, and so the same bits as at alpha 0: a product that is rounded
    # as it is computed may be summed in another order.
    y = wide_einsum(self.einsum, x, self.kernel[...])
    # Torch adds a bias before it rounds, too.
    if self.bias is not None:
      y = y + self.bias[...]
    kernel_edits = deltas.at(edits, 'kernel')
    y = deltas.add_kernel_edits(y, x, self.einsum, kernel_edits)
    # A delta may add a bias to a projection whose base has none.
    bias_edits = deltas.at(edits, 'bias')
    y = deltas.add_vector_edits(y, bias_edits)
    if not wide:
      y = y.astype(x.dtype)
    # Named for the policy 'dots', which keeps it for the backward pass.
    y = checkpoint_name(deltas.pin(y), PROJECTED)
    _, y_axes = self.einsum.split('->')
    return sharding.constrain(y, y_axes)


class RMSNorm(nnx.Module):
  """Root-mean-square normalisation over the axes of a learned scale, computed in float32.

  Source: Zhang and Sennrich, arXiv 1910.07467.
  """

  def __init__(self, config: ModelConfig, axes: str, *, dtype: Any):
    self.eps = config.norm_eps
    self.offset = config.norm_offset
    sizes = config.sizes()
    shape = tuple(sizes[axis] for axis in axes)
    # Offset and scale add up to 1: a fresh norm multiplies by nothing.
    scale = jnp.full(shape, 1.0 - self.offset, dtype)
    self.scale = nnx.Param(scale, axes=axes, inputs=0)

  def __call__(self, x: jax.Array, edits: deltas.Edits) -> jax.Array:
    """Array x normed over its last axes, in the dtype of x."""
    scale_edits = deltas.at(edits, 'scale')
    scale = deltas.edited_scale(self.scale[...], x, scale_edits)
    # The checkpoints of Gemma store the scale less 1; the offset is added in float32, as in
    # transformers' Gemma2RMSNorm.
    if self.offset:
      scale = self.offset + scale

    normed_axes = tuple(range(-self.scale.ndim, 0))

    @cheap
    def normed(x, scale):
      x32 = x.astype(jnp.float32)
      squares = jnp.square(x32)
      mean_square = jnp.mean(squares, axis=normed_axes, keepdims=True)
      inverse_root = jax.lax.rsqrt(mean_square + self.eps)
      normed32 = x32 * inverse_root
      # The scale multiplies in float32, before the one rounding to the dtype of x. transformers'
      # Gemma2RMSNorm does the same; its LlamaRMSNorm rounds before the scale multiplies.
      scaled32 = normed32 * scale
      return scaled32.astype(x.dtype)

    y = normed(x, scale)
    return deltas.pin(y)


class MLP(nnx.Module):
  """Gated feed-forward: down(activation(gate(x)) * up(x))."""

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    sizes = config.sizes()
    self.activation = config.activation
    self.gate = Projection('BTD,DF->BTF', sizes, bias=config.mlp_bias, dtype=dtype, rngs=rngs)
    self.up = Projection('BTD,DF->BTF', sizes, bias=config.mlp_bias, dtype=dtype, rngs=rngs)
    self.down = Projection('BTF,FD->BTD', sizes, bias=config.mlp_bias, dtype=dtype, rngs=rngs)

  def __call__(self, x_BTD: jax.Array, edits: deltas.Edits) -> jax.Array:
    """What the MLP adds to the residual stream, [B, T, D]."""
    activation = ACTIVATION_FUNCTIONS[self.activation]

    @cheap
    def gated(gate_BTF, up_BTF):
      return activation(gate_BTF) * up_BTF

    gate_BTF = self.gate(x_BTD, deltas.at(edits, 'gate'))
    up_BTF = self.up(x_BTD, deltas.at(edits, 'up'))
    hidden_BTF = gated(gate_BTF, up_BTF)
    return self.down(hidden_BTF, deltas.at(edits, 'down'))
