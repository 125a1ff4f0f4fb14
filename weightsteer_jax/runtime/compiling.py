"""Seconds that this process has spent compiling, and whether it is compiling now.

jax reports the end of each step: a program is traced, lowered, then compiled or found compiled. So
the compiler is at work from the end of the lowering to its own.

Source: jax 0.10.2 and 0.12.0, jax/_src/dispatch.py, names of the events.
"""

import threading
from collections.abc import Callable

_LOWERED = '/jax/core/compile/jaxpr_to_mlir_module_duration'
_COMPILED = '/jax/core/compile/backend_compile_duration'
# A program that takes no longer needs no word.
_QUIET_SECONDS = 2.0

_lock = threading.Lock()
_seconds = 0.0
_listening = False
_timers: list[threading.Timer] = []
_tell: Callable[[], None] | None = None


def seconds() -> float:
  """Seconds spent in lowering and compiling so far, from the first call of `listen` on."""
  return _seconds


def listen(tell: Callable[[], None] | None) -> None:
  """Begins to count, and has `tell` called where a compilation takes long; None tells nobody.

  `tell` is called in a thread of its own, once a program.
  """
  global _listening, _tell
  _tell = tell
  with _lock:
    if not _listening:
      # Where something is computed, jax is there already.
      import jax

      jax.monitoring.register_event_duration_secs_listener(_heard)
      _listening = True


def _heard(event: str, duration_secs: float, **_: str | int) -> None:
  global _seconds
  if event in (_LOWERED, _COMPILED):
    with _lock:
      _seconds += duration_secs
    _stop()
  if event == _LOWERED:
    _begin()


def _begin() -> None:
  timer = threading.Timer(_QUIET_SECONDS, _say)
  timer.daemon = True
  with _lock:
    _timers.append(timer)
  timer.start()


def _stop() -> None:
  with _lock:
    timers = list(_timers)
    _timers.clear()
  for timer in timers:
    timer.cancel()


def _say() -> None:
  if _tell:
    _tell()
