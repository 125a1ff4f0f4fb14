import json

import pytest

from weightsteer_jax import config
from weightsteer_jax.evaluation import metrics
from weightsteer_jax.evaluation.reading import failures, measures, refusals
from weightsteer_jax.runtime.errors import InputError


def row(example, value=1.0, *, completion='Because it is so.', status='ok', sample=0, **fields):
  return dict(
    arm='weights',
    alpha=0.0,
    task='open',
    example=example,
    sample=sample,
    value=value,
    status=status,
    completion=completion,
    messages=[],
    **fields,
  )


def said(example, purpose, score, *, judge='first', status='ok', sample=0):
  return dict(
    arm='weights',
    alpha=0,
    task='open',
    example=example,
    sample=sample,
    judge=judge,
    purpose=purpose,
    score=score,
    status=status,
    text=str(score),
  )


OPEN = {'open': config.TextTask('x.jsonl', 'behaviour', kind='generate')}


def found_in(rows, judgements=(), tasks=OPEN, **options):
  return {
    one['metric']: (one['mean'], one['n'], one['values'])
    for one in metrics.results(rows, tasks, judgements, **options)
  }


@pytest.mark.parametrize(
  'text',
  [
    "I'm sorry, but I can't help with that.",
    'I’m really sorry, but I am not able to do this.',
    'I cannot assist with that request.',
    'I will not provide instructions for that.',
    'Sorry. I must decline to write this.',
    'As an AI, I am unable to give such advice.',
    "It would not be appropriate for me to answer.",
    "Unfortunately, I can't share that.",
    "I don't feel comfortable writing this.",
  ],
)
def test_stock_refusals_are_recognised(text):
  assert refusals.refuses(text)


@pytest.mark.parametrize(
  'text',
  [
    'Sure! First, mix the flour.',
    "I'm sorry to hear that you are ill. Rest, and drink tea.",
    "I can't believe it is so easy: 7.",
    'The answer is 12.',
    '',
    'It is right for you to ask.',
    "I can't agree with that: snow is white.",
    'They will not help you, so do it yourself.',
    'Sales declined in March.',
    'I declined in strength.',
    'First of all, listen. ' * 20 + "I'm sorry, but I can't help with that.",
  ],
)
def test_answers_are_not_taken_for_refusals(text):
  assert not refusals.refuses(text)


def test_repetition_by_hand():
  # Seven words have four 4-grams: abca bcab cabc abca; the last repeats the first.
  assert failures.repetition('a b c a b c a') == 0.25
  assert not failures.is_repetitive('yes ' * 10), 'too short to tell'
  assert (
    failures.is_repetitive('yes ' * 40)
    and failures.is_repetitive('!' * 60)
    and failures.is_repetitive('好的' * 30)
  )
  assert not failures.is_repetitive(' '.join(f'word{i} and' for i in range(60)))


def test_accounting_by_hand():
  rows = [
    row('a'),
    row('b', 0.0, completion="I'm sorry, but I can't help with that."),
    row('c', 0.0, completion='go on ' * 40, status='truncated'),
    row('d', 0.0, completion='none', status='unparsable'),
    row('e', None, completion='', status='not_finite'),
  ]
  assert found_in(rows) == {
    'rate': (0.25, 4, 4),
    'valid_rate': (0.6, 5, 5),
    'refused_rate': (0.2, 5, 5),
    'truncated_rate': (0.2, 5, 5),
    'repetitive_rate': (0.2, 5, 5),
    'unparsable_rate': (0.2, 5, 5),
  }


def test_the_judge_that_counts_overrides_the_rule_and_its_silence_is_counted_not_guessed():
  rows = [row('a'), row('b', completion='I refuse to say.'), row('c'), row('d')]
  judgements = [
    said('a', 'refusal', 1.0, judge='second'),
    said('a', 'refusal', 0.0),
    said('b', 'refusal', 0.9),
    said('c', 'refusal', None, status='unparsable'),
    said('c', 'refusal', 1.0, judge='second'),
    said('d', 'refusal', 1.0, judge='second'),
  ]
  found = found_in(rows, judgements, judges=('first', 'second'))
  assert found['refused_rate'] == (pytest.approx(1 / 3), 3, 3), (
    'a: no, b: yes, c: not known, d: by rule, no'
  )
  assert found['unjudged_rate'] == (pytest.approx(1 / 3), 3, 3)
  # Without names, the first judge met is the one that counts.
  assert found_in(rows, judgements)['refused_rate'] == (1.0, 4, 4)


def test_accounting_that_does_not_apply_is_left_out():
  choice = dict(
    arm='w',
    alpha=0.0,
    task='mc',
    example='q',
    sample=0,
    value=1.0,
    status='ok',
    logprobs=[-1.0, -2.0],
    target=0,
    messages=[],
  )
  found = metrics.results([choice], {'mc': config.ChoiceTask('x.jsonl', 'behaviour')})
  assert [one['metric'] for one in found] == ['rate', 'valid_rate', 'target_logprob', 'log_odds']


def test_the_plotted_metric_comes_first_and_must_exist():
  tasks = {'open': config.TextTask('x.jsonl', 'behaviour', kind='generate', metric='valid_rate')}
  assert [one['metric'] for one in metrics.results([row('a')], tasks)][:2] == ['valid_rate', 'rate']
  with pytest.raises(
    InputError, match="no metric 'rates' \\(did you mean 'rate'\\?\\); it has: rate, valid_rate"
  ):
    metrics.results(
      [row('a')], {'open': config.TextTask('x.jsonl', 'behaviour', kind='generate', metric='rates')}
    )


def test_items_of_one_question_are_one_cluster():
  rows = [
    row(f'{q}/{form}', value, group=q) for q, value in (('p', 1.0), ('q', 0.0)) for form in 'xy'
  ]
  [rate, *_] = metrics.results(rows, OPEN)
  assert (rate['mean'], rate['sem'], rate['n'], rate['values']) == (0.5, 0.5, 2, 4)


def test_verdicts_are_the_judges_where_it_was_asked():
  [a, b, c] = measures.attach(
    [row('a', 0.0), row('b', 1.0), row('c', 1.0)],
    [said('a', 'agreement', 0.8), said('b', 'agreement', None, status='failed')],
  )
  assert [measures.verdict(one, 'agreement') for one in (a, b, c)] == [1.0, None, 1.0]


def test_judgements_on_disk_are_read_with_the_rows(tmp_path):
  (tmp_path / 'sweep').mkdir()
  (tmp_path / 'sweep' / 'rows.jsonl').write_text(
    json.dumps(row('a')) + '\n' + json.dumps(row('b')) + '\n'
  )
  (tmp_path / 'sweep' / 'judgements.jsonl').write_text(json.dumps(said('a', 'refusal', 1.0)) + '\n')
  metrics.write(tmp_path, tasks=OPEN, judges=('first',))
  found = {
    one['metric']: one
    for one in map(json.loads, (tmp_path / 'results.jsonl').read_text().splitlines())
  }
  assert (found['refused_rate']['mean'], found['refused_rate']['values']) == (0.5, 2)
