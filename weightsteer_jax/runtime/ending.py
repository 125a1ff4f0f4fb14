"""How a run ends: all processes together, with one message and one exit status.

The end of one process ends all others within seconds. An exception is told to the others through
the store. A killed process is missed when a heartbeat is overdue, and process 0, the holder of the
store, at once. A process alive but stuck is noticed because nothing makes progress. Restarting is
left to the launcher of the processes (exit status 75).
"""

import atexit
import contextlib
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

from weightsteer_jax.runtime import log, processes, signals
from weightsteer_jax.runtime.errors import ProcessLost, WeightSteerError

# Seconds for the actions of process 0 registered with `before_end`. Schedulers kill after that
# long, or earlier.
LAST_SECONDS = 120.0
# Seconds that the others have to read the last message: the store ends with process 0.
FAREWELL_SECONDS = 5.0
RESTART = ProcessLost.exit_code
GONE = 'ended without a word (killed, or its machine lost): start all processes again to continue'
# Words in errors of jax and of collectives whose cause is the end of another process.
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
# Functions to which C code holds pointers. Python does not see the pointers, and would free them.
_c_handlers: list[Any] = []
# Registered with `before_end`.
_last_actions: list[Callable[[], None]] = []
# Registered with `at_exit`.
_exit_actions: list[Callable[[], None]] = []


def guard(*, stall_minutes: float) -> None:
  """Begins to watch the other processes, and the progress of this process, in threads.

  Args:
    stall_minutes: minutes without progress until the run is ended; 0 for never.
  """
  progress()
  if stall_minutes:
    threading.Thread(target=_watch_progress, args=(stall_minutes,), daemon=True).start()
  if processes.count() > 1:
    for watch in (_hear, _count_heads):
      threading.Thread(target=watch, daemon=True).start()


def catch_abort() -> None:
  """Turns an abort of jax's coordination into an end with a message and exit status 75.

  jax aborts where processes do not come together, and where process 0 is gone (in a race with
  `_hear`).
  """

  # Python's own handlers of signals never run in an abort; a handler in C does.
  @ctypes.CFUNCTYPE(None, ctypes.c_int)
  def aborted(_: int) -> None:
    # The work is done, and process 0 has left first.
    if _leaving.is_set():
      os._exit(0)
    if processes.joined():
      _end(_main_is_gone())
    _end(_failure(processes.not_together(), RESTART, [0]))

  _c_handlers.append(aborted)
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = (ctypes.c_int, type(aborted))
  libc.signal.restype = ctypes.c_void_p
  libc.signal(signal.SIGABRT, aborted)


def before_end(action: Callable[[], None]) -> None:
  """Registers an action of process 0 for a run ending in an error, while the others wait.

  Every process calls this.
  """
  _last_actions.append(action)


def at_exit(action: Callable[[], None]) -> None:
  """Registers a short action of this process for its end, whatever the end is but a kill."""
  _exit_actions.append(action)


def exit_now(code: int) -> NoReturn:
  """Ends the process without waiting for threads or Python's own handlers of exits."""
  do_at_exit()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


@atexit.register
def do_at_exit() -> None:
  """Does what was registered with `at_exit`, once."""
  while _exit_actions:
    action = _exit_actions.pop()
    # What cannot be done here must not keep the process from ending.
    with contextlib.suppress(Exception):
      action()


def progress() -> None:
  """Winds the stall watchdog: a step was taken, a batch computed, a stage begun."""
  global _progress
  _progress = time.monotonic()


def fail(error: BaseException) -> int:
  """Prints an error and returns the exit status; with several processes, ends all."""
  expected = True
  if isinstance(error, WeightSteerError):
    message = str(error)
    code = error.exit_code
  elif isinstance(error, KeyboardInterrupt):
    message = 'interrupted; what was finished is kept, the same command continues'
    code = signals.INTERRUPTED
  else:
    expected = False
    message = f'{type(error).__name__}: {error}'
    code = getattr(error, 'exit_code', 1)
  if processes.count() > 1 and _may_follow(error):
    # By then the process that ended first is known, and the failure told by it ends this process.
    time.sleep(processes.HEARTBEAT_SECONDS + FAREWELL_SECONDS)
  if not expected:
    sys.stdout.flush()
    traceback.print_exception(error)
    log.keep(''.join(traceback.format_exception(error)))
  if processes.count() > 1:
    tell_and_end(message, code)
  done = _do_last()
  _print_error(message)
  if not done:
    # An ordinary exit would wait for the thread that hangs.
    exit_now(code)
  return code


def tell_and_end(message: str, code: int, dead: Iterable[int] = ()) -> NoReturn:
  """Ends all processes with one message and exit status.

  The message and exit status of the first failure told by any process count.

  Args:
    dead: processes beyond reach.
  """
  failure = _failure(message, code, dead)
  if processes.count() > 1:
    try:
      if not processes.put('failure', failure):
        failure = processes.wait_for('failure')
    except ProcessLost:
      # The store is gone, and with it every other message.
      pass
  _end(failure)


def leave(code: int = 0) -> None:
  """Ends this process when all processes are done; a process alone returns."""
  if processes.count() > 1:
    processes.barrier('leave')
    _leaving.set()
    with _ending:
      _depart(code, set())


def _failure(message: str, code: int, dead: Iterable[int] = ()) -> dict[str, Any]:
  """A failure as JSON values for the store."""
  return {
    'process': processes.index(),
    'host': socket.gethostname(),
    'message': message,
    'code': code,
    'dead': sorted(dead),
  }


def _end(failure: Mapping[str, Any]) -> NoReturn:
  # The lock is never released: the first thread to come here speaks for the process.
  with _ending:
    teller = ''
    if failure['process'] != processes.index() and not failure['dead']:
      teller = f'{processes.name(failure["process"])} on {failure["host"]}: '
    _print_error(teller + failure['message'])
    _depart(failure['code'], set(failure['dead']))


def _print_error(message: str) -> None:
  sys.stdout.flush()
  print(f'error: {message}', file=sys.stderr, flush=True)
  log.keep(f'error: {message}')


def _depart(code: int, dead: set[int]) -> NoReturn:
  """Exits without waiting for threads or atexit handlers; process 0 goes last."""
  sys.stdout.flush()
  sys.stderr.flush()
  seconds = FAREWELL_SECONDS
  if processes.is_main():
    _do_last()
  elif _last_actions:
    seconds += LAST_SECONDS
  if 0 not in dead:
    thread = threading.Thread(target=_say_farewell, args=(code, dead), daemon=True)
    thread.start()
    thread.join(seconds)
  # Threads and atexit handlers may wait for processes that are gone.
  exit_now(code)


def _say_farewell(code: int, dead: set[int]) -> None:
  """Waits, through the store, until process 0 may go after all others."""
  if not processes.is_main():
    if _last_actions:
      # Schedulers end a job when the first process of the job has ended.
      processes.wait_for('last')
    processes.put(f'farewell/{processes.index()}', code)
    return
  if processes.count() > 1:
    processes.put('last', code)
  for other in set(range(1, processes.count())) - dead:
    processes.wait_for(f'farewell/{other}')
  # The others read the store a last time, and exit.
  time.sleep(0.2)


def _do_last() -> bool:
  """Whether the actions registered with `before_end` were done in time."""

  def act() -> None:
    for action in _last_actions:
      action()

  thread = threading.Thread(target=act, daemon=True)
  try:
    thread.start()
    thread.join(LAST_SECONDS)
  except KeyboardInterrupt:
    pass
  return not thread.is_alive()


def _hear() -> None:
  """Ends this process when another process tells a failure."""
  try:
    failure = processes.wait_for('failure')
  except ProcessLost:
    if not _leaving.is_set():
      _end(_main_is_gone())
    return
  # If the failure is this process's own, another thread is ending the process: `_end` waits for it.
  _end(failure)


def _count_heads() -> None:
  """Ends this process when the heartbeat of another process is overdue."""
  everyone = set(range(processes.count()))
  while True:
    try:
      dead = everyone - processes.alive()
    except ProcessLost:
      # `_hear` notices as well, and ends this process.
      return
    if _leaving.is_set():
      return
    if dead:
      names = ', '.join(processes.name(process) for process in sorted(dead))
      tell_and_end(f'{names} {GONE}', RESTART, dead)
    time.sleep(1)


def _main_is_gone() -> dict[str, Any]:
  return _failure(f'{processes.name(0)} {GONE}', RESTART, [0])


def _may_follow(error: BaseException) -> bool:
  """Whether the end of another process may be the cause of an error here."""
  if isinstance(error, ProcessLost):
    return True
  text = str(error).lower()
  return isinstance(error, RuntimeError) and any(word in text for word in CONTACT_LOST)


def _watch_progress(minutes: float) -> None:
  limit = 60 * minutes
  while (idle := time.monotonic() - _progress) < limit:
    time.sleep(min(limit - idle, 5.0))
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
    # The others, which wait for the stuck one, have time to print their stacks too.
    time.sleep(FAREWELL_SECONDS)
  tell_and_end(message, RESTART)
