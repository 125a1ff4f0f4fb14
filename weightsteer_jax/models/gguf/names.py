"""Names of tensors and order of rows in llama.cpp, against those of Hugging Face."""

import dataclasses
import re

import numpy as np

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.gguf import file as files_of_gguf
from weightsteer_jax.models.gguf.architectures import ARCHITECTURES
from weightsteer_jax.runtime.errors import InputError

# Families that llama.cpp runs as another one.
AS_OTHER = {'mixtral': 'llama', 'mistral': 'llama'}


@dataclasses.dataclass(frozen=True)
class Names:
  """The tensors of a model in llama.cpp.

  Attributes:
    architecture: llama.cpp's architecture.
    config: the model.
  """

  architecture: str
  config: ModelConfig

  @classmethod
  def of(cls, family: str, config: ModelConfig) -> 'Names':
    """The names of a model of a family.

    Raises:
      InputError: if llama.cpp has no architecture for the family.
    """
    by_family = {entry.family: name for name, entry in ARCHITECTURES.items()} | AS_OTHER
    if family not in by_family:
      raise InputError(
        f"no architecture of llama.cpp is known for {family} models; known are: "
        f"{', '.join(sorted(by_family))}"
      )
    return cls(by_family[family], config)

  def tensor(self, theirs: str) -> str:
    """The name in the file of a Hugging Face tensor; all experts of a layer share a tensor."""
    merged = re.sub(r'\.experts\.\d+\.', '.experts.', theirs)
    name = files_of_gguf.tensor_name(self.architecture, self.config.num_layers, merged)
    assert name is not None, f'the gguf library has no name for {merged}'
    return name

  def interleaved_heads(self, theirs: str) -> int:
    """The number of heads whose rows are in another order in the file; 0 for none."""
    if not ARCHITECTURES[self.architecture].interleaved:
      return 0
    module = theirs.rsplit('.', 2)[-2]
    return {'q_proj': self.config.num_heads, 'k_proj': self.config.num_kv_heads}.get(module, 0)


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
  """Rows of queries or keys in llama.cpp's order: pair after pair of what is rotated together.

  Source: llama.cpp convert_hf_to_gguf.py, `LlamaModel.permute`.

  >>> interleaved(np.arange(4), heads=1).tolist()
  [0, 2, 1, 3]
  """
  halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
  return np.moveaxis(halves, 1, 2).reshape(rows.shape)


def in_halves(rows: np.ndarray, heads: int) -> np.ndarray:
  """The inverse of `interleaved`: of a head, the first of all pairs, then the second."""
  pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
  return np.moveaxis(pairs, 2, 1).reshape(rows.shape)
