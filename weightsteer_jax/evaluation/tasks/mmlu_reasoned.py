"""Multiple choice with reasoning: the tables of `mmlu`, answered in text that ends with 'Final
Answer: <letter>'.

accuracy           share of all examples that end with the right letter; no letter is a wrong one
valid_answer_rate  share of all examples that end with a letter
accuracy_of_valid  share of those that are right
consistent_rate    share of letters that follow from their reasoning (judge of `consistency`)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import tables
from weightsteer_jax.evaluation.reading import answers, consistency, letters
from weightsteer_jax.evaluation.reading.answers import prepare, requests
from weightsteer_jax.evaluation.reading.consistency import judged
from weightsteer_jax.evaluation.reading.measures import Metric, each
from weightsteer_jax.evaluation.tasks import mmlu
from weightsteer_jax.inference.requests import GenerateResult

REQUIRED, OPTIONAL, GENERATES = ('id', 'messages', 'choices', 'answer'), ('group',), True
SPLIT = mmlu.SPLIT
INSTRUCTION = f"Think about it step by step. End with a line '{letters.FINAL} <letter>'."


def build(rows: Sequence[tables.Row], options: config.Task) -> list[dict[str, Any]]:
  """One item per row.

  Raises:
    InputError: a row without question, options or answer.
  """
  del options
  return [
    {
      'id': name,
      'choices': choices,
      'answer': answer,
      'messages': mmlu.ask(question, choices, INSTRUCTION),
    }
    for name, question, choices, answer in mmlu.questions(rows)
  ]


def check(item: Mapping[str, Any], where: str) -> None:
  """Nothing, if the item has options and the letter of one.

  Raises:
    InputError: names the item and what is wrong with it.
  """
  letters.letter_of(item['answer'], len(letters.options_of(item, where)), where)


def fields(
  prepared: answers.Prepared, results: Sequence[GenerateResult], tokenizer: Any
) -> dict[str, Any]:
  """Value (1 if the last letter is the right one), status, text, and the letter as `choice`."""
  item = prepared.item

  def read(text):
    choice = letters.final(text, len(item['choices']))
    return float(choice == item['answer']), None if choice is None else {'choice': choice}

  return answers.row(prepared, results, tokenizer, read)


METRICS: dict[str, Metric] = {
  'accuracy': each(lambda row: row['value'] or 0.0),
  'valid_answer_rate': each(lambda row: float(has_choice(row))),
  'accuracy_of_valid': each(lambda row: row['value'] if has_choice(row) else None),
  'consistent_rate': each(consistency.is_consistent),
}


def has_choice(row: Mapping[str, Any]) -> bool:
  """Whether a letter was given, by a model that did not break."""
  return 'choice' in row and row['value'] is not None
