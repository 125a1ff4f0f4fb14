"""The table of supported families: one file and one line each."""

from collections.abc import Mapping
from typing import Any

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families import (
  gemma2,
  gemma3_text,
  granite,
  llama,
  mistral,
  mixtral,
  olmo2,
  phi3,
  qwen2,
  qwen3,
  qwen3_moe,
  smollm3,
)
from weightsteer_jax.models.families.family import Family as Family
from weightsteer_jax.models.families.family import TensorRow as TensorRow
from weightsteer_jax.models.families.fields import Fields
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

FAMILIES: dict[str, Family] = {
  module.FAMILY.model_type: module.FAMILY
  for module in (
    llama,
    qwen2,
    qwen3,
    mistral,
    gemma2,
    gemma3_text,
    olmo2,
    phi3,
    smollm3,
    granite,
    qwen3_moe,
    mixtral,
  )
}


def family_of(raw: Mapping[str, Any], *, where: str) -> Family:
  """The family of a `config.json`.

  Raises:
    InputError: if the family is missing or not supported; names the supported ones.
  """
  if not isinstance(raw, Mapping):
    raise InputError(
      f'{where} is no config of a model: it holds a {type(raw).__name__}, expected an '
      'object with a model_type'
    )
  model_type = str(raw.get('model_type'))
  if model_type not in FAMILIES:
    near = did_you_mean(model_type, FAMILIES)
    raise InputError(
      f'{where}: model_type {model_type!r} is not supported{near}; supported: '
      f"{', '.join(sorted(FAMILIES))}"
    )
  # The tensors of a quantised checkpoint have the right names, and numbers of another meaning.
  if raw.get('quantization_config'):
    raise InputError(
      f"{where}: the checkpoint is quantised (quantization_config={raw['quantization_config']!r}); "
      'use the unquantised one'
    )
  family = FAMILIES[model_type]
  # A classifier, say, has the model_type of its base and another head.
  architectures = raw.get('architectures') or [family.architecture]
  if not isinstance(architectures, list) or family.architecture not in architectures:
    raise InputError(
      f"{where}: 'architectures' is {architectures!r}, which is not supported; supported: "
      f"{family.architecture}"
    )
  return family


def read_config(raw: Mapping[str, Any], *, where: str) -> ModelConfig:
  """The model described by a `config.json`, with every field honoured.

  Raises:
    InputError: if the family, a field or a value is not supported; names it.
  """
  family = family_of(raw, where=where)
  fields = Fields(raw, where=where)
  config = family.read(fields)
  # transformers has these fields in the configs of all families.
  fields.expect('is_encoder_decoder', False)
  fields.expect('is_decoder', False, True)
  fields.finish()
  if config.num_heads % config.num_kv_heads:
    raise InputError(
      f'{where}: {config.num_heads} query heads cannot share {config.num_kv_heads} kv heads evenly'
    )
  if config.rotary_dim % 2 or not 0 < config.rotary_dim <= config.head_dim:
    raise InputError(
      f'{where}: rotary positions turn pairs, and of a head of {config.head_dim} dimensions '
      f'{config.rotary_dim} are no even number above 0'
    )
  for factors in (config.rope.short_factors, config.rope.long_factors):
    if factors and len(factors) != config.rotary_dim // 2:
      raise InputError(
        f'{where}: the longrope has {len(factors)} factors for {config.rotary_dim // 2} pairs of '
        'rotated dimensions'
      )
  return config
