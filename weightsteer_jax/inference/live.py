"""Generation for requests that come one by one: slots that are filled and read between steps.

The same programs as in generation.py, on the same slots. Rows enter as they come, whatever their
strengths, sampling and lengths; all of them decode together, every direction computed for each row
with its own coefficients. The cache grows in few sizes with the longest row that is there.

Not thread-safe: one thread fills, steps and reads.
"""

import collections
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from weightsteer_jax.data.batches import round_up
from weightsteer_jax.inference import decoding, generation, sampling
from weightsteer_jax.inference.engine import Engine
from weightsteer_jax.inference.generation import Continuation
from weightsteer_jax.inference.requests import GenerateRequest, Sampling, Tokens

# Each size of the cache is so many times the one before.
GROWTH = 4
# Lengths of padded prompts beside a cache, each half of the next: padding costs computation, and
# each length two compilations.
PADDED_LENGTHS = 4
# Tokens of the smallest cache.
SMALLEST = 128
# Padded tokens of one prefill: short prompts enter together, long ones alone.
PREFILL_TOKENS = 1024
_OF_MODE = {
  'greedy': Sampling(),
  'sampled': Sampling(temperature=1.0),
  'filtered': Sampling(temperature=1.0, top_k=1),
}
# What `Told.finish` says of a row that goes on.
GOES_ON = ''


class Told(NamedTuple):
  """What is known of a row after some steps.

  Attributes:
    key: key of the request.
    tokens: all tokens so far, without the stop token.
    finish: GOES_ON, or as in GenerateResult.
  """

  key: Any
  tokens: Tokens
  finish: str


class Live:
  """Slots of an engine that decode together.

  Args:
    engine: the engine, whose arms' deltas are all computed for every row.
    slots: rows that decode together, a multiple of the layout's shards of rows.
    max_length: positions that a row may take, its prompt included.
  """

  def __init__(self, engine: Engine, *, slots: int, max_length: int):
    self.slots = slots
    self.max_length = max_length
    self._engine = engine
    self._shards = engine.layout.rows
    self._dtype = engine.params['embed']['embedding'].dtype
    self._stops_X = np.asarray(engine.stop_ids, np.int32)
    self._held: list[Continuation | None] = [None] * slots
    self.sizes = list(_sizes(max_length))
    with engine.layout.context():
      self._apart = generation.takes_apart(engine.config, engine.params, engine.layout)
    self._state = self._empty(self.sizes[0])

  @property
  def free(self) -> int:
    """Slots without a row."""
    return self._held.count(None)

  def admit(self, rows: Sequence[tuple[GenerateRequest, tuple[float, ...]]]) -> None:
    """Prefills rows into free slots, at least as many as there are rows.

    Args:
      rows: (request, a coefficient for each delta of the engine). Arm and alpha of the request are
        not looked at, and it has no `until`.
    """
    queue = [Continuation(request, coefficients, (request.key,)) for request, coefficients in rows]
    if not queue:
      return
    self._make_room([one for one in (*queue, *self._held) if one])
    by_length: dict[int, collections.deque[Continuation]] = collections.defaultdict(
      collections.deque
    )
    for continuation in queue:
      by_length[self._padded(continuation.size[0])].append(continuation)
    for length, members in sorted(by_length.items()):
      while members:
        self._enter(members, length)

  def step(self, most: int) -> list[Told]:
    """What is known of every row after some steps; rows that have ended leave.

    The steps end with a share of the rows, as where prompts wait for their slots, or after `most`.
    """
    active = self.slots - self.free
    if not active:
      return []
    engine = self._engine
    keep = np.int32(active - max(1, active // generation.REFILL_SHARE))
    with engine.layout.context():
      self._state, progress = decoding.decode(
        engine.config,
        self._mode(),
        engine.params,
        engine.deltas,
        self._stops_X,
        self._state,
        keep,
        np.int32(most),
      )
    told = jax.device_get(progress)
    rows = []
    for slot, continuation in enumerate(self._held):
      if continuation is None:
        continue
      count = told['counts_B'][slot]
      tokens = tuple(told['answers_BT'][slot, :count].tolist())
      finish = GOES_ON
      if not told['active_B'][slot]:
        finish = 'stop' if told['stopped_B'][slot] else 'length'
        # Whatever else ended the row, a broken model is what the caller must know.
        if not told['finite_B'][slot]:
          finish = 'not_finite'
        self._held[slot] = None
      rows.append(Told(continuation.request.key, tokens, finish))
    return rows

  def cancel(self, keys: Sequence[Hashable]) -> None:
    """Frees the slots of rows whose answers are over, or that nobody waits for."""
    freed_B = np.zeros(self.slots, bool)
    for slot, continuation in enumerate(self._held):
      if continuation and continuation.request.key in keys:
        self._held[slot] = None
        freed_B[slot] = True
    if freed_B.any():
      engine = self._engine
      with engine.layout.context():
        self._state = decoding.release(self._state, engine.layout.put_batch(freed_B))

  def warm(self) -> Iterator[str]:
    """Compiles every program that rows can need; the slots must be free. Yields what is next."""
    for size in self.sizes:
      for length in _padded_lengths(size):
        for count in sorted({1, self._entering(length)}):
          yield f'prompts of {length} tokens, {count} at a time, cache of {size}'
          self._try(min(length, size - 1), size, 'greedy', count)
      for mode in sampling.MODES[1:]:
        yield f'{mode} steps, cache of {size}'
        self._try(1, size, mode, 1)

  def _try(self, length: int, size: int, mode: str, count: int) -> None:
    """Prefills prompts alike into a cache of the given size, and takes a step."""
    self._state = self._empty(size)
    prompt = (0,) * (length + 1)
    members: collections.deque[Continuation] = collections.deque()
    for key in range(count):
      request = GenerateRequest(key, prompt, 1, sampling=_OF_MODE[mode])
      members.append(Continuation(request, (0.0,) * len(self._engine.deltas), (key,)))
    self._enter(members, self._padded(length))
    self.step(1)

  @property
  def _length(self) -> int:
    """Positions of the cache."""
    return jax.tree.leaves(self._state.cache)[0].shape[-2]

  def _empty(self, length: int) -> decoding.DecodeState:
    engine = self._engine
    with engine.layout.context():
      return decoding.empty_state(
        engine.config,
        self.slots,
        length,
        length,
        len(engine.deltas),
        self._dtype,
        self._apart,
      )

  def _make_room(self, rows: Sequence[Continuation]) -> None:
    """Gives the cache the size that the longest row needs."""
    longest = max(row.size[1] for row in rows)
    needed = next(size for size in self.sizes if size >= longest)
    # Without rows there is nothing to keep, and a smaller cache makes faster steps.
    if self.free == self.slots and needed != self._length:
      self._state = self._empty(needed)
    elif needed > self._length:
      with self._engine.layout.context():
        self._state = decoding.resized(self._state, needed, needed)

  def _padded(self, tokens: int) -> int:
    return next(length for length in _padded_lengths(self._length) if length >= tokens)

  def _entering(self, length: int) -> int:
    """Prompts that are prefilled together, padding included."""
    together = max(1, self.slots // generation.REFILL_SHARE)
    fitting = max(1, min(together, PREFILL_TOKENS // length))
    return round_up(fitting, self._shards)

  def _enter(self, members: collections.deque[Continuation], length: int) -> None:
    """Prefills the next of the members."""
    engine = self._engine
    # Two widths for each length: for a row that comes alone, and for several.
    entering = self._entering(length) if len(members) > 1 else self._shards
    entry = generation.enter(
      members, self._held, entering, length, len(engine.deltas), self._shards
    )
    entry = engine.layout.put_batch(entry)
    with engine.layout.context():
      self._state = decoding.admit(engine.config, engine.params, engine.deltas, self._state, entry)

  def _mode(self) -> str:
    """The cheapest mode that all rows can decode in."""
    needed = {held.request.sampling.mode for held in self._held if held}
    return max(needed, key=sampling.MODES.index)


def _sizes(max_length: int) -> Iterator[int]:
  """Sizes of the cache, tokens; the last is `max_length`.

  >>> list(_sizes(2048)), list(_sizes(100))
  ([128, 512, 2048], [100])
  """
  size = SMALLEST
  while size < max_length:
    yield size
    size *= GROWTH
  yield max_length


def _padded_lengths(size: int) -> list[int]:
  """Lengths that prompts are padded to beside a cache of some size, tokens.

  >>> _padded_lengths(512), _padded_lengths(128)
  ([64, 128, 256, 512], [16, 32, 64, 128])
  """
  lengths = [size >> halvings for halvings in reversed(range(PADDED_LENGTHS))]
  return [length for length in lengths if length]
