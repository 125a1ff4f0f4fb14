"""Qwen3 with a mixture of experts for every MLP. Source: transformers `modeling_qwen3_moe.py`."""

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families import mixtral
from weightsteer_jax.models.families.family import (
  ATTENTION,
  EMBEDDING,
  END,
  HEAD_QK_NORMS,
  PRE_NORMS,
  Family,
  read_activation,
  read_rope,
  read_sizes,
  write_sizes,
)
from weightsteer_jax.models.families.fields import Fields
from weightsteer_jax.runtime.errors import InputError


def read(fields: Fields) -> ModelConfig:
  """The model described by a `config.json` of Qwen3-MoE; all layers are local, or none is."""
  sizes = read_sizes(fields, max_positions=32768, shared_heads=False)
  layers = tuple(range(sizes['num_layers']))
  _refuse_dense_layers(fields, layers)
  sizes['mlp_width'] = fields.count('moe_intermediate_size', 768)
  # The width of dense layers, of which there are none.
  fields.handling['intermediate_size'] = 'without effect'
  bias = fields.take('attention_bias', False, kind=bool)
  window = fields.optional(fields.count, 'sliding_window', 4096)
  window = window if fields.take('use_sliding_window', False, kind=bool) else None
  fields.ignore('max_window_layers')
  # These fields belong to transformers' auxiliary loss, which does not exist here.
  fields.ignore('output_router_logits', 'router_aux_loss_coef')
  fields.expect('attention_dropout', 0.0)
  return ModelConfig(
    **sizes,
    rope=read_rope(fields, max_positions=sizes['max_positions']),
    qkv_bias=bias,
    o_bias=bias,
    mlp_bias=False,
    activation=read_activation(fields),
    qk_norm='head',
    window=window,
    local_layers=() if window is None else layers,
    **mixtral.read_experts(fields, num_experts=128, experts_per_token=8),
    normalise_choices=fields.take('norm_topk_prob', False, kind=bool),
  )


def _refuse_dense_layers(fields: Fields, layers: tuple[int, ...]) -> None:
  step = fields.count('decoder_sparse_step', 1)
  named = fields.take('mlp_only_layers', [], kind=list)
  dense = [i for i in layers if i in named or (i + 1) % step]
  if dense:
    raise InputError(
      f"{fields.where}: 'decoder_sparse_step' {step} and 'mlp_only_layers' {named} make the MLP of "
      f'layers {", ".join(map(str, dense))} dense and the others a mixture of experts, which is '
      'not supported: the layers are stacked into one, so all of them must be of one kind'
    )


def describe(config: ModelConfig) -> dict:
  """This model as the fields of a `config.json` of Qwen3-MoE."""
  return write_sizes(config) | {
    'moe_intermediate_size': config.mlp_width,
    'num_local_experts': config.num_experts,
    'num_experts': config.num_experts,
    'num_experts_per_tok': config.experts_per_token,
    'norm_topk_prob': config.normalise_choices,
    'attention_bias': config.qkv_bias,
    'use_sliding_window': config.window is not None,
    'sliding_window': config.window,
    'decoder_sparse_step': 1,
    'mlp_only_layers': [],
  }


EXPERTS = mixtral.experts(
  'mlp.gate', *(f'mlp.experts.{{e}}.{name}_proj' for name in ('gate', 'up', 'down'))
)
FAMILY = Family(
  'qwen3_moe',
  'Qwen3MoeForCausalLM',
  'Qwen3-30B-A3B and its kind: a mixture of experts for every MLP',
  read,
  describe,
  (*EMBEDDING, *PRE_NORMS, *ATTENTION, *HEAD_QK_NORMS, *EXPERTS, *END),
)
