"""Conversations from jsonl files and hub datasets."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

ROLES = ('system', 'user', 'assistant')
_FILE_SUFFIXES = ('.jsonl', '.json', '.csv', '.tsv', '.txt', '.parquet')
# The columns that a row must have, one schema a file. A row of the last two may also have a column
# `system`, the system prompt.
SCHEMAS = (('messages',), ('question', 'answer'), ('prompt', 'completion'))
_ACCEPTED = (
  "'messages' (a list of {role, content}), or 'question' and 'answer', or 'prompt' and "
  "'completion' (with an optional 'system')"
)


@dataclasses.dataclass(frozen=True)
class Conversation:
  """Messages in turn, and the name that errors cite.

  Attributes:
    messages: each {'role': system | user | assistant, 'content': text}.
    name: such as `file.jsonl:12`.
  """

  messages: tuple[Mapping[str, str], ...]
  name: str


def load_conversations(
  source: str | os.PathLike, *, split: str | None = None, revision: str | None = None
) -> list[Conversation]:
  """The conversations of a jsonl file or a hub dataset, in order.

  All rows have the same columns: `messages`, or `question` and `answer`, or `prompt` and
  `completion`. In the last two, a column `system` becomes the system message. Other columns are
  ignored.

  Args:
    source: a path (see `is_path`), or the name of a hub dataset, `owner/name`, followed by
      `:config` where the dataset has several.
    split: of a hub dataset; by default the only split, or `train`.
    revision: commit or tag of a hub dataset.

  Raises:
    InputError: if the file or dataset is missing or empty, or a row is broken; the text names the
      line.
  """
  if is_path(source):
    if split is not None or revision is not None:
      raise InputError(f"'{source}' is a file: split and revision are for hub datasets")
    path = Path(source).expanduser()
    # Without the folder: the sampling of answers is seeded by names, wherever the file lies.
    lines = ((f'{path.name}:{line}', row) for line, row in read_jsonl(path))
    return parse_rows(lines, where=str(path))
  rows = hub_rows(str(source), split, revision)
  named = ((f'{source}[{i}]', row) for i, row in enumerate(rows))
  return parse_rows(named, where=f"dataset '{source}'")


def is_path(source: str | os.PathLike) -> bool:
  """Whether `source` means a file rather than a hub dataset.

  A source is a file if it is a Path, exists, starts with `.`, `/` or `~`, has more than one `/`, or
  ends as data files do.

  >>> is_path('./data'), is_path('pairs.jsonl'), is_path('openai/gsm8k:main')
  (True, True, False)
  """
  if not isinstance(source, str) or Path(source).exists():
    return True
  # A missing source that looks like a path is a file, so that the error is about the file.
  if source.startswith(('.', '/', '~')) or source.endswith(_FILE_SUFFIXES):
    return True
  # Names of hub datasets are `owner/name`, with one slash at most.
  return source.count('/') > 1


def parse_rows(rows: Iterable[tuple[str, Any]], *, where: str) -> list[Conversation]:
  """The conversations of (name, row) pairs.

  Args:
    where: the source of all rows, as errors cite it.

  Raises:
    InputError: if there are no rows, the columns are unknown or change, or a message is broken.
  """
  schema = None
  conversations = []
  for name, row in rows:
    if not isinstance(row, Mapping):
      raise InputError(
        f'{name}: a row must be an object with the columns {_ACCEPTED}; it is a '
        f'{type(row).__name__}'
      )
    # The first row decides; later rows may have more columns, not fewer.
    schema = schema or _schema_of(row, name)
    if missing := [column for column in schema if column not in row]:
      raise InputError(
        f'{name}: no column {missing}; the rows before it have {list(schema)} and all rows must '
        'have the same'
      )
    conversations.append(Conversation(_messages_of(row, schema, name), name))
  if not conversations:
    raise InputError(f'{where} is empty: expected rows with {_ACCEPTED}')
  return conversations


def check_messages(messages: Any, name: str) -> tuple[dict[str, str], ...]:
  """The messages with only role and content, checked.

  Raises:
    InputError: if the messages are no list of {role, content}, a role is unknown, a content is no
      text, or an answer is empty.
  """
  # A text is a sequence too, of its characters.
  is_list = isinstance(messages, Sequence) and not isinstance(messages, (str, Mapping))
  if not is_list or not messages:
    raise InputError(f"{name}: 'messages' must be a non-empty list of {{role, content}}")
  for message in messages:
    if not isinstance(message, Mapping) or 'role' not in message or 'content' not in message:
      raise InputError(
        f"{name}: a message must be an object with 'role' and 'content', got {message!r:.80}"
      )
    role = message['role']
    content = message['content']
    if role not in ROLES:
      near = did_you_mean(str(role), ROLES)
      raise InputError(f"{name}: unknown role {role!r}{near}; the roles are {', '.join(ROLES)}")
    if not isinstance(content, str):
      raise InputError(
        f"{name}: the content of a {role} message must be text, it is a {type(content).__name__}"
      )
    # Nothing but the end of turn would be learnt from it. Other roles may say nothing.
    if role == 'assistant' and not content.strip():
      raise InputError(f'{name}: an assistant message is empty')
  # Other keys, such as a name, are left out: a chat template could render them.
  return tuple({'role': message['role'], 'content': message['content']} for message in messages)


def digest(conversations: Iterable[Conversation]) -> str:
  """16 hex digits that name the conversations by content and order, whatever their file."""
  state = hashlib.sha256()
  for conversation in conversations:
    turns = [[message['role'], message['content']] for message in conversation.messages]
    # JSON quotes every text, so no two conversations give the same line. In ASCII, a newline ends a
    # conversation and stands nowhere else.
    line = json.dumps(turns, ensure_ascii=True)
    state.update(line.encode() + b'\n')
  return state.hexdigest()[:16]


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[int, Any]]:
  """(line number from 1, value) of every non-blank line.

  Raises:
    InputError: if the file is missing or not UTF-8, or a line is not JSON; the text names the line.
  """
  path = Path(path).expanduser()
  check_file(path)
  # utf-8-sig drops the byte-order mark that some editors write.
  with path.open(encoding='utf-8-sig') as lines:
    try:
      for number, line in enumerate(lines, 1):
        if line.strip():
          yield number, _parse_line(line, f'{path}:{number}')
    # The file is decoded as its lines are read.
    except UnicodeDecodeError as error:
      raise InputError(f'{path} is not UTF-8 text ({error.reason}): convert it first') from error


def check_file(path: Path) -> None:
  """Raises InputError if the path is no file; the text names the nearest file."""
  if path.is_dir():
    names = sorted(child.name for child in path.glob('*.jsonl'))
    holds = f"; it holds {', '.join(names[:8])}" if names else ''
    raise InputError(f'{path} is a folder, expected a jsonl file{holds}')
  if not path.exists():
    if not path.parent.is_dir():
      raise InputError(f"no file '{path}': the folder '{path.parent}' does not exist")
    files = [child.name for child in path.parent.iterdir() if child.is_file()]
    near = did_you_mean(path.name, files)
    raise InputError(f"no file '{path}'{near}")


def hub_rows(source: str, split: str | None, revision: str | None) -> Iterable[Mapping]:
  """The rows of a hub dataset, `owner/name` or `owner/name:config`.

  Raises:
    InputError: if the dataset cannot be loaded, or has several splits, none chosen and no `train`.
  """
  if not re.fullmatch(r'[\w.-]+(/[\w.-]+)?(:[\w.-]+)?', source):
    raise InputError(
      f"'{source}' is neither an existing file nor the name of a hub dataset (owner/name or "
      'owner/name:config)'
    )
  # The import takes seconds, and only hub datasets need it.
  import datasets

  name, _, config = source.partition(':')
  try:
    loaded = datasets.load_dataset(name, config or None, split=split, revision=revision)
  # The hub client raises many unrelated types: not found, gated, offline, no such split.
  except Exception as error:
    raise InputError(
      f"cannot load the hub dataset '{source}' (split {split}, revision {revision}): {error}. "
      'If a file was meant, there is none of that name'
    ) from error
  if not isinstance(loaded, Mapping):
    return loaded
  # Without a split, `load_dataset` gives a mapping of all splits.
  chosen = next(iter(loaded)) if len(loaded) == 1 else 'train'
  if chosen not in loaded:
    raise InputError(f"dataset '{source}' has the splits {sorted(loaded)}: choose one with split=")
  return loaded[chosen]


def _schema_of(row: Mapping, name: str) -> tuple[str, ...]:
  matches = [schema for schema in SCHEMAS if set(schema) <= set(row)]
  # Which of two schemas is meant would be a guess, and the texts may differ.
  if len(matches) > 1:
    raise InputError(
      f'{name}: the columns {sorted(row)} fit more than one of: {_ACCEPTED}; keep the '
      'columns of one'
    )
  if not matches:
    known = [column for schema in SCHEMAS for column in schema]
    hints = ''
    for column in row:
      hint = '' if column in known else did_you_mean(column, known)
      if hint:
        hints += f"; '{column}'{hint}"
    raise InputError(f'{name}: the columns are {sorted(row)}; accepted are {_ACCEPTED}{hints}')
  return matches[0]


def _messages_of(row: Mapping, schema: tuple[str, ...], name: str) -> tuple[dict[str, str], ...]:
  system = row.get('system')
  if schema == ('messages',):
    if system:
      raise InputError(
        f"{name}: a row with 'messages' has a 'system' column too: make it the first message"
      )
    return check_messages(row['messages'], name)
  columns = {'user': schema[0], 'assistant': schema[1]}
  if system is not None:
    columns = {'system': 'system', **columns}
  for column in columns.values():
    if not isinstance(row[column], str):
      raise InputError(
        f"{name}: '{column}' must be text, it is a {type(row[column]).__name__}; for several turns "
        "use 'messages'"
      )
  messages = [{'role': role, 'content': row[column]} for role, column in columns.items()]
  return check_messages(messages, name)


def _parse_line(line: str, where: str) -> Any:
  try:
    return json.loads(line)
  except json.JSONDecodeError as error:
    raise InputError(
      f'{where}: not valid JSON ({error.msg} at column {error.colno}); expected a jsonl file: one '
      'JSON object on each line'
    ) from error
