"""What a family of models is: how its `config.json` is read and written, and what its tensors are
called.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from weightsteer_jax.models.config import ACTIVATIONS, ModelConfig, Rope
from weightsteer_jax.models.families.fields import Fields
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

ROPES = ('default', 'linear', 'llama3')  # Kinds of rotary embeddings that any family can have.


class TensorRow(NamedTuple):
  """How one parameter is stored in a Hugging Face checkpoint.

  Attributes:
    path: the parameter's. name: of the tensor; '{l}' is the layer, '{e}' the expert, where there is
      one tensor each.
    pattern: einops, from their axes (of one layer and expert) to ours.
    before, after: where one tensor holds several parameters as blocks of rows, the axes of the
    blocks before and after
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
    about: the models that are of it, and what is particular to them.
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
      InputError: they would be read as another model: it has something that the family does not;
        names it.
    """
    config = config.architecture
    raw = self.describe(config)
    said = self.read(Fields(raw, where=f'the {self.model_type} config to write'))
    unsaid = [
      f'{field.name} {getattr(config, field.name)!r} (it would be {getattr(said, field.name)!r})'
      for field in dataclasses.fields(config)
      if getattr(config, field.name) != getattr(said, field.name)
    ]
    if unsaid:
      raise InputError(
        f'a {self.model_type} checkpoint cannot hold this model, for its config has no words for '
        f'{", ".join(unsaid)}: save it as the family it was'
      )
    return raw


def read_activation(fields: Fields, key: str = 'hidden_act', default: str = 'silu') -> str:
  """The MLP's activation, one that the decoder has."""
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

  Args: what stands for a field that is absent, as in transformers' class of the family.
    shared_heads: without `num_key_value_heads` there are as many as query heads; otherwise it must
      be there.
    head_dim: the width divided by the heads if None.
  """
  width, heads = fields.count('hidden_size'), fields.count('num_attention_heads')
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
    default: the kinds of the layers where the field is absent. window: in tokens; needed if a layer
      is local.

  Raises:
    InputError: a kind that the decoder does not have, another number of them than layers, or no
      window.
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
  """The field of that name: which layers are local."""
  return [
    'sliding_attention' if i in config.local_layers else 'full_attention'
    for i in range(config.num_layers)
  ]


def read_rope(fields: Fields, *, max_positions: int, theta: float = 1e4) -> Rope:
  """The rotary embedding of the whole head, from `rope_parameters` (transformers 5) or `rope_theta`
  and `rope_scaling` (before).

  Args:
    theta: where the config names none.

  Raises:
    InputError: a kind of scaling, or a key of it, that the decoder does not have.
  """
  inside, theta = rope_fields(fields, theta)
  for place in (fields, inside):
    place.expect('partial_rotary_factor', 1.0)
  fields.asked['rope_type'] = f'only {", ".join(ROPES)}'
  return read_rope_kind(inside, theta, max_positions=max_positions)


def rope_fields(fields: Fields, theta: float) -> tuple[Fields, float]:
  """What stands in `rope_parameters` or `rope_scaling`, and the base frequency, the given one if
  there is none.
  """
  raw, old = (
    fields.take('rope_parameters', {}, kind=dict),
    fields.take('rope_scaling', {}, kind=dict),
  )
  if raw and old and raw != old:
    raise InputError(
      f"{fields.where}: 'rope_parameters' and 'rope_scaling' are both there and differ; keep one"
    )
  inside = Fields(
    raw or old, where=f"{fields.where}, in '{'rope_parameters' if raw else 'rope_scaling'}'"
  )
  return inside, inside.positive('rope_theta', fields.positive('rope_theta', theta))


def read_rope_kind(
  inside: Fields,
  theta: float,
  *,
  max_positions: int,
  original: int | None = None,
  kinds: tuple[str, ...] = ROPES,
) -> Rope:
  """The rotary embedding of the fields that stand together in `rope_parameters` or `rope_scaling`.

  Args:
    original: length of the original context where these do not tell, `max_positions` if None.
  """
  # Older checkpoints say 'type'; where both are there, transformers reads 'rope_type'.
  kind = inside.take('rope_type', inside.take('type', 'default', kind=str), kind=str)
  kind = 'longrope' if kind == 'su' else kind  # Its first name.
  if kind not in kinds:
    raise InputError(
      f"{inside.where}: the rope type '{kind}' is not supported; supported: {', '.join(kinds)}"
    )
  if kind in ('default', 'linear'):
    inside.ignore('original_max_position_embeddings', *(['factor'] if kind == 'default' else []))
    rope = Rope(
      theta, kind, 1.0 if kind == 'default' else inside.positive('factor'), 1.0, 1.0, max_positions
    )
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
  """The attention factor is, if it is not there, a function of the stretch. Source: arXiv
  2402.13753.
  """
  original = inside.count('original_max_position_embeddings', original)
  factor = inside.positive('factor', max_positions / original)
  attention = inside.positive('attention_factor', longrope_attention_factor(factor, original))
  factors = {key: inside.take(key, kind=list) for key in ('short_factor', 'long_factor')}
  for key, values in factors.items():
    if not values or not all(
      isinstance(x, (int, float)) and not isinstance(x, bool) and x > 0 for x in values
    ):
      raise InputError(f"{inside.where}: '{key}' is {values!r}, expected a list of numbers above 0")
  short, long = (tuple(map(float, values)) for values in factors.values())
  return Rope(theta, 'longrope', 1.0, 1.0, 1.0, original, short, long, attention)


def longrope_attention_factor(factor: float, original: int) -> float:
  """What 'longrope' multiplies cosines and sines by, when a context is stretched by that factor."""
  return 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))


def write_scaling(rope: Rope) -> dict[str, Any]:
  """What stands in `rope_scaling`, or beside `rope_theta` in `rope_parameters`."""
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
  """The fields of `config.json` for the rotary embedding, as transformers before and after 5 read
  them.
  """
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
    # The tokenizer's business; absent, transformers' class puts in one of its own, perhaps beyond
    # the vocabulary.
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
  """Rows of the norms of a block, {ours: theirs}."""
  return tuple(
    TensorRow(f'layers/{ours}/scale', f'model.layers.{{l}}.{theirs}.weight', 'D -> D')
    for ours, theirs in names.items()
  )


PRE_NORMS = block_norms(attn_norm='input_layernorm', mlp_norm='post_attention_layernorm')
# The tensors of a pre-norm decoder with a gated MLP, as Llama names them and most families after
# it.
PRE_NORM_TENSORS = (*EMBEDDING, *PRE_NORMS, *ATTENTION, *GATED_MLP, *END)
