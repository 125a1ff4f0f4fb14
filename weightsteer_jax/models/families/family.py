"""A family of models: how a `config.json` is read and written, and how tensors are named."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from weightsteer_jax.models.config import ACTIVATIONS, ModelConfig, Rope
from weightsteer_jax.models.families.fields import MOST_LAYERS, Fields
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

# Kinds of rotary embeddings that any family can have.
ROPES = ('default', 'linear', 'llama3')


class TensorRow(NamedTuple):
  """How a parameter is stored in a Hugging Face checkpoint.

  Attributes:
    path: the path of the parameter.
    name: the name of the tensor. '{l}' stands for the layer and '{e}' for the expert, where each
      has a tensor.
    pattern: einops, from the axes of the tensor (of a layer and expert) to ours.
    before: in a tensor of several parameters, the axes of the blocks of rows before this parameter:
      ('N H',) for k in a fused (q, k, v).
    after: likewise the axes of the blocks after this parameter: ('K H',).
  """

  path: str
  name: str
  pattern: str
  before: tuple[str, ...] = ()
  after: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
  """An architecture.

  Attributes:
    model_type: the value of `model_type` in `config.json`.
    architecture: the class of transformers that loads the family.
    about: the models of the family, and after a colon their particularities.
    read: fields of `config.json` -> ModelConfig.
    describe: ModelConfig -> fields of `config.json` (without bookkeeping fields).
    tensors: a row for every parameter that a model of the family may have.
    renamed: (part of a tensor's name, what transformers 5 calls the module) where they differ.
  """

  model_type: str
  architecture: str
  about: str
  read: Callable[[Fields], ModelConfig]
  describe: Callable[[ModelConfig], dict[str, Any]]
  tensors: tuple[TensorRow, ...]
  renamed: tuple[tuple[str, str], ...] = ()

  def module_name(self, stored: str) -> str:
    """The name in transformers 5 of a module that checkpoints store under a name."""
    for part, name in self.renamed:
      stored = stored.replace(f'.{part}.', f'.{name}.')
    return stored

  def write(self, config: ModelConfig) -> dict[str, Any]:
    """The fields of a `config.json` of this family that describe the model.

    Raises:
      InputError: if the family cannot express the model; names the parts.
    """
    config = config.architecture
    raw = self.describe(config)
    # Reading back shows what the family's fields cannot say.
    read_back = self.read(Fields(raw, where=f'the {self.model_type} config to write'))
    lost = []
    for field in dataclasses.fields(config):
      before = getattr(config, field.name)
      after = getattr(read_back, field.name)
      if before != after:
        lost.append(f'{field.name} {before!r} (it would be {after!r})')
    if lost:
      raise InputError(
        f'a {self.model_type} checkpoint cannot hold this model, for its config has no words for '
        f'{", ".join(lost)}: save it as the family it was'
      )
    return raw


def read_activation(fields: Fields, key: str = 'hidden_act', default: str = 'silu') -> str:
  """The activation of the MLP.

  Raises:
    InputError: if the decoder does not have the activation.
  """
  name = fields.take(key, default, kind=str)
  if name not in ACTIVATIONS:
    near = did_you_mean(name, ACTIVATIONS)
    raise InputError(
      f"{fields.where}: '{key}' is {name!r}{near}; supported: {', '.join(ACTIVATIONS)}"
    )
  return name


def read_sizes(
  fields: Fields,
  *,
  max_positions: int,
  shared_heads: bool = True,
  head_dim: int | None = None,
  norm_eps: float = 1e-6,
  tied: bool = False,
) -> dict[str, Any]:
  """The fields of a ModelConfig that every family reads alike.

  Args:
    max_positions: as for `norm_eps` and `tied`, the value of an absent field, from transformers'
      class of the family.
    shared_heads: whether `num_key_value_heads` may be absent; then K = N.
    head_dim: the value of an absent `head_dim`; if None, the width divided by the query heads.
  """
  width = fields.count('hidden_size')
  heads = fields.count('num_attention_heads')
  kv_default = [heads] if shared_heads else []
  return dict(
    vocab_size=fields.count('vocab_size'),
    num_layers=fields.count('num_hidden_layers', most=MOST_LAYERS),
    width=width,
    num_heads=heads,
    num_kv_heads=fields.count('num_key_value_heads', *kv_default),
    head_dim=fields.count('head_dim', head_dim or width // heads),
    mlp_width=fields.count('intermediate_size'),
    norm_eps=fields.positive('rms_norm_eps', norm_eps),
    tied=fields.take('tie_word_embeddings', tied, kind=bool),
    max_positions=fields.count('max_position_embeddings', max_positions),
  )


def read_windows(
  fields: Fields, layers: int, *, default: list[str], window: int | None
) -> dict[str, Any]:
  """`local_layers` and `window` of a ModelConfig, from `layer_types`.

  Args:
    layers: the number of layers.
    default: the kind of each layer if the field is absent.
    window: length of the window in tokens, or None if the config has no window.

  Raises:
    InputError: if the decoder does not have a kind, if the kinds are not as many as the layers, or
      if a layer is local without a window.
  """
  kinds = fields.take('layer_types', default, kind=list)
  if len(kinds) != layers or not set(kinds) <= {'full_attention', 'sliding_attention'}:
    raise InputError(
      f"{fields.where}: 'layer_types' is {kinds}, which is not supported; supported: {layers} of "
      "'full_attention' and 'sliding_attention'"
    )
  local = tuple(i for i, kind in enumerate(kinds) if kind == 'sliding_attention')
  if local and window is None:
    raise InputError(
      f"{fields.where}: 'layer_types' has layers with 'sliding_attention', but there is no "
      "'sliding_window' in use"
    )
  return dict(local_layers=local, window=window if local else None)


def layer_types(config: ModelConfig) -> list[str]:
  """The field `layer_types`: the kind of each layer."""
  return [
    'sliding_attention' if layer in config.local_layers else 'full_attention'
    for layer in range(config.num_layers)
  ]


def read_rope(fields: Fields, *, max_positions: int, theta: float = 1e4) -> Rope:
  """The rotary embedding, which turns the whole head.

  transformers 5 writes `rope_parameters`, earlier versions `rope_theta` and `rope_scaling`.

  Args:
    theta: the base frequency if the config names none.

  Raises:
    InputError: if the decoder does not have the kind of scaling, or a key of the scaling.
  """
  inside, theta = rope_fields(fields, theta)
  # The fraction of the head that is turned stands inside since transformers 5.
  fields.expect('partial_rotary_factor', 1.0)
  inside.expect('partial_rotary_factor', 1.0)
  # Recorded for docs/families.md: the type is read from the inner fields.
  fields.handling['rope_type'] = f'only {", ".join(ROPES)}'
  return read_rope_kind(inside, theta, max_positions=max_positions)


def rope_fields(fields: Fields, theta: float) -> tuple[Fields, float]:
  """(fields of `rope_parameters` or `rope_scaling`, base frequency) of a config.

  Args:
    theta: the base frequency if the config names none.

  Raises:
    InputError: if the config has both, and both differ.
  """
  # The first is of transformers 5, the second of earlier versions.
  parameters = fields.take('rope_parameters', {}, kind=dict)
  scaling = fields.take('rope_scaling', {}, kind=dict)
  if parameters and scaling and parameters != scaling:
    raise InputError(
      f"{fields.where}: 'rope_parameters' and 'rope_scaling' are both there and differ; keep one"
    )
  key = 'rope_parameters' if parameters else 'rope_scaling'
  inside = Fields(parameters or scaling, where=f"{fields.where}, in '{key}'")
  outer_theta = fields.positive('rope_theta', theta)
  return inside, inside.positive('rope_theta', outer_theta)


def read_rope_kind(
  inside: Fields,
  theta: float,
  *,
  max_positions: int,
  original: int | None = None,
  kinds: tuple[str, ...] = ROPES,
) -> Rope:
  """The rotary embedding of the fields inside `rope_parameters` or `rope_scaling`.

  Args:
    original: length of the original context in tokens if the fields do not tell; `max_positions`
      if None.
    kinds: the supported kinds.

  Raises:
    InputError: if the kind is not supported, or a field is missing, unknown or out of range.
  """
  if original is None:
    original = max_positions
  # Older checkpoints say 'type'; where both are there, transformers reads 'rope_type'.
  kind = inside.take('rope_type', inside.take('type', 'default', kind=str), kind=str)
  # The first Phi-3 checkpoints call 'longrope' 'su'.
  if kind == 'su':
    kind = 'longrope'
  if kind not in kinds:
    raise InputError(
      f"{inside.where}: the rope type '{kind}' is not supported; supported: {', '.join(kinds)}"
    )
  if kind == 'default':
    inside.ignore('original_max_position_embeddings', 'factor')
    rope = Rope(theta, kind, 1.0, 1.0, 1.0, max_positions)
  elif kind == 'linear':
    inside.ignore('original_max_position_embeddings')
    rope = Rope(theta, kind, inside.positive('factor'), 1.0, 1.0, max_positions)
  elif kind == 'llama3':
    rope = Rope(
      theta,
      'llama3',
      inside.positive('factor'),
      inside.positive('low_freq_factor'),
      inside.positive('high_freq_factor'),
      inside.count('original_max_position_embeddings', original),
    )
    if rope.high_freq_factor <= rope.low_freq_factor:
      raise InputError(
        f"{inside.where}: 'high_freq_factor' is {rope.high_freq_factor}, expected more than "
        f"'low_freq_factor', {rope.low_freq_factor}"
      )
  else:
    rope = _read_longrope(inside, theta, max_positions, original)
  inside.finish()
  return rope


def _read_longrope(inside: Fields, theta: float, max_positions: int, original: int) -> Rope:
  """The rotary embedding of kind 'longrope'.

  Source: arXiv 2402.13753.
  """
  original = inside.count('original_max_position_embeddings', original)
  # Without its own field, the attention factor follows from how far the context is stretched.
  stretch = inside.positive('factor', max_positions / original)
  attention = inside.positive('attention_factor', longrope_attention_factor(stretch, original))
  short = _read_factors(inside, 'short_factor')
  long = _read_factors(inside, 'long_factor')
  return Rope(theta, 'longrope', 1.0, 1.0, 1.0, original, short, long, attention)


def _read_factors(inside: Fields, key: str) -> tuple[float, ...]:
  values = inside.take(key, kind=list)
  factors = []
  for value in values:
    # In Python a bool is an int; in JSON true is no number.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
      factors.append(float(value))
  if not values or len(factors) < len(values):
    raise InputError(f"{inside.where}: '{key}' is {values!r}, expected a list of numbers above 0")
  return tuple(factors)


def longrope_attention_factor(factor: float, original: int) -> float:
  """The factor by which 'longrope' multiplies cosines and sines.

  Args:
    factor: length of the context divided by that of the original context.
    original: length of the original context in tokens.

  Source: arXiv 2402.13753, as in transformers `_compute_longrope_parameters`.
  """
  if factor <= 1.0:
    return 1.0
  return math.sqrt(1 + math.log(factor) / math.log(original))


def write_scaling(rope: Rope) -> dict[str, Any]:
  """The fields of `rope_scaling`, or the fields beside `rope_theta` in `rope_parameters`."""
  if rope.kind == 'default':
    return {'rope_type': 'default'}
  if rope.kind == 'longrope':
    return {
      'rope_type': 'longrope',
      'short_factor': list(rope.short_factors),
      'long_factor': list(rope.long_factors),
      'attention_factor': rope.attention_factor,
    }
  scaling: dict[str, Any] = {'rope_type': rope.kind, 'factor': rope.factor}
  if rope.kind == 'llama3':
    scaling |= {
      'low_freq_factor': rope.low_freq_factor,
      'high_freq_factor': rope.high_freq_factor,
      'original_max_position_embeddings': rope.original_max_positions,
    }
  return scaling


def write_rope(rope: Rope) -> dict[str, Any]:
  """The fields of `config.json` for the rotary embedding."""
  # transformers 5 still reads the fields that earlier versions wrote.
  fields: dict[str, Any] = {'rope_theta': rope.theta}
  if rope.kind != 'default':
    fields['rope_scaling'] = write_scaling(rope)
  return fields


def write_sizes(config: ModelConfig) -> dict[str, Any]:
  """The fields that every family of this shape writes alike."""
  return {
    'vocab_size': config.vocab_size,
    'num_hidden_layers': config.num_layers,
    'hidden_size': config.width,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'intermediate_size': config.mlp_width,
    'rms_norm_eps': config.norm_eps,
    'tie_word_embeddings': config.tied,
    'hidden_act': config.activation,
    'max_position_embeddings': config.max_positions,
    # The padding token is the tokenizer's business. If the field is absent, transformers' class
    # puts in a token of its own, perhaps beyond the vocabulary.
    'pad_token_id': None,
    **write_rope(config.rope),
  }


# The rows that families share, with the names that Llama gave to the tensors. The letters of the
# patterns are those of models/decoder.py.
EMBEDDING = (TensorRow('embed/embedding', 'model.embed_tokens.weight', 'V D -> V D'),)
ATTENTION = (
  TensorRow('layers/attn/q/kernel', 'model.layers.{l}.self_attn.q_proj.weight', '(N H) D -> D N H'),
  TensorRow('layers/attn/k/kernel', 'model.layers.{l}.self_attn.k_proj.weight', '(K H) D -> D K H'),
  TensorRow('layers/attn/v/kernel', 'model.layers.{l}.self_attn.v_proj.weight', '(K H) D -> D K H'),
  TensorRow('layers/attn/o/kernel', 'model.layers.{l}.self_attn.o_proj.weight', 'D (N H) -> N H D'),
  TensorRow('layers/attn/q/bias', 'model.layers.{l}.self_attn.q_proj.bias', '(N H) -> N H'),
  TensorRow('layers/attn/k/bias', 'model.layers.{l}.self_attn.k_proj.bias', '(K H) -> K H'),
  TensorRow('layers/attn/v/bias', 'model.layers.{l}.self_attn.v_proj.bias', '(K H) -> K H'),
  TensorRow('layers/attn/o/bias', 'model.layers.{l}.self_attn.o_proj.bias', 'D -> D'),
)
# Norms of queries and keys, head by head.
HEAD_QK_NORMS = (
  TensorRow('layers/attn/q_norm/scale', 'model.layers.{l}.self_attn.q_norm.weight', 'H -> H'),
  TensorRow('layers/attn/k_norm/scale', 'model.layers.{l}.self_attn.k_norm.weight', 'H -> H'),
)
GATED_MLP = (
  TensorRow('layers/mlp/gate/kernel', 'model.layers.{l}.mlp.gate_proj.weight', 'F D -> D F'),
  TensorRow('layers/mlp/up/kernel', 'model.layers.{l}.mlp.up_proj.weight', 'F D -> D F'),
  TensorRow('layers/mlp/down/kernel', 'model.layers.{l}.mlp.down_proj.weight', 'D F -> F D'),
  TensorRow('layers/mlp/gate/bias', 'model.layers.{l}.mlp.gate_proj.bias', 'F -> F'),
  TensorRow('layers/mlp/up/bias', 'model.layers.{l}.mlp.up_proj.bias', 'F -> F'),
  TensorRow('layers/mlp/down/bias', 'model.layers.{l}.mlp.down_proj.bias', 'D -> D'),
)
END = (
  TensorRow('final_norm/scale', 'model.norm.weight', 'D -> D'),
  TensorRow('lm_head/kernel', 'lm_head.weight', 'V D -> D V'),
)


def block_norms(**names: str) -> tuple[TensorRow, ...]:
  """Rows of the norms of a block.

  Args:
    names: {our name of the norm: name in the checkpoint}.
  """
  rows = []
  for ours, theirs in names.items():
    rows.append(TensorRow(f'layers/{ours}/scale', f'model.layers.{{l}}.{theirs}.weight', 'D -> D'))
  return tuple(rows)


PRE_NORMS = block_norms(attn_norm='input_layernorm', mlp_norm='post_attention_layernorm')
# The tensors of a pre-norm decoder with a gated MLP. Most families name them as Llama does.
PRE_NORM_TENSORS = (*EMBEDDING, *PRE_NORMS, *ATTENTION, *GATED_MLP, *END)
