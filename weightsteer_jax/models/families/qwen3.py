"""Qwen3 (dense). Source: transformers `modeling_qwen3.py`."""

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families.family import (
  HEAD_QK_NORMS,
  PRE_NORM_TENSORS,
  Family,
  read_activation,
  read_rope,
  read_sizes,
  write_sizes,
)
from weightsteer_jax.models.families.fields import Fields
from weightsteer_jax.models.families.qwen2 import read_last_layers_local, write_windows


def read(fields: Fields) -> ModelConfig:
  """The model described by a `config.json` of Qwen3."""
  sizes = read_sizes(fields, max_positions=32768, shared_heads=False, head_dim=128)
  bias = fields.take('attention_bias', False, kind=bool)
  fields.expect('attention_dropout', 0.0)
  return ModelConfig(
    **sizes,
    **read_last_layers_local(fields, sizes['num_layers']),
    rope=read_rope(fields, max_positions=sizes['max_positions']),
    qkv_bias=bias,
    o_bias=bias,
    mlp_bias=False,
    activation=read_activation(fields),
    # Each head has its own mean square, and all heads share the scale.
    qk_norm='head',
  )


def describe(config: ModelConfig) -> dict:
  """This model as the fields of a `config.json` of Qwen3."""
  return write_sizes(config) | write_windows(config) | {'attention_bias': config.qkv_bias}


FAMILY = Family(
  'qwen3',
  'Qwen3ForCausalLM',
  'Qwen3, dense: queries and keys are normed head by head',
  read,
  describe,
  PRE_NORM_TENSORS + HEAD_QK_NORMS,
)
