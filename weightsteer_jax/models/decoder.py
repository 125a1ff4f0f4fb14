"""The decoder: one forward pass for every family and every method.

Axes, here and wherever the project's arrays carry a suffix:
  B rows of a batch     T query positions    S key positions     N query heads
  K kv heads            G = N / K            H head dim          D width
  F MLP width           E experts            V vocabulary        L stacked layers
  R adapter rank        I inputs and O outputs of any kernel, each as one axis
Where batches are put together:
  A microbatches        C edits              P prompts           U groups of rows
  M places whose next token is scored        X stop tokens
Where axes are merged:
  Z = B T, the tokens of several rows in one line
  J = Z k, pairs of a token and an expert that the token goes through
  Y blocks of all rows                       Q = G t, queries of a block that share a kv head
A digit is the size of an axis. A small letter is a part of the axis of its capital: t positions of
a block or chunk, m of M, h half of the rotated head dimensions; k of E, the experts that one token
goes through. In an inner product r is the rank of the second adapter.

The same letters say how arrays lie on a mesh (see sharding.py). The modules hold the parameters;
`forward.py` runs the modules on plain nested dicts. Layers are stacked along L and scanned; each
difference between layers is a number per layer, scanned along (see `layer_codes`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from weightsteer_jax.models import attention
from weightsteer_jax.models import delta as deltas
from weightsteer_jax.models import rope as ropes
from weightsteer_jax.models.config import ModelConfig, Rope
from weightsteer_jax.models.layers import MLP, PROJECTED, Projection, RMSNorm
from weightsteer_jax.models.moe import MoE
from weightsteer_jax.models.products import wide_einsum
from weightsteer_jax.runtime import sharding

PyTree = Any
# {'k', 'v'}: [L, B, K, S, H], or a tuple of [B, K, S, H] for each layer.
Cache = dict[str, jax.Array | tuple[jax.Array, ...]]


class Attention(nnx.Module):
  """Grouped-query attention with rotary positions."""

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    self.score_scale = config.score_scale
    self.score_softcap = config.score_softcap
    self.kernel = config.attention
    sizes = config.sizes()
    self.q = Projection('BTD,DNH->BTNH', sizes, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
    self.k = Projection('BTD,DKH->BTKH', sizes, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
    self.v = Projection('BTD,DKH->BTKH', sizes, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
    self.o = Projection('BTNH,NHD->BTD', sizes, bias=config.o_bias, dtype=dtype, rngs=rngs)
    # Axes of the queries' and of the keys' scale: a norm of a head shares its scale among heads.
    norm_axes = {'none': ('', ''), 'head': ('H', 'H'), 'projection': ('NH', 'KH')}
    q_axes, k_axes = norm_axes[config.qk_norm]
    self.q_norm = RMSNorm(config, q_axes, dtype=dtype) if q_axes else None
    self.k_norm = RMSNorm(config, k_axes, dtype=dtype) if k_axes else None

  def __call__(
    self,
    x_BTD: jax.Array,
    *,
    rope: ropes.Tables,
    seen: attention.Seen,
    window: jax.Array | None,
    edits: deltas.Edits,
    cache: Cache | None,
    layer: jax.Array | int,
    positions_BT: attention.Array,
  ) -> tuple[jax.Array, Cache | None]:
    """What attention adds to the residual stream [B, T, D], and the cache with keys and values."""
    q_BTNH = self.q(x_BTD, deltas.at(edits, 'q'))
    k_BTKH = self.k(x_BTD, deltas.at(edits, 'k'))
    v_BTKH = self.v(x_BTD, deltas.at(edits, 'v'))
    # Norms come before the rotation, as in transformers' Qwen3, Gemma 3 and OLMo 2.
    if self.q_norm is not None and self.k_norm is not None:
      q_BTNH = self.q_norm(q_BTNH, deltas.at(edits, 'q_norm'))
      q_BTNH = sharding.constrain(q_BTNH, 'BTNH')
      k_BTKH = self.k_norm(k_BTKH, deltas.at(edits, 'k_norm'))
      k_BTKH = sharding.constrain(k_BTKH, 'BTKH')
    q_BTNH = ropes.rotate(q_BTNH, rope)
    k_BTKH = ropes.rotate(k_BTKH, rope)

    # Keys are cached as rotated. A query of this call may see them, so writing comes first.
    if cache is not None:
      cache = write_cache(cache, layer, positions_BT, k_BTKH, v_BTKH)
    # A query that brings its own keys may use a kernel; decoding reads the cache.
    options: dict[str, Any] = dict(
      scale=self.score_scale, softcap=self.score_softcap, window=window
    )
    if seen.own or cache is None:
      attended_BTNH = attention.attend(q_BTNH, k_BTKH, v_BTKH, seen, kernel=self.kernel, **options)
    else:
      # A cache may have another dtype than the model.
      k_BKSH = cache['k'][layer].astype(k_BTKH.dtype)
      v_BKSH = cache['v'][layer].astype(k_BTKH.dtype)
      attended_BTNH = attention.attend_cached(q_BTNH, k_BKSH, v_BKSH, seen, **options)
    return self.o(attended_BTNH, deltas.at(edits, 'o')), cache


class Block(nnx.Module):
  """One layer: attention and MLP, each normed and added to the residual stream.

  A norm stands before or after attention and MLP, or at both places, as the config says.
  """

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    def norm(present: bool) -> RMSNorm | None:
      return RMSNorm(config, 'D', dtype=dtype) if present else None

    self.residual_scale = config.residual_scale
    self.attn_norm = norm(config.pre_norm)
    self.attn = Attention(config, dtype=dtype, rngs=rngs)
    self.attn_post_norm = norm(config.post_norm)
    self.mlp_norm = norm(config.pre_norm)
    # Both have the same signature; a model has one kind in all layers, which are stacked.
    self.mlp = (MoE if config.num_experts else MLP)(config, dtype=dtype, rngs=rngs)
    self.mlp_post_norm = norm(config.post_norm)

  def __call__(
    self, x_BTD: jax.Array, *, edits: deltas.Edits, **attention: Any
  ) -> tuple[jax.Array, Cache | None]:
    """The residual stream [B, T, D] after the layer, and the cache with its keys and values."""

    def normed(name, y_BTD):
      norm = getattr(self, name)
      return y_BTD if norm is None else norm(y_BTD, deltas.at(edits, name))

    def join(x_BTD, y_BTD, vectors=()):
      # Of the families, only Granite scales what is added.
      if self.residual_scale != 1.0:
        y_BTD = deltas.pin(y_BTD * self.residual_scale)
      # Vectors are added to the float32 sum, before its one rounding.
      dtype = x_BTD.dtype
      if vectors:
        x_BTD = x_BTD.astype(jnp.float32)
      x_BTD = deltas.add_vector_edits(x_BTD + y_BTD, vectors)
      return deltas.pin(x_BTD.astype(dtype))

    # Attention, added to the residual stream.
    attn_input_BTD = normed('attn_norm', x_BTD)
    attn_edits = deltas.at(edits, 'attn')
    attended_BTD, cache = self.attn(attn_input_BTD, edits=attn_edits, **attention)
    attended_BTD = normed('attn_post_norm', attended_BTD)
    x_BTD = join(x_BTD, attended_BTD)
    # The MLP, added to the sum.
    mlp_input_BTD = normed('mlp_norm', x_BTD)
    fed_BTD = self.mlp(mlp_input_BTD, deltas.at(edits, 'mlp'))
    fed_BTD = normed('mlp_post_norm', fed_BTD)
    # Activation steering: a vector is added behind the whole block.
    x_BTD = join(x_BTD, fed_BTD, deltas.at(edits, 'residual'))
    return sharding.constrain(x_BTD, 'BTD'), cache


class Embedding(nnx.Module):
  """The token table; on tied models also the head."""

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    self.scale = config.embedding_scale
    shape = (config.vocab_size, config.width)
    # 0.02 as in layers.Projection.
    table = 0.02 * jax.random.normal(rngs.params(), shape, dtype)
    # Without inputs: a delta of the table is dense, since only kernels can be low-rank.
    self.embedding = nnx.Param(table, axes='VD', inputs=0)

  def __call__(self, tokens_BT: attention.Array, edits: deltas.Edits) -> jax.Array:
    """Embeddings of the tokens [B, T, D], scaled as the config says."""
    x_BTD = deltas.look_up(self.embedding[...], tokens_BT)
    dtype = x_BTD.dtype
    embedding_edits = deltas.at(edits, 'embedding')
    x_BTD = deltas.add_lookup_edits(x_BTD, tokens_BT, embedding_edits)
    if self.scale != 1.0:
      # The scale is rounded to the dtype before it multiplies, as in transformers' Gemma
      # (modeling_gemma2.py): the square root of the width is rarely a bfloat16 number.
      scale = jnp.asarray(self.scale, dtype)
      x_BTD = x_BTD * scale
    # Rounded once: a changed row is float32 until it is scaled.
    x_BTD = deltas.pin(x_BTD.astype(dtype))
    return sharding.constrain(x_BTD, 'BTD')

  def head(self, x_BTD: jax.Array, edits: deltas.Edits) -> jax.Array:
    """Float32 logits [B, T, V] of a tied model."""
    einsum = 'BTD,VD->BTV'
    # The transposed table is a kernel, also to the edits of the embedding.
    logits_BTV = wide_einsum(einsum, x_BTD, self.embedding[...])
    embedding_edits = deltas.at(edits, 'embedding')
    logits_BTV = deltas.add_kernel_edits(logits_BTV, x_BTD, einsum, embedding_edits)
    return sharding.constrain(logits_BTV, 'BTV')


class Decoder(nnx.Module):
  """Embedding, L scanned blocks, final norm, and the head."""

  def __init__(self, config: ModelConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
    self.config = config
    self.embed = Embedding(config, dtype=dtype, rngs=rngs)

    # One module whose parameters have a first axis L, drawn from a key for each layer.
    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stack(rngs):
      return Block(config, dtype=dtype, rngs=rngs)

    self.layers = stack(rngs)
    self.final_norm = RMSNorm(config, 'D', dtype=dtype)
    sizes = config.sizes()
    # One assignment: nnx fixes at the first one whether an attribute holds parameters.
    self.lm_head = (
      None if config.tied else Projection('BTD,DV->BTV', sizes, bias=False, dtype=dtype, rngs=rngs)
    )

  def hidden(
    self,
    tokens_BT: attention.Array,
    *,
    positions_BT: attention.Array,
    seen: attention.Seen,
    edits: deltas.Edits,
    cache: Cache | None,
    remat: str,
    reach: int,
    weights_BT: attention.Array | None = None,
    layers: tuple[PyTree, ...] | None = None,
  ) -> tuple[jax.Array, Cache | None, tuple[Any, Any]]:
    """Final-normed hidden states [B, T, D], the updated cache, and sums of the residual stream.

    The sums (after the embedding [D], after each block [L, D]) are float32, over all tokens, each
    times its weight; (None, None) without weights.

    Args:
      layers: parameters layer by layer, in place of the stack. Cache and edits then hold tuples of
        layers too (see `forward.unstacked`).
    """
    # Queries see their own call's keys, or the slots of the cache.
    keys = tokens_BT.shape[1] if seen.own or cache is None else cache_length(cache)
    x_BTD = self.embed(tokens_BT, deltas.at(edits, 'embed'))
    kinds, codes = layer_codes(self.config, min(reach, keys))
    # Layers of a kind share their angles, which are computed once, outside of the scan.
    tables = ropes.stacked_tables(kinds, self.config.rotary_dim, positions_BT, length=reach)
    # A scan takes plain arrays: each step merges its layer's parameters into the block.
    definition, stacked = nnx.split(self.layers)
    layer_edits = deltas.at(edits, 'layers')

    def run_layer(carry, scanned):
      x_BTD, cache = carry
      layer, params, layer_deltas, code = scanned
      edits = _edits_of_layer(layer_edits, layer_deltas, layer)
      block = nnx.merge(definition, params)
      x_BTD, cache = block(
        x_BTD,
        rope=jax.tree.map(lambda table: table[code.get('rope', 0)], tables),
        seen=seen,
        window=code.get('window'),
        edits=edits,
        cache=cache,
        layer=layer,
        positions_BT=positions_BT,
      )
      return (x_BTD, cache), _weighted_sum(x_BTD, weights_BT)

    embedded_D = _weighted_sum(x_BTD, weights_BT)
    step = _rematerialised(run_layer, remat)
    layer_deltas = [edit.delta for edit in layer_edits]
    if layers is None:
      inputs = (jnp.arange(self.config.num_layers), stacked, layer_deltas, codes)
      (x_BTD, cache), blocks_LD = jax.lax.scan(step, (x_BTD, cache), inputs)
    else:
      each = _by_layer(layers, layer_deltas, codes)
      (x_BTD, cache), blocks_LD = one_after_the_other(step, (x_BTD, cache), each)
    normed_BTD = self.final_norm(x_BTD, deltas.at(edits, 'final_norm'))
    return normed_BTD, cache, (embedded_D, blocks_LD)

  def logits(self, x_BTD: jax.Array, *, edits: deltas.Edits) -> jax.Array:
    """Float32 logits [B, T, V] of final-normed hidden states."""
    if self.lm_head is None:
      logits_BTV = self.embed.head(x_BTD, deltas.at(edits, 'embed'))
    else:
      logits_BTV = self.lm_head(x_BTD, deltas.at(edits, 'lm_head'), wide=True)
    # Only Granite divides, and only Gemma 2 and 3 cap: no family does both.
    if self.config.logit_divisor != 1.0:
      logits_BTV = logits_BTV / self.config.logit_divisor
    logits_BTV = attention.soften(logits_BTV, self.config.logit_softcap)
    return sharding.constrain(logits_BTV, 'BTV')


def _edits_of_layer(
  edits: deltas.Edits, layer_deltas: Sequence[PyTree], layer: jax.Array | int
) -> list[deltas.Edit]:
  edits_of_layer = []
  for edit, delta in zip(edits, layer_deltas, strict=True):
    edit = dataclasses.replace(edit, delta=delta)
    # Folded: all layers run the same program, and each draws its own dropout.
    edits_of_layer.append(deltas.fold(edit, layer))
  return edits_of_layer


def _rematerialised(layer: Callable[..., Any], remat: str) -> Callable[..., Any]:
  if remat == 'none':
    return layer
  # 'dots' keeps what projections give, and recomputes attention's products.
  keep_projected = jax.checkpoint_policies.save_only_these_names(PROJECTED)
  policies = {'full': None, 'dots': keep_projected}
  # prevent_cse: the scan keeps the two computations apart already.
  return jax.checkpoint(layer, prevent_cse=False, policy=policies[remat])


def _weighted_sum(x_BTD: jax.Array, weights_BT: attention.Array | None) -> jax.Array | None:
  if weights_BT is None:
    return None
  # On GPUs and TPUs, float32 products default to fewer bits; sums over many tokens want all.
  x32_BTD = x_BTD.astype(jnp.float32)
  return jnp.einsum('BT,BTD->D', weights_BT, x32_BTD, precision='highest')


def _by_layer(
  layers: Sequence[PyTree], layer_deltas: Sequence[PyTree], codes: dict[str, np.ndarray]
) -> list[tuple[Any, ...]]:
  """What a scan would give each layer: its index, parameters, deltas and codes."""
  each = []
  for layer, params in enumerate(layers):
    deltas_of_layer = [delta[layer] for delta in layer_deltas]
    codes_of_layer = {name: code_L[layer] for name, code_L in codes.items()}
    each.append((layer, params, deltas_of_layer, codes_of_layer))
  return each


def one_after_the_other(
  body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, each: Sequence[Any]
) -> tuple[Any, Any]:
  """The results of `jax.lax.scan` over the body, written out step by step."""
  results = []
  for scanned in each:
    carry, result = body(carry, scanned)
    results.append(result)
  # Stacked along a new first axis, as by a scan; a result of None stays None.
  stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *results)
  return carry, stacked


def cache_length(cache: Cache) -> int:
  """S, the slots of a row."""
  return jax.tree.leaves(cache)[0].shape[-2]


def layer_codes(config: ModelConfig, keys: int) -> tuple[list[Rope | None], dict[str, np.ndarray]]:
  """The ropes that the layers have, and codes for the differences between layers.

  The codes are {'rope': index of the layer's rope, 'window': how many of the last keys a query
  sees}, int32 [L] each. A code in which all layers are alike is left out, and costs nothing. A
  window as long as the row counts as none.
  """
  layer_numbers = np.arange(config.num_layers)
  local_L = np.isin(layer_numbers, config.local_layers)
  rotated_L = ~np.isin(layer_numbers, config.unrotated_layers)
  layer_ropes: list[Rope | None] = []
  for local, rotated in zip(local_L, rotated_L, strict=True):
    rope = config.local_rope if local and config.local_rope else config.rope
    layer_ropes.append(rope if rotated else None)
  # Distinct ropes, in the order of their first layer.
  kinds = list(dict.fromkeys(layer_ropes))
  codes = {}
  if len(kinds) > 1:
    codes['rope'] = np.array([kinds.index(rope) for rope in layer_ropes], np.int32)
  if config.window is not None and local_L.any() and config.window < keys:
    # A global layer's window is all keys, so that one program serves both kinds of layers.
    windows_L = np.where(local_L, config.window, keys)
    codes['window'] = windows_L.astype(np.int32)
  return kinds, codes


def write_cache(
  cache: Cache,
  layer: jax.Array | int,
  positions_BT: attention.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
) -> Cache:
  """The cache with these keys and values at slot == position of its layer."""
  shards = sharding.row_shards(positions_BT.shape[0])

  def row_numbers(positions_BT):
    return jnp.arange(positions_BT.shape[0])[:, None]

  # Each shard writes its own rows, so the compiler knows that no row is written on another device.
  def set_in_stack(old, at, new):
    return old.at[layer, row_numbers(at), :, at].set(new)

  def set_in_layer(old, at, new):
    return old.at[row_numbers(at), :, at].set(new)

  # The numbers are the axes of rows: 1 in a stack [L, B, ...], otherwise 0.
  in_stack = sharding.by_shard(set_in_stack, shards, (1, 0, 0), 1)
  in_layer = sharding.by_shard(set_in_layer, shards, (0, 0, 0), 0)

  def written(cached, new_BTKH):
    if not isinstance(cached, tuple):
      new_BTKH = new_BTKH.astype(cached.dtype)
      stack_LBKSH = in_stack(cached, positions_BT, new_BTKH)
      return sharding.constrain(stack_LBKSH, 'LBKSH')
    old_BKSH = cached[layer]
    new_BTKH = new_BTKH.astype(old_BKSH.dtype)
    layer_BKSH = in_layer(old_BKSH, positions_BT, new_BTKH)
    layer_BKSH = sharding.constrain(layer_BKSH, 'BKSH')
    return (*cached[:layer], layer_BKSH, *cached[layer + 1 :])

  return {'k': written(cache['k'], k_BTKH), 'v': written(cache['v'], v_BTKH)}
