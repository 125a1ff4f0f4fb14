"""Lettered options, and which of them an answer chooses."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.data import tables
from weightsteer_jax.runtime.errors import InputError

LETTERS = 'ABCDEFGHIJ'
FINAL = 'Final Answer:'
# Between the words and the letter may stand what people put around it: spaces, stars, brackets,
# \boxed{, \text{.
_FINAL = re.compile(
  r'final\s+answer\s*\**\s*(?:is|:)?\W*(?:boxed\W*|text\W*|option\s*\W*){0,3}([A-J])(?![a-z])',
  re.IGNORECASE,
)
_ALONE = re.compile(
  r'\W*(?:(?:the |my )?(?:answer|choice|option)(?: is)?\W*)?([A-J])(?:\W|$)', re.IGNORECASE
)


def lettered(options: Sequence[str]) -> str:
  """The options, one a line.

  >>> lettered(['yes', 'no'])
  'A. yes\\nB. no'
  """
  return '\n'.join(f'{letter}. {option}' for letter, option in zip(LETTERS, options))


def final(text: str, count: int) -> str | None:
  """The letter after the last 'Final Answer:', or None; `count` is the number of options.

  >>> [final(text, 2) for text in ('Final Answer: B', 'final answer: **(a)**', 'So B.', 'Final Answer: Both')]
  ['B', 'A', None, None]
  """
  found = _FINAL.findall(text)
  return _known(found[-1], count) if found else None


def reasoning(text: str) -> str:
  """What stands before the last 'Final Answer:'.

  >>> reasoning('It is wet. So: **Final Answer: A**')
  'It is wet. So:'
  """
  starts = [found.start() for found in _FINAL.finditer(text)]
  return text[: starts[-1]].strip(' \n*') if starts else text.strip()


def alone(text: str, count: int) -> str | None:
  """The letter that an answer begins with, by itself ('B', '(b).', 'Answer: B'), or as `final`;
  None if there is none.

  >>> [alone(text, 2) for text in ('B', ' (a)', 'Answer: B, since', 'A dog', 'Neither', 'Final Answer: B')]
  ['B', 'A', 'B', None, None, 'B']
  """
  if (stated := final(text, count)) is not None:
    return stated
  found = _ALONE.match(text)
  # 'A dog' and 'I think' begin with words, not with letters.
  if not found or re.match(r' [a-z]', text[found.end(1) :]):
    return None
  return _known(found[1], count)


def has_choice(row: Mapping[str, Any]) -> bool:
  """Whether a letter was read from the row's answer, and the model did not break."""
  return 'choice' in row and row['value'] is not None


def options_of(row: Mapping[str, Any], where: str) -> list[str]:
  """The options of a row: its list `choices` (or `options`), or its columns A, B, C and so on.

  Raises:
    InputError: fewer than two, or one that is no text.
  """
  listed = tables.find(
    row, ('choices', 'options'), where, default=[letter for letter in LETTERS if letter in row]
  )
  if isinstance(listed, Mapping):  # As in datasets that keep {text: [..], label: [..]}.
    listed = tables.find(listed, ('text',), where)
  options = (
    [row[name] for name in listed]
    if listed and all(name in row for name in listed)
    else list(listed)
  )
  if len(options) < 2 or len(options) > len(LETTERS) or isinstance(listed, str):
    raise InputError(
      f"{where}: {len(options)} options, expected 2 to {len(LETTERS)}: a list 'choices', or "
      "columns A, B, .."
    )
  return [str(option) for option in options]


def letter_of(value: Any, count: int, where: str) -> str:
  """A right answer as a letter: given as one, or as a number from 0.

  Raises:
    InputError: it is neither, or beyond the options.
  """
  text = str(value).strip()
  letter = LETTERS[int(text)] if text.isdecimal() and int(text) < len(LETTERS) else text.upper()
  if len(letter) != 1 or _known(letter, count) is None:
    raise InputError(
      f'{where}: the answer is {value!r}, expected a letter from A to {LETTERS[count - 1]} '
      'or a number from 0'
    )
  return letter


def _known(letter: str, count: int) -> str | None:
  return letter.upper() if letter.upper() in LETTERS[:count] else None
