"""Where the tensors of a checkpoint lie in a GGUF file, and how they are turned on the way."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from weightsteer_jax.models import stored
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families import TensorRow
from weightsteer_jax.models.gguf import architectures
from weightsteer_jax.models.gguf.architectures import Described
from weightsteer_jax.models.gguf.file import GgufFile
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
    """The row in the file of each row of the checkpoint.

    Of a head, a checkpoint has the first halves of all rotated pairs and then the second halves;
    the file has pair after pair.

    Source: llama.cpp convert_hf_to_gguf.py, `LlamaModel.permute`.

    >>> Source('', (4, 1), None, heads=1, offset=0.0).order().tolist()
    [0, 2, 1, 3]
    """
    rows = np.arange(self.shape[0])
    if not self.heads:
      return rows
    return rows.reshape(self.heads, -1, 2).swapaxes(1, 2).reshape(-1)

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
  found: dict[str, Source] = {}
  for row in stored.tensor_rows(model.config, model.family).values():
    for at, theirs in stored.stored_names(row, model.config).items():
      expert = at[1] if '{e}' in row.name else None
      # All experts of a layer share a tensor, which has no number of an expert in its name.
      whole = theirs.replace(f'experts.{expert}.', 'experts.')
      name = file.tensor_name(whole)
      assert name is not None, f'the gguf library has no name for {whole}'
      found[theirs] = Source(
        name=name,
        shape=stored.stored_shape(row, model.config),
        expert=expert,
        heads=_interleaved_heads(row, model),
        # llama.cpp's norms multiply by what is stored.
        offset=-model.config.norm_offset if row.path.endswith('/scale') else 0.0,
      )
  _check(file, model, found)
  return found


def _interleaved_heads(row: TensorRow, model: Described) -> int:
  """The number of heads whose rows are interleaved, or 0."""
  if not model.interleaved:
    return 0
  counts = {'q': model.config.num_heads, 'k': model.config.num_kv_heads}
  # 'layers/attn/q/kernel' and 'layers/attn/q/bias'.
  parts = row.path.split('/')
  return counts.get(parts[2], 0) if parts[1:2] == ['attn'] and len(parts) == 4 else 0


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


def as_in_file(tensor: np.ndarray, source: Source, config: ModelConfig) -> np.ndarray:
  """A checkpoint's tensor as llama.cpp stores it: the inverse of `Source.blocks`."""
  if source.heads:
    halves = tensor.reshape(source.heads, 2, config.head_dim // 2, *tensor.shape[1:])
    tensor = np.moveaxis(halves, 1, 2).reshape(tensor.shape)
  return tensor - source.offset
