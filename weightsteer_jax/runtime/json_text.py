r"""JSON that others wrote, where every fault of the text is one kind of error.

Python's own reader has a RecursionError for lists in lists in lists, takes the last of two equal
names, and gives half a surrogate pair as a character that no tokenizer and no file takes.
"""

import json
from typing import Any


def parse(text: str | bytes, *, unique: bool = False, finite: bool = False) -> Any:
  r"""The JSON value in a text.

  Args:
    unique: whether an object that has a name twice is none.
    finite: whether NaN and infinities, which JSON does not have, are none.

  Raises:
    ValueError: if the text is no JSON, is no UTF-8, is nested deeper than Python reads, or has a
      number of more digits.

  >>> parse('{"a": 1, "a": 2}')
  {'a': 2}
  >>> parse('[' * 10_000 + ']' * 10_000)
  Traceback (most recent call last):
  ...
  ValueError: it is nested too deeply
  """
  try:
    if isinstance(text, bytes):
      text = text.decode()
    return json.loads(
      text,
      object_pairs_hook=_unique if unique else None,
      parse_constant=_refuse if finite else None,
    )
  except RecursionError:
    raise ValueError('it is nested too deeply') from None


def _refuse(name: str) -> None:
  raise ValueError(f'{name} is no number of JSON')


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """The object of some pairs."""
  value = dict(pairs)
  if len(value) < len(pairs):
    names = [name for name, _ in pairs]
    doubled = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"it has the name '{doubled}' twice")
  return value


def half_pair(text: str) -> int:
  r"""The place of the first half of a surrogate pair in a text; -1 for none.

  >>> half_pair('whole \U0001f600'), half_pair('half \ud83d')
  (-1, 5)
  """
  try:
    text.encode()
  except UnicodeEncodeError as error:
    return error.start
  return -1
