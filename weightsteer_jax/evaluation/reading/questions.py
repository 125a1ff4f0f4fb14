"""Items of a question and nothing more, from tables of many layouts."""

from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import sources, tables
from weightsteer_jax.runtime.errors import InputError

# Names of the column with the question, in order of preference; instruction data sets use the
# middle names.
COLUMNS = ('question', 'prompt', 'instruction', 'instructions', 'text')


def items(rows: Sequence[tables.Row]) -> list[dict[str, Any]]:
  """[{id, messages}], an item per question.

  A row has `messages` (a last answer is left off), a question in one of COLUMNS (the `input` of an
  instruction goes below the question, a `system` prompt above), or a list of `questions`, as in
  trait files.

  Raises:
    InputError: if a row has no question.
  """
  conversations: list[Sequence[Mapping[str, str]]] = []
  for where, row in rows:
    conversations += _conversations(row, where)
  # By number, because most tables of questions have no names; padded, so that names sort.
  return [
    {'id': f'q{index:05d}', 'messages': list(messages)}
    for index, messages in enumerate(conversations)
  ]


def build(rows: Sequence[tables.Row], options: config.Task) -> list[dict[str, Any]]:
  """The items of a kind that asks questions and nothing more, by `items`."""
  # Every kind's `build` takes options; a plain question needs none.
  del options
  return items(rows)


def _conversations(row: Mapping[str, Any], where: str) -> list[Sequence[Mapping[str, str]]]:
  if 'questions' in row:
    texts = row['questions']
    # A text is a sequence of characters, and would pass for a list of questions.
    is_list = isinstance(texts, Sequence) and not isinstance(texts, str)
    if not is_list or not all(isinstance(text, str) for text in texts):
      raise InputError(f"{where}: 'questions' must be a list of texts")
    return [[{'role': 'user', 'content': text}] for text in texts]
  if 'messages' in row:
    messages = list(sources.check_messages(row['messages'], where))
    # The model under test answers in place of the table's answer.
    if messages[-1]['role'] == 'assistant':
      messages = messages[:-1]
    return [messages]
  text = tables.text(row, COLUMNS, where)
  # The layout of instruction data such as Alpaca, where `input` is the text to work on.
  extra = tables.find(row, ('input',), where, default='')
  system = tables.find(row, ('system',), where, default='')
  question = {'role': 'user', 'content': f'{text}\n\n{extra}'.strip()}
  if not system:
    return [[question]]
  return [[{'role': 'system', 'content': system}, question]]
