"""Multiple choice by letter, from tables laid out as MMLU: the most likely letter is the answer.

Rows have `question`, the options (a list `choices`, or columns A, B, C, ..) and `answer`, a letter
or a number from 0: csv files with a header line, `cais/mmlu:all`, `tinyBenchmarks/tinyMMLU`.
Metrics are the metrics of `choice`; each choice is a letter.
"""

from collections.abc import Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import tables
from weightsteer_jax.evaluation.reading import letters
from weightsteer_jax.evaluation.tasks import choice
from weightsteer_jax.evaluation.tasks.kind import Kind
from weightsteer_jax.inference.requests import ScoreResult

INSTRUCTION = 'Reply with the letter of the right option and nothing else.'


def build(rows: Sequence[tables.Row], options: config.LettersTask) -> list[dict[str, Any]]:
  """An item for each row.

  Raises:
    InputError: if a row lacks a question, options or an answer.
  """
  del options
  items = []
  for name, question, choices, answer in questions(rows):
    # The options stand in the prompt; the completions to score are their letters alone.
    items.append(
      {
        'id': name,
        'choices': list(letters.LETTERS[: len(choices)]),
        'target': letters.LETTERS.index(answer),
        'messages': ask(question, choices, INSTRUCTION),
      }
    )
  return items


def questions(rows: Sequence[tables.Row]) -> list[tuple[str, str, list[str], str]]:
  """(id, question, options, right letter) of every row."""
  named_questions = []
  # Tables of MMLU have no ids, so a row's number is the id.
  for index, (where, row) in enumerate(rows):
    choices = letters.options_of(row, where)
    answer = tables.find(row, ('answer', 'target', 'label'), where)
    question = tables.text(row, ('question',), where)
    letter = letters.letter_of(answer, len(choices), where)
    named_questions.append((f'q{index:05d}', question, choices, letter))
  return named_questions


def ask(question: str, choices: Sequence[str], instruction: str) -> list[dict[str, str]]:
  """The user's message: question, lettered options, instruction."""
  options = letters.lettered(choices)
  content = f'{question}\n\n{options}\n\n{instruction}'
  return [{'role': 'user', 'content': content}]


# Items, answers and metrics are those of `choice`; only the way from a table to items differs.
KIND = Kind[config.LettersTask, ScoreResult](
  required=choice.KIND.required,
  optional=choice.KIND.optional,
  prepare=choice.prepare,
  requests=choice.requests,
  fields=choice.fields,
  check=choice.check,
  build=build,
  split='test',
  metrics=choice.KIND.metrics,
)
