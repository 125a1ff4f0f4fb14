"""Gemma 3 for text alone. Source: transformers `modeling_gemma3.py`, arXiv 2503.19786."""

from typing import Any

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families import gemma2
from weightsteer_jax.models.families.family import (
  HEAD_QK_NORMS,
  ROPES,
  Family,
  read_rope_kind,
  read_sizes,
  read_windows,
  write_scaling,
)
from weightsteer_jax.models.families.fields import Fields
from weightsteer_jax.runtime.errors import InputError

GLOBAL, LOCAL = 'full_attention', 'sliding_attention'


def read(fields: Fields) -> ModelConfig:
  """The model described by a `config.json` of Gemma 3."""
  sizes = read_sizes(fields, max_positions=131072, shared_heads=False, head_dim=256, tied=True)
  period = fields.count('sliding_window_pattern', 6)
  # transformers writes this field, and never reads it.
  fields.ignore('_sliding_window_pattern')
  # Without `layer_types`, five layers of six are local.
  kinds = [LOCAL if (i + 1) % period else GLOBAL for i in range(sizes['num_layers'])]
  window = fields.optional(fields.count, 'sliding_window', 4096)
  # transformers has this field and passes it over.
  fields.expect('attn_logit_softcapping')
  return ModelConfig(
    **sizes,
    **read_windows(fields, sizes['num_layers'], default=kinds, window=window),
    **gemma2.read_gemma(fields, sizes['width']),
    **read_ropes(fields, sizes['max_positions']),
    qk_norm='head',
    logit_softcap=fields.optional(fields.positive, 'final_logit_softcapping', None),
  )


def read_ropes(fields: Fields, max_positions: int) -> dict[str, Any]:
  """The ropes of global and local layers.

  transformers 5 writes `rope_parameters` by kind of layer. Earlier versions write `rope_theta` and
  `rope_scaling` for global layers and `rope_local_base_freq` for local ones.
  """
  nested = fields.take('rope_parameters', {}, kind=dict)
  scaling = fields.take('rope_scaling', {}, kind=dict)
  thetas = {
    GLOBAL: fields.positive('rope_theta', 1e6),
    LOCAL: fields.positive('rope_local_base_freq', 1e4),
  }
  fields.handling['rope_type'] = f'only {", ".join(ROPES)}'
  if nested and scaling:
    raise InputError(
      f"{fields.where}: 'rope_parameters' and 'rope_scaling' are both there; keep one"
    )
  by_kind = Fields(nested or {GLOBAL: scaling}, where=f"{fields.where}, in 'rope_parameters'")
  ropes = {}
  for kind, default in thetas.items():
    raw = by_kind.take(kind, {}, kind=dict)
    inside = Fields(raw, where=f"{fields.where}, in the rope of '{kind}'")
    theta = inside.positive('rope_theta', default)
    ropes[kind] = read_rope_kind(inside, theta, max_positions=max_positions)
  by_kind.finish()
  return dict(rope=ropes[GLOBAL], local_rope=ropes[LOCAL])


def describe(config: ModelConfig) -> dict:
  """This model as the fields of a `config.json` of Gemma 3."""
  fields = gemma2.describe(config) | {'attn_logit_softcapping': None}
  local = config.local_rope or config.rope
  # The older fields can say a local base frequency, but no other kind of local rope.
  if local.kind == 'default':
    return fields | {'rope_local_base_freq': local.theta}
  for key in ('rope_theta', 'rope_scaling'):
    fields.pop(key, None)
  nested = {
    kind: {'rope_theta': rope.theta, **write_scaling(rope)}
    for kind, rope in ((GLOBAL, config.rope), (LOCAL, local))
  }
  return fields | {'rope_parameters': nested}


FAMILY = Family(
  'gemma3_text',
  'Gemma3ForCausalLM',
  'Gemma 3, of text alone (1B, 270M): as Gemma 2 but queries and keys normed head by head, no cap '
  'on scores, five layers of six local with a rope of their own',
  read,
  describe,
  gemma2.TENSORS + HEAD_QK_NORMS,
)
