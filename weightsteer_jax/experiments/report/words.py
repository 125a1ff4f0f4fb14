"""The operating point in plain sentences.

The pick, the cost, the reason to stop before the next alpha, and open doubts.
"""

from collections.abc import Sequence

from weightsteer_jax.experiments.report.comparison import ROUNDING, Comparison, TaskChange
from weightsteer_jax.experiments.report.study import format_alpha


def unusable(numbers: Comparison) -> str:
  """Why no alpha can be picked at all, in words; '' when some alpha can."""
  if not numbers.behaviour:
    return 'No alpha is picked: no behaviour task was measured, so there is nothing to move.'
  if 0.0 not in numbers.alphas:
    return 'No alpha is picked: alpha 0 is not in the results, so there is no base to compare with.'
  missing = numbers.unmeasured(0.0)
  if missing:
    return (
      f'No alpha is picked: {_join(missing)} has no result at alpha 0, so there is no base to '
      'compare with.'
    )
  return ''


def reason(
  numbers: Comparison,
  sign: int,
  chosen: float,
  outward: Sequence[float],
  breaks: Sequence[TaskChange],
) -> str:
  """Why an alpha is the pick on a side of zero, in words.

  Args:
    numbers: the arm's numbers.
    sign: -1 or 1.
    chosen: the picked alpha; 0 when no other alpha was better.
    outward: the side's alphas, nearest to zero first.
    breaks: capability tasks out of tolerance at the nearest alpha that has any.
  """
  side = 'negative' if sign < 0 else 'positive'
  # A sweep may have alphas of one sign only.
  if not outward:
    return f'No {side} alpha was swept.'
  # At alpha 0 nothing is edited, so there is no cost and no next alpha to tell of.
  if chosen == 0:
    return f'No {side} alpha is picked: ' + _nothing_found(numbers, sign, outward, breaks)
  base = numbers.behaviour_at(0.0).mean
  moved = numbers.behaviour_at(chosen).mean
  picked = (
    f'Picked alpha {format_alpha(chosen)}: {subject(numbers)} goes from {base:.2f} to {moved:.2f} '
    f'and {_kept(numbers, chosen)}.'
  )
  # The pick, then what speaks against going further, then what the numbers leave open.
  sentences = [
    picked,
    _next(numbers, chosen, outward),
    _break(chosen, outward, breaks),
    _doubt(numbers, chosen),
    _thinned(numbers, chosen),
  ]
  return ' '.join(sentence for sentence in sentences if sentence)


def _nothing_found(
  numbers: Comparison, sign: int, outward: Sequence[float], breaks: Sequence[TaskChange]
) -> str:
  """Why the base itself is the best on this side."""
  # Three reasons: no alpha gains anything, every alpha breaks something, or results are missing.
  admissible = [alpha for alpha in outward if numbers.admissible(alpha)]
  if admissible:
    best = max(admissible, key=lambda alpha: numbers.gain(sign, alpha))
    base = numbers.behaviour_at(0.0).mean
    moved = numbers.behaviour_at(best).mean
    verb = 'lowers' if sign < 0 else 'raises'
    return (
      f'none that keeps capability within {numbers.tolerance:g} of the base {verb} '
      f'{subject(numbers)} ({base:.2f} at alpha 0, {moved:.2f} at alpha {format_alpha(best)}).'
    )
  if breaks:
    return (
      f'none measured whole keeps capability within {numbers.tolerance:g} of the base; '
      f'already {breaks[0]}.'
    )
  return (
    f'results are missing at each of them ({_join(numbers.unmeasured(outward[0]))} at the first).'
  )


def _kept(numbers: Comparison, alpha: float) -> str:
  """How well capability is kept at `alpha`."""
  worst = numbers.worst(alpha)
  if worst is None:
    return 'no capability task was measured, so what it costs is unknown'
  if abs(worst.difference) <= ROUNDING:
    return 'no capability task changes'
  return (
    f'capability stays within {numbers.tolerance:g} of the base (most changed: {worst.task}, '
    f'{worst.base:.2f} to {worst.mean:.2f})'
  )


def _next(numbers: Comparison, chosen: float, outward: Sequence[float]) -> str:
  """The reason to stop before the next alpha outward."""
  further = [alpha for alpha in outward if abs(alpha) > abs(chosen)]
  if not further:
    return 'It is the last alpha of the grid on this side.'
  following = further[0]
  missing = numbers.unmeasured(following)
  # A break is the stronger reason, so it is named before a missing result. The largest change
  # first: the sentence has room for one.
  broken = sorted(numbers.broken(following), key=lambda change: -abs(change.difference))
  if broken:
    others = f' (and {len(broken) - 1} more out of tolerance)' if len(broken) > 1 else ''
    return f'The next one is too far: {broken[0]}{others}.'
  if missing:
    return f'At the next one, {format_alpha(following)}, {_join(missing)} has no result.'
  moved = numbers.behaviour_at(following).mean
  return (
    f'Going on to {format_alpha(following)} gains nothing: {subject(numbers)} is {moved:.2f} there.'
  )


def _break(chosen: float, outward: Sequence[float], breaks: Sequence[TaskChange]) -> str:
  """Where capability first leaves the tolerance."""
  # The end of the grid is told, because nothing is known beyond.
  if not breaks:
    return f'Nothing breaks on this side, up to {format_alpha(outward[-1])}.'
  if abs(breaks[0].alpha) < abs(chosen):
    return f'Beware: nearer to zero, {breaks[0]}, so the picked alpha lies beyond a break.'
  # The sentence about the next alpha has named a break right there.
  following = next(alpha for alpha in outward if abs(alpha) > abs(chosen))
  return '' if breaks[0].alpha == following else f'The first break: {breaks[0]}.'


def _doubt(numbers: Comparison, alpha: float) -> str:
  """The doubt that standard errors leave about the capability at `alpha`."""

  # Two standard errors either way make about 95%.
  def reach(change: TaskChange) -> float:
    return abs(change.difference) + 2 * change.sem

  limit = numbers.tolerance + ROUNDING
  unsure = [change for change in numbers.changes(alpha) if reach(change) > limit]
  if not unsure:
    return ''
  widest = max(unsure, key=reach)
  return (
    f'With n = {numbers.cell(widest.task, alpha).n}, the change in {widest.task} is only known to '
    f'±{2 * widest.sem:.2f}, so more than {numbers.tolerance:g} is not excluded.'
  )


def _thinned(numbers: Comparison, alpha: float) -> str:
  """Tasks with fewer examples at `alpha` than at the base."""
  # The answers that could still be judged may be the easy ones.
  thinned = []
  for task in numbers.behaviour + numbers.capability:
    n = numbers.cell(task, alpha).n
    base = numbers.cell(task, 0.0).n
    if n < base:
      thinned.append(f'{task} ({n} of {base})')
  if not thinned:
    return ''
  return f'Fewer examples could be judged there than at the base: {_join(thinned)}.'


def subject(numbers: Comparison) -> str:
  """The behaviour moved by the pick, as the subject of a sentence."""
  names = numbers.behaviour
  if len(names) == 1:
    return names[0]
  # Two names can still be read; more would drown the sentence.
  if len(names) <= 2:
    return f'the mean of {_join(names)}'
  return f'the mean of the {len(names)} behaviour tasks'


def _join(names: Sequence[str]) -> str:
  """Names as a sentence lists them.

  >>> _join(['a', 'b', 'c'])
  'a, b and c'
  """
  if len(names) < 2:
    return ''.join(names)
  return f'{", ".join(names[:-1])} and {names[-1]}'
