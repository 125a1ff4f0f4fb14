import pytest

from weightsteer_jax.evaluation.reading import refusals, rules
from weightsteer_jax.runtime.errors import InputError


@pytest.mark.parametrize(
  'match, text, value, readable',
  [
    ({'any': [r'\byes\b'], 'none': ['wrong']}, 'Well, YES.', 1.0, True),
    ({'any': [r'\byes\b'], 'none': ['wrong']}, 'Yes, but wrong.', 0.0, True),
    ({'any': ['a', 'b'], 'none': []}, 'only B', 1.0, True),
    ({'none': ['no']}, '', 1.0, True),
    ({'exact': ['The Eiffel Tower', 'Tour Eiffel']}, ' eiffel tower! ', 1.0, True),
    ({'exact': ['The Eiffel Tower']}, 'the eiffel tower in Paris', 0.0, True),
    ({'number': 1204}, 'So 3 * 400 + 4 = 1,204.', 1.0, True),
    ({'number': 7}, '#### 7\nThat took 3 steps', 1.0, True),
    ({'number': -3.5}, 'It is -3.50', 1.0, True),
    ({'number': 4}, '10-4', 1.0, True),
    ({'number': 3}, 'three', 0.0, False),
    ({'number': 3, 'none': ['sorry']}, 'Sorry: 3', 0.0, True),
  ],
)
def test_judgements(match, text, value, readable):
  assert rules.make(match, 'here').judge(text) == (value, readable)


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('<think>Truth: Paris.</think> It is Lyon.', (0.0, True)),
    ('<think>Truth: Lyon.</think> It is Paris.', (1.0, True)),
    # Without its opening tag, which a prompt may hold.
    ('Truth: Paris.</think> It is Lyon.', (0.0, True)),
    # The model had not begun to answer.
    ('<think>Perhaps it is Paris', (0.0, False)),
    ('[THINK]Paris?[/THINK]Lyon', (0.0, True)),
  ],
)
def test_thoughts_are_no_part_of_the_answer(text, expected):
  assert rules.against_gold(['Paris']).judge(text) == expected


def test_a_refusal_in_a_thought_is_none():
  assert not refusals.refuses('<think>I cannot help with that.</think> Here is how.')
  assert refusals.refuses('<think>Here is how.</think> I cannot help with that.')


@pytest.mark.parametrize(
  'match, message',
  [
    ({'anny': ['x']}, "unknown rule 'anny' in 'match' \\(did you mean 'any'"),
    ({'any': 'x'}, 'expected a list of texts'),
    ({'any': ['(']}, 'no regular expression'),
    ({}, 'expected an object'),
    (['x'], 'expected an object'),
    ({'any': [], 'none': []}, 'every answer would pass'),
    ({'number': '3'}, 'expected a number'),
    ({'number': True}, 'expected a number'),
  ],
)
def test_rules_that_make_no_sense_are_named(match, message):
  with pytest.raises(InputError, match=f'items.jsonl:4: .*{message}'):
    rules.make(match, 'items.jsonl:4')
