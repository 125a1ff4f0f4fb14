"""The device programs of generation: prompts enter free slots, and slots decode token by token.

A batch of B slots decodes on the device, one token per slot and step, until enough slots are free
for the next prompts (or all rows are done); then new prompts are prefilled into the free slots. So
a long answer holds a single slot, not the batch. In the cache a token's place is its position: a
new row overwrites the old one's keys before it can see them. `generation.py` decides who enters
when. Axes as in models/decoder.py.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from weightsteer_jax import models
from weightsteer_jax.inference import sampling
from weightsteer_jax.inference.programs import edits_of, program
from weightsteer_jax.runtime import sharding

PyTree = Any
# The arrays of DecodeState that say which rows have ended, and how.
Progress = dict[str, jax.Array]
# Small arrays: the cache, which is most of the state, never comes to the host.
PROGRESS = ('counts_B', 'active_B', 'stopped_B', 'finite_B', 'answers_BT')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotRows:
  """The task and the state of each slot, or of each entering row.

  Attributes:
    tokens_B: int32, the last token, not in the cache yet.
    positions_B: int32, the last token's position.
    limits_B: int32, most tokens to generate.
    coefficients_BC: float32, one per edit.
    keys_B2: uint32, the row's stream of random numbers.
    temperatures_B: float32, as in Sampling.
    top_ks_B: int32, as in Sampling.
    top_ps_B: float32, as in Sampling.
  """

  tokens_B: Any
  positions_B: Any
  limits_B: Any
  coefficients_BC: Any
  keys_B2: Any
  temperatures_B: Any
  top_ks_B: Any
  top_ps_B: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
  """The arrays that stay on the device between calls.

  Attributes:
    cache: keys and values of all slots.
    rows: what each slot is doing.
    counts_B: int32, tokens generated.
    active_B: bool, still going.
    stopped_B: bool, ended by a stop token.
    finite_B: bool, no NaN or infinity in the row's logits.
    answers_BT: int32, the tokens generated, without the stop token.
  """

  cache: Any
  rows: SlotRows
  counts_B: Any
  active_B: Any
  stopped_B: Any
  finite_B: Any
  answers_BT: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Entry:
  """Rows that enter together.

  Slots and entries are cut into as many groups as rows have shards, so that the device of a slot
  also prefills the prompt.

  Attributes:
    prompts_PT: int32, prompt tokens without the last one, padded on the right.
    slots_P: int32, the slot of each prompt, among the slots of the group; a number past the last
      slot marks padding.
    rows: the rows (keys_B2 is made on the device).
    draws_P3: uint32 seed, hash of the example, sample.
  """

  prompts_PT: Any
  slots_P: Any
  rows: SlotRows
  draws_P3: Any


@functools.partial(jax.jit, static_argnums=range(7))
def empty_state(
  config: models.ModelConfig,
  slots: int,
  length: int,
  answer: int,
  edits: int,
  dtype: Any,
  unstacked: bool = False,
) -> DecodeState:
  """A state with every slot free.

  Args:
    length: positions of the cache.
    answer: most tokens of an answer.
    unstacked: whether each layer has a cache of its own, and is decoded outside of a scan (see
      `models.unstacked`).
  """

  def zeros(dtype, *shape):
    return jnp.zeros((slots, *shape), dtype)

  rows = SlotRows(
    tokens_B=zeros(jnp.int32),
    positions_B=zeros(jnp.int32),
    limits_B=zeros(jnp.int32),
    coefficients_BC=zeros(jnp.float32, edits),
    keys_B2=zeros(jnp.uint32, 2),
    temperatures_B=jnp.ones(slots),
    top_ks_B=zeros(jnp.int32),
    top_ps_B=jnp.ones(slots),
  )
  cache = models.init_cache(config, slots, length, dtype)
  if unstacked:
    cache = _unstacked_cache(config, cache)
  state = DecodeState(
    cache=cache,
    rows=rows,
    counts_B=zeros(jnp.int32),
    active_B=zeros(bool),
    stopped_B=zeros(bool),
    finite_B=zeros(bool),
    answers_BT=zeros(jnp.int32, answer),
  )
  return _placed(state)


@program(static_argnums=0, donate_argnums=3)
def admit(
  config: models.ModelConfig,
  params: PyTree,
  deltas: Sequence[PyTree],
  state: DecodeState,
  entry: Entry,
) -> DecodeState:
  """The state with the entry's prompts prefilled into its slots."""
  # Prefill the prompts into a short cache of their own.
  prompts, length = entry.prompts_PT.shape
  dtype = jax.tree.leaves(state.cache)[0].dtype
  cache = models.init_cache(config, prompts, length, dtype)
  # The prompt's last token, which already predicts an answer, is left to the first decoding step.
  edits = edits_of(deltas, entry.rows.coefficients_BC, answers=False)
  # Keys rotate as in the longer cache that they are copied into.
  reach = models.cache_length(state.cache)
  batch = models.TokenBatch(entry.prompts_PT)
  _, filled = models.hidden(config, params, batch, edits=edits, cache=cache, reach=reach)
  # A call with a cache returns one.
  assert filled is not None
  rows = dataclasses.replace(entry.rows, keys_B2=sampling.row_keys(*entry.draws_P3.T))

  # Copy rows and cache into the slots, on each device by itself. Padding has a slot past the last
  # one, which 'drop' leaves out.
  slots = state.counts_B.shape[0]
  shards = sharding.row_shards(math.gcd(prompts, slots))

  def put_rows(old, new, slots):
    return old.at[slots].set(new, mode='drop')

  # Places past the prompt keep an old row's keys until the new row overwrites them.
  def put_prompts(old, new, slots):
    return old.at[..., slots, :, :length, :].set(new, mode='drop')

  put = sharding.by_shard(put_rows, shards, (0, 0, 0), 0)
  is_unstacked = _is_unstacked(state.cache)
  if is_unstacked:
    filled = _unstacked_cache(config, filled)
  # A stacked cache has the layers before the rows.
  rows_axis = 0 if is_unstacked else 1
  put_cache = sharding.by_shard(put_prompts, shards, (rows_axis, rows_axis, 0), rows_axis)

  slots_P = entry.slots_P

  def put_all(old, value):
    values_P = jnp.full(prompts, value, old.dtype)
    return put(old, values_P, slots_P)

  new_cache = jax.tree.map(lambda old, new: put_cache(old, new, slots_P), state.cache, filled)
  new_rows = jax.tree.map(lambda old, new: put(old, new, slots_P), state.rows, rows)
  admitted = DecodeState(
    cache=new_cache,
    rows=new_rows,
    counts_B=put_all(state.counts_B, 0),
    active_B=put_all(state.active_B, True),
    stopped_B=put_all(state.stopped_B, False),
    finite_B=put_all(state.finite_B, True),
    # The old answer is overwritten token by token; counts_B says how much of it is new.
    answers_BT=state.answers_BT,
  )
  return _placed(admitted)


@program(donate_argnums=0)
def resume(state: DecodeState, limits_B: jax.Array) -> DecodeState:
  """The state with some rows going on up to a new limit; 0 leaves a row as before."""
  goes_on_B = limits_B > 0
  raised_B = jnp.where(goes_on_B, limits_B, state.rows.limits_B)
  rows = dataclasses.replace(state.rows, limits_B=raised_B)
  active_B = state.active_B | goes_on_B
  return _placed(dataclasses.replace(state, rows=rows, active_B=active_B))


@program(donate_argnums=0)
def release(state: DecodeState, freed_B: jax.Array) -> DecodeState:
  """The state in which some rows are over, whatever they were doing; bool [B]."""
  return _placed(dataclasses.replace(state, active_B=state.active_B & ~freed_B))


@program(static_argnums=(1, 2), donate_argnums=0)
def resized(state: DecodeState, length: int, answer: int) -> DecodeState:
  """The state with room for longer rows: a cache of `length` positions, answers of `answer`."""

  def grown(x, axis, size):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)

  cache = jax.tree.map(lambda x: grown(x, -2, length), state.cache)
  answers_BT = grown(state.answers_BT, -1, answer)
  return _placed(dataclasses.replace(state, cache=cache, answers_BT=answers_BT))


@program(static_argnums=(0, 1), donate_argnums=5)
def decode(
  config: models.ModelConfig,
  mode: str,
  params: PyTree,
  deltas: Sequence[PyTree],
  stops_X: jax.Array,
  state: DecodeState,
  keep: jax.Array,
  most: jax.Array,
) -> tuple[DecodeState, Progress]:
  """(the state when at most `keep` rows are active, the progress for the host).

  Args:
    mode: a mode of `sampling.next_tokens`.
    stops_X: int32, tokens that end an answer.
    keep: int32, rows that may still be active when the call returns.
    most: int32, steps after which the call returns in any case.
  """
  if _is_unstacked(state.cache):
    # Factors are rounded once here, and not in each step again.
    dtype = params['embed']['embedding'].dtype
    params = _unstacked_layers(config, params)
    deltas = tuple(_unstacked_delta(config, delta, dtype) for delta in deltas)

  def goes_on(carry):
    state, steps = carry
    return (jnp.sum(state.active_B) > keep) & (steps < most)

  def step(carry):
    state, steps = carry
    rows = state.rows
    edits = edits_of(deltas, rows.coefficients_BC)
    # All slots are computed, free ones too: the shape of a step is fixed.
    batch = models.TokenBatch(rows.tokens_B[:, None], rows.positions_B[:, None])
    x_B1D, cache = models.hidden(config, params, batch, edits=edits, cache=state.cache)
    logits_BV = models.logits(config, params, x_B1D, edits=edits)[:, 0]
    # A row's count of tokens is the step of its random stream.
    tokens_B = sampling.next_tokens(
      logits_BV,
      rows.keys_B2,
      state.counts_B,
      rows.temperatures_B,
      rows.top_ks_B,
      rows.top_ps_B,
      mode=mode,
    )
    finite_B = jnp.all(jnp.isfinite(logits_BV), axis=-1)
    state = dataclasses.replace(state, cache=cache)
    return _advance(state, tokens_B, stops_X, finite_B), steps + 1

  # The loop is on the device: the host waits once a call, not once a token.
  state, _ = jax.lax.while_loop(goes_on, step, (state, jnp.int32(0)))
  state = _placed(state)
  progress = {name: getattr(state, name) for name in PROGRESS}
  # The host of every process reads all rows.
  return state, sharding.replicate(progress)


def _placed(state: DecodeState) -> DecodeState:
  def by_row(x):
    axes = 'B' + '_' * (x.ndim - 1)
    return sharding.constrain(x, axes)

  def by_cache_axes(x):
    # One layer's cache has no L.
    axes = 'LBKSH'[-x.ndim :]
    return sharding.constrain(x, axes)

  # Every array is cut along its rows, so that all programs hand the state on alike.
  without_cache = dataclasses.replace(state, cache=None)
  without_cache = jax.tree.map(by_row, without_cache)
  cache = jax.tree.map(by_cache_axes, state.cache)
  return dataclasses.replace(without_cache, cache=cache)


def _is_unstacked(cache: models.Cache) -> bool:
  return isinstance(cache['k'], tuple)


def _unstacked_cache(config: models.ModelConfig, cache: models.Cache) -> models.Cache:
  layers: models.Cache = {}
  for name, stack in cache.items():
    layers[name] = models.unstacked(config, stack)
  return layers


def _unstacked_layers(config: models.ModelConfig, params: PyTree) -> PyTree:
  """Parameters or a delta with a tuple of layers in place of a stack."""
  if 'layers' not in params:
    return params
  # A copy of the dict: the caller's parameters stay stacked.
  return {**params, 'layers': models.unstacked(config, params['layers'])}


def _unstacked_delta(config: models.ModelConfig, delta: PyTree, dtype: Any) -> PyTree:
  """The delta layer by layer, its factors rounded as in a step."""

  def rounded(leaf):
    if not isinstance(leaf, models.LowRank):
      return leaf
    a = leaf.a.astype(dtype)
    b = leaf.b.astype(dtype)
    return models.LowRank(a, b, leaf.scale)

  def unstacked(bare_delta):
    rounded_delta = jax.tree.map(rounded, bare_delta, is_leaf=models.is_delta_leaf)
    return _unstacked_layers(config, rounded_delta)

  # The delta itself is a dict; around it may be an AnswerOnly.
  return jax.tree.map(unstacked, delta, is_leaf=lambda x: isinstance(x, dict))


def _advance(
  state: DecodeState, tokens_B: jax.Array, stops_X: jax.Array, finite_B: jax.Array
) -> DecodeState:
  """The state with one more token in each active row, or the row ended."""
  is_stop_B = jnp.any(tokens_B[:, None] == stops_X, axis=-1)
  stopped_B = state.active_B & is_stop_B
  # The stop token is no part of the answer, and a broken row's token means nothing.
  emitted_B = state.active_B & ~stopped_B & finite_B
  # A row that emits nothing writes past the end of its answer, where the write is dropped.
  places_B = jnp.where(emitted_B, state.counts_B, state.answers_BT.shape[1])
  counts_B = state.counts_B + emitted_B
  # A row that has ended stays at its last token, so its next steps change nothing.
  rows = dataclasses.replace(
    state.rows,
    tokens_B=jnp.where(emitted_B, tokens_B, state.rows.tokens_B),
    positions_B=state.rows.positions_B + emitted_B,
  )
  return dataclasses.replace(
    state,
    rows=rows,
    counts_B=counts_B,
    active_B=emitted_B & (counts_B < state.rows.limits_B),
    stopped_B=state.stopped_B | stopped_B,
    # Logits of a free slot say nothing about the row that left it.
    finite_B=state.finite_B & (finite_B | ~state.active_B),
    answers_BT=_write(state.answers_BT, places_B, tokens_B),
  )


def _write(answers_BT: jax.Array, places_B: jax.Array, tokens_B: jax.Array) -> jax.Array:
  """The answers with a token more in each row; a place past the last column drops the token."""

  def write(answers_BT, places_B, tokens_B):
    rows_B = jnp.arange(tokens_B.shape[0])
    return answers_BT.at[rows_B, places_B].set(tokens_B, mode='drop')

  # Every device writes the rows it has.
  shards = sharding.row_shards(tokens_B.shape[0])
  write_by_shard = sharding.by_shard(write, shards, (0, 0, 0), 0)
  return write_by_shard(answers_BT, places_B, tokens_B)
