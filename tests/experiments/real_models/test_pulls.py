"""Pulls and paired changes on rows worked out by hand."""

import json

import pytest

from weightsteer_jax.experiments.real_models import pulls
from weightsteer_jax.runtime.errors import InputError


def row(task, fact, suggested, *, alpha=0.0, value=1.0):
  """A row of two choices, of which the first is suggested by so many nats more."""
  return {
    'arm': 'w',
    'alpha': alpha,
    'task': task,
    'example': fact,
    'sample': 0,
    'value': value,
    'status': 'ok',
    'logprobs': [suggested - 7.0, -7.0],
    'target': 0,
  }


ROWS = [
  # A model that repeats with 3 nats and knows with 1 prefers a lie by 2 and the truth by 4.
  row('facts_wrong', 'a', 2.0),
  row('facts_right', 'a', 4.0),
  # One that repeats with 2 and does not know.
  row('facts_wrong', 'b', 2.0),
  row('facts_right', 'b', 2.0),
  # Asked in one way alone.
  row('facts_right', 'c', 50.0),
  row('facts_wrong', 'a', -1.0, alpha=-1.0, value=0.0),
  row('facts_right', 'a', 1.0, alpha=-1.0),
  row('facts_wrong', 'b', 1.0, alpha=-1.0),
  row('facts_right', 'b', 1.0, alpha=-1.0),
]


def test_a_suggestion_is_taken_apart():
  words, truth = pulls.pulls(ROWS)['w', 0.0]
  assert words == pytest.approx((2.5, 0.5)) and truth == pytest.approx((0.5, 0.5))
  words, truth = pulls.pulls(ROWS)['w', -1.0]
  assert words == pytest.approx((0.5, 0.5)) and truth == pytest.approx((0.5, 0.5))


def test_changes_are_of_the_same_item():
  """Of two items one fell by 1: a mean of -1/2, and an error of 1/2."""
  changed = pulls.changes(ROWS)
  assert changed['facts_wrong', ('w', -1.0)] == pytest.approx((-0.5, 0.5))
  assert changed['facts_wrong', ('w', 0.0)] == (0.0, 0.0)
  assert changed['facts_right', ('w', -1.0)] == (0.0, 0.0)


def test_tables_are_read_from_a_workdir(tmp_path):
  (tmp_path / 'sweep').mkdir()
  text = ''.join(json.dumps(one) + '\n' for one in ROWS)
  (tmp_path / 'sweep' / 'rows.jsonl').write_text(text)
  lines = pulls.tables(tmp_path)
  assert lines[5] == '| -1 | 0.50 ±0.50 | 0.50 ±0.50 | -0.50 ±0.50 | +0.00 ±0.00 |'


def test_rows_without_both_suggestions_are_refused():
  with pytest.raises(InputError, match="both tasks 'facts_wrong' and 'facts_right'"):
    pulls.pulls(ROWS[:1])
