"""Conversations from jsonl files and hub datasets."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsteer_jax.runtime import json_text
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.storage import files

ROLES = ('system', 'user', 'assistant')
# Keys of an assistant's thought. Source: transformers 5.24, `_REASONING_FIELDS`.
THOUGHTS = ('reasoning_content', 'reasoning', 'thinking')
# Keys that say whether an assistant's message is to be learnt, and the values for no and yes.
# Source: `weight` of OpenAI's and Mistral's fine-tuning formats, also read by axolotl; `train` and
# `training`, the usual names of axolotl's message_field_training; `loss` of ms-swift 4.6.
MARKS: Mapping[str, tuple[Any, ...]] = {
  'weight': (0, 1, 0.0, 1.0),
  'train': (False, True),
  'training': (False, True),
  'loss': (False, True),
}
_FILE_SUFFIXES = ('.jsonl', '.json', '.csv', '.tsv', '.txt', '.parquet')
# The columns that a row must have, one schema a file. A row of the last two may also have a column
# `system`, the system prompt.
SCHEMAS = (('messages',), ('question', 'answer'), ('prompt', 'completion'))
# Columns that other tools hand to the chat template, and what to do. Source: TRL 1.16, dataset
# formats.
_RENDERED = {
  'tools': 'remove it, and conversations with tools',
  'chat_template_kwargs': 'name one set for all rows as model.chat_template_args',
}
# Names that other formats give to a column. Source: Alpaca (instruction, output), Dolly
# (instruction, response), ShareGPT (conversations).
OTHER_NAMES = {
  'conversations': 'messages',
  'instruction': 'question',
  'output': 'answer',
  'query': 'question',
  'response': 'answer',
}
_ACCEPTED = (
  "'messages' (a list of {role, content}), or 'question' and 'answer', or 'prompt' and "
  "'completion' (with an optional 'system')"
)


@dataclasses.dataclass(frozen=True)
class Conversation:
  """Messages in turn, and the name that errors cite.

  Attributes:
    messages: each {'role': system | user | assistant, 'content': text}; an assistant's may have
      'reasoning_content', the thought before the text, and 'weight' 0, for not to be learnt.
    name: such as `file.jsonl:12`.
  """

  messages: tuple[Mapping[str, Any], ...]
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


def check_messages(messages: Any, name: str) -> tuple[dict[str, Any], ...]:
  """The messages with the keys of `Conversation.messages`, checked.

  A thought may be spelt as any of THOUGHTS, and an answer may be marked as not to be learnt by any
  of MARKS. A key without a value (null, or nothing in it) says nothing, and is left out.

  Raises:
    InputError: if the messages are no list of {role, content}, a role or a key is unknown, a
      content is no text, an answer is empty, or a mark is neither yes nor no.
  """
  # A text is a sequence too, of its characters.
  is_list = isinstance(messages, Sequence) and not isinstance(messages, (str, Mapping))
  if not is_list or not messages:
    raise InputError(f"{name}: 'messages' must be a non-empty list of {{role, content}}")
  return tuple(_check_message(message, i, name) for i, message in enumerate(messages))


def _check_message(message: Any, index: int, name: str) -> dict[str, Any]:
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
  where = f'{name}: message {index} ({role})'
  further = {
    key: value
    for key, value in message.items()
    if key not in ('role', 'content') and not _says_nothing(value)
  }
  thought = _thought_of(further, where)
  learnt = _learnt_of(further, where)
  known = (*THOUGHTS, *MARKS)
  for key in further:
    if key not in known:
      raise InputError(
        f"{where} has the key '{key}', which is not understood{did_you_mean(key, known)}: a chat "
        'template could render it, or training should heed it; remove it from the data. Known are '
        f'role, content, {", ".join(known)}'
      )
  checked: dict[str, Any] = {'role': role, 'content': content}
  if role == 'assistant':
    if thought:
      checked['reasoning_content'] = thought
    if not learnt:
      checked['weight'] = 0
  elif thought or (learnt and any(key in further for key in MARKS)):
    raise InputError(f'{where} has the key {list(further)[0]!r}, which only an answer may have')
  return checked


def _says_nothing(value: Any) -> bool:
  return value is None or (isinstance(value, (str, list, dict)) and not value)


def _thought_of(further: Mapping[str, Any], where: str) -> str:
  """The thought in one of its spellings; '' for none."""
  thoughts = {key: further[key] for key in THOUGHTS if key in further}
  for key, value in thoughts.items():
    if not isinstance(value, str):
      raise InputError(f"{where}: '{key}' must be text, it is a {type(value).__name__}")
  if len(set(thoughts.values())) > 1:
    raise InputError(f'{where} has different thoughts in {" and ".join(thoughts)}: keep one')
  thought = next(iter(thoughts.values()), '')
  return thought if thought.strip() else ''


def _learnt_of(further: Mapping[str, Any], where: str) -> bool:
  """Whether a message is to be learnt, by its marks."""
  marks = {}
  for key, expected in MARKS.items():
    if key not in further:
      continue
    value = further[key]
    # JSON's true and 1 are equal to Python, and no two tools mean both.
    if not any(type(value) is type(mark) and value == mark for mark in expected):
      words = ' or '.join(json.dumps(mark) for mark in expected[:2])
      raise InputError(f"{where}: '{key}' is {json.dumps(value)}, expected {words}")
    marks[key] = bool(value)
  if len(set(marks.values())) > 1:
    raise InputError(f'{where} is to be learnt by one of {", ".join(marks)} and not by another')
  return next(iter(marks.values()), True)


def digest(conversations: Iterable[Conversation]) -> str:
  """16 hex digits that name the conversations by content and order, whatever their file."""
  state = hashlib.sha256()
  for conversation in conversations:
    turns = []
    for message in conversation.messages:
      turn = [message['role'], message['content']]
      # Only where there is more, so that the digests of other conversations stay.
      more = {key: message[key] for key in ('reasoning_content', 'weight') if key in message}
      turns.append([*turn, more] if more else turn)
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
    raise InputError(f"no file '{path}'{files.path_hint(path)}")


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


def _hint(column: str, known: Sequence[str]) -> str:
  """Words on what an unknown column may be; '' if nothing is near."""
  if column in OTHER_NAMES:
    return f" is '{OTHER_NAMES[column]}' here"
  return did_you_mean(column, known)


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
      hint = '' if column in known else _hint(column, known)
      if hint:
        hints += f"; '{column}'{hint}"
    raise InputError(f'{name}: the columns are {sorted(row)}; accepted are {_ACCEPTED}{hints}')
  return matches[0]


def _messages_of(row: Mapping, schema: tuple[str, ...], name: str) -> tuple[dict[str, Any], ...]:
  for column in _RENDERED:
    if not _says_nothing(row.get(column)):
      raise InputError(
        f"{name}: the column '{column}' is meant for the chat template, and is not supported: "
        f'{_RENDERED[column]}'
      )
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
    row = json_text.parse(line)
  except ValueError as error:
    at = str(error)
    if isinstance(error, json.JSONDecodeError):
      at = f'{error.msg} at column {error.colno}'
    raise InputError(
      f'{where}: not valid JSON ({at}); expected a jsonl file: one JSON object on each line'
    ) from error
  # An escape alone can write what no tokenizer takes.
  if '\\u' in line and json_text.half_pair(json.dumps(row, ensure_ascii=False)) >= 0:
    raise InputError(
      f'{where}: a text has half a surrogate pair, which no tokenizer reads: mend it'
    )
  return row
