import json
import math

import numpy as np
import pytest

from weightsteer_jax.evaluation import metrics
from weightsteer_jax.runtime.errors import CorruptError, InputError


def row(example, value, *, alpha=0.0, sample=0, task='facts', arm='weights', status='ok', **fields):
  return dict(
    arm=arm,
    alpha=alpha,
    task=task,
    example=example,
    sample=sample,
    value=value,
    status=status,
    messages=[],
    **fields,
  )


def test_one_value_per_example_has_the_usual_standard_error():
  values = np.random.default_rng(0).random(37)
  mean, sem, n = metrics.clustered_mean([(str(i), float(v)) for i, v in enumerate(values)])
  np.testing.assert_allclose(
    [mean, sem], [values.mean(), values.std(ddof=1) / math.sqrt(37)], rtol=1e-12
  )
  assert n == 37


def test_repeated_samples_of_an_example_count_as_one_cluster():
  values = np.random.default_rng(1).random(20)
  once = metrics.clustered_mean([(str(i), float(v)) for i, v in enumerate(values)])
  thrice = metrics.clustered_mean(
    [(str(i), float(v)) for i, v in enumerate(values) for _ in range(3)]
  )
  np.testing.assert_allclose(thrice, once, rtol=1e-12)


def test_clustered_error_agrees_with_a_bootstrap_over_examples():
  draw = np.random.default_rng(2)
  sizes = draw.integers(1, 6, 60)
  values = [draw.normal(draw.normal(), 0.5, size) for size in sizes]
  _, sem, _ = metrics.clustered_mean(
    [(str(i), float(v)) for i, vs in enumerate(values) for v in vs]
  )
  means = [
    np.concatenate([values[i] for i in draw.integers(0, 60, 60)]).mean() for _ in range(4000)
  ]
  np.testing.assert_allclose(sem, np.std(means), rtol=0.06)


def test_results_by_hand(tmp_path):
  rows = [
    row('a', 1.0),
    row('b', 0.0, status='truncated'),
    row('c', None, status='not_finite'),
    row('d', 0.0, status='empty'),
    row('a', 1.0, alpha=-1.0),
    row('q', 1.0, task='mc', logprobs=[-1.0, -3.0], target=0),
    row('r', 0.0, task='mc', logprobs=[-2.0, -1.5, -9.0], target=0),
  ]
  found = {
    (r['task'], r['metric'], r['alpha']): (r['mean'], r['sem'], r['n'])
    for r in metrics.results(rows)
  }
  # By hand: 1, 0, 0 have mean 1/3 and standard error sqrt((4/9 + 1/9 + 1/9) / 2 / 3) = 1/3; two of
  # four rows can be judged.
  assert found['facts', 'rate', 0.0] == (pytest.approx(1 / 3), pytest.approx(1 / 3), 3)
  assert found['facts', 'valid_rate', 0.0] == (0.5, pytest.approx(math.sqrt(1 / 3 / 4)), 4)
  assert found['facts', 'rate', -1.0] == (1.0, None, 1)
  assert found['mc', 'rate', 0.0] == (0.5, 0.5, 2)
  assert found['mc', 'target_logprob', 0.0] == (-1.5, 0.5, 2)
  assert found['mc', 'log_odds', 0.0] == (0.75, 1.25, 2)
  assert len(found) == 8
  assert metrics.results(rows)[0]['alpha'] == -1.0 and metrics.results(rows)[0]['metric'] == 'rate'


def test_a_metric_without_a_number_is_null_with_n_0():
  [first, _] = metrics.results([row('a', None, status='not_finite')])
  assert (first['mean'], first['sem'], first['n']) == (None, None, 0)


def test_results_are_written_from_the_rows_on_disk(tmp_path):
  with pytest.raises(InputError, match='no rows at'):
    metrics.write(tmp_path)
  (tmp_path / 'sweep').mkdir()
  path = tmp_path / 'sweep' / 'rows.jsonl'
  path.write_text(json.dumps(row('a', 1.0)) + '\n' + json.dumps(row('b', 0.0)) + '\n{"arm": "wei')
  found = metrics.write(tmp_path)
  assert [
    json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines()
  ] == found and found[0]['n'] == 2
  path.write_text('{"arm": "x"}\n')
  with pytest.raises(CorruptError, match='rows.jsonl:1 is not a row of a sweep: it lacks alpha'):
    metrics.write(tmp_path)
