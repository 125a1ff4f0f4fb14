"""A verb of the command as a program of a checkout, which need not be installed."""

import pathlib
import sys


def run(verb: str) -> None:
  """Runs a verb of the package beside this folder with the flags of the command line."""
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
  from weightsteer_jax.interfaces.cli import command

  command.run(verb, sys.argv[1:], shown=f'python {sys.argv[0]}')
