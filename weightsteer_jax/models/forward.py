"""The decoder as pure functions of (config, params): what every other room calls.

`params` is a nested dict of arrays named as in `sites`; `edits` are changes applied on the way (see delta.py).
"""
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from weightsteer_jax import tree
from weightsteer_jax.errors import InputError
from weightsteer_jax.models import delta as deltas
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.decoder import Cache, Decoder

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Site:
  """A parameter, or a place a delta may change.

  Attributes:
    axes: letters of its shape, 'L' first inside the layer stack.
    shape: sizes of those axes.
    inputs: number of its axes that are contracted with the input, 0 if it is no projection's kernel.
  """
  axes: str
  shape: tuple[int, ...]
  inputs: int


@functools.cache
def _definition(config: ModelConfig):
  abstract = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
  return nnx.split(abstract)


@functools.cache
def sites(config: ModelConfig) -> dict[str, Site]:
  """{path: Site} of every parameter of the model."""
  _, state = _definition(config)
  found = {}
  for path, variable in nnx.to_flat_state(state):
    name = '/'.join(map(str, path))
    metadata = variable.get_metadata()
    axes = ('L' if name.startswith('layers/') else '') + metadata['axes']
    found[name] = Site(axes, tuple(variable.shape), metadata['inputs'])
  return found


def abstract_params(config: ModelConfig, dtype: Any = jnp.float32) -> PyTree:
  """Shapes and dtypes of the parameters as a nested dict."""
  return tree.unflatten({path: jax.ShapeDtypeStruct(site.shape, jnp.dtype(dtype)) for path, site in sites(config).items()})


def init_params(config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32) -> PyTree:
  """Random parameters: kernels and embeddings normal with std 0.02, biases zero, norm scales one."""

  @jax.jit
  def init(key):
    return nnx.to_pure_dict(nnx.state(Decoder(config, dtype=dtype, rngs=nnx.Rngs(params=key))))

  return init(key)


def init_cache(config: ModelConfig, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
  """An empty cache for `length` positions: {'k', 'v'} of [L, B, S, K, H]."""
  shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
  return {'k': jnp.zeros(shape, dtype), 'v': jnp.zeros(shape, dtype)}


def hidden(config: ModelConfig, params: PyTree, tokens_BT: jax.Array, *, positions_BT: jax.Array | None = None,
           segment_ids_BT: jax.Array | None = None, edits: deltas.Edits = (), cache: Cache | None = None,
           remat: bool = False) -> tuple[jax.Array, Cache | None]:
  """Final-normed hidden states [B, T, D], and the cache with this call's keys and values.

  Without a cache a token sees itself and the earlier tokens of its segment (segment 0 is padding: never seen by others). With a
  cache, slot and position are the same number: the key of position p of row b is written to slot p, and a query at position p sees
  slots 0..p. Rows are right-padded, and what padding writes lies beyond every position its row has reached.

  Args:
    tokens_BT: int32 token ids.
    positions_BT: int32 positions; counted from 0 along T if None.
    segment_ids_BT: int32 segments of packed rows, from 1; one segment if None. Not together with a cache.
    edits: changes to apply, each at its alpha per row.
    cache: from `init_cache`, or from an earlier call.
    remat: recompute each layer's activations in the backward pass.
  Raises:
    InputError: a sequence longer than the model's or the cache's positions.
  """
  batch, length = tokens_BT.shape
  keys = cache['k'].shape[2] if cache is not None else length
  if keys > config.max_positions:
    raise InputError(f'a sequence of {keys} tokens was asked of a model with {config.max_positions} positions; shorten it')
  if positions_BT is None:
    positions_BT = jnp.broadcast_to(jnp.arange(length), (batch, length))
  if cache is not None:
    mask_BTS = jnp.arange(keys)[None, None, :] <= positions_BT[:, :, None]
  else:
    mask_BTS = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
    if segment_ids_BT is not None:
      mask_BTS = mask_BTS & (segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :])
  return _decoder(config, params).hidden(tokens_BT, positions_BT=positions_BT, mask_BTS=mask_BTS, edits=tuple(edits), cache=cache, remat=remat)


def logits(config: ModelConfig, params: PyTree, x_BTD: jax.Array, *, edits: deltas.Edits = ()) -> jax.Array:
  """Float32 logits [B, T, V] of final-normed hidden states."""
  return _decoder(config, params).logits(x_BTD, edits=tuple(edits))


def token_logprobs(config: ModelConfig, params: PyTree, x_BTD: jax.Array, targets_BT: jax.Array, *, edits: deltas.Edits = (),
                   chunk: int = 256) -> jax.Array:
  """log p(target) in nats, float32 [B, T], without ever holding [B, T, V]: T is taken in chunks, recomputed in the backward pass."""
  length = targets_BT.shape[1]

  @jax.checkpoint
  def chunk_logprobs(x_BtD, targets_Bt, edits):
    logits_BtV = logits(config, params, x_BtD, edits=edits)
    picked_Bt = jnp.take_along_axis(logits_BtV, targets_Bt[..., None], axis=-1)[..., 0]
    return picked_Bt - jax.nn.logsumexp(logits_BtV, axis=-1)

  pieces = []
  for start in range(0, length, chunk):
    part = slice(start, min(start + chunk, length))
    part_edits = tuple(dataclasses.replace(e, alpha=e.alpha[:, part]) if jnp.ndim(e.alpha) == 2 else e for e in edits)
    pieces.append(chunk_logprobs(x_BTD[:, part], targets_BT[:, part], part_edits))
  return jnp.concatenate(pieces, axis=1)


def _decoder(config: ModelConfig, params: PyTree) -> Decoder:
  return nnx.merge(_definition(config)[0], params)
