"""Writes a finished sweep as logs of Inspect, one for each arm, task and strength.

weightsteer inspect-log --workdir=runs/quickstart --output=logs
inspect view --log-dir=logs
"""

from absl import flags

from weightsteer_jax.interfaces.cli import arguments
from weightsteer_jax.interfaces.cli.program import Program
from weightsteer_jax.runtime.errors import InputError


def _define_flags() -> None:
  flags.DEFINE_string('workdir', None, 'Folder of the finished run.')
  flags.DEFINE_string('output', None, 'Folder to write; must not exist.')
  arguments.require('workdir', 'output')


def _main() -> None:
  from weightsteer_jax.runtime.progress import say

  try:
    from weightsteer_jax.interfaces.inspect import logs
  except ModuleNotFoundError as error:
    raise InputError(
      f"this needs the package '{error.name}': pip install 'weightsteer_jax[inspect]'"
    ) from error
  args = flags.FLAGS
  written = logs.write(args.workdir, args.output)
  say(f'{len(written)} logs in {args.output}; inspect view --log-dir={args.output} shows them')


PROGRAM = Program(__doc__, _define_flags, _main)
