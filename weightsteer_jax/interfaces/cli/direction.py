"""Makes the direction between two fine-tunes of one base, or between a fine-tune and its base.

  weightsteer direction --positive=PATH --negative=PATH [--base=PATH] --output=DIR
  weightsteer direction --positive=PATH [--base=PATH] --output=DIR

The fine-tunes are runs of ours, adapters or Hugging Face checkpoints (docs/adapters.md). Of one
fine-tune, the direction is its change of the base; with --negative alone, the reverse.
"""

from absl import flags

from weightsteer_jax.interfaces.cli import arguments
from weightsteer_jax.interfaces.cli.program import Program


def _define_flags() -> None:
  flags.DEFINE_string(
    'positive',
    '',
    'Run of ours, adapter or Hugging Face checkpoint with the behaviour; without it, the base.',
  )
  flags.DEFINE_string(
    'negative',
    '',
    'The same kind, with the opposite behaviour; without it, the base. The folder of the base will '
    'do too.',
  )
  flags.DEFINE_string(
    'base',
    '',
    'The model both were fine-tuned from: a folder, a hub id or organism. Needed for adapters.',
  )
  flags.DEFINE_bool(
    'allow_other_base',
    False,
    'Go on where the sources say they were trained from different models of one architecture.',
  )
  flags.DEFINE_bool(
    'compare_bfloat16',
    False,
    'Also measure what subtracting merged bfloat16 checkpoints would have given (adapters only).',
  )
  flags.DEFINE_bool(
    'sync', True, 'Wait until it is on the disk, so that it is whole even after a power cut.'
  )
  flags.DEFINE_string('output', None, 'Folder to write the direction to; must not exist.')
  arguments.require('output')


def _main() -> None:
  import jax

  # From files to a file: no accelerator takes part, nor is one held.
  jax.config.update('jax_platforms', 'cpu')
  from weightsteer_jax.experiments import standalone

  args = flags.FLAGS
  standalone.direction_from(
    args.positive,
    args.negative,
    args.output,
    base=args.base,
    allow_other_base=args.allow_other_base,
    compare_bfloat16=args.compare_bfloat16,
    sync=args.sync,
  )


PROGRAM = Program(__doc__, _define_flags, _main)
