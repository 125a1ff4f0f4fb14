r"""Arguments, the date and system prompts of a chat template, bound into the template's own text.

A template reads variables beside the messages (`enable_thinking`, `date_string`), and some ask for
the day. Both are bound before anything is rendered: whoever renders with the tokenizer afterwards
gives every conversation the same frame, today and tomorrow.

  >>> prefix(Binding({'enable_thinking': False}))
  '{% set enable_thinking = false %}\n'

Variables are set at the top of the text, and `strftime_now` becomes a macro that knows one day.
transformers has no other door for the day: its global of that name reads the clock, and a function
passed as a variable becomes a text before the template sees it (transformers 5.24,
`_plain_template_data`).

A system prompt for conversations without one takes the place of the template's own, such as "You
are Qwen". Templates without a system turn (Gemma 2, the first Mistral) refuse system prompts: those
can stand before the first question, as Gemma 3's template puts them.
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
    system_prompt: of conversations without one; '' leaves them to the template.
    system_role: 'system', or 'user' where system prompts stand before the first question.
  """

  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  date: str = ''
  system_prompt: str = ''
  system_role: str = 'system'

  def to_json(self) -> dict[str, Any]:
    """The entries that are not at their defaults, for records."""
    record = {**dataclasses.asdict(self), 'arguments': dict(self.arguments)}
    plain = dataclasses.asdict(Binding())
    return {key: value for key, value in record.items() if value != plain[key]}

  def words(self) -> str:
    """The binding in a line; '' where nothing is bound."""
    parts = []
    if self.arguments:
      parts.append(f'arguments {json.dumps(dict(self.arguments), ensure_ascii=False)}')
    if self.date:
      parts.append(f'date {self.date}')
    if self.system_prompt:
      parts.append(f'system prompt {self.system_prompt!r}')
    if self.system_role != 'system':
      parts.append('system prompts stand before the first question')
    return ', '.join(parts)


def today() -> str:
  """The present day, YYYY-MM-DD, by the local clock, as transformers would tell it."""
  return datetime.datetime.now().date().isoformat()


def bind(
  tokenizer: Any,
  arguments: Mapping[str, Any],
  date: str = '',
  *,
  system_prompt: str = '',
  system_role: str = 'system',
) -> Any:
  """The tokenizer, with its chat template bound.

  Args:
    arguments: JSON values of the template's variables.
    date: the day that a dated template is told; '' is the present day.
    system_prompt: put before conversations without a system prompt; '' leaves them alone.
    system_role: 'system', or 'user' to put system prompts before the first question.

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
  told = Binding(arguments, day.isoformat() if day else '', system_prompt, system_role)
  bound = {name: prefix(told, text) + text for name, text in named.items()}
  tokenizer.chat_template = bound if isinstance(template, Mapping) else bound['default']
  tokenizer.chat_binding = told
  return tokenizer


def bound(tokenizer: Any) -> Binding:
  """What the tokenizer's chat template was told by `bind`."""
  return getattr(tokenizer, 'chat_binding', None) or Binding()


def prefix(told: Binding, template: str = '') -> str:
  """The lines before a template that bind it.

  Args:
    template: the template, whose texts are looked through for formats of dates.
  """
  blocks = []
  for name, value in told.arguments.items():
    blocks.append(f'{{% set {name} = {_literal(value)} %}}')
  if told.date and CLOCK in template:
    blocks.append(_clock(datetime.date.fromisoformat(told.date), template))
  if told.system_prompt:
    message = _literal({'role': 'system', 'content': told.system_prompt})
    blocks.append(
      "{% if messages[0].role != 'system' %}"
      f'{{% set messages = [{message}] + messages %}}'
      '{% endif %}'
    )
  if told.system_role == 'user':
    # As in the template of Gemma 3: system prompt, blank line, question.
    joined = "messages[0].content ~ '\\n\\n' ~ messages[1].content"
    blocks.append(
      "{% if messages[0].role == 'system' and messages[1].role == 'user' %}"
      f"{{% set messages = [{{'role': 'user', 'content': {joined}}}] + messages[2:] %}}"
      '{% endif %}'
    )
  # The newline goes with the block before it (trim_blocks), and leaves the template at the
  # beginning of a line, where lstrip_blocks takes the blanks before its first block.
  return ''.join(blocks) + '\n' if blocks else ''


def _clock(day: datetime.date, template: str) -> str:
  """A macro in place of transformers' clock, that knows one day."""
  midnight = datetime.datetime.combine(day, datetime.time())
  told = {text: midnight.strftime(text) for text in sorted(_formats(template))}
  unknown = "raise_exception('no format of dates that stands in the template: ' ~ format)"
  return (
    f'{{% macro {CLOCK}(format) %}}'
    f'{{{{ ({_literal(told)})[format] if format in {_literal(list(told))} else {unknown} }}}}'
    '{% endmacro %}'
  )


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
