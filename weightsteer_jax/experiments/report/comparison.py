"""One arm against its own base: how far every task moved, and when that costs too much."""

import dataclasses
import math
from collections.abc import Sequence

from weightsteer_jax.experiments.report import study
from weightsteer_jax.experiments.report.study import Cell, Cells, format_alpha

# 0.90 - 0.85 is 0.05000000000000004 in binary; a difference of exactly the tolerance is within it.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Rule:
  """What an alpha may cost.

  Attributes:
    tolerance: how far a capability may go from the base, in the units of the task's metric.
    counts: what of a capability counts: 'loss', what is lost of it, or 'change', either way.
    evidence: 'mean', the mean itself stays within the tolerance, or 'interval', the whole 95 %
      interval of the change does.
  """

  # 5 points of accuracy, 0.05 nats: shares of some 100 examples are known to about as much.
  tolerance: float = 0.05
  counts: str = 'loss'
  evidence: str = 'mean'


# What an alpha may cost where a config says nothing.
DEFAULT = Rule()


@dataclasses.dataclass(frozen=True)
class TaskChange:
  """How far one task moved from the base at one alpha.

  Attributes:
    base: mean at alpha 0.
    mean: mean at `alpha`.
    sem: standard error of the difference, paired by question; NaN where not known.
    low, high: ends of the difference's 95 % interval; NaN where not known.
    is_loss: whether less is better.
  """

  task: str
  alpha: float
  base: float
  mean: float
  sem: float
  low: float = math.nan
  high: float = math.nan
  is_loss: bool = False

  @property
  def improvement(self) -> float:
    """The difference, positive for the better: negative where a capability is lost."""
    return -self.difference if self.is_loss else self.difference

  @property
  def difference(self) -> float:
    """The mean less the base."""
    return self.mean - self.base

  def cost(self, counts: str) -> float:
    """What the change costs: what is lost, or with 'change' how far it goes either way."""
    return -self.improvement if counts == 'loss' else abs(self.difference)

  def most(self, counts: str) -> float:
    """The largest cost that the 95 % interval holds."""
    if counts == 'change':
      return max(abs(self.low), abs(self.high))
    return self.high if self.is_loss else -self.low

  @property
  def reach(self) -> tuple[float, float]:
    """How far the 95 % interval of the improvement goes below and above it; 0 where not known."""
    if math.isnan(self.low):
      return 0.0, 0.0
    down = max(0.0, self.difference - self.low)
    up = max(0.0, self.high - self.difference)
    return (up, down) if self.is_loss else (down, up)

  @property
  def interval(self) -> str:
    """The ends of the 95 % interval in words; '' where not known."""
    if math.isnan(self.low):
      return ''
    return f'95 %: {self.low:+.2f} to {self.high:+.2f}'

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
    rule: what an alpha may cost.
    losses: tasks of whose metric less is better.
  """

  arm: str
  table: Cells
  behaviour: tuple[str, ...]
  capability: tuple[str, ...]
  rule: Rule
  losses: tuple[str, ...] = ()

  @property
  def tolerance(self) -> float:
    """How far a capability may go from the base, in the units of the task's metric."""
    return self.rule.tolerance

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
    sem = cell.change_sem
    low = cell.change_low
    high = cell.change_high
    # At alpha 0 both are the same number.
    if alpha == 0:
      sem = low = high = 0.0
    # Results of earlier versions say nothing of pairs: the two means are taken as independent.
    elif math.isnan(sem):
      sem = math.hypot(base.sem, cell.sem)
      reach = 1.96 * sem
      low = cell.mean - base.mean - reach
      high = cell.mean - base.mean + reach
    return TaskChange(task, alpha, base.mean, cell.mean, sem, low, high, task in self.losses)

  def changes(self, alpha: float) -> list[TaskChange]:
    """How far each capability task moved at an alpha."""
    return [self.change(task, alpha) for task in self.capability]

  def broken(self, alpha: float) -> tuple[TaskChange, ...]:
    """Capability tasks whose mean at `alpha` costs more than the tolerance.

    A task without a number is not known to be broken.
    """
    # NaN is not larger than the limit.
    limit = self.tolerance + ROUNDING
    changes = self.changes(alpha)
    return tuple(change for change in changes if change.cost(self.rule.counts) > limit)

  def unsure(self, alpha: float) -> tuple[TaskChange, ...]:
    """Capability tasks that may cost more than the tolerance at `alpha`, by their 95 % interval.

    A task whose mean does, or that has no number, is not among them.
    """
    limit = self.tolerance + ROUNDING
    broken = self.broken(alpha)
    changes = [change for change in self.changes(alpha) if change not in broken]
    return tuple(change for change in changes if change.most(self.rule.counts) > limit)

  def kept(self, task: str) -> tuple[float, float]:
    """(lowest, highest) mean at which a capability is kept; infinite where nothing can be lost."""
    base = self.cell(task, 0.0).mean
    low = base - self.tolerance
    high = base + self.tolerance
    if self.rule.counts == 'loss':
      return (-math.inf, high) if task in self.losses else (low, math.inf)
    return low, high

  def worst(self, alpha: float) -> TaskChange | None:
    """The capability change that costs most at `alpha`.

    None without capability tasks, or where a capability task is not measured.
    """
    changes = self.changes(alpha)
    # What is not measured may be the worst.
    if not changes or any(math.isnan(change.difference) for change in changes):
      return None
    return max(changes, key=lambda change: change.cost(self.rule.counts))

  def unmeasured(self, alpha: float) -> list[str]:
    """Names of the tasks without a number at `alpha`."""
    tasks = self.behaviour + self.capability
    return [task for task in tasks if not self.cell(task, alpha).measured]

  def admissible(self, alpha: float) -> bool:
    """Whether everything is measured at `alpha` and every capability is kept, by the rule."""
    if self.unmeasured(alpha) or self.broken(alpha):
      return False
    return self.rule.evidence == 'mean' or not self.unsure(alpha)

  def gain(self, sign: int, alpha: float) -> float:
    """Change of the behaviour times `sign`: positive for a move the side's way."""
    moved = self.behaviour_at(alpha)
    base = self.behaviour_at(0.0)
    return sign * (moved.mean - base.mean)


def mean_cell(parts: Sequence[Cell]) -> Cell:
  """Mean over tasks, each counted once; NaN if any task is missing.

  The tasks are taken as independent. An end of the interval lies the root of the summed squares of
  the tasks' distances from the mean, by their number.

  Source: Zou and Donner 2008 (Stat. Med. 27, 1693), for the interval of a sum.
  """
  if not parts:
    return Cell(math.nan, math.nan, 0)
  if len(parts) == 1:
    return parts[0]
  count = len(parts)
  mean = math.fsum(part.mean for part in parts) / count
  change = math.fsum(part.change for part in parts) / count
  names = {part.groups for part in parts}
  return Cell(
    mean=mean,
    # Variances of independent means add up.
    sem=math.hypot(*(part.sem for part in parts)) / count,
    n=sum(part.n for part in parts),
    low=mean - math.hypot(*(part.mean - part.low for part in parts)) / count,
    high=mean + math.hypot(*(part.high - part.mean for part in parts)) / count,
    change=change,
    change_sem=math.hypot(*(part.change_sem for part in parts)) / count,
    change_low=change - math.hypot(*(part.change - part.change_low for part in parts)) / count,
    change_high=change + math.hypot(*(part.change_high - part.change for part in parts)) / count,
    answers=sum(part.answers for part in parts),
    groups=names.pop() if len(names) == 1 else 'questions',
    unreadable=sum(part.unreadable for part in parts),
    asked=sum(part.asked for part in parts),
  )
