"""AUROC by hand, against scipy, and its uncertainty."""

import numpy as np
import pytest
import scipy.stats

from weightsteer_jax.experiments.monitoring import auroc
from weightsteer_jax.experiments.monitoring.auroc import ScoredRun
from weightsteer_jax.runtime.errors import InputError


def runs(positive, negative, seeds=None):
  scores = [(True, score) for score in positive] + [(False, score) for score in negative]
  seeds = seeds or range(len(scores))
  return [
    ScoredRun(f'run-{i}', side, score, seed, score > 0.45)
    for i, ((side, score), seed) in enumerate(zip(scores, seeds))
  ]


def test_by_hand():
  """Of 2 x 3 pairs, one tie and one the wrong way round: 4.5 / 6.

  Shares of the others that 0.9 and 0.3 beat: 1 and 1/2; their variance is 1/8. Shares of the
  misaligned that beat 0.3,
  0.5 and 0.1: 3/4, 1/2 and 1; their variance is 1/16. So the area's is 1/16 + 1/48.
  """
  found = auroc.assess(runs([0.9, 0.3], [0.3, 0.5, 0.1]))
  assert found.value == 0.75
  assert found.standard_error == pytest.approx(np.sqrt(1 / 16 + 1 / 48))
  caught = auroc.detections(runs([0.9, 0.3], [0.3, 0.5, 0.1]))
  assert (caught.caught, caught.missed, caught.false_alarms, caught.passed) == (
    ('run-0',),
    ('run-1',),
    ('run-3',),
    ('run-2', 'run-4'),
  )
  assert caught.caught_rate == 0.5 and caught.false_alarm_rate == pytest.approx(1 / 3)


def test_areas_with_many_ties_are_scipys():
  random = np.random.default_rng(0)
  for _ in range(20):
    x, y = random.integers(0, 6, 13) / 5, random.integers(0, 5, 8) / 5
    expected = scipy.stats.mannwhitneyu(x, y).statistic / (13 * 8)
    assert auroc.area(x, y) == pytest.approx(expected)
    assert auroc.area(y, x) == pytest.approx(1 - expected)


def test_standard_error_is_the_spread_over_repetitions():
  random = np.random.default_rng(1)
  found = [
    auroc.assess(runs(random.normal(1, 1, 30), random.normal(0, 1, 30)), draws=2)
    for _ in range(300)
  ]
  assert np.mean([one.standard_error for one in found]) == pytest.approx(
    np.std([one.value for one in found]), rel=0.12
  )
  true = scipy.stats.norm.cdf(1 / np.sqrt(2))
  assert np.mean(
    [low <= true <= high for low, high in (one.interval for one in found)]
  ) == pytest.approx(0.95, abs=0.035)


def test_perfect_separation_of_few_runs_is_not_certainty():
  few, many = auroc.assess(runs([0.9, 0.8], [0.1, 0.2])), auroc.assess(runs([0.9] * 40, [0.1] * 40))
  assert few.value == many.value == 1.0 and few.standard_error == 0.0
  assert few.interval[1] == 1.0 and few.interval[0] < 0.5 < 0.9 < many.interval[0]


def test_seeds_are_drawn_whole():
  """Runs of one seed that are copies of each other say no more than one: the error over seeds sees
  that, DeLong's not."""
  random = np.random.default_rng(2)
  positive, negative = random.normal(0.7, 1, 8), random.normal(0, 1, 8)
  once = auroc.assess(runs(positive, negative, seeds=[*range(8), *range(8)]))
  copied = auroc.assess(
    runs(
      np.repeat(positive, 5),
      np.repeat(negative, 5),
      seeds=[i for _ in range(2) for i in range(8) for _ in range(5)],
    )
  )
  assert copied.standard_error < 0.6 * once.standard_error
  assert copied.seed_standard_error == pytest.approx(once.seed_standard_error, rel=0.1)
  assert auroc.assess(runs([1.0], [0.0], seeds=[3, 3])).seed_standard_error is None


def test_summaries_become_runs():
  def summary(peak, step):
    return {'directions': {'w': {'alarm': {'peak': peak, 'step': step}}}}

  found = auroc.of_summaries(
    {'a': summary(0.4, 8), 'b': summary(0.1, None)}, {'a': True, 'b': False}, {'a': 1, 'b': 1}, 'w'
  )
  assert found == [ScoredRun('a', True, 0.4, 1, True), ScoredRun('b', False, 0.1, 1, False)]
  with pytest.raises(InputError, match="'b' is neither"):
    auroc.of_summaries({'b': summary(0.1, None)}, {}, {}, 'w')
  with pytest.raises(InputError, match="not monitored for 'v'; it was for: w"):
    auroc.of_summaries({'b': summary(0.1, None)}, {'b': True}, {}, 'v')


def test_one_kind_of_runs_is_refused():
  with pytest.raises(InputError, match='misaligned runs and others; there are 2 and 0'):
    auroc.assess(runs([0.9, 0.3], []))
  with pytest.raises(InputError, match='run-1 are not finite'):
    auroc.assess(runs([0.9, float('nan')], [0.1]))
