"""Measures a training run's checkpoints against directions.

  weightsteer monitor --direction=DIR [--direction=DIR ...] --base=MODEL --run=DIR --output=DIR

Writes cosines per step, module and layer, and whether an alarm went off. --run is a fine-tune of
ours (the folder with options.json), a folder of checkpoint-<step> folders of PEFT adapters or of
full Hugging Face checkpoints, a folder of revisions whose names end in numbers, or a model's folder
in the hub's cache.

Exit status: 0, alarmed or not. With --fail_on_alarm, 3 if an alarm went off; nothing
that restarts runs takes this status for a reason to start again.
"""

import sys

from absl import flags

from weightsteer_jax.interfaces.cli import arguments
from weightsteer_jax.interfaces.cli.program import Program

ALARMED = 3


def _define_flags() -> None:
  flags.DEFINE_multi_string(
    'direction',
    None,
    "Direction to look for; the folder of a run stands for the run's own. May be given many times.",
  )
  flags.DEFINE_multi_string(
    'control',
    [],
    'Direction or fine-tune of something neutral; sets the threshold together with the random '
    'ones.',
  )
  flags.DEFINE_multi_string(
    'task_vector', [], 'Fine-tune or direction that is only compared with the directions.'
  )
  flags.DEFINE_string(
    'base', None, 'The model that the run started from: a folder, a hub id or organism.'
  )
  flags.DEFINE_string('run', None, 'Folder of the training run.')
  flags.DEFINE_string(
    'output', None, 'Folder to write monitor.jsonl, summary.json and index.html to; must not exist.'
  )
  flags.DEFINE_float(
    'learning_rate', None, "Which of several that a run of ours tried; by default its product's."
  )
  flags.DEFINE_integer(
    'random',
    100,
    'Random directions of the same rank and spectrum, for each direction (0: none).',
    lower_bound=0,
  )
  flags.DEFINE_integer('seed', 0, 'Of the random directions.', lower_bound=0, upper_bound=2**32 - 1)
  flags.DEFINE_float(
    'false_alarm_rate',
    0.01,
    'Of a whole run: how often a direction like the controls may set off the alarm.',
  )
  flags.DEFINE_bool('fail_on_alarm', False, f'Exit with {ALARMED} if an alarm went off.')
  flags.DEFINE_bool(
    'allow_other_base',
    False,
    'Go on where a source says that it was made from another model of the architecture.',
  )
  arguments.require('direction', 'base', 'run', 'output')


def _main() -> None:
  from weightsteer_jax.experiments import standalone

  args = flags.FLAGS
  alarmed = standalone.monitor(
    args.run,
    args.base,
    args.output,
    direction=args.direction,
    control=args.control,
    task_vector=args.task_vector,
    random=args.random,
    seed=args.seed,
    false_alarm_rate=args.false_alarm_rate,
    learning_rate=args.learning_rate,
    allow_other_base=args.allow_other_base,
  )
  if alarmed and args.fail_on_alarm:
    sys.exit(ALARMED)


PROGRAM = Program(__doc__, _define_flags, _main)
