"""OLMo 2. Source: transformers `modeling_olmo2.py`, arXiv 2501.00656."""

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families.family import (
  ATTENTION,
  EMBEDDING,
  END,
  GATED_MLP,
  Family,
  TensorRow,
  block_norms,
  read_activation,
  read_rope,
  read_sizes,
  write_sizes,
)
from weightsteer_jax.models.families.fields import Fields

TENSORS = (
  *EMBEDDING,
  *block_norms(
    attn_post_norm='post_attention_layernorm', mlp_post_norm='post_feedforward_layernorm'
  ),
  *ATTENTION,
  TensorRow('layers/attn/q_norm/scale', 'model.layers.{l}.self_attn.q_norm.weight', '(N H) -> N H'),
  TensorRow('layers/attn/k_norm/scale', 'model.layers.{l}.self_attn.k_norm.weight', '(K H) -> K H'),
  *GATED_MLP,
  *END,
)


def read(fields: Fields) -> ModelConfig:
  """The model described by a `config.json` of OLMo 2."""
  sizes = read_sizes(fields, max_positions=2048, norm_eps=1e-5)
  bias = fields.take('attention_bias', False, kind=bool)
  fields.expect('attention_dropout', 0.0)
  return ModelConfig(
    **sizes,
    rope=read_rope(fields, max_positions=sizes['max_positions']),
    qkv_bias=bias,
    o_bias=bias,
    mlp_bias=False,
    activation=read_activation(fields),
    # Attention and MLP read the residual stream as it is; only what they add is normed.
    pre_norm=False,
    post_norm=True,
    # All heads of a projection share one mean square (transformers' Olmo2Attention).
    qk_norm='projection',
  )


def describe(config: ModelConfig) -> dict:
  """This model as the fields of a `config.json` of OLMo 2."""
  return write_sizes(config) | {'attention_bias': config.qkv_bias}


FAMILY = Family(
  'olmo2',
  'Olmo2ForCausalLM',
  'OLMo 2: norms after attention and MLP only, queries and keys normed as a whole',
  read,
  describe,
  TENSORS,
)
