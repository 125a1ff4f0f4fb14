"""The flag --direction of verbs that hold several directions, each under a name."""

import pathlib

from absl import flags

from weightsteer_jax.runtime.errors import InputError


def define() -> None:
  """Defines --direction."""
  flags.DEFINE_multi_string(
    'direction',
    [],
    "A direction under a name, NAME=FOLDER, or FOLDER alone; the folder of a run stands for the "
    "run's own. May be given many times.",
  )


def of_flag() -> dict[str, str]:
  """{name: folder} of the flag; a folder alone has its own last part as the name.

  Raises:
    InputError: if a value is broken, or a name is given twice.
  """
  named: dict[str, str] = {}
  for value in flags.FLAGS.direction:
    name, equals, folder = value.partition('=')
    if not equals:
      name, folder = pathlib.Path(value).name, value
    if not name or not folder:
      raise InputError(f'--direction={value}: expected NAME=FOLDER, as in calm=runs/calm')
    if name in named:
      raise InputError(f"--direction: the name '{name}' is given twice")
    named[name] = folder
  return named
