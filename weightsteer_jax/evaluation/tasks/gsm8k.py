"""Word problems with a number for an answer: GSM8K, or any table laid out like GSM8K.

Rows have a `question` and an `answer` that ends with '#### <number>' (or is the number): the
released jsonl files, or `openai/gsm8k:main` on the hub. `form` is `plain` (the default: the
question and nothing else) or `marked` (with the request to end with '#### <number>'). What is read
is the number after the last '####', else the last number.

  accuracy           share of all examples with the right number; no number is a wrong one
  accuracy_answered  the same among answers that do not refuse: what is lost by refusing is not lost
                     ability

Whether a drop is made of refusals is said by `refused_rate` of the failure accounting, by a judge
of `refusal` if there is one.
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

FORMS = {
  'plain': '{}',
  'marked': "{}\n\nWork it out step by step, and end with a line '#### <number>'.",
}


def build(rows: Sequence[tables.Row], options: config.FormsTask) -> list[dict[str, Any]]:
  """One item per row.

  Raises:
    InputError: if the form is unknown or not a single one, or a row lacks a question or a number
      for an answer.
  """
  [form, *others] = measures.forms_of(options.form or 'plain', tuple(FORMS))
  if others:
    raise InputError("the config key 'form' names several forms; word problems are asked in one")
  items = []
  for index, (where, row) in enumerate(rows):
    question = tables.text(row, ('question',), where)
    answer = str(tables.find(row, ('answer', 'gold', 'target'), where))
    gold = rules.extract_number(answer)
    if gold is None:
      raise InputError(f"{where}: the answer {answer!r:.60} gives no number")
    messages = [{'role': 'user', 'content': FORMS[form].format(question)}]
    items.append({'id': f'q{index:05d}', 'gold': gold, 'messages': messages})
  return items


def check(item: Mapping[str, Any], where: str) -> None:
  """Raises InputError if the item has no number for an answer."""
  gold = item['gold']
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
    return float(rules.is_same_number(number, gold)), {'answer': number}

  return answers.fields(prepared, results, tokenizer, read)


def judged(item: Mapping[str, Any], row: Row) -> list[tuple[str, dict[str, str]]]:
  """Whether the answer refuses."""
  return answers.judged(item, row, 'refusal')


def _answered(row: Row) -> bool:
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
  split='test',
  metrics={
    'accuracy': each(measures.value_or_zero),
    'accuracy_answered': each(measures.where(_answered, measures.value)),
  },
)
