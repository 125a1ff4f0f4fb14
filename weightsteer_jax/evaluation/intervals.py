"""Means of clustered values, their 95 % intervals, and the change from one mean to another.

A value's cluster is the question behind it: answers to one question are not independent, and the
same question asked at two strengths is a pair. Everything here is arithmetic on (cluster, value)
pairs, in float64.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

# Share of repeated studies whose interval holds the true number.
LEVEL = 0.95
# The quantile that both ends of an interval are at.
_UPPER = (1 + LEVEL) / 2


@dataclasses.dataclass(frozen=True)
class Estimate:
  """The mean of clustered values.

  Attributes:
    mean: None without values.
    sem: the mean's standard error; None with fewer than two clusters.
    low, high: ends of the 95 % interval; None where it is not known.
    values: number of values.
    influence: {cluster: its residuals' sum by the number of values}, the cluster's share in the
      mean's error.
  """

  mean: float | None = None
  sem: float | None = None
  low: float | None = None
  high: float | None = None
  values: int = 0
  influence: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  def clusters(self) -> int:
    """Number of clusters."""
    return len(self.influence)


@dataclasses.dataclass(frozen=True)
class Change:
  """How far a mean lies from another one, over the same questions.

  Attributes:
    mean: the one less the other; None where either is not known.
    sem: the paired standard error; None with fewer than two clusters.
    low, high: ends of the 95 % interval; None where it is not known.
  """

  mean: float | None = None
  sem: float | None = None
  low: float | None = None
  high: float | None = None


def clustered_mean(pairs: Sequence[tuple[str, float]]) -> tuple[float | None, float | None, int]:
  """(mean, its standard error, number of clusters) of (cluster, value) pairs.

  >>> clustered_mean([('a', 1.0), ('a', 1.0), ('b', 0.0), ('b', 0.0)])
  (0.5, 0.5, 2)
  """
  found = estimate(pairs)
  return found.mean, found.sem, found.clusters


def estimate(
  pairs: Sequence[tuple[str, float]], *, limits: tuple[float, float] | None = None
) -> Estimate:
  """The mean of (cluster, value) pairs with its standard error and 95 % interval.

  With G clusters, residual sums e_g and m values in all, the variance of the mean is
  G / (G - 1) * sum(e_g^2) / m^2. If every cluster holds one value, that is the usual one.

  The interval is Wilson's (see `wilson`) where all values stand at a limit, as yes and no do, and
  otherwise mean ± t * sem with G - 1 degrees of freedom.

  Args:
    limits: the least and the largest value there can be; None for values without limits.

  Source: cluster-robust variance of a mean (Liang and Zeger 1986), with the G / (G - 1) correction;
  for evaluations, arXiv 2411.00640, section 2.2.
  """
  if not pairs:
    return Estimate()
  values = np.array([value for _, value in pairs], np.float64)
  # `clusters` numbers each pair's cluster.
  names, clusters = np.unique([name for name, _ in pairs], return_inverse=True)
  mean = float(values.mean())
  # Residuals are summed before squaring, so those of one question may cancel or add up.
  shares = np.bincount(clusters, weights=values - mean) / len(values)
  influence = {str(name): float(share) for name, share in zip(names, shares)}
  sem = _error(shares)
  low = None
  high = None
  if limits is not None and np.isin(values, limits).all():
    low, high = _of_yes_or_no(mean, sem, len(values), len(names), limits)
  elif sem is not None:
    reach = _t(len(names) - 1) * sem
    low = mean - reach
    high = mean + reach
  return Estimate(mean, sem, low, high, len(values), influence)


def _of_yes_or_no(
  mean: float, sem: float | None, values: int, clusters: int, limits: tuple[float, float]
) -> tuple[float, float]:
  """The interval of a mean of values that all stand at one limit or the other."""
  least, largest = limits
  scale = largest - least
  share = (mean - least) / scale
  count = effective_count(share, None if sem is None else sem / scale, values, clusters)
  low, high = wilson(share, count)
  return least + scale * low, least + scale * high


def wilson(share: float, count: float) -> tuple[float, float]:
  """The ends of Wilson's 95 % interval for a share of `count` independent yes-or-no answers.

  With z = 1.96 the ends are (p + z^2 / 2n ± z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
  Unlike p ± z * sem, the interval of 0 of n has a width, and never leaves 0 to 1.

  >>> [round(end, 4) for end in wilson(0.0, 10)]
  [0.0, 0.2775]

  Source: Wilson 1927 (J. Am. Stat. Assoc. 22, 209).
  """
  z = float(special.ndtri(_UPPER))
  # z^2 / n, by which the interval is drawn towards one half.
  pull = z**2 / count
  width = 1 + pull
  middle = (share + pull / 2) / width
  variance = share * (1 - share) / count + pull / (4 * count)
  reach = z * math.sqrt(variance) / width
  # At an end of the scale the interval's end is that end, but for rounding.
  low = 0.0 if share == 0 else max(0.0, middle - reach)
  high = 1.0 if share == 1 else min(1.0, middle + reach)
  return low, high


def effective_count(share: float, sem: float | None, values: int, clusters: int) -> float:
  """How many independent answers tell as much about a share as these clustered ones.

  The number of values m by the design effect, which is sem^2 over the variance of as many
  independent answers, p (1 - p) / (m - 1); times (t(m - 1) / t(G - 1))^2, because the design effect
  is known from G clusters only; never more than m. Where all answers are alike (p is 0 or 1) there
  is no design effect to be seen, and G is taken: answers to one question are then no more than one.

  Source: Kish, Survey Sampling (1965), 8.2; Korn and Graubard 1998 (Survey Methodology 24, 193).
  With Wilson's interval: Franco, Little, Louis and Slud 2019 (J. Surv. Stat. Methodol. 7, 334).

  >>> effective_count(0.5, 0.5, 4, 2) < 2, effective_count(0.0, 0.0, 100, 47)
  (True, 47.0)
  """
  spread = share * (1 - share)
  if spread <= 0 or clusters < 2 or sem is None:
    return float(clusters)
  # Answers of a question that cancel each other are not taken to tell more than independent ones.
  design_effect = max(1.0, sem**2 * (values - 1) / spread)
  freedom = (_t(values - 1) / _t(clusters - 1)) ** 2
  return min(float(values), values / design_effect * freedom)


def change(after: Estimate, before: Estimate) -> Change:
  """How far one mean lies from another, with the errors of one question as a pair.

  With a_g and b_g the influences of cluster g, the variance of the change is
  G / (G - 1) * sum((a_g - b_g)^2): what moves a question at both strengths alike cancels. The
  interval starts from those of both means, which are unequal at the ends of a scale: the lower end
  is d - sqrt(x^2 - 2 r x y + y^2) with x = after.mean - after.low, y = before.high - before.mean
  and r the correlation of the two means; the upper end likewise. Where both are mean ± t * sem, it
  is d ± t times the paired error.

  Source: Newcombe 1998 (Stat. Med. 17, 2635), method 8; Zou and Donner 2008 (Stat. Med. 27, 1693).
  """
  if after.mean is None or before.mean is None:
    return Change()
  # A question that is missing on one side has no share in that side's error.
  names = sorted({*after.influence, *before.influence})
  a = np.array([after.influence.get(name, 0.0) for name in names])
  b = np.array([before.influence.get(name, 0.0) for name in names])
  difference = after.mean - before.mean
  sem = _error(a - b)
  if sem is None or after.low is None or after.high is None:
    return Change(difference, sem)
  if before.low is None or before.high is None:
    return Change(difference, sem)
  correlation = _correlation(a, b)
  down = _apart(after.mean - after.low, before.high - before.mean, correlation)
  up = _apart(after.high - after.mean, before.mean - before.low, correlation)
  return Change(difference, sem, difference - down, difference + up)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
  """The correlation of two means whose clusters have these shares in the errors."""
  lengths = math.sqrt(float(np.sum(a**2)) * float(np.sum(b**2)))
  # Without variation on a side nothing is known of a correlation.
  return float(np.sum(a * b)) / lengths if lengths else 0.0


def _apart(x: float, y: float, correlation: float) -> float:
  """The length of the difference of two errors of length x and y."""
  squared = x**2 - 2 * correlation * x * y + y**2
  # At least 0, but for rounding.
  return math.sqrt(max(0.0, squared))


def _error(shares: np.ndarray) -> float | None:
  """The standard error of a mean whose clusters have these shares in its error."""
  count = len(shares)
  if count < 2:
    return None
  return math.sqrt(count / (count - 1) * float(np.sum(shares**2)))


@functools.cache
def _t(freedom: int) -> float:
  """Student's t for a 95 % interval."""
  return float(special.stdtrit(freedom, _UPPER))
