"""What the launchers share: flags, the other processes of a run, and the end of a run.

An error becomes one line and an exit status.
"""

from __future__ import annotations

import ast
import atexit
import json
import logging
import os
import pathlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from absl import app, flags

from weightsteer_jax.runtime.errors import Preempted

if TYPE_CHECKING:
  from weightsteer_jax.config import Run
  from weightsteer_jax.experiments.experiment import Experiment

flags.DEFINE_enum(
  'distributed',
  'auto',
  ['auto', 'on', 'off'],
  'Whether to run with other processes: auto joins them on a TPU pod, under Slurm, Open MPI or '
  'Kubernetes, and where the next flags are given.',
)
flags.DEFINE_string('coordinator', '', 'HOST:PORT of process 0, where no cluster is detected.')
flags.DEFINE_integer('num_processes', None, 'Processes of the run, where no cluster is detected.')
flags.DEFINE_integer(
  'process_id', None, "This process's number, from 0, where no cluster is detected."
)
flags.DEFINE_float(
  'stall_minutes',
  60.0,
  'End the run when no step, batch or stage was finished for so long; 0: never.',
  lower_bound=0.0,
)
flags.DEFINE_string(
  'compilation_cache',
  'auto',
  'Folder to keep compiled programs in for later runs, or off; auto: '
  '$JAX_COMPILATION_CACHE_DIR, or weightsteer_jax/compiled in ~/.cache ($XDG_CACHE_HOME).',
)

STAGING = (
  'the staging folder (--staging; process 0 alone copies it to the bucket, which hosts that share '
  'no folder have to mount)'
)

# What is left to do when `main` has returned.
_at_the_end: list[Callable[[], None]] = []


def start(main: Callable[[], None], *, together: bool = True) -> None:
  """Parses the flags, joins the other processes, and calls `main`.

  An exception is printed and becomes an exit status.

  Args:
    main: the program, which reads its flags from flags.FLAGS.
    together: whether all processes run `main` as one. If not, the first process runs `main` by
      itself, and the others are done.
  """

  def guarded(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"unexpected argument '{argv[1]}': every option is a flag, --name=value")
    # absl prints information of all libraries. Users do not ask which backends jax did not find,
    # where a bucket's driver found its credentials, or for a line per request to a judge.
    quiet = ('jax', 'botocore', 'aiobotocore', 'google', 'openai', 'httpx', 'httpx2')
    for library in quiet:
      logging.getLogger(library).setLevel(logging.WARNING)
    from weightsteer_jax.runtime import compile_cache, ending, profiling

    try:
      if _begin(together):
        compile_cache.use(flags.FLAGS.compilation_cache)
        # A launcher with a workdir profiles into the workdir (see run_and_workdir).
        if 'output' in flags.FLAGS:
          _profile(f'{flags.FLAGS.output}-profile')
        ending.guard(stall_minutes=flags.FLAGS.stall_minutes)
        main()
        profiling.end()
        for finish in _at_the_end:
          finish()
        ending.leave()
    except SystemExit as error:
      ending.leave(int(error.code or 0))
      raise
    except (Exception, KeyboardInterrupt) as error:
      profiling.end()
      sys.exit(ending.fail(error))

  app.run(guarded, flags_parser=_parse)


def _begin(together: bool) -> bool:
  """Whether this process has something to do.

  If `together`, joins the other processes, of which all but the first are silent.
  """
  from weightsteer_jax.runtime import ending, processes

  args = flags.FLAGS
  signal.signal(signal.SIGTERM, _stop)
  cluster = dict(
    coordinator=args.coordinator, num_processes=args.num_processes, process_id=args.process_id
  )
  index, count = processes.place(args.distributed, **cluster)
  if not together:
    return index == 0
  if count > 1:
    ending.catch_abort()
  processes.join(args.distributed, **cluster)
  if not processes.is_main():
    for logger in (logging.getLogger(), logging.getLogger('absl')):
      logger.setLevel(logging.ERROR)
    sys.stdout = open(os.devnull, 'w', encoding='utf-8')
  return True


def _stop(number: int, frame: Any) -> None:
  """Ends the run on a SIGTERM that no loop waits for (see runtime/preemption.py).

  There is nothing to save, but the exit status says to start again.
  """
  # Schedulers send several; the signal that is meant as an end is SIGKILL.
  signal.signal(number, signal.SIG_IGN)
  raise Preempted('SIGTERM came; what was finished is kept, the same command continues')


def _parse(argv: list[str]) -> list[str]:
  """The rest of the command line after the flags.

  A key that the config does not have ends the program with one line.
  """
  try:
    return app.parse_flags_with_usage(argv)
  # The errors of ml_collections for an unknown key.
  except (AttributeError, KeyError) as error:
    message = str(error).replace('\\n', ' ').replace("\\'", '').strip('\'"')
    print(f'error: --config has no key {message}', file=sys.stderr)
    sys.exit(65)


def define_run_flags() -> None:
  """Defines --config, --workdir and their kin, for launchers that work on a run."""
  import ml_collections
  from ml_collections import config_flags

  config_flags.DEFINE_config_file(
    'config',
    None,
    'Experiment to run, e.g. configs/quickstart.py; override with --config.<key>=<value>.',
    lock_config=True,
  )
  flags.DEFINE_string(
    'workdir',
    '',
    'Folder of the run, or its address in a bucket (gs://, s3://, what fsspec takes); '
    "default runs/<the config's name>. An unfinished run continues there.",
  )
  flags.DEFINE_string(
    'staging',
    '',
    'With an address as --workdir: the local folder to work in, shared by all hosts; '
    "default runs/<the config's name>.",
  )
  flags.DEFINE_float(
    'push_seconds',
    30.0,
    'With an address as --workdir: seconds between two pushes of what is new.',
    lower_bound=0.1,
  )
  flags.mark_flag_as_required('config')
  define_chat_flags(
    "the day of the run's first start. Both are short for --config.model.<the same>"
  )
  config_flags.register_flag_parser_for_type(ml_collections.ConfigDict, _JsonSection())


class _JsonSection(flags.ArgumentParser):
  """A section of a config as JSON; ml_collections itself knows Python's spelling alone."""

  syntactic_help = 'a JSON object'

  def parse(self, argument: Any) -> Any:
    """The section; a section that is there already comes back as it is."""
    import ml_collections

    if isinstance(argument, ml_collections.ConfigDict):
      return argument
    try:
      value = json.loads(argument)
    except json.JSONDecodeError as error:
      try:
        value = ast.literal_eval(argument)
      except (SyntaxError, ValueError):
        raise ValueError(f'neither JSON ({error}) nor as Python writes it') from error
    if not isinstance(value, dict):
      raise ValueError('expected a JSON object')
    return ml_collections.ConfigDict(value)

  def flag_type(self) -> str:
    """The type's name in --help."""
    return 'JSON object'


def define_chat_flags(first: str) -> None:
  """Defines what a chat template is told, for launchers that render chats.

  Args:
    first: what the day is where the flag names none.
  """
  flags.DEFINE_string(
    'chat_template_args',
    '',
    'Variables of the chat template beside the messages, a JSON object, e.g. '
    '\'{"enable_thinking": false}\'.',
  )
  flags.DEFINE_string(
    'chat_date',
    '',
    f'The day, as in 2026-12-01, that a template is told which asks for it; default {first}.',
  )


def define_profile_flags() -> None:
  """Defines --profile and the window of a trace, for launchers that compute."""
  # absl lets the value of a boolean flag be left out, and makes it 'true'.
  profile = flags.Flag(
    flags.ArgumentParser(),
    flags.ArgumentSerializer(),
    'profile',
    '',
    'Write a trace of a part of the run, to be looked at with xprof or TensorBoard: '
    "--profile=DIR, or --profile for a folder 'profile' in the workdir, or <output>-profile "
    'where there is none.',
    boolean=True,
  )
  flags.DEFINE_flag(profile)
  flags.DEFINE_float(
    'profile_after',
    0.0,
    'Seconds between the first step or batch (which is compiled) and the trace.',
    lower_bound=0.0,
  )
  flags.DEFINE_float(
    'profile_seconds',
    20.0,
    'Length of the trace; traces of minutes are too large to look at.',
    lower_bound=0.0,
  )


def _profile(default: str) -> None:
  """Begins the trace of --profile, by the first process alone.

  Args:
    default: folder of the trace, if --profile names none.
  """
  from weightsteer_jax.runtime import processes, profiling

  args = flags.FLAGS
  if 'profile' not in args or args.profile in ('', 'false') or not processes.is_main():
    return
  folder = default if args.profile == 'true' else args.profile
  profiling.begin(folder, after=args.profile_after, seconds=args.profile_seconds)


def command() -> str:
  """The command line of this run, for the record, without secrets."""
  from weightsteer_jax.runtime import redaction

  return redaction.redact_command(['python', *sys.argv])


def run_and_workdir(*, dry_run: bool = False) -> tuple[Run, str]:
  """The checked run of --config, and the local workdir, the same for all processes.

  If --workdir is an address, the local workdir is the staging folder, and the run continues from
  what lies at the address.

  Args:
    dry_run: whether nothing is to be computed. Of an address only the settings are fetched, into a
      folder of their own.

  Raises:
    InputError: if there is no such config file, a value is out of range, or the processes disagree.
      See mirror.Mirror for further errors.
  """
  import ml_collections

  from weightsteer_jax import config
  from weightsteer_jax.runtime import processes, tree
  from weightsteer_jax.runtime.errors import InputError
  from weightsteer_jax.storage.remote import mirror

  # ml_collections leaves no ConfigDict where it cannot read the file.
  if not isinstance(flags.FLAGS.config, ml_collections.ConfigDict):
    raise InputError(f"--config: there is no config file '{flags.FLAGS['config'].config_filename}'")
  chosen = flags.FLAGS.config
  if flags.FLAGS.chat_template_args:
    chosen.model.chat_template_args = _template_args()
  if flags.FLAGS.chat_date:
    chosen.model.chat_date = flags.FLAGS.chat_date
  run = config.resolve(chosen)
  local = os.path.join('runs', run.name)
  workdir = flags.FLAGS.workdir or local
  staging = flags.FLAGS.staging
  url = workdir if mirror.is_url(workdir) else ''
  if staging and (not url or mirror.is_url(staging)):
    raise InputError(
      f'--staging={staging}: expected a local folder, and an address (gs://, s3://, ...) as '
      f'--workdir, not {workdir}'
    )
  if url:
    workdir = staging or local
  settings = {'url': url, 'workdir': os.path.abspath(workdir), 'config': config.to_dict(run)}
  processes.agree(tree.dotted(settings), what='the run')
  if url and dry_run:
    return run, _settings_of(url)
  processes.share(pathlib.Path(workdir), what=STAGING if url else 'the workdir')
  if url:
    _mirror(url, workdir)
  if not dry_run:
    _profile(os.path.join(workdir, 'profile'))
  return run, workdir


def experiment(*, dry_run: bool = False) -> Experiment:
  """The Experiment of the run and the workdir that the flags name (see run_and_workdir)."""
  from weightsteer_jax.experiments.experiment import Experiment

  return Experiment(*run_and_workdir(dry_run=dry_run))


def _mirror(url: str, staging: str) -> None:
  """Pulls a workdir into the staging folder, and has changes pushed, however the run ends."""
  from weightsteer_jax.runtime import ending, processes
  from weightsteer_jax.storage.remote import mirror

  # One on process 0, none elsewhere.
  mirrors = []

  def begin() -> None:
    mirrors.append(mirror.begin(url, staging, push_seconds=flags.FLAGS.push_seconds))

  def push_last() -> None:
    for begun in mirrors:
      begun.last_push()

  processes.on_main(begin)
  processes.see(pathlib.Path(staging) / mirror.LISTING)
  ending.before_end(push_last)
  _at_the_end.extend(begun.finish for begun in mirrors)


def _settings_of(url: str) -> str:
  """A folder with the config.json of the workdir at the URL, if that has one."""
  from weightsteer_jax.storage.remote import mirror

  folder = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  mirror.peek(url, 'config.json', folder)
  return folder


def define_model_flags() -> None:
  """Defines the flags of launchers that ask a model something at some alphas."""
  flags.DEFINE_string('model', None, 'Folder, hub id, or organism.')
  flags.DEFINE_string('direction', '', 'Direction to apply; without it only alpha 0 makes sense.')
  flags.DEFINE_list('alphas', ['0'], 'Strengths, comma-separated.')
  flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of parameters and activations.')
  flags.DEFINE_integer('batch_size', 32, 'Rows per batch.', lower_bound=1)
  flags.DEFINE_enum(
    'tokenizer',
    'auto',
    ['auto', 'file'],
    "Whose rules cut texts into tokens where the two differ: transformers' AutoTokenizer's, or "
    "those of tokenizer.json.",
  )
  define_chat_flags("the day on the direction's record, or else today")
  flags.mark_flag_as_required('model')


def model_options() -> dict[str, Any]:
  """The flags of `define_model_flags` but the model, as arguments of a stage."""
  args = flags.FLAGS
  return dict(
    direction=args.direction,
    alphas=floats(args.alphas, 'alphas'),
    dtype=args.dtype,
    batch_size=args.batch_size,
    tokenizer_choice=args.tokenizer,
    chat_template_args=_template_args(),
    chat_date=args.chat_date,
  )


def _template_args() -> dict[str, Any]:
  from weightsteer_jax.config import chat_options

  return chat_options.parse(flags.FLAGS.chat_template_args, '--chat_template_args')


def define_rows_flags() -> None:
  """Defines the flags of launchers that read rows, ask a model about each, and write rows."""
  define_model_flags()
  flags.DEFINE_bool(
    'add_bos', False, "Begin raw prompts with the tokenizer's beginning-of-sequence token."
  )
  flags.DEFINE_string('input', None, 'jsonl file to read.')
  flags.DEFINE_string('output', None, 'jsonl file to write; must not exist.')
  flags.mark_flags_as_required(['input', 'output'])


def rows_options() -> dict[str, Any]:
  """The flags of `define_rows_flags` but model, input and output, as arguments of a stage."""
  return dict(**model_options(), add_bos=flags.FLAGS.add_bos)


def floats(values: list[str], flag: str) -> tuple[float, ...]:
  """The numbers of a list flag.

  Raises:
    InputError: if a value is no number.
  """
  from weightsteer_jax.runtime.errors import InputError

  try:
    return tuple(float(value) for value in values)
  except ValueError as error:
    raise InputError(
      f'--{flag}={",".join(values)}: expected numbers separated by commas'
    ) from error
