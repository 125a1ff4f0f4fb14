"""Keys of a config that the command line changes, --config.KEY=VALUE.

ml_collections takes such flags too, and looks keys up as attributes: a key or an entry whose name
is a method of its dicts, as `items` is, would be out of reach.
"""

from __future__ import annotations

import ast
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weightsteer_jax.interfaces.cli import config_keys
from weightsteer_jax.runtime import json_text
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

if TYPE_CHECKING:
  import ml_collections

_EXPECTED = {int: 'a whole number', float: 'a number', bool: 'true or false'}
_TRUTH = {'true': True, '1': True, 'false': False, '0': False}


@dataclasses.dataclass(frozen=True)
class Change:
  """A key that the schema has (see config_keys.problem), and the text of its new value.

  Attributes:
    flag: the change as errors name it.
  """

  path: str
  text: str
  flag: str


def apply(changes: Sequence[Change], config: ml_collections.ConfigDict) -> None:
  """Sets keys of a config, in the order of the command line.

  Types of values are left to the schema's checks of the whole run, where a text can be no number.

  Raises:
    InputError: if the config has no such entry, a text is no value of its key, or a change would
      undo an earlier one.
  """
  for index, change in enumerate(changes):
    for earlier in changes[:index]:
      if earlier.path.startswith(f'{change.path}.'):
        raise InputError(f'{change.flag} would undo {earlier.flag}: give it first')
    *above, last = change.path.split('.')
    section = config
    for depth, name in enumerate(above):
      where = '.'.join(above[:depth])
      _refuse_unknown(section, name, where, change.flag)
      section = section[name]
      if not isinstance(section, Mapping | type(config)):
        raise InputError(f"{change.flag}: '{where}.{name}' is {section!r} in the config")
    # A section may be made without keys that the schema has; names of entries are the config's own.
    if config_keys.is_named(config_keys.hint_of('.'.join(above))):
      _refuse_unknown(section, last, '.'.join(above), change.flag)
    with section.unlocked(), section.ignore_type():
      section[last] = _value(config_keys.hint_of(change.path), change)


def _refuse_unknown(section: Mapping[str, Any], name: str, where: str, flag: str) -> None:
  if name in section:
    return
  of_what = f" in '{where}'" if where else ''
  there = f'there are {", ".join(section)}' if list(section) else 'there is none'
  raise InputError(
    f"{flag}: the config has no entry '{name}'{did_you_mean(name, section)}{of_what}; {there}"
  )


def _value(hint: Any, change: Change) -> Any:
  """The value that a text stands for, by the type of its key."""
  try:
    if hint is int or hint is float:
      return hint(change.text)
    if hint is bool:
      return _TRUTH[change.text.lower()]
  except (ValueError, KeyError):
    raise InputError(f'{change.flag}: expected {_EXPECTED[hint]}') from None
  if hint is str:
    return change.text
  if typing.get_origin(hint) is tuple:
    return _several(change.text, texts=typing.get_args(hint) == (str, ...))
  value = _literal(change.text)
  if hint is not Any and not isinstance(value, Mapping):
    raise InputError(f'{change.flag}: expected a section as a JSON object, {{"KEY": VALUE, ...}}')
  return value


def _several(text: str, *, texts: bool) -> Any:
  """The values of a key that takes several; a text that is no list, where numbers are wanted."""
  if not text:
    return ()
  value = _literal(text)
  if isinstance(value, list | tuple):
    return tuple(value)
  # A prompt or a path is one text, with whatever commas it has; a name may look like a number.
  return (value if isinstance(value, str) else text,) if texts else value


def _literal(text: str) -> Any:
  """A text as JSON or as Python writes values; the text itself if it is neither."""
  try:
    return json_text.parse(text)
  except ValueError:
    try:
      return ast.literal_eval(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
      return text
