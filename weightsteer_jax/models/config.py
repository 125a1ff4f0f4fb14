"""What a decoder is made of: every number and choice of the architecture, and nothing else."""
import dataclasses

ACTIVATIONS = ('silu', 'gelu', 'gelu_pytorch_tanh', 'relu')


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary position embedding: the base frequency and how it is stretched for long contexts.

  Attributes:
    theta: base of the geometric series of wavelengths.
    kind: 'default', 'linear' (all frequencies divided by `factor`) or 'llama3' (low frequencies divided, high ones
      kept, the band between interpolated).
    factor: stretch of 'linear' and 'llama3'.
    low_freq_factor, high_freq_factor: edges of the 'llama3' band, in wavelengths per original context.
    original_max_positions: context length, in tokens, the 'llama3' model was trained on first.
  """
  theta: float
  kind: str
  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_positions: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer, in the letters of `decoder.py`.

  Attributes:
    vocab_size: V. num_layers: L. width: D. num_heads: N. num_kv_heads: K. head_dim: H. mlp_width: F.
    norm_eps: added to the mean square in RMSNorm.
    rope: rotary position embedding.
    tied: the head is the transposed embedding.
    qkv_bias, o_bias, mlp_bias: which projections carry a bias.
    activation: of the MLP gate, one of ACTIVATIONS.
    max_positions: longest sequence, in tokens; the forward pass refuses longer ones.
    num_experts: E, experts of each layer's MLP, all of width F; 0 if it is one dense MLP.
    experts_per_token: how many of them, those with the highest probability, a token goes through.
    normalise_choices: the probabilities of those are made to sum to one.
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
  num_experts: int = 0
  experts_per_token: int = 0
  normalise_choices: bool = False

  def sizes(self) -> dict[str, int]:
    """{axis letter: size} for the axes of parameters."""
    return dict(V=self.vocab_size, L=self.num_layers, D=self.width, N=self.num_heads, K=self.num_kv_heads,
                H=self.head_dim, F=self.mlp_width, E=self.num_experts)
