"""A verb run as absl runs a program: its flags, the other processes of a run, the exit status.

An error becomes one line and an exit status.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags

from weightsteer_jax.interfaces.cli import (
  arguments,
  config_changes,
  help_page,
  process_flags,
  profile_flags,
  run_flags,
)
from weightsteer_jax.runtime import signals
from weightsteer_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class Program:
  """What a verb is made of.

  Attributes:
    doc: what the verb does, an example first; its help.
    define_flags: defines the verb's own flags and those of the modules *_flags.py.
    main: does the verb's work; reads flags from flags.FLAGS.
    check: raises InputError for flags that do not go together, before anything heavy is imported.
    together: whether all processes run `main` as one. If not, the first process runs `main` by
      itself, and the others are done.
  """

  doc: str | None
  define_flags: Callable[[], None]
  main: Callable[[], None]
  check: Callable[[], None] | None = None
  together: bool = False


def run(verb: Program, args: Sequence[str], shown: str) -> None:
  """Runs a verb to the end of the process; an exception becomes an exit status.

  Args:
    args: the words of the command line behind the verb.
    shown: the verb as help and errors name it, 'weightsteer steer'.
  """
  signals.listen()
  verb.define_flags()
  process_flags.define()
  try:
    given = arguments.read(args, shown)
    asked = arguments.wants_help(given)
    if not asked:
      arguments.refuse_missing(given, shown)
    argv = [shown, *arguments.prepared(given)]
    changes = arguments.changes(given)
  except (InputError, flags.Error) as error:
    refuse(error)
  if asked:
    _help(verb, argv, shown, changes, full=asked == arguments.HELP_FULL)
    sys.exit(0)
  app.run(
    lambda _: _guarded(verb),
    argv=argv,
    flags_parser=lambda argv: _parse(argv, changes, verb.check),
  )


def refuse(error: Exception) -> None:
  """Ends the process with an error's text in one line, and the exit status of bad input."""
  print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
  sys.exit(InputError.exit_code)


def command() -> str:
  """The command line of this process, for the record, without secrets."""
  from weightsteer_jax.runtime import redaction

  program = pathlib.Path(sys.argv[0])
  if program.name == '__main__.py':
    words = ['python', '-m', 'weightsteer_jax']
  elif program.suffix == '.py':
    words = ['python', sys.argv[0]]
  else:
    words = [program.name]
  return redaction.redact_command([*words, *sys.argv[1:]])


def _help(
  verb: Program,
  argv: list[str],
  shown: str,
  changes: Sequence[config_changes.Change],
  *,
  full: bool,
) -> None:
  """Prints a verb's help; with a config on the command line, its keys and values too."""
  doc = verb.doc or ''
  if not shown.startswith('weightsteer'):
    name = pathlib.Path(shown).stem.replace('_', '-')
    doc = doc.replace(f'weightsteer {name} ', f'{shown} ')
  help_page.show(help_page.of_verb(doc, full=full))
  if len(argv) > 1 and argv[1].startswith('--config='):
    from weightsteer_jax.interfaces.cli import config_page

    _parse(argv, changes)
    path = argv[1].removeprefix('--config=').partition(':')[0]
    help_page.show(f'\n{config_page.of_config(path, run_flags.chosen())}')


def _guarded(verb: Program) -> None:
  # absl prints information of all libraries. Users do not ask which backends jax did not find,
  # where a bucket's driver found its credentials, how many tensors a writer has, or for a line per
  # request to a judge.
  quiet = (
    'jax',
    'datasets',
    'gguf',
    'botocore',
    'aiobotocore',
    'google',
    'openai',
    'httpx',
    'httpx2',
  )
  for library in quiet:
    logging.getLogger(library).setLevel(logging.WARNING)
  from weightsteer_jax.runtime import compile_cache, ending, profiling

  try:
    if _begin(verb.together):
      compile_cache.use(flags.FLAGS.compilation_cache)
      # A verb with a workdir profiles into the workdir (see run_flags.run_and_workdir).
      if 'output' in flags.FLAGS:
        profile_flags.begin(f'{flags.FLAGS.output}-profile')
      ending.guard(stall_minutes=flags.FLAGS.stall_minutes)
      verb.main()
      profiling.end()
      run_flags.finish()
      ending.leave()
  except SystemExit as error:
    ending.leave(int(error.code or 0))
    raise
  except (Exception, KeyboardInterrupt) as error:
    # The end has begun, and takes the time it needs.
    signals.finish()
    profiling.end()
    sys.exit(ending.fail(error))
  finally:
    run_flags.release()


def _begin(together: bool) -> bool:
  """Whether this process has something to do.

  If `together`, joins the other processes, of which all but the first are silent.
  """
  from weightsteer_jax.runtime import ending, preemption, processes

  args = flags.FLAGS
  signals.set_grace(args.grace_seconds)
  cluster = process_flags.cluster()
  index, count = processes.place(args.distributed, **cluster)
  if not together:
    preemption.begin()
    return index == 0
  if count > 1:
    ending.catch_abort()
  processes.join(args.distributed, **cluster)
  preemption.begin()
  if not processes.is_main():
    for logger in (logging.getLogger(), logging.getLogger('absl')):
      logger.setLevel(logging.ERROR)
    sys.stdout = open(os.devnull, 'w', encoding='utf-8')
  return True


def _parse(
  argv: list[str],
  changes: Sequence[config_changes.Change],
  check: Callable[[], None] | None = None,
) -> list[str]:
  """The command line read by absl, and the config's values checked.

  A mistake ends the program with one line, before jax is imported.
  """
  has_config = 'config' in flags.FLAGS
  try:
    if has_config:
      run_flags.load_config(argv)
    rest = flags.FLAGS(argv)
    if has_config and flags.FLAGS['config'].present:
      run_flags.change_config(changes)
      run_flags.chosen()
    if check:
      check()
    return rest
  except Exception as error:
    fault = _fault_of_config(error, argv)
    if fault:
      refuse(InputError(fault))
    if isinstance(error, InputError | flags.Error | ValueError):
      refuse(error)
    raise


def _fault_of_config(error: BaseException, argv: Sequence[str]) -> str:
  """The line of the config's file where an error arose, with the error; '' if it arose elsewhere.

  ml_collections and absl wrap an error of the file in errors of their own.
  """
  files = [word.partition('=')[2].split(':')[0] for word in argv if word.startswith('--config=')]
  causes: list[BaseException] = []
  cause: BaseException | None = error
  while cause is not None:
    causes.append(cause)
    cause = cause.__cause__ or cause.__context__
  # The innermost is the one that the file's author can mend.
  for cause in reversed(causes):
    if isinstance(cause, SyntaxError) and cause.filename in files:
      return f'{cause.filename}, line {cause.lineno}: SyntaxError: {cause.msg}'
    for frame in reversed(traceback.extract_tb(cause.__traceback__)):
      if frame.filename in files:
        named = '' if isinstance(cause, InputError) else f'{type(cause).__name__}: '
        return f'{frame.filename}, line {frame.lineno}: {named}{cause}'
  return ''
