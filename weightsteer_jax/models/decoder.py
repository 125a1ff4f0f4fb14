"""The decoder: one forward pass for every family and every method.

Axes, here and wherever the project's arrays carry a suffix:
  B batch, T query positions, S key positions, N query heads, K kv heads, G = N / K, H head dim,
  D width, F MLP width, E experts, V vocabulary, L stacked layers, R adapter rank.

The same letters say how arrays lie on a mesh (see sharding.py). The modules hold the parameters; `forward.py` runs them on plain nested dicts. Layers are stacked along L and scanned.
"""
import dataclasses
import functools
import math
from typing import Any

from einops import rearrange
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax import sharding
from weightsteer_jax.models import delta as deltas
from weightsteer_jax.models.config import ModelConfig, Rope
from weightsteer_jax.models.moe import MoE

Cache = dict[str, jax.Array]

ACTIVATION_FUNCTIONS = {
    'silu': jax.nn.silu,
    'gelu': lambda x: jax.nn.gelu(x, approximate=False),
    'gelu_pytorch_tanh': lambda x: jax.nn.gelu(x, approximate=True),
    'relu': jax.nn.relu,
}


class Projection(nnx.Module):
  """A linear map over the axes its einsum names, with an optional bias; `inputs` and `axes` follow from the einsum."""

  def __init__(self, einsum: str, sizes: dict[str, int], *, bias: bool, dtype: Any, rngs: nnx.Rngs):
    self.einsum = einsum
    x_axes, kernel_axes, _ = einsum.replace('->', ',').split(',')
    output_axes = ''.join(axis for axis in kernel_axes if axis not in x_axes)
    shape = tuple(sizes[axis] for axis in kernel_axes)
    self.kernel = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype),
                            axes=kernel_axes,
                            inputs=len(kernel_axes) - len(output_axes))
    bias_shape = tuple(sizes[axis] for axis in output_axes)
    self.bias = nnx.Param(jnp.zeros(bias_shape, dtype), axes=output_axes, inputs=0) if bias else None

  def __call__(self, x: jax.Array, edits: deltas.Edits, *, dtype: Any = None) -> jax.Array:
    y = deltas.pin(jnp.einsum(self.einsum, x, self.kernel[...], preferred_element_type=dtype))
    if self.bias is not None:
      y = deltas.pin(y + self.bias[...])
    y = deltas.add_kernel_edits(y, x, self.einsum, deltas.at(edits, 'kernel'))
    y = deltas.pin(deltas.add_vector_edits(y, deltas.at(edits, 'bias')))
    return sharding.constrain(y, self.einsum.split('->')[1])


class RMSNorm(nnx.Module):
  """Root-mean-square normalisation over D in float32, times a learned scale."""

  def __init__(self, config: ModelConfig, *, dtype: Any):
    self.eps = config.norm_eps
    self.scale = nnx.Param(jnp.ones((config.width,), dtype), axes='D', inputs=0)

  def __call__(self, x_BTD: jax.Array, edits: deltas.Edits) -> jax.Array:
    x32_BTD = x_BTD.astype(jnp.float32)
    variance_BT1 = jnp.mean(jnp.square(x32_BTD), axis=-1, keepdims=True)
    normed_BTD = x32_BTD * jax.lax.rsqrt(variance_BT1 + self.eps)
    scaled_BTD = normed_BTD * deltas.edited_scale(self.scale[...], x_BTD, deltas.at(edits, 'scale'))
    return deltas.pin(scaled_BTD.astype(x_BTD.dtype))


class Attention(nnx.Module):
  """Grouped-query attention with rotary positions."""

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    sizes = config.sizes()
    self.q = Projection('BTD,DNH->BTNH', sizes, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
    self.k = Projection('BTD,DKH->BTKH', sizes, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
    self.v = Projection('BTD,DKH->BTKH', sizes, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
    self.o = Projection('BTNH,NHD->BTD', sizes, bias=config.o_bias, dtype=dtype, rngs=rngs)

  def __call__(self, x_BTD, *, rope, mask_BTS, edits, cache, layer, positions_BT):
    q_BTNH = rotate(self.q(x_BTD, deltas.at(edits, 'q')), rope)
    k_BSKH = rotate(self.k(x_BTD, deltas.at(edits, 'k')), rope)
    v_BSKH = self.v(x_BTD, deltas.at(edits, 'v'))
    if cache is not None:
      cache, k_BSKH, v_BSKH = write_cache(cache, layer, positions_BT, k_BSKH, v_BSKH)
    return self.o(attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS), deltas.at(edits, 'o')), cache


class MLP(nnx.Module):
  """Gated feed-forward: down(activation(gate(x)) * up(x))."""

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    sizes = config.sizes()
    self.activation = config.activation
    self.gate = Projection('BTD,DF->BTF', sizes, bias=config.mlp_bias, dtype=dtype, rngs=rngs)
    self.up = Projection('BTD,DF->BTF', sizes, bias=config.mlp_bias, dtype=dtype, rngs=rngs)
    self.down = Projection('BTF,FD->BTD', sizes, bias=config.mlp_bias, dtype=dtype, rngs=rngs)

  def __call__(self, x_BTD, edits):
    gate_BTF = ACTIVATION_FUNCTIONS[self.activation](self.gate(x_BTD, deltas.at(edits, 'gate')))
    return self.down(gate_BTF * self.up(x_BTD, deltas.at(edits, 'up')), deltas.at(edits, 'down'))


class Block(nnx.Module):
  """One layer: attention and MLP, each normed before and added to the residual stream."""

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    self.attn_norm = RMSNorm(config, dtype=dtype)
    self.attn = Attention(config, dtype=dtype, rngs=rngs)
    self.mlp_norm = RMSNorm(config, dtype=dtype)
    if config.num_experts:
      self.mlp = MoE(config, activation=ACTIVATION_FUNCTIONS[config.activation], dtype=dtype, rngs=rngs)
    else:
      self.mlp = MLP(config, dtype=dtype, rngs=rngs)

  def __call__(self, x_BTD, *, edits, **attention):
    normed_BTD = self.attn_norm(x_BTD, deltas.at(edits, 'attn_norm'))
    attended_BTD, cache = self.attn(normed_BTD, edits=deltas.at(edits, 'attn'), **attention)
    x_BTD = deltas.pin(x_BTD + attended_BTD)
    x_BTD = deltas.pin(x_BTD + self.mlp(self.mlp_norm(x_BTD, deltas.at(edits, 'mlp_norm')), deltas.at(edits, 'mlp')))
    x_BTD = deltas.pin(deltas.add_vector_edits(x_BTD, deltas.at(edits, 'residual')))
    return sharding.constrain(x_BTD, 'BTD'), cache


class Embedding(nnx.Module):
  """The token table; on tied models also the head."""

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    shape = (config.vocab_size, config.width)
    self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype), axes='VD', inputs=0)

  def __call__(self, tokens_BT, edits):
    x_BTD = deltas.look_up(self.embedding[...], tokens_BT)
    x_BTD = deltas.pin(deltas.add_lookup_edits(x_BTD, tokens_BT, deltas.at(edits, 'embedding')))
    return sharding.constrain(x_BTD, 'BTD')

  def head(self, x_BTD, edits):
    """Float32 logits [B, T, V]."""
    einsum = 'BTD,VD->BTV'
    logits_BTV = jnp.einsum(einsum, x_BTD, self.embedding[...], preferred_element_type=jnp.float32)
    logits_BTV = deltas.add_kernel_edits(logits_BTV, x_BTD, einsum, deltas.at(edits, 'embedding'))
    return sharding.constrain(logits_BTV, 'BTV')


class Decoder(nnx.Module):
  """Embedding, L scanned blocks, final norm, and the head."""

  def __init__(self, config: ModelConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
    self.config = config
    self.embed = Embedding(config, dtype=dtype, rngs=rngs)

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stack(rngs):
      return Block(config, dtype=dtype, rngs=rngs)

    self.layers = stack(rngs)
    self.final_norm = RMSNorm(config, dtype=dtype)
    sizes = config.sizes()
    self.lm_head = None if config.tied else Projection('BTD,DV->BTV', sizes, bias=False, dtype=dtype, rngs=rngs)

  def hidden(self, tokens_BT, *, positions_BT, mask_BTS, edits, cache, remat):
    """Final-normed hidden states [B, T, D] and the updated cache."""
    x_BTD = self.embed(tokens_BT, deltas.at(edits, 'embed'))
    rope = rope_tables(self.config.rope, self.config.head_dim, positions_BT)
    definition, params = nnx.split(self.layers)
    layer_edits = deltas.at(edits, 'layers')

    def layer(carry, scanned):
      x_BTD, cache = carry
      index, params, layer_deltas = scanned
      edits = tuple(
          deltas.fold(dataclasses.replace(edit, delta=delta), index) for edit, delta in zip(layer_edits, layer_deltas))
      block = nnx.merge(definition, params)
      return block(x_BTD,
                   rope=rope,
                   mask_BTS=mask_BTS,
                   edits=edits,
                   cache=cache,
                   layer=index,
                   positions_BT=positions_BT), None

    if remat:
      layer = jax.checkpoint(layer, prevent_cse=False)  # The scan keeps the two computations apart already.
    indices_L = jnp.arange(self.config.num_layers)
    (x_BTD, cache), _ = jax.lax.scan(layer, (x_BTD, cache), (indices_L, params, [edit.delta for edit in layer_edits]))
    return self.final_norm(x_BTD, deltas.at(edits, 'final_norm')), cache

  def logits(self, x_BTD, *, edits):
    """Float32 logits [B, T, V] of final-normed hidden states."""
    if self.lm_head is None:
      return self.embed.head(x_BTD, deltas.at(edits, 'embed'))
    return self.lm_head(x_BTD, deltas.at(edits, 'lm_head'), dtype=jnp.float32)


def attend(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
  """Softmax attention [B, T, N, H], in float32, over the keys the mask shows; query head n reads kv head n // G."""
  k_heads, head_dim = k_BSKH.shape[-2:]
  q_BTKGH = rearrange(q_BTNH, 'B T (K G) H -> B T K G H', K=k_heads)
  scores_BKGTS = jnp.einsum('BTKGH,BSKH->BKGTS', q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
  scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS / math.sqrt(head_dim), jnp.finfo(jnp.float32).min)
  weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
  return rearrange(jnp.einsum('BKGTS,BSKH->BTKGH', weights_BKGTS, v_BSKH), 'B T K G H -> B T (K G) H')


def write_cache(cache: Cache, layer: jax.Array, positions_BT: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array):
  """The cache with these keys and values at slot == position of its layer, and all of that layer's [B, S, K, H]."""
  # Row by row, which tells the compiler that no row writes into another: rows on other devices stay where they are.
  @functools.partial(jax.vmap, in_axes=(1, 0, 0), out_axes=1)
  def write(cache_LSKH, positions_T, new_TKH):
    return cache_LSKH.at[layer, positions_T].set(new_TKH.astype(cache_LSKH.dtype))

  keys, values = (sharding.constrain(write(cache[name], positions_BT, new), 'LBSKH')
                  for name, new in (('k', k_BTKH), ('v', v_BTKH)))
  return {'k': keys, 'v': values}, keys[layer].astype(k_BTKH.dtype), values[layer].astype(v_BTKH.dtype)


def rotate(x_BTNH: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
  """x with the pairs (i, i + H/2) of each head turned by the position's angles; computed in float32."""
  cos_BT1h, sin_BT1h = rope
  first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos_BT1h - second * sin_BT1h, second * cos_BT1h + first * sin_BT1h], axis=-1)
  return turned.astype(x_BTNH.dtype)


def rope_tables(rope: Rope, head_dim: int, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines [B, T, 1, H/2] of the positions' angles, float32."""
  frequencies_h = jnp.asarray(rope_frequencies(rope, head_dim), jnp.float32)
  angles_BT1h = positions_BT[..., None, None].astype(jnp.float32) * frequencies_h
  return jnp.cos(angles_BT1h), jnp.sin(angles_BT1h)


def rope_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
  """Radians per position of each pair, [H/2] float64.

  Source: RoPE, arXiv 2104.09864; 'llama3' as in transformers `modeling_rope_utils.py`.
  """
  frequencies = rope.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
  if rope.kind == 'default':
    return frequencies
  if rope.kind == 'linear':
    return frequencies / rope.factor
  turns = rope.original_max_positions * frequencies / (2 * np.pi)
  keep = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0, 1)
  return frequencies * (keep + (1 - keep) / rope.factor)
