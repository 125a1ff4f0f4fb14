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
`forward.py` runs them on plain nested dicts. Layers are stacked along L and scanned; what differs
from layer to layer is a number per layer, scanned along (see `layer_codes`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from weightsteer_jax.models import attention
from weightsteer_jax.models import delta as deltas
from weightsteer_jax.models import rope as ropes
from weightsteer_jax.models.config import ModelConfig, Rope
from weightsteer_jax.models.layers import MLP, Projection, RMSNorm
from weightsteer_jax.models.moe import MoE
from weightsteer_jax.models.products import wide_einsum
from weightsteer_jax.runtime import sharding

Cache = dict[
  str, jax.Array | tuple[jax.Array, ...]
]  # {'k', 'v'}: [L, B, K, S, H], or [B, K, S, H] for each layer


class Attention(nnx.Module):
  """Grouped-query attention with rotary positions."""

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    sizes = config.sizes()
    self.score_scale, self.score_softcap, self.kernel = (
      config.score_scale,
      config.score_softcap,
      config.attention,
    )
    self.q = Projection('BTD,DNH->BTNH', sizes, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
    self.k = Projection('BTD,DKH->BTKH', sizes, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
    self.v = Projection('BTD,DKH->BTKH', sizes, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
    self.o = Projection('BTNH,NHD->BTD', sizes, bias=config.o_bias, dtype=dtype, rngs=rngs)
    q_axes, k_axes = {'none': ('', ''), 'head': ('H', 'H'), 'projection': ('NH', 'KH')}[
      config.qk_norm
    ]
    self.q_norm = RMSNorm(config, q_axes, dtype=dtype) if q_axes else None
    self.k_norm = RMSNorm(config, k_axes, dtype=dtype) if k_axes else None

  def __call__(self, x_BTD, *, rope, seen, window, edits, cache, layer, positions_BT):
    q_BTNH = self.q(x_BTD, deltas.at(edits, 'q'))
    k_BTKH = self.k(x_BTD, deltas.at(edits, 'k'))
    v_BTKH = self.v(x_BTD, deltas.at(edits, 'v'))
    if self.q_norm is not None:
      q_BTNH = sharding.constrain(self.q_norm(q_BTNH, deltas.at(edits, 'q_norm')), 'BTNH')
      k_BTKH = sharding.constrain(self.k_norm(k_BTKH, deltas.at(edits, 'k_norm')), 'BTKH')
    q_BTNH, k_BTKH = ropes.rotate(q_BTNH, rope), ropes.rotate(k_BTKH, rope)
    if cache is not None:
      cache = write_cache(cache, layer, positions_BT, k_BTKH, v_BTKH)
    options = dict(scale=self.score_scale, softcap=self.score_softcap, window=window)
    if seen.own:
      attended_BTNH = attention.attend(q_BTNH, k_BTKH, v_BTKH, seen, kernel=self.kernel, **options)
    else:
      k_BKSH, v_BKSH = (cache[name][layer].astype(k_BTKH.dtype) for name in ('k', 'v'))
      attended_BTNH = attention.attend_cached(q_BTNH, k_BKSH, v_BKSH, seen, **options)
    return self.o(attended_BTNH, deltas.at(edits, 'o')), cache


class Block(nnx.Module):
  """One layer: attention and MLP, each normed before or after or both, and added to the residual
  stream.
  """

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    def norm(present):
      return RMSNorm(config, 'D', dtype=dtype) if present else None

    self.residual_scale = config.residual_scale
    self.attn_norm = norm(config.pre_norm)
    self.attn = Attention(config, dtype=dtype, rngs=rngs)
    self.attn_post_norm = norm(config.post_norm)
    self.mlp_norm = norm(config.pre_norm)
    self.mlp = (MoE if config.num_experts else MLP)(config, dtype=dtype, rngs=rngs)
    self.mlp_post_norm = norm(config.post_norm)

  def __call__(self, x_BTD, *, edits, **attention):
    def normed(norm, y_BTD):
      module = getattr(self, norm)
      return y_BTD if module is None else module(y_BTD, deltas.at(edits, norm))

    def join(x_BTD, y_BTD):
      y_BTD = y_BTD if self.residual_scale == 1.0 else deltas.pin(y_BTD * self.residual_scale)
      return deltas.pin(x_BTD + y_BTD)

    attended_BTD, cache = self.attn(
      normed('attn_norm', x_BTD), edits=deltas.at(edits, 'attn'), **attention
    )
    x_BTD = join(x_BTD, normed('attn_post_norm', attended_BTD))
    fed_BTD = self.mlp(normed('mlp_norm', x_BTD), deltas.at(edits, 'mlp'))
    x_BTD = join(x_BTD, normed('mlp_post_norm', fed_BTD))
    x_BTD = deltas.pin(deltas.add_vector_edits(x_BTD, deltas.at(edits, 'residual')))
    return sharding.constrain(x_BTD, 'BTD'), cache


class Embedding(nnx.Module):
  """The token table; on tied models also the head."""

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    self.scale = config.embedding_scale
    shape = (config.vocab_size, config.width)
    self.embedding = nnx.Param(
      0.02 * jax.random.normal(rngs.params(), shape, dtype), axes='VD', inputs=0
    )

  def __call__(self, tokens_BT, edits):
    x_BTD = deltas.look_up(self.embedding[...], tokens_BT)
    x_BTD = deltas.pin(deltas.add_lookup_edits(x_BTD, tokens_BT, deltas.at(edits, 'embedding')))
    if self.scale != 1.0:  # Rounded to the dtype before it multiplies, as in transformers' Gemma.
      x_BTD = deltas.pin(x_BTD * jnp.asarray(self.scale, x_BTD.dtype))
    return sharding.constrain(x_BTD, 'BTD')

  def head(self, x_BTD, edits):
    """Float32 logits [B, T, V]."""
    einsum = 'BTD,VD->BTV'
    logits_BTV = wide_einsum(einsum, x_BTD, self.embedding[...])
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
    self.final_norm = RMSNorm(config, 'D', dtype=dtype)
    sizes = config.sizes()
    self.lm_head = (
      None if config.tied else Projection('BTD,DV->BTV', sizes, bias=False, dtype=dtype, rngs=rngs)
    )

  def hidden(
    self, tokens_BT, *, positions_BT, seen, edits, cache, remat, reach, weights_BT=None, layers=None
  ):
    """Final-normed hidden states [B, T, D] and the updated cache. With `layers`, the parameters of
    each, those are taken in place of the stack's, and the cache and the edits have a tuple of
    layers too (see `forward.unstacked`).

    With weights, also the weighted sum over all tokens of the residual stream, float32: after the
    embedding [D], and after each block [L, D].
    """

    def tap(x_BTD):
      if weights_BT is None:
        return None
      return jnp.einsum('BT,BTD->D', weights_BT, x_BTD.astype(jnp.float32), precision='highest')

    keys = min(reach, tokens_BT.shape[1] if seen.own else cache_length(cache))
    x_BTD = self.embed(tokens_BT, deltas.at(edits, 'embed'))
    kinds, codes = layer_codes(self.config, keys)
    tables = ropes.stacked_tables(kinds, self.config.rotary_dim, positions_BT, length=reach)
    definition, stacked = nnx.split(self.layers)
    layer_edits = deltas.at(edits, 'layers')

    def layer(carry, scanned):
      x_BTD, cache = carry
      index, params, layer_deltas, code = scanned
      edits = tuple(
        deltas.fold(dataclasses.replace(edit, delta=delta), index)
        for edit, delta in zip(layer_edits, layer_deltas)
      )
      block = nnx.merge(definition, params)
      x_BTD, cache = block(
        x_BTD,
        rope=jax.tree.map(lambda table: table[code.get('rope', 0)], tables),
        seen=seen,
        window=code.get('window'),
        edits=edits,
        cache=cache,
        layer=index,
        positions_BT=positions_BT,
      )
      return (x_BTD, cache), tap(x_BTD)

    if remat != 'none':
      policy = {'full': None, 'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable}[
        remat
      ]
      # prevent_cse: the scan keeps the two computations apart already.
      layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
    deltas_L = [edit.delta for edit in layer_edits]
    embedded = tap(x_BTD)
    if layers is None:
      indices_L = jnp.arange(self.config.num_layers)
      (x_BTD, cache), blocks = jax.lax.scan(
        layer, (x_BTD, cache), (indices_L, stacked, deltas_L, codes)
      )
    else:
      each = [
        (l, params, [delta[l] for delta in deltas_L], jax.tree.map(lambda code_L: code_L[l], codes))
        for l, params in enumerate(layers)
      ]
      (x_BTD, cache), blocks = one_after_the_other(layer, (x_BTD, cache), each)
    return self.final_norm(x_BTD, deltas.at(edits, 'final_norm')), cache, (embedded, blocks)

  def logits(self, x_BTD, *, edits):
    """Float32 logits [B, T, V] of final-normed hidden states."""
    if self.lm_head is None:
      logits_BTV = self.embed.head(x_BTD, deltas.at(edits, 'embed'))
    else:
      logits_BTV = self.lm_head(x_BTD, deltas.at(edits, 'lm_head'), wide=True)
    if self.config.logit_divisor != 1.0:
      logits_BTV = logits_BTV / self.config.logit_divisor
    return sharding.constrain(attention.soften(logits_BTV, self.config.logit_softcap), 'BTV')


def one_after_the_other(body, carry, each) -> tuple[Any, Any]:
  """What `jax.lax.scan` of the body gives, written out step by step."""
  results = []
  for scanned in each:
    carry, result = body(carry, scanned)
    results.append(result)
  return carry, jax.tree.map(lambda *xs: jnp.stack(xs), *results)


def cache_length(cache: Cache) -> int:
  """S, the slots of a row."""
  return jax.tree.leaves(cache)[0].shape[-2]


def layer_codes(config: ModelConfig, keys: int) -> tuple[list[Rope | None], dict[str, np.ndarray]]:
  """The ropes that the layers have, and what differs from layer to layer.

  The second is {'rope': which of the ropes, 'window': how many of the last keys a query sees},
  int32 [L] each, without those in which all layers are alike: they then cost nothing. A window as
  long as the row is none.
  """
  local = np.isin(np.arange(config.num_layers), config.local_layers)
  rotated = ~np.isin(np.arange(config.num_layers), config.unrotated_layers)
  of_layer = [
    None if not turns else config.local_rope if near and config.local_rope else config.rope
    for near, turns in zip(local, rotated)
  ]
  kinds = list(dict.fromkeys(of_layer))
  codes = {}
  if len(kinds) > 1:
    codes['rope'] = np.array([kinds.index(rope) for rope in of_layer], np.int32)
  if local.any() and config.window < keys:
    codes['window'] = np.where(local, config.window, keys).astype(np.int32)
  return kinds, codes


def write_cache(
  cache: Cache,
  layer: jax.Array | int,
  positions_BT: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
) -> Cache:
  """The cache with these keys and values at slot == position of its layer."""
  shards = sharding.row_shards(positions_BT.shape[0])

  def rows_B1(positions_BT):
    return jnp.arange(positions_BT.shape[0])[:, None]

  # Shard by shard, which tells the compiler that no row is written on another device.
  in_stack = sharding.by_shard(
    lambda old, at, new: old.at[layer, rows_B1(at), :, at].set(new), shards, (1, 0, 0), 1
  )
  in_layer = sharding.by_shard(
    lambda old, at, new: old.at[rows_B1(at), :, at].set(new), shards, (0, 0, 0), 0
  )

  def written(cached, new_BTKH):
    if isinstance(cached, tuple):
      new = sharding.constrain(
        in_layer(cached[layer], positions_BT, new_BTKH.astype(cached[layer].dtype)), 'BKSH'
      )
      return (*cached[:layer], new, *cached[layer + 1 :])
    return sharding.constrain(
      in_stack(cached, positions_BT, new_BTKH.astype(cached.dtype)), 'LBKSH'
    )

  return {'k': written(cache['k'], k_BTKH), 'v': written(cache['v'], v_BTKH)}
