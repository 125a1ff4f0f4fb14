"""Progress for people to see: lines of a stage, and bars.

A line winds the stall watchdog (see ending.py). A bar does not: loops that move bars wind the
watchdog themselves.
"""

import functools
import sys

import tqdm

from weightsteer_jax.runtime import ending, processes

# A terminal is redrawn at once. A log file keeps every state of a bar and gets one now and then.
REDRAW_SECONDS = 0.1
LOG_SECONDS = 10.0


def say(line: str) -> None:
  """Prints a line of a stage, at once and on the main process only."""
  # On every process, since each has a watchdog.
  ending.progress()
  if processes.is_main():
    print(line, flush=True)


@functools.cache
def say_once(line: str) -> None:
  """Prints a line, but not again what this process has said."""
  say(line)


def bar(title: str, *, unit: str, total: int, done: int = 0, shown: bool = True) -> tqdm.tqdm:
  """A progress bar on stderr, of the main process only.

  Args:
    done: units finished by an earlier run.
    shown: False for a bar to count with, unseen.
  """
  return tqdm.tqdm(
    desc=title,
    unit=unit,
    total=total,
    initial=done,
    disable=not (shown and processes.is_main()),
    file=sys.stderr,
    dynamic_ncols=True,
    mininterval=REDRAW_SECONDS if sys.stderr.isatty() else LOG_SECONDS,
  )
