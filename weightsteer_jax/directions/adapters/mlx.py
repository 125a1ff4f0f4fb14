"""Adapters of mlx-lm under PEFT's names: `adapters.safetensors` and its `adapter_config.json`.

| mlx-lm | PEFT |
|---|---|
| `X.lora_a` [inputs, R], `X.lora_b` [R, outputs] | `X.lora_A.weight` [R, inputs], `X.lora_B.weight` [outputs, R] |
| the same of an embedding, [V, R] and [R, D] | `X.lora_embedding_A` [R, V], `X.lora_embedding_B` [D, R] |
| the same of experts, [E, R, inputs] and [E, outputs, R] of `switch_mlp.Y` | pairs of `experts.{e}.Y` |
| `X.m` (dora) | `X.lora_magnitude_vector` |
| `X.weight`, `X.bias` (full) | a module saved whole |
| `scale` | `lora_alpha / r`: mlx-lm does not divide by the rank |

Blocks are adapted from the last one on (`num_layers`; all of them if that is below 1), and a tied
embedding at both ends.

Source: mlx-lm 0.32.2, mlx_lm/tuner/{utils,lora,dora}.py, and `sanitize` in mlx_lm/models.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean, listed

WEIGHTS = 'adapters.safetensors'
LORA = 'lora'
DORA = 'dora'
FULL = 'full'
TYPES = (LORA, DORA, FULL)
EMBEDDING = 'model.embed_tokens'
# mlx-lm stacks the experts of a layer under this name.
STACK = 'switch_mlp'
# Names of the projections of an expert in Mixtral's checkpoints; mlx-lm has one set of names.
MIXTRAL = {'gate_proj': 'w1', 'down_proj': 'w2', 'up_proj': 'w3'}
MIXTRAL_BLOCK = 'block_sparse_moe'


def is_config(config: Mapping[str, Any]) -> bool:
  """Whether the contents of an adapter_config.json are mlx-lm's, not PEFT's."""
  return 'peft_type' not in config and bool({'fine_tune_type', 'lora_parameters'} & set(config))


def peft_config(config: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """The settings as PEFT would write them; `mlx` holds what PEFT has no word for.

  Raises:
    InputError: if the kind of fine-tune is unknown, or rank or scale are missing.
  """
  kind = config.get('fine_tune_type', LORA)
  if kind not in TYPES:
    raise InputError(
      f"{path}: fine_tune_type is {kind!r}{did_you_mean(str(kind), TYPES)}; mlx-lm has "
      f'{", ".join(TYPES)}'
    )
  parameters = config.get('lora_parameters') or {}
  rank = parameters.get('rank')
  scale = parameters.get('scale')
  # The weights of a full fine-tune have no factors.
  if kind == FULL:
    rank = scale = 1
  if not rank or not scale:
    raise InputError(
      f'{path}: lora_parameters must hold rank and scale, not 0, as mlx-lm writes them; it is '
      f'{parameters}'
    )
  return {
    'peft_type': 'LORA',
    'base_model_name_or_path': config.get('model') or '',
    'r': rank,
    'lora_alpha': scale * rank,
    'use_dora': kind == DORA,
    'mlx': {
      'fine_tune_type': kind,
      'num_layers': config.get('num_layers'),
      'keys': parameters.get('keys'),
    },
  }


def peft_tensors(
  saved: Mapping[str, np.ndarray], config: Mapping[str, Any], folder: pathlib.Path
) -> dict[str, np.ndarray]:
  """The tensors of an adapter by PEFT's names.

  Args:
    config: of `peft_config`.

  Raises:
    InputError: if the layers do not all hold the same modules, so that some are missing.
  """
  _check_layers(saved, folder)
  if config['mlx']['fine_tune_type'] == FULL:
    return dict(saved)
  tensors: dict[str, np.ndarray] = {}
  for name, tensor in saved.items():
    module, _, part = name.rpartition('.')
    if part not in ('lora_a', 'lora_b', 'm'):
      raise InputError(
        f"{folder / WEIGHTS}: the tensor '{name}' is none that mlx-lm saves of a "
        f'{config["mlx"]["fine_tune_type"]} fine-tune (lora_a, lora_b, m)'
      )
    if part == 'm':
      tensors[f'{module}.lora_magnitude_vector'] = tensor
    elif tensor.ndim == 3:
      tensors |= _experts(module, part, tensor)
    elif module == EMBEDDING:
      letter = part[-1].upper()
      tensors[f'{module}.lora_embedding_{letter}'] = tensor.T
    else:
      letter = part[-1].upper()
      tensors[f'{module}.lora_{letter}.weight'] = tensor.T
  return tensors


def _experts(module: str, part: str, tensor: np.ndarray) -> dict[str, np.ndarray]:
  """{PEFT's name: factor} of each expert of a stack, whose factors lie as PEFT's do.

  >>> list(_experts('model.layers.0.mlp.switch_mlp.up_proj', 'lora_a', np.zeros((2, 1, 1))))[1]
  'model.layers.0.mlp.experts.1.up_proj.lora_A.weight'
  """
  block, _, projection = module.partition(f'.{STACK}.')
  if block.endswith(MIXTRAL_BLOCK):
    projection = MIXTRAL.get(projection, projection)
  letter = part[-1].upper()
  tensors = {}
  for expert, factor in enumerate(tensor):
    tensors[f'{block}.experts.{expert}.{projection}.lora_{letter}.weight'] = factor
  return tensors


def _check_layers(saved: Mapping[str, np.ndarray], folder: pathlib.Path) -> None:
  """Raises InputError if a layer lacks a tensor that another has."""
  names_by_layer: dict[int, set[str]] = {}
  for name in saved:
    if found := re.fullmatch(r'model\.layers\.(\d+)\.(.+)', name):
      names_by_layer.setdefault(int(found[1]), set()).add(found[2])
  if not names_by_layer:
    return
  everything = set().union(*names_by_layer.values())
  for layer in range(min(names_by_layer), max(names_by_layer) + 1):
    missing = everything - names_by_layer.get(layer, set())
    if missing:
      raise InputError(
        f'{folder / WEIGHTS}: layer {layer} lacks {listed(sorted(missing), 3)}, which other layers '
        'have; mlx-lm adapts the same modules of each layer: copy the whole file again'
      )
