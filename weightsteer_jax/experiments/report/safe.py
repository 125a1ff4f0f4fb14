"""Foreign text made safe to show: escaped for HTML and for scripts."""

import html
import json
import re
from typing import Any


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
