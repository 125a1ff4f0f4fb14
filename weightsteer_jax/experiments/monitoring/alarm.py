"""When a cosine is too large to be chance: a threshold from controls, with the rate of false alarms
it stands for.

The controls of a family are treated like the direction: each has a largest absolute cosine with the
updates of the run. If the direction were one more of them, in no way special, each order of these
largest values would be equally likely, and the direction's would exceed the k-th smallest of n with
probability at most 1 - k / (n + 1). That is of a whole run, however many steps are looked at. Few
controls can only say little: one gives a rate of 1/2, 99 of 1/100.

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
  """The cosine above which a family of controls calls it an alarm.

  Attributes:
    cosine: the threshold. controls: how many it comes from.
    false_alarm_rate: probability that a direction like the controls exceeds it at any step of a
      run, at most.
  """

  cosine: float
  controls: int
  false_alarm_rate: float


@dataclasses.dataclass(frozen=True)
class Alarm:
  """What became of one direction in a run.

  Attributes:
    threshold: the largest of the families' thresholds; None without controls.
    families: {family: Threshold}. step: the first step beyond the threshold; None if there is none.
    peak, peak_step: the largest cosine, and its step. p_values: {family: share of its controls, the
    direction among
      them, whose largest absolute cosine is as large as the peak}.
  """

  threshold: float | None
  families: Mapping[str, Threshold]
  step: int | None
  peak: float | None
  peak_step: int | None
  p_values: Mapping[str, float]

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def threshold(largest: Sequence[float], rate: float) -> Threshold:
  """The smallest threshold whose false alarm rate is `rate` or less; if there are too few controls,
  their maximum.

  >>> threshold([0.1, 0.3, 0.2], 0.5)
  Threshold(cosine=0.2, controls=3, false_alarm_rate=0.5)
  >>> threshold([0.1, 0.3, 0.2], 0.01)
  Threshold(cosine=0.3, controls=3, false_alarm_rate=0.25)

  Args:
    largest: of each control, its largest absolute cosine over the run.

  Raises:
    InputError: a rate that is no probability between 0 and 1.
  """
  check_rate(rate)
  ordered, n = sorted(map(float, largest)), len(largest)
  k = min(math.ceil((1 - rate) * (n + 1) - 1e-9), n)
  return Threshold(ordered[k - 1], n, 1 - k / (n + 1))


def check_rate(rate: float) -> None:
  """Nothing, if it is a rate of false alarms that can be asked for.

  Raises:
    InputError: it is no probability between 0 and 1.
  """
  if not 0 < rate < 1:
    raise InputError(f'the false alarm rate is {rate}, expected a probability between 0 and 1')


def alarm(
  cosines: Mapping[int, float | None], families: Mapping[str, np.ndarray], *, rate: float
) -> Alarm:
  """The alarm of a direction with these cosines, {step: cosine}, from controls' cosines {family:
  [steps, controls]}.

  It goes off at the first step whose cosine, with its sign, is above the threshold of every family.
  """
  largest = {
    name: np.nan_to_num(np.abs(found)).max(axis=0, initial=0.0)
    for name, found in families.items()
    if found.shape[1]
  }  # NaN: the update was zero.
  thresholds = {name: threshold(values, rate) for name, values in largest.items()}
  limit = max((found.cosine for found in thresholds.values()), default=None)
  known = {step: cosine for step, cosine in sorted(cosines.items()) if cosine is not None}
  peak_step = max(known, key=known.get, default=None)
  peak = None if peak_step is None else known[peak_step]
  beyond = [step for step, cosine in known.items() if limit is not None and cosine > limit]
  p_values = {
    name: (1 + int(np.sum(values >= peak))) / (1 + len(values))
    for name, values in largest.items()
    if peak is not None
  }
  return Alarm(limit, thresholds, beyond[0] if beyond else None, peak, peak_step, p_values)
