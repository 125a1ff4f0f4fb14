"""Mixtral: Mistral with a mixture of experts for every MLP. Source: transformers `modeling_mixtral.py`."""
from weightsteer_jax.errors import InputError
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families.family import (PRE_NORM_TENSORS, Family, Fields, TensorRow, read_activation,
                                                    read_rope, write_sizes)

MOE = 'model.layers.{l}.block_sparse_moe'


def read(fields: Fields) -> ModelConfig:
  """The model that a Mixtral `config.json` describes."""
  width, heads = fields.count('hidden_size'), fields.count('num_attention_heads')
  max_positions = fields.count('max_position_embeddings', 131072)
  fields.expect('sliding_window')
  fields.expect('attention_dropout', 0.0)
  fields.expect('router_jitter_noise', 0.0)  # In transformers it is added in training.
  fields.ignore('output_router_logits', 'router_aux_loss_coef')  # Of a training loss that there is not here.
  return ModelConfig(
      vocab_size=fields.count('vocab_size'), num_layers=fields.count('num_hidden_layers'), width=width, num_heads=heads,
      num_kv_heads=fields.count('num_key_value_heads', 8), head_dim=fields.count('head_dim', width // heads),
      mlp_width=fields.count('intermediate_size'), norm_eps=fields.positive('rms_norm_eps', 1e-5),
      rope=read_rope(fields, max_positions=max_positions), tied=fields.take('tie_word_embeddings', False, kind=bool),
      qkv_bias=False, o_bias=False, mlp_bias=False, activation=read_activation(fields), max_positions=max_positions,
      num_experts=fields.count('num_local_experts', 8), experts_per_token=fields.count('num_experts_per_tok', 2),
      normalise_choices=True)


def write(config: ModelConfig) -> dict:
  """The fields of a Mixtral `config.json` that describe this model.

  Raises:
    InputError: the model has biases, no experts, or weights of them that do not sum to one.
  """
  if config.qkv_bias or config.o_bias or config.mlp_bias:
    raise InputError('a Mixtral checkpoint has no biases; this model has some')
  if not config.num_experts or not config.normalise_choices:
    raise InputError('a Mixtral checkpoint has experts whose weights sum to one; this model has not')
  return write_sizes(config) | {'head_dim': config.head_dim, 'num_local_experts': config.num_experts,
                                'num_experts_per_tok': config.experts_per_token}


TENSORS = tuple(row for row in PRE_NORM_TENSORS if '/mlp/' not in row.path) + (
    TensorRow('layers/mlp/router/kernel', f'{MOE}.gate.weight', 'E D -> D E'),
    TensorRow('layers/mlp/experts/gate/kernel', f'{MOE}.experts.{{e}}.w1.weight', 'F D -> D F'),
    TensorRow('layers/mlp/experts/up/kernel', f'{MOE}.experts.{{e}}.w3.weight', 'F D -> D F'),
    TensorRow('layers/mlp/experts/down/kernel', f'{MOE}.experts.{{e}}.w2.weight', 'D F -> F D'),
)
FAMILY = Family('mixtral', 'MixtralForCausalLM', read, write, TENSORS)
