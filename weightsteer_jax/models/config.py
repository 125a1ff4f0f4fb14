"""The architecture of a decoder: every number and choice, and nothing else."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Activations of the MLP, by their name in a Hugging Face config.
ACTIVATIONS = ('silu', 'gelu', 'gelu_pytorch_tanh', 'relu')
# How much of a query or a key is normed together.
QK_NORMS = ('none', 'head', 'projection')


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary position embedding: the base frequency and how it is stretched for long contexts.

  Attributes:
    theta: base of the geometric series of wavelengths.
    kind: 'default', 'linear' (all frequencies divided by `factor`), 'llama3' (low frequencies
      divided, high ones kept, the band between interpolated) or 'longrope' (each frequency divided
      by a number of its own).
    factor: stretch of 'linear' and 'llama3'.
    low_freq_factor: lower edge of the 'llama3' band, in wavelengths per original context.
    high_freq_factor: upper edge of the band.
    original_max_positions: context length, in tokens, of the first training ('llama3',
      'longrope').
    short_factors: divisors of the 'longrope' frequencies, in calls of up to
      `original_max_positions` positions.
    long_factors: divisors in longer calls.
    attention_factor: factor of cosines and sines ('longrope').
  """

  theta: float
  kind: str
  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_positions: int
  short_factors: tuple[float, ...] = ()
  long_factors: tuple[float, ...] = ()
  attention_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer, in the letters of `decoder.py`.

  Attributes:
    vocab_size: V.
    num_layers: L.
    width: D.
    num_heads: N.
    num_kv_heads: K.
    head_dim: H.
    mlp_width: F.
    norm_eps: added to the mean square in RMSNorm.
    rope: rotary position embedding.
    tied: whether the head is the transposed embedding.
    qkv_bias, o_bias, mlp_bias: whether these projections have a bias.
    activation: of the MLP gate, one of ACTIVATIONS.
    max_positions: longest sequence, in tokens; the forward pass refuses longer sequences.
    pre_norm: whether the inputs of attention and MLP are normed.
    post_norm: whether the outputs are normed before they join the residual stream.
    norm_offset: added to the scale of every norm; the parameter is the scale as stored.
    qk_norm: how queries and keys are normed before the rotation: 'none', each 'head', or the whole
      'projection'.
    score_scale: factor of attention scores; 1 / sqrt(head_dim) if None.
    score_softcap: bound of the scores: cap tanh(x / cap); None for no bound.
    logit_softcap: the same of the logits.
    local_layers: indices of layers in which a query sees only the last `window` tokens, its own
      token included.
    window: tokens that a query of a local layer sees; None if no layer is local.
    local_rope: rotary embedding of local layers; `rope` if None.
    unrotated_layers: indices of layers without a rotary embedding.
    rotary_fraction: share of each head's dimensions, from the first on, that is rotated.
    embedding_scale: factor of the embeddings.
    residual_scale: factor of what attention and MLP add to the residual stream.
    logit_divisor: divisor of the logits.
    num_experts: E, the experts of each layer's MLP, all of width F; 0 for one dense MLP.
    experts_per_token: how many experts, the most probable ones, a token goes through.
    normalise_choices: whether the probabilities of a token's experts are made to sum to one.
    attention: the kernel that computes attention (see attention.py); no part of the architecture,
      nor of its record.
  """

  vocab_size: int
  num_layers: int
  width: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int
  norm_eps: float
  rope: Rope
  tied: bool
  qkv_bias: bool
  o_bias: bool
  mlp_bias: bool
  activation: str
  max_positions: int
  # A default is what every model was before the field existed: directions written then are read
  # with the defaults.
  pre_norm: bool = True
  post_norm: bool = False
  norm_offset: float = 0.0
  qk_norm: str = 'none'
  score_scale: float | None = None
  score_softcap: float | None = None
  logit_softcap: float | None = None
  local_layers: tuple[int, ...] = ()
  window: int | None = None
  local_rope: Rope | None = None
  unrotated_layers: tuple[int, ...] = ()
  rotary_fraction: float = 1.0
  embedding_scale: float = 1.0
  residual_scale: float = 1.0
  logit_divisor: float = 1.0
  num_experts: int = 0
  experts_per_token: int = 0
  normalise_choices: bool = False
  attention: str = 'reference'

  @property
  def rotary_dim(self) -> int:
    """Dimensions of a head that are rotated."""
    return int(self.head_dim * self.rotary_fraction)

  @property
  def architecture(self) -> 'ModelConfig':
    """The config without the choice of a kernel, of which a checkpoint says nothing."""
    return dataclasses.replace(self, attention='reference')

  def sizes(self) -> dict[str, int]:
    """{axis letter: size} for the axes of parameters."""
    return dict(
      V=self.vocab_size,
      L=self.num_layers,
      D=self.width,
      N=self.num_heads,
      K=self.num_kv_heads,
      H=self.head_dim,
      F=self.mlp_width,
      E=self.num_experts,
    )


def to_record(config: ModelConfig) -> dict[str, Any]:
  """The architecture as nested dicts of plain values."""
  record = dataclasses.asdict(config)
  # The kernel is a choice of this machine, not of the model.
  del record['attention']
  return record


def from_record(record: Mapping[str, Any]) -> ModelConfig:
  """The inverse of `to_record`, also after JSON; absent fields have their defaults.

  Raises:
    TypeError: if a field is unknown, or a field without a default is missing.
  """

  def as_written(value: Any) -> Any:
    if isinstance(value, Mapping):
      return Rope(**{key: as_written(inner) for key, inner in value.items()})
    # JSON has no tuples.
    return tuple(value) if isinstance(value, list) else value

  return ModelConfig(**{key: as_written(value) for key, value in record.items()})
