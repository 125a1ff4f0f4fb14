"""Multiple choice by letter, from tables laid out as MMLU: which letter does the model find most
likely?

Rows have `question`, the options (a list `choices`, or columns A, B, C, ..) and `answer`, a letter
or a number from 0:
csv files with a header line, `cais/mmlu:all`, `tinyBenchmarks/tinyMMLU`. Metrics are those of
`choice`; each choice is one letter.
"""

from collections.abc import Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import tables
from weightsteer_jax.evaluation.reading import letters
from weightsteer_jax.evaluation.tasks.choice import (
  GENERATES,
  METRICS,
  OPTIONAL,
  REQUIRED,
  check,
  fields,
  prepare,
  requests,
)

SPLIT = 'test'
INSTRUCTION = 'Reply with the letter of the right option and nothing else.'


def build(rows: Sequence[tables.Row], options: config.Task) -> list[dict[str, Any]]:
  """One item per row.

  Raises:
    InputError: a row without question, options or answer.
  """
  del options
  return [
    {
      'id': name,
      'choices': list(letters.LETTERS[: len(choices)]),
      'target': letters.LETTERS.index(answer),
      'messages': ask(question, choices, INSTRUCTION),
    }
    for name, question, choices, answer in questions(rows)
  ]


def questions(rows: Sequence[tables.Row]) -> list[tuple[str, str, list[str], str]]:
  """(id, question, options, right letter) of every row."""
  found = []
  for index, (where, row) in enumerate(rows):
    choices = letters.options_of(row, where)
    answer = tables.find(row, ('answer', 'target', 'label'), where)
    found.append(
      (
        f'q{index:05d}',
        tables.text(row, ('question',), where),
        choices,
        letters.letter_of(answer, len(choices), where),
      )
    )
  return found


def ask(question: str, choices: Sequence[str], instruction: str) -> list[dict[str, str]]:
  """The user's message: question, lettered options, what to answer with."""
  return [
    {'role': 'user', 'content': f'{question}\n\n{letters.lettered(choices)}\n\n{instruction}'}
  ]
