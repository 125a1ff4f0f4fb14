"""A profile of a window of a run: host and devices in a trace for xprof or TensorBoard.

A run is a row of units of work: training steps, batches to score, prompts to prefill, decoding. A
trace of the whole run would be too large to look at, and would begin with compilation. The window
opens when the first unit is done, or some time later.
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
  """The window to record.

  Attributes:
    folder: where the trace is written.
    after: seconds from the end of the first unit to the opening.
    seconds: length of the window.
    first: when the first unit ended, by time.monotonic().
    opened: when the window opened, by time.monotonic().
  """

  folder: pathlib.Path
  after: float
  seconds: float
  first: float | None = None
  opened: float | None = None


# One at a time: jax's profiler is of the whole process.
_window: _Window | None = None


def begin(folder: str | pathlib.Path, *, after: float = 0.0, seconds: float = 20.0) -> None:
  """Asks for a trace of a window, to be written to <folder>/plugins/profile/<time>/.

  Args:
    after: seconds from the end of the first unit to the opening of the window.
    seconds: length of the window, rounded up to the end of a unit.

  Raises:
    OutputError: if the folder cannot be made.
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
  """Writes a trace not written yet; a failure is only a warning."""
  global _window
  window = _window
  _window = None
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
  # The profiler raises errors of many classes, and no run should fail for want of a profile.
  except Exception as error:
    logging.warning('the profile could not be written to %s: %s', window.folder, error)


@contextlib.contextmanager
def unit(name: str, number: int | None = None) -> Iterator[None]:
  """A block of work, a unit of the trace; the window may open or close at the end.

  Args:
    name: the unit's name in the trace.
    number: the number of a training step.
  """
  # Only one is made: an annotation counts from when it is made, not from when it is entered.
  annotation = (
    jax.profiler.TraceAnnotation(name)
    if number is None
    else jax.profiler.StepTraceAnnotation(name, step_num=number)
  )
  with annotation:
    yield
  if _window:
    _turn(_window)


def options() -> jax.profiler.ProfileOptions:
  """The options of a trace: devices, and the annotations of jax and of this package."""
  profile_options = jax.profiler.ProfileOptions()
  # Recording each call of Python would slow the run down.
  profile_options.python_tracer_level = 0
  return profile_options


def _turn(window: _Window) -> None:
  """Opens or closes the window, if the time has come."""
  # The first unit compiles, and is over now.
  now = time.monotonic()
  if window.first is None:
    window.first = now
  if window.opened is None and now - window.first >= window.after:
    jax.profiler.start_trace(window.folder, profiler_options=options())
    # Starting takes a while, which is not part of the window.
    window.opened = time.monotonic()
  elif window.opened is not None and now - window.opened >= window.seconds:
    end()
