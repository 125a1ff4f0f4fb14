"""Audits a fine-tune without running the model: spectra of its update, directions in it.

  weightsteer audit --fine_tune=DIR --base=MODEL --output=DIR
  weightsteer audit DIR --base=MODEL --good=DIR,DIR,... --output=DIR
  weightsteer audit DIR --base=MODEL --direction=DIR --output=DIR

The fine-tune is a run of ours, an adapter or a full checkpoint. Writes norm, stable rank, entropy
and the largest singular values of the update in each matrix; with --good, how far out the update
lies among fine-tunes known to be good and made by the same method; with --direction, what
weightsteer monitor says of it. Good ones that were made by another method are refused.

Exit status: 0, alarmed or not. With --fail_on_alarm, 3 if the fine-tune is out of line or a
direction's alarm went off; bad input is 65, so that a check can tell the two apart.
"""

import sys

from absl import flags

from weightsteer_jax.interfaces.cli import arguments
from weightsteer_jax.interfaces.cli.program import Program

ALARMED = 3


def _define_flags() -> None:
  flags.DEFINE_string(
    'fine_tune', None, 'Run of ours, adapter or full checkpoint; may stand without --fine_tune=.'
  )
  flags.DEFINE_string(
    'base', None, 'The model that it was fine-tuned from: a folder, a hub id or organism.'
  )
  flags.DEFINE_multi_string(
    'good',
    [],
    'Fine-tunes known to be good, with commas between, or a folder of such; at least 3.',
  )
  flags.DEFINE_multi_string('direction', [], 'Direction to look for; may be given several times.')
  flags.DEFINE_multi_string(
    'control', [], 'Direction or fine-tune of something neutral, for the threshold of --direction.'
  )
  flags.DEFINE_string(
    'output', None, 'Folder to write audit.csv, summary.json and index.html to; must not exist.'
  )
  flags.DEFINE_integer(
    'random', 100, 'Random directions for each direction (0: none).', lower_bound=0
  )
  flags.DEFINE_integer('seed', 0, 'Of the random directions.')
  flags.DEFINE_float(
    'false_alarm_rate',
    0.05,
    'How often a fine-tune like the good ones may be called out of line, and a direction like the '
    'controls raise an alarm.',
  )
  flags.DEFINE_bool(
    'fail_on_alarm', False, f'Exit with {ALARMED} if it is out of line or an alarm went off.'
  )
  flags.DEFINE_bool(
    'allow_other_base',
    False,
    'Go on where a source says that it was made from another model of the architecture.',
  )
  flags.DEFINE_bool(
    'allow_other_method',
    False,
    'Compare with good ones of another rank, alpha, kind or choice of modules all the same.',
  )
  arguments.require('fine_tune', 'base', 'output')
  arguments.positional('fine_tune')


def _check() -> None:
  from weightsteer_jax.runtime.errors import InputError

  if flags.FLAGS.control and not flags.FLAGS.direction:
    raise InputError('--control sets the threshold of a --direction, and there is none')


def _main() -> None:
  from weightsteer_jax.experiments import standalone

  args = flags.FLAGS
  good = [folder for folders in args.good for folder in folders.split(',') if folder]
  alarmed = standalone.audit(
    args.fine_tune,
    args.base,
    args.output,
    good=good,
    direction=args.direction,
    control=args.control,
    random=args.random,
    seed=args.seed,
    false_alarm_rate=args.false_alarm_rate,
    allow_other_base=args.allow_other_base,
    allow_other_method=args.allow_other_method,
  )
  if alarmed and args.fail_on_alarm:
    sys.exit(ALARMED)


PROGRAM = Program(__doc__, _define_flags, _main, _check)
