import pytest

from weightsteer_jax.evaluation.reading import letters
from weightsteer_jax.runtime.errors import InputError


@pytest.mark.parametrize(
  'text, letter',
  [
    ('Final Answer: A', 'A'),
    ('final answer: b', 'B'),
    ('**Final Answer:** (B)', 'B'),
    ('Final Answer: **B**.', 'B'),
    ('Final Answer is C', 'C'),
    ('Final Answer: $\\boxed{D}$', 'D'),
    ('Final Answer: \\boxed{\\text{A}}', 'A'),
    ('Final Answer: A? No.\nFinal Answer: D', 'D'),
    ('Final Answer: Option B', 'B'),
    ('Final Answer: E', None),
    ('Final Answer: Both', None),
    ('Final Answer: And so on', None),
    ('The answer is A.', None),
    ('', None),
    ('Final Answer:', None),
    ('Final Answer: C. because it is so', 'C'),
    ('Final Answer:\nB', 'B'),
  ],
)
def test_the_letter_after_final_answer(text, letter):
  assert letters.final(text, 4) == letter


@pytest.mark.parametrize(
  'text, letter',
  [
    ('B', 'B'),
    ('(a)', 'A'),
    ('b.', 'B'),
    ('Answer: A', 'A'),
    ('The answer is B.', 'B'),
    ('**A**', 'A'),
    ('B) to run', 'B'),
    ('A dog', None),
    ('Both', None),
    ('I would not', None),
    ('C', None),
    ('', None),
    ('Well, B', None),
    ('A. Give it back', 'A'),
    ('A, because', 'A'),
    ('Final Answer: B', 'B'),
  ],
)
def test_the_letter_alone(text, letter):
  assert letters.alone(text, 2) == letter


def test_the_reasoning_is_what_stands_before():
  assert (
    letters.reasoning('Final Answer: A? No.\nIt is wet.\n\nFinal Answer: D')
    == 'Final Answer: A? No.\nIt is wet.'
  )
  assert letters.reasoning('It is wet. ') == 'It is wet.'


def test_options_and_answers_of_rows():
  assert letters.options_of({'choices': ['x', 'y', 'z']}, 'here') == ['x', 'y', 'z']
  assert letters.options_of({'A': 'x', 'B': 'y', 'answer': 'A'}, 'here') == ['x', 'y']
  assert letters.options_of({'choices': {'text': ['x', 'y'], 'label': ['A', 'B']}}, 'here') == [
    'x',
    'y',
  ]
  with pytest.raises(InputError, match="here: 1 options"):
    letters.options_of({'A': 'x'}, 'here')
  with pytest.raises(InputError, match="here: 0 options"):
    letters.options_of({'question': 'x'}, 'here')
  assert [letters.letter_of(value, 4, 'here') for value in (0, '3', 'b', 'D ')] == [
    'A',
    'D',
    'B',
    'D',
  ]
  for value in (4, 'E', 'x', '', 1.5):
    with pytest.raises(InputError, match='expected a letter from A to D or a number from 0'):
      letters.letter_of(value, 4, 'here')
