"""The strength that spends a budget: bracketed by extrapolation, then closed in on.

Near 0 a divergence grows with the square of the strength, and further out faster or slower; on a
log-log scale it is nearly straight. Each step interpolates there, and halves the bracket where that
gains too little (the Illinois rule's purpose, by a plain bisection).
"""

import dataclasses
import math
from collections.abc import Callable

# Evaluations for one direction, side and budget, at most.
MOST = 19
# A strength is found once its cost is within this share of the budget.
CLOSE = 0.01
# The first strength that is tried, and the largest.
FIRST, LARGEST = 0.1, 64.0
# A step of the extrapolation is no longer than so many times.
LEAP = 8.0


@dataclasses.dataclass(frozen=True)
class Found:
  """What came of a search.

  Attributes:
    alpha: the strength whose cost is nearest to the budget.
    cost: at the strength.
    error: the cost's standard error; None where it is not known.
    evaluations: how often a cost was computed for this budget.
    is_met: whether the cost is within CLOSE of the budget.
  """

  alpha: float
  cost: float
  error: float | None
  evaluations: int
  is_met: bool


def find(
  cost: Callable[[float], tuple[float, float | None]],
  budget: float,
  known: dict[float, tuple[float, float | None]],
) -> Found:
  """The strength above 0 whose cost is the budget.

  Args:
    cost: strength -> (cost, standard error); not finite where the model breaks.
    known: costs computed before, added to.
  """
  evaluations = 0
  reaches = 0
  width = math.inf

  def at(alpha: float) -> float:
    nonlocal evaluations
    if alpha not in known:
      known[alpha] = cost(alpha)
      evaluations += 1
    return known[alpha][0]

  if not known:
    at(FIRST)
  while evaluations < MOST:
    below = [alpha for alpha in known if known[alpha][0] <= budget]
    above = [alpha for alpha in known if not known[alpha][0] <= budget]
    # Where costs rise and fall again, the first crossing counts.
    high = min(above, default=math.inf)
    low = max((alpha for alpha in below if alpha < high), default=0.0)
    nearest = _nearest(known, budget)
    if abs(known[nearest][0] - budget) <= CLOSE * budget:
      break
    if not above:
      if low >= LARGEST:
        break
      guess = low * math.sqrt(budget / known[low][0]) if known[low][0] > 0 else LEAP * low
      # Where costs level off under the budget, guesses are too short again and again.
      least = 1.05 * 1.5**reaches * low
      reaches += 1
      at(min(max(guess, least), LEAP * low, LARGEST))
      continue
    if high - low <= 1e-6 * high:
      break
    # Interpolation that did not halve the bracket may crawl along one end: then halve it.
    crawls = high - low > 0.5 * width
    width = high - low
    at(0.5 * (low + high) if crawls else _between(low, high, known, budget))
  alpha = _nearest(known, budget)
  value, error = known[alpha]
  return Found(alpha, value, error, evaluations, abs(value - budget) <= CLOSE * budget)


def _nearest(known: dict[float, tuple[float, float | None]], budget: float) -> float:
  """The strength whose cost is nearest to the budget; finite costs first, then small strengths."""
  return min(
    known,
    key=lambda alpha: (
      abs(known[alpha][0] - budget) if math.isfinite(known[alpha][0]) else math.inf,
      alpha,
    ),
  )


def _between(
  low: float, high: float, known: dict[float, tuple[float, float | None]], budget: float
) -> float:
  """A strength inside a bracket, where a straight line on a log-log scale meets the budget."""
  middle = 0.5 * (low + high)
  upper = known[high][0]
  if not math.isfinite(upper):
    return middle
  if low == 0:
    # Through zero, as the square.
    guess = high * math.sqrt(budget / upper)
  else:
    lower = known[low][0]
    if not 0 < lower < upper:
      return middle
    share = math.log(budget / lower) / math.log(upper / lower)
    guess = low * (high / low) ** share
  # A guess at the edge of the bracket would leave the rest of it for long.
  margin = 0.05 * (high - low)
  return min(max(guess, low + margin), high - margin)
