"""Multiple choice with reasoning: the tables of `mmlu`, answered in text.

An answer ends with 'Final Answer: <letter>'.

  accuracy           share of all examples ending with the right letter; no letter counts as wrong
  valid_answer_rate  share of all examples ending with a letter
  accuracy_of_valid  share of right letters among answers with a letter
  consistent_rate    share of letters that follow from the reasoning (judge of `consistency`)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import tables
from weightsteer_jax.evaluation.reading import answers, consistency, letters, measures
from weightsteer_jax.evaluation.reading.measures import each
from weightsteer_jax.evaluation.tasks import mmlu
from weightsteer_jax.evaluation.tasks.kind import Kind
from weightsteer_jax.inference.requests import GenerateResult

# Ends with the marker that `letters.final` looks for.
INSTRUCTION = f"Think about it step by step. End with a line '{letters.FINAL} <letter>'."


def build(rows: Sequence[tables.Row], options: config.TableTask) -> list[dict[str, Any]]:
  """An item for each row.

  Raises:
    InputError: if a row lacks a question, options or an answer.
  """
  del options
  items = []
  for name, question, choices, answer in mmlu.questions(rows):
    items.append(
      {
        'id': name,
        'choices': choices,
        'answer': answer,
        'messages': mmlu.ask(question, choices, INSTRUCTION),
      }
    )
  return items


def check(item: Mapping[str, Any], where: str) -> None:
  """Raises InputError if the item lacks options, or its answer is the letter of none."""
  choices = letters.options_of(item, where)
  # Raises if the letter is beyond the last option.
  letters.letter_of(item['answer'], len(choices), where)


def fields(
  prepared: answers.Prepared, results: Sequence[GenerateResult], tokenizer: Any
) -> dict[str, Any]:
  """Value (1 if the last letter is right), status, text, and the letter as `choice`."""
  item = prepared.item

  def read(text: str) -> tuple[float, dict[str, Any] | None]:
    choice = letters.final(text, len(item['choices']))
    # An answer without a letter is invalid, and counts as wrong.
    if choice is None:
      return 0.0, None
    is_right = choice == item['answer']
    return float(is_right), {'choice': choice}

  return answers.fields(prepared, results, tokenizer, read)


KIND = Kind[config.TableTask, GenerateResult](
  required=('id', 'messages', 'choices', 'answer'),
  optional=('group',),
  prepare=answers.prepare,
  requests=answers.requests,
  fields=fields,
  check=check,
  judged=consistency.judged,
  build=build,
  # The tables are those of mmlu.
  split=mmlu.KIND.split,
  metrics={
    'accuracy': each(measures.value_or_zero),
    'valid_answer_rate': each(letters.has_choice),
    'accuracy_of_valid': each(measures.where(letters.has_choice, measures.value)),
    'consistent_rate': each(consistency.is_consistent),
  },
)
