"""What the launchers share: flags of a run, and errors turned into one line and an exit status."""
import logging
import os
import sys
from typing import Any, Callable

from absl import app
from absl import flags

from weightsteer_jax.errors import WeightSteerError


def start(main: Callable[[], None]) -> None:
  """Parses the flags and calls `main`; a deliberate error is printed as `error: ...` and its exit code returned."""

  def guarded(argv):
    if len(argv) > 1:
      raise app.UsageError(f"unexpected argument '{argv[1]}': every option is a flag, --name=value")
    # absl prints information of all libraries; which backends jax did not find is none a user asked for.
    logging.getLogger('jax').setLevel(logging.WARNING)
    try:
      main()
    except WeightSteerError as error:
      sys.stdout.flush()
      print(f'error: {error}', file=sys.stderr)
      sys.exit(error.exit_code)
    except KeyboardInterrupt:
      print('interrupted; what was finished is kept, the same command continues', file=sys.stderr)
      sys.exit(130)

  app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  """What is left of the command line after the flags; a key that the config does not have is one line too."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError) as error:  # As ml_collections reports them.
    message = str(error).replace('\\n', ' ').replace("\\'", '').strip('\'"')
    print(f'error: --config has no key {message}', file=sys.stderr)
    sys.exit(65)


def define_run_flags() -> None:
  """--config and --workdir, of every launcher that works on a run."""
  from ml_collections import config_flags
  config_flags.DEFINE_config_file('config', None, 'Experiment to run, e.g. configs/quickstart.py; override with --config.<key>=<value>.',
                                  lock_config=True)
  flags.DEFINE_string('workdir', '', "Folder of the run; default runs/<the config's name>. An unfinished run continues there.")
  flags.mark_flag_as_required('config')


def run_and_workdir():
  """The checked run of --config, and its workdir.

  Raises:
    InputError: no such config file, or what is wrong in it.
  """
  import ml_collections
  from weightsteer_jax import config
  from weightsteer_jax.errors import InputError
  if not isinstance(flags.FLAGS.config, ml_collections.ConfigDict):  # What ml_collections leaves where it cannot read the file.
    raise InputError(f"--config: there is no config file '{flags.FLAGS['config'].config_filename}'")
  run = config.resolve(flags.FLAGS.config)
  return run, flags.FLAGS.workdir or os.path.join('runs', run.name)


def define_rows_flags() -> None:
  """The flags of the launchers that read rows, ask a model about each at some alphas, and write rows."""
  flags.DEFINE_string('model', None, 'Folder, hub id, or organism.')
  flags.DEFINE_string('direction', '', 'Direction to apply; without it only alpha 0 makes sense.')
  flags.DEFINE_list('alphas', ['0'], 'Strengths, comma-separated.')
  flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of parameters and activations.')
  flags.DEFINE_integer('batch_size', 32, 'Rows per batch.', lower_bound=1)
  flags.DEFINE_bool('add_bos', False, "Begin raw prompts with the tokenizer's beginning-of-sequence token.")
  flags.DEFINE_string('input', None, 'jsonl file to read.')
  flags.DEFINE_string('output', None, 'jsonl file to write; must not exist.')
  flags.mark_flags_as_required(['model', 'input', 'output'])


def rows_options() -> dict[str, Any]:
  """What `define_rows_flags` adds to the model, the input and the output, as arguments of a stage."""
  args = flags.FLAGS
  return dict(direction=args.direction, alphas=floats(args.alphas, 'alphas'), dtype=args.dtype, batch_size=args.batch_size, add_bos=args.add_bos)


def floats(values: list[str], flag: str) -> tuple[float, ...]:
  """The numbers of a list flag.

  Raises:
    InputError: one that is no number.
  """
  from weightsteer_jax.errors import InputError
  try:
    return tuple(float(value) for value in values)
  except ValueError as error:
    raise InputError(f'--{flag}={",".join(values)}: expected numbers separated by commas') from error
