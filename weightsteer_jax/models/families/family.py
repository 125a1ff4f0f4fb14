"""What a family of models is: how its `config.json` is read and written, and what its tensors are called."""
import dataclasses
from typing import Any, Callable, Mapping, NamedTuple

from weightsteer_jax import tree
from weightsteer_jax.errors import InputError
from weightsteer_jax.models.config import ACTIVATIONS, ModelConfig, Rope

# Keys that say nothing about the forward pass: bookkeeping, token ids (the tokenizer's business), training-only and
# cache settings, labels of classifiers, and the settings of text generation that older checkpoints carry.
INERT = frozenset((
    '_attn_implementation_autoset', '_commit_hash', '_name_or_path', 'architectures', 'auto_map', 'bos_token_id',
    'chunk_size_feed_forward', 'dtype', 'eos_token_id', 'finetuning_task', 'id2label', 'initializer_range',
    'is_llama_config', 'label2id', 'output_attentions', 'output_hidden_states', 'output_scores', 'pad_token_id',
    'prefix', 'problem_type', 'return_dict', 'return_dict_in_generate', 'task_specific_params', 'tokenizer_class',
    'torch_dtype', 'transformers.js_config', 'transformers_version', 'unsloth_fixed', 'unsloth_version', 'use_cache',
    'bad_words_ids', 'begin_suppress_tokens', 'diversity_penalty', 'do_sample', 'early_stopping',
    'encoder_no_repeat_ngram_size', 'exponential_decay_length_penalty', 'forced_bos_token_id', 'forced_eos_token_id',
    'length_penalty', 'max_length', 'min_length', 'no_repeat_ngram_size', 'num_beam_groups', 'num_beams',
    'num_return_sequences', 'remove_invalid_values', 'repetition_penalty', 'sep_token_id', 'suppress_tokens',
    'temperature', 'top_k', 'top_p', 'typical_p',
))


class TensorRow(NamedTuple):
  """How one parameter is stored in a Hugging Face checkpoint.

  Attributes:
    path: the parameter's. name: of the tensor; '{l}' is the layer, '{e}' the expert, where there is one tensor each.
    pattern: einops, from their axes (of one layer and expert) to ours.
    before, after: where one tensor holds several parameters as blocks of rows, the axes of the blocks before and after
      this one: ('N H',) and ('K H',) for k in a fused (q, k, v).
  """
  path: str
  name: str
  pattern: str
  before: tuple[str, ...] = ()
  after: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
  """One architecture.

  Attributes:
    model_type: the key in `config.json`.
    architecture: the class transformers loads it with.
    read: fields of `config.json` -> ModelConfig.
    write: ModelConfig -> fields of `config.json` (without the bookkeeping ones).
    tensors: a row for every parameter that a model of the family may have.
  """
  model_type: str
  architecture: str
  read: Callable[['Fields'], ModelConfig]
  write: Callable[[ModelConfig], dict[str, Any]]
  tensors: tuple[TensorRow, ...]


class Fields:
  """The fields of a `config.json`, each to be taken or known to say nothing: `finish` refuses what is left.

  A field that is null is as good as absent.
  """

  def __init__(self, raw: Mapping[str, Any], *, where: str):
    self.where = where
    passed = INERT | {'model_type'}
    self.left = {key: value for key, value in raw.items() if value is not None and key not in passed}

  def take(self, key: str, *default: Any, kind: type | tuple[type, ...] = object) -> Any:
    """The value of the field, which must be of the kind; where it is absent, the default, if one is given.

    Raises:
      InputError: the field is absent and has no default, or is of another kind.
    """
    if key not in self.left:
      if not default:
        raise InputError(f"{self.where}: the field '{key}' is missing{tree.did_you_mean(key, self.left)}")
      return default[0]
    value = self.left.pop(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
      names = ' or '.join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
      raise InputError(f"{self.where}: '{key}' is {value!r}, expected {names}")
    return value

  def count(self, key: str, *default: int) -> int:
    """The field as a whole number of 1 or more (see `take`)."""
    value = self.take(key, *default, kind=int)
    if value < 1:
      raise InputError(f"{self.where}: '{key}' is {value!r}, expected 1 or more")
    return value

  def positive(self, key: str, *default: float) -> float:
    """The field as a finite number above 0 (see `take`)."""
    value = float(self.take(key, *default, kind=(int, float)))
    if not 0 < value < float('inf'):
      raise InputError(f"{self.where}: '{key}' is {value!r}, expected a number above 0")
    return value

  def expect(self, key: str, *allowed: Any) -> None:
    """Takes a field that may be absent, or one of the values that change nothing.

    Raises:
      InputError: another value; the port would not honour it.
    """
    value = self.left.pop(key, None)
    if value is not None and not any(value == other and isinstance(value, bool) == isinstance(other, bool)
                                     for other in allowed):
      raise InputError(
          f"{self.where}: '{key}' is {value!r}, which is not supported (supported: {', '.join(map(repr, allowed))})")

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
      raise InputError(
          f'{self.where}: these fields are not supported, and ignoring them could change the results: {fields}')


def read_activation(fields: Fields) -> str:
  """The MLP's activation, one that the decoder has."""
  name = fields.take('hidden_act', 'silu', kind=str)
  if name not in ACTIVATIONS:
    near = tree.did_you_mean(name, ACTIVATIONS)
    raise InputError(f"{fields.where}: 'hidden_act' is {name!r}{near}; supported: {', '.join(ACTIVATIONS)}")
  return name


def read_rope(fields: Fields, *, max_positions: int) -> Rope:
  """The rotary embedding, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

  Raises:
    InputError: a kind of scaling, or a key of it, that the decoder does not have.
  """
  raw, old = fields.take('rope_parameters', {}, kind=dict), fields.take('rope_scaling', {}, kind=dict)
  if raw and old and raw != old:
    raise InputError(f"{fields.where}: 'rope_parameters' and 'rope_scaling' are both there and differ; keep one")
  inside = Fields(raw or old, where=f"{fields.where}, in '{'rope_parameters' if raw else 'rope_scaling'}'")
  theta = inside.positive('rope_theta', fields.positive('rope_theta', 10000.0))
  # Older checkpoints say 'type'; where both are there, transformers reads 'rope_type'.
  kind = inside.take('rope_type', inside.take('type', 'default', kind=str), kind=str)
  inside.expect('partial_rotary_factor', 1.0)
  fields.expect('partial_rotary_factor', 1.0)
  if kind == 'default':
    rope = Rope(theta, 'default', 1.0, 1.0, 1.0, max_positions)
    inside.ignore('factor', 'original_max_position_embeddings')
  elif kind == 'linear':
    rope = Rope(theta, 'linear', inside.positive('factor'), 1.0, 1.0, max_positions)
    inside.ignore('original_max_position_embeddings')
  elif kind == 'llama3':
    rope = Rope(theta, 'llama3', inside.positive('factor'), inside.positive('low_freq_factor'),
                inside.positive('high_freq_factor'), inside.count('original_max_position_embeddings', max_positions))
    if rope.high_freq_factor <= rope.low_freq_factor:
      raise InputError(f"{inside.where}: 'high_freq_factor' is {rope.high_freq_factor}, expected more than "
                       f"'low_freq_factor', {rope.low_freq_factor}")
  else:
    raise InputError(f"{inside.where}: the rope type '{kind}' is not supported; supported: default, linear, llama3")
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
      'vocab_size': config.vocab_size,
      'num_hidden_layers': config.num_layers,
      'hidden_size': config.width,
      'num_attention_heads': config.num_heads,
      'num_key_value_heads': config.num_kv_heads,
      'intermediate_size': config.mlp_width,
      'rms_norm_eps': config.norm_eps,
      'tie_word_embeddings': config.tied,
      'hidden_act': config.activation,
      'max_position_embeddings': config.max_positions,
      **write_rope(config.rope),
  }


# The tensors of a pre-norm decoder with a gated MLP, as Llama names them and most families after it.
PRE_NORM_TENSORS = (
    TensorRow('embed/embedding', 'model.embed_tokens.weight', 'V D -> V D'),
    TensorRow('layers/attn_norm/scale', 'model.layers.{l}.input_layernorm.weight', 'D -> D'),
    TensorRow('layers/attn/q/kernel', 'model.layers.{l}.self_attn.q_proj.weight', '(N H) D -> D N H'),
    TensorRow('layers/attn/k/kernel', 'model.layers.{l}.self_attn.k_proj.weight', '(K H) D -> D K H'),
    TensorRow('layers/attn/v/kernel', 'model.layers.{l}.self_attn.v_proj.weight', '(K H) D -> D K H'),
    TensorRow('layers/attn/o/kernel', 'model.layers.{l}.self_attn.o_proj.weight', 'D (N H) -> N H D'),
    TensorRow('layers/attn/q/bias', 'model.layers.{l}.self_attn.q_proj.bias', '(N H) -> N H'),
    TensorRow('layers/attn/k/bias', 'model.layers.{l}.self_attn.k_proj.bias', '(K H) -> K H'),
    TensorRow('layers/attn/v/bias', 'model.layers.{l}.self_attn.v_proj.bias', '(K H) -> K H'),
    TensorRow('layers/attn/o/bias', 'model.layers.{l}.self_attn.o_proj.bias', 'D -> D'),
    TensorRow('layers/mlp_norm/scale', 'model.layers.{l}.post_attention_layernorm.weight', 'D -> D'),
    TensorRow('layers/mlp/gate/kernel', 'model.layers.{l}.mlp.gate_proj.weight', 'F D -> D F'),
    TensorRow('layers/mlp/up/kernel', 'model.layers.{l}.mlp.up_proj.weight', 'F D -> D F'),
    TensorRow('layers/mlp/down/kernel', 'model.layers.{l}.mlp.down_proj.weight', 'D F -> F D'),
    TensorRow('layers/mlp/gate/bias', 'model.layers.{l}.mlp.gate_proj.bias', 'F -> F'),
    TensorRow('layers/mlp/up/bias', 'model.layers.{l}.mlp.up_proj.bias', 'F -> F'),
    TensorRow('layers/mlp/down/bias', 'model.layers.{l}.mlp.down_proj.bias', 'D -> D'),
    TensorRow('final_norm/scale', 'model.norm.weight', 'D -> D'),
    TensorRow('lm_head/kernel', 'lm_head.weight', 'V D -> D V'),
)
