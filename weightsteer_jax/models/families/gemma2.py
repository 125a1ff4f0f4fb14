"""Gemma 2. Source: transformers `modeling_gemma2.py`, arXiv 2408.00118."""

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families.family import (
  ATTENTION,
  EMBEDDING,
  END,
  GATED_MLP,
  Family,
  block_norms,
  layer_types,
  read_activation,
  read_rope,
  read_sizes,
  read_windows,
  write_sizes,
)
from weightsteer_jax.models.families.fields import Fields

TENSORS = (
  *EMBEDDING,
  *block_norms(
    attn_norm='input_layernorm',
    attn_post_norm='post_attention_layernorm',
    mlp_norm='pre_feedforward_layernorm',
    mlp_post_norm='post_feedforward_layernorm',
  ),
  *ATTENTION,
  *GATED_MLP,
  *END,
)


def read(fields: Fields) -> ModelConfig:
  """The model described by a `config.json` of Gemma 2."""
  sizes = read_sizes(fields, max_positions=8192, shared_heads=False, head_dim=256, tied=True)
  window = fields.optional(fields.count, 'sliding_window', 4096)
  # A second name of the window, beside the first in published configs.
  fields.expect('sliding_window_size', window)
  # Without `layer_types`, every other layer is local.
  kinds = [('sliding_attention', 'full_attention')[i % 2] for i in range(sizes['num_layers'])]
  return ModelConfig(
    **sizes,
    **read_windows(fields, sizes['num_layers'], default=kinds, window=window),
    **read_gemma(fields, sizes['width']),
    rope=read_rope(fields, max_positions=sizes['max_positions']),
    score_softcap=fields.optional(fields.positive, 'attn_logit_softcapping', 50.0),
    logit_softcap=fields.optional(fields.positive, 'final_logit_softcapping', 30.0),
  )


def read_gemma(fields: Fields, width: int) -> dict:
  """The fields of a ModelConfig that Gemma 2 and 3 share, beyond sizes."""
  bias = fields.take('attention_bias', False, kind=bool)
  activation = read_activation(fields, 'hidden_activation', 'gelu_pytorch_tanh')
  # transformers reads `hidden_activation` only.
  fields.expect('hidden_act', activation)
  fields.expect('attention_dropout', 0.0)
  fields.expect('use_bidirectional_attention', False)
  return dict(
    qkv_bias=bias,
    o_bias=bias,
    mlp_bias=False,
    activation=activation,
    post_norm=True,
    # Stored scales are 1 less than what multiplies (transformers' Gemma2RMSNorm).
    norm_offset=1.0,
    # In place of 1 / sqrt(head_dim): in some sizes the two differ.
    score_scale=fields.count('query_pre_attn_scalar', 256) ** -0.5,
    # No field of a config: transformers takes the square root of the width, always.
    embedding_scale=width**0.5,
  )


def describe(config: ModelConfig) -> dict:
  """This model as the fields of a `config.json` of Gemma 2."""
  fields = write_sizes(config) | {
    'hidden_activation': config.activation,
    'attention_bias': config.qkv_bias,
    'sliding_window': config.window,
    'layer_types': layer_types(config),
    'query_pre_attn_scalar': write_scalar(config),
    'attn_logit_softcapping': config.score_softcap,
    'final_logit_softcapping': config.logit_softcap,
  }
  # Gemma says `hidden_activation`.
  fields.pop('hidden_act')
  return fields


def write_scalar(config: ModelConfig) -> int:
  """`query_pre_attn_scalar`, a whole number."""
  return config.head_dim if config.score_scale is None else max(1, round(config.score_scale**-2))


FAMILY = Family(
  'gemma2',
  'Gemma2ForCausalLM',
  'Gemma 2: norms before and after with 1 added to their scale, soft-capped scores and logits, '
  'every other layer local, scaled embeddings',
  read,
  describe,
  TENSORS,
)
