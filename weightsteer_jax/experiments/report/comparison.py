"""One arm against its own base: how far every task moved at every alpha, and which moves are too
far.
"""

import dataclasses
import math
from collections.abc import Sequence

from weightsteer_jax.experiments.report import study
from weightsteer_jax.experiments.report.study import Cell, Cells, format_alpha

# 0.90 - 0.85 is 0.05000000000000004 in binary; a difference of exactly the tolerance is within it.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class TaskChange:
  """How far one task moved from the base at one alpha."""

  task: str
  alpha: float
  base: float
  mean: float
  sem: float  # of the difference, the two means taken as independent; NaN when either is unknown

  @property
  def difference(self) -> float:
    return self.mean - self.base

  def __str__(self) -> str:
    verb = 'falls' if self.difference < 0 else 'rises'
    return (
      f'{self.task} {verb} from {self.base:.2f} to {self.mean:.2f} at alpha '
      f'{format_alpha(self.alpha)}'
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One arm's numbers against its own base, and what counts as near it."""

  arm: str
  table: Cells
  behaviour: tuple[str, ...]  # tasks whose mean is to move
  capability: tuple[str, ...]  # tasks that are to stay
  tolerance: float  # how far a capability mean may go from the base, in the metric's units

  @property
  def alphas(self) -> list[float]:
    return study.alphas_of(self.table)

  def cell(self, task: str, alpha: float) -> Cell:
    return self.table.get(task, {}).get(alpha, Cell(math.nan, math.nan, 0))

  def behaviour_at(self, alpha: float) -> Cell:
    return mean_cell([self.cell(task, alpha) for task in self.behaviour])

  def change(self, task: str, alpha: float) -> TaskChange:
    base, cell = self.cell(task, 0.0), self.cell(task, alpha)
    return TaskChange(
      task, alpha, base.mean, cell.mean, 0.0 if alpha == 0 else math.hypot(base.sem, cell.sem)
    )

  def changes(self, alpha: float) -> list[TaskChange]:
    return [self.change(task, alpha) for task in self.capability]

  def broken(self, alpha: float) -> tuple[TaskChange, ...]:
    """Capability tasks outside the tolerance at `alpha`; a task that was not measured is not known
    to be broken.
    """
    return tuple(
      change for change in self.changes(alpha) if abs(change.difference) > self.tolerance + ROUNDING
    )

  def worst(self, alpha: float) -> TaskChange | None:
    """The largest capability change at `alpha`; None where a capability task is not measured, or
    there is none.
    """
    changes = self.changes(alpha)
    if not changes or any(math.isnan(change.difference) for change in changes):
      return None
    return max(changes, key=lambda change: abs(change.difference))

  def unmeasured(self, alpha: float) -> list[str]:
    return [
      task for task in self.behaviour + self.capability if not self.cell(task, alpha).measured
    ]

  def admissible(self, alpha: float) -> bool:
    return not self.unmeasured(alpha) and not self.broken(alpha)

  def gain(self, sign: int, alpha: float) -> float:
    """Behaviour change in the direction of `sign`: positive when the behaviour moved the way the
    side asks for.
    """
    return sign * (self.behaviour_at(alpha).mean - self.behaviour_at(0.0).mean)


def mean_cell(parts: Sequence[Cell]) -> Cell:
  """Mean over tasks, each counted once; NaN if any is missing. Its standard error takes the tasks
  as independent.
  """
  if not parts:
    return Cell(math.nan, math.nan, 0)
  mean = math.fsum(part.mean for part in parts) / len(parts)
  return Cell(
    mean, math.hypot(*(part.sem for part in parts)) / len(parts), sum(part.n for part in parts)
  )
