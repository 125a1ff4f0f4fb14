"""The tensors of a Hugging Face checkpoint, and how parameters lie in them.

Our parameters are stacked over layers (and experts). Their axes are separate and in another order,
and several parameters may share a stored tensor. A slice of a parameter is put together from byte
ranges of the files; no other bytes are read.
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

# In the names of safetensors. Any other dtype belongs to quantised weights.
STORED_DTYPES = ('F64', 'F32', 'F16', 'BF16')
HEAD = 'lm_head.weight'
EMBEDDING = 'model.embed_tokens.weight'
# Rows compared at a time. Embedding and head are the largest tensors, so neither is read whole.
BLOCK_ROWS = 1024


class Tensors:
  """The tensors of a checkpoint's safetensors files by name, read one at a time."""

  def __init__(self, file_of: dict[str, Any]):
    # {name of a tensor: open safetensors file that holds the tensor}
    self._file_of = file_of

  def names(self) -> set[str]:
    """The names of all tensors."""
    return set(self._file_of)

  def shape(self, name: str) -> tuple[int, ...]:
    """The shape of a tensor, from the header alone."""
    return tuple(self._file_of[name].get_slice(name).get_shape())

  def dtype(self, name: str) -> str:
    """The stored dtype in safetensors' names ('F32', 'BF16'), from the header alone."""
    return self._file_of[name].get_slice(name).get_dtype()

  def read(self, name: str, part: tuple[slice, ...] | None = None) -> np.ndarray:
    """The tensor, or a part, in the stored dtype.

    Args:
      part: a slice for each axis, none of them empty. Only the bytes of the part are read.
    """
    file = self._file_of[name]
    if part is None:
      return file.get_tensor(name)
    return file.get_slice(name)[part]


@contextlib.contextmanager
def open_tensors(folder: pathlib.Path) -> Iterator[Tensors]:
  """The tensors of the checkpoint in a folder, whose files are open inside the block.

  Raises:
    InputError: if the folder holds no safetensors (pickles are refused), or if an index names files
      outside the folder or other tensors than the files hold.
    CorruptError: if a file is cut short or missing.
  """
  with contextlib.ExitStack() as stack:
    file_of: dict[str, Any] = {}
    for path, expected in _weight_files(folder).items():
      with safetensors.found_whole(path, remedy='copy or download it again'):
        file = stack.enter_context(safe_open(path, framework='numpy'))
      if expected is not None:
        what = f'the tensors of {path}, by the index beside it'
        tree.same_keys(expected, file.keys(), what=what)
      for name in file.keys():
        file_of[name] = file
    yield Tensors(file_of)


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files of the checkpoint in a folder."""
  return list(_weight_files(folder))


def _weight_files(folder: pathlib.Path) -> dict[pathlib.Path, list[str] | None]:
  """{file: names of its tensors, or None without an index} of a checkpoint."""
  # Of a single file and an index in one folder, transformers takes the single file.
  if (folder / 'model.safetensors').exists():
    return {folder / 'model.safetensors': None}
  index = folder / 'model.safetensors.index.json'
  if index.exists():
    return _indexed_files(index)
  pickles: list[str] = []
  for pattern in ('*.bin', '*.pt', '*.pth'):
    pickles += [path.name for path in folder.glob(pattern)]
  if pickles:
    pickles.sort()
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
  """{file: names of its tensors} as an index says."""
  content = files.read_json(index, what='the index of a checkpoint')
  weight_map: Any = content.get('weight_map') if isinstance(content, dict) else None
  whole = isinstance(weight_map, dict) and len(weight_map) > 0
  if not whole or not all(isinstance(name, str) for name in weight_map.values()):
    raise CorruptError(
      f"{index} holds no 'weight_map' from tensors to files; copy or download it again"
    )
  names_of: dict[pathlib.Path, list[str]] = {}
  for tensor, name in weight_map.items():
    # An index that was downloaded must not make us open files elsewhere on this machine.
    if not re.fullmatch(r'[\w-][\w.-]*\.safetensors', name):
      raise InputError(
        f"{index} names '{name}': only plain names of safetensors files in the same folder "
        "are allowed"
      )
    names_of.setdefault(index.parent / name, []).append(tensor)
  missing = [path.name for path in names_of if not path.exists()]
  if missing:
    raise CorruptError(
      f'{index} names files that are not there: {", ".join(missing)}; copy or download them again'
    )
  return dict(names_of)


def tensor_rows(config: ModelConfig, family: Family) -> dict[str, TensorRow]:
  """{path: row} of the parameters of a model."""
  row_of = {row.path: row for row in family.tensors}
  return {path: row_of[path] for path in sites(config)}


def check(config: ModelConfig, family: Family, tensors: Tensors, *, folder: pathlib.Path) -> None:
  """Raises InputError if the checkpoint's tensors are not those of the config.

  Raises:
    InputError: if names, shapes or dtypes differ, or if the head of a tied checkpoint differs from
      the embedding.
  """
  expected: dict[str, tuple[int, ...]] = {}
  for row in tensor_rows(config, family).values():
    for name in stored_names(row, config).values():
      expected[name] = stored_shape(row, config)
  # Rotary frequencies are a function of the config; old Llama checkpoints store them all the same.
  names = {name for name in tensors.names() if not name.endswith('rotary_emb.inv_freq')}
  # A tied checkpoint may store its embedding a second time, as the head.
  if config.tied and HEAD in names and HEAD not in expected:
    if not _equal(tensors, HEAD, EMBEDDING):
      raise InputError(
        f"{folder}: the config says tie_word_embeddings, but '{HEAD}' differs from '{EMBEDDING}', "
        'and transformers would drop that head: set tie_word_embeddings to false in config.json '
        'to use both, or drop the head from the weights'
      )
    names -= {HEAD}
  what = f'the tensors of the {family.model_type} checkpoint {folder}'
  tree.same_keys(expected, names, what=what)
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
  """Whether two tensors are equal, compared block by block."""
  shape = tensors.shape(x)
  if shape != tensors.shape(y):
    return False
  for start in range(0, shape[0], BLOCK_ROWS):
    block = (slice(start, min(start + BLOCK_ROWS, shape[0])),)
    if not np.array_equal(tensors.read(x, block), tensors.read(y, block)):
      return False
  return True


def stored_names(row: TensorRow, config: ModelConfig) -> dict[tuple[int, ...], str]:
  """{index into the parameter's stack: name of the tensor} of a parameter.

  The stack is layers, then experts. A parameter outside the stack has the one index ().
  """
  stack = stack_axes(row.path)
  # The placeholders of a name, '{l}' and '{e}', are the letters of the stack in lower case.
  placeholders = stack.lower()
  sizes = config.sizes()
  names = {}
  for at in np.ndindex(*[sizes[letter] for letter in stack]):
    names[at] = row.name.format(**dict(zip(placeholders, at)))
  return names


def stored_shape(row: TensorRow, config: ModelConfig) -> tuple[int, ...]:
  """The shape of the tensors that hold the parameter, alone or with other parameters."""
  rows, *rest = their_shape(row.pattern, config)
  before = _block_rows(row.before, config)
  after = _block_rows(row.after, config)
  return (before + rows + after, *rest)


def stored_rows(row: TensorRow, config: ModelConfig) -> slice:
  """The rows of a stored tensor that belong to the parameter."""
  rows, *_ = their_shape(row.pattern, config)
  before = _block_rows(row.before, config)
  return slice(before, before + rows)


def read_slice(
  config: ModelConfig,
  row: TensorRow,
  tensors: Tensors,
  bounds: Sequence[tuple[int, int]],
  dtype: Any,
) -> np.ndarray:
  """A slice of a parameter, cast to the dtype.

  Beside the slice, memory holds the part of a single stored tensor at a time.

  Args:
    bounds: (start, stop) of each axis of the parameter, the axes of the stack first.
  """
  stack = len(stack_axes(row.path))
  shape = [stop - start for start, stop in bounds]
  out = np.empty(shape, dtype)
  names = stored_names(row, config)
  # The slice may begin at a later layer or expert than the first.
  starts = [start for start, _ in bounds[:stack]]
  for at in np.ndindex(out.shape[:stack]):
    index = tuple(start + i for start, i in zip(starts, at))
    piece = _read_piece(config, row, tensors, names[index], bounds[stack:])
    out[at] = piece.astype(out.dtype)
  return out


def _read_piece(
  config: ModelConfig,
  row: TensorRow,
  tensors: Tensors,
  name: str,
  bounds: Sequence[tuple[int, int]],
) -> np.ndarray:
  """A slice of the parameter of a single layer and expert, from the tensor `name`."""
  theirs, ours = row.pattern.split(' -> ')
  our_axes = ours.split()
  sizes = config.sizes()
  bounds_of = dict(zip(our_axes, bounds))
  # What to read: on disk, a range of the first of merged axes is one range of rows.
  part: list[slice] = []
  lengths: dict[str, int] = {}
  for group in groups(theirs):
    first, *rest = group.strip('()').split()
    block = math.prod(sizes[axis] for axis in rest)
    # The parameters of a fused tensor are blocks of its first axis.
    offset = 0 if part else _block_rows(row.before, config)
    start, stop = bounds_of.pop(first)
    part.append(slice(offset + start * block, offset + stop * block))
    lengths[first] = stop - start
    for axis in rest:
      lengths[axis] = sizes[axis]
  piece = rearrange(tensors.read(name, tuple(part)), row.pattern, **lengths)
  # The other merged axes were read whole, and are cut now.
  cuts = [slice(*bounds_of.get(axis, (None, None))) for axis in our_axes]
  return piece[tuple(cuts)]


def to_ours(tensor: np.ndarray, pattern: str, config: ModelConfig) -> np.ndarray:
  """A Hugging Face tensor with the axes of our parameter."""
  return rearrange(tensor, pattern, **_grouped_sizes(pattern, config))


def to_theirs(array: np.ndarray, pattern: str, config: ModelConfig) -> np.ndarray:
  """An array of a single layer with the axes of the Hugging Face tensor."""
  theirs, ours = pattern.split(' -> ')
  turned = rearrange(array, f'{ours} -> {theirs}', **_grouped_sizes(pattern, config))
  # einops returns a view where it can; callers write the bytes in the order of the axes.
  return np.ascontiguousarray(turned)


def their_shape(pattern: str, config: ModelConfig) -> tuple[int, ...]:
  """The shape of the Hugging Face tensor that `pattern` turns into ours."""
  theirs, _ = pattern.split(' -> ')
  return tuple(_length(group, config) for group in groups(theirs))


def _block_rows(blocks: Sequence[str], config: ModelConfig) -> int:
  return sum(_length(block, config) for block in blocks)


def _length(group: str, config: ModelConfig) -> int:
  """The length of an axis or of merged axes: 'D', '(N H)' or 'N H'."""
  return math.prod(config.sizes()[axis] for axis in group.strip('()').split())


def groups(axes: str) -> list[str]:
  """The axes of a side of a pattern, merged axes together.

  >>> groups('(N H) D')
  ['(N H)', 'D']
  """
  return re.findall(r'\([^)]*\)|\w+', axes)


def _grouped_sizes(pattern: str, config: ModelConfig) -> dict[str, int]:
  """{letter: size} of the axes that are merged in a pattern, for einops."""
  sizes = config.sizes()
  merged = [group for group in groups(pattern) if group.startswith('(')]
  letters = ' '.join(group.strip('()') for group in merged).split()
  return {letter: sizes[letter] for letter in letters}
