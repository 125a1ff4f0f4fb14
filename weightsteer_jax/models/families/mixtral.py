"""Mixtral: Mistral with a mixture of experts for every MLP.

Source: transformers `modeling_mixtral.py`.
"""

from typing import Any

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families.family import (
  ATTENTION,
  EMBEDDING,
  END,
  PRE_NORMS,
  Family,
  TensorRow,
  read_activation,
  read_rope,
  read_sizes,
  write_sizes,
)
from weightsteer_jax.models.families.fields import Fields
from weightsteer_jax.runtime.errors import InputError


def read(fields: Fields) -> ModelConfig:
  """The model described by a `config.json` of Mixtral; all layers are local, or none is."""
  sizes = read_sizes(fields, max_positions=131072, shared_heads=False, norm_eps=1e-5)
  window = fields.optional(fields.count, 'sliding_window', None)
  fields.expect('attention_dropout', 0.0)
  fields.expect('router_jitter_noise', 0.0)
  # These fields belong to transformers' auxiliary loss, which does not exist here.
  fields.ignore('output_router_logits', 'router_aux_loss_coef')
  return ModelConfig(
    **sizes,
    rope=read_rope(fields, max_positions=sizes['max_positions'], theta=1e6),
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    activation=read_activation(fields),
    window=window,
    local_layers=() if window is None else tuple(range(sizes['num_layers'])),
    **read_experts(fields, num_experts=8, experts_per_token=2),
    # transformers' MixtralTopKRouter divides by the sum always; there is no field.
    normalise_choices=True,
  )


def read_experts(fields: Fields, *, num_experts: int, experts_per_token: int) -> dict[str, Any]:
  """`num_experts` and `experts_per_token`; the arguments stand in for absent fields.

  Raises:
    InputError: if a token goes through more experts than there are.
  """
  keys = ('num_local_experts', 'num_experts')
  named = {fields.optional(fields.count, key, None) for key in keys} - {None}
  if len(named) > 1:
    raise InputError(
      f"{fields.where}: 'num_local_experts' and 'num_experts' are two names for one number, "
      "but differ"
    )
  experts = named.pop() if named else num_experts
  choices = fields.count('num_experts_per_tok', experts_per_token)
  if choices > experts:
    raise InputError(
      f"{fields.where}: 'num_experts_per_tok' is {choices}, but there are {experts} experts"
    )
  return dict(num_experts=experts, experts_per_token=choices)


def describe(config: ModelConfig) -> dict:
  """This model as the fields of a `config.json` of Mixtral."""
  return write_sizes(config) | {
    'sliding_window': config.window,
    'num_local_experts': config.num_experts,
    'num_experts_per_tok': config.experts_per_token,
  }


def experts(router: str, gate: str, up: str, down: str) -> tuple[TensorRow, ...]:
  """Rows of a mixture of experts that is stored expert by expert.

  The arguments are Hugging Face's names within a layer.
  """
  return (
    TensorRow('layers/mlp/router/kernel', f'model.layers.{{l}}.{router}.weight', 'E D -> D E'),
    TensorRow('layers/mlp/experts/gate/kernel', f'model.layers.{{l}}.{gate}.weight', 'F D -> D F'),
    TensorRow('layers/mlp/experts/up/kernel', f'model.layers.{{l}}.{up}.weight', 'F D -> D F'),
    TensorRow('layers/mlp/experts/down/kernel', f'model.layers.{{l}}.{down}.weight', 'D F -> F D'),
  )


# In Mixtral's names w1 is gate, w3 is up and w2 is down.
EXPERTS = experts(
  'block_sparse_moe.gate',
  *(f'block_sparse_moe.experts.{{e}}.{name}' for name in ('w1', 'w3', 'w2')),
)
FAMILY = Family(
  'mixtral',
  'MixtralForCausalLM',
  'Mixtral: a mixture of experts for every MLP',
  read,
  describe,
  (*EMBEDDING, *PRE_NORMS, *ATTENTION, *EXPERTS, *END),
  renamed=(('block_sparse_moe', 'mlp'),),
)
