"""Makes the direction between two fine-tunes of one base.

  python launch/direction.py --positive=PATH --negative=PATH [--base=PATH] --output=DIR

The fine-tunes are runs of ours, PEFT adapters or Hugging Face checkpoints.
"""

import _main
from absl import flags

flags.DEFINE_string(
  'positive', None, 'Run of ours, PEFT adapter or Hugging Face checkpoint with the behaviour.'
)
flags.DEFINE_string('negative', None, 'The same kind, with the opposite behaviour.')
flags.DEFINE_string(
  'base',
  '',
  'The model both were fine-tuned from: a folder, a hub id or organism. Needed for PEFT adapters.',
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
flags.mark_flags_as_required(['positive', 'negative', 'output'])


def main():
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


if __name__ == '__main__':
  _main.start(main, together=False)
