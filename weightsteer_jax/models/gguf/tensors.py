"""Where the tensors of a checkpoint lie in a GGUF file, and how they are turned on the way."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from weightsteer_jax.models import stored
from weightsteer_jax.models.gguf import architectures
from weightsteer_jax.models.gguf.architectures import Described
from weightsteer_jax.models.gguf.file import GgufFile
from weightsteer_jax.models.gguf.names import Names, in_halves, interleaved
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

# Read for the config, or a function of it.
NO_PARAMETERS = (
  architectures.ROPE_FACTORS,
  architectures.LONG_FACTORS,
  architectures.SHORT_FACTORS,
)
# Numbers dequantised at a time: 64 MiB of float32.
BLOCK = 2**24


@dataclasses.dataclass(frozen=True)
class Source:
  """A tensor of a checkpoint in a GGUF file.

  Attributes:
    name: the tensor's name in the file.
    shape: the shape in the checkpoint.
    expert: the number of the expert in a tensor of all experts; None outside of experts.
    heads: the number of heads whose rows are interleaved; 0 if rows are in order.
    offset: what is added to the numbers in the file.
  """

  name: str
  shape: tuple[int, ...]
  expert: int | None
  heads: int
  offset: float

  def order(self) -> np.ndarray:
    """The row in the file of each row of the checkpoint."""
    rows = np.arange(self.shape[0])
    return in_halves(rows, self.heads) if self.heads else rows

  def blocks(self, file: GgufFile) -> Iterator[np.ndarray]:
    """Blocks of rows of the checkpoint's tensor, in float32."""
    order = self.order()
    for rows in row_blocks(self.shape):
      block = file.rows(self.name, order[rows], matrix=self.expert)
      yield block + np.float32(self.offset) if self.offset else block


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
  """Slices of rows that hold about BLOCK numbers each."""
  width = int(np.prod(shape[1:]))
  step = max(1, BLOCK // width)
  for start in range(0, shape[0], step):
    yield slice(start, min(start + step, shape[0]))


def sources(file: GgufFile, model: Described) -> dict[str, Source]:
  """{name in the checkpoint: source} of all tensors of a model.

  Raises:
    InputError: if the file lacks a tensor, has one that the model does not have, or one of another
      shape.
  """
  names = Names(file.architecture, model.config)
  found: dict[str, Source] = {}
  for row in stored.tensor_rows(model.config, model.family).values():
    for at, theirs in stored.stored_names(row, model.config).items():
      expert = at[1] if '{e}' in row.name else None
      found[theirs] = Source(
        name=names.tensor(theirs),
        shape=stored.stored_shape(row, model.config),
        expert=expert,
        heads=names.interleaved_heads(theirs),
        # llama.cpp's norms multiply by what is stored.
        offset=-model.config.norm_offset if row.path.endswith('/scale') else 0.0,
      )
  _check(file, model, found)
  return found


def _check(file: GgufFile, model: Described, found: Mapping[str, Source]) -> None:
  expected = {source.name for source in found.values()}
  what = f'the tensors of {file.path}, by its metadata a {model.family.model_type} model'
  tree.same_keys(expected, file.names() - set(NO_PARAMETERS), what=what)
  for source in found.values():
    shape = file.shape(source.name)
    experts = () if source.expert is None else (model.config.num_experts,)
    tree_shape = (*experts, *source.shape)
    if shape != tree_shape:
      raise InputError(
        f"{file.path}: '{source.name}' has shape {shape}; the metadata ask for {tree_shape}"
      )


def as_in_file(tensor: np.ndarray, source: Source) -> np.ndarray:
  """Rows of a checkpoint's tensor, or all of them, as llama.cpp stores them."""
  if source.heads:
    tensor = interleaved(tensor, source.heads)
  return tensor - source.offset
