"""Greedy and sampled generation with the KV cache: slots that are refilled as their rows finish.

A batch of B slots decodes on the device, one token per slot and step, until enough slots are free
for the next prompts (or all rows are done); then new prompts are prefilled into the free slots. So
a long answer holds one slot, not the batch. In the cache a token's place is its position: a new row
overwrites the old one's keys before it can see them.
Axes beside the decoder's: P prompts that enter at once, C edits, X stop tokens.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.inference import sampling, shapes
from weightsteer_jax.inference.arms import Arms, together
from weightsteer_jax.inference.programs import edits_of, program
from weightsteer_jax.inference.requests import GenerateRequest, GenerateResult
from weightsteer_jax.models import placement
from weightsteer_jax.runtime import profiling, sharding
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.sharding import Layout

PyTree = Any
Progress = dict[str, jax.Array]  # the arrays of State that say which rows have ended, and how

PROMPT_MULTIPLE, TOTAL_MULTIPLE, ANSWER_MULTIPLE = 16, 32, 32
MAX_SHAPES = 2
REFILL_SHARE = 4  # new prompts enter when one slot in this many is free
MOST_UNSTACKED, SPARE_SHARE = (
  64,
  0.3,
)  # layers, and weights in a device's memory, of which decoding takes a copy
UNTIL_EVERY = (
  16  # tokens after which a row waits to be asked whether it is over, where its request can tell
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """What each slot (or each entering row) is doing.

  Attributes:
    tokens_B, positions_B: the last token, which is not in the cache yet, and its position.
    limits_B: tokens it may generate. coefficients_BC: float32, one per edit.
    keys_B2: uint32, its stream of random numbers. temperatures_B, top_ks_B, top_ps_B: see Sampling.
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
class State:
  """Everything that lives on the device between calls.

  Attributes:
    cache: of all slots. rows: see Rows.
    counts_B: tokens generated. active_B: still going. stopped_B: ended by a stop token. finite_B:
      no NaN or infinity in its logits.
    answers_BT: the tokens generated, without the stop token.
  """

  cache: Any
  rows: Rows
  counts_B: Any
  active_B: Any
  stopped_B: Any
  finite_B: Any
  answers_BT: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Entry:
  """Rows that enter together.

  Attributes:
    prompts_PT: prompt tokens without the last one, padded on the right.
    slots_P: where each goes, among the slots of its group; a number past the last slot marks
      padding. Slots and entries are cut into as many groups as rows have shards, so that a prompt
      is prefilled on the device that has its slot.
    rows: what they do (keys_B2 is made on the device). draws_P3: uint32 seed, hash of the example,
      sample.
  """

  prompts_PT: Any
  slots_P: Any
  rows: Rows
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
) -> State:
  """A state with every slot free. With an unstacked cache, layers are decoded one by one (see
  `models.unstacked`).
  """

  def zeros(dtype, *shape):
    return jnp.zeros((slots, *shape), dtype)

  rows = Rows(
    zeros(jnp.int32),
    zeros(jnp.int32),
    zeros(jnp.int32),
    zeros(jnp.float32, edits),
    zeros(jnp.uint32, 2),
    jnp.ones(slots),
    zeros(jnp.int32),
    jnp.ones(slots),
  )
  cache = models.init_cache(config, slots, length, dtype)
  cache = _apart_cache(config, cache) if unstacked else cache
  return _placed(
    State(
      cache, rows, zeros(jnp.int32), zeros(bool), zeros(bool), zeros(bool), zeros(jnp.int32, answer)
    )
  )


def _placed(state: State) -> State:
  """The state with every array cut along its rows, so that all programs hand it on alike."""
  rest = jax.tree.map(
    lambda x: sharding.constrain(x, 'B' + '_' * (x.ndim - 1)),
    dataclasses.replace(state, cache=None),
  )
  return dataclasses.replace(
    rest, cache=jax.tree.map(lambda x: sharding.constrain(x, 'LBKSH'[-x.ndim :]), state.cache)
  )


@program(static_argnums=0, donate_argnums=3)
def admit(
  config: models.ModelConfig, params: PyTree, deltas: Sequence[PyTree], state: State, entry: Entry
) -> State:
  """The state with the entry's prompts prefilled into its slots."""
  prompts, length = entry.prompts_PT.shape
  cache = models.init_cache(config, prompts, length, jax.tree.leaves(state.cache)[0].dtype)
  edits = edits_of(deltas, entry.rows.coefficients_BC, answers=False)
  reach = models.cache_length(state.cache)
  batch = models.TokenBatch(entry.prompts_PT)
  _, cache = models.hidden(config, params, batch, edits=edits, cache=cache, reach=reach)
  rows = dataclasses.replace(entry.rows, keys_B2=sampling.row_keys(*entry.draws_P3.T))
  shards = sharding.row_shards(math.gcd(prompts, state.counts_B.shape[0]))
  put = sharding.by_shard(
    lambda old, new, slots: old.at[slots].set(new, mode='drop'), shards, (0, 0, 0), 0
  )
  apart = isinstance(state.cache['k'], tuple)
  cache = _apart_cache(config, cache) if apart else cache
  rows_at = 0 if apart else 1
  put_cache = sharding.by_shard(
    lambda old, new, slots: old.at[..., slots, :, :length, :].set(new, mode='drop'),
    shards,
    (rows_at, rows_at, 0),
    rows_at,
  )

  def put_all(old, value):
    return put(old, jnp.full(prompts, value, old.dtype), entry.slots_P)

  return _placed(
    State(
      cache=jax.tree.map(lambda old, new: put_cache(old, new, entry.slots_P), state.cache, cache),
      rows=jax.tree.map(lambda old, new: put(old, new, entry.slots_P), state.rows, rows),
      counts_B=put_all(state.counts_B, 0),
      active_B=put_all(state.active_B, True),
      stopped_B=put_all(state.stopped_B, False),
      finite_B=put_all(state.finite_B, True),
      answers_BT=state.answers_BT,
    )
  )


@program(donate_argnums=0)
def resume(state: State, limits_B: jax.Array) -> State:
  """The state with the rows whose limit is given going on up to that; 0 leaves a row as it is."""
  goes_on_B = limits_B > 0
  rows = dataclasses.replace(
    state.rows, limits_B=jnp.where(goes_on_B, limits_B, state.rows.limits_B)
  )
  return _placed(dataclasses.replace(state, rows=rows, active_B=state.active_B | goes_on_B))


@program(static_argnums=(0, 1), donate_argnums=5)
def decode(
  config: models.ModelConfig,
  mode: str,
  params: PyTree,
  deltas: Sequence[PyTree],
  stops_X: jax.Array,
  state: State,
  keep: jax.Array,
) -> tuple[State, Progress]:
  """The state after as many steps as it takes until at most `keep` rows are active, and what the
  host is to know.
  """
  if isinstance(state.cache['k'], tuple):
    in_dtype = functools.partial(_in_dtype, dtype=params['embed']['embedding'].dtype)
    params, deltas = (
      _apart(config, params),
      tuple(
        jax.tree.map(
          lambda delta: _apart(config, in_dtype(delta)),
          delta,
          is_leaf=lambda x: isinstance(x, dict),
        )
        for delta in deltas
      ),
    )

  def step(state):
    rows = state.rows
    edits = edits_of(deltas, rows.coefficients_BC)
    batch = models.TokenBatch(rows.tokens_B[:, None], rows.positions_B[:, None])
    x_B1D, cache = models.hidden(config, params, batch, edits=edits, cache=state.cache)
    logits_BV = models.logits(config, params, x_B1D, edits=edits)[:, 0]
    tokens_B = sampling.next_tokens(
      logits_BV,
      rows.keys_B2,
      state.counts_B,
      rows.temperatures_B,
      rows.top_ks_B,
      rows.top_ps_B,
      mode=mode,
    )
    return _advance(
      dataclasses.replace(state, cache=cache),
      tokens_B,
      stops_X,
      jnp.all(jnp.isfinite(logits_BV), axis=-1),
    )

  state = _placed(jax.lax.while_loop(lambda state: jnp.sum(state.active_B) > keep, step, state))
  told = {
    name: getattr(state, name)
    for name in ('counts_B', 'active_B', 'stopped_B', 'finite_B', 'answers_BT')
  }
  return state, sharding.replicate(told)


def _apart(config: models.ModelConfig, tree_: PyTree) -> PyTree:
  """Parameters or a delta with layers in place of their stack, if they have one."""
  return {
    name: models.unstacked(config, child) if name == 'layers' else child
    for name, child in tree_.items()
  }


def _apart_cache(config: models.ModelConfig, cache: models.Cache) -> models.Cache:
  return {name: models.unstacked(config, stack) for name, stack in cache.items()}


def _in_dtype(delta: PyTree, dtype: Any) -> PyTree:
  """The delta with its factors rounded as they would be in each step."""

  def rounded(leaf):
    return (
      models.LowRank(leaf.a.astype(dtype), leaf.b.astype(dtype), leaf.scale)
      if isinstance(leaf, models.LowRank)
      else leaf
    )

  return jax.tree.map(rounded, delta, is_leaf=models.is_delta_leaf)


def _advance(state: State, tokens_B: jax.Array, stops_X: jax.Array, finite_B: jax.Array) -> State:
  """The state with one more token in each active row, or the row ended."""
  stopped_B = state.active_B & jnp.any(tokens_B[:, None] == stops_X, axis=-1)
  emitted_B = state.active_B & ~stopped_B & finite_B
  places_B = jnp.where(emitted_B, state.counts_B, state.answers_BT.shape[1])
  counts_B = state.counts_B + emitted_B
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
    finite_B=state.finite_B & (finite_B | ~state.active_B),
    answers_BT=_write(state.answers_BT, places_B, tokens_B),
  )


def _write(answers_BT: jax.Array, places_B: jax.Array, tokens_B: jax.Array) -> jax.Array:
  """The answers with a token more in each row, at its place; one past the last is dropped."""

  def write(answers_BT, places_B, tokens_B):
    return answers_BT.at[jnp.arange(tokens_B.shape[0]), places_B].set(tokens_B, mode='drop')

  return sharding.by_shard(write, sharding.row_shards(tokens_B.shape[0]), (0, 0, 0), 0)(
    answers_BT, places_B, tokens_B
  )


@dataclasses.dataclass(frozen=True)
class Job:
  """A continuation to compute once, for all the requests with these keys; `request` is one of
  them.
  """

  request: GenerateRequest
  coefficients: tuple[float, ...]
  keys: tuple[Any, ...]

  @property
  def size(self) -> shapes.Shape:
    return len(self.request.prompt) - 1, len(self.request.prompt) + self.request.max_new_tokens - 1

  def limit(self, count: int) -> int:
    """How many tokens to generate before the host looks, with that many there."""
    limit = self.request.max_new_tokens
    return min(limit, count + UNTIL_EVERY) if self.request.until else limit


def jobs(requests: Sequence[GenerateRequest], arms: Arms, max_positions: int) -> list[Job]:
  """The requests, those that must come out the same put together.

  Raises:
    InputError: an empty prompt, nothing to generate, or more tokens than the model has positions;
      names the request.
  """
  groups: dict[tuple, list[GenerateRequest]] = collections.defaultdict(list)
  for request in requests:
    if not request.prompt or request.max_new_tokens < 1:
      raise InputError(
        f'{request.cited}: a prompt of {len(request.prompt)} tokens and {request.max_new_tokens} '
        'to generate, expected at least 1 each'
      )
    total = len(request.prompt) + request.max_new_tokens - 1
    if total > max_positions:
      raise InputError(
        f'{request.cited}: a prompt of {len(request.prompt)} tokens and {request.max_new_tokens} '
        f'new ones take {total} positions, the model has {max_positions}; shorten the prompt or '
        'lower max_new_tokens'
      )
    luck = (
      () if request.sampling.mode == 'greedy' else (request.seed, request.example, request.sample)
    )
    coefficients = arms.coefficients(request.arm, request.alpha)
    groups[
      request.prompt, coefficients, request.max_new_tokens, request.sampling, luck, request.until
    ].append(request)
  return [
    Job(members[0], key[1], tuple(member.key for member in members))
    for key, members in groups.items()
  ]


def groups(
  asked: Sequence[Job], *, max_positions: int, compile_tokens: int
) -> Iterator[tuple[str, shapes.Shape, tuple[int, ...], list[Job]]]:
  """(sampling mode, (prompt length, cache length), indices of the deltas, jobs) of what runs
  through the same programs.

  A job's coefficients are those of these deltas.
  """
  by_mode = collections.defaultdict(list)
  for job in asked:
    by_mode[job.request.sampling.mode].append(job)
  for mode, members in by_mode.items():
    planned = shapes.plan_shapes(
      [job.size for job in members],
      multiples=(PROMPT_MULTIPLE, TOTAL_MULTIPLE),
      most=(max_positions, max_positions),
      max_shapes=MAX_SHAPES,
      compile_tokens=compile_tokens,
    )
    active = together(job.coefficients for job in members)
    alike = collections.defaultdict(list)
    for job in members:
      deltas = active[job.coefficients]
      job = dataclasses.replace(job, coefficients=tuple(job.coefficients[i] for i in deltas))
      alike[shapes.fitting(job.size, planned), deltas].append(job)
    for (shape, deltas), chosen in sorted(alike.items()):
      yield mode, shape, deltas, chosen


def takes_apart(config: models.ModelConfig, params: PyTree, layout: Layout) -> bool:
  """Whether to decode layer by layer, with a copy of the weights (see `models.unstacked`).

  On a TPU a scan copies nothing, and on a CPU a copy costs little beside the step; a GPU must have
  room for a second copy of the weights, and a program of very many layers takes too long to
  compile.
  """
  if layout.mesh.devices.flat[0].platform != 'gpu' or config.num_layers > MOST_UNSTACKED:
    return False
  return sharding.bytes_on_device(params) < SPARE_SHARE * placement.least_memory()


def run_group(
  config: models.ModelConfig,
  params: PyTree,
  deltas: Sequence[PyTree],
  mode: str,
  shape: shapes.Shape,
  asked: Sequence[Job],
  *,
  slots: int,
  stops: Sequence[int],
  layout: Layout,
) -> Iterator[GenerateResult]:
  """The results of one group, as they finish. At least as many slots are used as rows have
  shards.
  """
  shards = layout.rows
  in_shard = shapes.rows_for(-(-len(asked) // shards), -(-slots // shards))
  slots, entering = shards * in_shard, shards * max(1, in_shard // REFILL_SHARE)
  # The strongest steered are the likeliest never to stop: begun first, they do not leave a long
  # tail of nearly empty batches.
  queue = collections.deque(
    sorted(
      asked,
      key=lambda job: (-job.request.max_new_tokens, -max(map(abs, job.coefficients), default=0.0)),
    )
  )
  answer = -(-max(job.request.max_new_tokens for job in asked) // ANSWER_MULTIPLE) * ANSWER_MULTIPLE
  with layout.context():
    state = empty_state(
      config,
      slots,
      shape[1],
      answer,
      len(deltas),
      params['embed']['embedding'].dtype,
      takes_apart(config, params, layout),
    )
  held: list[Job | None] = [None] * slots
  while queue or any(held):
    while queue and held.count(None) >= min(entering, len(queue)):
      entry = layout.put_batch(_entry(queue, held, entering, shape[0], len(deltas), shards))
      with layout.context(), profiling.unit('prefill'):
        state = admit(config, params, deltas, state, entry)
    keep = slots - min(entering, len(queue)) if queue else 0
    with layout.context(), profiling.unit('decode'):
      state, progress = decode(
        config, mode, params, deltas, np.asarray(stops, np.int32), state, np.int32(keep)
      )
      results, limits_B = _collect(progress, held)
    yield from results
    if limits_B.any():
      with layout.context():
        state = resume(state, layout.put_batch(limits_B))


def _entry(
  queue: collections.deque,
  held: list[Job | None],
  entering: int,
  length: int,
  edits: int,
  shards: int,
) -> Entry:
  """The next jobs of the queue as rows that go into free slots; `held` is told."""
  rows = Rows(
    *np.zeros((3, entering), np.int32),
    np.zeros((entering, edits), np.float32),
    np.zeros((entering, 2), np.uint32),
    np.ones(entering, np.float32),
    np.zeros(entering, np.int32),
    np.ones(entering, np.float32),
  )
  entry = Entry(
    np.zeros((entering, length), np.int32),
    np.full(entering, len(held), np.int32),
    rows,
    np.zeros((entering, 3), np.uint32),
  )
  for i, slot in _free(held, entering, shards):
    if not queue:
      break
    job = held[slot] = queue.popleft()
    request = job.request
    entry.slots_P[i] = slot % (len(held) // shards)
    entry.prompts_PT[i, : len(request.prompt) - 1] = request.prompt[:-1]
    entry.draws_P3[i] = request.seed, sampling.example_hash(request.example), request.sample
    rows.tokens_B[i], rows.positions_B[i] = request.prompt[-1], len(request.prompt) - 1
    rows.limits_B[i] = job.limit(0)
    rows.coefficients_BC[i] = job.coefficients
    how = request.sampling
    rows.temperatures_B[i], rows.top_ks_B[i], rows.top_ps_B[i] = (
      how.temperature,
      how.top_k,
      how.top_p,
    )
  return entry


def _free(held: list[Job | None], entering: int, shards: int) -> Iterator[tuple[int, int]]:
  """(place in the entry, free slot) pairs, both of one shard; one shard after the other gives a
  slot.

  >>> list(_free([None, 'job', None, None], entering=2, shards=2))
  [(0, 0), (1, 2)]
  """
  slots, places = len(held) // shards, entering // shards
  free = [
    [slot for slot in range(shard * slots, (shard + 1) * slots) if held[slot] is None]
    for shard in range(shards)
  ]
  for place in range(places):
    for shard in range(shards):
      if place < len(free[shard]):
        yield shard * places + place, free[shard][place]


def _collect(progress: Progress, held: list[Job | None]) -> tuple[list[GenerateResult], np.ndarray]:
  """(results of the rows that have ended, whose slots in `held` become free; how far rows that only
  waited go on).
  """
  told = jax.device_get(progress)
  counts, active, stopped, finite, answers = (
    told[name] for name in ('counts_B', 'active_B', 'stopped_B', 'finite_B', 'answers_BT')
  )
  results, limits_B = [], np.zeros(len(held), np.int32)
  for slot, job in enumerate(held):
    if job is None or active[slot]:
      continue
    tokens, until = tuple(answers[slot, : counts[slot]].tolist()), job.request.until
    over = stopped[slot] or (until is not None and until(tokens))
    if finite[slot] and not over and len(tokens) < job.request.max_new_tokens:
      limits_B[slot] = job.limit(len(tokens))
      continue
    held[slot] = None
    finish = 'not_finite' if not finite[slot] else 'stop' if over else 'length'
    results += [GenerateResult(key, tokens, finish) for key in job.keys]
  return results, limits_B
