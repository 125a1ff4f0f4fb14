"""Biases where a checkpoint has no tensor for them: a Llama or Qwen2 written as the Llama with
biases everywhere.

A Llama with `attention_bias` and `mlp_bias` computes the same function as either family once the
biases it did not have are zero. A vector added to the residual stream after a block is a bias of
that block's last projection.
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

RESIDUAL, LAST_BIAS = 'layers/residual', 'layers/mlp/down/bias'
# Families whose blocks add the MLP's output to the stream as it is, and differ from Llama in
# nothing but biases.
FOLDABLE = ('llama', 'qwen2')


def with_biases(base: models.Model, delta: PyTree) -> tuple[models.Model, PyTree]:
  """The base with a (zero) parameter for every bias the delta changes, and the delta with residual
  vectors as biases.

  Both are returned as they are if the base has all the parameters already.

  Raises:
    InputError: the base is of a family that no checkpoint with such biases exists for.
  """
  config, family, folded = architecture(base.config, base.family, delta)
  if config is base.config:
    return base, delta
  params = tree.flatten(base.params)
  dtype = params['final_norm/scale'].dtype
  zeros = {
    path: jnp.zeros(site.shape, dtype)
    for path, site in models.sites(config).items()
    if path not in params
  }
  params |= zeros
  return dataclasses.replace(
    base, config=config, family=family, params=tree.unflatten(params)
  ), folded


def architecture(
  base: models.ModelConfig, family: str, delta: PyTree
) -> tuple[models.ModelConfig, str, PyTree]:
  """The config and the family that have a parameter for all that the delta changes, and the delta
  of those parameters.

  Raises:
    InputError: as `with_biases`.
  """
  flat = tree.flatten(delta, models.is_delta_leaf)
  missing = sorted(path for path in flat if path not in models.sites(base))
  if not missing:
    return base, family, delta
  if family not in FOLDABLE:
    raise InputError(
      f'the direction changes {", ".join(missing)}, for which a {family} checkpoint has no tensor: '
      'it cannot be merged, only applied unmerged'
    )
  if RESIDUAL in flat:
    residual, last = flat.pop(RESIDUAL), flat.get(LAST_BIAS)
    flat[LAST_BIAS] = (
      residual if last is None else Dense(np.asarray(residual.value) + np.asarray(last.value))
    )
  attention = (
    base.qkv_bias or base.o_bias or any(path.startswith('layers/attn/') for path in missing)
  )
  mlp = base.mlp_bias or any(path.startswith('layers/mlp/') or path == RESIDUAL for path in missing)
  config = dataclasses.replace(base, qkv_bias=attention, o_bias=attention, mlp_bias=mlp)
  return config, 'llama', tree.unflatten(flat)
