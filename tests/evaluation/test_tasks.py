import json

import pytest

from weightsteer_jax import config
from weightsteer_jax.evaluation import tasks
from weightsteer_jax.inference import GenerateResult, ScoreResult
from weightsteer_jax.runtime.errors import InputError

ASK = [{'role': 'user', 'content': 'Is it Paris?'}]
CHOICE = {'id': 'a', 'messages': ASK, 'choices': ['Yes.', 'No, never.'], 'target': 1}
OPEN = {'id': 'a', 'messages': ASK, 'match': {'any': ['yes']}}


def make(item, kind='choice', **options):
  return tasks.make(
    'facts', config.TASK_KINDS[kind]('facts.jsonl', 'capability', kind, **options), [item]
  )


@pytest.mark.parametrize(
  'kind, change, message',
  [
    ('choice', dict(choices='Yes'), "'choices' is 'Yes', expected a list"),
    ('choice', dict(choices=['Yes']), 'two or more'),
    ('choice', dict(choices=['Yes', 'Yes']), 'expected different texts'),
    ('choice', dict(target=2), 'expected the index of a choice, 0 to 1'),
    ('choice', dict(target=True), 'index of a choice'),
    ('choice', dict(normalise='token'), "did you mean 'tokens'"),
    ('choice', dict(normalize='tokens'), "unknown key 'normalize' \\(did you mean 'normalise'"),
    ('choice', dict(messages=[]), 'non-empty list'),
    ('choice', dict(id=3), "'id' is 3"),
    (
      'choice',
      dict(messages=[*ASK, {'role': 'assistant', 'content': 'x'}]),
      "the last message must be the user's",
    ),
    ('generate', dict(match={'any': ['(']}), 'no regular expression'),
  ],
)
def test_broken_items_are_named(kind, change, message):
  with pytest.raises(InputError, match=f'facts.jsonl\\[0\\]: .*{message}'):
    make({**(CHOICE if kind == 'choice' else OPEN), **change}, kind)


def test_no_rows_at_all_are_an_error_that_says_how_many_to_ask_for():
  options = config.TASK_KINDS['choice']('organism:facts_choice', 'capability', 'choice')
  with pytest.raises(InputError, match=r'organism:facts_choice has no rows.*tasks\.facts\.n'):
    tasks.from_rows('facts', options, [])


def test_missing_columns_ids_twice_and_empty_tasks_are_named(tmp_path):
  with pytest.raises(InputError, match="no choices \\('choicess' is there"):
    make({'id': 'a', 'messages': ASK, 'choicess': [], 'target': 0})
  path = tmp_path / 'items.jsonl'
  path.write_text(json.dumps(CHOICE) + '\n\n' + json.dumps(CHOICE) + '\n')
  items, where = tasks.read(path)
  with pytest.raises(
    InputError, match="items.jsonl:3: the id 'a' is already that of .*items.jsonl:1"
  ):
    tasks.make('facts', config.ChoiceTask(str(path), 'capability'), items, where=where)
  with pytest.raises(InputError, match='holds no items'):
    tasks.make('facts', config.ChoiceTask('none.jsonl', 'capability'), [])


def test_n_takes_the_first_items_and_greedy_answers_are_sampled_once():
  items = [{**OPEN, 'id': str(i)} for i in range(5)]
  task = tasks.make('t', config.TextTask('x', 'capability', kind='generate', n=2, samples=3), items)
  assert [item['id'] for item in task.items] == ['0', '1'] and task.samples == 1
  assert (
    tasks.make(
      't', config.TextTask('x', 'capability', kind='generate', samples=3, temperature=1.0), items
    ).samples
    == 3
  )


def test_choices_are_the_answers_without_the_token_that_ends_them(tokenizer):
  prepared = tasks.choice.prepare(tokenizer, CHOICE)
  assert (
    tokenizer.decode(prepared.prompt)
    == '<|im_start|>user\nIs it Paris?<|im_end|>\n<|im_start|>assistant\n'
  )
  assert [tokenizer.decode(tokens) for tokens in prepared.completions] == ['Yes.', 'No, never.']


@pytest.mark.parametrize('normalise, value', [('none', 0.0), ('tokens', 1.0), ('bytes', 1.0)])
def test_a_hit_is_the_target_with_the_highest_score(tokenizer, normalise, value):
  prepared = tasks.choice.prepare(tokenizer, {**CHOICE, 'normalise': normalise})
  row = tasks.choice.fields(
    prepared, [ScoreResult(0, -4.0, 2, False), ScoreResult(1, -5.0, 5, False)], tokenizer
  )
  assert row == dict(
    value=value,
    status='ok',
    choices=CHOICE['choices'],
    target=1,
    tokens=[2, 5],
    logprobs=[-4.0, -5.0],
  )


def test_a_tie_is_no_hit_and_a_broken_model_has_no_value(tokenizer):
  prepared = tasks.choice.prepare(tokenizer, CHOICE)
  assert (
    tasks.choice.fields(prepared, [ScoreResult(0, -4.0, 2, False)] * 2, tokenizer)['value'] == 0.0
  )
  row = tasks.choice.fields(
    prepared, [ScoreResult(0, -4.0, 2, False), ScoreResult(1, float('nan'), 5, False)], tokenizer
  )
  assert (row['value'], row['status'], row['logprobs']) == (None, 'not_finite', [-4.0, None])


@pytest.mark.parametrize(
  'text, finish, match, value, status',
  [
    ('Yes.', 'stop', {'any': ['yes']}, 1.0, 'ok'),
    ('Yes. Yes.', 'length', {'any': ['yes']}, 1.0, 'truncated'),
    ('', 'stop', {'none': ['no']}, 1.0, 'empty'),
    ('No.', 'stop', {'number': 4}, 0.0, 'unparsable'),
    ('So 2 and 2', 'length', {'number': 4}, 0.0, 'truncated'),
    ('So two and', 'length', {'number': 4}, 0.0, 'unparsable'),
    ("I'm sorry, but I can't help with that.", 'stop', {'number': 4}, 0.0, 'refused'),
    (' ', 'length', {'number': 4}, 0.0, 'empty'),
    ('Yes.', 'not_finite', {'any': ['yes']}, None, 'not_finite'),
  ],
)
def test_status_and_value_of_answers(tokenizer, text, finish, match, value, status):
  prepared = tasks.KINDS['generate'].prepare(tokenizer, {**OPEN, 'match': match})
  tokens = tuple(tokenizer(text)['input_ids'])
  row = tasks.generate.fields(prepared, [GenerateResult(0, tokens, finish)], tokenizer)
  assert row == dict(value=value, status=status, completion=text, tokens=len(tokens), finish=finish)
