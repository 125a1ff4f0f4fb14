"""What the page's scripts are given: every example once, by question, with the scores of judges."""

import json

import pytest

from weightsteer_jax.experiments.report import beside, examples, judged, parts, study
from weightsteer_jax.experiments.report.parts import Part
from weightsteer_jax.runtime.errors import CorruptError, OutputError


def row(**changes):
  plain = dict(arm='w', alpha=0.0, task='facts', example='q', sample=0, value=1.0, status='ok')
  return {**plain, 'messages': [dict(role='user', content='Is it so?')], **changes}


def made(workdir, rows, judgements=()):
  """{part: content} of some rows, and what is said about the tasks."""
  (workdir / 'sweep' / 'rows.jsonl').write_text(''.join(json.dumps(each) + '\n' for each in rows))
  if judgements:
    lines = ''.join(json.dumps(each) + '\n' for each in judgements)
    (workdir / 'sweep' / 'judgements.jsonl').write_text(lines)
  sweep = study.read(workdir)
  survey = examples.count_rows(workdir, sweep.tasks)
  scores = judged.Scores(workdir)
  content = {part.name: json.loads(part.text) for part in parts.make(sweep, survey, scores)}
  return content, parts.about(sweep, survey, scores)


def test_behaviours_come_first_and_examples_in_natural_order(workdir):
  rows = [row(task='arithmetic', example=f'item {n}') for n in (10, 9)]
  rows += [row(task='opinions', example='b/2'), row(task='opinions', example='b/10')]
  content, about = made(workdir, rows)
  assert [task['name'] for task in about] == ['opinions', 'arithmetic']
  assert content['0/index']['names'] == ['b/2', 'b/10']
  assert content['1/index']['names'] == ['item 9', 'item 10']


@pytest.mark.parametrize(
  'changes, question',
  [
    (
      dict(messages=[dict(role='user', content='Old?'), dict(role='user', content=' N\new ')]),
      'N ew',
    ),
    (dict(messages=[dict(role='system', content='Rules')]), 'Rules'),
    (dict(messages=[], choices=['A text.']), 'A text.'),
    (dict(messages=[]), 'q'),
    (dict(messages=[dict(role='user', content=' ')]), 'q'),
    (dict(messages=[dict(role='user', content='x' * 500)]), 'x' * parts.QUESTION_LIMIT),
  ],
)
def test_examples_are_listed_by_their_question(workdir, changes, question):
  content, _ = made(workdir, [row(**changes)])
  assert content['0/index']['questions'] == [question]


def test_the_index_has_means_over_samples_and_the_strengths_that_failed(workdir):
  """Columns are (v, 1), (v, 0.5) sorted: v 0.5, v 1, then w 0: by arm as rows come, then alpha."""
  rows = [row(arm='v', alpha=1.0, value=0.0), row(arm='v', alpha=1.0, sample=1, value=1.0)]
  rows += [row(arm='v', alpha=0.5, value=None, status='unparsable'), row(value=0.0)]
  content, _ = made(workdir, rows)
  index = content['0/index']
  assert index['values'] == [[None, 0.5, 0]] and index['failed'] == [[0]]
  assert [each[:4] for each in content['0/0'][0]['rows']] == [
    [0, 0, None, 'unparsable'],
    [1, 0, 0, 'ok'],
    [1, 1, 1, 'ok'],
    [2, 0, 0, 'ok'],
  ]


def test_choices_have_log_odds_against_the_best_other(workdir):
  choices = dict(choices=['a', 'b', 'c'], target=1)
  rows = [row(**choices, logprobs=[-3.0, -1.0, -2.5])]
  rows += [row(**choices, alpha=1.0, logprobs=[None, -1.0, -2.5])]
  content, _ = made(workdir, rows)
  assert content['0/index']['margins'] == [[1.5, None]]
  assert content['0/0'][0]['rows'][1][5] == [None, -1, -2.5]


def test_the_prompt_of_an_arm_that_adds_a_system_prompt_stands_with_its_answer(workdir):
  asked = [dict(role='user', content='Is it so?')]
  rows = [row(messages=[dict(role='system', content='Agree.'), *asked], alpha=1.0), row()]
  content, _ = made(workdir, rows)
  (example,) = content['0/0']
  assert example['messages'] == [['user', 'Is it so?']]
  base, steered = example['rows']
  assert len(base) == 6
  assert steered[6]['messages'] == [['system', 'Agree.'], ['user', 'Is it so?']]


def test_a_judges_score_stands_for_a_row_without_value_and_later_lines_count(workdir):
  line = dict(arm='w', alpha=0, task='facts', example='q', sample=0, judge='gpt', text='70')
  judgements = [
    {**line, 'purpose': 'trait', 'score': None, 'status': 'failed'},
    {**line, 'purpose': 'coherence', 'score': 90.0, 'status': 'ok'},
    {**line, 'purpose': 'trait', 'score': 70.0, 'status': 'ok'},
  ]
  content, about = made(workdir, [row(value=None)], judgements)
  (example,) = content['0/0']
  assert example['rows'][0][2] == 70
  assert example['rows'][0][6]['judged'] == [
    ['gpt', 'trait', 70.0, 'ok'],
    ['gpt', 'coherence', 90.0, 'ok'],
  ]
  assert (about[0]['low'], about[0]['high'], about[0]['middle']) == (0, 100, 50)


def test_a_broken_judgement_is_named(workdir):
  line = dict(arm='w', alpha=0, task='facts', example='q', sample=0, judge='gpt', text='70')
  broken = {**line, 'purpose': 'trait', 'score': 'high', 'status': 'ok'}
  with pytest.raises(CorruptError, match='judgements.jsonl:1'):
    made(workdir, [row()], [broken])


def test_parts_of_a_page_stay_inside_until_they_are_large(tmp_path):
  pieces = [Part('0/0', '"aaaa"'), Part('0/index', '"b"')]
  assert beside.place(tmp_path, pieces, inside=9).inside == {'0/0': '"aaaa"', '0/index': '"b"'}
  assert list(tmp_path.iterdir()) == []
  placed = beside.place(tmp_path, pieces, inside=8)
  assert placed.inside == {} and list(placed.beside) == ['0/0', '0/index']
  assert (tmp_path / placed.beside['0/0']).read_text() == 'weightsteer("0/0", "aaaa");\n'


def test_files_that_cannot_all_be_written_are_removed_and_old_ones_stay(tmp_path, monkeypatch):
  old = beside.place(tmp_path, [Part('0/0', '"old"')], inside=0)

  def failing():
    yield Part('0/0', '"new"')
    raise OutputError('no space')

  with pytest.raises(OutputError):
    beside.place(tmp_path, failing(), inside=0)
  assert [f'examples/{path.name}' for path in (tmp_path / 'examples').iterdir()] == [
    old.beside['0/0']
  ]
  new = beside.place(tmp_path, [Part('0/0', '"new"')], inside=0)
  beside.tidy(tmp_path, new)
  assert [f'examples/{path.name}' for path in (tmp_path / 'examples').iterdir()] == [
    new.beside['0/0']
  ]
