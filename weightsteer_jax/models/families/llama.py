"""Llama 2, 3, 3.1, 3.2, 3.3 and models of the same architecture.

Source: transformers `modeling_llama.py`.
"""

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
  """The model described by a `config.json` of Llama."""
  attention_bias = fields.take('attention_bias', False, kind=bool)
  # Splits matmuls without changing what they compute; older checkpoints were saved with it.
  fields.ignore('pretraining_tp')
  fields.expect('rope_interleaved', False)
  fields.expect('attention_dropout', 0.0)
  fields.expect('mlp_dropout', 0.0)
  sizes = read_sizes(fields, max_positions=2048)
  return ModelConfig(
    **sizes,
    rope=read_rope(fields, max_positions=sizes['max_positions']),
    qkv_bias=attention_bias,
    o_bias=attention_bias,
    mlp_bias=fields.take('mlp_bias', False, kind=bool),
    activation=read_activation(fields),
  )


def describe(config: ModelConfig) -> dict:
  """This model as the fields of a `config.json` of Llama."""
  return write_sizes(config) | {'attention_bias': config.qkv_bias, 'mlp_bias': config.mlp_bias}


FAMILY = Family(
  'llama',
  'LlamaForCausalLM',
  'Llama 2, 3, 3.1, 3.2, 3.3, and models of the same architecture',
  read,
  describe,
  PRE_NORM_TENSORS,
)
