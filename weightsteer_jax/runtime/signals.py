"""SIGTERM: a flag that work asks, and an end in time where no work asks. SIGINT: see below.

A signal raises nothing: an exception at an arbitrary line is taken for a failure of whatever
foreign code runs there. `listen` starts a thread which C code wakes, so that the signal is seen
while the main thread compiles or reads. From then on:

  check            between stages and files, raises Preempted in the main thread
  finishing        a loop (preemption.watch) has reached its boundary and saves: it has the time
                   it needs
  the thread       ends the process with status 75 where neither happens within the grace

A second signal ends the process at once, with the same status. Files appear whole or not at all,
so that an end is safe at every line.

A server's main thread waits in `wait`, with the server in a thread of its own (uvicorn leaves
signals alone there). It then refuses new requests, calls `finish`, finishes what runs, and returns.

SIGINT ends the process at once until `act` is called: nothing has begun, and foreign modules that
are being imported take an exception for a fault of their own. After that it raises
KeyboardInterrupt, as in every Python program, also where it comes while a callback of the garbage
collector runs: Python prints an exception there, and goes on.

Nothing here imports jax: a program listens before its slow imports.
"""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

from weightsteer_jax.runtime.errors import Preempted

# Seconds for the main thread to reach a boundary or a check. The end is due within 10 s.
GRACE_SECONDS = 4.0
# A scheduler that signals a process and its group sends one request twice.
SAME_SECONDS = 1.0
# From a Ctrl-C that was lost to the next try: callbacks of the garbage collector take less.
AGAIN_SECONDS = 0.05
# 128 + SIGINT, as shells have it.
INTERRUPTED = 130
KEPT = 'SIGTERM came; what was finished is kept, the same command continues'

_requested = threading.Event()
_finishing = threading.Event()
_listening = False
_watching = 0
_grace = GRACE_SECONDS
# Called by the thread: at the first signal, and after the grace.
_told: Callable[[], None] | None = None
_end: Callable[[str], None] | None = None


def listen() -> None:
  """Begins to listen for SIGTERM, in the main thread of a program; once is enough."""
  global _listening
  if _listening:
    return
  _listening = True
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  # C code writes the number of each signal into the pipe, whatever the main thread does.
  signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  # Without a handler in Python, C code would not write.
  signal.signal(signal.SIGTERM, _noted)
  os.register_at_fork(after_in_child=_forget)
  threading.Thread(target=_hear, args=(reading,), name='SIGTERM', daemon=True).start()
  sys.unraisablehook = _raise_again
  # A shell has programs in its background ignore SIGINT.
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end_early)


def set_grace(seconds: float) -> None:
  """Sets the seconds between SIGTERM and the end of a process whose work does not ask."""
  global _grace
  _grace = seconds


def act(*, told: Callable[[], None] | None, end: Callable[[str], None]) -> None:
  """Says what happens at a signal; both run in a thread.

  Args:
    told: called at the first signal, or now if the signal has come.
    end: ends the process with a message, after the grace.
  """
  global _told, _end
  _told, _end = told, end
  if signal.getsignal(signal.SIGINT) is _end_early:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  if told and _requested.is_set():
    told()


def requested() -> bool:
  """Whether SIGTERM has come to this program."""
  return _requested.is_set()


def wait(timeout: float | None = None) -> bool:
  """Whether SIGTERM has come, as soon as it comes; seconds at most, None for ever."""
  return _requested.wait(timeout)


def finish() -> None:
  """Says that the end has begun: it takes the time it needs, unless a second signal comes."""
  _finishing.set()


def check() -> None:
  """A moment at which the main thread may be interrupted.

  Raises:
    Preempted: if SIGTERM has come, outside loops with boundaries of their own.
  """
  # With several processes, preemption.py finds one end for all.
  if not _requested.is_set() or _finishing.is_set() or _watching or _told:
    return
  if threading.current_thread() is threading.main_thread():
    raise Preempted(KEPT)


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
  """A block in which Ctrl-C sets an event and raises nothing; a second one acts as outside."""
  interrupted = threading.Event()
  # Python lets no other thread set handlers.
  if threading.current_thread() is not threading.main_thread():
    yield interrupted
    return

  def note(number: int, frame: types.FrameType | None) -> None:
    interrupted.set()
    signal.signal(number, previous)

  previous = signal.signal(signal.SIGINT, note)
  try:
    yield interrupted
  finally:
    signal.signal(signal.SIGINT, previous)


def enter_watch() -> None:
  """Says that a loop with boundaries of its own has begun in the main thread."""
  global _watching
  _watching += 1


def leave_watch() -> None:
  """Says that the loop has ended."""
  global _watching
  _watching -= 1


def _noted(number: int, frame: types.FrameType | None) -> None:
  # At once for the main thread; the thread below may be a moment later.
  _requested.set()


def _end_early(number: int, frame: types.FrameType | None) -> None:
  _say('interrupted; nothing was begun')
  os._exit(INTERRUPTED)


def _raise_again(lost: Any) -> None:
  """Has an interrupt that Python could not raise come once more; prints any other exception."""
  if lost.exc_type is not KeyboardInterrupt:
    sys.__unraisablehook__(lost)
    return
  timer = threading.Timer(AGAIN_SECONDS, _thread.interrupt_main)
  timer.daemon = True
  timer.start()


def _forget() -> None:
  """Gives signals their usual meaning in a forked child, which shares the parent's pipe."""
  signal.set_wakeup_fd(-1)
  if signal.getsignal(signal.SIGINT) is _end_early:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _hear(reading: int) -> None:
  first = 0.0
  while True:
    for number in os.read(reading, 64):
      if number != signal.SIGTERM:
        continue
      now = time.monotonic()
      if not first:
        first = now
        _requested.set()
        # In a thread of its own: this thread goes on to hear a second signal.
        threading.Thread(target=_see_to_the_end, name='grace', daemon=True).start()
      elif now - first > SAME_SECONDS:
        _say('a second SIGTERM came; what was finished is kept, the same command continues')
        os._exit(Preempted.exit_code)


def _see_to_the_end() -> None:
  deadline = time.monotonic() + _grace
  try:
    if _told:
      _told()
    if _finishing.wait(max(0.0, deadline - time.monotonic())):
      return
    if _end:
      _end(KEPT)
    else:
      _say(KEPT)
  except BaseException as error:
    # The process must not go on deaf.
    _say(f'{KEPT} ({type(error).__name__}: {error})')
  os._exit(Preempted.exit_code)


def _say(message: str) -> None:
  # Past Python's buffers, whose locks the main thread may hold.
  try:
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f'error: {message}\n'.encode())
  except (OSError, ValueError):
    pass
