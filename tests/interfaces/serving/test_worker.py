"""The worker beside devices and listeners that fail: whoever waits is told."""

import threading
import time
import types

import pytest

from weightsteer_jax.inference import Sampling
from weightsteer_jax.inference.live import Told
from weightsteer_jax.interfaces.serving import worker
from weightsteer_jax.interfaces.serving.counts import Counts
from weightsteer_jax.interfaces.serving.worker import Ended, Event, Full, Job, Worker

# A device of the worker's own interface: these tests are about who is told, and when.


class Device:
  """Slots whose rows end after a step."""

  def __init__(self, slots=4, *, broken=''):
    self.slots = slots
    self.keys = []
    self.broken = broken
    # A step waits for it.
    self.goes_on = threading.Event()
    self.goes_on.set()

  @property
  def free(self):
    return self.slots - len(self.keys)

  def _act(self, what):
    if self.broken == what:
      raise RuntimeError(f'RESOURCE_EXHAUSTED in {what}')

  def admit(self, rows):
    if rows:
      self._act('admit')
    self.keys += [request.key for request, _ in rows]

  def step(self, most):
    self._act('step')
    assert self.goes_on.wait(20)
    keys, self.keys = self.keys, []
    return [Told(key, (7,), 'stop') for key in keys]

  def cancel(self, keys):
    self._act('cancel')
    self.keys = [key for key in self.keys if key not in keys]


class Text:
  """An answer's text."""

  has_stops = is_over = False
  text = 'text'

  def __init__(self, broken=False):
    self._broken = broken

  def feed(self, tokens, *, last):
    if self._broken:
      raise ValueError('no such token')
    return worker.Piece('text')

  def whole(self):
    return worker.Piece('text')


class Listener:
  """Who waits for an answer."""

  def __init__(self):
    self.events = []
    self._over = threading.Event()

  def __call__(self, event):
    self.events.append(event)
    if event.is_last:
      self._over.set()

  def wait(self):
    assert self._over.wait(20), 'nobody told the end'
    [last] = self.events
    return last


def job(tell, *, limit=4, scored=False, text=None):
  its = (lambda event: (1, 2, *event.tokens)) if scored else None
  return Job((1, 2), (0.0,), limit, Sampling(), 0, 0, text or Text(), tell, False, its)


def until(condition):
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.fixture
def begun(monkeypatch):
  """(device, most waiting) -> a running worker; ended with the test."""
  workers = []

  def begin(device, most_waiting=8, places=None):
    found = places or (lambda engine, texts, tops: [[tokens] for tokens, _ in texts])
    monkeypatch.setattr(worker.tops, 'places', found)
    made = Worker(types.SimpleNamespace(), device, most_waiting=most_waiting, counts=Counts())
    workers.append(made)
    made.start()
    return made

  yield begin
  for made in workers:
    assert made.end(20)


@pytest.mark.parametrize('broken', ['admit', 'step', 'places'])
def test_everyone_is_told_where_the_device_fails(begun, broken):
  def places(engine, texts, tops):
    if texts:
      raise RuntimeError('RESOURCE_EXHAUSTED in places')
    return []

  working = begun(Device(broken=broken), places=places if broken == 'places' else None)
  listeners = [Listener() for _ in range(3)]
  kinds = [dict(), dict(scored=True), dict(limit=0, scored=True)]
  working.submit([job(tell, **kind) for tell, kind in zip(listeners, kinds)])
  # Texts are scored before answers are admitted.
  failed = listeners if broken == 'places' else listeners[:2]
  errors = [listener.wait().error for listener in failed]
  assert all('RESOURCE_EXHAUSTED' in error for error in errors)
  with pytest.raises(Ended, match='RESOURCE_EXHAUSTED'):
    working.submit([job(Listener())])


@pytest.mark.parametrize('broken', ['', 'step'])
def test_a_listener_that_is_gone_keeps_nobody_waiting(begun, broken):
  def gone(event):
    raise RuntimeError('Event loop is closed')

  listener = Listener()
  begun(Device(broken=broken)).submit([job(gone), job(listener)])
  assert bool(listener.wait().error) == bool(broken)


def test_a_text_that_cannot_be_read_ends_its_answer_alone(begun):
  broken, whole, later = Listener(), Listener(), Listener()
  working = begun(Device())
  working.submit([job(broken, text=Text(broken=True)), job(whole)])
  assert 'no such token' in broken.wait().error and whole.wait().text == 'text'
  working.submit([job(later)])
  assert later.wait().finish == 'stop'


def test_what_was_taken_has_its_places_after_the_end_began(begun):
  device = Device()
  device.goes_on.clear()
  working = begun(device)
  taken = [Listener() for _ in range(3)]
  working.submit([job(taken[0], scored=True), job(taken[1]), job(taken[2], limit=0, scored=True)])
  ending = threading.Thread(target=working.end, args=(20,))
  ending.start()
  until(lambda: working._ending)
  with pytest.raises(Ended):
    working.submit([job(Listener())])
  device.goes_on.set()
  ending.join(20)
  assert [bool(listener.wait().error) for listener in taken] == [False] * 3
  assert [listener.wait().places for listener in taken] == [[(1, 2, 7)], None, [(1, 2)]]


def test_texts_to_be_scored_stand_in_line(begun, monkeypatch):
  monkeypatch.setattr(worker.tops, 'PASS_TOKENS', 4)
  passes = []
  goes_on = threading.Event()

  def places(engine, texts, tops):
    if texts:
      passes.append(len(texts))
      assert goes_on.wait(20)
    return [[] for _ in texts]

  working = begun(Device(), most_waiting=5, places=places)
  listeners = [Listener() for _ in range(5)]
  working.submit([job(tell, limit=0, scored=True) for tell in listeners])
  with pytest.raises(Full):
    working.submit([job(Listener(), limit=0, scored=True)])
  gone = Listener()
  assert working.waiting == 5
  goes_on.set()
  for listener in listeners:
    listener.wait()
  # Two tokens each, four a pass.
  assert passes == [2, 2, 1]
  # Nobody waits for what was dropped before its turn.
  goes_on.clear()
  first = Listener()
  working.submit([job(first, limit=0, scored=True)])
  until(lambda: len(passes) == 4)
  left = job(gone, limit=0, scored=True)
  working.submit([left])
  working.drop([left])
  goes_on.set()
  first.wait()
  until(lambda: not working.waiting)
  assert len(passes) == 4 and gone.events == []


def test_an_event_says_whether_it_is_the_last():
  assert [Event().is_last, Event(finish='stop').is_last, Event(error='x').is_last] == [0, 1, 1]
