"""Llama 2, 3, 3.1, 3.2, 3.3 and models of the same architecture. Source: transformers `modeling_llama.py`."""
from weightsteer_jax.errors import InputError
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families.family import (PRE_NORM_TENSORS, Family, Fields, read_activation, read_rope,
                                                    write_sizes)


def read(fields: Fields) -> ModelConfig:
  """The model that a Llama `config.json` describes."""
  width, heads = fields.count('hidden_size'), fields.count('num_attention_heads')
  max_positions = fields.count('max_position_embeddings', 2048)
  attention_bias = fields.take('attention_bias', False, kind=bool)
  fields.ignore(
      'pretraining_tp')  # Splits matmuls without changing what they compute; older checkpoints were saved with it.
  fields.expect('rope_interleaved', False)
  fields.expect('attention_dropout', 0.0)
  fields.expect('mlp_dropout', 0.0)
  return ModelConfig(
      vocab_size=fields.count('vocab_size'), num_layers=fields.count('num_hidden_layers'), width=width, num_heads=heads,
      num_kv_heads=fields.count('num_key_value_heads', heads), head_dim=fields.count('head_dim', width // heads),
      mlp_width=fields.count('intermediate_size'), norm_eps=fields.positive('rms_norm_eps', 1e-6),
      rope=read_rope(fields, max_positions=max_positions), tied=fields.take('tie_word_embeddings', False, kind=bool),
      qkv_bias=attention_bias, o_bias=attention_bias, mlp_bias=fields.take('mlp_bias', False, kind=bool),
      activation=read_activation(fields), max_positions=max_positions)


def write(config: ModelConfig) -> dict:
  """The fields of a Llama `config.json` that describe this model.

  Raises:
    InputError: the model has biases on some of the attention's projections only.
  """
  if config.qkv_bias != config.o_bias:
    raise InputError(
        'a Llama checkpoint has biases on all of q, k, v and o or on none; this model differs: save it as qwen2')
  return write_sizes(config) | {
      'head_dim': config.head_dim, 'attention_bias': config.qkv_bias, 'mlp_bias': config.mlp_bias
  }


FAMILY = Family('llama', 'LlamaForCausalLM', read, write, PRE_NORM_TENSORS)
