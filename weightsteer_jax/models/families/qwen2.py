"""Qwen2 and Qwen2.5 (dense). Source: transformers `modeling_qwen2.py`."""

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families.family import (
  PRE_NORM_TENSORS,
  Family,
  layer_types,
  read_activation,
  read_rope,
  read_sizes,
  read_windows,
  write_sizes,
)
from weightsteer_jax.models.families.fields import Fields


def read(fields: Fields) -> ModelConfig:
  """The model described by a `config.json` of Qwen2."""
  sizes = read_sizes(fields, max_positions=32768, shared_heads=False)
  fields.expect('attention_dropout', 0.0)
  fields.expect('use_mrope', False)
  return ModelConfig(
    **sizes,
    **read_last_layers_local(fields, sizes['num_layers']),
    rope=read_rope(fields, max_positions=sizes['max_positions']),
    # transformers' Qwen2Attention has these biases whatever the config says.
    qkv_bias=True,
    o_bias=False,
    mlp_bias=False,
    activation=read_activation(fields),
  )


def read_last_layers_local(fields: Fields, layers: int) -> dict:
  """`local_layers` and `window`; with windows, layers from `max_window_layers` on are local."""
  in_use = fields.take('use_sliding_window', False, kind=bool)
  window = fields.optional(fields.count, 'sliding_window', 4096)
  first = fields.take('max_window_layers', 28, kind=int)
  if not in_use or window is None:
    first = layers
  local = range(first, layers)
  default = ['sliding_attention' if i in local else 'full_attention' for i in range(layers)]
  return read_windows(fields, layers, default=default, window=window if in_use else None)


def write_windows(config: ModelConfig) -> dict:
  """The fields that `read_last_layers_local` reads."""
  if not config.local_layers:
    return {'use_sliding_window': False}
  return {
    'use_sliding_window': True,
    'sliding_window': config.window,
    'layer_types': layer_types(config),
  }


def describe(config: ModelConfig) -> dict:
  """This model as the fields of a `config.json` of Qwen2."""
  return write_sizes(config) | write_windows(config)


FAMILY = Family(
  'qwen2', 'Qwen2ForCausalLM', 'Qwen2 and Qwen2.5, dense', read, describe, PRE_NORM_TENSORS
)
