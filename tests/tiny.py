"""Tiny random checkpoints, made and saved by transformers, with a value other than the default in
every field."""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import torch
import transformers

from weightsteer_jax import models

FAMILIES = {
  'llama': (transformers.LlamaConfig, transformers.LlamaForCausalLM),
  'qwen2': (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
  'qwen3': (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
  'mistral': (transformers.MistralConfig, transformers.MistralForCausalLM),
  'gemma2': (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
  'gemma3_text': (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
  'olmo2': (transformers.Olmo2Config, transformers.Olmo2ForCausalLM),
  'phi3': (transformers.Phi3Config, transformers.Phi3ForCausalLM),
  'smollm3': (transformers.SmolLM3Config, transformers.SmolLM3ForCausalLM),
  'granite': (transformers.GraniteConfig, transformers.GraniteForCausalLM),
  'qwen3_moe': (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
  'mixtral': (transformers.MixtralConfig, transformers.MixtralForCausalLM),
}
# Frequencies are low and contexts short, so that the band of 'llama3' scaling lies within the few
# positions that the tests use.
LLAMA3_ROPE = dict(
  rope_type='llama3',
  rope_theta=700.0,
  factor=8.0,
  low_freq_factor=1.5,
  high_freq_factor=3.5,
  original_max_position_embeddings=40,
)
LONGROPE = dict(
  rope_type='longrope',
  rope_theta=400.0,
  short_factor=[1.0, 1.1, 1.2, 1.4, 1.7, 2.0],
  long_factor=[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
)
SIZES = dict(
  vocab_size=89,
  hidden_size=48,
  intermediate_size=56,
  num_hidden_layers=3,
  max_position_embeddings=64,
  rms_norm_eps=3e-3,
)
CASES = {
  'llama2': dict(
    family='llama',
    num_attention_heads=6,
    num_key_value_heads=6,
    rope_parameters=dict(rope_type='default', rope_theta=900.0),
  ),
  'llama3': dict(
    family='llama', num_attention_heads=6, num_key_value_heads=2, rope_parameters=LLAMA3_ROPE
  ),
  'llama32_tied': dict(
    family='llama',
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=10,
    tie_word_embeddings=True,
    rope_parameters=LLAMA3_ROPE,
  ),
  'llama_biases': dict(
    family='llama',
    num_attention_heads=4,
    num_key_value_heads=2,
    attention_bias=True,
    mlp_bias=True,
    hidden_act='gelu',
    rope_parameters=dict(rope_type='linear', rope_theta=800.0, factor=2.5),
  ),
  'qwen2': dict(
    family='qwen2',
    num_attention_heads=6,
    num_key_value_heads=3,
    hidden_act='gelu_pytorch_tanh',
    head_dim=12,
    rope_parameters=dict(rope_type='linear', rope_theta=600.0, factor=1.5),
  ),
  'qwen2_tied': dict(
    family='qwen2',
    num_attention_heads=4,
    num_key_value_heads=2,
    hidden_act='relu',
    tie_word_embeddings=True,
    rope_parameters=dict(rope_type='default', rope_theta=1200.0),
  ),
  'qwen3': dict(
    family='qwen3',
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,
    attention_bias=True,
    use_sliding_window=True,
    sliding_window=7,
    max_window_layers=1,
    rope_parameters=dict(rope_type='default', rope_theta=500.0),
  ),
  'mistral': dict(
    family='mistral',
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=14,
    sliding_window=9,
    rope_parameters=dict(rope_type='default', rope_theta=700.0),
  ),
  'gemma2': dict(
    family='gemma2',
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=6,
    query_pre_attn_scalar=5,
    attn_logit_softcapping=3.0,
    final_logit_softcapping=6.0,
    attention_bias=True,
    rope_parameters=dict(rope_type='default', rope_theta=800.0),
  ),
  'gemma3': dict(
    family='gemma3_text',
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=12,
    sliding_window=8,
    query_pre_attn_scalar=20,
    final_logit_softcapping=7.0,
    layer_types=['sliding_attention', 'full_attention', 'sliding_attention'],
    rope_parameters=dict(
      full_attention=dict(rope_type='linear', rope_theta=2000.0, factor=3.0),
      sliding_attention=dict(rope_type='default', rope_theta=90.0),
    ),
  ),
  'olmo2': dict(
    family='olmo2',
    num_attention_heads=6,
    num_key_value_heads=3,
    attention_bias=True,
    rope_parameters=dict(rope_type='default', rope_theta=600.0),
  ),
  'phi3': dict(
    family='phi3',
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=11,
    pad_token_id=0,
    rope_parameters=dict(rope_type='default', rope_theta=500.0, partial_rotary_factor=0.5),
  ),
  'phi3_short': dict(
    family='phi3',
    num_attention_heads=4,
    num_key_value_heads=4,
    pad_token_id=0,
    original_max_position_embeddings=40,
    rope_parameters=LONGROPE,
  ),
  'phi3_long': dict(
    family='phi3',
    num_attention_heads=4,
    num_key_value_heads=4,
    pad_token_id=0,
    original_max_position_embeddings=10,
    rope_parameters=LONGROPE,
  ),
  'smollm3': dict(
    family='smollm3',
    num_attention_heads=4,
    num_key_value_heads=2,
    attention_bias=True,
    mlp_bias=True,
    no_rope_layers=[1, 0, 1],
    use_sliding_window=True,
    sliding_window=10,
    pad_token_id=0,
    tie_word_embeddings=False,
    rope_parameters=LLAMA3_ROPE,
  ),
  'granite': dict(
    family='granite',
    num_attention_heads=4,
    num_key_value_heads=2,
    attention_bias=True,
    mlp_bias=True,
    attention_multiplier=0.4,
    embedding_multiplier=3.0,
    residual_multiplier=0.6,
    logits_scaling=0.7,
    rope_parameters=dict(rope_type='default', rope_theta=900.0),
  ),
  'qwen3_moe': dict(
    family='qwen3_moe',
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,
    attention_bias=True,
    use_sliding_window=True,
    sliding_window=9,
    moe_intermediate_size=20,
    num_experts=6,
    num_experts_per_tok=3,
    norm_topk_prob=True,
    tie_word_embeddings=True,
    rope_parameters=dict(rope_type='default', rope_theta=600.0),
  ),
  'qwen3_moe_unnormalised': dict(
    family='qwen3_moe',
    num_attention_heads=4,
    num_key_value_heads=4,
    moe_intermediate_size=24,
    num_experts=4,
    num_experts_per_tok=2,
    hidden_act='gelu',
    rope_parameters=dict(rope_type='linear', rope_theta=600.0, factor=1.5),
  ),
  'mixtral': dict(
    family='mixtral',
    num_attention_heads=6,
    num_key_value_heads=2,
    sliding_window=8,
    num_local_experts=5,
    num_experts_per_tok=3,
    rope_parameters=dict(rope_type='default', rope_theta=900.0),
  ),
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint on disk, with the torch model that it was saved from."""

  folder: pathlib.Path
  torch_model: torch.nn.Module
  family: str

  @functools.cached_property
  def model(self) -> models.Model:
    """Ours, read from the folder."""
    return models.load(self.folder)

  def torch_logits(self, tokens: np.ndarray) -> np.ndarray:
    """The oracle's logits [B, T, V] of full rows."""
    with torch.no_grad():
      return self.torch_model(torch.as_tensor(np.asarray(tokens), dtype=torch.long)).logits.numpy()


def make(
  folder: pathlib.Path,
  *,
  family: str,
  seed: int = 0,
  dtype: torch.dtype = torch.float32,
  max_shard_size: str = '1GB',
  **fields,
) -> Checkpoint:
  """A saved checkpoint with every weight random: norms and biases too, and large enough that each
  matters to the logits."""
  config_class, model_class = FAMILIES[family]
  fields = json.loads(json.dumps(fields))  # transformers completes what it is given in place.
  torch.manual_seed(seed)
  torch_model = model_class(config_class(**{**SIZES, **fields}, attn_implementation='eager')).eval()
  with torch.no_grad():
    for name, parameter in torch_model.named_parameters():
      parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if 'norm' in name else 0.0))
  torch_model = torch_model.to(dtype)
  torch_model.save_pretrained(folder, max_shard_size=max_shard_size)
  return Checkpoint(folder, torch_model, family)


def tokens(
  shape: tuple[int, ...], *, vocab_size: int = SIZES['vocab_size'], seed: int = 0
) -> np.ndarray:
  """Random token ids, int32."""
  return np.random.default_rng(seed).integers(0, vocab_size, shape, dtype=np.int32)


# Half the time of a compilation; for tests that compare within a tolerance.
QUICK = {'xla_backend_optimization_level': 0}


def forward(config: models.ModelConfig, params, tokens_BT, *, edits=(), **placement):
  """Compiled logits [B, T, V] of a full forward pass; `placement`: more fields of TokenBatch."""
  batch = models.TokenBatch(tokens_BT, **placement)
  return np.asarray(_compiled(config)(params, batch, edits))


@functools.cache
def _compiled(config: models.ModelConfig):
  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(params, batch, edits):
    x_BTD, _ = models.hidden(config, params, batch, edits=edits)
    return models.logits(config, params, x_BTD, edits=edits)

  return run


def randomised(tree, seed: int = 0, scale: float = 0.2):
  """The tree with normal random numbers in place of its own."""
  leaves, structure = jax.tree.flatten(tree)
  draw = np.random.default_rng(seed)
  return jax.tree.unflatten(
    structure, [np.asarray(draw.normal(size=leaf.shape) * scale, leaf.dtype) for leaf in leaves]
  )
