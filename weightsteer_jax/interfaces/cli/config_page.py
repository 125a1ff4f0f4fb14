"""The keys of a config by section, with the schema's comments, and the values a config gives."""

import dataclasses
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from weightsteer_jax.config import build, schema
from weightsteer_jax.interfaces.cli import config_keys, shipped
from weightsteer_jax.interfaces.cli.help_page import WIDTH, labelled


def of_schema() -> str:
  """Every key with its default and its comment, and the configs that come with the package."""
  parts = [
    'Keys of a config, with their defaults. Each is a flag: --config.finetune.rank=64. In sections '
    'of\nnamed entries (NAME below) the name is the config\'s own.'
  ]
  parts += [_section(title, said, keys) for title, said, keys in _sections()]
  lines = [labelled(f'  {name}', shipped.summary(name)) for name in shipped.names()]
  parts.append('\n'.join(['Configs that come with the package, --config=NAME:', *lines]))
  return '\n\n'.join(parts)


def of_config(path: str, run: schema.Run) -> str:
  """The keys that a config has, with their comments and the values it gives them.

  Args:
    path: the config's file.
  """
  parts = [shipped.docstring(path), 'The keys and their values; * marks what is not the default.']
  described: set[type] = set()
  top: list[str] = []
  for key in config_keys.keys_of(schema.Run).values():
    value = getattr(run, key.name)
    section = config_keys.section_of(key.hint)
    if section is None:
      top.append(_key(key, value, marked=value != key.default))
    elif config_keys.is_named(key.hint):
      for entry, inner in value.items():
        parts.append(_values(f'{key.name}.{entry}', inner, brief=type(inner) in described))
        described.add(type(inner))
    else:
      parts.append(_values(key.name, value))
  parts.insert(2, '\n'.join(top))
  return '\n\n'.join(filter(None, parts))


def _sections() -> Iterator[tuple[str, str, Mapping[str, config_keys.Key]]]:
  """(name, what it is, keys) of every section of the schema, kinds as sections of their own."""
  run = config_keys.keys_of(schema.Run)
  yield '', '', {key.name: key for key in run.values() if not config_keys.section_of(key.hint)}
  described: dict[type, str] = {}
  for key in run.values():
    section = config_keys.section_of(key.hint)
    if section is None:
      continue
    title = f'{key.name}.NAME' if config_keys.is_named(key.hint) else key.name
    said = key.comment or _doc(section)
    if section in described:
      yield title, f'{said} Keys as in {described[section]}.', {}
      continue
    described[section] = title
    common = config_keys.keys_of(section)
    kinds = build.KINDS.get(section, {})
    if kinds:
      common = {field.name: common[field.name] for field in dataclasses.fields(section)}
      common['kind'] = dataclasses.replace(common['kind'], comment=f'One of {", ".join(kinds)}.')
    yield title, said, common
    yield from _kinds(title, kinds, common)


def _kinds(
  title: str, kinds: Mapping[str, type], common: Mapping[str, config_keys.Key]
) -> Iterator[tuple[str, str, Mapping[str, config_keys.Key]]]:
  """The further keys of the kinds of a section, a section for the kinds of one dataclass."""
  names_of: dict[type, list[str]] = {}
  for kind, cls in kinds.items():
    names_of.setdefault(cls, []).append(kind)
  for cls, names in names_of.items():
    further = dict(config_keys.keys_of(cls))
    for name in common:
      further.pop(name, None)
    kind = ' or '.join(map(repr, names))
    yield f'{title}, kind {kind}', _doc(cls), further


def _doc(section: type) -> str:
  return (section.__doc__ or '').partition('\n')[0]


def _section(title: str, said: str, keys: Mapping[str, config_keys.Key]) -> str:
  lines = []
  if title:
    lines.append(textwrap.fill(f'{title}: {said}', WIDTH))
  for key in keys.values():
    lines.append(_key(key, key.default, marked=False))
  return '\n'.join(lines)


def _values(where: str, section: Any, *, brief: bool = False) -> str:
  """A section of a run, as lines; brief ones are without comments."""
  lines = [f'{where}:']
  for key in config_keys.keys_of(typing.cast(Any, type(section))).values():
    value = getattr(section, key.name)
    said = dataclasses.replace(key, comment='') if brief else key
    lines.append(_key(said, value, marked=value != key.default))
  return '\n'.join(lines)


def _key(key: config_keys.Key, value: Any, *, marked: bool) -> str:
  if value is dataclasses.MISSING:
    return labelled(f'  {key.name}', f'(required) {key.comment}')
  shown = repr(dict(value)) if isinstance(value, Mapping) else repr(value)
  if len(shown) > 2 * WIDTH:
    shown = shown[: 2 * WIDTH] + ' ...'
  return labelled(f'{"*" if marked else " "} {key.name} = {shown}', key.comment)
