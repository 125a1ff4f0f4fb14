"""Being asked to stop: SIGTERM from a scheduler, SIGINT from a keyboard."""
import contextlib
import signal
import threading
from typing import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def watch() -> Iterator[Callable[[], str]]:
  """A function that gives the name of the first signal that asked to stop, '' so far.

  Within the block such a signal is only noted, for the loop to act on between two steps; the second one acts as it
  would outside. Only the main thread can watch; elsewhere nothing is ever noted.
  """
  received: list[str] = []
  previous: dict[int, object] = {}

  def note(number, frame):
    received.append(signal.Signals(number).name)
    signal.signal(number, previous[number])

  if threading.current_thread() is threading.main_thread():
    previous.update({number: signal.signal(number, note) for number in SIGNALS})
  try:
    yield lambda: received[0] if received else ''
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
