"""Foreign text made safe to show: escaped for HTML and for scripts, and without secrets."""

import html
import json
import re
from typing import Any

# Settings whose values are secrets. `max_tokens` and `tokenizer` are none: the key of a secret
# token says whose token it is.
_OWNERS = 'hf|hub|auth|access|api|github|wandb|bearer'
_SECRETS = rf'secret|passw|credential|(?:api|private)_?key|(?:^|_|\b)(?:{_OWNERS})_?token\b'
SECRET = re.compile(_SECRETS + r'|^token$', re.IGNORECASE)
SECRET_FLAG = re.compile(rf'(--?[\w.]*?(?:{_SECRETS}|-token\b)\w*(?:=|\s+))(\S+)', re.IGNORECASE)
HIDDEN = '(hidden)'


def escape(text: str) -> str:
  """Text that is safe in HTML, in elements and in quoted attributes.

  Characters that HTML forbids become U+FFFD.
  """
  # Control characters other than tab and newlines, and halves of surrogate pairs.
  legal = re.sub(r'[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]', '\ufffd', text)
  return html.escape(legal)


def script_json(value: Any) -> str:
  r"""JSON that can stand inside a script element: ASCII without `<`, `>` and `&`.

  >>> script_json({'a': '</script>'})
  '{"a":"\\u003c/script\\u003e"}'
  """
  # JSON for browsers has no NaN; an error here is better than a page that does not load.
  text = json.dumps(value, allow_nan=False, separators=(',', ':'))
  return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')


def redact(value: Any, key: str = '') -> Any:
  """A JSON value without secrets.

  Hidden are texts under the key of a secret, and what follows the flag of a secret in a command.

  >>> redact({'hub_token': 'hf_x', 'max_tokens': 48, 'nested': [{'password': 'p'}]})
  {'hub_token': '(hidden)', 'max_tokens': 48, 'nested': [{'password': '(hidden)'}]}
  """
  if isinstance(value, dict):
    return {name: redact(inner, str(name)) for name, inner in value.items()}
  # Every entry of a list stands under the key of the list.
  if isinstance(value, list):
    return [redact(inner, key) for inner in value]
  if not isinstance(value, str):
    return value
  if value and SECRET.search(key):
    return HIDDEN
  return SECRET_FLAG.sub(rf'\1{HIDDEN}', value)
