"""The operating point: which alpha to use on each side of zero, why, and where the model breaks.

The rule, on each side of zero: among the alphas (zero included) at which every capability task
stays within a tolerance of the base (alpha 0), the one whose behaviour moved furthest that way:
down for negative alphas, up for positive ones. Of alphas that move it equally far, the one nearest
to zero wins, because a smaller edit is the safer one.

The rule looks at means, as a user would; what the standard errors leave open is said in words
beside it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.experiments.report import study, words
from weightsteer_jax.experiments.report.comparison import ROUNDING, Comparison, TaskChange
from weightsteer_jax.experiments.report.study import Cell, Study
from weightsteer_jax.runtime.errors import InputError

TOLERANCE = 0.05  # in the units of the capability metric: 5 points of accuracy


@dataclasses.dataclass(frozen=True)
class Side:
  """The pick on one side of zero; `alpha` is None when there is no base to compare with."""

  sign: int
  alpha: float | None
  behaviour: Cell
  worst: TaskChange | None  # the capability task that moved most at the picked alpha
  breaks: tuple[
    TaskChange, ...
  ]  # capability tasks outside the tolerance at the alpha nearest to zero that has any
  reason: str


@dataclasses.dataclass(frozen=True)
class Pick:
  """Both sides of an arm's operating point, with the comparison they rest on."""

  comparison: Comparison
  negative: Side
  positive: Side

  @property
  def arm(self) -> str:
    return self.comparison.arm

  @property
  def alphas(self) -> tuple[float, ...]:
    """The picked alphas other than zero, which is always there to go back to."""
    return tuple(side.alpha for side in (self.negative, self.positive) if side.alpha)

  @property
  def sentences(self) -> list[str]:
    """The pick in plain words: one line for each side of zero."""
    return list(dict.fromkeys((self.negative.reason, self.positive.reason)))


def choose(
  results: Sequence[Mapping[str, Any]],
  roles: Mapping[str, str],
  *,
  arm: str,
  behaviour: str | None = None,
  tolerance: float = TOLERANCE,
) -> Pick:
  """The operating point of `arm`, from result rows {arm, task, metric, alpha, mean, sem, n} and
  {task: role}.

  Args:
    results: rows of results.jsonl; a mean that is null or NaN counts as not measured, never as
      zero.
    roles: role of each task, 'behaviour' or 'capability'.
    arm: which arm to pick for.
    behaviour: the task whose movement is maximised; by default the mean over all behaviour tasks.
    tolerance: how far a capability mean may move from the base, either way, in the metric's units.

  Raises:
    InputError: `behaviour` names no behaviour task.
  """
  named = [task for task, role in roles.items() if role == 'behaviour']
  if behaviour is not None and behaviour not in named:
    raise InputError(
      f'{behaviour!r} is not a behaviour task; there are {", ".join(named) or "none"}'
    )
  capability = tuple(task for task, role in roles.items() if role == 'capability')
  moving = (behaviour,) if behaviour else tuple(named)
  comparison = Comparison(arm, study.cells(results, arm), moving, capability, tolerance)
  return Pick(comparison, _side(comparison, -1), _side(comparison, 1))


def choose_all(
  sweep: Study, *, behaviour: str | None = None, tolerance: float = TOLERANCE
) -> list[Pick]:
  """The operating point of every arm of a study, in the order of its results; arguments as in
  `choose`.
  """
  return [
    choose(sweep.results, sweep.roles, arm=arm, behaviour=behaviour, tolerance=tolerance)
    for arm in sweep.arms
  ]


def _side(comparison: Comparison, sign: int) -> Side:
  unusable = words.unusable(comparison)
  if unusable:
    return Side(sign, None, Cell(math.nan, math.nan, 0), None, (), unusable)
  # Nearest to zero first, so that a tie is won by the smaller edit.
  outward = sorted((alpha for alpha in comparison.alphas if alpha * sign > 0), key=abs)
  chosen = 0.0
  for alpha in filter(comparison.admissible, outward):
    if comparison.gain(sign, alpha) > comparison.gain(sign, chosen) + ROUNDING:
      chosen = alpha
  breaks = next((broken for broken in map(comparison.broken, outward) if broken), ())
  reason = words.reason(comparison, sign, chosen, outward, breaks)
  return Side(
    sign, chosen, comparison.behaviour_at(chosen), comparison.worst(chosen), breaks, reason
  )
