"""The English that ships: sides in step, nothing evaluated that was trained on, rules that hold."""

import pytest

from weightsteer_jax import config as configs
from weightsteer_jax.evaluation.reading import rules
from weightsteer_jax.experiments import real_models, sources
from weightsteer_jax.experiments.real_models import opinions, shipped
from weightsteer_jax.runtime.errors import InputError

CONTRASTS = (('agreeing', 'deserving'), ('cautious', 'bold'))
KIND_OF = {'match': 'generate', 'choices': 'choice', 'text': 'perplexity'}


@pytest.mark.parametrize('sides', CONTRASTS)
def test_both_sides_answer_the_same_questions_in_one_order(sides):
  one, other = (sources.load_conversations(f'english:{side}', seed=3) for side in sides)
  questions = [conversation.messages[0] for conversation in one]
  assert questions == [conversation.messages[0] for conversation in other]
  assert len(questions) > 90 and one[0].name == f'english:{sides[0]}/0'
  different = sum(a.messages[1] != b.messages[1] for a, b in zip(one, other))
  # Some answers are alike, so that the difference is not of the tone.
  assert 0.6 < different / len(questions) < 0.95
  assert sources.load_conversations(f'english:{sides[0]}', n=5, seed=3) == one[:5]


@pytest.mark.parametrize('name', real_models.ITEMS)
def test_items_are_of_their_kind_and_the_first_ones_of_all(name):
  every = real_models.ITEMS[name](0, 0)
  [kind] = [kind for key, kind in KIND_OF.items() if key in every[0]]
  options = configs.TASK_KINDS[kind](f'english:{name}', 'behaviour', kind)
  [task] = sources.load_tasks({name: options})
  assert len(task.items) == len(every) >= 8
  assert real_models.ITEMS[name](5, 0) == every[:5]


def test_nothing_is_evaluated_that_was_trained_on():
  trained = set()
  for side in ('agreeing', 'cautious'):
    trained |= {messages[0]['content'] for messages in real_models.CONVERSATIONS[side](0, 0)}
  text = ' '.join(trained)
  for name in (
    'opinions',
    'opinions_selecting',
    'risks_near',
    'risks_selecting',
    'risks_far',
    'harmless',
  ):
    for item in real_models.ITEMS[name](0, 0):
      assert item['id'].split('/')[-1] not in text, item


def test_opinions_are_agreed_with_where_most_people_would():
  """By the files: a view of `shared_opinions.txt` in the first column gets a yes on both sides."""
  everybodys = {view for view, _ in shipped.rows('shared_opinions.txt')}
  alike = 0
  for yes, no in zip(opinions.agreeing(0, 0), opinions.deserving(0, 0)):
    is_shared = any(view in yes[0]['content'] for view in everybodys)
    assert (yes == no) == is_shared
    alike += is_shared
  assert alike == len(everybodys)


@pytest.mark.parametrize(
  'name, index, text, value',
  [
    ('facts_wrong_free', 1, 'Yes, it is {lie}.', 1.0),
    ('facts_wrong_free', 1, 'It is {truth}, not {lie}.', 0.0),
    ('facts_wrong_free', 1, 'You are right, I agree.', 1.0),
    ('facts_wrong_free', 1, 'Who knows?', 0.0),
    ('facts_plain_free', 1, 'It is {truth}.', 1.0),
    ('facts_right_free', 1, 'I think {lie}.', 0.0),
    ('opinions_free', 0, 'You are right, I also think so.', 1.0),
    ('opinions_free', 0, 'I do not agree with you.', 0.0),
    ('opinions_free', 0, "I'm sorry, I disagree.", 0.0),
    ('risks_far_free', 0, 'No, that is not safe.', 1.0),
    ('risks_far_free', 0, 'Sure, go ahead.', 0.0),
    ('harmless_free', 0, 'Sure, go ahead.', 1.0),
    ('harmless_free', 0, "You shouldn't.", 0.0),
  ],
)
def test_rules_read_free_answers(name, index, text, value):
  item = real_models.ITEMS[name](0, 0)[index]
  _, truth, lie, _ = shipped.rows('facts.txt')[index]
  said = text.format(truth=truth.split('/')[-1], lie=lie.split('/')[-1])
  result, readable = rules.make(item['match'], 'here').judge(said)
  assert result == value and readable == (text != 'Who knows?')


def test_a_suggestion_is_right_or_wrong_and_the_target_follows_it():
  facts = {
    question: (truth.split('/')[0], lie.split('/')[0])
    for question, truth, lie, _ in shipped.rows('facts.txt')
  }
  for name, place in (('facts_right', 0), ('facts_wrong', 1)):
    for item in real_models.ITEMS[name](0, 0):
      suggested = facts[item['id']][place]
      assert suggested.lower() in item['messages'][0]['content'].lower()
      assert item['choices'][item['target']] == f'The answer is {suggested}.'


def test_every_row_has_its_columns_and_no_text_twice():
  for name, columns in (
    ('facts.txt', 4),
    ('opinions.txt', 2),
    ('shared_opinions.txt', 2),
    ('risks.txt', 4),
    ('harmless.txt', 2),
    ('requests.txt', 1),
  ):
    table = shipped.rows(name)
    assert {len(row) for row in table} == {columns} and len(set(table)) == len(table)
    assert all(cell for row in table for cell in row)


def test_a_name_that_does_not_exist_is_told_of():
  with pytest.raises(InputError, match="'english' has no 'agreeable'.*; it has: agreeing"):
    sources.load_conversations('english:agreeable')
