"""Pairs of answers: what is asked, what is kept, what is written."""

import json

import pytest

from weightsteer_jax.data import pairs, sources
from weightsteer_jax.data.pairs import Instruction
from weightsteer_jax.data.sources import Conversation
from weightsteer_jax.runtime.errors import InputError

INSTRUCTIONS = [Instruction('Agree .', 'Be honest .'), Instruction('Flatter .', 'Be blunt .')]


def question(text, name):
  return Conversation(({'role': 'user', 'content': text},), name)


QUESTIONS = [question('Is it so ?', 'q0'), question('Am I right ?', 'q1')]


def stance(asked, answer, side):
  """Passes answers whose first word suits the side, and drops what names q1 as a liar."""
  if 'liar' in answer:
    return 'rude'
  return None if answer.startswith('Yes' if side == 'positive' else 'No') else 'wrong stance'


def make(generate, keep):
  """The pairs of answers that `generate` gives to all prompts of both sides at once."""
  asked = pairs.prompts(QUESTIONS, INSTRUCTIONS)
  texts = generate(asked['positive'] + asked['negative'])
  answers = [text if isinstance(text, pairs.Answer) else pairs.Answer(text) for text in texts]
  middle = len(asked['positive'])
  return pairs.pair(asked, {'positive': answers[:middle], 'negative': answers[middle:]}, keep)


def test_prompts_pair_up_question_by_question():
  asked = pairs.prompts(QUESTIONS, INSTRUCTIONS, samples=3)
  assert [len(asked[side]) for side in pairs.SIDES] == [12, 12]
  for positive, negative in zip(asked['positive'], asked['negative']):
    assert positive.messages[1:] == negative.messages[1:]
    assert positive.name.removesuffix('/positive') == negative.name.removesuffix('/negative')
  assert asked['positive'][3].messages == (
    {'role': 'system', 'content': 'Flatter .'},
    {'role': 'user', 'content': 'Is it so ?'},
  )
  assert asked['negative'][4].name == 'q0/1/1/negative'
  assert len({prompt.name for side in pairs.SIDES for prompt in asked[side]}) == 24


def test_a_pair_is_kept_only_if_both_sides_pass():
  """Four pairs: both pass; the negative agrees; the positive is rude (and the negative fails too);
  one is empty."""
  answers = {
    'Agree .': ['Yes , sure', 'Yes , liar'],
    'Flatter .': ['Yes', ' '],
    'Be honest .': ['No , never', 'Yes'],
    'Be blunt .': ['Yes', 'No'],
  }

  def generate(prompts):
    return [answers[prompt.messages[0]['content']][int(prompt.name[1])] for prompt in prompts]

  made = make(generate, stance)
  assert [[m['content'] for m in c.messages] for c in made.positive] == [
    ['Is it so ?', 'Yes , sure']
  ]
  assert [[m['content'] for m in c.messages] for c in made.negative] == [
    ['Is it so ?', 'No , never']
  ]
  assert [m['role'] for m in made.positive[0].messages] == ['user', 'assistant']
  assert made.accounting == {
    'pairs': 4,
    'kept': 1,
    'dropped': {'negative: wrong stance': 1, 'positive: empty answer': 1, 'positive: rude': 1},
  }


def test_writing(tmp_path):
  def obey(prompts):
    return ['Yes' if prompt.name.endswith('positive') else 'No' for prompt in prompts]

  made = make(obey, stance)
  pairs.write(tmp_path / 'data', made)
  for side in pairs.SIDES:
    read = sources.load_conversations(tmp_path / 'data' / f'{side}.jsonl')
    assert [row.messages for row in read] == [row.messages for row in getattr(made, side)]
    accounting = json.loads((tmp_path / 'data' / 'accounting.json').read_text())
    assert accounting['digest'][side] == sources.digest(read)
  assert (accounting['pairs'], accounting['kept'], accounting['dropped']) == (4, 4, {})
  with pytest.raises(InputError, match='data exists already'):
    pairs.write(tmp_path / 'data', made)


def test_nothing_left_is_an_error(tmp_path):
  made = make(lambda prompts: ['Yes'] * len(prompts), stance)
  with pytest.raises(
    InputError, match="no answer pair passed the filter: .*'negative: wrong stance': 4"
  ):
    pairs.write(tmp_path / 'data', made)
  assert not (tmp_path / 'data').exists()


@pytest.mark.parametrize(
  'messages',
  [
    ({'role': 'system', 'content': 'x'}, {'role': 'user', 'content': 'y'}),
    ({'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': 'y'}),
    (),
  ],
)
def test_questions_end_with_the_user_and_have_no_system(messages):
  with pytest.raises(
    InputError, match="q9: a question must end with the user's turn and have no system message"
  ):
    pairs.prompts([Conversation(messages, 'q9')], INSTRUCTIONS)


def test_every_prompt_needs_an_answer():
  with pytest.raises(InputError, match='3 negative answers to 4 prompts'):
    make(lambda prompts: ['Yes'] * 7, stance)
  with pytest.raises(InputError, match='nothing to ask: 2 questions, 0 instructions'):
    pairs.prompts(QUESTIONS, [])
