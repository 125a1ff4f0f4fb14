"""What two sides share, each fault alone; and what training shares with evaluation."""

import pytest

from weightsteer_jax.data import likeness
from weightsteer_jax.data.sources import Conversation
from weightsteer_jax.runtime.errors import InputError


def side(*pairs, name='side'):
  made = []
  for i, (asked, answer) in enumerate(pairs):
    messages = ({'role': 'user', 'content': asked}, {'role': 'assistant', 'content': answer})
    made.append(Conversation(messages, f'{name}.jsonl:{i}'))
  return made


YES = side(('A ?', 'Yes.'), ('B ?', 'Yes.'), name='positive')


def test_the_same_questions_with_other_answers_need_no_words():
  assert likeness.notes(YES, side(('A ?', 'No.'), ('B ?', 'No.'))) == []


@pytest.mark.parametrize(
  'negative, expected',
  [
    ((('B ?', 'No.'), ('A ?', 'No.')), ['the sides have the same questions in another order']),
    (
      (('A ?', 'No.'), ('C ?', 'No.')),
      [
        "1 of the questions are on the positive side alone, 'B ?' for one",
        "1 of the questions are on the negative side alone, 'C ?' for one",
      ],
    ),
    (
      (('A ?', 'No.'), ('A ?', 'No.'), ('B ?', 'No.')),
      [
        'the positive side has 2 conversations, the negative 3',
        '1 of 3 negative conversations are there twice',
      ],
    ),
    ((('A ?', 'Yes.'), ('B ?', 'No.')), ['1 conversations are the same on both sides']),
  ],
  ids=['order', 'other questions', 'sizes and doubles', 'alike'],
)
def test_each_fault_is_told(negative, expected):
  notes = likeness.notes(YES, side(*negative))
  assert len(notes) == len(expected)
  for note, start in zip(notes, expected):
    assert note.startswith(start)


@pytest.mark.parametrize('order', [1, -1])
def test_sides_without_a_difference_are_refused(order):
  with pytest.raises(InputError, match=r'the same 2 conversations .* the direction would be zero'):
    likeness.notes(YES, YES[::order])


def test_a_thought_is_a_difference():
  thinking = [
    Conversation((one.messages[0], {**one.messages[1], 'reasoning_content': 'Hm.'}), one.name)
    for one in YES
  ]
  assert likeness.notes(YES, thinking) == []


def test_items_that_ask_what_is_trained_on():
  """By their words: another system prompt, or other blanks, make no other question."""
  system = {'role': 'system', 'content': 'Be brief.'}
  items = [
    {'id': 'a', 'messages': [system, {'role': 'user', 'content': 'A  ?'}]},
    {'id': 'c', 'messages': [{'role': 'user', 'content': 'C ?'}]},
    {'id': 'text', 'text': 'A ?'},
  ]
  assert [item['id'] for item in likeness.shared(YES, items)] == ['a']
