"""Work kept line by line, for an interrupted run to be continued."""

from collections.abc import Callable, Generator

from weightsteer_jax.runtime import ending, preemption, progress
from weightsteer_jax.runtime.errors import Preempted
from weightsteer_jax.storage.journal import Journal, Line


def keep(
  journal: Journal,
  lines: Generator[Line, None, None],
  *,
  left: Callable[[], int],
  total: int,
  what: str,
  title: str,
  unit: str,
  shown: bool = True,
) -> None:
  """Appends finished lines to a journal, with a progress bar, until a signal comes.

  Every process passes the same lines in the same order, and all stop behind the same line.

  Args:
    lines: makes the missing lines; closed when a signal comes.
    left: counts the lines still to be made.
    total: lines of the whole work, with lines of earlier runs.
    what: the lines in an error's words, as in 'rows of the sweep'.
    title, unit: names of the work and of a line, for the bar.
    shown: whether the bar is shown.

  Raises:
    Preempted: if SIGTERM or SIGINT came; every finished line is kept.
    OutputError: if a line cannot be written.
  """
  bar = progress.bar(title, unit=unit, total=total, done=total - left(), shown=shown)
  with bar, preemption.watch() as stop:
    for line in lines:
      journal.append(line)
      bar.update()
      ending.progress()
      if stop.reached():
        # Within the watch: what the generator waits for when it is closed may take long.
        lines.close()
        break
  # Also where the signal came after the last boundary, and every line is there: the stages that
  # follow must not begin.
  if stop.name:
    raise Preempted(
      f'{stop.name} came: {left()} of {total} {what} are left, the others are in {journal.path}; '
      'start again to continue'
    )
