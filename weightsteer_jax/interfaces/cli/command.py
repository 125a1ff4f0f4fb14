"""The words of a command line: a verb, help, a version.

weightsteer VERB FLAGS...
weightsteer help [VERB | config]
weightsteer --version
"""

import importlib
import io
import sys
from collections.abc import Sequence

import weightsteer_jax
from weightsteer_jax.interfaces.cli.table import VERBS
from weightsteer_jax.runtime import signals
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

NAME = 'weightsteer'


def main() -> None:
  """The installed command, and `python -m weightsteer_jax`."""
  args = sys.argv[1:]
  first = args[0] if args else 'help'
  if first in VERBS:
    run(first, args[1:])
  elif first in ('help', '--help', '-h', '--helpfull'):
    _help(args[1:])
  elif first in ('version', '--version'):
    print(f'{NAME} {weightsteer_jax.__version__}')
  elif first.startswith('-'):
    _refuse(f'the verb comes first: {NAME} VERB {first} ...; {NAME} --help lists the verbs')
  else:
    _refuse(_no_verb(first, [*VERBS, 'help', 'version']))


def run(verb: str, args: Sequence[str], shown: str = '') -> None:
  """Runs a verb with the words behind it, to the end of the process.

  Args:
    shown: the verb as help and errors name it; '' is 'weightsteer VERB'.
  """
  # A terminal that cannot show a sign, as ± in ASCII, is no reason to end a run at its last page.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')
  # Before the slow imports: a signal that comes while they run is heard too.
  signals.listen()
  # absl takes a while to import, and the help of the command does without.
  from weightsteer_jax.interfaces.cli import program

  module = importlib.import_module(VERBS[verb].module)
  program.run(module.PROGRAM, args, shown or f'{NAME} {verb}')


def _help(args: Sequence[str]) -> None:
  if not args:
    from weightsteer_jax.interfaces.cli import help_page

    help_page.show(help_page.of_command())
  elif args[0] in ('config', 'configs'):
    from weightsteer_jax.interfaces.cli import config_page, help_page

    help_page.show(config_page.of_schema())
  elif args[0] in VERBS:
    run(args[0], ['--help'])
  else:
    _refuse(_no_verb(args[0], [*VERBS, 'config']))


def _no_verb(word: str, words: Sequence[str]) -> str:
  return f"there is no verb '{word}'{did_you_mean(word, words)}; {NAME} --help lists the verbs"


def _refuse(message: str) -> None:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(InputError.exit_code)
