"""Files that no sweep has written: a page, or an error that names the line; no traceback."""

import json
import math

import pytest

from weightsteer_jax.experiments.report import examples, judged, parts, pick, sections, study
from weightsteer_jax.runtime.errors import CorruptError, InputError

VALUES = (
  None, True, -1, 1e308, 10**30, math.nan, math.inf, 'x', '', '\ud83d', '9' * 5000,
  [], [None], ['a', None], [[1]], {}, {'a': 1}, [{}], [{'role': 1, 'content': [1]}],
)  # fmt: skip
ROW_KEYS = (
  'arm', 'alpha', 'task', 'example', 'sample', 'messages', 'value', 'status', 'completion',
  'choices', 'target', 'logprobs', 'thought', 'thought_cut', 'behind', 'finish',
)  # fmt: skip
RESULT_KEYS = (
  'arm', 'task', 'metric', 'alpha', 'mean', 'sem', 'n', 'values', 'answers', 'groups', 'low',
  'high', 'change', 'change_low', 'unreadable', 'asked', 'grid',
)  # fmt: skip


def lines(rows):
  return ''.join(json.dumps(row) + '\n' for row in rows)


@pytest.mark.parametrize('task', ['opinions', 'facts_choice'])
def test_rows_of_any_content(workdir, task):
  path = study.rows_path(workdir)
  rows = [json.loads(line) for line in path.read_text().split('\n') if line]
  good = next(row for row in rows if row['task'] == task)
  sweep = study.read(workdir)
  refused = 0
  for key in ROW_KEYS:
    for value in VALUES:
      path.write_text(lines([{**good, 'example': 'another'}, {**good, key: value}]))
      try:
        survey = examples.count_rows(workdir, sweep.tasks)
        scores = judged.Scores(workdir)
        assert len(list(parts.make(sweep, survey, scores))) == 2
        json.dumps(parts.about(sweep, survey, scores), allow_nan=False)
      except (InputError, CorruptError) as error:
        assert 'rows.jsonl' in str(error), (key, value)
        refused += 1
  assert 30 < refused < len(ROW_KEYS) * len(VALUES) * 0.8


def test_results_of_any_content(workdir):
  path = workdir / 'results.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  rows = [row for row in rows if row['task'] in ('opinions', 'facts')]
  refused = 0
  for key in RESULT_KEYS:
    for value in VALUES:
      path.write_text(lines([{**rows[0], key: value}, *rows[1:]]))
      try:
        sweep = study.read(workdir)
        picks = pick.choose_all(sweep)
        for draw in (sections.charts, sections.results):
          draw(sweep, picks)
        sections.tradeoff(picks)
        sections.headlines(picks)
      except (InputError, CorruptError) as error:
        assert 'results' in str(error), (key, value)
        refused += 1
  assert refused > len(RESULT_KEYS) * len(VALUES) / 3
