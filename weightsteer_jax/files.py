"""Files and folders that appear whole or not at all."""
import contextlib
import difflib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any, Iterator, Mapping

import numpy as np

from weightsteer_jax.errors import CorruptError, InputError, OutputError

Path = str | pathlib.Path


def read_json(path: Path, *, what: str) -> Any:
  """The JSON value in a file.

  Raises:
    InputError: no such file. CorruptError: it holds no whole JSON.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(f'{what} was expected at {path}, but there is no such file{nearest(path)}')
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise CorruptError(f'{path} ({what}) is not valid JSON: {error}') from error


def write_text(path: Path, text: str) -> None:
  """Writes a file in one piece: beside it first, then renamed into place.

  Raises:
    OutputError: it could not be written; nothing is left behind.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.partial')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, 'w', encoding='utf-8') as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise OutputError(f'{path} could not be written: {error.strerror or error}; nothing was left behind') from error


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON file in one piece, indented, NaN refused."""
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + '\n')


def save_safetensors(path: Path, tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, str] | None = None) -> None:
  """Writes a safetensors file.

  Raises:
    OutputError: it could not be written whole; nothing is left behind.
  """
  from safetensors import SafetensorError
  from safetensors.numpy import save_file
  try:
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, str(path), metadata=dict(metadata or {}))
  except (SafetensorError, OSError) as error:
    pathlib.Path(path).unlink(missing_ok=True)
    raise OutputError(f'{path} could not be written: {error}; nothing was left behind') from error


@contextlib.contextmanager
def new_folder(folder: Path, *, what: str) -> Iterator[pathlib.Path]:
  """A hidden folder beside the wanted one to write into; renamed into place when the block ends, removed when it fails.

  Raises:
    InputError: the folder exists already. OutputError: it could not be written (a full disk, no permission).
  """
  folder = pathlib.Path(folder)
  refuse_existing(folder, what=what)
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', suffix='.partial', dir=folder.parent))
  except OSError as error:
    raise OutputError(f'{what} cannot be written to {folder}: {error.strerror or error}') from error
  try:
    yield partial
    refuse_existing(folder, what=what)
    partial.chmod(0o755)
    os.rename(partial, folder)
  except OSError as error:
    raise OutputError(f'{what} could not be written to {folder}: {error.strerror or error}; nothing was left behind') from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def refuse_existing(folder: Path, *, what: str) -> None:
  """Nothing, if there is no such file or folder (an empty folder is none).

  Raises:
    InputError: it exists; nothing is ever overwritten.
  """
  folder = pathlib.Path(folder)
  if folder.is_dir() and not any(folder.iterdir()):
    folder.rmdir()
  if folder.exists():
    raise InputError(f'{folder} exists already, and {what} never overwrites: name another output, or move it away')


def nearest(path: pathlib.Path) -> str:
  """" (did you mean 'x'?)" for the existing sibling with the nearest name, or ''."""
  parent = path.parent
  if not parent.is_dir():
    return f'; {parent} is no folder either'
  near = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1, cutoff=0.6)
  return f" (did you mean '{parent / near[0]}'?)" if near else ''
