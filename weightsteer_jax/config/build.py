"""Plain values made into the dataclasses of schema.py, each value of the type its key has."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from weightsteer_jax.config import chat_options, schema
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

# Sections whose `kind` chooses the dataclass: {the base: {kind: dataclass}}. The first kind is the
# default.
KINDS: Mapping[type, Mapping[str, type]] = {
  schema.Task: schema.TASK_KINDS,
  schema.Arm: schema.ARM_KINDS,
  schema.Judge: schema.JUDGE_KINDS,
}

# What several numbers look like.
_EXAMPLES = {int: '(1, 2)', float: '(0.5, 1.0)'}


def defaults(cls: type, kind: str | None = None) -> dict[str, Any]:
  """The defaults of a section's keys; keys without one are left out.

  A section with a `kind` has the keys of all kinds, so that a flag may choose another kind and set
  the keys of that kind; `section` leaves the keys of other kinds out.

  Args:
    cls: the section's dataclass, or the base where the section has kinds.
    kind: the section's kind, if sections of this class have kinds; by default the first.
  """
  if cls not in KINDS:
    return _defaults_of(cls)
  values: dict[str, Any] = {}
  for of_kind in KINDS[cls].values():
    values |= _defaults_of(of_kind)
  values['kind'] = next(iter(KINDS[cls])) if kind is None else kind
  return values


def section(cls: type, plain: Any, where: str) -> Any:
  """The dataclass of a section, made of plain values.

  A key of another kind that stands at its default is left out: a whole dump of the defaults of all
  kinds is a section of any kind.

  Args:
    cls: the section's dataclass, or the base where the section has kinds.
    where: the section's name with a dot at the end, or '' for the run itself.

  Raises:
    InputError: if a key is unknown, belongs to another kind or is missing, or if a value has the
      wrong type.
  """
  if not isinstance(plain, Mapping):
    raise InputError(
      f"the config key '{where.rstrip('.')}' is {plain!r}, expected a section with the keys "
      f"of {cls.__name__}"
    )
  if cls in KINDS:
    cls, plain = _of_its_kind(KINDS[cls], plain, where)
  fields = {field.name: field for field in dataclasses.fields(cls)}
  for key in plain:
    if key not in fields:
      raise InputError(
        f"unknown config key '{where}{key}'{did_you_mean(key, fields)}; known here: "
        f"{', '.join(fields)}"
      )
  for key, field in fields.items():
    has_default = (
      field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    )
    if key not in plain and not has_default:
      raise InputError(f"the config key '{where}{key}' is required")
  hints = typing.get_type_hints(cls)
  values = {key: _cast(hints[key], value, where + key) for key, value in plain.items()}
  return cls(**values)


def _of_its_kind(
  kinds: Mapping[str, type], plain: Mapping[str, Any], where: str
) -> tuple[type, dict[str, Any]]:
  """(dataclass of the section's kind, the section without other kinds' keys at their defaults)."""
  kind = plain.get('kind', next(iter(kinds)))
  if not isinstance(kind, str):
    raise InputError(f"the config key '{where}kind' is {kind!r}, expected str")
  if kind not in kinds:
    raise InputError(
      f"the config key '{where}kind' is {kind!r}, expected one of {', '.join(kinds)}"
      f"{did_you_mean(kind, kinds)}"
    )
  cls = kinds[kind]
  own_keys = [field.name for field in dataclasses.fields(cls)]
  kept = {'kind': kind}
  for key, value in plain.items():
    owners = _kinds_with(kinds, key)
    # A key that no kind has stays: `section` refuses it with the nearest name.
    if key in own_keys or not owners:
      kept[key] = value
      continue
    default = _defaults_of(kinds[owners[0]])[key]
    # JSON has lists for tuples.
    if (tuple(value) if isinstance(value, list) else value) != default:
      known = ', '.join(own_keys)
      raise InputError(
        f"the config key '{where}{key}' is {value!r}, but '{key}' is a key of the kind "
        f"{' or '.join(owners)}, and '{where}kind' is '{kind}', with the keys {known}"
      )
  return cls, kept


def _kinds_with(kinds: Mapping[str, type], key: str) -> list[str]:
  names = []
  for kind, cls in kinds.items():
    if any(field.name == key for field in dataclasses.fields(cls)):
      names.append(kind)
  return names


def _defaults_of(cls: type) -> dict[str, Any]:
  values = {}
  for field in dataclasses.fields(cls):
    if field.default is not dataclasses.MISSING:
      values[field.name] = field.default
    elif field.default_factory is not dataclasses.MISSING:
      values[field.name] = field.default_factory()
  return values


def _cast(hint: Any, value: Any, where: str) -> Any:
  """The value of a key, of the type that the schema's annotation names."""
  if dataclasses.is_dataclass(hint):
    return section(typing.cast(type, hint), value, where + '.')
  if typing.get_origin(hint) is tuple:
    of = typing.get_args(hint)[0]
    if isinstance(value, str) and of in _EXAMPLES:
      raise InputError(
        f"the config key '{where}' is {value!r}, expected numbers, as in {_EXAMPLES[of]}"
      )
    # One value in place of several, as the command line gives it.
    items = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(_cast(of, item, where) for item in items)
  # Free keys: a chat template says which it reads.
  if hint == Mapping[str, Any]:
    return chat_options.check_arguments(value, f"the config key '{where}'")
  # The only other hint with arguments is Mapping[str, dataclass], a section of named entries.
  if typing.get_origin(hint) not in (None, types.UnionType):
    if not isinstance(value, Mapping):
      raise InputError(f"the config key '{where}' is {value!r}, expected named sections")
    cls = typing.get_args(hint)[1]
    named = {name: section(cls, item, f'{where}.{name}.') for name, item in value.items()}
    return types.MappingProxyType(named)
  is_bool = isinstance(value, bool)
  # The command line turns `8` and `1,2` into integers. A bool is an int to Python, not to us.
  if hint is float and isinstance(value, int) and not is_bool:
    value = float(value)
  if hint is float and isinstance(value, float) and not math.isfinite(value):
    raise InputError(f"the config key '{where}' is {value!r}, expected a finite number")
  if not isinstance(value, hint) or (hint is int and is_bool):
    raise InputError(f"the config key '{where}' is {value!r}, expected {hint.__name__}")
  return value
