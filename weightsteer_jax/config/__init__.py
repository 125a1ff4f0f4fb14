"""The one schema of a run.

  schema.py   the sections and keys with their defaults
  checks.py   what their values must be, and what goes together

A config file starts from `base_config()`, changes what its experiment changes, and `resolve` turns
the result into a checked `Run`. A key that is not in the schema is an error, wherever it is set.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from weightsteer_jax.config import checks
from weightsteer_jax.config.schema import (
  ARM_KINDS,
  TASK_KINDS,
  Arm,
  Data,
  FineTune,
  Judge,
  Mesh,
  ModelChoice,
  Monitor,
  Run,
  Sweep,
  Task,
  TaskModel,
  Watched,
  finetune_of,
)
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean


def base_config() -> ml_collections.ConfigDict:
  """The defaults as a ConfigDict; tasks are added under `tasks.<name>` with `task(...)`, arms,
  fine-tunes and judges likewise.
  """
  base = ml_collections.ConfigDict(_to_plain(Run()))
  base.judges = ml_collections.ConfigDict(sort_keys=False)  # The first one named counts.
  return base


def task(**fields: Any) -> ml_collections.ConfigDict:
  """A task's section of a config: the given fields over the defaults of Task."""
  return _section(Task, fields)


def arm(**fields: Any) -> ml_collections.ConfigDict:
  """An arm's section of a config: the given fields over the defaults of Arm."""
  return _section(Arm, fields)


def finetune(**fields: Any) -> ml_collections.ConfigDict:
  """A section of `finetunes`: the given fields over the defaults of FineTune."""
  return _section(FineTune, fields)


def data(**fields: Any) -> ml_collections.ConfigDict:
  """A section of `contrasts`: the given fields over the defaults of Data."""
  return _section(Data, fields)


def watched(**fields: Any) -> ml_collections.ConfigDict:
  """A section of `watched`: the given fields over the defaults of Watched."""
  return _section(Watched, fields)


def judge(**fields: Any) -> ml_collections.ConfigDict:
  """A judge's section of a config: the given fields over the defaults of Judge."""
  return _section(Judge, fields)


def _section(cls: type, fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
  defaults = {
    field.name: field.default
    for field in dataclasses.fields(cls)
    if field.default is not dataclasses.MISSING
  }
  return ml_collections.ConfigDict({**defaults, **fields})


def resolve(config: Mapping[str, Any]) -> Run:
  """The checked, frozen run of a config.

  Raises:
    InputError: an unknown key (with the nearest known one), a value of the wrong type, or values
      that cannot go together.
  """
  plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
  run = _build(Run, plain, '')
  checks.check(run)
  return run


def to_dict(run: Run) -> dict[str, Any]:
  """The run as plain values, for JSON and for the report."""
  return _to_plain(run)


def _to_plain(value: Any) -> Any:
  if dataclasses.is_dataclass(value):
    return {
      field.name: _to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)
    }
  if isinstance(value, Mapping):
    return {key: _to_plain(item) for key, item in value.items()}
  return value


def _build(cls: type, plain: Mapping[str, Any], where: str) -> Any:
  if not isinstance(plain, Mapping):
    raise InputError(
      f"the config key '{where.rstrip('.')}' is {plain!r}, expected a section with the keys "
      f"of {cls.__name__}"
    )
  known = {field.name: field for field in dataclasses.fields(cls)}
  hints = typing.get_type_hints(cls)
  for key in plain:
    if key not in known:
      raise InputError(
        f"unknown config key '{where}{key}'{did_you_mean(key, known)}; known here: "
        f"{', '.join(known)}"
      )
  for key, field in known.items():
    if (
      key not in plain
      and field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    ):
      raise InputError(f"the config key '{where}{key}' is required")
  return cls(**{key: _cast(hints[key], value, where + key) for key, value in plain.items()})


def _cast(hint: Any, value: Any, where: str) -> Any:
  if dataclasses.is_dataclass(hint):
    return _build(hint, value, where + '.')
  if typing.get_origin(hint) is tuple:
    items = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(_cast(typing.get_args(hint)[0], item, where) for item in items)
  if typing.get_origin(hint) not in (None, types.UnionType):
    if not isinstance(value, Mapping):
      raise InputError(f"the config key '{where}' is {value!r}, expected named sections")
    section = typing.get_args(hint)[1]
    return types.MappingProxyType(
      {name: _build(section, item, f'{where}.{name}.') for name, item in value.items()}
    )
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if hint is float and isinstance(value, float) and not math.isfinite(value):
    raise InputError(f"the config key '{where}' is {value!r}, expected a finite number")
  if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
    raise InputError(f"the config key '{where}' is {value!r}, expected {hint.__name__}")
  return value
