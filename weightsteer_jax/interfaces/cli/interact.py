"""Measures several directions on each other's behaviours: alone, together, and made orthogonal.

  weightsteer interact --run=WORKDIR_A --run=WORKDIR_B:0.5 --output=DIR

Of each finished run come its direction, at the strength behind the colon (1 by default), the
behaviour it picks by, and its capabilities. All are measured on one grid, which goes on where it
was stopped.
"""

import math

from absl import flags

from weightsteer_jax.interfaces.cli import arguments
from weightsteer_jax.interfaces.cli.program import Program
from weightsteer_jax.runtime.errors import InputError


def _define_flags() -> None:
  flags.DEFINE_multi_string(
    'run', None, 'Workdir of a finished run, WORKDIR or WORKDIR:STRENGTH. Given two or more times.'
  )
  flags.DEFINE_string('output', None, 'Folder of rows, effects and page; is continued if there.')
  arguments.require('run', 'output')


def _alphas() -> dict[str, float]:
  """{workdir: strength} of the flag.

  Raises:
    InputError: if a strength is no number, a workdir is given twice, or there is one alone.
  """
  alphas: dict[str, float] = {}
  for value in flags.FLAGS.run:
    folder, colon, text = value.rpartition(':')
    if not colon:
      folder, text = value, '1'
    try:
      alpha = float(text)
    except ValueError:
      alpha = math.nan
    if not folder or not math.isfinite(alpha):
      raise InputError(f'--run={value}: expected WORKDIR or WORKDIR:STRENGTH, as in runs/calm:0.5')
    if folder in alphas:
      raise InputError(f'--run: {folder} is given twice')
    alphas[folder] = alpha
  if len(alphas) < 2:
    raise InputError('--run must be given two or more times: an interaction is between directions')
  return alphas


def _check() -> None:
  _alphas()


def _main() -> None:
  from weightsteer_jax.experiments import interaction
  from weightsteer_jax.runtime.progress import say

  summary = interaction.interact(_alphas(), flags.FLAGS.output)
  for row in summary['effects']:
    if row['mix'] != 'base' and row['change'] is not None:
      error = row['change_sem'] or 0.0
      say(f'{row["mix"]:<48} {row["task"]:<20} {row["change"]:+.3f} ± {error:.3f}')
  for line in summary['verdict']:
    say(line)
  say(f'interaction: {flags.FLAGS.output}/index.html')


PROGRAM = Program(__doc__, _define_flags, _main, _check, together=True)
