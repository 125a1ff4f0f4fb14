"""The tensors of a Hugging Face checkpoint, and where in them a slice of one of our parameters
lies.

Our parameters are stacked over layers (and experts), have their axes apart and in another order,
and may share a tensor with others. A slice of one is put together from the byte ranges that hold
it: nothing else is read.
"""

import contextlib
import math
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from einops import rearrange
from safetensors import safe_open

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families import Family, TensorRow
from weightsteer_jax.models.sites import sites, stack_axes
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import CorruptError, InputError
from weightsteer_jax.storage import files, safetensors

STORED_DTYPES = (
  'F64',
  'F32',
  'F16',
  'BF16',
)  # safetensors' names; other dtypes are quantised weights.
HEAD, EMBEDDING = 'lm_head.weight', 'model.embed_tokens.weight'
BLOCK_ROWS = 1024  # Of two tensors that are compared, at a time.


class Tensors:
  """The tensors of a checkpoint's safetensors files by name, read one at a time."""

  def __init__(self, owners: dict[str, Any]):
    self._owners = owners

  def names(self) -> set[str]:
    """All names."""
    return set(self._owners)

  def shape(self, name: str) -> tuple[int, ...]:
    """The tensor's shape, without reading it."""
    return tuple(self._owners[name].get_slice(name).get_shape())

  def dtype(self, name: str) -> str:
    """The dtype it is stored in, as safetensors calls it ('F32', 'BF16', ...), without reading
    it.
    """
    return self._owners[name].get_slice(name).get_dtype()

  def read(self, name: str, part: tuple[slice, ...] | None = None) -> np.ndarray:
    """The tensor, or a part of it that is not empty, in the dtype it is stored in; no other bytes
    are read.
    """
    return (
      self._owners[name].get_tensor(name)
      if part is None
      else self._owners[name].get_slice(name)[part]
    )


@contextlib.contextmanager
def open_tensors(folder: pathlib.Path) -> Iterator[Tensors]:
  """The tensors of the checkpoint in a folder.

  Raises:
    InputError: no safetensors there (pickles are refused), or an index that points outside the
      folder or disagrees with the files.
    CorruptError: a file that is cut short or missing.
  """
  with contextlib.ExitStack() as stack:
    owners: dict[str, Any] = {}
    for path, expected in _weight_files(folder).items():
      with safetensors.found_whole(path, remedy='copy or download it again'):
        handle = stack.enter_context(safe_open(path, framework='numpy'))
      if expected is not None:
        tree.same_keys(
          expected, handle.keys(), what=f'the tensors of {path}, by the index beside it'
        )
      owners |= {name: handle for name in handle.keys()}
    yield Tensors(owners)


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files of the checkpoint in a folder."""
  return list(_weight_files(folder))


def _weight_files(folder: pathlib.Path) -> dict[pathlib.Path, list[str] | None]:
  """{file: names of its tensors, None if no index tells}; where there are both, transformers takes
  the single file, and so do we.
  """
  if (folder / 'model.safetensors').exists():
    return {folder / 'model.safetensors': None}
  index = folder / 'model.safetensors.index.json'
  if index.exists():
    return _indexed_files(index)
  pickles = sorted(
    path.name for pattern in ('*.bin', '*.pt', '*.pth') for path in folder.glob(pattern)
  )
  if pickles:
    command = (
      'python -c "from transformers import AutoModelForCausalLM as M; '
      f"M.from_pretrained('{folder}').save_pretrained('converted')\""
    )
    raise InputError(
      f"{folder} holds its weights as pickles ({', '.join(pickles[:3])}), which can run code and "
      f'are never loaded. Convert them where you trust them: {command}'
    )
  raise InputError(
    f'{folder} holds no weights: expected model.safetensors, or '
    'model.safetensors.index.json and its files'
  )


def _indexed_files(index: pathlib.Path) -> dict[pathlib.Path, list[str] | None]:
  content = files.read_json(index, what='the index of a checkpoint')
  weight_map = content.get('weight_map') if isinstance(content, dict) else None
  names = list(weight_map.values()) if isinstance(weight_map, dict) else []
  if not names or not all(isinstance(name, str) for name in names):
    raise CorruptError(
      f"{index} holds no 'weight_map' from tensors to files; copy or download it again"
    )
  found: dict[pathlib.Path, list[str] | None] = {}
  for tensor, name in weight_map.items():
    if not re.fullmatch(r'[\w-][\w.-]*\.safetensors', name):
      raise InputError(
        f"{index} names '{name}': only plain names of safetensors files in the same folder "
        "are allowed"
      )
    found.setdefault(index.parent / name, []).append(tensor)
  missing = [path.name for path in found if not path.exists()]
  if missing:
    raise CorruptError(
      f'{index} names files that are not there: {", ".join(missing)}; copy or download them again'
    )
  return found


def tensor_rows(config: ModelConfig, family: Family) -> dict[str, TensorRow]:
  """{path: row} of the parameters this model has."""
  rows = {row.path: row for row in family.tensors}
  return {path: rows[path] for path in sites(config)}


def check(config: ModelConfig, family: Family, tensors: Tensors, *, folder: pathlib.Path) -> None:
  """Nothing, if the checkpoint has the tensors that its config asks for, and no others.

  Raises:
    InputError: names, shapes or dtypes that differ, or a head of its own in a tied checkpoint.
  """
  rows = tensor_rows(config, family).values()
  expected = {
    name: stored_shape(row, config) for row in rows for name in stored_names(row, config).values()
  }
  # Rotary frequencies are a function of the config; old Llama checkpoints store them all the same.
  names = {name for name in tensors.names() if not name.endswith('rotary_emb.inv_freq')}
  if config.tied and HEAD in names and HEAD not in expected:
    if not _equal(tensors, HEAD, EMBEDDING):
      raise InputError(
        f"{folder}: the config says tie_word_embeddings, but '{HEAD}' differs from '{EMBEDDING}', "
        'and transformers would drop that head: set tie_word_embeddings to false in config.json '
        'to use both, or drop the head from the weights'
      )
    names -= {HEAD}
  tree.same_keys(
    expected, names, what=f'the tensors of the {family.model_type} checkpoint {folder}'
  )
  for name, shape in expected.items():
    if tensors.shape(name) != shape:
      raise InputError(
        f"{folder}: '{name}' has shape {tensors.shape(name)}; the config asks for {shape}"
      )
    if tensors.dtype(name) not in STORED_DTYPES:
      raise InputError(
        f"{folder}: '{name}' is stored as {tensors.dtype(name)}; supported: "
        f"{', '.join(STORED_DTYPES)} (unquantised weights)"
      )


def _equal(tensors: Tensors, x: str, y: str) -> bool:
  shape = tensors.shape(x)
  if shape != tensors.shape(y):
    return False
  blocks = [
    (slice(start, min(start + BLOCK_ROWS, shape[0])),) for start in range(0, shape[0], BLOCK_ROWS)
  ]
  return all(np.array_equal(tensors.read(x, block), tensors.read(y, block)) for block in blocks)


def stored_names(row: TensorRow, config: ModelConfig) -> dict[tuple[int, ...], str]:
  """{index into the parameter's stack: name of the tensor that holds it}; the stack is layers, then
  experts.

  A parameter outside the stack has the one index ().
  """
  stack = stack_axes(row.path)
  indices = np.ndindex(*(config.sizes()[letter] for letter in stack))
  return {at: row.name.format(**dict(zip(stack.lower(), at))) for at in indices}


def stored_shape(row: TensorRow, config: ModelConfig) -> tuple[int, ...]:
  """The shape of the tensors that hold the parameter, beside others or alone."""
  rows, *rest = their_shape(row.pattern, config)
  return (_block_rows(row.before, config) + rows + _block_rows(row.after, config), *rest)


def stored_rows(row: TensorRow, config: ModelConfig) -> slice:
  """The rows of its tensors that the parameter is."""
  before = _block_rows(row.before, config)
  return slice(before, before + their_shape(row.pattern, config)[0])


def read_slice(
  config: ModelConfig,
  row: TensorRow,
  tensors: Tensors,
  bounds: Sequence[tuple[int, int]],
  dtype: Any,
) -> np.ndarray:
  """The slice of a parameter from start to stop on each of its axes, those of the stack first, cast
  to the dtype.

  One stored tensor's part is in memory beside it at a time.
  """
  stack = len(stack_axes(row.path))
  out = np.empty([stop - start for start, stop in bounds], dtype)
  names = stored_names(row, config)
  for at in np.ndindex(out.shape[:stack]):
    name = names[tuple(start + i for i, (start, _) in zip(at, bounds))]
    out[at] = _read_piece(config, row, tensors, name, bounds[stack:]).astype(out.dtype)
  return out


def _read_piece(
  config: ModelConfig,
  row: TensorRow,
  tensors: Tensors,
  name: str,
  bounds: Sequence[tuple[int, int]],
) -> np.ndarray:
  """The part of one tensor, in our axes: of axes that are merged there, a range of the first is a
  range of rows.
  """
  theirs, ours = row.pattern.split(' -> ')
  wanted, sizes = dict(zip(ours.split(), bounds)), config.sizes()
  part, lengths = [], {}
  for group in groups(theirs):
    first, *rest = group.strip('()').split()
    block = math.prod(sizes[axis] for axis in rest)
    offset = 0 if part else _block_rows(row.before, config)
    start, stop = wanted.pop(first)
    part.append(slice(offset + start * block, offset + stop * block))
    lengths |= {first: stop - start} | {axis: sizes[axis] for axis in rest}
  piece = rearrange(tensors.read(name, tuple(part)), row.pattern, **lengths)
  return piece[
    tuple(slice(*wanted[axis]) if axis in wanted else slice(None) for axis in ours.split())
  ]


def to_ours(tensor: np.ndarray, pattern: str, config: ModelConfig) -> np.ndarray:
  """A Hugging Face tensor with the axes of ours."""
  return rearrange(tensor, pattern, **_grouped_sizes(pattern, config))


def to_theirs(array: np.ndarray, pattern: str, config: ModelConfig) -> np.ndarray:
  """One of our arrays (a single layer's) with the axes of Hugging Face."""
  theirs, ours = pattern.split(' -> ')
  return np.ascontiguousarray(
    rearrange(array, f'{ours} -> {theirs}', **_grouped_sizes(pattern, config))
  )


def their_shape(pattern: str, config: ModelConfig) -> tuple[int, ...]:
  """The shape of the Hugging Face tensor that `pattern` turns into ours."""
  return tuple(_length(group, config) for group in groups(pattern.split(' -> ')[0]))


def _block_rows(blocks: Sequence[str], config: ModelConfig) -> int:
  return sum(_length(block, config) for block in blocks)


def _length(group: str, config: ModelConfig) -> int:
  """Of an axis, or of several merged into one: 'D', '(N H)' or 'N H'."""
  return math.prod(config.sizes()[axis] for axis in group.strip('()').split())


def groups(axes: str) -> list[str]:
  """The axes of one side of a pattern, those that are merged together: '(N H) D' -> ['(N H)',
  'D'].
  """
  return re.findall(r'\([^)]*\)|\w+', axes)


def _grouped_sizes(pattern: str, config: ModelConfig) -> dict[str, int]:
  sizes = config.sizes()
  return {
    axis: sizes[axis]
    for group in groups(pattern)
    if group.startswith('(')
    for axis in group.strip('()').split()
  }
