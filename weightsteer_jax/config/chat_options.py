"""What a run may tell a chat template beside the messages: arguments, and a day."""

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

from weightsteer_jax.runtime import json_text
from weightsteer_jax.runtime.errors import InputError

# The function of transformers' environment that tells a template the day.
CLOCK = 'strftime_now'
# Variables that rendering itself sets, and functions of transformers' environment.
RESERVED = (
  'messages',
  'tools',
  'documents',
  'add_generation_prompt',
  'continue_final_message',
  'raise_exception',
  CLOCK,
)
_EXAMPLE = """'{"enable_thinking": false}'"""


def parse(text: str, where: str) -> dict[str, Any]:
  """The arguments in a flag's text, a JSON object; {} for ''.

  Raises:
    InputError: if the text is no JSON object, or `check_arguments` would raise it.
  """
  try:
    arguments = json_text.parse(text or '{}')
  except ValueError as error:
    raise InputError(f'{where}={text}: no JSON ({error}); as in {_EXAMPLE}') from error
  return check_arguments(arguments, where)


def check_arguments(arguments: Any, where: str) -> dict[str, Any]:
  """The arguments as JSON values, if any chat template could take them.

  Raises:
    InputError: if they are no mapping from names to JSON values, or a name is reserved.
  """
  if not isinstance(arguments, Mapping):
    raise InputError(f'{where} is {arguments!r}, expected a JSON object, as in {_EXAMPLE}')
  for name in arguments:
    if not isinstance(name, str) or not re.fullmatch(r'[A-Za-z_][A-Za-z0-9_]*', name):
      raise InputError(f'{where}: {name!r} is no name of a template variable')
    if name in RESERVED:
      hint = '; the day is a key of its own, chat_date' if name == CLOCK else ''
      raise InputError(f"{where}: '{name}' is set when a conversation is rendered{hint}")
  try:
    # NaN and infinity are no JSON, and tuples are lists there.
    return json.loads(json.dumps(dict(arguments), allow_nan=False))
  except (TypeError, ValueError, RecursionError) as error:
    raise InputError(f'{where}: the values must be JSON values: {error}') from error


def check_date(date: str, where: str) -> None:
  """Raises InputError if the date is neither '' nor a day as in 2026-12-01."""
  # Python reads other ISO forms too, and a record should have one spelling.
  if not date or re.fullmatch(r'\d{4}-\d\d-\d\d', date):
    try:
      datetime.date.fromisoformat(date or '2026-12-01')
      return
    except ValueError:
      pass
  raise InputError(f"{where} is '{date}', expected a day, as in 2026-12-01")
