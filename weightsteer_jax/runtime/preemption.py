"""Being asked to stop: SIGTERM from a scheduler, SIGINT from a keyboard.

With several processes the one that is asked tells the others, and all stop at the same boundary:
each says how many it has passed, and the next one after the largest number is where they stop. The
saying is done by a thread while the main thread is held at its next boundary, so that none is
waited for that waits itself for the others' devices.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

from weightsteer_jax.runtime import ending, processes
from weightsteer_jax.runtime.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
  """Whether the run is to stop, asked between two steps; a step is whatever is finished or has to
  be done again.

  Attributes:
    name: the signal that stopped the run, with where it came if it was another process; '' so far.
  """

  def __init__(self, agreement: '_Agreement | None'):
    self.name = ''
    self._asked = ''
    self._agreement = agreement

  def note(self, name: str) -> None:
    """Remembers a signal of this process; the first one counts."""
    self._asked = self._asked or name
    if self._agreement:
      processes.put('stop', {'process': processes.index(), 'name': name})

  def reached(self) -> bool:
    """Whether to stop here; every process passes the same boundaries in the same order."""
    self.name = self._agreement.pass_boundary() if self._agreement else self._asked
    return bool(self.name)

  def end(self) -> None:
    """Fills in the name if a signal has come since the last boundary."""
    self.name = self.name or (self._agreement.asked() if self._agreement else self._asked)


@contextlib.contextmanager
def watch() -> Iterator[Stop]:
  """Within the block a signal to stop is only noted, for the work to act on at its next boundary.

  A second SIGINT acts as it would outside; a second SIGTERM does not, since schedulers send
  several. Only the main thread can watch; elsewhere nothing is ever noted. After the block, `name`
  tells of a signal that came after the last boundary, too.
  """
  agreement = _agreement() if processes.count() > 1 else None
  stop, previous = Stop(agreement), {}

  def note(number, frame):
    if number == signal.SIGINT:
      signal.signal(number, previous[number])
    stop.note(signal.Signals(number).name)

  if threading.current_thread() is threading.main_thread():
    previous.update({number: signal.signal(number, note) for number in SIGNALS})
  if agreement:
    agreement.enter()
  try:
    yield stop
    stop.end()
  finally:
    if agreement:
      agreement.leave()
    for number, handler in previous.items():
      signal.signal(number, handler)


class _Agreement:
  """The boundary at which all processes stop. One to a process; it counts boundaries over all
  blocks.
  """

  def __init__(self):
    self._lock = threading.Lock()
    self._passed = 0
    self._within = False
    self._target: int | None = None
    self._asked = ''
    threading.Thread(target=self._settle, daemon=True).start()

  def enter(self) -> None:
    with self._lock:
      self._within = True

  def leave(self) -> None:
    with self._lock:
      self._within = False

  def pass_boundary(self) -> str:
    """The signal for which all processes stop here, or ''."""
    with self._lock:
      self._passed += 1
      return self._asked if self._passed == self._target else ''

  def asked(self) -> str:
    """The signal that has come, as process 0 knows it by now."""
    with self._lock:
      known = self._asked
    return processes.broadcast(known)

  def _settle(self) -> None:
    try:
      request = processes.wait_for('stop')
      with (
        self._lock
      ):  # Holds the main thread at its next boundary until all have told where theirs is.
        self._asked = f'{request["name"]} (to {processes.name(request["process"])})'
        processes.put(f'passed/{processes.index()}', self._passed if self._within else None)
        passed = [processes.wait_for(f'passed/{process}') for process in range(processes.count())]
        if None not in passed:
          self._target = max(passed) + 1
          return
    except processes.ProcessLost:
      return  # The end of a process is acted on elsewhere.
    if request['process'] == processes.index():
      ending.tell_and_end(
        f'{request["name"]} came between two stages: start again to continue', Preempted.exit_code
      )


_agreements: list[_Agreement] = []


def _agreement() -> _Agreement:
  if not _agreements:
    _agreements.append(_Agreement())
  return _agreements[0]
