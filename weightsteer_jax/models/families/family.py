"""A family of models: how `config.json` is read and written, and the names of the tensors."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from weightsteer_jax.models.config import ACTIVATIONS, ModelConfig, Rope
from weightsteer_jax.models.families.fields import Fields
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

# Kinds of rotary embeddings that any family can have.
ROPES = ('default', 'linear', 'llama3')


class TensorRow(NamedTuple):
  """How one parameter is stored in a Hugging Face checkpoint.

  Attributes:
    path: the parameter's path in our tree.
    name: the tensor's name; '{l}' stands for the layer and '{e}' for the expert, if each has a
      tensor.
    pattern: einops, from the axes of the tensor (of one layer and expert) to ours.
    before: axes of the blocks of rows before this parameter, if one tensor holds several
      parameters: ('N H',) for k in a fused (q, k, v).
    after: axes of the blocks of rows behind this parameter: ('K H',) for the same k.
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
    about: the models of the family, and their particulars.
    read: fields of `config.json` -> ModelConfig.
    describe: ModelConfig -> fields of `config.json` (without the bookkeeping ones).
    tensors: a row for every parameter that a model of the family may have.
  """

  model_type: str
  architecture: str
  about: str
  read: Callable[[Fields], ModelConfig]
  describe: Callable[[ModelConfig], dict[str, Any]]
  tensors: tuple[TensorRow, ...]

  def write(self, config: ModelConfig) -> dict[str, Any]:
    """The fields of a `config.json` of this family that describe the model.

    Raises:
      InputError: if the fields would be read as another model, because the model has a feature that
        the family does not; names the feature.
    """
    config = config.architecture
    raw = self.describe(config)
    # Read back: a feature without a field of the family is found here, not in somebody's results.
    reread = self.read(Fields(raw, where=f'the {self.model_type} config to write'))
    unsaid = []
    for field in dataclasses.fields(config):
      value = getattr(config, field.name)
      read_as = getattr(reread, field.name)
      if value != read_as:
        unsaid.append(f'{field.name} {value!r} (it would be {read_as!r})')
    if unsaid:
      raise InputError(
        f'a {self.model_type} checkpoint cannot hold this model, for its config has no words for '
        f'{", ".join(unsaid)}: save it as the family it was'
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

  The arguments stand in for absent fields, as in transformers' class of the family.

  Args:
    shared_heads: whether `num_key_value_heads` may be absent; it is then the number of query heads.
    head_dim: the width divided by the heads if None.
  """
  width = fields.count('hidden_size')
  heads = fields.count('num_attention_heads')
  return dict(
    vocab_size=fields.count('vocab_size'),
    num_layers=fields.count('num_hidden_layers'),
    width=width,
    num_heads=heads,
    num_kv_heads=fields.count('num_key_value_heads', *([heads] if shared_heads else [])),
    head_dim=fields.count('head_dim', head_dim or width // heads),
    mlp_width=fields.count('intermediate_size'),
    norm_eps=fields.positive('rms_norm_eps', norm_eps),
    tied=fields.take('tie_word_embeddings', tied, kind=bool),
    max_positions=fields.count('max_position_embeddings', max_positions),
  )


def read_windows(
  fields: Fields, layers: int, *, default: list[str], window: int | None
) -> dict[str, Any]:
  """`local_layers` and `window`, from `layer_types`.

  Args:
    default: the kinds of the layers if the field is absent.
    window: in tokens; needed if a layer is local.

  Raises:
    InputError: if the decoder does not have a kind, the number of kinds is not that of layers, or a
      local layer has no window.
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
  """The field `layer_types`, which says of each layer whether it is local."""
  return [
    'sliding_attention' if i in config.local_layers else 'full_attention'
    for i in range(config.num_layers)
  ]


def read_rope(fields: Fields, *, max_positions: int, theta: float = 1e4) -> Rope:
  """The rotary embedding of the whole head.

  transformers 5 writes `rope_parameters`, earlier versions `rope_theta` and `rope_scaling`.

  Args:
    theta: base frequency if the config names none.

  Raises:
    InputError: if the decoder does not have the kind of scaling, or a key of the scaling.
  """
  inside, theta = rope_fields(fields, theta)
  for place in (fields, inside):
    place.expect('partial_rotary_factor', 1.0)
  fields.asked['rope_type'] = f'only {", ".join(ROPES)}'
  return read_rope_kind(inside, theta, max_positions=max_positions)


def rope_fields(fields: Fields, theta: float) -> tuple[Fields, float]:
  """The fields inside `rope_parameters` or `rope_scaling`, and the base frequency.

  Args:
    theta: base frequency if the config names none.
  """
  parameters = fields.take('rope_parameters', {}, kind=dict)
  scaling = fields.take('rope_scaling', {}, kind=dict)
  if parameters and scaling and parameters != scaling:
    raise InputError(
      f"{fields.where}: 'rope_parameters' and 'rope_scaling' are both there and differ; keep one"
    )
  key = 'rope_parameters' if parameters else 'rope_scaling'
  inside = Fields(parameters or scaling, where=f"{fields.where}, in '{key}'")
  return inside, inside.positive('rope_theta', fields.positive('rope_theta', theta))


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
    original: length of the original context if the fields do not say; `max_positions` if None.
  """
  # Older checkpoints say 'type'; where both are there, transformers reads 'rope_type'.
  kind = inside.take('rope_type', inside.take('type', 'default', kind=str), kind=str)
  if kind == 'su':
    # The first name of longrope, in early Phi-3 checkpoints.
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
      inside.count('original_max_position_embeddings', original or max_positions),
    )
    if rope.high_freq_factor <= rope.low_freq_factor:
      raise InputError(
        f"{inside.where}: 'high_freq_factor' is {rope.high_freq_factor}, expected more than "
        f"'low_freq_factor', {rope.low_freq_factor}"
      )
  else:
    rope = _read_longrope(inside, theta, max_positions, original or max_positions)
  inside.finish()
  return rope


def _read_longrope(inside: Fields, theta: float, max_positions: int, original: int) -> Rope:
  original = inside.count('original_max_position_embeddings', original)
  factor = inside.positive('factor', max_positions / original)
  attention = inside.positive('attention_factor', longrope_attention_factor(factor, original))
  short = _read_factors(inside, 'short_factor')
  long = _read_factors(inside, 'long_factor')
  return Rope(theta, 'longrope', 1.0, 1.0, 1.0, original, short, long, attention)


def _read_factors(inside: Fields, key: str) -> tuple[float, ...]:
  values = inside.take(key, kind=list)
  # bool is a kind of int in Python, and true is no factor.
  numbers = [x for x in values if isinstance(x, (int, float)) and not isinstance(x, bool)]
  if not values or len(numbers) < len(values) or min(numbers) <= 0:
    raise InputError(f"{inside.where}: '{key}' is {values!r}, expected a list of numbers above 0")
  return tuple(map(float, numbers))


def longrope_attention_factor(factor: float, original: int) -> float:
  """The factor of cosines and sines in 'longrope', for a context stretched by `factor`.

  Source: LongRoPE, arXiv 2402.13753; transformers `modeling_rope_utils.py`.
  """
  return 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))


def write_scaling(rope: Rope) -> dict[str, Any]:
  """The content of `rope_scaling`, or of `rope_parameters` beside `rope_theta`."""
  if rope.kind == 'default':
    return {'rope_type': 'default'}
  if rope.kind == 'longrope':
    return {
      'rope_type': 'longrope',
      'short_factor': list(rope.short_factors),
      'long_factor': list(rope.long_factors),
      'attention_factor': rope.attention_factor,
    }
  scaling = {'rope_type': rope.kind, 'factor': rope.factor}
  if rope.kind == 'llama3':
    scaling |= {
      'low_freq_factor': rope.low_freq_factor,
      'high_freq_factor': rope.high_freq_factor,
      'original_max_position_embeddings': rope.original_max_positions,
    }
  return scaling


def write_rope(rope: Rope) -> dict[str, Any]:
  """The rotary embedding's fields, which transformers before and after 5 read alike."""
  scaling = {} if rope.kind == 'default' else {'rope_scaling': write_scaling(rope)}
  return {'rope_theta': rope.theta, **scaling}


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
    # Padding is the tokenizer's business. Without the field, transformers' class puts in an id of
    # its own, perhaps beyond the vocabulary.
    'pad_token_id': None,
    **write_rope(config.rope),
  }


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
  """Rows of a block's norms, from {our name: Hugging Face's name}."""
  return tuple(
    TensorRow(f'layers/{ours}/scale', f'model.layers.{{l}}.{theirs}.weight', 'D -> D')
    for ours, theirs in names.items()
  )


PRE_NORMS = block_norms(attn_norm='input_layernorm', mlp_norm='post_attention_layernorm')
# The tensors of a pre-norm decoder with a gated MLP, by the names of Llama and most later families.
PRE_NORM_TENSORS = (*EMBEDDING, *PRE_NORMS, *ATTENTION, *GATED_MLP, *END)
