"""Hands a direction on: a steered Hugging Face or orbax checkpoint, base and direction apart, or a PEFT adapter.

  python launch/export.py --direction=DIR --base=DIR --alpha=A --format=hf|orbax|orbax-unmerged|peft --output=DIR
  python launch/export.py --verify=DIR
"""
from absl import flags

import _main

flags.DEFINE_string('direction', None, 'Direction to export.')
flags.DEFINE_string('base', None, 'The model it is a direction of: a folder, a hub id or organism.')
flags.DEFINE_float('alpha', None, 'Strength.')
flags.DEFINE_enum('format', None, ['hf', 'orbax', 'orbax-unmerged', 'peft'], 'What to write.')
flags.DEFINE_enum('target', '', ['', 'peft', 'vllm', 'llama.cpp'], 'Who must be able to load the PEFT adapter; default peft.')
flags.DEFINE_enum('dtype', '', ['', 'float32', 'bfloat16'], "Of weights; '' is the base's; merging into bfloat16 loses part of small changes, and says how much.")
flags.DEFINE_integer('rank', 0, "Fold the direction's kernels to this rank by SVD, the error recorded; 0 leaves it exact.", lower_bound=0)
flags.DEFINE_bool('allow_other_base', False, "Steer another model of the same architecture than the direction's own base, a fine-tune of it say.")
flags.DEFINE_string('output', None, 'Folder to write; must not exist.')
flags.DEFINE_string('verify', None, 'Check this export, direction, adapter or checkpoint instead: exit status 71 and what is wrong, if it is not whole.')

NEEDED = ('direction', 'base', 'alpha', 'format', 'output')


def main():
  from weightsteer_jax import stages
  args = flags.FLAGS
  _check_flags()
  if args.verify:
    stages.verify(args.verify)
    return
  stages.export(args.direction, args.base, args.alpha, args.format, args.output, dtype=args.dtype, rank=args.rank,
                target=args.target, allow_other_base=args.allow_other_base)


def _check_flags():
  from weightsteer_jax.errors import InputError
  given = [name for name in NEEDED if flags.FLAGS[name].present]
  if flags.FLAGS['verify'].present and given:
    raise InputError(f'--verify checks a folder and goes with none of the flags of an export; there is --{given[0]}')
  missing = [f'--{name}' for name in NEEDED if name not in given]
  if missing and not flags.FLAGS['verify'].present:
    raise InputError(f'{", ".join(missing)} must be given (or --verify=DIR alone, to check a folder)')


if __name__ == '__main__':
  _main.start(main, together=False)
