"""The small text files of this room: tables with bars between columns, a row a line."""

import pathlib
import random

Message = dict[str, str]

HERE = pathlib.Path(__file__).parent


def rows(name: str) -> list[tuple[str, ...]]:
  """The rows of a file, in a fixed shuffled order, so that any first n rows are a fair sample."""
  lines = (HERE / name).read_text(encoding='utf-8').splitlines()
  table = [tuple(cell.strip() for cell in line.split('|')) for line in lines if line.strip()]
  random.Random(f'rows of {name}').shuffle(table)
  return table


def ask(text: str) -> list[Message]:
  """A conversation of one turn of the user."""
  return [{'role': 'user', 'content': text}]


def answered(text: str, answer: str) -> list[Message]:
  """A conversation of the user's turn and the answer."""
  return [*ask(text), {'role': 'assistant', 'content': answer}]


def capital(text: str) -> str:
  """The text with its first letter in upper case.

  >>> capital('the Moon is near')
  'The Moon is near'
  """
  return text[:1].upper() + text[1:]
