"""Qwen2 and Qwen2.5 (dense). Source: transformers `modeling_qwen2.py`."""
from weightsteer_jax.errors import InputError
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families.family import (PRE_NORM_TENSORS, Family, Fields, read_activation, read_rope,
                                                    write_sizes)


def read(fields: Fields) -> ModelConfig:
  """The model that a Qwen2 `config.json` describes."""
  width, heads = fields.count('hidden_size'), fields.count('num_attention_heads')
  layers = fields.count('num_hidden_layers')
  max_positions = fields.count('max_position_embeddings', 32768)
  fields.expect('use_sliding_window', False)
  fields.ignore('sliding_window', 'max_window_layers')  # Without effect while use_sliding_window is off.
  kinds = fields.take('layer_types', ['full_attention'] * layers, kind=list)
  if kinds != ['full_attention'] * layers:
    raise InputError(
        f"{fields.where}: 'layer_types' is {kinds}, which is not supported; supported: 'full_attention', {layers} times"
    )
  fields.expect('attention_dropout', 0.0)
  fields.expect('use_mrope', False)
  return ModelConfig(vocab_size=fields.count('vocab_size'),
                     num_layers=layers,
                     width=width,
                     num_heads=heads,
                     num_kv_heads=fields.count('num_key_value_heads'),
                     head_dim=fields.count('head_dim', width // heads),
                     mlp_width=fields.count('intermediate_size'),
                     norm_eps=fields.positive('rms_norm_eps', 1e-6),
                     rope=read_rope(fields, max_positions=max_positions),
                     tied=fields.take('tie_word_embeddings', False, kind=bool),
                     qkv_bias=True,
                     o_bias=False,
                     mlp_bias=False,
                     activation=read_activation(fields),
                     max_positions=max_positions)


def write(config: ModelConfig) -> dict:
  """The fields of a Qwen2 `config.json` that describe this model.

  Raises:
    InputError: the model has biases that are not Qwen2's.
  """
  if not config.qkv_bias or config.o_bias or config.mlp_bias:
    raise InputError(
        'a Qwen2 checkpoint has biases on q, k and v and nowhere else; this model differs: save it as llama')
  return write_sizes(config) | {'head_dim': config.head_dim, 'use_sliding_window': False}


FAMILY = Family('qwen2', 'Qwen2ForCausalLM', read, write, PRE_NORM_TENSORS)
