"""The thread that owns the device: it fills slots, steps them, and tells what came.

Requests come from other threads and wait in line. Between two steps the thread admits as many as
there are free slots, whatever their strengths, drops what nobody waits for, and scores what was
asked for in log-probabilities.
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
    error: why there is no answer.
  """

  piece: Piece = Piece()
  tokens: Tokens = ()
  finish: str = GOES_ON
  by_token: bool = False
  text: str = ''
  whole: Piece = Piece()
  error: str = ''


@dataclasses.dataclass
class Job:
  """An answer to compute.

  Attributes:
    tell: called in the thread of the worker with each Event.
    streams: whether pieces are wanted before the end.
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
  key: int = 0
  asked_at: float = 0.0
  told: int = 0


@dataclasses.dataclass(frozen=True)
class ScoreJob:
  """Texts to be scored place by place."""

  texts: Sequence[tuple[Tokens, tuple[float, ...]]]
  tops: int
  tell: Callable[[list[list[Place]] | None], None]


class Worker:
  """The thread.

  Args:
    most_waiting: answers that wait in line, at most.
  """

  def __init__(self, engine: Engine, live: Live, *, most_waiting: int, counts: Counts):
    self._engine = engine
    self._live = live
    self._most_waiting = most_waiting
    self._counts = counts
    self._line: collections.deque[Job] = collections.deque()
    self._scores: collections.deque[ScoreJob] = collections.deque()
    self._running: dict[int, Job] = {}
    self._dropped: set[int] = set()
    self._keys = itertools.count(1)
    self._changed = threading.Condition()
    self._ending = False
    # Seconds of a step, as last seen.
    self._step_seconds = 0.01
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
      if self._line and len(self._line) + len(jobs) > self._most_waiting:
        raise Full
      for job in jobs:
        job.key = next(self._keys)
        job.asked_at = time.monotonic()
        self._line.append(job)
      self._changed.notify()

  def score(self, job: ScoreJob) -> None:
    """Has texts scored between two steps.

    Raises:
      Ended: if the thread takes no more.
    """
    with self._changed:
      self._refuse_ended()
      self._scores.append(job)
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
    """Answers in line."""
    return len(self._line)

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
    # A fault of the device or of ours: everyone who waits is told, and nothing more is taken.
    except Exception as error:
      traceback.print_exc()
      with self._changed:
        self.failure = f'{type(error).__name__}: {error}'
      for job in (*self._running.values(), *self._line):
        job.tell(Event(error=self.failure))
      for score in self._scores:
        score.tell(None)

  def _wait(self) -> bool:
    """Waits for something to do; False where nothing will come."""
    with self._changed:
      while not (self._line or self._running or self._scores):
        if self._ending:
          return False
        self._changed.wait()
    return True

  def _turn(self) -> None:
    """Drops, admits, steps and scores once."""
    self._drop()
    with self._changed:
      count = min(self._live.free, len(self._line))
      entering = [self._line.popleft() for _ in range(count)]
      scores = list(self._scores)
      self._scores.clear()
    for score in scores:
      score.tell(tops.places(self._engine, score.texts, tops=score.tops))
    self._live.admit([(_request(job), job.coefficients) for job in entering])
    self._running |= {job.key: job for job in entering}
    if self._running:
      self._step()

  def _drop(self) -> None:
    with self._changed:
      dropped = self._dropped
      self._dropped = set()
      waiting = len(self._line)
      self._line = collections.deque(job for job in self._line if job.key not in dropped)
      self._counts.dropped += waiting - len(self._line)
    gone = [key for key in dropped if self._running.pop(key, None)]
    self._live.cancel(gone)
    self._counts.dropped += len(gone)

  def _step(self) -> None:
    jobs = self._running.values()
    streams = any(job.streams for job in jobs)
    seconds = STREAM_SECONDS if streams else BATCH_SECONDS
    most = max(1, min(MOST_STEPS, int(seconds / self._step_seconds)))
    started = time.monotonic()
    before = {key: job.told for key, job in self._running.items()}
    over = []
    steps = 1
    for told in self._live.step(most):
      job = self._running[told.key]
      new = len(told.tokens) - before[told.key]
      self._counts.tokens += new
      steps = max(steps, new)
      self._tell(job, told.tokens, told.finish)
      # Ended by a stop text, and still in its slot.
      if job.answer.is_over and told.finish == GOES_ON:
        over.append(told.key)
      if job.answer.is_over or told.finish != GOES_ON:
        del self._running[told.key]
    self._live.cancel(over)
    self._step_seconds = 0.5 * (self._step_seconds + (time.monotonic() - started) / steps)

  def _tell(self, job: Job, tokens: Tokens, finish: str) -> None:
    if not job.told and tokens:
      self._counts.first_token(time.monotonic() - job.asked_at)
    job.told = len(tokens)
    is_last = finish != GOES_ON
    if not (is_last or job.streams or job.answer.has_stops):
      return
    piece = job.answer.feed(tokens, last=is_last)
    by_token = finish == 'stop' and not job.answer.is_over
    if job.answer.is_over:
      finish = 'stop'
    if finish != GOES_ON:
      event = Event(piece, tokens, finish, by_token, job.answer.text, job.answer.whole())
      job.tell(event)
      self._counts.finished(time.monotonic() - job.asked_at)
    elif job.streams and piece != Piece():
      job.tell(Event(piece, tokens))


def _request(job: Job) -> GenerateRequest:
  return GenerateRequest(
    job.key, job.prompt, job.limit, sampling=job.sampling, seed=job.seed, sample=job.sample
  )
