"""Items that are a question and nothing more, from tables of many layouts."""

from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import sources, tables
from weightsteer_jax.runtime.errors import InputError

COLUMNS = ('question', 'prompt', 'instruction', 'instructions', 'text')


def items(rows: Sequence[tables.Row]) -> list[dict[str, Any]]:
  """[{id, messages}] of rows with `messages` (their last answer is left off), with a question in
  one of COLUMNS (the `input` of an instruction below it, a `system` prompt above), or of one row
  with a list of `questions`, as trait files have.

  Raises:
    InputError: a row without a question.
  """
  found = [(where, messages) for where, row in rows for messages in _conversations(row, where)]
  return [
    {'id': f'q{index:05d}', 'messages': list(messages)} for index, (_, messages) in enumerate(found)
  ]


def build(rows: Sequence[tables.Row], options: config.Task) -> list[dict[str, Any]]:
  """The items of a kind that asks questions and nothing more: one per question, as `items`."""
  del options
  return items(rows)


def check(item: Mapping[str, Any], where: str) -> None:
  """Nothing: that an item has messages that end with the user's is checked of every kind."""


def _conversations(row: Mapping[str, Any], where: str) -> list[Sequence[Mapping[str, str]]]:
  if 'questions' in row:
    listed = row['questions']
    if (
      isinstance(listed, str)
      or not isinstance(listed, Sequence)
      or not all(isinstance(text, str) for text in listed)
    ):
      raise InputError(f"{where}: 'questions' must be a list of texts")
    return [[{'role': 'user', 'content': text}] for text in listed]
  if 'messages' in row:
    messages = list(sources.check_messages(row['messages'], where))
    return [messages[:-1] if messages[-1]['role'] == 'assistant' else messages]
  text = tables.text(row, COLUMNS, where)
  extra = tables.find(row, ('input',), where, default='')
  system = tables.find(row, ('system',), where, default='')
  asked = {'role': 'user', 'content': f'{text}\n\n{extra}'.strip()}
  return [[{'role': 'system', 'content': system}, asked] if system else [asked]]
