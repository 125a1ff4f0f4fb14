"""What a family of models is: how its `config.json` is read and written, and what its tensors are called."""
import dataclasses
from typing import Any, Callable, Mapping

from weightsteer_jax import tree
from weightsteer_jax.errors import InputError
from weightsteer_jax.models.config import ACTIVATIONS, ModelConfig, Rope

# Keys that say nothing about the forward pass: bookkeeping, token ids (the tokenizer's business), training-only and cache settings.
INERT = frozenset((
    '_attn_implementation_autoset', '_name_or_path', 'architectures', 'auto_map', 'bos_token_id', 'chunk_size_feed_forward', 'dtype',
    'eos_token_id', 'id2label', 'initializer_range', 'is_encoder_decoder', 'label2id', 'output_attentions', 'output_hidden_states',
    'pad_token_id', 'problem_type', 'return_dict', 'torch_dtype', 'transformers_version', 'use_cache', 'unsloth_fixed', 'unsloth_version',
))


@dataclasses.dataclass(frozen=True)
class Family:
  """One architecture.

  Attributes:
    model_type: the key in `config.json`.
    architecture: the class transformers loads it with.
    read: fields of `config.json` -> ModelConfig.
    write: ModelConfig -> fields of `config.json` (without the bookkeeping ones).
    tensors: rows (path, Hugging Face name, einops pattern from theirs to ours); '{l}' in the name is the layer.
  """
  model_type: str
  architecture: str
  read: Callable[['Fields'], ModelConfig]
  write: Callable[[ModelConfig], dict[str, Any]]
  tensors: tuple[tuple[str, str, str], ...]


class Fields:
  """The fields of a `config.json`, each of which must be taken, or be known to say nothing: `finish` refuses what is left."""

  def __init__(self, raw: Mapping[str, Any], *, where: str):
    self.where = where
    self.left = {key: value for key, value in raw.items() if key not in INERT and key != 'model_type'}

  def take(self, key: str, *default: Any) -> Any:
    """The value of the field; where it is absent or null, the default, if one is given.

    Raises:
      InputError: the field is absent and has no default.
    """
    value = self.left.pop(key, None)
    if value is None and not default:
      raise InputError(f"{self.where}: the field '{key}' is missing")
    return default[0] if value is None else value

  def expect(self, key: str, *allowed: Any) -> None:
    """Takes a field that may be absent, null, or one of the values that change nothing.

    Raises:
      InputError: another value; the port would not honour it.
    """
    value = self.left.pop(key, None)
    if value is not None and value not in allowed:
      raise InputError(f"{self.where}: '{key}' is {value!r}, which is not supported (supported: {', '.join(map(repr, allowed))})")

  def ignore(self, *keys: str) -> None:
    """Drops fields that have no effect at the values the others have."""
    for key in keys:
      self.left.pop(key, None)

  def finish(self) -> None:
    """Nothing, if all fields were taken.

    Raises:
      InputError: names the fields the port does not honour.
    """
    if self.left:
      fields = ', '.join(f'{key}={value!r}' for key, value in sorted(self.left.items()))
      raise InputError(f'{self.where}: these fields are not supported, and ignoring them could change the results: {fields}')


def read_activation(fields: Fields) -> str:
  """The MLP's activation, one that the decoder has."""
  name = fields.take('hidden_act', 'silu')
  if name not in ACTIVATIONS:
    raise InputError(f"{fields.where}: 'hidden_act' is {name!r}{tree.did_you_mean(name, ACTIVATIONS)}; supported: {', '.join(ACTIVATIONS)}")
  return name


def read_rope(fields: Fields, *, max_positions: int) -> Rope:
  """The rotary embedding, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

  Raises:
    InputError: a kind of scaling, or a key of it, that the decoder does not have.
  """
  raw = dict(fields.take('rope_parameters', {}))
  old = dict(fields.take('rope_scaling', {}))
  theta = fields.take('rope_theta', None)
  if raw and old and raw != old:
    raise InputError(f"{fields.where}: 'rope_parameters' and 'rope_scaling' are both there and differ; keep one")
  raw = raw or old
  if theta is not None:
    raw.setdefault('rope_theta', theta)
  kind = raw.pop('rope_type', None) or raw.pop('type', None) or 'default'
  raw.pop('type', None)
  inside = Fields(raw, where=f"{fields.where}, 'rope_parameters' or 'rope_scaling'")
  inside.expect('partial_rotary_factor', 1.0)
  fields.expect('partial_rotary_factor', 1.0)
  theta = float(inside.take('rope_theta', 10000.0))
  if kind == 'default':
    rope = Rope(theta, 'default', 1.0, 1.0, 1.0, max_positions)
    inside.ignore('factor', 'original_max_position_embeddings')
  elif kind == 'linear':
    rope = Rope(theta, 'linear', float(inside.take('factor')), 1.0, 1.0, max_positions)
    inside.ignore('original_max_position_embeddings')
  elif kind == 'llama3':
    rope = Rope(theta, 'llama3', float(inside.take('factor')), float(inside.take('low_freq_factor')),
                float(inside.take('high_freq_factor')), int(inside.take('original_max_position_embeddings')))
  else:
    raise InputError(f"{fields.where}: rope type '{kind}' is not supported; supported: default, linear, llama3")
  inside.finish()
  return rope


def write_rope(rope: Rope) -> dict[str, Any]:
  """The fields of `config.json` for the rotary embedding, as transformers before and after 5 read them."""
  if rope.kind == 'default':
    return {'rope_theta': rope.theta}
  scaling = {'rope_type': rope.kind, 'factor': rope.factor}
  if rope.kind == 'llama3':
    scaling |= {'low_freq_factor': rope.low_freq_factor, 'high_freq_factor': rope.high_freq_factor,
                'original_max_position_embeddings': rope.original_max_positions}
  return {'rope_theta': rope.theta, 'rope_scaling': scaling}


def write_sizes(config: ModelConfig) -> dict[str, Any]:
  """The fields that every family of this shape writes alike."""
  return {
      'vocab_size': config.vocab_size, 'num_hidden_layers': config.num_layers, 'hidden_size': config.width,
      'num_attention_heads': config.num_heads, 'num_key_value_heads': config.num_kv_heads, 'intermediate_size': config.mlp_width,
      'rms_norm_eps': config.norm_eps, 'tie_word_embeddings': config.tied, 'hidden_act': config.activation,
      'max_position_embeddings': config.max_positions, **write_rope(config.rope),
  }


# The tensors of a pre-norm decoder with a gated MLP, as Llama names them and most families after it.
PRE_NORM_TENSORS = (
    ('embed/embedding', 'model.embed_tokens.weight', 'V D -> V D'),
    ('layers/attn_norm/scale', 'model.layers.{l}.input_layernorm.weight', 'D -> D'),
    ('layers/attn/q/kernel', 'model.layers.{l}.self_attn.q_proj.weight', '(N H) D -> D N H'),
    ('layers/attn/k/kernel', 'model.layers.{l}.self_attn.k_proj.weight', '(K H) D -> D K H'),
    ('layers/attn/v/kernel', 'model.layers.{l}.self_attn.v_proj.weight', '(K H) D -> D K H'),
    ('layers/attn/o/kernel', 'model.layers.{l}.self_attn.o_proj.weight', 'D (N H) -> N H D'),
    ('layers/attn/q/bias', 'model.layers.{l}.self_attn.q_proj.bias', '(N H) -> N H'),
    ('layers/attn/k/bias', 'model.layers.{l}.self_attn.k_proj.bias', '(K H) -> K H'),
    ('layers/attn/v/bias', 'model.layers.{l}.self_attn.v_proj.bias', '(K H) -> K H'),
    ('layers/attn/o/bias', 'model.layers.{l}.self_attn.o_proj.bias', 'D -> D'),
    ('layers/mlp_norm/scale', 'model.layers.{l}.post_attention_layernorm.weight', 'D -> D'),
    ('layers/mlp/gate/kernel', 'model.layers.{l}.mlp.gate_proj.weight', 'F D -> D F'),
    ('layers/mlp/up/kernel', 'model.layers.{l}.mlp.up_proj.weight', 'F D -> D F'),
    ('layers/mlp/down/kernel', 'model.layers.{l}.mlp.down_proj.weight', 'D F -> F D'),
    ('layers/mlp/gate/bias', 'model.layers.{l}.mlp.gate_proj.bias', 'F -> F'),
    ('layers/mlp/up/bias', 'model.layers.{l}.mlp.up_proj.bias', 'F -> F'),
    ('layers/mlp/down/bias', 'model.layers.{l}.mlp.down_proj.bias', 'D -> D'),
    ('final_norm/scale', 'model.norm.weight', 'D -> D'),
    ('lm_head/kernel', 'lm_head.weight', 'V D -> D V'),
)
