"""Biases without a tensor: a Llama or Qwen2 written as the Llama with biases everywhere.

A Llama with `attention_bias` and `mlp_bias` computes the same function as either family once the
added biases are zero. A vector added to the residual stream after a block is a bias of the block's
last projection.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.models import Dense
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

PyTree = Any

RESIDUAL = 'layers/residual'
LAST_BIAS = 'layers/mlp/down/bias'
# Families whose blocks add the MLP's output to the stream as it is, and differ from Llama in
# nothing but biases.
FOLDABLE = ('llama', 'qwen2')


@dataclasses.dataclass(frozen=True)
class Folded:
  """An architecture with a parameter for every change of a delta.

  Attributes:
    config: the architecture.
    family: the `model_type`.
    delta: the changes, residual vectors among the biases.
    is_other: whether the base lacks some of the parameters.
  """

  config: models.ModelConfig
  family: str
  delta: PyTree
  is_other: bool

  def model(self, base: models.Model) -> models.Model:
    """The base in this architecture, with zeros as new biases."""
    if not self.is_other:
      return base
    params = tree.flatten(base.params)
    # A parameter of every architecture, in the dtype that the base was loaded in.
    dtype = params['final_norm/scale'].dtype
    for path, site in models.sites(self.config).items():
      if path not in params:
        params[path] = jnp.zeros(site.shape, dtype)
    params = tree.unflatten(params)
    return dataclasses.replace(base, config=self.config, family=self.family, params=params)


def fold(config: models.ModelConfig, family: str, delta: PyTree) -> Folded:
  """The architecture of a base, with biases added if the delta changes more than the base has.

  Raises:
    InputError: if the family cannot be written with the missing biases.
  """
  changes = tree.flatten(delta, models.is_delta_leaf)
  sites = models.sites(config)
  missing = sorted(path for path in changes if path not in sites)
  if not missing:
    return Folded(config, family, delta, is_other=False)
  if family not in FOLDABLE:
    raise InputError(
      f'the direction changes {", ".join(missing)}, for which a {family} checkpoint has no tensor: '
      'it cannot be merged, only applied unmerged'
    )
  if RESIDUAL in changes:
    vectors = changes.pop(RESIDUAL)
    # Both are added to the stream at the end of the block, so the sum does the same.
    if LAST_BIAS in changes:
      biases = np.asarray(changes[LAST_BIAS].value)
      vectors = Dense(np.asarray(vectors.value) + biases)
    changes[LAST_BIAS] = vectors
  # Hugging Face's Llama has one flag for all attention biases and one for all of the MLP's.
  attention_bias = config.qkv_bias or config.o_bias
  mlp_bias = config.mlp_bias
  for path in missing:
    attention_bias |= path.startswith('layers/attn/')
    mlp_bias |= path.startswith('layers/mlp/') or path == RESIDUAL
  config = dataclasses.replace(
    config, qkv_bias=attention_bias, o_bias=attention_bias, mlp_bias=mlp_bias
  )
  return Folded(config, 'llama', tree.unflatten(changes), is_other=True)
