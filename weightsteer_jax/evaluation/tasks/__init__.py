"""Tasks: what is asked and how an answer counts. One file per kind; each has the same parts.

  REQUIRED, OPTIONAL                               keys of an item
  GENERATES                                        whether it answers in text (else by likelihood:
    nothing is drawn)
  check(item, where)                               raises InputError for an item that is none of its
  kind
  prepare(tokenizer, item)                         the item as tokens
  requests(prepared, key, arm, alpha, ..)          what the engine is to compute for one row
  fields(prepared, results, tokenizer)             the row's value, status and evidence
  METRICS                                          {name: function}, the plotted one first: from the
    rows of one (arm,
                                                   task, alpha), with what judges said, to (cluster,
                                                   value) pairs; what does not count is left out
                                                   (see measures.py)

and, where it needs them,

  judged(item, row)                                [(purpose, fields)]: what judges are to be asked
  about a row
  build(rows, options)                             items from the rows of a table: a csv, json or
  jsonl file, or a hub
                                                   dataset; rows that are items already are taken as
                                                   they are
  rows(options)                                    rows of its own, where the config names no items
  SPLIT                                            the split of a hub dataset that is meant where
    none is named

To add a kind, write its file and add its name to `config.TASK_KINDS`, with the
dataclass of its keys: it can be configured, swept,
judged, measured and reported by that. What kinds share stands one folder up: `answers.py` (texts),
`letters.py` (lettered options), `failures.py` (the accounting that every kind reports),
`measures.py` (metrics).
"""

import dataclasses
import importlib
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import sources, tables
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

KINDS = {name: importlib.import_module(f'{__name__}.{name}') for name in config.TASK_KINDS}


@dataclasses.dataclass(frozen=True)
class Task:
  """A named set of items with the options they are run under."""

  name: str
  options: config.Task
  items: tuple[Mapping[str, Any], ...]

  @property
  def kind(self):
    """The module of the task's kind."""
    return KINDS[self.options.kind]

  @property
  def samples(self) -> int:
    """Rows per item, arm and alpha: greedy answers and choices are all alike, so one is enough."""
    options = self.options
    if isinstance(options, config.TextTask) and options.temperature > 0:
      return options.samples
    return 1


def make(
  name: str,
  options: config.Task,
  items: Sequence[Mapping[str, Any]],
  *,
  where: Sequence[str] | None = None,
) -> Task:
  """The task, every item checked, `options.n` of them taken (0: all), where items of one group
  count once.

  Of kinds that build their items these are drawn by the seed, since tables are often sorted; of
  others the first ones.

  Args:
    where: names of the items for errors, as `read` gives them; by default 'items[i]' of the task.

  Raises:
    InputError: no items, a broken item, or an id twice; names the item.
  """
  names = where or [f"{options.items or name}[{i}]" for i in range(len(items))]
  kind = _kind(name, options)
  if not items:
    raise InputError(f"task '{name}': {options.items or 'the list'} holds no items")
  seen: dict[str, str] = {}
  for item, place in zip(items, names):
    check_keys(item, kind.REQUIRED, kind.OPTIONAL, place)
    kind.check(item, place)
    if item['id'] in seen:
      raise InputError(
        f"{place}: the id '{item['id']}' is already that of {seen[item['id']]}; every item "
        "needs its own"
      )
    seen[item['id']] = place
  groups = list(dict.fromkeys(item.get('group', item['id']) for item in items))
  if hasattr(kind, 'build'):
    random.Random(f'items {options.seed}').shuffle(groups)
  taken = set(groups[: options.n or len(groups)])
  return Task(
    name, options, tuple(item for item in items if item.get('group', item['id']) in taken)
  )


def load(name: str, options: config.Task) -> tuple[list[Any], list[str]]:
  """(items, their names in errors) from where the options say: a file, a hub dataset, or the kind
  itself.

  Raises:
    InputError: no such source, a broken one, or one that the kind can make no items of.
  """
  kind = _kind(name, options)
  if not isinstance(options, config.TableSource):
    return read(options.items)
  if options.items:
    rows = tables.read(
      options.items,
      split=options.split or getattr(kind, 'SPLIT', ''),
      revision=options.revision,
      columns=options.columns,
    )
  elif hasattr(kind, 'rows'):
    rows = kind.rows(options)
  else:
    raise InputError(
      f"task '{name}': the kind '{options.kind}' has no items of its own: set tasks.{name}.items"
    )
  return from_rows(name, options, rows)


def from_rows(
  name: str, options: config.Task, rows: Sequence[tuple[str, Any]]
) -> tuple[list[Any], list[str]]:
  """(items, their names in errors) from [(place, row)]: rows that are items already as they are,
  others as the kind builds them.

  Raises:
    InputError: a row that the kind can make nothing of; names it.
  """
  kind = _kind(name, options)
  first = rows[0][1]
  if not hasattr(kind, 'build') or (
    all(key in first for key in kind.REQUIRED) and isinstance(first['id'], str)
  ):
    return [row for _, row in rows], [place for place, _ in rows]
  items = kind.build(rows, options)
  return items, [f"task '{name}', item '{item['id']}'" for item in items]


def _kind(name: str, options: config.Task) -> Any:
  if options.kind not in KINDS:
    hint = did_you_mean(options.kind, KINDS)
    raise InputError(
      f"task '{name}': unknown kind '{options.kind}'{hint}; there are: {', '.join(KINDS)}"
    )
  return KINDS[options.kind]


def read(path: str | os.PathLike) -> tuple[list[Any], list[str]]:
  """(items, their places `file.jsonl:line`) of a jsonl file.

  Raises:
    InputError: no such file, or a line that is not JSON.
  """
  rows = list(sources.read_jsonl(path))
  return [row for _, row in rows], [f'{path}:{line}' for line, _ in rows]


def check_keys(item: Any, required: Sequence[str], optional: Sequence[str], where: str) -> None:
  """Nothing, if the item has every required key, an id that is text, and messages that a model can
  answer.

  Keys of other names may carry what they like, but not a misspelt key of ours.
  """
  if not isinstance(item, Mapping):
    raise InputError(
      f'{where}: an item must be an object with {", ".join(required)}; it is a '
      f'{type(item).__name__}'
    )
  known = (*required, *optional)
  unknown = [key for key in item if key not in known]
  if missing := [key for key in required if key not in item]:
    hints = ''.join(
      f" ('{key}' is there{did_you_mean(key, missing)})"
      for key in unknown
      if did_you_mean(key, missing)
    )
    raise InputError(
      f"{where}: the item has no {', '.join(missing)}{hints}; it needs {', '.join(required)}"
    )
  for key in unknown:
    if hint := did_you_mean(key, [name for name in known if name not in item]):
      raise InputError(f"{where}: unknown key '{key}'{hint}")
  if not isinstance(item['id'], str) or not item['id']:
    raise InputError(f"{where}: 'id' is {item['id']!r}, expected a text")
  messages = sources.check_messages(item['messages'], where)
  if messages[-1]['role'] != 'user':
    raise InputError(
      f"{where}: the last message must be the user's, it is the {messages[-1]['role']}'s"
    )
