"""One arm against its own base: how far every task moved, and when too far."""

import dataclasses
import math
from collections.abc import Sequence

from weightsteer_jax.experiments.report import study
from weightsteer_jax.experiments.report.study import Cell, Cells, format_alpha

# 0.90 - 0.85 is 0.05000000000000004 in binary; a difference of exactly the tolerance is within it.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class TaskChange:
  """How far one task moved from the base at one alpha.

  Attributes:
    base: mean at alpha 0.
    mean: mean at `alpha`.
    sem: standard error of the difference, the two means taken as independent; NaN when either
      standard error is unknown.
    is_loss: whether less is better.
  """

  task: str
  alpha: float
  base: float
  mean: float
  sem: float
  is_loss: bool = False

  @property
  def improvement(self) -> float:
    """The difference, positive for the better: negative where a capability is lost."""
    return -self.difference if self.is_loss else self.difference

  @property
  def difference(self) -> float:
    """The mean less the base."""
    return self.mean - self.base

  def __str__(self) -> str:
    verb = 'falls' if self.difference < 0 else 'rises'
    return (
      f'{self.task} {verb} from {self.base:.2f} to {self.mean:.2f} at alpha '
      f'{format_alpha(self.alpha)}'
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One arm's numbers against the arm's own base.

  Attributes:
    table: {task: {alpha: Cell}}.
    behaviour: tasks to move.
    capability: tasks to keep.
    tolerance: how far a capability mean may go from the base, in the metric's units.
    losses: tasks of whose metric less is better.
  """

  arm: str
  table: Cells
  behaviour: tuple[str, ...]
  capability: tuple[str, ...]
  tolerance: float
  losses: tuple[str, ...] = ()

  @property
  def alphas(self) -> list[float]:
    """All alphas of the arm, ascending."""
    return study.alphas_of(self.table)

  def cell(self, task: str, alpha: float) -> Cell:
    """The number of a task at an alpha; NaN where not measured."""
    column = self.table.get(task, {})
    # NaN and not 0: a missing number must not look like a rate of 0.
    not_measured = Cell(math.nan, math.nan, 0)
    return column.get(alpha, not_measured)

  def behaviour_at(self, alpha: float) -> Cell:
    """Mean over the behaviour tasks at an alpha."""
    cells = [self.cell(task, alpha) for task in self.behaviour]
    return mean_cell(cells)

  def change(self, task: str, alpha: float) -> TaskChange:
    """How far a task moved from the base at an alpha."""
    base = self.cell(task, 0.0)
    cell = self.cell(task, alpha)
    # At alpha 0 both are the same number, not two independent ones.
    sem = 0.0
    if alpha != 0:
      sem = math.hypot(base.sem, cell.sem)
    return TaskChange(task, alpha, base.mean, cell.mean, sem, task in self.losses)

  def changes(self, alpha: float) -> list[TaskChange]:
    """How far each capability task moved at an alpha."""
    return [self.change(task, alpha) for task in self.capability]

  def broken(self, alpha: float) -> tuple[TaskChange, ...]:
    """Capability tasks outside the tolerance at `alpha`.

    A task without a number is not known to be broken.
    """
    # NaN is not larger than the limit.
    limit = self.tolerance + ROUNDING
    changes = self.changes(alpha)
    return tuple(change for change in changes if abs(change.difference) > limit)

  def worst(self, alpha: float) -> TaskChange | None:
    """The largest capability change at `alpha`.

    None without capability tasks, or where a capability task is not measured.
    """
    changes = self.changes(alpha)
    # What is not measured may be the worst.
    if not changes or any(math.isnan(change.difference) for change in changes):
      return None
    return max(changes, key=lambda change: abs(change.difference))

  def unmeasured(self, alpha: float) -> list[str]:
    """Names of the tasks without a number at `alpha`."""
    tasks = self.behaviour + self.capability
    return [task for task in tasks if not self.cell(task, alpha).measured]

  def admissible(self, alpha: float) -> bool:
    """Whether everything is measured at `alpha` and every capability is kept."""
    return not self.unmeasured(alpha) and not self.broken(alpha)

  def gain(self, sign: int, alpha: float) -> float:
    """Change of the behaviour times `sign`: positive for a move the side's way."""
    moved = self.behaviour_at(alpha)
    base = self.behaviour_at(0.0)
    return sign * (moved.mean - base.mean)


def mean_cell(parts: Sequence[Cell]) -> Cell:
  """Mean over tasks, each counted once; NaN if any task is missing.

  The standard error takes the tasks as independent.
  """
  if not parts:
    return Cell(math.nan, math.nan, 0)
  mean = math.fsum(part.mean for part in parts) / len(parts)
  # Variances of independent means add up.
  sems = [part.sem for part in parts]
  sem = math.hypot(*sems) / len(parts)
  n = sum(part.n for part in parts)
  return Cell(mean, sem, n)
