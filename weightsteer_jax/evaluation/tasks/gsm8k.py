"""Word problems with a number for an answer: GSM8K, or any table laid out like GSM8K.

Rows have a `question` and an `answer` ending with '#### <number>' (or the number alone): the
released jsonl files, or `openai/gsm8k:main` on the hub. `form` is `plain` (the default: the
question and nothing else) or `marked` (with the request to end with '#### <number>'). The number
read from an answer is the number after the last '####', else the last number.

  accuracy           share of all examples with the right number; no number counts as wrong
  accuracy_answered  the same share among answers without a refusal: accuracy lost by refusing is
                     not lost ability

`refused_rate` of the failure accounting says how much of a drop is refusals, as seen by a judge of
`refusal` if configured.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import tables
from weightsteer_jax.evaluation.reading import answers, failures, measures, rules
from weightsteer_jax.evaluation.reading.measures import Row, each
from weightsteer_jax.evaluation.tasks.kind import Kind
from weightsteer_jax.inference.requests import GenerateResult
from weightsteer_jax.runtime.errors import InputError

# {form: the user's message around the question}.
FORMS = {
  'plain': '{}',
  'marked': "{}\n\nWork it out step by step, and end with a line '#### <number>'.",
}


def build(rows: Sequence[tables.Row], options: config.FormsTask) -> list[dict[str, Any]]:
  """An item for each row.

  Raises:
    InputError: if the form is unknown, several forms are named, or a row lacks a question or a
      number for an answer.
  """
  # All rows in one form: accuracy of two forms together would mean nothing.
  [form, *others] = measures.forms_of(options.form or 'plain', tuple(FORMS))
  if others:
    raise InputError("the config key 'form' names several forms; word problems are asked in one")
  items = []
  for index, (where, row) in enumerate(rows):
    question = tables.text(row, ('question',), where)
    answer = str(tables.find(row, ('answer', 'gold', 'target'), where))
    # Read as a model's answer is read, so that both numbers are written alike.
    gold = rules.extract_number(answer)
    if gold is None:
      raise InputError(f"{where}: the answer {answer!r:.60} gives no number")
    content = FORMS[form].format(question)
    items.append(
      {
        'id': f'q{index:05d}',
        'gold': gold,
        'messages': [{'role': 'user', 'content': content}],
      }
    )
  return items


def check(item: Mapping[str, Any], where: str) -> None:
  """Raises InputError if the item has no number for an answer."""
  gold = item['gold']
  # In Python True is an int.
  is_number = isinstance(gold, int | float) and not isinstance(gold, bool)
  if not is_number or not math.isfinite(gold):
    raise InputError(f"{where}: 'gold' is {gold!r}, expected a number")


def fields(
  prepared: answers.Prepared, results: Sequence[GenerateResult], tokenizer: Any
) -> dict[str, Any]:
  """Value (1 if the number read is the right one), status, text, and the number as `answer`."""
  gold = prepared.item['gold']

  def read(text: str) -> tuple[float, dict[str, Any] | None]:
    number = rules.extract_number(text)
    if number is None:
      return 0.0, None
    is_right = rules.is_same_number(number, gold)
    return float(is_right), {'answer': number}

  return answers.fields(prepared, results, tokenizer, read)


def judged(item: Mapping[str, Any], row: Row) -> list[tuple[str, dict[str, str]]]:
  """The question to a judge of whether the answer refuses."""
  return answers.judged(item, row, 'refusal')


def does_answer(row: Row) -> bool:
  """Whether the row is known not to be a refusal."""
  # None, where the judge gave no score, is not known.
  return failures.refused(row) == 0


KIND = Kind[config.FormsTask, GenerateResult](
  required=('id', 'messages', 'gold'),
  optional=('group',),
  prepare=answers.prepare,
  requests=answers.requests,
  fields=fields,
  check=check,
  judged=judged,
  build=build,
  # Training rows may be in a model's training data.
  split='test',
  metrics={
    'accuracy': each(measures.value_or_zero),
    'accuracy_answered': each(measures.where(does_answer, measures.value)),
  },
)
