"""Progress for people to see: lines of a stage, and bars.

A line winds the stall watchdog (see ending.py). A bar does not: loops that move bars wind the
watchdog themselves.
"""

import functools
import sys
from typing import Any

import tqdm

from weightsteer_jax.runtime import compiling, ending, log, processes, signals

# A terminal is redrawn at once. A log file keeps every state of a bar and gets one now and then.
REDRAW_SECONDS = 0.1
LOG_SECONDS = 10.0


def say(line: str) -> None:
  """Prints a line of a stage, at once and on the main process only, and puts it into the log.

  Raises:
    Preempted: if SIGTERM has come (see signals.py), after the line.
  """
  # On every process, since each has a watchdog.
  ending.progress()
  if processes.is_main():
    print(line, flush=True)
    log.keep(line)
  signals.check()


@functools.cache
def say_once(line: str) -> None:
  """Prints a line, but not again what this process has said."""
  say(line)


class Bar(tqdm.tqdm):
  """A bar whose rate and time left count what computes, and that says when a program compiles."""

  def __init__(self, **options: Any):
    # Drawn for the first time by the parent's constructor.
    self._compiled_before = compiling.seconds()
    self._is_compiling = False
    super().__init__(**options)
    if not self.disable:
      compiling.listen(self._tell)

  def _tell(self) -> None:
    self._is_compiling = True
    self.refresh()

  def update(self, n: float | None = 1) -> bool | None:
    """Counts units that are finished."""
    self._is_compiling = False
    return super().update(n)

  def close(self) -> None:
    """Draws the last state; once is enough."""
    if not self.disable:
      compiling.listen(None)
    super().close()

  @property
  def format_dict(self) -> dict[str, Any]:
    """What is drawn; tqdm asks for it."""
    told = super().format_dict
    computing = told['elapsed'] - (compiling.seconds() - self._compiled_before)
    finished = self.n - self.initial
    told['rate'] = finished / computing if finished > 0 and computing > 0 else None
    if self._is_compiling:
      told['postfix'] = ', '.join(filter(None, (told['postfix'], 'compiling')))
    return told


def bar(title: str, *, unit: str, total: int, done: int = 0, shown: bool = True) -> Bar:
  """A progress bar on stderr, of the main process only.

  Args:
    done: units finished by an earlier run.
    shown: False for a bar to count with, unseen.
  """
  return Bar(
    desc=title,
    unit=unit,
    total=total,
    initial=done,
    disable=not (shown and processes.is_main()),
    file=sys.stderr,
    dynamic_ncols=True,
    mininterval=REDRAW_SECONDS if sys.stderr.isatty() else LOG_SECONDS,
  )
