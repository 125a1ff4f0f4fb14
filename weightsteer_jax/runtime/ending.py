"""How a run ends, and that its processes end together, with one message and one exit status.

Whatever ends one process ends all of them within seconds: an exception is told to the others
through the store; a process that was killed is missed when its heartbeat is overdue; process 0,
which holds the store, is missed at once. A process that is alive but stuck is noticed by all that
wait for it: nothing makes progress. Restarting is left to who started them (exit status 75).
"""

import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from weightsteer_jax.runtime import processes
from weightsteer_jax.runtime.errors import ProcessLost, WeightSteerError

LAST_SECONDS = 120.0  # for what process 0 does before the end; schedulers give that long, or less
FAREWELL_SECONDS = (
  5.0  # that process 0 lets the others read its last message, before the store goes with it
)
RESTART = ProcessLost.exit_code
GONE = 'ended without a word (killed, or its machine lost): start all processes again to continue'
# Of errors that are what another process's end looks like from here.
CONTACT_LOST = (
  'gloo',
  'nccl',
  'unavailable',
  'connection',
  'deadline_exceeded',
  'coordination',
  'heartbeat',
  'aborted',
  'cancelled',
  'socket',
  'barrier',
)

_ending = threading.Lock()
_leaving = threading.Event()
_progress = time.monotonic()
_kept: list[Any] = []  # what C code holds a pointer to
_last: list[Callable[[], None]] = []


def guard(*, stall_minutes: float) -> None:
  """Begins to watch the other processes, and this one's progress (0: not)."""
  progress()
  if stall_minutes:
    threading.Thread(target=_watch_progress, args=(stall_minutes,), daemon=True).start()
  if processes.count() > 1:
    for watch in (_hear, _count_heads):
      threading.Thread(target=watch, daemon=True).start()


def catch_abort() -> None:
  """Has an abort of jax's coordination end this process with a message, and a status that a
  scheduler understands.

  It aborts where processes do not come together, and, in a race with `_hear`, where process 0 is
  gone. Python's own handlers of signals never run in an abort; a handler in C does.
  """

  @ctypes.CFUNCTYPE(None, ctypes.c_int)
  def aborted(_):
    if _leaving.is_set():
      os._exit(0)
    _end(
      _main_is_gone() if processes.joined() else _failure(processes.not_together(), RESTART, [0])
    )

  _kept.append(aborted)
  libc = ctypes.CDLL(None)
  libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, type(aborted)), ctypes.c_void_p
  libc.signal(signal.SIGABRT, aborted)


def before_end(action: Callable[[], None]) -> None:
  """Has process 0 do this where the run ends with an error, and the others wait for it; every
  process calls it.
  """
  _last.append(action)


def progress() -> None:
  """Tells that the run goes on: a step was taken, a batch computed, a stage begun."""
  global _progress
  _progress = time.monotonic()


def fail(error: BaseException) -> int:
  """The exit status of this error, which is printed; with several processes, ends them all and does
  not return.
  """
  message, code = str(error), getattr(error, 'exit_code', 1)
  if isinstance(error, KeyboardInterrupt):
    message, code = 'interrupted; what was finished is kept, the same command continues', 130
  elif not isinstance(error, WeightSteerError):
    message = f'{type(error).__name__}: {error}'
  if processes.count() > 1 and _may_follow(error):
    time.sleep(
      processes.HEARTBEAT_SECONDS + FAREWELL_SECONDS
    )  # Who went first is known by then, and ends us.
  if not isinstance(error, (WeightSteerError, KeyboardInterrupt)):
    sys.stdout.flush()
    traceback.print_exception(error)
  if processes.count() > 1:
    tell_and_end(message, code)
  done = _do_last()
  _say(f'error: {message}')
  if not done:
    os._exit(code)  # A thread that hangs would be waited for.
  return code


def tell_and_end(message: str, code: int, dead: Iterable[int] = ()) -> NoReturn:
  """Ends this process with the message and the exit status, and all others too; if one was faster,
  with its.
  """
  mine = _failure(message, code, dead)
  if processes.count() == 1:
    _end(mine)
  try:
    told = mine if processes.put('failure', mine) else processes.wait_for('failure')
  except ProcessLost:
    told = mine
  _end(told)


def leave(code: int = 0) -> None:
  """Ends this process, whose work is done, once all others have done theirs; returns where it is
  the only one.
  """
  if processes.count() > 1:
    processes.barrier('leave')
    _leaving.set()
    with _ending:
      _depart(code, set())


def _failure(message: str, code: int, dead: Iterable[int] = ()) -> dict[str, Any]:
  """A failure as it is told: by whom, and which processes can no longer be spoken to."""
  return {
    'process': processes.index(),
    'host': socket.gethostname(),
    'message': message,
    'code': code,
    'dead': sorted(dead),
  }


def _end(failure: Mapping[str, Any]) -> NoReturn:
  with _ending:  # Held until the end: the first thread to come here speaks for all.
    known = failure['process'] == processes.index() or failure['dead']
    who = '' if known else f'{processes.name(failure["process"])} on {failure["host"]}: '
    _say(f'error: {who}{failure["message"]}')
    _depart(failure['code'], set(failure['dead']))


def _say(line: str) -> None:
  sys.stdout.flush()
  print(line, file=sys.stderr, flush=True)


def _depart(code: int, dead: set[int]) -> NoReturn:
  """Exits at once: threads and atexit handlers may wait for processes that are gone. Process 0 goes
  last.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  others = set(range(1, processes.count())) - dead

  def farewell():
    if processes.is_main():
      if processes.count() > 1:
        processes.put('last', code)
      for other in others:
        processes.wait_for(f'farewell/{other}')
      time.sleep(0.2)
    else:
      if _last:  # Schedulers end a job when one of its processes has ended.
        processes.wait_for('last')
      processes.put(f'farewell/{processes.index()}', code)

  if processes.is_main():
    _do_last()
  if 0 not in dead:
    thread = threading.Thread(target=farewell, daemon=True)
    thread.start()
    thread.join(FAREWELL_SECONDS + (LAST_SECONDS if _last and not processes.is_main() else 0))
  os._exit(code)


def _do_last() -> bool:
  """Whether what is to be done before the end was done in time."""

  def act():
    for action in _last:
      action()

  thread = threading.Thread(target=act, daemon=True)
  try:
    thread.start()
    thread.join(LAST_SECONDS)
  except KeyboardInterrupt:
    pass
  return not thread.is_alive()


def _hear() -> None:
  """Ends this process when another one tells that it failed."""
  try:
    failure = processes.wait_for('failure')
  except ProcessLost:
    if not _leaving.is_set():
      _end(_main_is_gone())
    return
  _end(failure)


def _count_heads() -> None:
  """Ends this process when another one's heartbeat is overdue."""
  everyone = set(range(processes.count()))
  while True:
    try:
      dead = everyone - processes.alive()
    except ProcessLost:
      return  # `_hear` says it.
    if _leaving.is_set():
      return
    if dead:
      tell_and_end(f'{", ".join(map(processes.name, sorted(dead)))} {GONE}', RESTART, dead)
    time.sleep(1)


def _main_is_gone() -> dict[str, Any]:
  return _failure(f'{processes.name(0)} {GONE}', RESTART, [0])


def _may_follow(error: BaseException) -> bool:
  """Whether this is how the end of another process looks from here."""
  if isinstance(error, ProcessLost):
    return True
  text = str(error).lower()
  return isinstance(error, RuntimeError) and any(word in text for word in CONTACT_LOST)


def _watch_progress(minutes: float) -> None:
  while (idle := time.monotonic() - _progress) < 60 * minutes:
    time.sleep(min(60 * minutes - idle, 5.0))
  sys.stdout.flush()
  print(
    f'no progress for {minutes:g} minutes; what each thread of '
    f'{processes.name(processes.index())} is doing:',
    file=sys.stderr,
  )
  faulthandler.dump_traceback(all_threads=True)
  message = (
    f'no step, batch or stage was finished for {minutes:g} minutes (--stall_minutes): stuck; the '
    'stacks of each process are in its output. Start again to continue'
  )
  if processes.count() > 1:
    time.sleep(FAREWELL_SECONDS)  # The others, who wait for one, print their stacks too.
  tell_and_end(message, RESTART)
