"""Greedy and sampled generation: requests in groups, and the order in which prompts enter slots.

The host's side; slots and the device programs stand in `decoding.py`.
"""

import collections
import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.inference import decoding, sampling, shapes
from weightsteer_jax.inference.arms import Arms, delta_sets
from weightsteer_jax.inference.requests import GenerateRequest, GenerateResult
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
# New prompts enter when one slot in this many is free.
REFILL_SHARE = 4
# Most layers, and most of a device's memory, of which decoding takes a copy of the weights.
MOST_UNSTACKED = 64
SPARE_SHARE = 0.3
# Tokens after which a row waits until its request has said whether the answer is over.
UNTIL_EVERY = 16


@dataclasses.dataclass(frozen=True)
class Continuation:
  """An answer to compute once, for several requests alike.

  Attributes:
    request: the first of the requests.
    coefficients: of all arms' deltas; in a Group, of the group's deltas.
    keys: of the requests.
  """

  request: GenerateRequest
  coefficients: tuple[float, ...]
  keys: tuple[Hashable, ...]

  @property
  def size(self) -> shapes.Shape:
    """(tokens to prefill, positions of the cache): the last token of each is not in the cache."""
    prompt = len(self.request.prompt)
    return prompt - 1, prompt + self.request.max_new_tokens - 1

  def limit(self, count: int) -> int:
    """How many tokens to generate before the host looks, with `count` there."""
    limit = self.request.max_new_tokens
    return min(limit, count + UNTIL_EVERY) if self.request.until else limit


class Group(NamedTuple):
  """Continuations that run through the same programs.

  Attributes:
    mode: of sampling.
    shape: (prompt length, cache length), tokens.
    deltas: indices of the deltas to compute.
    members: the continuations, with a coefficient for each delta of the group.
  """

  mode: str
  shape: shapes.Shape
  deltas: tuple[int, ...]
  members: list[Continuation]


def continuations(
  requests: Sequence[GenerateRequest], arms: Arms, max_positions: int
) -> list[Continuation]:
  """The answers to compute: requests with the same answer share one.

  Raises:
    InputError: if a prompt is empty, if there is nothing to generate, or if a request takes more
      positions than the model has; names the request.
  """
  alike: dict[tuple, list[GenerateRequest]] = collections.defaultdict(list)
  for request in requests:
    _check(request, max_positions)
    # Greedy answers are alike whatever the seed.
    draw: tuple = ()
    if request.sampling.mode != 'greedy':
      draw = (request.seed, request.example, request.sample)
    coefficients = arms.coefficients(request.arm, request.alpha)
    limits = request.max_new_tokens, request.until
    alike[request.prompt, coefficients, limits, request.sampling, draw].append(request)
  return [
    Continuation(members[0], key[1], tuple(member.key for member in members))
    for key, members in alike.items()
  ]


def groups(
  asked: Sequence[Continuation], *, max_positions: int, compile_tokens: int
) -> Iterator[Group]:
  """The continuations in groups: by sampling mode, shape and deltas.

  Args:
    compile_tokens: tokens computed in the time of one compilation (see shapes.py).
  """
  by_mode = collections.defaultdict(list)
  for continuation in asked:
    by_mode[continuation.request.sampling.mode].append(continuation)
  for mode, members in by_mode.items():
    planned = shapes.plan_shapes(
      [member.size for member in members],
      multiples=(PROMPT_MULTIPLE, TOTAL_MULTIPLE),
      most=(max_positions, max_positions),
      max_shapes=MAX_SHAPES,
      compile_tokens=compile_tokens,
    )
    deltas_of = delta_sets(member.coefficients for member in members)
    alike = collections.defaultdict(list)
    for member in members:
      deltas = deltas_of[member.coefficients]
      coefficients = tuple(member.coefficients[i] for i in deltas)
      member = dataclasses.replace(member, coefficients=coefficients)
      alike[shapes.fitting(member.size, planned), deltas].append(member)
    for (shape, deltas), chosen in sorted(alike.items()):
      yield Group(mode, shape, deltas, chosen)


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
  group: Group,
  *,
  slots: int,
  stops: Sequence[int],
  layout: Layout,
) -> Iterator[GenerateResult]:
  """The results of one group, as answers finish.

  Args:
    deltas: the group's, placed.
    slots: answers generated together; at least as many are used as rows have shards.
    stops: tokens that end an answer.
  """
  shards = layout.rows
  in_shard = shapes.rows_for(-(-len(group.members) // shards), -(-slots // shards))
  slots = shards * in_shard
  entering = shards * max(1, in_shard // REFILL_SHARE)
  # The strongest steered are the likeliest never to stop: begun first, they do not leave a long
  # tail of nearly empty batches.
  queue = collections.deque(sorted(group.members, key=_longest_and_strongest_first))
  longest = max(member.request.max_new_tokens for member in group.members)
  prompt_length, cache_length = group.shape
  with layout.context():
    state = decoding.empty_state(
      config,
      slots,
      cache_length,
      -(-longest // ANSWER_MULTIPLE) * ANSWER_MULTIPLE,
      len(deltas),
      params['embed']['embedding'].dtype,
      takes_apart(config, params, layout),
    )
  held: list[Continuation | None] = [None] * slots
  stops_X = np.asarray(stops, np.int32)
  while queue or any(held):
    while queue and held.count(None) >= min(entering, len(queue)):
      entry = _entry(queue, held, entering, prompt_length, len(deltas), shards)
      entry = layout.put_batch(entry)
      with layout.context(), profiling.unit('prefill'):
        state = decoding.admit(config, params, deltas, state, entry)
    # Decode until the next prompts have room, or to the end.
    keep = slots - min(entering, len(queue)) if queue else 0
    with layout.context(), profiling.unit('decode'):
      state, progress = decoding.decode(
        config, group.mode, params, deltas, stops_X, state, np.int32(keep)
      )
      results, limits_B = _collect(progress, held)
    yield from results
    if limits_B.any():
      with layout.context():
        state = decoding.resume(state, layout.put_batch(limits_B))


def _check(request: GenerateRequest, max_positions: int) -> None:
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


def _longest_and_strongest_first(continuation: Continuation) -> tuple[float, float]:
  strength = max(map(abs, continuation.coefficients), default=0.0)
  return -continuation.request.max_new_tokens, -strength


def _entry(
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
  rows = decoding.SlotRows(
    tokens_B=np.zeros(entering, np.int32),
    positions_B=np.zeros(entering, np.int32),
    limits_B=np.zeros(entering, np.int32),
    coefficients_BC=np.zeros((entering, edits), np.float32),
    keys_B2=np.zeros((entering, 2), np.uint32),
    temperatures_B=np.ones(entering, np.float32),
    top_ks_B=np.zeros(entering, np.int32),
    top_ps_B=np.ones(entering, np.float32),
  )
  entry = decoding.Entry(
    prompts_PT=np.zeros((entering, length), np.int32),
    # A number past the last slot: padding, until a prompt takes the place.
    slots_P=np.full(entering, len(held), np.int32),
    rows=rows,
    draws_P3=np.zeros((entering, 3), np.uint32),
  )
  for i, slot in _free(held, entering, shards):
    if not queue:
      break
    continuation = queue.popleft()
    held[slot] = continuation
    request = continuation.request
    entry.slots_P[i] = slot % (len(held) // shards)
    entry.prompts_PT[i, : len(request.prompt) - 1] = request.prompt[:-1]
    entry.draws_P3[i] = request.seed, sampling.example_hash(request.example), request.sample
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
  free = []
  for shard in range(shards):
    in_shard = range(shard * slots, (shard + 1) * slots)
    free.append([slot for slot in in_shard if held[slot] is None])
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
  told = jax.device_get(progress)
  results = []
  limits_B = np.zeros(len(held), np.int32)
  for slot, continuation in enumerate(held):
    if continuation is None or told['active_B'][slot]:
      continue
    request = continuation.request
    tokens = tuple(told['answers_BT'][slot, : told['counts_B'][slot]].tolist())
    # A stop token, a limit or a broken model has ended the row.
    is_finite = told['finite_B'][slot]
    is_over = told['stopped_B'][slot] or (request.until is not None and request.until(tokens))
    if is_finite and not is_over and len(tokens) < request.max_new_tokens:
      limits_B[slot] = continuation.limit(len(tokens))
      continue
    held[slot] = None
    finish = 'stop' if is_over else 'length'
    if not is_finite:
      finish = 'not_finite'
    results += [GenerateResult(key, tokens, finish) for key in continuation.keys]
  return results, limits_B
