import json
import math

import numpy as np
import pytest

from weightsteer_jax import config
from weightsteer_jax.evaluation import intervals, metrics
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
  mean, sem, n = intervals.clustered_mean([(str(i), float(v)) for i, v in enumerate(values)])
  np.testing.assert_allclose(
    [mean, sem], [values.mean(), values.std(ddof=1) / math.sqrt(37)], rtol=1e-12
  )
  assert n == 37


def test_repeated_samples_of_an_example_count_as_one_cluster():
  values = np.random.default_rng(1).random(20)
  once = intervals.clustered_mean([(str(i), float(v)) for i, v in enumerate(values)])
  thrice = intervals.clustered_mean(
    [(str(i), float(v)) for i, v in enumerate(values) for _ in range(3)]
  )
  np.testing.assert_allclose(thrice, once, rtol=1e-12)


def test_clustered_error_agrees_with_a_bootstrap_over_examples():
  draw = np.random.default_rng(2)
  sizes = draw.integers(1, 6, 60)
  values = [draw.normal(draw.normal(), 0.5, size) for size in sizes]
  _, sem, _ = intervals.clustered_mean(
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


def test_every_result_says_how_many_answers_on_how_many_questions_and_what_was_not_read():
  options = {'facts': config.TextTask('x.jsonl', 'behaviour', 'generate', groups='claims')}
  # Two answers a claim; at alpha 1 most of them cannot be read, and count as no behaviour.
  rows = []
  for i in range(20):
    rows.append(row(f'q{i}', float(i < 10), group=f'c{i // 2}', completion='x'))
    status = 'ok' if i < 2 else 'unparsable'
    rows.append(row(f'q{i}', 0.0, alpha=1.0, group=f'c{i // 2}', status=status, completion='x'))
  base, steered = [r for r in metrics.results(rows, options) if r['metric'] == 'rate']
  for result in (base, steered):
    assert (result['answers'], result['clusters'], result['groups']) == (20, 10, 'claims')
    # The old names stay.
    assert (result['values'], result['n'], result['asked']) == (20, 10, 20)
  assert (base['unreadable'], steered['unreadable']) == (0, 18)
  assert (steered['mean'], steered['sem'], steered['low']) == (0.0, 0.0, 0.0)
  # By hand: z^2 / (10 + z^2), as of ten claims.
  assert steered['high'] == pytest.approx(0.2775, abs=1e-4)
  assert (base['change'], base['change_sem']) == (0.0, 0.0)
  # By hand: the base's residual sums are 1 or -1 for ten claims of two, sqrt(10 / 9 * 10 / 20^2).
  assert steered['change'] == -0.5
  assert steered['change_sem'] == pytest.approx(math.sqrt(10 / 9 * 10) / 20)
  assert steered['change_low'] < -0.5 < steered['change_high'] < 0


def test_a_judge_that_gave_no_score_has_read_nothing():
  asked = row('a', None, judgements={})
  asked['judgements'] = {'first': {'trait': {'status': 'ok', 'score': 3.0}}}
  assert not metrics.is_unreadable(asked)
  asked['judgements']['first']['coherence'] = {'status': 'no_answer', 'score': None}
  assert metrics.is_unreadable(asked)
  assert not metrics.is_unreadable(row('a', None))


def test_a_change_needs_an_alpha_0():
  [result, _] = metrics.results([row('a', 1.0, alpha=1.0)])
  assert (result['change'], result['change_low']) == (None, None)
  # One question of one answer: Wilson's interval of 1 of 1.
  assert (result['low'], result['high']) == (pytest.approx(0.2065, abs=1e-4), 1.0)
