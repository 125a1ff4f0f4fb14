"""Greedy and sampled generation: requests in groups, and the order in which prompts enter slots.

The host's side; slots and the device programs stand in `decoding.py`.
"""

import collections
import dataclasses
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.config.checks import SEED_LIMIT
from weightsteer_jax.data.batches import round_up
from weightsteer_jax.inference import decoding, sampling, shapes
from weightsteer_jax.inference.arms import Arms, delta_sets
from weightsteer_jax.inference.requests import GenerateRequest, GenerateResult, check_ids
from weightsteer_jax.models import placement
from weightsteer_jax.runtime import profiling, sharding
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.sharding import Layout

PyTree = Any

# Lengths are rounded up to these, tokens: of prompts, of the cache and of answers.
PROMPT_MULTIPLE = 16
TOTAL_MULTIPLE = 32
ANSWER_MULTIPLE = 32
# Shapes of (prompt, cache) that one sampling mode is compiled for, at most.
MAX_SHAPES = 2
# New prompts enter when a quarter of the slots is free: fewer would prefill in small batches, more
# would leave slots idle.
REFILL_SHARE = 4
# Most layers that are decoded apart from each other: a program grows with every layer.
MOST_UNSTACKED = 64
# Most of a device's memory that the weights may take for a second copy to have room.
SPARE_SHARE = 0.3
# Tokens after which a row waits until its request has said whether the answer is over: the host is
# asked seldom, and few tokens are computed in vain.
UNTIL_EVERY = 16
# Steps of a call that ends when rows do.
UNLIMITED = np.int32(np.iinfo(np.int32).max)


@dataclasses.dataclass(frozen=True)
class Continuation:
  """An answer to compute once, for several requests alike.

  Attributes:
    request: the first of the requests.
    coefficients: one for each delta of the engine; in a Group, one for each delta of the group.
    keys: keys of the requests.
  """

  request: GenerateRequest
  coefficients: tuple[float, ...]
  keys: tuple[Hashable, ...]

  @property
  def size(self) -> shapes.Shape:
    """(tokens to prefill, positions of the cache): the last token of each is not in the cache."""
    prefilled = len(self.request.prompt) - 1
    return prefilled, prefilled + self.request.max_new_tokens

  def limit(self, count: int) -> int:
    """How many tokens to generate before the host looks, with `count` there."""
    limit = self.request.max_new_tokens
    if self.request.until:
      limit = min(limit, count + UNTIL_EVERY)
    return limit


class Group(NamedTuple):
  """Continuations that run through the same programs.

  Attributes:
    mode: the sampling mode, alike for all members.
    shape: (prompt length, cache length), tokens.
    deltas: indices of the deltas to compute.
    members: the continuations, with a coefficient for each delta of the group.
  """

  mode: str
  shape: shapes.Shape
  deltas: tuple[int, ...]
  members: list[Continuation]


def continuations(
  requests: Sequence[GenerateRequest], arms: Arms, config: models.ModelConfig
) -> list[Continuation]:
  """The answers to compute: requests with the same answer share one.

  Raises:
    InputError: if a prompt is empty or holds a token beyond the vocabulary, if there is nothing to
      generate, or if a request takes more positions than the model has; names the request.
  """
  alike: dict[tuple, list[GenerateRequest]] = collections.defaultdict(list)
  for request in requests:
    _check(request, config)
    # Greedy answers are alike whatever the seed.
    draw: tuple = ()
    if request.sampling.mode != 'greedy':
      draw = (request.seed, request.example, request.sample)
    coefficients = arms.coefficients(request.arm, request.alpha)
    # All that an answer depends on.
    end = (request.max_new_tokens, request.until)
    answer = (request.prompt, coefficients, end, request.sampling, draw)
    alike[answer].append(request)
  merged = []
  for (_, coefficients, *_), members in alike.items():
    keys = tuple(member.key for member in members)
    merged.append(Continuation(members[0], coefficients, keys))
  return merged


def check_fit(requests: Sequence[GenerateRequest], config: models.ModelConfig) -> None:
  """Raises InputError if a request does not fit the model; names the request."""
  for request in requests:
    _check(request, config)


def groups(
  asked: Sequence[Continuation],
  *,
  max_positions: int,
  compile_tokens: int,
  kept_shapes: shapes.KeptShapes | None = None,
) -> Iterator[Group]:
  """The continuations in groups: by sampling mode, shape and deltas.

  Args:
    compile_tokens: tokens computed in the time of one compilation (see shapes.py).
    kept_shapes: shapes of a session's earlier calls; None plans each call for itself.
  """
  most = (max_positions, max_positions)
  by_mode = collections.defaultdict(list)
  for continuation in asked:
    by_mode[continuation.request.sampling.mode].append(continuation)
  # Each mode has programs, and so shapes, of its own.
  for mode, members in by_mode.items():
    planned = shapes.plan_shapes(
      [member.size for member in members],
      multiples=(PROMPT_MULTIPLE, TOTAL_MULTIPLE),
      most=most,
      max_shapes=MAX_SHAPES,
      compile_tokens=compile_tokens,
    )
    deltas_of = delta_sets(member.coefficients for member in members)
    alike = collections.defaultdict(list)
    for member in members:
      deltas = deltas_of[member.coefficients]
      coefficients = tuple(member.coefficients[i] for i in deltas)
      member = dataclasses.replace(member, coefficients=coefficients)
      shape = shapes.fitting(member.size, planned)
      alike[shape, deltas].append(member)
    # Short shapes first: the first answers come soon.
    for (shape, deltas), group_members in sorted(alike.items()):
      if kept_shapes is not None:
        rows = len(group_members)
        shape = kept_shapes.covering(
          mode, shape, rows=rows, most=most, compile_tokens=compile_tokens
        )
      yield Group(mode, shape, deltas, group_members)


def takes_apart(config: models.ModelConfig, params: PyTree, layout: Layout) -> bool:
  """Whether to decode layer by layer, with a copy of the weights (see `models.unstacked`).

  On a TPU a scan copies nothing, and on a CPU a copy costs little beside the step; a GPU must have
  room for a second copy of the weights, and a program of very many layers takes too long to
  compile.
  """
  platform = layout.mesh.devices.flat[0].platform
  if platform != 'gpu' or config.num_layers > MOST_UNSTACKED:
    return False
  spare = SPARE_SHARE * placement.least_memory()
  return sharding.bytes_on_device(params) < spare


def run_group(
  config: models.ModelConfig,
  params: PyTree,
  deltas: Sequence[PyTree],
  group: Group,
  *,
  slots: int,
  stops: Sequence[int],
  layout: Layout,
) -> Iterator[GenerateResult]:
  """The results of one group, as answers finish.

  Args:
    deltas: the deltas of the group, placed on the devices.
    slots: answers generated together; at least as many are used as rows have shards.
    stops: tokens that end an answer.
  """
  # Every shard of the rows has as many slots as the others, and takes as many prompts at a time.
  shards = layout.rows
  members_in_shard = math.ceil(len(group.members) / shards)
  in_shard = shapes.rows_for(members_in_shard, math.ceil(slots / shards))
  entering_in_shard = max(1, in_shard // REFILL_SHARE)
  slots = shards * in_shard
  entering = shards * entering_in_shard
  # The strongest steered are the likeliest never to stop: begun first, they do not leave a long
  # tail of nearly empty batches.
  queue = collections.deque(sorted(group.members, key=_longest_and_strongest_first))
  longest = max(member.request.max_new_tokens for member in group.members)
  answer_length = round_up(longest, ANSWER_MULTIPLE)
  prompt_length, cache_length = group.shape
  edits = len(deltas)
  # Keys and values are as precise as the weights that make them.
  dtype = params['embed']['embedding'].dtype
  with layout.context():
    apart = takes_apart(config, params, layout)
    state = decoding.empty_state(config, slots, cache_length, answer_length, edits, dtype, apart)
  # Who is in which slot is known to the host alone.
  held: list[Continuation | None] = [None] * slots
  stops_X = np.asarray(stops, np.int32)
  while queue or any(held):
    # Fill the free slots; the last prompts of the queue need not wait for a full entry.
    while queue and held.count(None) >= min(entering, len(queue)):
      entry = enter(queue, held, entering, prompt_length, edits, shards)
      entry = layout.put_batch(entry)
      with layout.context(), profiling.unit('prefill'):
        state = decoding.admit(config, params, deltas, state, entry)
    # Decode until the next prompts have room, or to the end.
    keep = 0
    if queue:
      keep = slots - min(entering, len(queue))
    with layout.context(), profiling.unit('decode'):
      state, progress = decoding.decode(
        config, group.mode, params, deltas, stops_X, state, np.int32(keep), UNLIMITED
      )
      results, limits_B = _collect(progress, held)
    yield from results
    # Rows whose answer is not over by their request's `until` go on.
    if limits_B.any():
      with layout.context():
        state = decoding.resume(state, layout.put_batch(limits_B))


def _check(request: GenerateRequest, config: models.ModelConfig) -> None:
  if not request.prompt or request.max_new_tokens < 1:
    raise InputError(
      f'{request.cited}: a prompt of {len(request.prompt)} tokens and {request.max_new_tokens} '
      'to generate, expected at least 1 each'
    )
  if not 0 <= request.seed < SEED_LIMIT:
    raise InputError(
      f'{request.cited}: the seed is {request.seed}, expected a whole number from 0 to 2^32 - 1'
    )
  check_ids(request.cited, request.prompt, config.vocab_size)
  total = len(request.prompt) + request.max_new_tokens - 1
  if total > config.max_positions:
    raise InputError(
      f'{request.cited}: a prompt of {len(request.prompt)} tokens and {request.max_new_tokens} '
      f'new ones take {total} positions, the model has {config.max_positions}; shorten the prompt '
      'or lower max_new_tokens'
    )


def _longest_and_strongest_first(continuation: Continuation) -> tuple[float, float]:
  strength = max(map(abs, continuation.coefficients), default=0.0)
  return -continuation.request.max_new_tokens, -strength


def enter(
  queue: collections.deque[Continuation],
  held: list[Continuation | None],
  entering: int,
  length: int,
  edits: int,
  shards: int,
) -> decoding.Entry:
  """The next continuations of the queue as rows for free slots.

  Args:
    held: the continuation of each slot, or None; the entering ones are added.
    entering: rows of the entry, padding included.
    length: tokens of a padded prompt.
  """

  def zeros(dtype, *shape):
    return np.zeros((entering, *shape), dtype)

  rows = decoding.SlotRows(
    tokens_B=zeros(np.int32),
    positions_B=zeros(np.int32),
    limits_B=zeros(np.int32),
    coefficients_BC=zeros(np.float32, edits),
    keys_B2=zeros(np.uint32, 2),
    temperatures_B=np.ones(entering, np.float32),
    top_ks_B=zeros(np.int32),
    top_ps_B=np.ones(entering, np.float32),
  )
  entry = decoding.Entry(
    prompts_PT=zeros(np.int32, length),
    # A number past the last slot: padding, until a prompt takes the place.
    slots_P=np.full(entering, len(held), np.int32),
    rows=rows,
    draws_P3=zeros(np.uint32, 3),
  )
  slots_in_shard = len(held) // shards
  for i, slot in _free(held, entering, shards):
    if not queue:
      break
    continuation = queue.popleft()
    held[slot] = continuation
    request = continuation.request
    # A shard counts its own slots from 0.
    entry.slots_P[i] = slot % slots_in_shard
    # The last token is fed by the first decoding step.
    prefilled = request.prompt[:-1]
    entry.prompts_PT[i, : len(prefilled)] = prefilled
    example = sampling.example_hash(request.example)
    entry.draws_P3[i] = request.seed, example, request.sample
    rows.tokens_B[i] = request.prompt[-1]
    rows.positions_B[i] = len(request.prompt) - 1
    rows.limits_B[i] = continuation.limit(0)
    rows.coefficients_BC[i] = continuation.coefficients
    rows.temperatures_B[i] = request.sampling.temperature
    rows.top_ks_B[i] = request.sampling.top_k
    rows.top_ps_B[i] = request.sampling.top_p
  return entry


def _free(
  held: Sequence[Continuation | None], entering: int, shards: int
) -> Iterator[tuple[int, int]]:
  """(place in the entry, free slot) pairs of one shard; the shards take turns.

  >>> list(_free([None, 'answer', None, None], entering=2, shards=2))
  [(0, 0), (1, 2)]
  """
  slots = len(held) // shards
  places = entering // shards
  # The free slots of each shard.
  free = []
  for shard in range(shards):
    first = shard * slots
    in_shard = range(first, first + slots)
    free.append([slot for slot in in_shard if held[slot] is None])
  # By turns, so that a short queue is shared by all devices.
  for place in range(places):
    for shard in range(shards):
      if place < len(free[shard]):
        yield shard * places + place, free[shard][place]


def _collect(
  progress: decoding.Progress, held: list[Continuation | None]
) -> tuple[list[GenerateResult], np.ndarray]:
  """(results of the ended rows, int32 limits in tokens of the rows to resume).

  The ended rows' slots in `held` become free. A row that only waited for its request's `until` gets
  the next limit; all other rows get 0.
  """
  # Waits for the device; all arrays come in one transfer.
  told = jax.device_get(progress)
  results = []
  limits_B = np.zeros(len(held), np.int32)
  for slot, continuation in enumerate(held):
    if continuation is None or told['active_B'][slot]:
      continue
    request = continuation.request
    count = told['counts_B'][slot]
    tokens = tuple(told['answers_BT'][slot, :count].tolist())
    # A stop token, a limit or a broken model has ended the row.
    is_finite = told['finite_B'][slot]
    is_over = told['stopped_B'][slot]
    if not is_over and request.until is not None:
      is_over = request.until(tokens)
    # Only waiting for `until`: the row keeps the slot, and goes on.
    if is_finite and not is_over and len(tokens) < request.max_new_tokens:
      limits_B[slot] = continuation.limit(len(tokens))
      continue
    held[slot] = None
    finish = 'stop' if is_over else 'length'
    # Whatever else ended the row, a broken model is what the caller must know.
    if not is_finite:
      finish = 'not_finite'
    for key in continuation.keys:
      results.append(GenerateResult(key, tokens, finish))
  return results, limits_B
