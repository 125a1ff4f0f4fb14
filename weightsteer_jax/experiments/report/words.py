"""The operating point in plain sentences.

The pick, the cost, the reason to stop before the next alpha, and open doubts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.experiments.report.comparison import (
  ROUNDING,
  Comparison,
  Rule,
  TaskChange,
)
from weightsteer_jax.experiments.report.study import format_alpha


def kept(rule: Rule) -> str:
  """What holds at a picked alpha, as the end of a sentence.

  >>> kept(Rule())
  'no capability loses more than 0.05'
  """
  surely = ' (95 %)' if rule.evidence == 'interval' else ''
  if rule.counts == 'loss':
    return f'no capability loses more than {rule.tolerance:g}{surely}'
  return f'every capability stays within {rule.tolerance:g} of the base{surely}'


def mark(rule: Rule) -> str:
  """What the mark of a broken capability means, for a legend."""
  if rule.counts == 'loss':
    return f'capability lost by more than {rule.tolerance:g}'
  return f'capability more than {rule.tolerance:g} from the base'


def shaded(rule: Rule) -> str:
  """What the shaded band of a capability means, for a legend."""
  if rule.counts == 'loss':
    return f'at most {rule.tolerance:g} lost'
  return f'within {rule.tolerance:g} of the base'


def bars(arms: Sequence[Comparison]) -> str:
  """What the bars around the means are, for a legend."""
  for numbers in arms:
    for by_alpha in numbers.table.values():
      if any(not math.isnan(cell.low) for cell in by_alpha.values()):
        return '95 % interval'
  # Results of earlier versions.
  return '± one standard error'


def sweeps(results: Sequence[Mapping[str, Any]]) -> str:
  """Which strengths come from which sweep, in a sentence; '' for those of a single one."""
  # number -> (when it began, strengths).
  found: dict[int, tuple[str, set[float]]] = {}
  for row in results:
    # Results of earlier versions do not say.
    if row.get('grid'):
      _, alphas = found.setdefault(int(row['grid']), (str(row.get('swept') or ''), set()))
      alphas.add(float(row['alpha']))
  if len(found) < 2:
    return ''
  parts = []
  for number, (when, alphas) in sorted(found.items()):
    strengths = ', '.join(format_alpha(alpha) for alpha in sorted(alphas))
    parts.append(f'sweep {number} ({when[:16].replace("T", " ")} UTC) at {strengths}')
  return f'From {len(found)} sweeps of this workdir: {"; ".join(parts)}.'


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
    breaks: capability tasks beyond the tolerance at the nearest alpha that has any.
  """
  side = 'negative' if sign < 0 else 'positive'
  # A sweep may have alphas of one sign only.
  if not outward:
    return f'No {side} alpha was swept.'
  # At alpha 0 nothing is edited, so there is no cost and no next alpha to tell of.
  if chosen == 0:
    return f'No {side} alpha is picked: ' + _nothing_found(numbers, sign, outward, breaks)
  base = numbers.behaviour_at(0.0).mean
  moved = numbers.behaviour_at(chosen)
  # Known where results have intervals.
  known = ''
  if not math.isnan(moved.change_low):
    known = f' (by {moved.change:+.2f}, 95 %: {moved.change_low:+.2f} to {moved.change_high:+.2f})'
  picked = (
    f'Picked alpha {format_alpha(chosen)}: {subject(numbers)} goes from {base:.2f} to '
    f'{moved.mean:.2f}{known} and {_kept(numbers, chosen)}.'
  )
  # The pick, then what speaks against going further, then what the numbers leave open.
  sentences = [
    picked,
    _next(numbers, chosen, outward),
    _break(chosen, outward, breaks),
    _doubt(numbers, chosen),
    _still(numbers, chosen),
    _thinned(numbers, chosen),
    _unread(numbers, chosen),
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
      f'none at which {kept(numbers.rule)} {verb} {subject(numbers)} ({base:.2f} at alpha 0, '
      f'{moved:.2f} at alpha {format_alpha(best)}).'
    )
  if breaks and breaks[0].alpha == outward[0]:
    return f'at none measured whole it holds that {kept(numbers.rule)}; already {breaks[0]}.'
  unsure = numbers.unsure(outward[0])
  if unsure and numbers.rule.evidence == 'interval':
    return (
      f'at none it is sure that {kept(numbers.rule)}; already at the first, '
      f'{format_alpha(outward[0])}, {unsure[0].task} may ({unsure[0].interval}).'
    )
  if breaks:
    return f'at none measured whole it holds that {kept(numbers.rule)}; {breaks[0]}.'
  return (
    f'results are missing at each of them ({_join(numbers.unmeasured(outward[0]))} at the first).'
  )


def _kept(numbers: Comparison, alpha: float) -> str:
  """How well capability is kept at `alpha`."""
  worst = numbers.worst(alpha)
  if worst is None:
    return 'no capability task was measured, so what it costs is unknown'
  if all(abs(change.difference) <= ROUNDING for change in numbers.changes(alpha)):
    return f'no capability task changes{_known(worst)}'
  counts = numbers.rule.counts
  word = 'most lost' if counts == 'loss' else 'most changed'
  if worst.cost(counts) <= ROUNDING:
    word = 'least gained'
  return (
    f'{kept(numbers.rule)} ({word}: {worst.task}, {worst.base:.2f} to {worst.mean:.2f}'
    f'{_known(worst, ", ", "")})'
  )


def _known(change: TaskChange, before: str = ' (', after: str = ')') -> str:
  """How well a change is known, between two signs; '' where nothing is known of it."""
  return f'{before}{change.interval}{after}' if change.interval else ''


def _next(numbers: Comparison, chosen: float, outward: Sequence[float]) -> str:
  """The reason to stop before the next alpha outward."""
  further = [alpha for alpha in outward if abs(alpha) > abs(chosen)]
  if not further:
    return 'It is the last alpha of the grid on this side.'
  following = further[0]
  missing = numbers.unmeasured(following)
  # A break is the stronger reason, so it is named before a missing result. The largest change
  # first: the sentence has room for one.
  broken = sorted(numbers.broken(following), key=lambda change: -change.cost(numbers.rule.counts))
  if broken:
    others = f' (and {len(broken) - 1} more beyond the tolerance)' if len(broken) > 1 else ''
    return f'The next one is too far: {broken[0]}{others}.'
  unsure = numbers.unsure(following)
  if unsure and numbers.rule.evidence == 'interval' and not missing:
    return (
      f'At the next one, {format_alpha(following)}, more is not excluded: {unsure[0].task} '
      f'({unsure[0].interval}).'
    )
  if missing:
    return f'At the next one, {format_alpha(following)}, {_join(missing)} has no result.'
  moved = numbers.behaviour_at(following).mean
  return (
    f'Going on to {format_alpha(following)} gains nothing: {subject(numbers)} is {moved:.2f} there.'
  )


def _break(chosen: float, outward: Sequence[float], breaks: Sequence[TaskChange]) -> str:
  """Where a capability first leaves the tolerance."""
  # The end of the grid is told, because nothing is known beyond.
  if not breaks:
    return f'Nothing breaks on this side, up to {format_alpha(outward[-1])}.'
  if abs(breaks[0].alpha) < abs(chosen):
    return f'Beware: nearer to zero, {breaks[0]}, so the picked alpha lies beyond a break.'
  # The sentence about the next alpha has named a break right there.
  following = next(alpha for alpha in outward if abs(alpha) > abs(chosen))
  return '' if breaks[0].alpha == following else f'The first break: {breaks[0]}.'


def _doubt(numbers: Comparison, alpha: float) -> str:
  """The doubt that the intervals leave about the capability at `alpha`."""
  unsure = numbers.unsure(alpha)
  if not unsure:
    return ''
  rule = numbers.rule
  widest = max(unsure, key=lambda change: change.most(rule.counts))
  what = 'a loss' if rule.counts == 'loss' else 'a change'
  return (
    f'With {numbers.cell(widest.task, alpha).counted}, the change in {widest.task} is only known '
    f'to lie in {widest.low:+.2f} to {widest.high:+.2f} (95 %), so {what} of more than '
    f'{rule.tolerance:g} is not excluded.'
  )


def _still(numbers: Comparison, alpha: float) -> str:
  """The doubt whether the behaviour moves at all at `alpha`."""
  moved = numbers.behaviour_at(alpha)
  # Where nothing is known, comparisons with NaN are false.
  if moved.change_low <= 0 <= moved.change_high:
    return f'That {subject(numbers)} moves at all is not certain.'
  return ''


def _thinned(numbers: Comparison, alpha: float) -> str:
  """Tasks with fewer answers behind their mean at `alpha` than at the base."""
  # The answers that could still be judged may be the easy ones.
  thinned = []
  for task in numbers.behaviour + numbers.capability:
    here = numbers.cell(task, alpha)
    base = numbers.cell(task, 0.0)
    if here.answers < base.answers or here.n < base.n:
      thinned.append(f'{task} ({here.counted}, at the base {base.counted})')
  if not thinned:
    return ''
  return f'Fewer answers count there than at the base: {_join(thinned)}.'


def _unread(numbers: Comparison, alpha: float) -> str:
  """Tasks of which most answers at `alpha` could not be read."""
  few = []
  for task in numbers.behaviour + numbers.capability:
    cell = numbers.cell(task, alpha)
    if cell.few:
      few.append(f'{task} ({cell.unreadable} of {cell.asked} could not be read)')
  return f'Beware: most answers say nothing there: {_join(few)}.' if few else ''


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
