"""Granite 3 (dense). Source: transformers `modeling_granite.py`."""

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
  """The model described by a `config.json` of Granite."""
  sizes = read_sizes(fields, max_positions=2048)
  bias = fields.take('attention_bias', False, kind=bool)
  # Published as 0.1, the value in pretraining; nothing is dropped when the model is run.
  fields.ignore('attention_dropout')
  return ModelConfig(
    **sizes,
    rope=read_rope(fields, max_positions=sizes['max_positions']),
    qkv_bias=bias,
    o_bias=bias,
    mlp_bias=fields.take('mlp_bias', False, kind=bool),
    activation=read_activation(fields),
    # In place of 1 / sqrt(head_dim), not on top of the root.
    score_scale=fields.positive('attention_multiplier', 1.0),
    embedding_scale=fields.positive('embedding_multiplier', 1.0),
    residual_scale=fields.positive('residual_multiplier', 1.0),
    logit_divisor=fields.positive('logits_scaling', 1.0),
  )


def describe(config: ModelConfig) -> dict:
  """This model as the fields of a `config.json` of Granite."""
  scale = config.head_dim**-0.5 if config.score_scale is None else config.score_scale
  return write_sizes(config) | {
    'attention_bias': config.qkv_bias,
    'mlp_bias': config.mlp_bias,
    'attention_multiplier': scale,
    'embedding_multiplier': config.embedding_scale,
    'residual_multiplier': config.residual_scale,
    'logits_scaling': config.logit_divisor,
  }


FAMILY = Family(
  'granite',
  'GraniteForCausalLM',
  'Granite 3, dense: multipliers of embeddings, attention scores, residual additions and logits',
  read,
  describe,
  PRE_NORM_TENSORS,
)
