"""The configs that come with the package, found by name from any folder."""

import ast
import pathlib

import weightsteer_jax
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean


def folder() -> pathlib.Path:
  """The folder of the shipped configs: inside an installed package, or beside it in a checkout."""
  package = pathlib.Path(weightsteer_jax.__file__).parent
  inside = package / 'configs'
  return inside if inside.is_dir() else package.parent / 'configs'


def names() -> list[str]:
  """The names of the shipped configs."""
  return sorted(path.stem for path in folder().glob('[a-z]*.py'))


def summary(name: str) -> str:
  """The first line of a shipped config's docstring."""
  return docstring(folder() / f'{name}.py').partition('\n')[0]


def docstring(path: str | pathlib.Path) -> str:
  """The docstring of a config's file, which is not run; '' without one."""
  return ast.get_docstring(ast.parse(pathlib.Path(path).read_text(encoding='utf-8'))) or ''


def find(value: str) -> str:
  """The file of a config, with what stands behind a colon for its `get_config`.

  Args:
    value: a file, or the name of a shipped config; 'NAME:ARGUMENT' hands an argument on.

  Raises:
    InputError: if there is no such file, or no shipped config of that name.
  """
  name, colon, argument = value.partition(':')
  path = pathlib.Path(name)
  if path.is_file():
    return value
  is_path = path.suffix == '.py' or len(path.parts) > 1
  known = names()
  if not is_path and name in known:
    return f'{folder() / name}.py{colon}{argument}'
  if is_path and path.stem in known:
    raise InputError(
      f"--config: there is no file '{name}'; the config that comes with the package is "
      f'--config={path.stem}{colon}{argument}'
    )
  what = 'file' if is_path else 'config'
  raise InputError(
    f"--config: there is no {what} '{name}'{did_you_mean(path.stem, known)}; expected a Python "
    f'file, or one of {", ".join(known)}'
  )
