"""Flags as they stand on the command line, before absl and a config's file have their say.

The look is light: a misspelt flag or config key, a config that is not there and a flag that is
missing are told before jax is imported.
"""

import dataclasses
import os
import re
from collections.abc import Sequence

from absl import flags

from weightsteer_jax.interfaces.cli import config_changes, config_keys, shipped
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

HELP = ('help', 'h', 'helpshort', '?')
HELP_FULL = 'helpfull'
# Absl's own: all flags, for programs to read.
_HELP_XML = 'helpxml'

# Flags whose value is text for a model or for readers, in which a ~ is a ~.
_TEXTS = ('prompt', 'raw_prompt', 'system', 'name', 'project', 'served_name', 'chat_template_args')
# The home folder: of a path, of one under a name, and of one among several.
_HOME = re.compile(r'(?:^|(?<=[=,]))~(?=/|$)')

_required: list[str] = []
# Flags that may also stand as words without dashes, in this order.
_positional: list[str] = []


@dataclasses.dataclass(frozen=True)
class Given:
  """A flag of the command line.

  Attributes:
    name: without dashes, and with 'no' before it where the flag is turned off.
    value: '' for a flag that stands alone.
    words: the words of the command line that make the flag.
  """

  name: str
  value: str
  words: tuple[str, ...]


def require(*names: str) -> None:
  """Marks flags that a verb cannot do without."""
  _required.extend(names)


def positional(*names: str) -> None:
  """Lets flags be given as words without dashes too, in this order."""
  _positional.extend(names)


def required() -> tuple[str, ...]:
  """The flags that the verb cannot do without, in the order of their definition."""
  return tuple(_required)


def read(args: Sequence[str], shown: str) -> list[Given]:
  """The flags of a command line, each known to the verb.

  Args:
    args: the words after the verb.
    shown: the verb as errors name it, 'weightsteer steer'.

  Raises:
    InputError: if a flag or a config key does not exist, a value is missing, or a word is no flag.
  """
  words = list(flags.FLAGS.read_flags_from_files(list(args), force_gnu=False))
  tolerated = _tolerated(words)
  given = []
  unnamed = list(_positional)
  while words:
    word = words.pop(0)
    if unnamed and not word.startswith('-'):
      word = f'--{unnamed.pop(0)}={word}'
    name, equals, value = word.removeprefix('-').removeprefix('-').partition('=')
    if not word.startswith('-') or not name:
      raise InputError(f"unexpected argument '{word}': every option is a flag, --name=value")
    made_of: tuple[str, ...] = (word,)
    if name not in tolerated and not equals and _takes_value(name, shown):
      if not words:
        raise InputError(f'--{name} has no value; expected --{name}=VALUE')
      value = words.pop(0)
      made_of = (word, value)
    elif name not in tolerated:
      _refuse_unknown(name, shown)
    _refuse_choice(name, value)
    if value and _at_home(name, value) != value:
      value = _at_home(name, value)
      made_of = (f'--{name}={value}',)
    given.append(Given(name, value, made_of))
  return given


def wants_help(given: Sequence[Given]) -> str:
  """'help' or 'helpfull', as the command line asks for it, or ''."""
  for flag in given:
    if flag.name in HELP:
      return HELP[0]
    if flag.name == HELP_FULL:
      return HELP_FULL
  return ''


def refuse_missing(given: Sequence[Given], shown: str) -> None:
  """Raises InputError if a flag that the verb needs is missing."""
  names = {flag.name for flag in given}
  missing = [f'--{name}' for name in _required if name not in names]
  if missing and _HELP_XML not in names:
    raise InputError(f'{shown} needs {" and ".join(missing)}; {shown} --help says more')


def prepared(given: Sequence[Given]) -> list[str]:
  """The words for absl: without help and without keys of the config; the config as its file.

  Raises:
    InputError: if there is no such config.
  """
  config: list[str] = []
  rest: list[str] = []
  for flag in given:
    if flag.name == 'config' and 'config' in flags.FLAGS:
      # The last one counts, as of every flag.
      config = [f'--config={shipped.find(flag.value)}']
    elif flag.name not in (*HELP, HELP_FULL) and not _is_key(flag.name):
      rest.extend(flag.words)
  return config + rest


def changes(given: Sequence[Given]) -> list[config_changes.Change]:
  """The keys of the config that the flags change.

  Raises:
    InputError: if a key is turned off that is not true or false.
  """
  changed = []
  for flag in given:
    if not _is_key(flag.name):
      continue
    path = flag.name.removeprefix('no').removeprefix(config_keys.PREFIX)
    shown = ' '.join(flag.words)
    text = flag.value
    if flag.name.startswith('no'):
      if not config_keys.is_boolean(path) or '=' in shown:
        raise InputError(f'{shown}: expected --{config_keys.PREFIX}{path}=VALUE')
      text = 'false'
    elif shown == f'--{flag.name}' or shown == f'-{flag.name}':
      text = 'true'
    changed.append(config_changes.Change(path, text, shown))
  return changed


def own_names() -> list[str]:
  """The verb's flags without those of absl."""
  names = []
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    if not module.startswith('absl'):
      names += [flag.name for flag in defined]
  return names


def _at_home(name: str, value: str) -> str:
  """The value with ~ made the home folder: shells leave a ~ behind --name= as it is."""
  if name in _TEXTS:
    return value
  home = os.path.expanduser('~')
  # A key of the config is a path, or a text with commas of its own.
  if _is_key(name):
    return home + value[1:] if _HOME.match(value) else value
  return _HOME.sub(lambda _: home, value)


def _tolerated(words: Sequence[str]) -> set[str]:
  """Names that --undefok lists: flags that need not exist."""
  names: set[str] = set()
  for word in words:
    if word.lstrip('-').startswith('undefok='):
      names |= {name.strip() for name in word.partition('=')[2].split(',')}
  return names


def _takes_value(name: str, shown: str) -> bool:
  """Whether a flag without '=' has its value in the next word."""
  if name in flags.FLAGS:
    return not flags.FLAGS[name].boolean
  _refuse_unknown(name, shown)
  return name.startswith(config_keys.PREFIX) and not config_keys.is_boolean(
    name.removeprefix(config_keys.PREFIX)
  )


def _refuse_unknown(name: str, shown: str) -> None:
  """Raises InputError if the verb has no flag, and no config key, of that name."""
  if name in flags.FLAGS or name in (*HELP, HELP_FULL, _HELP_XML) or _turns_off(name):
    return
  if _is_key(name):
    wrong = config_keys.problem(name.removeprefix('no').removeprefix(config_keys.PREFIX))
    if wrong:
      raise InputError(f'--{name}: {wrong}; weightsteer help config lists the keys')
    return
  meant = did_you_mean(name, [*own_names(), 'help', 'version'], cutoff=0.6)
  key = config_keys.nearest_key(name) if 'config' in flags.FLAGS and not meant else None
  if key:
    meant = f' (did you mean --{config_keys.PREFIX}{key}?)'
  meant = meant.replace("'", '--', 1).replace("'", '', 1)
  raise InputError(f'{shown} has no flag --{name}{meant}; {shown} --help lists its flags')


def _refuse_choice(name: str, value: str) -> None:
  """Raises InputError if a flag has a few values, and this is none of them."""
  choices = getattr(flags.FLAGS[name].parser, 'enum_values', ()) if name in flags.FLAGS else ()
  if choices and value not in choices:
    expected = ', '.join(filter(None, choices))
    near = did_you_mean(value, choices)
    raise InputError(f"--{name}={value}: expected one of {expected}{near}")


def _is_key(name: str) -> bool:
  """Whether a flag's name is that of a key of the config."""
  return 'config' in flags.FLAGS and name.removeprefix('no').startswith(config_keys.PREFIX)


def _turns_off(name: str) -> bool:
  """Whether a name is that of a boolean flag behind 'no'."""
  flag = name.removeprefix('no')
  return flag != name and flag in flags.FLAGS and flags.FLAGS[flag].boolean
