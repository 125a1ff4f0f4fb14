"""Adapters of mlx-lm under PEFT's names: `adapters.safetensors` and its `adapter_config.json`.

| mlx-lm | PEFT |
|---|---|
| `X.lora_a` [inputs, R] | `X.lora_A.weight` [R, inputs] |
| `X.lora_b` [R, outputs] | `X.lora_B.weight` [outputs, R] |
| `lora_a` [V, R], `lora_b` [R, D] of an embedding | `lora_embedding_A` [R, V], `_B` [D, R] |
| [E, R, inputs], [E, outputs, R] of `switch_mlp.Y` | pairs of `experts.{e}.Y` |
| `X.m` (dora) | `X.lora_magnitude_vector` |
| `X.weight`, `X.bias` (full) | a module saved whole |
| `scale` | `lora_alpha / r`: mlx-lm does not divide by the rank |

Of the blocks, the last `num_layers` are adapted (all, if that is below 1); a tied embedding changes
at both ends.

Source: mlx-lm 0.32.2, mlx_lm/tuner/{utils,lora,dora}.py, and `sanitize` in mlx_lm/models.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

WEIGHTS = 'adapters.safetensors'
# Where a config as read keeps what PEFT has no word for.
KEY = 'mlx'
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


def is_full(config: Mapping[str, Any]) -> bool:
  """Whether a config as read is of a full fine-tune."""
  return config.get(KEY, {}).get('fine_tune_type') == FULL


def peft_config(config: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """The settings as PEFT would write them; under KEY, what PEFT has no word for.

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
    KEY: {
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
    InputError: if a tensor is none that mlx-lm saves.
  """
  if config[KEY]['fine_tune_type'] == FULL:
    return _full(saved)
  tensors: dict[str, np.ndarray] = {}
  for name, tensor in saved.items():
    module, _, part = name.rpartition('.')
    if part not in ('lora_a', 'lora_b', 'm'):
      raise InputError(
        f"{folder / WEIGHTS}: the tensor '{name}' is none that mlx-lm saves of a "
        f'{config[KEY]["fine_tune_type"]} fine-tune (lora_a, lora_b, m)'
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


def _full(saved: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The weights of a full fine-tune, each expert of a stack under its own name."""
  tensors: dict[str, np.ndarray] = {}
  for name, tensor in saved.items():
    module, _, part = name.rpartition('.')
    if f'.{STACK}.' not in name:
      tensors[name] = tensor
      continue
    for expert, weight in enumerate(tensor):
      tensors[f'{expert_name(module, expert)}.{part}'] = weight
  return tensors


def expert_name(module: str, expert: int) -> str:
  """The name in a checkpoint of an expert's module of a stack.

  >>> expert_name('model.layers.0.mlp.switch_mlp.up_proj', 3)
  'model.layers.0.mlp.experts.3.up_proj'
  >>> expert_name('model.layers.0.block_sparse_moe.switch_mlp.up_proj', 3)
  'model.layers.0.block_sparse_moe.experts.3.w3'
  """
  block, _, projection = module.partition(f'.{STACK}.')
  if block.endswith(MIXTRAL_BLOCK):
    projection = MIXTRAL.get(projection, projection)
  return f'{block}.experts.{expert}.{projection}'


def _experts(module: str, part: str, tensor: np.ndarray) -> dict[str, np.ndarray]:
  """{PEFT's name: factor} of each expert of a stack, whose factors lie as PEFT's do.

  >>> list(_experts('model.layers.0.mlp.switch_mlp.up_proj', 'lora_a', np.zeros((2, 1, 1))))[1]
  'model.layers.0.mlp.experts.1.up_proj.lora_A.weight'
  """
  letter = part[-1].upper()
  tensors = {}
  for expert, factor in enumerate(tensor):
    tensors[f'{expert_name(module, expert)}.lora_{letter}.weight'] = factor
  return tensors
