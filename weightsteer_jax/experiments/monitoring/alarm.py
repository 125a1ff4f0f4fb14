"""When a cosine is too large to be chance: a threshold from controls.

The controls of a family are treated like the direction: each has a largest absolute cosine with the
updates of the run. If the direction were one more control, in no way special, each order of these
largest values would be equally likely, and the direction's value would exceed the k-th smallest of
n with probability at most 1 - k / (n + 1). The probability is of a whole run, however many steps
are looked at. Few controls say little: 1 control gives a rate of 1/2, 99 controls give 1/100.

Source: rank tests by exchangeability, as in conformal prediction (Vovk, Gammerman and Shafer,
Algorithmic Learning in a Random World, 2005, section 2.2) and permutation tests (North, Curtis and
Sham, Am. J. Hum. Genet. 71 (2002), 439).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class Threshold:
  """The cosine above which a family of controls calls an alarm.

  Attributes:
    cosine: the threshold.
    controls: number of controls behind the threshold.
    false_alarm_rate: largest probability that a direction like the controls exceeds the threshold
      at any step of a run.
  """

  cosine: float
  controls: int
  false_alarm_rate: float


@dataclasses.dataclass(frozen=True)
class Alarm:
  """The alarm of one direction in a run.

  Attributes:
    threshold: the largest of the families' thresholds; None without controls.
    families: {family: Threshold}.
    step: the first step beyond the threshold; None if no step is.
    peak: the largest cosine; None if no step has a cosine.
    peak_step: the step of the peak.
    p_values: {family: share of controls whose largest absolute cosine is as large as the peak},
      with the direction counted among the controls.
  """

  threshold: float | None
  families: Mapping[str, Threshold]
  step: int | None
  peak: float | None
  peak_step: int | None
  p_values: Mapping[str, float]

  def to_json(self) -> dict[str, Any]:
    """Plain values under the attributes' names."""
    return dataclasses.asdict(self)


def threshold(largest: Sequence[float] | np.ndarray, rate: float) -> Threshold:
  """The smallest threshold with a false alarm rate of `rate` or less.

  With too few controls for the rate, the threshold is the largest of the controls' values.

  >>> threshold([0.1, 0.3, 0.2], 0.5)
  Threshold(cosine=0.2, controls=3, false_alarm_rate=0.5)
  >>> threshold([0.1, 0.3, 0.2], 0.01)
  Threshold(cosine=0.3, controls=3, false_alarm_rate=0.25)

  Args:
    largest: the largest absolute cosine of each control over the run.
    rate: probability of a false alarm in a run.

  Raises:
    InputError: if the rate is no probability between 0 and 1.
  """
  check_rate(rate)
  n = len(largest)
  # Plain numbers, which JSON can hold.
  ordered = sorted(float(value) for value in largest)
  # The smallest k with 1 - k / (n + 1) <= rate; 1e-9 keeps rounding from asking for one more.
  k = math.ceil((1 - rate) * (n + 1) - 1e-9)
  # Beyond n there is no control to exceed: the rate reached is then larger than the rate asked for.
  k = min(k, n)
  # Lists count from 0.
  cosine = ordered[k - 1]
  reached_rate = 1 - k / (n + 1)
  return Threshold(cosine=cosine, controls=n, false_alarm_rate=reached_rate)


def check_rate(rate: float) -> None:
  """Raises InputError if a false alarm rate is no probability between 0 and 1."""
  # At 0 no number of controls would do; at 1 every step would be an alarm.
  if not 0 < rate < 1:
    raise InputError(f'the false alarm rate is {rate}, expected a probability between 0 and 1')


def alarm(
  cosines: Mapping[int, float | None], families: Mapping[str, np.ndarray], *, rate: float
) -> Alarm:
  """The alarm of a direction, from cosines and controls.

  The alarm goes off at the first step whose cosine, with its sign, is above the threshold of every
  family.

  Args:
    cosines: {step: cosine of the update with the direction}; None where the update was zero.
    families: {family: cosines of the controls [steps, controls]}; NaN where the update was zero.
    rate: false alarm rate of each family's threshold.

  Raises:
    InputError: if the rate is no probability between 0 and 1.
  """
  # In order of steps: the alarm goes off at the first, and of equal peaks the first counts.
  known = {step: cosine for step, cosine in sorted(cosines.items()) if cosine is not None}
  peak_step = None
  peak = None
  if known:
    peak_step = max(known, key=known.__getitem__)
    peak = known[peak_step]
  thresholds = {}
  p_values = {}
  for name, controls in families.items():
    if controls.shape[1] == 0:
      continue
    # A zero update has no cosine, so that step is never the largest.
    absolute = np.nan_to_num(np.abs(controls))
    largest = absolute.max(axis=0, initial=0.0)
    thresholds[name] = threshold(largest, rate)
    if peak is not None:
      # The direction counts as one of the controls, above and below the line.
      as_large = int(np.sum(largest >= peak))
      p_values[name] = (1 + as_large) / (1 + len(largest))
  limit = None
  alarm_step = None
  if thresholds:
    # Above the largest threshold is above the threshold of every family.
    limit = max(of_family.cosine for of_family in thresholds.values())
    beyond = [step for step, cosine in known.items() if cosine > limit]
    if beyond:
      alarm_step = beyond[0]
  return Alarm(
    threshold=limit,
    families=thresholds,
    step=alarm_step,
    peak=peak,
    peak_step=peak_step,
    p_values=p_values,
  )
