"""A Hugging Face folder made of a GGUF file: written, read back in float64, kept for later runs."""

import hashlib
import math
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from weightsteer_jax.models import stored
from weightsteer_jax.models.gguf import architectures, tensors, tokenizer
from weightsteer_jax.models.gguf.file import GgufFile
from weightsteer_jax.models.gguf.tensors import Source
from weightsteer_jax.runtime import compile_cache, progress
from weightsteer_jax.runtime.errors import InputError, OutputError
from weightsteer_jax.runtime.messages import did_you_mean, file_size
from weightsteer_jax.storage import files, safetensors

# Dtypes to write all weights in; '' keeps each tensor in the smallest that loses nothing.
DTYPES = {'float32': 'F32', 'bfloat16': 'BF16'}
EXACT = {'F16': 'F16', 'BF16': 'BF16'}
# The number of a folder's making, in the name of a kept folder: another making, another folder.
VERSION = 1
# Bytes that name a file, together with its size and time: metadata, and so all that differs
# between the models of a family.
NAMED_BY = 2**20
# NumPy has no bfloat16 of its own; jax brings this name.
NUMPY = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}
# Half a step between two numbers of a dtype, as a share of the smaller. A little more, since a
# number is rounded to float32 before it is rounded to bfloat16.
ROUNDING = {'F32': 2.0**-24, 'BF16': 1.001 * 2.0**-8}


def write_folder(path: files.Path, folder: files.Path, *, dtype: str = '') -> pathlib.Path:
  """The new folder of a Hugging Face checkpoint that holds a GGUF file's model.

  Weights, config, tokenizer, chat template and generation settings; read block by block, so that
  memory holds one block.

  Args:
    path: the GGUF file, the first one of a split.
    dtype: 'float32' or 'bfloat16' for all weights; '' keeps float16 and bfloat16 as they are and
      writes everything else in float32, so that nothing is lost.

  Raises:
    InputError: if the architecture, a type of tensors or the tokenizer is not supported, or the
      folder exists.
    CorruptError: if the file cannot be read.
    OutputError: if the folder could not be written whole, or what was read back differs.
  """
  if dtype not in ('', *DTYPES):
    raise InputError(
      f"dtype '{dtype}' is not supported{did_you_mean(dtype, DTYPES)}; supported: "
      f"{', '.join(DTYPES)}, or '' for what loses nothing"
    )
  file = GgufFile(pathlib.Path(path))
  model = architectures.describe(file)
  # All that can be refused is refused before a weight is read.
  companions = tokenizer.files_of(file, max_length=model.config.max_positions)
  sources = tensors.sources(file, model)
  entries = _entries(file, sources, dtype)
  with files.new_folder(folder, what=f'the model of {path}') as target:
    _write_weights(target / 'model.safetensors', file, sources, entries)
    _check_weights(target, file, sources, entries)
    config = _config_json(file, model, entries)
    files.write_json(target / 'config.json', config)
    for name, content in companions.items():
      if isinstance(content, str):
        files.write_text(target / name, content)
      else:
        files.write_json(target / name, content)
  return pathlib.Path(folder)


def _config_json(
  file: GgufFile, model: architectures.Described, entries: dict[str, tuple[str, tuple[int, ...]]]
) -> dict[str, Any]:
  stored_as = {dtype for dtype, _ in entries.values()}
  dtype = 'bfloat16' if stored_as == {'BF16'} else 'float32'
  dtypes = {'dtype': dtype, 'torch_dtype': dtype}
  return model.fields | tokenizer.token_ids(file) | dtypes


def _entries(
  file: GgufFile, sources: dict[str, Source], dtype: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
  """{tensor: (dtype in safetensors' names, shape)} to write."""
  entries = {}
  for name, source in sources.items():
    kind = DTYPES.get(dtype) or EXACT.get(file.type(source.name), 'F32')
    entries[name] = (kind, source.shape)
  if dtype or 'BF16' not in {kind for kind, _ in entries.values()}:
    return entries
  # In a file of bfloat16, llama.cpp widens vectors to float32: what came from bfloat16 goes back.
  for name, source in sources.items():
    if len(source.shape) == 1:
      vector = np.concatenate(list(source.blocks(file)))
      if np.array_equal(vector.astype('bfloat16').astype(np.float32), vector):
        entries[name] = ('BF16', source.shape)
  return entries


def _write_weights(
  path: pathlib.Path,
  file: GgufFile,
  sources: dict[str, Source],
  entries: dict[str, tuple[str, tuple[int, ...]]],
) -> None:
  metadata = {'format': 'pt'}
  bar = progress.bar(f'reading {file.path.name}', unit='tensor', total=len(entries))
  with safetensors.FileWriter(path, entries, metadata, hashed=False) as writer, bar:
    for name, (kind, _) in entries.items():
      for block in sources[name].blocks(file):
        writer.write(np.ascontiguousarray(block.astype(NUMPY[kind])))
      bar.update()


def _check_weights(
  folder: pathlib.Path,
  file: GgufFile,
  sources: dict[str, Source],
  entries: dict[str, tuple[str, tuple[int, ...]]],
) -> None:
  """Raises OutputError if the folder's tensors, turned back, are not those of the file.

  Compared in float64, block by block, by other code than wrote them.
  """
  with stored.open_tensors(folder) as written:
    for name, source in sources.items():
      # Queries and keys are compared whole, since their heads are turned whole.
      whole = [slice(0, source.shape[0])]
      for rows in whole if source.heads else tensors.row_blocks(source.shape):
        got = written.read(name, (rows,)).astype(np.float64)
        theirs = tensors.as_in_file(got, source)
        expected = file.rows(source.name, rows, matrix=source.expert).astype(np.float64)
        # What one rounding may cost: to bfloat16, or of the sum with a norm's offset.
        kind = entries[name][0]
        share = ROUNDING['BF16' if kind == 'BF16' else 'F32']
        rounded = kind == 'BF16' or source.offset
        allowed = share * np.abs(expected + source.offset) if rounded else 0.0
        errors = np.abs(theirs - expected)
        # Written so that NaN, which compares false, is refused.
        if not (errors <= allowed).all():
          raise OutputError(
            f"{file.path}: '{name}' was not written as '{source.name}' has it: they differ by up "
            f'to {errors.max():.3g}. Nothing was left behind'
          )


def unpacked(path: files.Path, *, weights: bool = True) -> pathlib.Path:
  """The folder of a GGUF file's model in the user's cache, made when first asked for.

  Args:
    weights: whether weights and tokenizer are wanted; otherwise the folder has the config alone.

  Raises:
    InputError: if the file is not supported, or the disk has no room.
  """
  # The library is heavy, and the folder of another process may be there already.
  import filelock

  path = pathlib.Path(path).expanduser()
  name = f'{path.stem}-{_fingerprint(path)}'
  root = compile_cache.user_folder() / 'gguf'
  folder = root / (name if weights else f'{name}-config')
  if folder.exists():
    return folder
  try:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
  except OSError as error:
    raise OutputError(
      f'{path} is unpacked into {root}, which cannot be made ({error.strerror}): name another '
      'folder for caches in XDG_CACHE_HOME'
    ) from error
  with filelock.FileLock(root / f'.{name}.lock'):
    # Another process may have made the folder in the meantime.
    if folder.exists():
      return folder
    if not weights:
      return _write_config(path, folder)
    _check_room(path, root)
    progress.say(f'{path} is unpacked into {folder}, once')
    return write_folder(path, folder)


def _write_config(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  file = GgufFile(path)
  model = architectures.describe(file)
  with files.new_folder(folder, what=f'the config of {path}') as target:
    files.write_json(target / 'config.json', model.fields | tokenizer.token_ids(file))
  return folder


def _check_room(path: pathlib.Path, root: pathlib.Path) -> None:
  """Raises InputError if the disk has no room for the weights."""
  file = GgufFile(path)
  sources = tensors.sources(file, architectures.describe(file))
  needed = 0
  for kind, shape in _entries(file, sources, '').values():
    needed += math.prod(shape) * np.dtype(NUMPY[kind]).itemsize
  free = shutil.disk_usage(root).free
  if needed > free:
    raise InputError(
      f'{path} takes {file_size(needed)} unpacked, and {root} has {file_size(free)} left: name '
      'another folder for caches in XDG_CACHE_HOME'
    )


def _fingerprint(path: pathlib.Path) -> str:
  """16 hex digits that name the file as it is now."""
  status = os.stat(path)
  facts = f'{VERSION} {status.st_size} {status.st_mtime_ns} '
  digest = hashlib.sha256(facts.encode())
  with open(path, 'rb') as file:
    digest.update(file.read(NAMED_BY))
  return digest.hexdigest()[:16]
