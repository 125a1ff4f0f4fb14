"""Tasks: what is asked and how an answer counts. One file per kind; kind.py says what a kind is.

To add a kind, write its file, which ends with `KIND = Kind(...)`, and add its name and the
dataclass of its config keys to `config.TASK_KINDS`: the kind can then be configured, swept, judged,
measured and reported. What kinds share stands in the room `reading`: `answers.py` (texts),
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
from weightsteer_jax.evaluation.tasks.kind import Kind
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

# Kinds differ in their options and results; each is checked against its own where it is made.
KINDS: Mapping[str, Kind[Any, Any]] = {
  name: importlib.import_module(f'{__name__}.{name}').KIND for name in config.TASK_KINDS
}


@dataclasses.dataclass(frozen=True)
class Task:
  """A named set of items with the options they are run under."""

  name: str
  options: config.Task
  items: tuple[Mapping[str, Any], ...]

  @property
  def kind(self) -> Kind[Any, Any]:
    """The task's kind."""
    return KINDS[self.options.kind]

  @property
  def samples(self) -> int:
    """Rows per item, arm and alpha: 1 unless answers are drawn."""
    options = self.options
    if isinstance(options, config.TextTask) and options.temperature > 0:
      return options.samples
    # Greedy answers and likelihoods are the same every time.
    return 1


def make(
  name: str,
  options: config.Task,
  items: Sequence[Mapping[str, Any]],
  *,
  where: Sequence[str] | None = None,
) -> Task:
  """The task of these items, each one checked.

  Takes `options.n` items (0: all), where items of one group count once: of kinds that build their
  items drawn ones, of others the first ones.

  Args:
    where: places of the items for errors, as `read` gives them; by default 'items[i]' of the task.

  Raises:
    InputError: if there are no items, an item is broken, or an id comes twice; names the item.
  """
  places = where or [f"{options.items or name}[{i}]" for i in range(len(items))]
  kind = _kind(name, options)
  if not items:
    raise InputError(f"task '{name}': {options.items or 'the list'} holds no items")
  place_of: dict[str, str] = {}
  for item, place in zip(items, places):
    check_keys(item, kind.required, kind.optional, place)
    kind.check(item, place)
    if item['id'] in place_of:
      raise InputError(
        f"{place}: the id '{item['id']}' is already that of {place_of[item['id']]}; every item "
        "needs its own"
      )
    place_of[item['id']] = place
  groups = list(dict.fromkeys(_group(item) for item in items))
  if kind.build is not None:
    # Tables are often sorted, so that their first rows are not like the others.
    random.Random(f'items {options.seed}').shuffle(groups)
  taken = set(groups[: options.n or len(groups)])
  return Task(name, options, tuple(item for item in items if _group(item) in taken))


def _group(item: Mapping[str, Any]) -> str:
  return item.get('group', item['id'])


def load(name: str, options: config.Task) -> tuple[list[Any], list[str]]:
  """(items, their places for errors) from a file, a hub dataset, or the kind itself.

  Raises:
    InputError: if there is no such source, or the kind can make no items of what is in it.
  """
  kind = _kind(name, options)
  if not isinstance(options, config.TableSource):
    return read(options.items)
  if options.items:
    rows = tables.read(
      options.items,
      split=options.split or kind.split,
      revision=options.revision,
      columns=options.columns,
    )
  elif kind.own_rows is not None:
    rows = kind.own_rows(options)
  else:
    raise InputError(
      f"task '{name}': the kind '{options.kind}' has no items of its own: set tasks.{name}.items"
    )
  return from_rows(name, options, rows)


def from_rows(
  name: str, options: config.Task, rows: Sequence[tables.Row]
) -> tuple[list[Any], list[str]]:
  """(items, their places for errors) from the (place, row) pairs of a table.

  Rows that are items already stay as they are; others are built into items by the kind.

  Raises:
    InputError: if the kind can make no item of a row; names the row.
  """
  kind = _kind(name, options)
  first = rows[0][1]
  # A table may have a column 'id' of numbers; an item's id is a text.
  are_items = all(key in first for key in kind.required) and isinstance(first['id'], str)
  if kind.build is None or are_items:
    return [row for _, row in rows], [place for place, _ in rows]
  items = kind.build(rows, options)
  return items, [f"task '{name}', item '{item['id']}'" for item in items]


def _kind(name: str, options: config.Task) -> Kind[Any, Any]:
  if options.kind not in KINDS:
    hint = did_you_mean(options.kind, KINDS)
    raise InputError(
      f"task '{name}': unknown kind '{options.kind}'{hint}; there are: {', '.join(KINDS)}"
    )
  return KINDS[options.kind]


def read(path: str | os.PathLike) -> tuple[list[Any], list[str]]:
  """(items, their places `file.jsonl:line`) of a jsonl file.

  Raises:
    InputError: if there is no such file, or a line is not JSON.
  """
  lines = list(sources.read_jsonl(path))
  return [row for _, row in lines], [f'{path}:{number}' for number, _ in lines]


def check_keys(item: Any, required: Sequence[str], optional: Sequence[str], where: str) -> None:
  """Raises InputError if an item lacks a key, an id, or messages that a model can answer.

  Other keys may hold anything, but a key that looks like a misspelt one is an error too.
  """
  if not isinstance(item, Mapping):
    raise InputError(
      f'{where}: an item must be an object with {", ".join(required)}; it is a '
      f'{type(item).__name__}'
    )
  known = (*required, *optional)
  unknown = [key for key in item if key not in known]
  missing = [key for key in required if key not in item]
  if missing:
    hints = [(key, did_you_mean(key, missing)) for key in unknown]
    misspelt = ''.join(f" ('{key}' is there{hint})" for key, hint in hints if hint)
    raise InputError(
      f"{where}: the item has no {', '.join(missing)}{misspelt}; it needs {', '.join(required)}"
    )
  absent = [name for name in known if name not in item]
  for key in unknown:
    hint = did_you_mean(key, absent)
    if hint:
      raise InputError(f"{where}: unknown key '{key}'{hint}")
  if not isinstance(item['id'], str) or not item['id']:
    raise InputError(f"{where}: 'id' is {item['id']!r}, expected a text")
  messages = sources.check_messages(item['messages'], where)
  if messages[-1]['role'] != 'user':
    raise InputError(
      f"{where}: the last message must be the user's, it is the {messages[-1]['role']}'s"
    )
