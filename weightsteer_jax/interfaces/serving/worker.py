"""The thread that owns the device: it fills slots, steps them, and tells what came.

Requests come from other threads and wait in line. Between two steps the thread drops what nobody
waits for, scores some of what was asked for in log-probabilities, and admits as many answers as
there are free slots, whatever their strengths.

An answer that was taken is told its end in every case: its text, or why there is none.
"""

import collections
import dataclasses
import itertools
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from weightsteer_jax.inference import GenerateRequest, Sampling, tops
from weightsteer_jax.inference.engine import Engine
from weightsteer_jax.inference.live import GOES_ON, Live
from weightsteer_jax.inference.requests import Tokens
from weightsteer_jax.inference.tops import Place
from weightsteer_jax.interfaces.serving.counts import Counts
from weightsteer_jax.interfaces.serving.texts import Answer, Piece

# Seconds of steps between two looks at the line and at the answers: a reader of a stream sees text
# grow, and a new request does not wait long for a slot.
STREAM_SECONDS = 0.04
BATCH_SECONDS = 0.05
MOST_STEPS = 64


class Full(Exception):
  """The line is full."""


class Ended(Exception):
  """The thread takes no more: it is ending, or has failed."""


@dataclasses.dataclass(frozen=True)
class Event:
  """What came of an answer.

  Attributes:
    piece: what is new of its text.
    tokens: all tokens so far, those of a stop text included.
    finish: '' while it goes on; 'stop', 'length', or 'not_finite' where the model broke.
    by_token: whether a stop token has ended it, which is no part of the tokens.
    text: the whole text, once it is over.
    whole: the whole text's answer and thought, once it is over.
    places: of the tokens that `Job.scored` names, from their second on; None where it is None.
    error: why there is no answer.
  """

  piece: Piece = Piece()
  tokens: Tokens = ()
  finish: str = GOES_ON
  by_token: bool = False
  text: str = ''
  whole: Piece = Piece()
  places: Sequence[Place] | None = None
  error: str = ''

  @property
  def is_last(self) -> bool:
    """Whether nothing follows."""
    return bool(self.error) or self.finish != GOES_ON


@dataclasses.dataclass
class Job:
  """An answer to compute.

  Attributes:
    limit: most tokens of the answer; 0 where the prompt is scored, and nothing is generated.
    tell: called in the thread of the worker with each Event.
    streams: whether pieces are wanted before the end.
    scored: (the last event) -> the tokens whose places it is to have; None for no places.
  """

  prompt: Tokens
  coefficients: tuple[float, ...]
  limit: int
  sampling: Sampling
  seed: int
  sample: int
  answer: Answer
  tell: Callable[[Event], None]
  streams: bool
  scored: Callable[[Event], Tokens] | None = None
  key: int = 0
  asked_at: float = 0.0
  told: int = 0


@dataclasses.dataclass(frozen=True)
class _Scoring:
  """An answer that is over but for its places."""

  job: Job
  event: Event
  tokens: Tokens


class Worker:
  """The thread.

  Args:
    most_waiting: answers that wait for a slot or to be scored, at most.
  """

  def __init__(self, engine: Engine, live: Live, *, most_waiting: int, counts: Counts):
    self._engine = engine
    self._live = live
    self._most_waiting = most_waiting
    self._counts = counts
    self._line: collections.deque[Job] = collections.deque()
    self._scores: collections.deque[_Scoring] = collections.deque()
    self._running: dict[int, Job] = {}
    self._dropped: set[int] = set()
    self._keys = itertools.count(1)
    self._changed = threading.Condition()
    self._ending = False
    # Seconds of a step, as last seen.
    self._step_seconds = 0.01
    self.turns = 0
    self.failure = ''
    self._thread = threading.Thread(target=self._run, name='worker', daemon=True)

  def start(self) -> None:
    """Begins to work."""
    self._thread.start()

  def submit(self, jobs: Sequence[Job]) -> None:
    """Puts answers into the line, all or none.

    Raises:
      Full: if they do not fit. More than the line holds are taken where nothing waits.
      Ended: if the thread takes no more.
    """
    with self._changed:
      self._refuse_ended()
      if self.waiting and self.waiting + len(jobs) > self._most_waiting:
        raise Full
      for job in jobs:
        job.key = next(self._keys)
        job.asked_at = time.monotonic()
        if job.limit:
          self._line.append(job)
        else:
          self._score_later(job, Event(finish='length'))
      self._changed.notify()

  def drop(self, jobs: Sequence[Job]) -> None:
    """Gives up answers that nobody waits for; their slots are free at the next step."""
    with self._changed:
      self._dropped.update(job.key for job in jobs)
      self._changed.notify()

  def end(self, seconds: float) -> bool:
    """Takes no more, and waits until what was taken is answered; whether it was in time."""
    with self._changed:
      self._ending = True
      self._changed.notify()
    self._thread.join(seconds)
    return not self._thread.is_alive()

  @property
  def waiting(self) -> int:
    """Answers that wait for a slot or to be scored."""
    return len(self._line) + len(self._scores)

  @property
  def running(self) -> int:
    """Answers in slots."""
    return len(self._running)

  def _refuse_ended(self) -> None:
    if self.failure or self._ending:
      raise Ended(self.failure or 'the server is ending')

  def _run(self) -> None:
    try:
      while self._wait():
        self._turn()
        self.turns += 1
    # A fault of the device or of ours: everyone who waits is told, and nothing more is taken.
    except Exception as error:
      traceback.print_exc()
      with self._changed:
        self.failure = f'{type(error).__name__}: {error}'
        scores = [scoring.job for scoring in self._scores]
        waiting = [*self._running.values(), *self._line, *scores]
      for job in waiting:
        _tell(job, Event(error=self.failure))

  def _wait(self) -> bool:
    """Waits for something to do; False where nothing will come."""
    with self._changed:
      while not (self.waiting or self._running):
        if self._ending:
          return False
        self._changed.wait()
    return True

  def _turn(self) -> None:
    """Drops, scores, admits and steps once."""
    self._drop()
    self._score()
    self._admit()
    if self._running:
      self._step()

  def _drop(self) -> None:
    with self._changed:
      dropped = self._dropped
      self._dropped = set()
      waiting = self.waiting
      self._line = collections.deque(job for job in self._line if job.key not in dropped)
      self._scores = collections.deque(one for one in self._scores if one.job.key not in dropped)
      self._counts.dropped += waiting - self.waiting
    gone = [key for key in dropped if self._running.pop(key, None)]
    self._live.cancel(gone)
    self._counts.dropped += len(gone)

  def _score(self) -> None:
    """Scores about as many tokens as one pass takes, so that answers go on between passes."""
    batch: list[_Scoring] = []
    tokens = 0
    with self._changed:
      for scoring in self._scores:
        tokens += len(scoring.tokens)
        if batch and tokens > tops.PASS_TOKENS:
          break
        batch.append(scoring)
    texts = [(scoring.tokens, scoring.job.coefficients) for scoring in batch]
    found = tops.places(self._engine, texts, tops=tops.MOST_TOPS)
    for places in found:
      with self._changed:
        scoring = self._scores.popleft()
      self._finish(scoring.job, dataclasses.replace(scoring.event, places=places))

  def _admit(self) -> None:
    with self._changed:
      count = min(self._live.free, len(self._line))
      entering = [self._line.popleft() for _ in range(count)]
      # Before they enter: who is in no list is told nothing where the device fails.
      self._running |= {job.key: job for job in entering}
    self._live.admit([(_request(job), job.coefficients) for job in entering])

  def _step(self) -> None:
    jobs = self._running.values()
    streams = any(job.streams for job in jobs)
    seconds = STREAM_SECONDS if streams else BATCH_SECONDS
    most = max(1, min(MOST_STEPS, int(seconds / self._step_seconds)))
    started = time.monotonic()
    over = []
    steps = 1
    for told in self._live.step(most):
      job = self._running[told.key]
      steps = max(steps, len(told.tokens) - job.told)
      event = self._read(job, told.tokens, told.finish)
      # Ended by a stop text or a fault, and still in its slot.
      if event.is_last and told.finish == GOES_ON:
        over.append(told.key)
      self._hand_on(job, event)
    self._live.cancel(over)
    self._step_seconds = 0.5 * (self._step_seconds + (time.monotonic() - started) / steps)

  def _read(self, job: Job, tokens: Tokens, finish: str) -> Event:
    """What came of an answer. A fault in reading one answer ends no other."""
    if not job.told and tokens:
      self._counts.first_token(time.monotonic() - job.asked_at)
    self._counts.tokens += len(tokens) - job.told
    job.told = len(tokens)
    if finish == GOES_ON and not (job.streams or job.answer.has_stops):
      return Event()
    try:
      return _read(job.answer, tokens, finish)
    except Exception as error:
      traceback.print_exc()
      return Event(error=f'{type(error).__name__}: {error}')

  def _hand_on(self, job: Job, event: Event) -> None:
    """Tells what came, or has its places found first."""
    if not event.is_last:
      if job.streams and event.piece != Piece():
        _tell(job, event)
      return
    if job.scored and not event.error and event.finish != 'not_finite':
      with self._changed:
        self._score_later(job, event)
    else:
      self._finish(job, event)
    del self._running[job.key]

  def _score_later(self, job: Job, event: Event) -> None:
    assert job.scored
    self._scores.append(_Scoring(job, event, job.scored(event)))

  def _finish(self, job: Job, event: Event) -> None:
    _tell(job, event)
    self._counts.finished(time.monotonic() - job.asked_at)


def _read(answer: Answer, tokens: Tokens, finish: str) -> Event:
  piece = answer.feed(tokens, last=finish != GOES_ON)
  by_token = finish == 'stop' and not answer.is_over
  if answer.is_over:
    finish = 'stop'
  if finish == GOES_ON:
    return Event(piece, tokens)
  return Event(piece, tokens, finish, by_token, answer.text, answer.whole())


def _tell(job: Job, event: Event) -> None:
  """Tells an event; a listener that is gone keeps nobody else waiting."""
  try:
    job.tell(event)
  except Exception:
    traceback.print_exc()


def _request(job: Job) -> GenerateRequest:
  return GenerateRequest(
    job.key, job.prompt, job.limit, sampling=job.sampling, seed=job.seed, sample=job.sample
  )
