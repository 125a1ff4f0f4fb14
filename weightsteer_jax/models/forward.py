"""The decoder as pure functions of (config, params): what every other room calls.

`params` is a nested dict of arrays named as in `sites`; `edits` are changes applied on the way (see delta.py).
"""
import dataclasses
import functools
import math
from typing import Any

from einops import rearrange
from flax import nnx
import jax
import jax.numpy as jnp

from weightsteer_jax import sharding, tree
from weightsteer_jax.errors import InputError
from weightsteer_jax.models import delta as deltas
from weightsteer_jax.models.attention import Seen
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.decoder import Cache, Decoder, cache_length
from weightsteer_jax.models.sites import check_delta, definition, sites

PyTree = Any

# Logits that `token_logprobs` holds at once on a device: half a GiB in float32. The backward pass has two to three arrays
# of that size, which is little beside the weights of a model with a vocabulary for which it matters; and its matmul has
# rows enough to be efficient: some 900 with 152k tokens.
LOGITS = 2**27


def abstract_params(config: ModelConfig, dtype: Any = jnp.float32) -> PyTree:
  """Shapes and dtypes of the parameters as a nested dict."""
  return tree.unflatten(
      {path: jax.ShapeDtypeStruct(site.shape, jnp.dtype(dtype)) for path, site in sites(config).items()})


def init_params(config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32) -> PyTree:
  """Random parameters: kernels and embeddings normal with std 0.02, biases zero, norms as one."""

  @jax.jit
  def init(key):
    return nnx.to_pure_dict(nnx.state(Decoder(config, dtype=dtype, rngs=nnx.Rngs(params=key))))

  return init(key)


def init_cache(config: ModelConfig, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
  """An empty cache for `length` positions: {'k', 'v'} of [L, B, K, S, H], so that a head's keys lie together."""
  shape = (config.num_layers, batch, config.num_kv_heads, length, config.head_dim)
  return {name: sharding.constrain(jnp.zeros(shape, dtype), 'LBKSH') for name in ('k', 'v')}


def unstacked(config: ModelConfig, stack: PyTree) -> tuple[PyTree, ...]:
  """The layers of a stack: of parameters' or a delta's 'layers', or of a cache's keys or values.

  Where they are given in place of the stack, they are computed one after the other instead of in a scan. What a scan
  takes out of a stack is copied first, on GPUs: nothing beside a large batch, but thrice the time to read the weights in
  a decoding step. Take the stacks apart outside of the loop over steps, and the copy is made once.
  """
  return tuple(jax.tree.map(lambda x: x[l], stack) for l in range(config.num_layers))


def hidden(config: ModelConfig, params: PyTree, tokens_BT: jax.Array, *, positions_BT: jax.Array | None = None,
           segment_ids_BT: jax.Array | None = None, edits: deltas.Edits = (), cache: Cache | None = None,
           remat: str = 'none', reach: int | None = None) -> tuple[jax.Array, Cache | None]:
  """Final-normed hidden states [B, T, D], and the cache with this call's keys and values.

  Without a cache a token sees itself and the earlier tokens of its segment (segment 0 is padding: never seen by
  others). With a cache, slot and position are the same number: the key of position p of row b is written to slot p, and
  a query at position p sees slots 0..p. Rows are right-padded, and what padding writes lies beyond every position its
  row has reached.

  Args:
    tokens_BT: int32 token ids.
    positions_BT: int32 positions; counted from 0 along T if None, and a cache is then filled from its start.
    segment_ids_BT: int32 segments of packed rows, from 1; one segment if None. Not together with a cache.
    edits: changes to apply, each at its alpha per row.
    cache: from `init_cache`, or from an earlier call.
    remat: what the backward pass recomputes: 'none'; 'dots', all but the products of activations with weights; 'full',
      each layer from its input.
    reach: positions that the rows may grow to, by which 'longrope' chooses its factors (see rope.py); the slots of the
      cache, or T without one, if None. What is written to a cache that is to be part of a longer one needs that one's.
  Raises:
    InputError: a sequence longer than the model's or the cache's positions, segments together with a cache, or an edit
      that does not fit the model or the batch.
  """
  x_BTD, cache, _ = _run(config, params, tokens_BT, positions_BT, segment_ids_BT, edits, cache, remat, reach)
  return x_BTD, cache


def residual_sums(config: ModelConfig, params: PyTree, tokens_BT: jax.Array, weights_BT: jax.Array, *,
                  positions_BT: jax.Array | None = None, segment_ids_BT: jax.Array | None = None,
                  edits: deltas.Edits = ()) -> jax.Array:
  """The residual stream, each token's times its weight, summed over all tokens: float32 [L + 1, D].

  Entry 0 is behind the embedding, entry l behind block l - 1; the last is before the final norm. The other arguments
  and errors are as in `hidden`.
  """
  *_, (embedded_D, blocks_LD) = _run(config, params, tokens_BT, positions_BT, segment_ids_BT, edits, None, 'none', None,
                                     weights_BT=weights_BT)
  return jnp.concatenate([embedded_D[None], blocks_LD])


def logits(config: ModelConfig, params: PyTree, x_BTD: jax.Array, *, edits: deltas.Edits = ()) -> jax.Array:
  """Float32 logits [B, T, V] of final-normed hidden states."""
  _check_edits(config, edits, *x_BTD.shape[:2])
  return _decoder(config, params).logits(x_BTD, edits=tuple(edits))


def token_logprobs(config: ModelConfig,
                   params: PyTree,
                   x_BTD: jax.Array,
                   targets_BT: jax.Array,
                   *,
                   edits: deltas.Edits = (),
                   chunk: int | None = None,
                   copies: int = 1) -> jax.Array:
  """log p(target) in nats, float32 [B, T], without ever holding more logits than LOGITS.

  T is taken in chunks, as few as will do, one after the other, whose logits are computed again in the backward pass:
  the largest array is the [B, chunk, V] of one chunk.

  Args:
    chunk: positions of a chunk at most; by default what `chunk_length` says.
    copies: that are computed at once, where this is under a `vmap`, which does not show in the shapes.
  """
  batch, length = targets_BT.shape
  _check_edits(config, edits, batch, length)
  if chunk is None:
    mesh = jax.sharding.get_abstract_mesh()
    shards = math.prod(1 if mesh.empty else mesh.shape[axis] for axis in sharding.ACTIVATIONS['V'])
    chunk = chunk_length(config.vocab_size // shards, copies * batch // sharding.row_shards(batch), length)
  chunks = math.ceil(length / chunk)
  padding = -length % chunks

  def split(array):
    padded = jnp.pad(array, [(0, 0), (0, padding)] + [(0, 0)] * (array.ndim - 2))
    return rearrange(padded, 'B (C t) ... -> C B t ...', C=chunks)

  # prevent_cse: inside a scan there is nothing that a common subexpression could keep alive.
  @functools.partial(jax.checkpoint, prevent_cse=False)
  def chunk_logprobs(carry, scanned):
    index, x_BtD, targets_Bt, alphas = scanned
    here = tuple(
        deltas.fold(edit if alpha is None else dataclasses.replace(edit, alpha=alpha), index)
        for edit, alpha in zip(edits, alphas))
    logits_BtV = logits(config, params, x_BtD, edits=here)
    picked_Bt = jnp.take_along_axis(logits_BtV, targets_Bt[..., None], axis=-1)[..., 0]
    return carry, picked_Bt - jax.nn.logsumexp(logits_BtV, axis=-1)

  alphas = [split(edit.alpha) if jnp.ndim(edit.alpha) == 2 else None for edit in edits]
  _, logprobs_CBt = jax.lax.scan(chunk_logprobs, None, (jnp.arange(chunks), split(x_BTD), split(targets_BT), alphas))
  return rearrange(logprobs_CBt, 'C B t -> B (C t)')[:, :length]


def chunk_length(vocab_size: int, rows: int, length: int) -> int:
  """Positions of a chunk of `token_logprobs`, for so many of the vocabulary, rows and positions on a device.

  >>> chunk_length(152064, rows=8, length=4096), chunk_length(2560, rows=8, length=256), chunk_length(10**9, 1, 9)
  (110, 256, 1)
  """
  return min(length, max(1, LOGITS // (rows * vocab_size)))


def _check_edits(config: ModelConfig, edits: deltas.Edits, batch: int, length: int) -> None:
  for edit in edits:
    if not isinstance(edit.delta.get('layers'), tuple):
      check_delta(config, edit.delta)
    shape = jnp.shape(edit.alpha)
    if shape not in ((), (batch,), (batch, length)):
      raise InputError(
          f'the alpha of an edit has shape {shape}; for {batch} rows of {length} tokens it is one number, [{batch}] or '
          f'[{batch}, {length}]')


def _run(config, params, tokens_BT, positions_BT, segment_ids_BT, edits, cache, remat, reach, weights_BT=None):
  batch, length = tokens_BT.shape
  _check_edits(config, edits, batch, length)
  keys = cache_length(cache) if cache is not None else length
  if keys > config.max_positions:
    raise InputError(
        f'a sequence of {keys} tokens was asked of a model with {config.max_positions} positions; shorten it')
  if cache is not None and (length > keys or segment_ids_BT is not None):
    raise InputError(f'a cache of {keys} positions takes that many tokens, of one segment a row; got {length}'
                     + (' in segments' if segment_ids_BT is not None else ''))
  # A cache without positions is being filled from its start: what these tokens see is themselves.
  own = cache is None or positions_BT is None
  counted_BT = jnp.broadcast_to(jnp.arange(length), (batch, length))
  positions_BT = counted_BT if positions_BT is None else positions_BT
  seen = Seen(counted_BT if own else positions_BT, segment_ids_BT, own)
  layers = params['layers'] if isinstance(params['layers'], tuple) else None
  return _decoder(config, params).hidden(tokens_BT,
                                         positions_BT=positions_BT,
                                         seen=seen,
                                         edits=tuple(edits),
                                         cache=cache,
                                         remat=remat,
                                         reach=reach or keys,
                                         weights_BT=weights_BT,
                                         layers=layers)


def _decoder(config: ModelConfig, params: PyTree) -> Decoder:
  if isinstance(params['layers'], tuple):  # Their stack is not there, and not looked at.
    params = {**params, 'layers': abstract_params(config)['layers']}
  return nnx.merge(definition(config)[0], params)
