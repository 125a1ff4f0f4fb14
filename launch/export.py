"""Hands a direction on: a steered Hugging Face or orbax checkpoint, or a PEFT adapter.

  python launch/export.py --direction=DIR --base=DIR --alpha=A --format=hf|orbax|peft --output=DIR
"""
from absl import flags

import _main

flags.DEFINE_string('direction', None, 'Direction to export.')
flags.DEFINE_string('base', None, 'The model it is a direction of: a folder, a hub id or organism.')
flags.DEFINE_float('alpha', None, 'Strength.')
flags.DEFINE_enum('format', None, ['hf', 'orbax', 'peft'], 'What to write.')
flags.DEFINE_enum('dtype', '', ['', 'float32', 'bfloat16'], "Of steered weights; '' is the base's; bfloat16 loses part of small changes, and says how much.")
flags.DEFINE_integer('rank', 0, "Fold the direction's kernels to this rank by SVD, the error recorded; 0 leaves it exact.", lower_bound=0)
flags.DEFINE_bool('allow_other_base', False, "Steer another model of the same architecture than the direction's own base, a fine-tune of it say.")
flags.DEFINE_string('output', None, 'Folder to write; must not exist.')
flags.mark_flags_as_required(['direction', 'base', 'alpha', 'format', 'output'])


def main():
  from weightsteer_jax import stages
  args = flags.FLAGS
  stages.export(args.direction, args.base, args.alpha, args.format, args.output, dtype=args.dtype, rank=args.rank,
                allow_other_base=args.allow_other_base)


if __name__ == '__main__':
  _main.start(main)
