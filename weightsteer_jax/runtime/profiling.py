"""A window of a run on record: what host and devices did in it, as a trace that xprof and
TensorBoard open.

A run is a row of units of work: training steps, batches to score, prompts to prefill, decoding. A
trace of all of it would be too large to look at, and begin with compilation: the window opens when
the first unit is done, or some time later.
"""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Iterator

import jax

from weightsteer_jax.runtime.errors import OutputError


@dataclasses.dataclass
class _Window:
  """What is to be recorded: so many seconds, from some seconds after the first unit on."""

  folder: pathlib.Path
  after: float
  seconds: float
  first: float | None = None  # time.monotonic() of the end of the first unit
  opened: float | None = None


_window: _Window | None = None


def begin(folder: str | pathlib.Path, *, after: float = 0.0, seconds: float = 20.0) -> None:
  """Has a trace written to <folder>/plugins/profile/<time>/, from `after` seconds after the first
  unit on, up to the end of the unit that is at work when `seconds` have passed.

  Raises:
    OutputError: the folder cannot be made.
  """
  global _window
  try:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OutputError(
      f'--profile: the folder {folder} cannot be made: {error.strerror or error}'
    ) from error
  _window = _Window(pathlib.Path(folder), after, seconds)


def end() -> None:
  """Writes the trace, if there is one that is not written yet; a run does not fail because it
  cannot be.
  """
  global _window
  window, _window = _window, None
  if window is None:
    return
  if window.opened is None:
    logging.warning('no profile in %s: the run ended before its window opened', window.folder)
    return
  try:
    jax.profiler.stop_trace()
    print(
      f'profile: {time.monotonic() - window.opened:.0f} s in {window.folder}; look at it '
      f'with xprof --logdir={window.folder}',
      flush=True,
    )
  except Exception as error:  # The profiler raises what it likes.
    logging.warning('the profile could not be written to %s: %s', window.folder, error)


@contextlib.contextmanager
def unit(name: str, number: int | None = None) -> Iterator[None]:
  """A context that is one unit of work, by that name in the trace, and in which the window opens or
  closes at the end.

  Args:
    number: of a training step.
  """
  named = (
    jax.profiler.TraceAnnotation(name)
    if number is None
    else jax.profiler.StepTraceAnnotation(name, step_num=number)
  )
  with named:
    yield
  if _window:
    _turn(_window)


def options() -> jax.profiler.ProfileOptions:
  """What is recorded: devices, and what jax and this package say of the host, but not each call of
  Python, which would slow the run down.
  """
  wanted = jax.profiler.ProfileOptions()
  wanted.python_tracer_level = 0
  return wanted


def _turn(window: _Window) -> None:
  """Opens or closes the window, if it is time."""
  now = time.monotonic()
  if window.first is None:
    window.first = now
  if window.opened is None and now - window.first >= window.after:
    jax.profiler.start_trace(window.folder, profiler_options=options())
    window.opened = time.monotonic()
  elif window.opened is not None and now - window.opened >= window.seconds:
    end()
