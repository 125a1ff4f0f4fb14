"""The decoder as pure functions of (config, params): the interface to every other room.

`params` is a nested dict of arrays named as in `sites`; `edits` are changes applied on the way (see
delta.py).
"""

import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from weightsteer_jax.models import delta as deltas
from weightsteer_jax.models.attention import Array, Seen
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.decoder import Cache, Decoder, cache_length
from weightsteer_jax.models.sites import check_delta, definition, sites
from weightsteer_jax.runtime import sharding, tree
from weightsteer_jax.runtime.errors import InputError

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenBatch:
  """Token ids in rows, and which text each token is part of: int32 [B, T] each.

  Attributes:
    tokens_BT: token ids.
    positions_BT: each token's place in its text. None counts from 0 along T; a cache is then filled
      from the start.
    segment_ids_BT: texts packed into a row, numbered from 1; 0 is padding, never seen by a text.
      None means one text a row. Segments and a cache exclude each other.
    branches_BT: continuations of a segment, numbered from 1; 0 is their common beginning. A branch
      sees the beginning and itself. The branch lies behind the beginning in one piece, and goes on
      counting positions where the beginning ends. None means no branches.
  """

  tokens_BT: Array
  positions_BT: Array | None = None
  segment_ids_BT: Array | None = None
  branches_BT: Array | None = None


def abstract_params(config: ModelConfig, dtype: Any = jnp.float32) -> PyTree:
  """Shapes and dtypes of the parameters, as a nested dict."""
  shapes = {}
  for path, site in sites(config).items():
    shapes[path] = jax.ShapeDtypeStruct(site.shape, jnp.dtype(dtype))
  return tree.unflatten(shapes)


def init_params(config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32) -> PyTree:
  """Random parameters: kernels and embeddings normal with std 0.02, biases zero, norms as one."""

  # One program in place of a call for every parameter.
  @jax.jit
  def init(key):
    rngs = nnx.Rngs(params=key)
    decoder = Decoder(config, dtype=dtype, rngs=rngs)
    return nnx.to_pure_dict(nnx.state(decoder))

  return init(key)


def init_cache(config: ModelConfig, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
  """An empty cache for `length` positions: {'k', 'v'} of [L, B, K, S, H]."""
  # K before S, so that the keys of one head lie together.
  shape = (config.num_layers, batch, config.num_kv_heads, length, config.head_dim)
  cache: Cache = {}
  # Two arrays, not one twice: a program that gives up its inputs could not give up both.
  for name in ('k', 'v'):
    cache[name] = sharding.constrain(jnp.zeros(shape, dtype), 'LBKSH')
  return cache


def unstacked(config: ModelConfig, stack: PyTree) -> tuple[PyTree, ...]:
  """The layers of a stack: the 'layers' of parameters or of a delta, or a cache's keys or values.

  Layers given in place of their stack are computed one after the other instead of in a scan. On
  GPUs a scan first copies each layer out of the stack: nothing beside a large batch, but thrice the
  time to read the weights in a decoding step. Take stacks apart outside of the loop over steps, so
  that the copy is made once.
  """
  layers = []
  for layer in range(config.num_layers):
    take = operator.itemgetter(layer)
    layers.append(jax.tree.map(take, stack))
  return tuple(layers)


def hidden(
  config: ModelConfig,
  params: PyTree,
  batch: TokenBatch,
  *,
  edits: deltas.Edits = (),
  cache: Cache | None = None,
  remat: str = 'none',
  reach: int | None = None,
) -> tuple[jax.Array, Cache | None]:
  """Final-normed hidden states [B, T, D], and the cache with this call's keys and values.

  Without a cache a token sees itself and the earlier tokens of its segment. With a cache, slot and
  position are the same number: the key of position p of row b is written to slot p, and a query at
  position p sees slots 0..p. Rows are right-padded; padding writes beyond every position that its
  row has reached.

  Args:
    edits: changes to apply, each at its alpha per row.
    cache: from `init_cache`, or from an earlier call.
    remat: how much the backward pass recomputes, beside norms, gates and attention's scores:
      'none'; 'dots', all but what projections give; 'full', each layer from its input.
    reach: positions that a text may grow to. By `reach`, 'longrope' chooses its factors (see
      rope.py), and a window of that length or more counts as none. None means the slots of the
      cache, or T without a cache. When you prefill a short cache that is later copied into a longer
      one, pass the longer cache's length.

  Raises:
    InputError: if a sequence is longer than the model's or the cache's positions, segments come
      together with a cache, branches come without segments and positions, or an edit does not fit
      the model or the batch.
  """
  x_BTD, cache, _ = _run(config, params, batch, edits=edits, cache=cache, remat=remat, reach=reach)
  return x_BTD, cache


def residual_sums(
  config: ModelConfig,
  params: PyTree,
  batch: TokenBatch,
  weights_BT: Array,
  *,
  edits: deltas.Edits = (),
) -> jax.Array:
  """The residual stream, weighted and summed over all tokens: float32 [L + 1, D].

  Entry 0 is the stream after the embedding, entry l the stream after block l - 1; the final norm
  has not been applied. The other arguments and errors are as in `hidden`.

  Args:
    weights_BT: float32, the weight of each token in the sums.
  """
  _, _, (embedded_D, blocks_LD) = _run(config, params, batch, edits=edits, weights_BT=weights_BT)
  embedded_1D = embedded_D[None]
  return jnp.concatenate([embedded_1D, blocks_LD])


def logits(
  config: ModelConfig, params: PyTree, x_BTD: jax.Array, *, edits: deltas.Edits = ()
) -> jax.Array:
  """Float32 logits [B, T, V] of final-normed hidden states.

  Raises:
    InputError: if an edit does not fit the model or the rows.
  """
  rows, length, _ = x_BTD.shape
  check_edits(config, edits, rows, length)
  decoder = _decoder(config, params)
  return decoder.logits(x_BTD, edits=tuple(edits))


def check_edits(config: ModelConfig, edits: deltas.Edits, batch: int, length: int) -> None:
  """Raises InputError if an edit does not fit the model, or its alpha the rows [batch, length]."""
  for edit in edits:
    # A delta taken apart by layer (see `unstacked`) no longer has the paths of sites.
    if not isinstance(edit.delta.get('layers'), tuple):
      check_delta(config, edit.delta)
    # A strength of another shape might broadcast, and steer other rows than were meant.
    shape = jnp.shape(edit.alpha)
    if shape not in ((), (batch,), (batch, length)):
      raise InputError(
        f'the alpha of an edit has shape {shape}; for {batch} rows of {length} tokens it is one '
        f'number, [{batch}] or [{batch}, {length}]'
      )


def _run(
  config: ModelConfig,
  params: PyTree,
  batch: TokenBatch,
  *,
  edits: deltas.Edits,
  cache: Cache | None = None,
  remat: str = 'none',
  reach: int | None = None,
  weights_BT: Array | None = None,
) -> tuple[jax.Array, Cache | None, tuple[Any, Any]]:
  rows, length = batch.tokens_BT.shape
  check_edits(config, edits, rows, length)
  keys = length if cache is None else cache_length(cache)
  _check_lengths(config, batch, keys, reach, cached=cache is not None)

  # Without positions, a cache is filled from its start: the call's tokens see only each other.
  own = cache is None or batch.positions_BT is None
  count_T = jnp.arange(length)
  counted_BT = jnp.broadcast_to(count_T, (rows, length))
  positions_BT = counted_BT if batch.positions_BT is None else batch.positions_BT
  # A window counts positions: in a row, other branches may lie between a branch and its beginning.
  slots_BT = counted_BT if own and batch.branches_BT is None else positions_BT
  seen = Seen(slots_BT, batch.segment_ids_BT, batch.branches_BT, own)
  decoder = _decoder(config, params)
  # Parameters taken apart by `unstacked` come as a tuple.
  layers = params['layers'] if isinstance(params['layers'], tuple) else None
  return decoder.hidden(
    batch.tokens_BT,
    positions_BT=positions_BT,
    seen=seen,
    edits=tuple(edits),
    cache=cache,
    remat=remat,
    reach=reach or keys,
    weights_BT=weights_BT,
    layers=layers,
  )


def _check_lengths(
  config: ModelConfig, batch: TokenBatch, keys: int, reach: int | None, *, cached: bool
) -> None:
  length = batch.tokens_BT.shape[1]
  packed = batch.segment_ids_BT is not None
  # A packed row may be longer than the model's positions: only its texts may not.
  longest = min(keys, reach or keys) if packed else keys
  if longest > config.max_positions:
    raise InputError(
      f'a sequence of {longest} tokens was asked of a model with {config.max_positions} '
      'positions; shorten it'
    )
  # A branch's positions go on from the end of its beginning: counting along the row is wrong.
  if batch.branches_BT is not None and (not packed or batch.positions_BT is None):
    raise InputError('branches are of segments, and their positions must be given')
  if cached and (length > keys or packed):
    raise InputError(
      f'a cache of {keys} positions takes that many tokens, of one segment a row; got {length}'
      + (' in segments' if packed else '')
    )


def _decoder(config: ModelConfig, params: PyTree) -> Decoder:
  if isinstance(params['layers'], tuple):
    # The decoder is given the layers one by one, and never looks at the stack's placeholder.
    placeholder = abstract_params(config)['layers']
    params = {**params, 'layers': placeholder}
  graph, _ = definition(config)
  return nnx.merge(graph, params)
