r"""Arguments and the date of a chat template, bound into the template's own text.

A template reads variables beside the messages (`enable_thinking`, `date_string`), and some ask for
the day. Both are bound before anything is rendered: whoever renders with the tokenizer afterwards
gives every conversation the same frame, today and tomorrow.

  >>> prefix({'enable_thinking': False}, None)
  '{% set enable_thinking = false %}\n'

Variables are set at the top of the text, and `strftime_now` becomes a macro that knows one day.
transformers has no other door for the day: its global of that name reads the clock, and a function
passed as a variable becomes a text before the template sees it (transformers 5.24,
`_plain_template_data`).
"""

import dataclasses
import datetime
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from weightsteer_jax.config.chat_options import CLOCK, RESERVED, check_arguments, check_date
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean


@dataclasses.dataclass(frozen=True)
class Binding:
  """What a tokenizer's chat template was told beside the messages.

  Attributes:
    arguments: JSON values by name.
    date: the day, YYYY-MM-DD; '' where the template asks for none.
  """

  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  date: str = ''

  def to_json(self) -> dict[str, Any]:
    """The entries that are not empty, for records."""
    record = {'arguments': dict(self.arguments), 'date': self.date}
    return {key: value for key, value in record.items() if value}

  def words(self) -> str:
    """The binding in a line; '' where nothing is bound."""
    parts = []
    if self.arguments:
      parts.append(f'arguments {json.dumps(dict(self.arguments), ensure_ascii=False)}')
    if self.date:
      parts.append(f'date {self.date}')
    return ', '.join(parts)


def today() -> str:
  """The present day, YYYY-MM-DD, by the local clock, as transformers would tell it."""
  return datetime.datetime.now().date().isoformat()


def bind(tokenizer: Any, arguments: Mapping[str, Any], date: str = '') -> Any:
  """The tokenizer, with its chat template bound.

  Args:
    arguments: JSON values of the template's variables.
    date: the day that a dated template is told; '' is the present day.

  Raises:
    InputError: if there is no chat template to take the arguments, or the template never reads one
      of them.
  """
  where = 'chat_template_args'
  arguments = check_arguments(arguments, where)
  check_date(date, 'chat_date')
  template = getattr(tokenizer, 'chat_template', None)
  if not template:
    if arguments:
      raise InputError(
        f"{where}: the tokenizer '{tokenizer.name_or_path}' has no chat template to take them"
      )
    tokenizer.chat_binding = Binding()
    return tokenizer
  # Some tokenizers have several templates by name, one of them the default.
  named = template if isinstance(template, Mapping) else {'default': template}
  _check_read(arguments, tokenizer.get_chat_template(), tokenizer)
  dated = any(CLOCK in text for text in named.values())
  day = datetime.date.fromisoformat(date or today()) if dated else None
  bound = {}
  for name, text in named.items():
    bound[name] = prefix(arguments, day if CLOCK in text else None, text) + text
  tokenizer.chat_template = bound if isinstance(template, Mapping) else bound['default']
  tokenizer.chat_binding = Binding(arguments, day.isoformat() if day else '')
  return tokenizer


def bound(tokenizer: Any) -> Binding:
  """What the tokenizer's chat template was told by `bind`."""
  return getattr(tokenizer, 'chat_binding', None) or Binding()


def prefix(arguments: Mapping[str, Any], day: datetime.date | None, template: str = '') -> str:
  """The lines before a template that bind it.

  Args:
    day: what `strftime_now` tells; None leaves the function alone.
    template: the template, whose texts are looked through for formats of dates.
  """
  blocks = []
  for name, value in arguments.items():
    blocks.append(f'{{% set {name} = {_literal(value)} %}}')
  if day is not None:
    midnight = datetime.datetime.combine(day, datetime.time())
    told = {text: midnight.strftime(text) for text in sorted(_formats(template))}
    unknown = "raise_exception('no format of dates that stands in the template: ' ~ format)"
    blocks.append(
      f'{{% macro {CLOCK}(format) %}}'
      f'{{{{ ({_literal(told)})[format] if format in {_literal(list(told))} else {unknown} }}}}'
      '{% endmacro %}'
    )
  # The newline goes with the block before it (trim_blocks), and leaves the template at the
  # beginning of a line, where lstrip_blocks takes the blanks before its first block.
  return ''.join(blocks) + '\n' if blocks else ''


def _literal(value: Any) -> str:
  """A JSON value as jinja writes it."""
  if value is None:
    return 'none'
  if isinstance(value, list):
    return '[' + ', '.join(map(_literal, value)) + ']'
  if isinstance(value, Mapping):
    return '{' + ', '.join(f'{_literal(k)}: {_literal(v)}' for k, v in value.items()) + '}'
  # jinja reads escapes as Python does: JSON's pairs of surrogates would stay two characters, so
  # that other scripts stand as they are.
  return json.dumps(value, ensure_ascii=False)


def _check_read(arguments: Mapping[str, Any], template: str, tokenizer: Any) -> None:
  """Raises InputError if the template never reads an argument."""
  if not arguments:
    return
  read = variables(template)
  special = set(tokenizer.special_tokens_map)
  known = sorted(read - {*RESERVED} - special)
  for name in arguments:
    if name in special:
      raise InputError(f"chat_template_args: '{name}' is a token of the tokenizer, no argument")
    if name not in read:
      raise InputError(
        f"chat_template_args: the chat template of '{tokenizer.name_or_path}' never reads "
        f"'{name}'{did_you_mean(name, known)}; it reads: {', '.join(known) or 'no variable'}"
      )


def variables(template: str) -> set[str]:
  """Names that the template takes from outside.

  >>> sorted(variables('{% set c = messages %}{% if think is defined %}{{ c[day] }}{% endif %}'))
  ['day', 'messages', 'think']
  """
  from jinja2 import meta, nodes

  tree = _parsed(template)
  # A name of the template's own counts as undeclared too, where it is set in one branch of several.
  own = {node.name for node in tree.find_all(nodes.Name) if node.ctx == 'store'}
  for test in tree.find_all((nodes.Test, nodes.Filter)):
    if test.name in ('defined', 'undefined', 'default') and isinstance(test.node, nodes.Name):
      own.discard(test.node.name)
  return meta.find_undeclared_variables(tree) - own


def _formats(template: str) -> Iterator[str]:
  """Texts of the template that could be formats of dates."""
  from jinja2 import nodes

  for constant in _parsed(template).find_all(nodes.Const):
    if isinstance(constant.value, str) and '%' in constant.value:
      yield constant.value


def _parsed(template: str) -> Any:
  """The syntax tree of a template, without transformers' own marks of answers."""
  import jinja2

  unmarked = re.sub(r'\{%[-+]?\s*(end)?generation\s*[-+]?%\}', '', template)
  # jinja's errors are told where the template is rendered.
  try:
    return jinja2.Environment(extensions=['jinja2.ext.loopcontrols']).parse(unmarked)
  except jinja2.TemplateSyntaxError as error:
    raise InputError(f'the chat template has a fault of syntax: {error}') from error
