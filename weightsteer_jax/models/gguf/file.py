"""A GGUF file, read tensor by tensor and written through the `gguf` library, which only this uses.

Source: github.com/ggml-org/ggml, docs/gguf.md.
"""

import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax.runtime.errors import CorruptError, InputError, OutputError
from weightsteer_jax.runtime.messages import first_line, listed

MAGIC = b'GGUF'
# Types of tensors that are read, in the library's names. `Q8_1` and `Q8_K` never lie in files.
TYPES = (
  *('F32', 'F16', 'BF16'),
  *('Q8_0', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1'),
  *('Q2_K', 'Q3_K', 'Q4_K', 'Q5_K', 'Q6_K'),
  *('IQ4_NL', 'IQ4_XS'),
)
# The name of a file that `llama-gguf-split` made: number of the file, number of files.
PART = re.compile(r'(.*)-(\d{5})-of-(\d{5})\.gguf')


def is_gguf(path: pathlib.Path) -> bool:
  """Whether a path is a file that begins as a GGUF file does."""
  if not path.is_file():
    return False
  with open(path, 'rb') as file:
    return file.read(len(MAGIC)) == MAGIC


def library() -> Any:
  """The `gguf` library, imported when a GGUF file is first met.

  Raises:
    InputError: if the library is not installed.
  """
  try:
    import gguf
  except ImportError as error:
    raise InputError(
      f'GGUF files are read and written through the gguf library, which cannot be imported '
      f"({error}): pip install 'gguf>=0.19'"
    ) from error
  return gguf


class GgufFile:
  """The metadata and the tensors of a GGUF file, or of the files that one was split into.

  Attributes:
    path: the file, the first one of a split.
    metadata: {key: number, text, bool or list}.
    architecture: the value of `general.architecture`.
  """

  def __init__(self, path: pathlib.Path, *, kind: str = 'model'):
    """Reads the metadata, and no tensor.

    Args:
      kind: what the file has to be: 'model', or 'adapter'.

    Raises:
      InputError: if the file is of another kind, or a tensor has a type that is not read.
      CorruptError: if the file or a file of the split cannot be read.
    """
    self.path = path
    first, *others = _parts(path)
    reader = _open(first)
    self.metadata = {}
    for key, field in reader.fields.items():
      self.metadata[key] = field.contents()
    self.architecture = str(self.metadata.get('general.architecture', ''))
    found = self.metadata.get('general.type', 'model')
    if found != kind:
      raise InputError(f"{path} is a GGUF file of the type '{found}', expected '{kind}'")
    # {name: tensor of the library}
    self._tensors = {tensor.name: tensor for tensor in reader.tensors}
    for other in others:
      self._tensors |= {tensor.name: tensor for tensor in _open(other).tensors}
    self._refuse_types()

  def _refuse_types(self) -> None:
    by_type: dict[str, list[str]] = {}
    for name in self._tensors:
      by_type.setdefault(self.type(name), []).append(name)
    for kind, names in by_type.items():
      if kind not in TYPES:
        raise InputError(
          f'{self.path}: {len(names)} tensors are of the type {kind}, which is not read '
          f'({listed(names, 2)}); read are {", ".join(TYPES)}: take a file of one of these types'
        )

  def names(self) -> set[str]:
    """The names of all tensors."""
    return set(self._tensors)

  def shape(self, name: str) -> tuple[int, ...]:
    """The shape of a tensor, the slowest axis first."""
    # The format lists the fastest axis first.
    return tuple(int(size) for size in reversed(self._tensors[name].shape))

  def type(self, name: str) -> str:
    """The type of a tensor, as in TYPES."""
    return self._tensors[name].tensor_type.name

  def rows(
    self, name: str, rows: slice | Sequence[int] | np.ndarray, *, matrix: int | None = None
  ) -> np.ndarray:
    """Rows of a tensor, dequantised to float32.

    Args:
      rows: which rows of a matrix, or which elements of a vector.
      matrix: which matrix, in a tensor of several.
    """
    tensor = self._tensors[name]
    # A memory map, of which the rows alone are read.
    data = tensor.data if matrix is None else tensor.data[matrix]
    stored = np.ascontiguousarray(data[rows])
    return library().dequantize(stored, tensor.tensor_type).astype(np.float32, copy=False)


@functools.lru_cache(maxsize=8)
def _name_map(architecture: str, num_layers: int) -> Any:
  gguf = library()
  numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
  return gguf.get_tensor_name_map(numbers[architecture], num_layers)


def tensor_name(architecture: str, num_layers: int, theirs: str) -> str | None:
  """The name in a file of a Hugging Face tensor, with '.weight' or '.bias'; None if unknown.

  Source: the table of the gguf library, `get_tensor_name_map`.
  """
  stem, suffix = theirs.rsplit('.', 1)
  ours = _name_map(architecture, num_layers).get_name(stem)
  # Of some architectures the table leaves out the head, since most of their models are tied.
  if ours is None and stem == 'lm_head':
    ours = 'output'
  return None if ours is None else f'{ours}.{suffix}'


def write(
  path: pathlib.Path,
  architecture: str,
  metadata: Mapping[str, str | int | float],
  tensors: Mapping[str, np.ndarray],
) -> None:
  """Writes a new file of float32 tensors, all in memory.

  Args:
    metadata: {key: value}; a whole number is stored in 32 bits without a sign, a float in 32 bits.

  Raises:
    OutputError: if the file could not be written.
  """
  writer = library().GGUFWriter(path, architecture)
  adders = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
  for key, value in metadata.items():
    adders[type(value)](key, value)
  for name, tensor in tensors.items():
    writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))
  try:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
  except OSError as error:
    raise OutputError(f'{path} could not be written: {error.strerror or error}') from error


def _parts(path: pathlib.Path) -> list[pathlib.Path]:
  """The file, or all files of the split that the file is the first of.

  Raises:
    InputError: if the file is a later one of a split.
    CorruptError: if a file of the split is missing.
  """
  match = PART.fullmatch(path.name)
  if not match or int(match[3]) == 1:
    return [path]
  stem, number, total = match.groups()
  parts = [path.with_name(f'{stem}-{i:05d}-of-{total}.gguf') for i in range(1, int(total) + 1)]
  if int(number) != 1:
    raise InputError(f'{path} is one of {int(total)} files of a model: name the first, {parts[0]}')
  missing = [part.name for part in parts if not part.is_file()]
  if missing:
    raise CorruptError(f'beside {path}, files of the model are missing: {listed(missing, 3)}')
  return parts


def _open(path: pathlib.Path) -> Any:
  try:
    return library().GGUFReader(path)
  # The library lets whatever went wrong pass, index and type errors among them.
  except Exception as error:
    raise CorruptError(
      f'{path} is no whole GGUF file ({first_line(error)}); copy or download it again'
    ) from error
