"""What the launchers share: flags of a run, and errors turned into one line and an exit status."""
import logging
import os
import sys
from typing import Callable

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

  app.run(guarded)


def define_run_flags() -> None:
  """--config and --workdir, of every launcher that works on a run."""
  from ml_collections import config_flags
  config_flags.DEFINE_config_file('config', None, 'Experiment to run, e.g. configs/quickstart.py; override with --config.<key>=<value>.',
                                  lock_config=True)
  flags.DEFINE_string('workdir', '', "Folder of the run; default runs/<the config's name>. An unfinished run continues there.")
  flags.mark_flag_as_required('config')


def run_and_workdir():
  """The checked run of --config, and its workdir."""
  from weightsteer_jax import config
  run = config.resolve(flags.FLAGS.config)
  return run, flags.FLAGS.workdir or os.path.join('runs', run.name)


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
