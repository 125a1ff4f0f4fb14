"""The operating point: the alpha to use on each side of zero, why, and where the model breaks.

The rule, on each side of zero: look at the alphas (zero included) at which no capability task loses
more than a tolerance against the base (alpha 0), and take the alpha that moves the behaviour
furthest, down for negative alphas, up for positive alphas. Of alphas that move the behaviour
equally far, the alpha nearest to zero wins, because a smaller edit is safer.

What counts as lost, and how surely it must be kept, is `comparison.Rule`: a capability that rises
has lost nothing, unless the rule counts every change. By default means decide, and words beside the
pick say where the 95 % interval of a change, paired by question, reaches beyond the tolerance; with
`evidence='interval'` such an alpha is not picked.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.experiments.report import study, words
from weightsteer_jax.experiments.report.comparison import (
  DEFAULT,
  ROUNDING,
  Comparison,
  Rule,
  TaskChange,
)
from weightsteer_jax.experiments.report.study import Cell, Study
from weightsteer_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class Side:
  """The pick on one side of zero.

  Attributes:
    sign: -1 or 1.
    alpha: the picked alpha; None without a base to compare with.
    behaviour: mean over the behaviour tasks at the picked alpha.
    worst: the change of a capability task that costs most at the picked alpha.
    breaks: capability tasks that lose more than the tolerance, at the nearest alpha with any.
    reason: the pick in words.
  """

  sign: int
  alpha: float | None
  behaviour: Cell
  worst: TaskChange | None
  breaks: tuple[TaskChange, ...]
  reason: str


@dataclasses.dataclass(frozen=True)
class Pick:
  """Both sides of an arm's operating point, with the comparison behind the pick."""

  comparison: Comparison
  negative: Side
  positive: Side

  @property
  def arm(self) -> str:
    """Name of the arm."""
    return self.comparison.arm

  @property
  def alphas(self) -> tuple[float, ...]:
    """The picked alphas other than zero, negative first."""
    return tuple(side.alpha for side in (self.negative, self.positive) if side.alpha)

  @property
  def sentences(self) -> list[str]:
    """The pick in plain words: one line for each side of zero."""
    # Without a base both sides have the same reason, which is said once.
    return list(dict.fromkeys((self.negative.reason, self.positive.reason)))


def choose(
  results: Sequence[Mapping[str, Any]],
  roles: Mapping[str, str],
  *,
  arm: str,
  behaviour: str | None = None,
  rule: Rule = DEFAULT,
) -> Pick:
  """The operating point of an arm.

  Args:
    results: rows {arm, task, metric, alpha, mean, sem, n} of results.jsonl; a mean that is null or
      NaN counts as not measured, never as zero.
    roles: {task: 'behaviour' or 'capability'}.
    arm: name of the arm.
    behaviour: the task to move furthest; by default the mean over all behaviour tasks.
    rule: what an alpha may cost.

  Raises:
    InputError: if `behaviour` names no behaviour task.
  """
  behaviours = tuple(task for task, role in roles.items() if role == 'behaviour')
  capabilities = tuple(task for task, role in roles.items() if role == 'capability')
  # A misspelt name would leave nothing to move.
  if behaviour is not None and behaviour not in behaviours:
    raise InputError(
      f'{behaviour!r} is not a behaviour task; there are {", ".join(behaviours) or "none"}'
    )
  if behaviour:
    behaviours = (behaviour,)
  table = study.cells(results, arm)
  losses = tuple(task for task in table if study.metric_of(results, task) in study.LOSSES)
  comparison = Comparison(arm, table, behaviours, capabilities, rule, losses)
  negative = _side(comparison, -1)
  positive = _side(comparison, 1)
  return Pick(comparison, negative, positive)


def choose_all(sweep: Study, *, behaviour: str | None = None, rule: Rule = DEFAULT) -> list[Pick]:
  """The operating point of every arm, in the order of the results.

  Args:
    behaviour, rule: as in `choose`.
  """
  return [
    choose(sweep.results, sweep.roles, arm=arm, behaviour=behaviour, rule=rule)
    for arm in sweep.arms
  ]


def _side(comparison: Comparison, sign: int) -> Side:
  unusable = words.unusable(comparison)
  if unusable:
    return Side(sign, None, Cell(math.nan, math.nan, 0), None, (), unusable)
  # Nearest to zero first, so that a tie is won by the smaller edit.
  outward = sorted((alpha for alpha in comparison.alphas if alpha * sign > 0), key=abs)
  # The base is a candidate too: a side may have nothing better.
  chosen = 0.0
  for alpha in outward:
    if not comparison.admissible(alpha):
      continue
    # By more than binary rounding, so that equal moves stay with the smaller edit.
    if comparison.gain(sign, alpha) > comparison.gain(sign, chosen) + ROUNDING:
      chosen = alpha
  # Over all alphas, also beyond the pick: words tell where the model breaks.
  breaks: tuple[TaskChange, ...] = ()
  for alpha in outward:
    breaks = comparison.broken(alpha)
    if breaks:
      break
  return Side(
    sign=sign,
    alpha=chosen,
    behaviour=comparison.behaviour_at(chosen),
    worst=comparison.worst(chosen),
    breaks=breaks,
    reason=words.reason(comparison, sign, chosen, outward, breaks),
  )


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """The arguments of `choose_all` that a run's config.json has; defaults for what is missing."""
  settings = config.get('sweep')
  if not isinstance(settings, Mapping):
    settings = {}
  names = {
    'tolerance': 'tolerance',
    'capability_rule': 'counts',
    'capability_evidence': 'evidence',
  }
  # Workdirs of earlier versions have fewer keys.
  chosen = {field: settings[key] for key, field in names.items() if key in settings}
  return {'behaviour': settings.get('pick_by') or None, 'rule': Rule(**chosen)}
