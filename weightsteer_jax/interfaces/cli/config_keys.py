"""Config keys as flags name them: which there are, their types, and the comments above them."""

import ast
import collections.abc
import dataclasses
import functools
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from weightsteer_jax.config import build, schema
from weightsteer_jax.runtime.messages import nearest

PREFIX = 'config.'
# Keys of a section that are free, as the variables of a chat template are.
FREE = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Key:
  """A key of a section.

  Attributes:
    hint: its type, as the schema's annotation has it.
    comment: what the schema says of it.
    default: the value without a config; dataclasses.MISSING where one has to be given.
  """

  name: str
  hint: Any
  comment: str
  default: Any


@functools.cache
def keys_of(section: type) -> dict[str, Key]:
  """The keys of a section's dataclass, or of all kinds of a section that comes in kinds."""
  if section in build.KINDS:
    merged = dict(_own_keys(section))
    for kind in build.KINDS[section].values():
      merged = _own_keys(kind) | merged
    return merged
  return _own_keys(section)


def section_of(hint: Any) -> type | None:
  """The dataclass of a key that is a section, or of each of its entries; None for a value."""
  if dataclasses.is_dataclass(hint):
    return typing.cast(type, hint)
  if is_named(hint):
    return typing.get_args(hint)[1]
  return None


def is_named(hint: Any) -> bool:
  """Whether a key is a section of named entries, as `tasks` is."""
  return typing.get_origin(hint) is collections.abc.Mapping and hint != FREE


def is_boolean(path: str) -> bool:
  """Whether the value of a key may be left out on the command line."""
  return hint_of(path) is bool


def hint_of(path: str) -> Any:
  """The type of a dotted key, as the schema has it; None if the schema has no such key.

  The type of a named entry is its dataclass, that of a free key Any, and that of '' the run.
  """
  hint: Any = schema.Run
  for name in path.split('.') if path else ():
    if hint == FREE:
      return Any
    if is_named(hint):
      hint = section_of(hint)
    elif dataclasses.is_dataclass(hint) and name in keys_of(typing.cast(type, hint)):
      hint = keys_of(typing.cast(type, hint))[name].hint
    else:
      return None
  return hint


def problem(path: str) -> str:
  """What is wrong with a dotted key, with the nearest key there is; '' where nothing is.

  Names of entries (tasks.<name>) are a config's own, and not looked at.
  """
  section: type | None = schema.Run
  where = ''
  parts = path.split('.')
  while parts:
    name = parts.pop(0)
    if section is None:
      return f"the config key '{where.rstrip('.')}' is a value, and has no key '{name}'"
    known = keys_of(section)
    if name not in known:
      return f"there is no config key '{where}{name}'{_meant(name, where, known)}"
    hint = known[name].hint
    where += f'{name}.'
    if hint == FREE:
      return ''
    section = section_of(hint)
    if is_named(hint) and parts:
      where += f'{parts.pop(0)}.'
  return ''


def nearest_key(name: str) -> str | None:
  """The dotted key of the run whose last part is nearest to a name, or None.

  Only an almost equal name counts.
  """
  paths = {path.rpartition('.')[2]: path for path in reversed(_paths())}
  near = nearest(name, paths, cutoff=0.7)
  return near and paths[near]


def _meant(name: str, where: str, known: Mapping[str, Key]) -> str:
  near = nearest(name, known, cutoff=0.6)
  if near:
    return f" (did you mean '{where}{near}'?)"
  elsewhere = nearest_key(name)
  if elsewhere:
    return f" (did you mean '{elsewhere}'?)"
  return f"; known here: {', '.join(known)}"


def _paths() -> list[str]:
  """Dotted keys of the run, without those of named entries."""
  paths = []
  for name, key in keys_of(schema.Run).items():
    paths.append(name)
    if dataclasses.is_dataclass(key.hint):
      section = typing.cast(type, key.hint)
      paths += [f'{name}.{inner}' for inner in keys_of(section)]
  return paths


@functools.cache
def _own_keys(cls: type) -> dict[str, Key]:
  comments = _comments()
  hints = typing.get_type_hints(cls)
  keys = {}
  for field in dataclasses.fields(cls):
    # A subclass that gives a key another default leaves the comment to the class above.
    owners = [
      base.__name__ for base in cls.__mro__ if field.name in comments.get(base.__name__, {})
    ]
    comment = comments[owners[0]][field.name] if owners else ''
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
      default = field.default_factory()
    keys[field.name] = Key(field.name, hints[field.name], comment, default)
  return keys


@functools.cache
def _comments() -> dict[str, dict[str, str]]:
  """{class: {key: the comment above it}} of the schema's source; keys without one are left out."""
  source = inspect.getsource(schema)
  lines = source.splitlines()
  comments: dict[str, dict[str, str]] = {}
  for node in ast.parse(source).body:
    if not isinstance(node, ast.ClassDef):
      continue
    said = comments.setdefault(node.name, {})
    for field in node.body:
      if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
        above = _comment_above(lines, field.lineno - 1)
        if above:
          said[field.target.id] = above
  return comments


def _comment_above(lines: list[str], end: int) -> str:
  """The comment that ends before the line of that index, in one line."""
  parts: list[str] = []
  while lines[end - 1].lstrip().startswith('#'):
    end -= 1
    parts.insert(0, lines[end].lstrip()[1:].strip())
  return ' '.join(parts)
