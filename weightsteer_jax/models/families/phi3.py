"""Phi-3, Phi-3.5 and Phi-4-mini. Source: transformers `modeling_phi3.py`, arXiv 2404.14219."""

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families.family import (
  EMBEDDING,
  END,
  PRE_NORMS,
  Family,
  TensorRow,
  longrope_attention_factor,
  read_activation,
  read_rope_kind,
  read_sizes,
  rope_fields,
  write_sizes,
)
from weightsteer_jax.models.families.fields import Fields

ROPES = ('default', 'longrope')
# Tensors that hold several projections.
QKV = 'model.layers.{l}.self_attn.qkv_proj.weight'
GATE_UP = 'model.layers.{l}.mlp.gate_up_proj.weight'
TENSORS = (
  *EMBEDDING,
  *PRE_NORMS,
  TensorRow('layers/attn/q/kernel', QKV, '(N H) D -> D N H', after=('K H', 'K H')),
  TensorRow('layers/attn/k/kernel', QKV, '(K H) D -> D K H', before=('N H',), after=('K H',)),
  TensorRow('layers/attn/v/kernel', QKV, '(K H) D -> D K H', before=('N H', 'K H')),
  TensorRow('layers/attn/o/kernel', 'model.layers.{l}.self_attn.o_proj.weight', 'D (N H) -> N H D'),
  TensorRow('layers/mlp/gate/kernel', GATE_UP, 'F D -> D F', after=('F',)),
  TensorRow('layers/mlp/up/kernel', GATE_UP, 'F D -> D F', before=('F',)),
  TensorRow('layers/mlp/down/kernel', 'model.layers.{l}.mlp.down_proj.weight', 'D F -> F D'),
  *END,
)


def read(fields: Fields) -> ModelConfig:
  """The model described by a `config.json` of Phi-3; all layers are local, or none is."""
  sizes = read_sizes(fields, max_positions=4096, norm_eps=1e-5)
  window = fields.optional(fields.count, 'sliding_window', None)
  for key in ('attention_dropout', 'embd_pdrop', 'resid_pdrop'):
    fields.expect(key, 0.0)
  fields.expect('attention_bias', False)
  return ModelConfig(
    **sizes,
    **read_partial_rope(fields, sizes['max_positions']),
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    activation=read_activation(fields),
    local_layers=() if window is None else tuple(range(sizes['num_layers'])),
    window=window,
  )


def read_partial_rope(fields: Fields, max_positions: int) -> dict:
  """`rope` and `rotary_fraction`."""
  inside, theta = rope_fields(fields, 1e4)
  fraction = inside.positive('partial_rotary_factor', fields.positive('partial_rotary_factor', 1.0))
  original = fields.count('original_max_position_embeddings', 4096)
  # The field beside the rope's fields goes before the field among them.
  inside.ignore('original_max_position_embeddings')
  fields.handling['rope_type'] = f'only {", ".join(ROPES)}'
  rope = read_rope_kind(inside, theta, max_positions=max_positions, original=original, kinds=ROPES)
  return dict(rope=rope, rotary_fraction=fraction)


def describe(config: ModelConfig) -> dict:
  """This model as the fields of a `config.json` of Phi-3."""
  fields = write_sizes(config) | {
    'sliding_window': config.window,
    'partial_rotary_factor': config.rotary_fraction,
  }
  if config.rope.kind == 'longrope':
    original = config.rope.original_max_positions
    fields['original_max_position_embeddings'] = original
    stretch = config.max_positions / original
    if config.rope.attention_factor == longrope_attention_factor(stretch, original):
      # transformers before 4.50 refused the field, and computes the same number.
      del fields['rope_scaling']['attention_factor']
  return fields


FAMILY = Family(
  'phi3',
  'Phi3ForCausalLM',
  'Phi-3, Phi-3.5 and Phi-4-mini: projections stored together, part of a head rotated, longrope',
  read,
  describe,
  TENSORS,
)
