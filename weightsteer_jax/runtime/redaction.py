"""Texts and settings without secrets: by the secret itself, by its name, or by its look."""

import base64
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

HIDDEN = '(hidden)'

# Names of secrets, without case and separators: 'x-api-key', 'apiKey' and 'API_KEY' are one name.
# `max_tokens` and `tokenizer` are none: the name of a secret token says whose token it is.
_OWNERS = ('hf', 'hub', 'auth', 'access', 'api', 'github', 'wandb', 'bearer', 'session', 'refresh')
_WORDS = ('secret', 'passw', 'credential', 'apikey', 'privatekey', 'accesskey', 'authori', 'cookie')
_NAME = re.compile(
  rf'{"|".join(_WORDS)}|headers?$|^(?:x?auth|bearer|token)$|(?:{"|".join(_OWNERS)})token'
)
# Values that look like a key whatever their name: of HTTP's schemes, of OpenAI, Hugging Face and
# GitHub. Twenty characters and more, because 'sk-learn' is no key.
_LOOK = re.compile(
  r'\b(?:bearer|basic)\s+[\w.~+/=-]{8,}|\b(?:sk-|hf_|gh[opsu]_)[\w-]{20,}', re.IGNORECASE
)
# A name and what separates it from its value in a command or in broken JSON. A flag's value may be
# the next argument.
_NAMED = re.compile(
  r'(?<![\w.\-])(?:(?P<name>[\w.\-]+)\\?["\']?\s*[:=]\s*|(?P<flag>--?[\w.\-]+)\s+(?!-))'
)
# A value: an object or a list without another inside, a quoted text, or one word, with the scheme
# of HTTP in front.
_VALUE = re.compile(
  r'\{[^{}]*\}|\[[^\[\]]*\]|"(?:[^"\\]|\\.)*"|\'[^\']*\''
  r'|(?:(?:bearer|basic)\s+)?[^\s,{}\[\]]+',
  re.IGNORECASE,
)
# Shorter pieces of base64 are chance.
_SHORTEST_BASE64 = 8
# Backslashes in front of a character: JSON inside JSON inside JSON has up to four. A bound, so that
# a long row of backslashes costs no time.
_ESCAPES = r'\\{0,4}'


def is_secret(name: str) -> bool:
  """Whether a setting of that name holds a secret.

  >>> [is_secret(name) for name in ('apiKey', 'extra-headers', 'hub_token', 'max_tokens')]
  [True, True, True, False]
  """
  # Of a dotted name the last part says what the value is.
  last = name.rpartition('.')[2]
  return bool(_NAME.search(re.sub(r'[^a-z0-9]', '', last.lower())))


def redact(value: Any, key: str = '') -> Any:
  """A JSON value without secrets.

  Hidden are texts under the name of a secret, at any depth, and inside a text (a command, JSON)
  what follows the name of a secret or looks like a key.

  >>> redact({'hub_token': 'hf_x', 'max_tokens': 48, 'nested': [{'password': 'p'}]})
  {'hub_token': '(hidden)', 'max_tokens': 48, 'nested': [{'password': '(hidden)'}]}
  """
  if isinstance(value, dict):
    # What stands under the name of a secret keeps that name: {'headers': {'X-Mine': '..'}}.
    named = {name: key if is_secret(key) else str(name) for name in value}
    return {name: redact(inner, named[name]) for name, inner in value.items()}
  if isinstance(value, list):
    return [redact(inner, key) for inner in value]
  if not isinstance(value, str):
    return value
  if value and is_secret(key):
    return HIDDEN
  return _redact_text(value)


def redact_command(arguments: list[str]) -> str:
  """The command line without secrets, quoted for a shell; JSON in a flag is read as JSON.

  >>> redact_command(['x.py', '--alphas=(-1, 0)', '--hub_token', 'hf_x'])
  "x.py '--alphas=(-1, 0)' --hub_token '(hidden)'"
  """
  shown = []
  before = ''
  for argument in arguments:
    name, equals, value = argument.partition('=')
    if equals:
      shown.append(name + equals + redact(value, name))
    # A flag's value may be the next argument.
    elif before.startswith('-') and '=' not in before and not argument.startswith('-'):
      shown.append(redact(argument, before))
    else:
      shown.append(_redact_text(argument))
    before = argument
  return shlex.join(shown)


def secrets_in(value: Any, where: str = '') -> Iterator[str]:
  """Dotted names of the texts in a JSON value that `redact` would hide."""
  if isinstance(value, dict):
    items = [(str(name), inner) for name, inner in value.items()]
  elif isinstance(value, list):
    items = [(str(index), inner) for index, inner in enumerate(value)]
  elif redact(value) != value:
    yield where
    return
  else:
    return
  for name, inner in items:
    path = f'{where}.{name}' if where else name
    # A secret's name hides what stands below it, so this name is the one to tell.
    if redact({name: inner}) != {name: inner} and is_secret(name):
      yield path
    else:
      yield from secrets_in(inner, path)


def _redact_text(text: str) -> str:
  if text.lstrip()[:1] in ('{', '['):
    try:
      value = json.loads(text)
      # A text without secrets stays as it is, to the last blank.
      hidden = redact(value)
      return text if hidden == value else json.dumps(hidden)
    except (ValueError, RecursionError):
      # No JSON: a dict as Python writes it, or torn. The patterns below read it.
      pass
  return _LOOK.sub(HIDDEN, _redact_named(text))


def _redact_named(text: str) -> str:
  """The text without the values that follow the name of a secret."""
  parts = []
  position = 0
  for named in _NAMED.finditer(text):
    # A name inside of a value that is hidden already has nothing left to hide.
    if named.start() < position or not is_secret(named['name'] or named['flag']):
      continue
    value = _VALUE.match(text, named.end())
    if value:
      parts += [text[position : named.end()], HIDDEN]
      position = value.end()
  return ''.join(parts) + text[position:]


def spellings(secret: str) -> re.Pattern:
  r"""A pattern of the secret as it is, and as URLs, JSON, HTML and base64 write it.

  >>> bool(spellings('sk-word/1').search(r'{"said": "\u0073k%2Dword\/1"}'))
  True
  """
  alternatives = [_spelled(secret)]
  for offset in range(3):
    piece = _inside_base64(secret, offset)
    if len(piece) >= _SHORTEST_BASE64:
      alternatives.append(_spelled(piece))
  return re.compile('|'.join(alternatives))


def _spelled(text: str) -> str:
  """A pattern of the text, each character in any of its spellings."""
  return ''.join(_spelled_character(character) for character in text)


def _spelled_character(character: str) -> str:
  code = ord(character)
  # URLs may write a blank as a plus; base64 for URLs has two characters of its own.
  plain = {' ': '[ +]', '+': r'[+\-]', '/': '[/_]'}.get(character, re.escape(character))
  escaped = f'(?i:u{code:04x}|%{code:02x}|&\\#0*{code};|&\\#x0*{code:x};)'
  return f'{_ESCAPES}(?:{plain}|{escaped})'


def _inside_base64(secret: str, offset: int) -> str:
  """What base64 makes of the secret after `offset` further bytes, without its neighbours' bits."""
  encoded = base64.b64encode(b'\0' * offset + secret.encode()).decode()
  # A character holds 6 bits; those with bits of the bytes before or after are left out.
  start = -(-offset * 8 // 6)
  end = (offset + len(secret.encode())) * 8 // 6
  return encoded[start:end]
