"""The help of the command and of a verb."""

import os
import re
import sys
import textwrap
from collections.abc import Sequence

from absl import flags

import weightsteer_jax
from weightsteer_jax.interfaces.cli import arguments
from weightsteer_jax.interfaces.cli.table import GROUPS

WIDTH = 96
# Column where the words about a flag or a verb begin.
COLUMN = 26
# How the modules of flags that several verbs have are called.
SHARED = '_flags'


def of_command() -> str:
  """The help of the command: what it is, its verbs in groups, and where to read on."""
  lines = [
    f'weightsteer {weightsteer_jax.__version__}: find the direction of a behaviour in the weights '
    'of a',
    'language model, turn it up and down, hand it on.',
    '',
    '  weightsteer steer --config=quickstart      two minutes on a CPU, without network',
    '  weightsteer VERB --help                    flags of a verb',
  ]
  for title, verbs in GROUPS.items():
    lines += ['', f'{title}:']
    for name, verb in verbs.items():
      lines.append(f'  {name:<12} {verb.summary}')
  lines += [
    '',
    'Also: weightsteer help VERB, weightsteer help config (keys and shipped configs),',
    'weightsteer --version. python -m weightsteer_jax is the same command.',
    '',
    'Exit status: 0 done, 3 an alarm (monitor), 65 bad input, 69 an endpoint does not answer,',
    '70 not finite, 71 corrupt, 74 could not write, 75 stopped: the same command goes on.',
  ]
  return '\n'.join(lines)


def of_verb(doc: str, *, full: bool = False) -> str:
  """The help of a verb whose flags are defined: its own flags first, then the shared ones.

  Args:
    doc: what the verb does, with an example.
    full: whether absl's own flags follow.
  """
  parts = [doc.strip()]
  required = [flags.FLAGS[name] for name in arguments.required()]
  groups = {'Required:': required, 'Flags:': [], **_shared(required)}
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    if not module.startswith('absl') and not module.endswith(SHARED):
      groups['Flags:'] += [flag for flag in defined if flag not in required]
  for title, defined in groups.items():
    if defined:
      parts.append('\n'.join([title, *map(_flag, defined)]))
  if full:
    parts.append('Flags of absl:' + _absl_flags())
  else:
    parts.append("A boolean flag: --flag or --noflag. absl's own flags: --helpfull.")
  return '\n\n'.join(parts)


def show(text: str) -> None:
  """Prints a page; a reader that goes away early, as `head` does, is no error."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    # At its end Python would write what is left, and fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def labelled(label: str, words: str) -> str:
  """A label, and words about it in a column beside it or in the lines below."""
  indent = ' ' * COLUMN
  lines = textwrap.wrap(words, WIDTH - COLUMN, break_on_hyphens=False) or ['']
  if len(label) < COLUMN - 1:
    lines[0] = label.ljust(COLUMN) + lines[0]
    return f'\n{indent}'.join(lines).rstrip()
  return f'\n{indent}'.join([label, *lines]).rstrip()


def _shared(required: Sequence[flags.Flag]) -> dict[str, list[flags.Flag]]:
  """{title: flags} of the modules of shared flags, in the order of their definition."""
  groups = {}
  # A flag's module is the one that calls DEFINE.
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    if module.endswith(SHARED):
      said = (sys.modules[module].__doc__ or module).partition('\n')[0]
      groups[said.rstrip('.') + ':'] = [flag for flag in defined if flag not in required]
  return groups


def _absl_flags() -> str:
  pages = []
  for module in flags.FLAGS.flags_by_module_dict():
    if module.startswith('absl'):
      pages.append(flags.FLAGS.module_help(module))
  return '\n'.join(pages)


def _flag(flag: flags.Flag) -> str:
  name = f'  --{"[no]" if flag.boolean else ""}{flag.name}{_value(flag)}'
  # absl puts the choices before the words, and a hint behind those of a flag with several values.
  words = re.sub(r'^<[^>]*>: ', '', ' '.join(flag.help.split()))
  words = words.removesuffix(';repeat this option to specify a list of values')
  words = words.removesuffix('; repeat this option to specify a list of values')
  if flag.default not in (None, '', []) and 'default' not in words.lower():
    words = f'{words.rstrip(".")}. Default {_default(flag)}.'
  return labelled(name, words)


def _value(flag: flags.Flag) -> str:
  """What stands behind a flag's name."""
  if flag.boolean:
    return ''
  choices = getattr(flag.parser, 'enum_values', None)
  if choices:
    return '=' + '|'.join(choice for choice in choices if choice)
  kinds = {'int': 'N', 'float': 'NUMBER', 'comma separated list of strings': 'A,B,...'}
  return '=' + kinds.get(flag.flag_type(), '...')


def _default(flag: flags.Flag) -> str:
  if flag.boolean:
    return 'on' if flag.default else 'off'
  if isinstance(flag.default, list):
    return ','.join(map(str, flag.default))
  return f'{flag.default:g}' if isinstance(flag.default, float) else str(flag.default)
