"""The one schema of a run.

  schema.py   every key with its unit and default, a dataclass per section and per kind
  build.py    plain values made into the dataclasses of schema.py
  checks.py   the values that a run may have, and the combinations
  chat_options.py
              what a chat template may be told beside the messages

A config file starts from `base_config()` and changes the keys of the experiment; `resolve` turns
the result into a checked `Run`. An unknown key is an error, wherever it is set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from weightsteer_jax.config import build, checks
from weightsteer_jax.config.schema import (
  ARM_KINDS,
  JUDGE_KINDS,
  TASK_KINDS,
  ActivationArm,
  Arm,
  AskedJudge,
  ChoiceTask,
  Data,
  DirectionArm,
  EndpointJudge,
  FineTune,
  FinetuneArm,
  FormsTask,
  JointArm,
  Judge,
  LettersTask,
  Mesh,
  ModelChoice,
  ModelJudge,
  Monitor,
  PlainTextsTask,
  PromptsArm,
  RulesJudge,
  Run,
  SideArm,
  Sweep,
  TableSource,
  TableTask,
  Task,
  TaskModel,
  TextTask,
  TrainedArm,
  TraitTask,
  Watched,
  finetune_of,
)

if TYPE_CHECKING:
  import ml_collections


def base_config() -> ml_collections.ConfigDict:
  """The defaults of a run, to be changed by a config file.

  Sections of named entries (tasks, validation, arms, judges, finetunes, contrasts, watched) are
  empty: a config adds entries, as in `config.tasks.<name> = task(...)`.
  """
  # A tenth of a second to import: help, and checks of a command line, do without.
  import ml_collections

  base = ml_collections.ConfigDict(_to_plain(Run()))
  # In the order in which a config names them: the first judge counts.
  base.judges = ml_collections.ConfigDict(sort_keys=False)
  return base


def task(**fields: Any) -> ml_collections.ConfigDict:
  """An entry of `tasks` or `validation`: the given fields over the defaults of all kinds."""
  return _section(Task, fields)


def arm(**fields: Any) -> ml_collections.ConfigDict:
  """An entry of `arms`: the given fields over the defaults of all kinds."""
  return _section(Arm, fields)


def judge(**fields: Any) -> ml_collections.ConfigDict:
  """An entry of `judges`: the given fields over the defaults of all kinds."""
  return _section(Judge, fields)


def finetune(**fields: Any) -> ml_collections.ConfigDict:
  """An entry of `finetunes`: the given fields over the defaults of FineTune."""
  return _section(FineTune, fields)


def data(**fields: Any) -> ml_collections.ConfigDict:
  """An entry of `contrasts`: the given fields over the defaults of Data."""
  return _section(Data, fields)


def watched(**fields: Any) -> ml_collections.ConfigDict:
  """An entry of `watched`: the given fields over the defaults of Watched."""
  return _section(Watched, fields)


def resolve(config: Mapping[str, Any]) -> Run:
  """The checked, frozen run of a config.

  A key of another kind of task, arm or judge is ignored where it stands at its default, as in a
  config.json that an earlier version wrote.

  Raises:
    InputError: if a key is unknown or belongs to another kind, if a value has the wrong type, or
      if values cannot go together; names the key.
  """
  plain = config.to_dict() if hasattr(config, 'to_dict') else dict(config)
  run = build.section(Run, plain, '')
  checks.check(run)
  return run


def to_dict(run: Run) -> dict[str, Any]:
  """The run as plain values, for JSON and for the report."""
  return _to_plain(run)


def _section(cls: type, fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
  import ml_collections

  return ml_collections.ConfigDict({**build.defaults(cls, fields.get('kind')), **fields})


def _to_plain(value: Any) -> Any:
  if dataclasses.is_dataclass(value):
    names = [field.name for field in dataclasses.fields(value)]
    return {name: _to_plain(getattr(value, name)) for name in names}
  if isinstance(value, Mapping):
    return {key: _to_plain(item) for key, item in value.items()}
  return value
