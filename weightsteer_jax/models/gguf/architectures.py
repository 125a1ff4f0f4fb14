"""The `config.json` that the metadata of a GGUF file stand for, by architecture.

Source: llama.cpp b6155, src/llama-model.cpp `load_hparams` (what the keys mean and what they are
where absent) and convert_hf_to_gguf.py (what the fields of `config.json` become).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families import FAMILIES, Family, read_config
from weightsteer_jax.models.families.family import longrope_attention_factor
from weightsteer_jax.models.families.fields import MOST_LAYERS, Fields
from weightsteer_jax.models.gguf import rope
from weightsteer_jax.models.gguf.file import GgufFile
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

# Tensors with factors of the rotary frequencies: Llama 3; longrope.
ROPE_FACTORS = 'rope_freqs.weight'
LONG_FACTORS = 'rope_factors_long.weight'
SHORT_FACTORS = 'rope_factors_short.weight'
EMBEDDING = 'token_embd.weight'
HEAD = 'output.weight'


@dataclasses.dataclass(frozen=True)
class Architecture:
  """An architecture of llama.cpp.

  Attributes:
    family: the `model_type` of the models, or of those without experts.
    read: (metadata of the architecture, file, fields common to all) -> more fields of
      `config.json`, which replace common ones of the same name.
    interleaved: whether rows of queries and keys are ordered in pairs that are rotated together.
  """

  family: str
  read: Callable[[Fields, GgufFile, dict[str, Any]], dict[str, Any]]
  interleaved: bool = False


@dataclasses.dataclass(frozen=True)
class Described:
  """A GGUF file's model.

  Attributes:
    config: the architecture.
    family: the family that reads `fields`.
    fields: the fields of `config.json`.
  """

  config: ModelConfig
  family: Family
  fields: dict[str, Any]


def describe(file: GgufFile) -> Described:
  """The model of a GGUF file, from the metadata.

  Raises:
    InputError: if the architecture, a key or a value is not supported; names it.
  """
  name = file.architecture
  if name not in ARCHITECTURES:
    raise InputError(
      f"{file.path}: the architecture '{name}' is not supported"
      f"{did_you_mean(name, ARCHITECTURES)}; supported: {', '.join(ARCHITECTURES)}"
    )
  if EMBEDDING not in file.names():
    raise InputError(f"{file.path} holds no '{EMBEDDING}', as a file with a vocabulary alone")
  architecture = ARCHITECTURES[name]
  prefix = f'{name}.'
  metadata = {}
  for key, value in file.metadata.items():
    if key.startswith(prefix):
      metadata[key.removeprefix(prefix)] = value
  fields = Fields(metadata, where=f"{file.path}, in the metadata of '{name}'")
  common = _common(fields, file)
  raw = {'model_type': architecture.family} | common
  raw |= architecture.read(fields, file, common)
  fields.finish()
  config = read_config(raw, where=str(file.path))
  family = FAMILIES[raw['model_type']]
  written = {'architectures': [family.architecture], 'model_type': family.model_type}
  return Described(config, family, written | family.write(config))


def _common(fields: Fields, file: GgufFile) -> dict[str, Any]:
  """The fields of `config.json` that all architectures give alike."""
  width = fields.count('embedding_length')
  heads = fields.count('attention.head_count')
  head_dim = fields.count('attention.key_length', width // heads)
  fields.expect('attention.value_length', head_dim)
  fields.expect('attention.causal', True)
  # The tensors tell; the key may be absent.
  fields.ignore('vocab_size')
  # How the rows of files of before 2024 are ordered, the same for all that exist.
  fields.ignore('tensor_data_layout')
  return {
    'hidden_size': width,
    'num_hidden_layers': fields.count('block_count', most=MOST_LAYERS),
    'num_attention_heads': heads,
    'num_key_value_heads': fields.count('attention.head_count_kv', heads),
    'head_dim': head_dim,
    'intermediate_size': fields.count('feed_forward_length'),
    'max_position_embeddings': fields.count('context_length'),
    'rms_norm_eps': decimal(fields.positive('attention.layer_norm_rms_epsilon')),
    'vocab_size': file.shape(EMBEDDING)[0],
    'tie_word_embeddings': HEAD not in file.names(),
  }


def decimal(value: float) -> float:
  """The shortest decimal number that is the same in float32, as metadata are stored.

  >>> decimal(9.999999974752427e-07)
  1e-06
  """
  return float(str(np.float32(value)))


def _whole_rope(
  fields: Fields, file: GgufFile, common: dict[str, Any], theta: float = 1e4
) -> dict[str, Any]:
  """The fields of a rotary embedding that turns the whole head."""
  fields.expect('rope.dimension_count', common['head_dim'])
  return _rope(fields, file, theta)


def _rope(fields: Fields, file: GgufFile, theta: float = 1e4) -> dict[str, Any]:
  theta = decimal(fields.positive('rope.freq_base', theta))
  # The second is the key of files of 2023.
  factor = fields.positive('rope.scaling.factor', fields.positive('rope.scale_linear', 1.0))
  kind = fields.take('rope.scaling.type', 'linear', kind=str)
  original = fields.take('rope.scaling.original_context_length', 0, kind=int)
  fields.expect('rope.scaling.finetuned', True, False)
  if ROPE_FACTORS in file.names():
    factors = file.rows(ROPE_FACTORS, slice(None))
    scaling = rope.llama3_scaling(factors, theta)
    if scaling is None:
      raise InputError(
        f"{file.path}: the factors of '{ROPE_FACTORS}' are not those of Llama 3's scaling of long "
        'contexts, and no other such factors are supported'
      )
    return {'rope_theta': theta, 'rope_scaling': scaling}
  if kind == 'none' or (kind == 'linear' and factor == 1.0):
    return {'rope_theta': theta}
  scaling = {'rope_type': kind, 'factor': decimal(factor)}
  # The family refuses the kinds that it does not have.
  if kind != 'linear':
    scaling['original_max_position_embeddings'] = original
  return {'rope_theta': theta, 'rope_scaling': scaling}


def _biases(file: GgufFile) -> dict[str, bool]:
  """`attention_bias`, and `mlp_bias` where there are biases, by the tensors of the first layer."""
  biases = {'attention_bias': 'blk.0.attn_q.bias' in file.names()}
  if 'blk.0.ffn_up.bias' in file.names():
    biases['mlp_bias'] = True
  return biases


def _llama(fields: Fields, file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
  """Llama and Mistral, whose window the file does not hold; Mixtral, if there are experts."""
  raw = _whole_rope(fields, file, common)
  experts = fields.take('expert_count', 0, kind=int)
  chosen = fields.take('expert_used_count', 0, kind=int)
  if experts:
    return raw | {
      'model_type': 'mixtral',
      'num_local_experts': experts,
      'num_experts_per_tok': chosen,
    }
  return raw | _biases(file)


def _qwen2(fields: Fields, file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
  # Of embedding models.
  fields.expect('pooling_type', 0)
  return _whole_rope(fields, file, common)


def _qwen3(fields: Fields, file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
  return _qwen2(fields, file, common) | _biases(file)


def _qwen3_moe(fields: Fields, file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
  return _whole_rope(fields, file, common) | {
    **_biases(file),
    'moe_intermediate_size': fields.count('expert_feed_forward_length'),
    'num_experts': fields.count('expert_count'),
    'num_experts_per_tok': fields.count('expert_used_count'),
    # No key: llama.cpp makes the choices of this architecture sum to one, always.
    'norm_topk_prob': True,
  }


def _gemma2(fields: Fields, file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
  return _whole_rope(fields, file, common) | {
    'sliding_window': fields.count('attention.sliding_window', 4096),
    'attn_logit_softcapping': decimal(fields.positive('attn_logit_softcapping', 50.0)),
    'final_logit_softcapping': decimal(fields.positive('final_logit_softcapping', 30.0)),
    'query_pre_attn_scalar': _query_scalar(common, layers_of_27b=46),
  }


def _gemma3(fields: Fields, file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
  raw = _whole_rope(fields, file, common, theta=1e6)
  raw |= {
    'sliding_window': fields.count('attention.sliding_window'),
    'rope_local_base_freq': decimal(fields.positive('rope.freq_base_swa', 1e4)),
    'query_pre_attn_scalar': _query_scalar(common, layers_of_27b=62),
  }
  cap = fields.optional(fields.positive, 'final_logit_softcapping', None)
  if cap is not None:
    raw['final_logit_softcapping'] = decimal(cap)
  pattern = fields.take('attention.sliding_window_pattern', 6, kind=(int, list))
  # A period, or for each layer whether the layer is local.
  if isinstance(pattern, int):
    return raw | {'sliding_window_pattern': pattern}
  kinds = ['sliding_attention' if local else 'full_attention' for local in pattern]
  return raw | {'layer_types': kinds}


def _query_scalar(common: dict[str, Any], *, layers_of_27b: int) -> int:
  """`query_pre_attn_scalar`, which has no key: the head's size but in the models of 27B."""
  if common['num_hidden_layers'] == layers_of_27b:
    return common['hidden_size'] // common['num_attention_heads']
  return common['head_dim']


def _phi3(fields: Fields, file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
  head_dim = common['head_dim']
  theta = decimal(fields.positive('rope.freq_base', 1e4))
  original = fields.count('rope.scaling.original_context_length', common['max_position_embeddings'])
  attention = fields.optional(fields.positive, 'rope.scaling.attn_factor', None)
  # 0 says that there is no window.
  window = fields.take('attention.sliding_window', 0, kind=int)
  raw = {
    'rope_theta': theta,
    'partial_rotary_factor': fields.count('rope.dimension_count', head_dim) / head_dim,
    'original_max_position_embeddings': original,
    'sliding_window': window or None,
  }
  if LONG_FACTORS not in file.names():
    return raw
  stretch = common['max_position_embeddings'] / original
  formula = longrope_attention_factor(stretch, original)
  # The file rounds to float32 what the config leaves to the formula.
  if attention is None or np.float32(attention) == np.float32(formula):
    attention = formula
  scaling = {'rope_type': 'longrope', 'attention_factor': attention}
  for key, name in (('long_factor', LONG_FACTORS), ('short_factor', SHORT_FACTORS)):
    scaling[key] = [decimal(factor) for factor in file.rows(name, slice(None))]
  return raw | {'rope_scaling': scaling}


def _granite(fields: Fields, file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
  # Without, llama.cpp rotates nothing.
  fields.expect('rope.scaling.finetuned', True)
  raw = _whole_rope(fields, file, common) | _biases(file)
  for key, field in (
    ('attention.scale', 'attention_multiplier'),
    ('embedding_scale', 'embedding_multiplier'),
    ('residual_scale', 'residual_multiplier'),
    ('logit_scale', 'logits_scaling'),
  ):
    raw[field] = decimal(fields.positive(key))
  return raw


def _plain(fields: Fields, file: GgufFile, common: dict[str, Any]) -> dict[str, Any]:
  return _whole_rope(fields, file, common) | _biases(file)


ARCHITECTURES = {
  'llama': Architecture('llama', _llama, interleaved=True),
  'qwen2': Architecture('qwen2', _qwen2),
  'qwen3': Architecture('qwen3', _qwen3),
  'qwen3moe': Architecture('qwen3_moe', _qwen3_moe),
  'gemma2': Architecture('gemma2', _gemma2),
  'gemma3': Architecture('gemma3_text', _gemma3),
  'phi3': Architecture('phi3', _phi3),
  'olmo2': Architecture('olmo2', _plain),
  'smollm3': Architecture('smollm3', _plain, interleaved=True),
  'granite': Architecture('granite', _granite, interleaved=True),
}
