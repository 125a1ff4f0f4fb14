import numpy as np
import pytest

from weightsteer_jax.evaluation import agreement


def line(judge, i, score, purpose='trait'):
  return dict(
    arm='weights',
    alpha=0.0,
    task='t',
    example=str(i),
    sample=0,
    judge=judge,
    purpose=purpose,
    score=score,
  )


def test_kappa_of_a_worked_example():
  """50 rows: both yes 20, only the first 5, only the second 10, both no 15. p_o = 0.7; p_e = 0.5 *
  0.6 + 0.5 * 0.4 = 0.5; kappa = 0.4."""
  x = [True] * 25 + [False] * 25
  y = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
  assert agreement.kappa(x, y) == pytest.approx(0.4)
  assert agreement.kappa(x, x) == 1.0 and agreement.kappa(x, [not v for v in x]) == pytest.approx(
    -1.0
  )
  assert agreement.kappa([True] * 9, [True] * 9) is None
  assert agreement.kappa([True] * 9, [False] * 9) == 0.0


def test_correlations_are_those_of_numpy_and_of_ranks_by_hand():
  draw = np.random.default_rng(3)
  x = draw.integers(0, 6, 40).astype(float) * 20
  y = np.clip(x + draw.normal(0, 25, 40), 0, 100).round(-1)
  assert agreement.pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
  by_hand = [
    np.array([1 + np.sum(values < v) + (np.sum(values == v) - 1) / 2 for v in values])
    for values in (x, y)
  ]
  assert len(set(x)) < 40 and agreement.pearson(
    agreement.ranks(x), agreement.ranks(y)
  ) == pytest.approx(np.corrcoef(*by_hand)[0, 1], abs=1e-12)
  assert agreement.pearson(x, np.full(40, 3.0)) is None


def test_only_rows_that_both_scored_count():
  lines = [line('a', i, score) for i, score in enumerate((10.0, 60.0, None, 90.0, 50.0))]
  lines += [line('b', i, score) for i, score in enumerate((20.0, 40.0, 30.0, 95.0, 50.0, 7.0))] + [
    line('b', 0, 1.0, purpose='refusal')
  ]
  [found] = agreement.agreement(lines)
  assert (found['purpose'], found['first'], found['second'], found['n'], found['cut']) == (
    'trait',
    'a',
    'b',
    4,
    50.0,
  )
  # Yes and yes at 90 and 50, no and no at 10, 60 against 40: p_o = 3/4, p_e = 3/4 * 1/2 + 1/4 * 1/2
  # = 1/2.
  assert found['kappa'] == pytest.approx(0.5)
  assert found['pearson'] == pytest.approx(np.corrcoef([10, 60, 90, 50], [20, 40, 95, 50])[0, 1])
  assert found['spearman'] == pytest.approx(0.8)  # Ranks 1 3 4 2 and 1 2 4 3: 1 - 6 * 2 / (4 * 15).
  assert agreement.words(lines) == [
    'trait: a and b on 4 rows, kappa 0.50 (cut at 50), Pearson 0.92, Spearman 0.80'
  ]


def test_the_sides_of_each_scale():
  """A refusal is a yes from 0.5 on, an unsafe answer from 3 of 5 on."""
  safety = [
    line(judge, i, score, 'policy_safety')
    for judge, scores in (('a', (1.0, 2.0, 3.0, 5.0)), ('b', (2.0, 1.0, 4.0, 3.0)))
    for i, score in enumerate(scores)
  ]
  refusal = [
    line(judge, i, score, 'refusal')
    for judge, scores in (('a', (0.0, 1.0)), ('b', (0.4, 0.6)))
    for i, score in enumerate(scores)
  ]
  assert [(row['purpose'], row['kappa']) for row in agreement.agreement(safety + refusal)] == [
    ('policy_safety', 1.0),
    ('refusal', 1.0),
  ]
