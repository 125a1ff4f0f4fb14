"""SmolLM3. Source: transformers `modeling_smollm3.py`."""

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families.family import (
  PRE_NORM_TENSORS,
  Family,
  read_activation,
  read_rope,
  read_sizes,
  read_windows,
  write_sizes,
)
from weightsteer_jax.models.families.fields import Fields
from weightsteer_jax.models.families.qwen2 import write_windows
from weightsteer_jax.runtime.errors import InputError


def read(fields: Fields) -> ModelConfig:
  """The model described by a `config.json` of SmolLM3."""
  sizes = read_sizes(fields, max_positions=32768, shared_heads=False, tied=True)
  layers = sizes['num_layers']
  unrotated = read_unrotated(fields, layers)
  window = fields.optional(fields.count, 'sliding_window', None)
  window = window if fields.take('use_sliding_window', False, kind=bool) else None
  # With windows, the layers without a rope are local.
  local = unrotated if window else ()
  kinds = ['sliding_attention' if i in local else 'full_attention' for i in range(layers)]
  bias = fields.take('attention_bias', False, kind=bool)
  fields.expect('attention_dropout', 0.0)
  # Published with SmolLM3, but no fields of its class: nothing reads them.
  fields.ignore('max_window_layers', 'pretraining_tp')
  return ModelConfig(
    **sizes,
    **read_windows(fields, layers, default=kinds, window=window),
    rope=read_rope(fields, max_positions=sizes['max_positions'], theta=2e6),
    unrotated_layers=unrotated,
    qkv_bias=bias,
    o_bias=bias,
    mlp_bias=fields.take('mlp_bias', False, kind=bool),
    activation=read_activation(fields),
  )


def read_unrotated(fields: Fields, layers: int) -> tuple[int, ...]:
  """The layers without a rope, which have a 0 in `no_rope_layers`."""
  interval = fields.count('no_rope_layer_interval', 4)
  # Without the field, every layer at the interval.
  default = [int((i + 1) % interval != 0) for i in range(layers)]
  flags = fields.take('no_rope_layers', default, kind=list)
  if len(flags) < layers or not all(flag in (0, 1) for flag in flags):
    raise InputError(
      f"{fields.where}: 'no_rope_layers' is {flags}, expected a 0 or a 1 for each of "
      f"{layers} layers"
    )
  return tuple(i for i, flag in enumerate(flags[:layers]) if not flag)


def describe(config: ModelConfig) -> dict:
  """This model as the fields of a `config.json` of SmolLM3."""
  flags = [int(i not in config.unrotated_layers) for i in range(config.num_layers)]
  return (
    write_sizes(config)
    | write_windows(config)
    | {'no_rope_layers': flags, 'attention_bias': config.qkv_bias, 'mlp_bias': config.mlp_bias}
  )


FAMILY = Family(
  'smollm3',
  'SmolLM3ForCausalLM',
  'SmolLM3: every fourth layer has no rotary embedding',
  read,
  describe,
  PRE_NORM_TENSORS,
)
