"""What a decoder is made of: every number and choice of the architecture, and nothing else."""

import dataclasses
from collections.abc import Mapping
from typing import Any

ACTIVATIONS = ('silu', 'gelu', 'gelu_pytorch_tanh', 'relu')
QK_NORMS = ('none', 'head', 'projection')


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary position embedding: the base frequency and how it is stretched for long contexts.

  Attributes:
    theta: base of the geometric series of wavelengths.
    kind: 'default', 'linear' (all frequencies divided by `factor`), 'llama3' (low frequencies
      divided, high ones kept, the band between interpolated) or 'longrope' (each frequency divided
      by a number of its own).
    factor: stretch of 'linear' and 'llama3'. low_freq_factor, high_freq_factor: edges of the
    'llama3' band, in wavelengths per original context.
    original_max_positions: context length, in tokens, the model was trained on first ('llama3',
      'longrope').
    short_factors, long_factors: what 'longrope' divides each frequency by, in calls of up to
    `original_max_positions`
      positions and in longer ones.
    attention_factor: 'longrope' multiplies cosines and sines by it.
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
    vocab_size: V. num_layers: L. width: D. num_heads: N. num_kv_heads: K. head_dim: H. mlp_width:
      F.
    norm_eps: added to the mean square in RMSNorm.
    rope: rotary position embedding.
    tied: the head is the transposed embedding.
    qkv_bias, o_bias, mlp_bias: which projections carry a bias.
    activation: of the MLP gate, one of ACTIVATIONS.
    max_positions: longest sequence, in tokens; the forward pass refuses longer ones.
    pre_norm, post_norm: attention and MLP are normed before, and after, before they join the
    residual stream.
    norm_offset: added to the scale of every norm; the scale is kept as it is stored.
    qk_norm: queries and keys are normed before they are rotated: 'none', each 'head', or the whole
      'projection'.
    score_scale: attention scores are multiplied by it; by 1 / sqrt(head_dim) if None.
    score_softcap, logit_softcap: scores, and logits, are bent to stay within plus and minus that:
    cap tanh(x / cap).
    local_layers: indices of the layers in which a query sees only the last `window` tokens, itself
      included.
    window: see there; None where no layer is local.
    local_rope: the rotary embedding of local layers, `rope` if None.
    unrotated_layers: indices of the layers without a rotary embedding.
    rotary_fraction: share of each head's dimensions, the first ones, that is rotated.
    embedding_scale: embeddings are multiplied by it. residual_scale: what joins the residual stream
      is.
    logit_divisor: logits are divided by it.
    num_experts: E, experts of each layer's MLP, all of width F; 0 if it is one dense MLP.
    experts_per_token: how many of them, those with the highest probability, a token goes through.
    normalise_choices: the probabilities of those are made to sum to one.
    attention: which kernel computes attention (see attention.py); no part of the architecture, nor
      of its record.
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
  # Defaults are what a model was before there was the choice: directions written then are read with
  # them.
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
    """The config without the choice of a kernel, which a checkpoint knows nothing of: what is to be
    compared.
    """
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
  return {key: value for key, value in dataclasses.asdict(config).items() if key != 'attention'}


def from_record(record: Mapping[str, Any]) -> ModelConfig:
  """The inverse of `to_record`, also after JSON; fields that are not there have their defaults.

  Raises:
    TypeError: a field that is not known, or one without a default that is missing.
  """
  plain = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
  ropes = {
    key: Rope(**{name: tuple(x) if isinstance(x, list) else x for name, x in value.items()})
    for key, value in plain.items()
    if isinstance(value, Mapping)
  }
  return ModelConfig(**plain | ropes)
