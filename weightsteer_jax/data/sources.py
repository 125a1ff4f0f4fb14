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
# Each schema is the columns a row must have. A pair may also have a `system` column: the system
# prompt.
SCHEMAS = (('messages',), ('question', 'answer'), ('prompt', 'completion'))
_ACCEPTED = (
  "'messages' (a list of {role, content}), or 'question' and 'answer', or 'prompt' and "
  "'completion' (with an optional 'system')"
)


@dataclasses.dataclass(frozen=True)
class Conversation:
  """Messages in turn, each {'role': system | user | assistant, 'content': text}, and the name
  errors cite (`file.jsonl:12`).
  """

  messages: tuple[Mapping[str, str], ...]
  name: str


def load_conversations(
  source: str | os.PathLike, *, split: str | None = None, revision: str | None = None
) -> list[Conversation]:
  """The conversations of a jsonl file or a hub dataset, in order.

  A row has the column `messages`, or `question` and `answer`, or `prompt` and `completion`; one
  schema for all rows; other columns are ignored, except that a pair's `system` becomes the system
  message.

  Args:
    source: a path if it is a Path, exists, starts with `.`, `/` or `~`, holds more than one `/`, or
      ends as a data file does; otherwise the name of a hub dataset, `owner/name`, with `:config`
      behind it where the dataset has several.
    split: of a hub dataset; by default its only split, or `train`.
    revision: commit or tag of a hub dataset.

  Raises:
    InputError: no such file or dataset, no rows, unknown columns, a broken row; with the line where
      there is one.
  """
  if is_path(source):
    if split is not None or revision is not None:
      raise InputError(f"'{source}' is a file: split and revision are for hub datasets")
    path = Path(source).expanduser()
    return parse_rows(
      ((f'{path.name}:{line}', row) for line, row in read_jsonl(path)), where=str(path)
    )
  rows = hub_rows(str(source), split, revision)
  return parse_rows(
    ((f'{source}[{i}]', row) for i, row in enumerate(rows)), where=f"dataset '{source}'"
  )


def is_path(source: str | os.PathLike) -> bool:
  """Whether `source` means a file rather than a hub dataset.

  >>> is_path('./data'), is_path('pairs.jsonl'), is_path('openai/gsm8k:main')
  (True, True, False)
  """
  if not isinstance(source, str) or Path(source).exists():
    return True
  return (
    source.startswith(('.', '/', '~')) or source.endswith(_FILE_SUFFIXES) or source.count('/') > 1
  )


def parse_rows(rows: Iterable[tuple[str, Any]], *, where: str) -> list[Conversation]:
  """Conversations of (name, row) pairs; `where` names the whole in errors.

  Raises:
    InputError: no rows, unknown columns, rows of different schemas, a wrong role or content.
  """
  schema, conversations = None, []
  for name, row in rows:
    if not isinstance(row, Mapping):
      raise InputError(
        f'{name}: a row must be an object with the columns {_ACCEPTED}; it is a '
        f'{type(row).__name__}'
      )
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
  """The messages with only their role and content, checked.

  Raises:
    InputError: not a list of {role, content}, an unknown role, content that is not text, an empty
      answer, or no turn to answer.
  """
  if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
    raise InputError(f"{name}: 'messages' must be a non-empty list of {{role, content}}")
  for message in messages:
    if not isinstance(message, Mapping) or 'role' not in message or 'content' not in message:
      raise InputError(
        f"{name}: a message must be an object with 'role' and 'content', got {message!r:.80}"
      )
    role, content = message['role'], message['content']
    if role not in ROLES:
      near = did_you_mean(str(role), ROLES)
      raise InputError(f"{name}: unknown role {role!r}{near}; the roles are {', '.join(ROLES)}")
    if not isinstance(content, str):
      raise InputError(
        f"{name}: the content of a {role} message must be text, it is a {type(content).__name__}"
      )
    if role == 'assistant' and not content.strip():
      raise InputError(f'{name}: an assistant message is empty')
  return tuple({'role': message['role'], 'content': message['content']} for message in messages)


def digest(conversations: Iterable[Conversation]) -> str:
  """16 hex digits that name the content and the order of the conversations, whatever file they came
  from.
  """
  state = hashlib.sha256()
  for conversation in conversations:
    turns = [[message['role'], message['content']] for message in conversation.messages]
    state.update(json.dumps(turns, ensure_ascii=True).encode() + b'\n')
  return state.hexdigest()[:16]


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[int, Any]]:
  """(line number from 1, value) of every non-blank line.

  Raises:
    InputError: no such file (names the nearest one that exists), not UTF-8, or a line that is not
      JSON (names the line).
  """
  path = Path(path).expanduser()
  check_file(path)
  # utf-8-sig drops the byte-order mark that some editors write.
  with path.open(encoding='utf-8-sig') as lines:
    try:
      for number, line in enumerate(lines, 1):
        if line.strip():
          yield number, _parse_line(line, f'{path}:{number}')
    except UnicodeDecodeError as error:
      raise InputError(f'{path} is not UTF-8 text ({error.reason}): convert it first') from error


def check_file(path: Path) -> None:
  """Nothing, if there is such a file.

  Raises:
    InputError: a folder, or no such file; names the nearest one that exists.
  """
  if path.is_dir():
    found = sorted(child.name for child in path.glob('*.jsonl'))
    holds = f"; it holds {', '.join(found[:8])}" if found else ''
    raise InputError(f'{path} is a folder, expected a jsonl file{holds}')
  if not path.exists():
    if not path.parent.is_dir():
      raise InputError(f"no file '{path}': the folder '{path.parent}' does not exist")
    near = did_you_mean(
      path.name, [child.name for child in path.parent.iterdir() if child.is_file()]
    )
    raise InputError(f"no file '{path}'{near}")


def hub_rows(source: str, split: str | None, revision: str | None) -> Iterable[Mapping]:
  """The rows of a hub dataset, `owner/name` or `owner/name:config`.

  Raises:
    InputError: it cannot be loaded, or it has several splits and none was chosen.
  """
  if not re.fullmatch(r'[\w.-]+(/[\w.-]+)?(:[\w.-]+)?', source):
    raise InputError(
      f"'{source}' is neither an existing file nor the name of a hub dataset (owner/name or "
      'owner/name:config)'
    )
  import datasets  # Takes seconds to import, and only hub datasets need it.

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
  chosen = next(iter(loaded)) if len(loaded) == 1 else 'train'
  if chosen not in loaded:
    raise InputError(f"dataset '{source}' has the splits {sorted(loaded)}: choose one with split=")
  return loaded[chosen]


def _schema_of(row: Mapping, name: str) -> tuple[str, ...]:
  matches = [schema for schema in SCHEMAS if all(column in row for column in schema)]
  if len(matches) > 1:
    raise InputError(
      f'{name}: the columns {sorted(row)} fit more than one of: {_ACCEPTED}; keep the '
      'columns of one'
    )
  if not matches:
    known = [column for schema in SCHEMAS for column in schema]
    near = {column: did_you_mean(column, known) for column in row if column not in known}
    hints = ''.join(f"; '{column}'{hint}" for column, hint in near.items() if hint)
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
  for column in (*schema, *(['system'] if system is not None else [])):
    if not isinstance(row[column], str):
      raise InputError(
        f"{name}: '{column}' must be text, it is a {type(row[column]).__name__}; for several turns "
        "use 'messages'"
      )
  roles = (['system'] if system is not None else []) + ['user', 'assistant']
  contents = ([system] if system is not None else []) + [row[column] for column in schema]
  return check_messages(
    [{'role': role, 'content': content} for role, content in zip(roles, contents)], name
  )


def _parse_line(line: str, where: str) -> Any:
  try:
    return json.loads(line)
  except json.JSONDecodeError as error:
    raise InputError(
      f'{where}: not valid JSON ({error.msg} at column {error.colno}); expected a jsonl file: one '
      'JSON object on each line'
    ) from error
