"""Mistral and models of the same architecture. Source: transformers `modeling_mistral.py`."""

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families.family import (
  PRE_NORM_TENSORS,
  Family,
  read_activation,
  read_rope,
  read_sizes,
  write_sizes,
)
from weightsteer_jax.models.families.fields import Fields


def read(fields: Fields) -> ModelConfig:
  """The model described by a `config.json` of Mistral; all layers are local, or none is."""
  sizes = read_sizes(fields, max_positions=131072, shared_heads=False)
  window = fields.optional(fields.count, 'sliding_window', 4096)
  fields.expect('attention_dropout', 0.0)
  local = () if window is None else tuple(range(sizes['num_layers']))
  return ModelConfig(
    **sizes,
    rope=read_rope(fields, max_positions=sizes['max_positions']),
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    activation=read_activation(fields),
    local_layers=local,
    window=window,
  )


def describe(config: ModelConfig) -> dict:
  """This model as the fields of a `config.json` of Mistral."""
  return write_sizes(config) | {'sliding_window': config.window}


FAMILY = Family(
  'mistral',
  'MistralForCausalLM',
  'Mistral 7B and models of the same architecture: a sliding window',
  read,
  describe,
  PRE_NORM_TENSORS,
)
