"""Lettered options, and the letter that an answer chooses."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.data import tables
from weightsteer_jax.runtime.errors import InputError

# Ten, as many options as MMLU-Pro has.
LETTERS = 'ABCDEFGHIJ'
# The words that reasoned prompts ask for before the letter.
FINAL = 'Final Answer:'
# Between the words and the letter may stand what people put around a letter: spaces, stars,
# brackets, \boxed{, \text{. No second letter may follow, or 'Both' would be a B.
_FINAL = re.compile(
  r'final\s+answer\s*\**\s*(?:is|:)?\W*(?:boxed\W*|text\W*|option\s*\W*){0,3}([A-J])(?![a-z])',
  re.IGNORECASE,
)
# A letter at the beginning, after a label at most; no word character may follow the letter.
_ALONE = re.compile(
  r'\W*(?:(?:the |my )?(?:answer|choice|option)(?: is)?\W*)?([A-J])(?:\W|$)', re.IGNORECASE
)


def lettered(options: Sequence[str]) -> str:
  r"""The options, one a line.

  >>> lettered(['yes', 'no'])
  'A. yes\nB. no'
  """
  # Not strict: most questions have fewer options than there are letters.
  lines = [f'{letter}. {option}' for letter, option in zip(LETTERS, options, strict=False)]
  return '\n'.join(lines)


def final(text: str, count: int) -> str | None:
  """The letter after the last 'Final Answer:', or None; `count` is the number of options.

  >>> [final(text, 2) for text in ('Final Answer: B', 'final answer: **(a)**')]
  ['B', 'A']
  >>> [final(text, 2) for text in ('So B.', 'Final Answer: Both')]
  [None, None]
  """
  stated = _FINAL.findall(text)
  if not stated:
    return None
  # The last: a reasoning model may weigh or correct an earlier one.
  return _known(stated[-1], count)


def reasoning(text: str) -> str:
  """The text before the last 'Final Answer:'.

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
  """The options of a row, from a list `choices` (or `options`) or from columns A, B, C and so on.

  Raises:
    InputError: if the row has fewer than two options or more than ten.
  """
  # Without a list, the names of the lettered columns stand in for one.
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
  # A text is a sequence too, of characters, and never a list of options.
  has_too_few = len(options) < 2
  has_too_many = len(options) > len(LETTERS)
  if has_too_few or has_too_many or isinstance(listed, str):
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
  letter = text.upper()
  # A number too large stays a number, which the check below refuses.
  if text.isdecimal() and int(text) < len(LETTERS):
    letter = LETTERS[int(text)]
  # `_known` alone would take 'AB', which is a part of LETTERS.
  if len(letter) != 1 or _known(letter, count) is None:
    raise InputError(
      f'{where}: the answer is {value!r}, expected a letter from A to {LETTERS[count - 1]} '
      'or a number from 0'
    )
  return letter


def _known(letter: str, count: int) -> str | None:
  # A letter beyond the options chooses nothing: of two options, an answer cannot be E.
  upper = letter.upper()
  return upper if upper in LETTERS[:count] else None
