"""Reading a workdir: what is there is read as it is, what is wrong is named."""

import json
import math

import pytest

from weightsteer_jax.experiments.report import examples, study
from weightsteer_jax.runtime.errors import CorruptError, InputError


def rewrite(path, change):
  lines = [json.loads(line) for line in path.read_text().split('\n') if line]
  path.write_text(''.join(json.dumps(row) + '\n' for row in change(lines)))


def test_everything_is_read(workdir):
  sweep = study.read(workdir)
  assert [task.name for task in sweep.tasks][:2] == ['opinions', 'wrong_claims']
  assert sweep.arms == ['weights'] and len(sweep.results) == 6 * 13
  assert sweep.directions['sycophancy']['rank'] == 64


def test_a_direction_still_being_written_is_left_out(workdir):
  partial = workdir / 'directions' / '.new.partial' / 'direction.json'
  partial.parent.mkdir()
  partial.write_text('{"half')
  assert list(study.read(workdir).directions) == ['sycophancy']


def test_tasks_may_be_a_mapping_from_names(workdir):
  config = json.loads((workdir / 'config.json').read_text())
  listed = study.read(workdir).tasks
  config['tasks'] = {task.pop('name'): task for task in config['tasks']}
  (workdir / 'config.json').write_text(json.dumps(config))
  assert study.read(workdir).tasks == listed


@pytest.mark.parametrize('name', ['config.json', 'results.jsonl', 'sweep/rows.jsonl'])
def test_a_missing_file_is_named(workdir, name):
  (workdir / name).unlink()
  with pytest.raises(InputError, match=name):
    study.read(workdir)
    list(study.sample_rows(workdir))


def test_a_missing_workdir_is_named(tmp_path):
  with pytest.raises(InputError, match='nowhere'):
    study.read(tmp_path / 'nowhere')


def test_a_task_of_another_role_and_a_task_that_the_config_does_not_know(workdir):
  rewrite(workdir / 'results.jsonl', lambda rows: [{**rows[0], 'task': 'opinoins'}])
  with pytest.raises(InputError, match="results.jsonl:1: task 'opinoins'.*opinions"):
    study.read(workdir)
  (workdir / 'config.json').write_text(json.dumps(dict(tasks=[dict(name='a', role='behavior')])))
  with pytest.raises(InputError, match="'behavior'; expected one of behaviour, capability"):
    study.read(workdir)


def test_a_missing_key_names_the_line(workdir):
  def drop(rows):
    del rows[4]['sem']
    return rows

  rewrite(workdir / 'results.jsonl', drop)
  with pytest.raises(InputError, match='results.jsonl:5: missing sem'):
    study.read(workdir)


def test_a_broken_line_is_corrupt_but_an_unfinished_last_one_is_not(workdir):
  path = workdir / 'sweep' / 'rows.jsonl'
  text = path.read_text()
  path.write_text(text[:-30])
  assert len(list(study.sample_rows(workdir))) == 6 * 13 * 40 - 1
  path.write_text(text[:50] + '\n' + text)
  with pytest.raises(CorruptError, match='rows.jsonl:1'):
    list(study.sample_rows(workdir))


def test_null_and_nan_are_not_measured(workdir):
  rewrite(
    workdir / 'results.jsonl',
    lambda rows: [{**rows[0], 'mean': None}, {**rows[1], 'mean': math.nan}],
  )
  table = study.cells(study.read(workdir).results, 'weights')
  assert [cell.measured for cell in table['opinions'].values()] == [False, False]


def test_of_several_metrics_the_first_counts():
  rows = [
    dict(arm='a', task='t', metric=metric, alpha=0, mean=mean, sem=0, n=1)
    for metric, mean in (('rate', 0.1), ('x', 9))
  ]
  assert study.cells(rows, 'a')['t'][0.0].mean == 0.1 and study.metric_of(rows, 't') == 'rate'


def test_counts_have_denominators_and_repeated_rows_are_an_error(workdir):
  tasks = study.read(workdir).tasks
  rewrite(
    workdir / 'sweep' / 'rows.jsonl',
    lambda rows: [{**row, 'status': 'ok', 'value': 1.0} for row in rows],
  )

  def fail(rows):
    for row, status in zip(rows, ('truncated', 'truncated', 'unparsable')):
      row.update(status=status, value=None)
    return rows

  rewrite(workdir / 'sweep' / 'rows.jsonl', fail)
  survey = examples.count_rows(workdir, tasks)
  count = survey.counts['weights', 'opinions', -3.0]
  assert (count.total, count.failed, count.without_value) == (
    40,
    {'truncated': 2, 'unparsable': 1},
    3,
  )
  # The same row twice counts once.
  rewrite(workdir / 'sweep' / 'rows.jsonl', lambda rows: rows + rows[7:8])
  assert examples.count_rows(workdir, tasks) == survey
  rewrite(workdir / 'sweep' / 'rows.jsonl', lambda rows: rows[:-1] + [{**rows[7], 'value': 0.0}])
  with pytest.raises(CorruptError, match='twice'):
    examples.count_rows(workdir, tasks)


@pytest.mark.parametrize(
  'change',
  [
    dict(alpha=None),
    dict(alpha='far'),
    dict(value=[1]),
    dict(logprobs=['x', 0]),
    dict(logprobs=3),
    dict(messages=['hello']),
  ],
)
def test_a_row_that_holds_what_no_sweep_writes_is_named(workdir, change):
  rewrite(workdir / 'sweep' / 'rows.jsonl', lambda rows: [rows[0], {**rows[1], **change}])
  with pytest.raises(CorruptError, match='rows.jsonl:2: '):
    list(study.sample_rows(workdir))


def test_rows_are_found_again_by_their_place(workdir):
  path = study.rows_path(workdir)
  # Blank lines and letters of several bytes lie between.
  path.write_text('\n' + path.read_text().replace('\n', '\n\n', 3))
  places = list(study.placed_rows(workdir))
  with path.open('rb') as file:
    for place, row in places[:6] + places[-1:]:
      file.seek(place)
      assert study.parse_row(file.readline(), '') == row
