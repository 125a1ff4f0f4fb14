"""Thresholds by hand, and the rate of false alarms by simulation."""

import numpy as np
import pytest

from weightsteer_jax.experiments.monitoring import alarm
from weightsteer_jax.runtime.errors import InputError


def test_an_alarm_by_hand():
  """Four controls with largest |cosine| 0.1, 0.2, 0.3, 0.4: at a rate of 0.4 the third counts (1 -
  3/5)."""
  random = np.array([[0.1, -0.2, 0.05, 0.0], [0.0, 0.1, -0.3, 0.4]])
  found = alarm.alarm({10: 0.05, 20: 0.32}, {'random': random}, rate=0.4)
  assert found.threshold == 0.3 and found.families['random'].false_alarm_rate == pytest.approx(0.4)
  assert (found.step, found.peak, found.peak_step) == (20, 0.32, 20)
  assert found.p_values == {'random': 2 / 5}


def test_every_family_must_be_exceeded_and_the_sign_counts():
  families = {'random': np.array([[0.1], [0.1]]), 'given': np.array([[0.2], [-0.5]])}
  found = alarm.alarm({1: 0.3, 2: 0.45, 3: -0.9, 4: 0.6}, families, rate=0.01)
  assert found.threshold == 0.5 and found.step == 4
  assert found.families['given'].false_alarm_rate == 0.5
  assert alarm.alarm({1: -0.9}, families, rate=0.01).step is None


def test_without_controls_or_changes_there_is_no_alarm():
  none = {'random': np.zeros((2, 0)), 'given': np.zeros((2, 0))}
  found = alarm.alarm({1: 0.3, 2: None}, none, rate=0.01)
  assert found.threshold is None and found.step is None and found.peak == 0.3
  nothing = alarm.alarm({1: None}, {'random': np.full((1, 3), np.nan)}, rate=0.01)
  assert (nothing.step, nothing.peak, nothing.p_values) == (None, None, {})


@pytest.mark.parametrize('rate, controls', [(0.05, 99), (0.1, 30), (0.01, 9)])
def test_the_rate_of_false_alarms_is_the_one_that_is_told(rate, controls):
  """A direction like its controls, over runs of correlated steps; alarms are one-sided, so half as
  often at most."""
  random = np.random.default_rng(0)
  alarms, told = 0, 0.0
  for _ in range(3000):
    walks = np.cumsum(random.standard_normal((6, controls + 1)), axis=0)
    found = alarm.alarm(dict(enumerate(walks[:, 0])), {'random': walks[:, 1:]}, rate=rate)
    alarms, told = alarms + (found.step is not None), found.families['random'].false_alarm_rate
  assert told <= max(rate, 1 / (controls + 1)) + 1e-12
  assert alarms / 3000 <= told
  assert alarms / 3000 == pytest.approx(told / 2, abs=4 * np.sqrt(told / 2 / 3000))


def test_impossible_rates_are_refused():
  for rate in (0.0, 1.0, -1.0):
    with pytest.raises(InputError, match='false alarm rate'):
      alarm.threshold([0.1], rate)
