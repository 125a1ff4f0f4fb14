"""Tasks: the questions asked of a model, and how each answer counts.

Each kind of task has a file; kind.py defines a kind. To add a kind, write a file that ends with
`KIND = Kind(...)`, and add the kind's name and the dataclass of the kind's config keys to
`config.TASK_KINDS`: the kind can then be configured, swept, judged, measured and reported. Code
shared by several kinds is in the room `reading`: `answers.py` (texts), `letters.py` (lettered
options), `failures.py` (the accounting in every kind's report), `measures.py` (metrics).
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

# {name of a kind: the kind}. Any, because kinds differ in options and results; the type checker
# compares each kind with the kind's own options and results where the kind is made.
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
  """The task of the given items, after every item is checked.

  The task has `options.n` groups of items (all groups if n is 0); an item without a group is a
  group by itself. Groups are drawn where the kind builds items from a table, and are otherwise the
  first n groups.

  Args:
    where: places of the items for errors, as given by `read`; by default 'items[i]' of the task.

  Raises:
    InputError: if the task has no items, an item is broken, or an id comes twice; names the item.
  """
  source = options.items or name
  places = where or [f'{source}[{i}]' for i in range(len(items))]
  kind = _kind(name, options)
  if not items:
    raise InputError(f"task '{name}': {options.items or 'the list'} holds no items")
  place_of: dict[str, str] = {}
  for item, place in zip(items, places):
    # Keys first, since the kind's own check reads them.
    check_keys(item, kind.required, kind.optional, place)
    kind.check(item, place)
    item_id = item['id']
    if item_id in place_of:
      raise InputError(
        f"{place}: the id '{item_id}' is already that of {place_of[item_id]}; every item "
        "needs its own"
      )
    place_of[item_id] = place
  # A dict keeps the order in which groups first appear; a set would not.
  groups = list(dict.fromkeys(_group(item) for item in items))
  if kind.build is not None:
    # Tables are often sorted, so that their first rows are not like the others.
    random.Random(f'items {options.seed}').shuffle(groups)
  count = options.n or len(groups)
  taken = set(groups[:count])
  taken_items = [item for item in items if _group(item) in taken]
  return Task(name, options, tuple(taken_items))


def _group(item: Mapping[str, Any]) -> str:
  return item.get('group', item['id'])


def load(name: str, options: config.Task) -> tuple[list[Any], list[str]]:
  """(items, places of the items for errors) from a file, a hub dataset, or the kind.

  Raises:
    InputError: if the source is missing, or the kind can make no items of the source's rows.
  """
  kind = _kind(name, options)
  # A kind without a table's config keys reads finished items alone.
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
  """(items, places of the items for errors) from the (place, row) pairs of a table.

  Rows with all keys of an item are kept unchanged; the kind builds other rows into items.

  Raises:
    InputError: if there is no row, or the kind can make no item of a row; names the row.
  """
  kind = _kind(name, options)
  if not rows:
    raise InputError(
      f"task '{name}': {options.items or options.kind} has no rows; of made-up items, say how many "
      f'to make: tasks.{name}.n'
    )
  _, first = rows[0]
  has_keys = all(key in first for key in kind.required)
  # A table may have a column 'id' of numbers; an item's id is a text.
  are_items = has_keys and isinstance(first['id'], str)
  if kind.build is None or are_items:
    places = [place for place, _ in rows]
    return [row for _, row in rows], places
  built = kind.build(rows, options)
  # Several items may come from a row, and rows may be left out, so the id stands for the place.
  places = [f"task '{name}', item '{item['id']}'" for item in built]
  return built, places


def _kind(name: str, options: config.Task) -> Kind[Any, Any]:
  if options.kind not in KINDS:
    hint = did_you_mean(options.kind, KINDS)
    raise InputError(
      f"task '{name}': unknown kind '{options.kind}'{hint}; there are: {', '.join(KINDS)}"
    )
  return KINDS[options.kind]


def read(path: str | os.PathLike) -> tuple[list[Any], list[str]]:
  """(items, places `file.jsonl:line` of the items) of a jsonl file.

  Raises:
    InputError: if the file is missing, or a line is not JSON.
  """
  lines = list(sources.read_jsonl(path))
  items = [row for _, row in lines]
  places = [f'{path}:{number}' for number, _ in lines]
  return items, places


def check_keys(item: Any, required: Sequence[str], optional: Sequence[str], where: str) -> None:
  """Raises InputError if an item lacks a key, an id, or, in a chat, messages to answer.

  Further keys may hold anything, but a key close to the name of an absent key is an error too.
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
    misspelt = ''
    for key in unknown:
      hint = did_you_mean(key, missing)
      if hint:
        misspelt += f" ('{key}' is there{hint})"
    raise InputError(
      f"{where}: the item has no {', '.join(missing)}{misspelt}; it needs {', '.join(required)}"
    )
  # An optional key that is misspelt would otherwise be ignored without a word.
  absent = [name for name in known if name not in item]
  for key in unknown:
    hint = did_you_mean(key, absent)
    if hint:
      raise InputError(f"{where}: unknown key '{key}'{hint}")
  if not isinstance(item['id'], str) or not item['id']:
    raise InputError(f"{where}: 'id' is {item['id']!r}, expected a text")
  # Plain texts are no chats.
  if 'messages' not in required:
    return
  messages = sources.check_messages(item['messages'], where)
  # The model's answer comes next, so the turn before must be the user's.
  role = messages[-1]['role']
  if role != 'user':
    raise InputError(f"{where}: the last message must be the user's, it is the {role}'s")
