"""Being asked to stop: SIGTERM from a scheduler, SIGINT from a keyboard.

A boundary is the moment between two steps of a run. With several processes, the first process to
get a signal tells the others, and all stop at the same boundary: each says how many boundaries are
behind, and all stop at the boundary after the largest number. A thread does the saying, and
meanwhile holds the main thread at the next boundary: otherwise a process could wait for another
process whose devices wait for the first.
"""

import contextlib
import functools
import signal
import threading
import types
from collections.abc import Iterator
from typing import Any

from weightsteer_jax.runtime import ending, processes, signals
from weightsteer_jax.runtime.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
  """Whether the run is to stop, asked between two steps.

  A step is the smallest piece of work, either finished or done again.

  Attributes:
    name: the signal, with the process that got it if there are several; '' before a stop.
  """

  def __init__(self, agreement: '_Agreement | None'):
    """Begins without a signal; `agreement` is None where the run is a single process."""
    self.name = ''
    self._noted = ''
    self._agreement = agreement

  def note(self, name: str) -> None:
    """Remembers a signal of this process; the first signal counts."""
    self._noted = self._noted or name
    # The store keeps the first of all processes' signals.
    if self._agreement:
      processes.put('stop', {'process': processes.index(), 'name': name})

  def reached(self) -> bool:
    """Whether to stop here; every process passes the same boundaries in the same order."""
    if self._agreement:
      self.name = self._agreement.pass_boundary()
    else:
      self.name = self._noted
    if self.name:
      # What is saved now has the time it needs.
      signals.finish()
    return bool(self.name)

  def end(self) -> None:
    """Fills in `name` if a signal has come since the last boundary; called when the block ends."""
    if self.name:
      return
    self.name = self._agreement.signal_so_far() if self._agreement else self._noted
    if self.name:
      signals.finish()


def begin() -> None:
  """Has a signal to any process end the run as a whole; called once the processes have joined."""
  told = _tell_others if processes.count() > 1 else None
  if told:
    _agreement()
  signals.act(told=told, end=_end)


@contextlib.contextmanager
def watch() -> Iterator[Stop]:
  """A block of work; a signal to stop is noted, to be acted on at the next boundary.

  A second SIGINT acts as it would outside the block; a second SIGTERM is left to signals.py. Only
  the main thread notes signals. After the block, `name` also tells of a signal after the last
  boundary.
  """
  agreement = _agreement() if processes.count() > 1 else None
  stop = Stop(agreement)
  previous: dict[signal.Signals, Any] = {}

  def note(number: int, frame: types.FrameType | None) -> None:
    received = signal.Signals(number)
    # The next Ctrl-C acts at once.
    if received == signal.SIGINT:
      signal.signal(received, previous[received])
    stop.note(received.name)

  # Python lets no other thread set handlers.
  in_main_thread = threading.current_thread() is threading.main_thread()
  if in_main_thread:
    for watched in SIGNALS:
      previous[watched] = signal.signal(watched, note)
    signals.enter_watch()
    # A signal that came between two blocks.
    if signals.requested():
      stop.note(signal.SIGTERM.name)
  # From here on this process counts among those that pass boundaries.
  if agreement:
    agreement.enter()
  try:
    yield stop
    stop.end()
  finally:
    if agreement:
      agreement.leave()
    if in_main_thread:
      signals.leave_watch()
    for watched, handler in previous.items():
      signal.signal(watched, handler)


def _tell_others() -> None:
  processes.put('stop', {'process': processes.index(), 'name': signal.SIGTERM.name})


def _end(message: str) -> None:
  ending.tell_and_end(message, Preempted.exit_code)


class _Agreement:
  """The boundary where all processes stop.

  A process has a single agreement, and counts boundaries over all `watch` blocks.
  """

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._passed = 0
    self._within = False
    self._target: int | None = None
    self._signal = ''
    threading.Thread(target=self._settle, daemon=True).start()

  def enter(self) -> None:
    with self._lock:
      self._within = True

  def leave(self) -> None:
    with self._lock:
      self._within = False

  def pass_boundary(self) -> str:
    """The signal to stop for at this boundary, or ''."""
    with self._lock:
      self._passed += 1
      return self._signal if self._passed == self._target else ''

  def signal_so_far(self) -> str:
    """The signal so far, as known to process 0."""
    with self._lock:
      known = self._signal
    # Some processes may have heard of the signal, others not yet: all take process 0's word.
    return processes.broadcast(known)

  def _settle(self) -> None:
    try:
      request = processes.wait_for('stop')
      # The lock holds the main thread at its next boundary until all have told where theirs is.
      with self._lock:
        self._signal = f'{request["name"]} (to {processes.name(request["process"])})'
        processes.put(f'passed/{processes.index()}', self._passed if self._within else None)
        passed = [processes.wait_for(f'passed/{process}') for process in range(processes.count())]
        # None: that process is between two blocks, where it passes no boundaries.
        if None not in passed:
          self._target = max(passed) + 1
          return
    except processes.ProcessLost:
      # ending.py acts on the end of a process.
      return
    # A process was outside every block, and may be for long: one of the processes ends all.
    if request['process'] == processes.index():
      ending.tell_and_end(
        f'{request["name"]} came between two stages: start again to continue', Preempted.exit_code
      )


@functools.cache
def _agreement() -> _Agreement:
  return _Agreement()
