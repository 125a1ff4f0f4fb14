"""Means, intervals and changes against hand-worked examples, and numbers of other programs."""

import math

import numpy as np
import pytest

from weightsteer_jax.evaluation import intervals


def pairs(values):
  """Values whose clusters hold one value each."""
  return [(str(i), float(value)) for i, value in enumerate(values)]


@pytest.mark.parametrize(
  ('hits', 'count', 'low', 'high'),
  [
    # Newcombe 1998, Stat. Med. 17, 857, table I, method 3.
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
    # All five also from statsmodels 0.15.0: proportion_confint(hits, count, method='wilson').
    (100, 100, 0.9630, 1.0),
  ],
)
def test_wilson_against_published_numbers(hits, count, low, high):
  found = intervals.estimate(pairs([1] * hits + [0] * (count - hits)), limits=(0.0, 1.0))
  np.testing.assert_allclose([found.low, found.high], [low, high], atol=6e-5)


def test_the_clustered_error_is_that_of_statsmodels():
  draw = np.random.default_rng(3)
  clusters = np.repeat(np.arange(12), draw.integers(1, 5, 12))
  values = draw.normal(size=len(clusters)) + 0.5 * clusters
  found = intervals.estimate([(str(c), float(v)) for c, v in zip(clusters, values)])
  # statsmodels 0.15.0: OLS(values, ones).fit(cov_type='cluster', cov_kwds={'groups': clusters,
  # 'use_correction': False}).bse * sqrt(12 / 11).
  assert found.sem == pytest.approx(0.61190284, abs=1e-8)


def test_answers_all_alike_count_as_many_as_their_questions():
  # By hand: of 10 questions with 3 answers each the upper end is z^2 / (10 + z^2).
  found = intervals.estimate([(str(i), 0.0) for i in range(10)] * 3, limits=(0.0, 1.0))
  z = 1.959963984540054
  assert (found.mean, found.sem, found.low) == (0.0, 0.0, 0.0)
  assert found.high == pytest.approx(z**2 / (10 + z**2))
  # On a scale to 100 the same share is a hundredfold, and at its upper end it is mirrored.
  found = intervals.estimate([(str(i), 100.0) for i in range(10)], limits=(0.0, 100.0))
  assert (found.low, found.high) == (pytest.approx(100 * 10 / (10 + z**2)), 100.0)


def test_the_effective_count_by_hand():
  # 4 questions with 5 equal answers each, half right: sem^2 = 4/3 * 4 * 2.5^2 / 20^2 = 1/12.
  values = [(name, right) for name, right in zip('abcd', (1.0, 1.0, 0.0, 0.0)) for _ in range(5)]
  found = intervals.estimate(values, limits=(0.0, 1.0))
  assert found.sem == pytest.approx(math.sqrt(1 / 12))
  # Design effect (1/12) / (0.25 / 19) = 19/3; Student's t: 2.0930 of 19 and 3.1824 of 3.
  count = intervals.effective_count(0.5, found.sem, 20, 4)
  assert count == pytest.approx(20 / (19 / 3) * (2.093024 / 3.182446) ** 2, rel=1e-5)
  np.testing.assert_allclose([found.low, found.high], intervals.wilson(0.5, count), rtol=1e-12)
  # Single answers are independent: nothing is taken away from Wilson's interval.
  assert intervals.effective_count(0.3, math.sqrt(0.21 / 9), 10, 10) == pytest.approx(10)


def test_values_without_limits_have_students_interval():
  values = np.random.default_rng(0).normal(size=12)
  found = intervals.estimate(pairs(values))
  # scipy 1.17: stats.t.ppf(0.975, 11).
  reach = 2.200985160091639 * values.std(ddof=1) / math.sqrt(12)
  np.testing.assert_allclose(
    [found.low, found.high], [values.mean() - reach, values.mean() + reach], rtol=1e-12
  )
  assert intervals.estimate([]).mean is None
  assert intervals.estimate([('a', 0.3), ('a', 0.4)]).low is None


def test_a_change_pairs_the_answers_to_a_question():
  """Oracle: the mean of differences, its standard error and Student's interval."""
  draw = np.random.default_rng(1)
  before = draw.normal(size=30)
  after = before + draw.normal(0.5, 0.1, 30)
  found = intervals.change(intervals.estimate(pairs(after)), intervals.estimate(pairs(before)))
  differences = after - before
  sem = differences.std(ddof=1) / math.sqrt(30)
  np.testing.assert_allclose(
    [found.mean, found.sem, found.low, found.high],
    # scipy 1.17: stats.t.ppf(0.975, 29).
    [differences.mean(), sem, *(differences.mean() + 2.045229642132703 * sem * np.array([-1, 1]))],
    rtol=1e-10,
  )
  # Unpaired, the same error would be six times as large.
  assert sem < math.hypot(before.std(ddof=1), after.std(ddof=1)) / math.sqrt(30) / 6


def test_a_change_of_clusters_of_unequal_size_against_a_bootstrap_of_questions():
  draw = np.random.default_rng(2)
  sizes = draw.integers(1, 6, 80)
  before = [draw.normal(draw.normal(), 0.3, size) for size in sizes]
  # At the second strength a tenth of the answers could not be read.
  after = [(x + draw.normal(0.4, 0.3))[draw.random(len(x)) > 0.1] for x in before]

  def difference(chosen):
    means = [np.concatenate([side[i] for i in chosen]).mean() for side in (after, before)]
    return means[0] - means[1]

  def estimate(side):
    return intervals.estimate([(str(i), float(v)) for i, vs in enumerate(side) for v in vs])

  found = intervals.change(estimate(after), estimate(before))
  assert found.mean == pytest.approx(difference(range(80)))
  resampled = [difference(draw.integers(0, 80, 80)) for _ in range(3000)]
  np.testing.assert_allclose(found.sem, np.std(resampled), rtol=0.06)


def test_the_change_of_paired_shares_by_the_formula_of_square_and_add():
  """Oracle: Newcombe's method 8 from the table of pairs, computed apart in float64."""
  both, first, second, neither = 36, 12, 2, 0
  after = [1] * both + [1] * first + [0] * second + [0] * neither
  before = [1] * both + [0] * first + [1] * second + [0] * neither
  count = len(after)

  def wilson(hits):
    z = 1.959963984540054
    roots = np.roots([1 + z**2 / count, -(2 * hits / count + z**2 / count), (hits / count) ** 2])
    return sorted(np.real(roots))

  (l1, u1), (l2, u2) = wilson(both + first), wilson(both + second)
  p1, p2 = (both + first) / count, (both + second) / count
  phi = (both * neither - first * second) / math.sqrt(
    (both + first) * (second + neither) * (both + second) * (first + neither)
  )
  low = p1 - p2 - math.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
  high = p1 - p2 + math.sqrt((p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2)
  limits = (0.0, 1.0)
  found = intervals.change(
    intervals.estimate(pairs(after), limits=limits),
    intervals.estimate(pairs(before), limits=limits),
  )
  np.testing.assert_allclose([found.mean, found.low, found.high], [0.2, low, high], rtol=1e-10)


def test_a_change_between_ends_has_a_width():
  # All right before and after: of 20 questions, up to 0.1611 may have been lost, or gained.
  found = intervals.estimate(pairs([1] * 20), limits=(0.0, 1.0))
  changed = intervals.change(found, found)
  assert (changed.mean, changed.sem) == (0.0, 0.0)
  np.testing.assert_allclose([changed.low, changed.high], [-0.1611, 0.1611], atol=6e-5)
  assert intervals.change(found, intervals.Estimate()).mean is None
