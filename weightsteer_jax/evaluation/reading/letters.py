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
  r"""The options, one a line.

  >>> lettered(['yes', 'no'])
  'A. yes\nB. no'
  """
  return '\n'.join(f'{letter}. {option}' for letter, option in zip(LETTERS, options))


def final(text: str, count: int) -> str | None:
  """The letter after the last 'Final Answer:', or None; `count` is the number of options.

  >>> [final(text, 2) for text in ('Final Answer: B', 'final answer: **(a)**')]
  ['B', 'A']
  >>> [final(text, 2) for text in ('So B.', 'Final Answer: Both')]
  [None, None]
  """
  stated = _FINAL.findall(text)
  return _known(stated[-1], count) if stated else None


def reasoning(text: str) -> str:
  """What stands before the last 'Final Answer:'.

  >>> reasoning('It is wet. So: **Final Answer: A**')
  'It is wet. So:'
  """
  starts = [match.start() for match in _FINAL.finditer(text)]
  if not starts:
    return text.strip()
  # The stars are those of bold letters around 'Final Answer'.
  return text[: starts[-1]].strip(' \n*')


def alone(text: str, count: int) -> str | None:
  """The letter that an answer begins with ('B', '(b).', 'Answer: B'), or as `final`, or None.

  >>> [alone(text, 2) for text in ('B', ' (a)', 'Answer: B, since', 'Final Answer: B')]
  ['B', 'A', 'B', 'B']
  >>> [alone(text, 2) for text in ('A dog', 'Neither')]
  [None, None]
  """
  stated = final(text, count)
  if stated is not None:
    return stated
  match = _ALONE.match(text)
  # 'A dog' and 'I think' begin with words, not with letters.
  if not match or re.match(r' [a-z]', text[match.end(1) :]):
    return None
  return _known(match[1], count)


def has_choice(row: Mapping[str, Any]) -> bool:
  """Whether a letter was read from the row's answer, and the model did not break."""
  return 'choice' in row and row['value'] is not None


def options_of(row: Mapping[str, Any], where: str) -> list[str]:
  """The options of a row: its list `choices` (or `options`), or its columns A, B, C and so on.

  Raises:
    InputError: if there are fewer than two options or more than ten.
  """
  columns = [letter for letter in LETTERS if letter in row]
  listed = tables.find(row, ('choices', 'options'), where, default=columns)
  # Some datasets keep {text: [..], label: [..]}.
  if isinstance(listed, Mapping):
    listed = tables.find(listed, ('text',), where)
  # A list may name columns of the row in place of options.
  if listed and all(name in row for name in listed):
    options = [row[name] for name in listed]
  else:
    options = list(listed)
  if len(options) < 2 or len(options) > len(LETTERS) or isinstance(listed, str):
    raise InputError(
      f"{where}: {len(options)} options, expected 2 to {len(LETTERS)}: a list 'choices', or "
      "columns A, B, .."
    )
  return [str(option) for option in options]


def letter_of(value: Any, count: int, where: str) -> str:
  """A right answer as a letter; the table gives a letter or a number from 0.

  Raises:
    InputError: if the answer is neither, or beyond the options.
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
