"""Tiny random checkpoints, made and saved by transformers, with a value other than the default in every field."""
import dataclasses
import functools
import pathlib

import jax
import numpy as np
import torch
import transformers

from weightsteer_jax import models

FAMILIES = {
    'llama': (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    'qwen2': (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
}
# Frequencies are low and contexts short, so that the band of 'llama3' scaling lies within the few positions that the
# tests use.
LLAMA3_ROPE = dict(rope_type='llama3', rope_theta=700.0, factor=8.0, low_freq_factor=1.5, high_freq_factor=3.5,
                   original_max_position_embeddings=40)
SIZES = dict(vocab_size=89,
             hidden_size=48,
             intermediate_size=56,
             num_hidden_layers=3,
             max_position_embeddings=64,
             rms_norm_eps=3e-3)
CASES = {
    'llama2': dict(family='llama',
                   num_attention_heads=6,
                   num_key_value_heads=6,
                   rope_parameters=dict(rope_type='default', rope_theta=900.0)),
    'llama3': dict(family='llama', num_attention_heads=6, num_key_value_heads=2, rope_parameters=LLAMA3_ROPE),
    'llama32_tied': dict(family='llama',
                         num_attention_heads=4,
                         num_key_value_heads=1,
                         head_dim=10,
                         tie_word_embeddings=True,
                         rope_parameters=LLAMA3_ROPE),
    'llama_biases': dict(family='llama',
                         num_attention_heads=4,
                         num_key_value_heads=2,
                         attention_bias=True,
                         mlp_bias=True,
                         hidden_act='gelu',
                         rope_parameters=dict(rope_type='linear', rope_theta=800.0, factor=2.5)),
    'qwen2': dict(family='qwen2',
                  num_attention_heads=6,
                  num_key_value_heads=3,
                  hidden_act='gelu_pytorch_tanh',
                  head_dim=12,
                  rope_parameters=dict(rope_type='linear', rope_theta=600.0, factor=1.5)),
    'qwen2_tied': dict(family='qwen2',
                       num_attention_heads=4,
                       num_key_value_heads=2,
                       hidden_act='relu',
                       tie_word_embeddings=True,
                       rope_parameters=dict(rope_type='default', rope_theta=1200.0)),
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


def make(folder: pathlib.Path,
         *,
         family: str,
         seed: int = 0,
         dtype: torch.dtype = torch.float32,
         max_shard_size: str = '1GB',
         **fields) -> Checkpoint:
  """A saved checkpoint with every weight random: norms and biases too, and large enough that each matters to the
  logits."""
  config_class, model_class = FAMILIES[family]
  torch.manual_seed(seed)
  torch_model = model_class(config_class(**{**SIZES, **fields})).eval()
  with torch.no_grad():
    for name, parameter in torch_model.named_parameters():
      parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if 'norm' in name else 0.0))
  torch_model = torch_model.to(dtype)
  torch_model.save_pretrained(folder, max_shard_size=max_shard_size)
  return Checkpoint(folder, torch_model, family)


def tokens(shape: tuple[int, ...], *, vocab_size: int = SIZES['vocab_size'], seed: int = 0) -> np.ndarray:
  """Random token ids, int32."""
  return np.random.default_rng(seed).integers(0, vocab_size, shape, dtype=np.int32)


# Half the time of a compilation; for tests that compare within a tolerance.
QUICK = {'xla_backend_optimization_level': 0}


def forward(config: models.ModelConfig, params, tokens_BT, **options):
  """Logits [B, T, V] of a full forward pass, compiled."""
  edits = options.pop('edits', ())
  return np.asarray(_compiled(config)(params, tokens_BT, edits, options))


@functools.cache
def _compiled(config: models.ModelConfig):
  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(params, tokens_BT, edits, arrays):
    x_BTD, _ = models.hidden(config, params, tokens_BT, edits=edits, **arrays)
    return models.logits(config, params, x_BTD, edits=edits)

  return run


def randomised(tree, seed: int = 0, scale: float = 0.2):
  """The tree with normal random numbers in place of its own."""
  leaves, structure = jax.tree.flatten(tree)
  draw = np.random.default_rng(seed)
  return jax.tree.unflatten(structure,
                            [np.asarray(draw.normal(size=leaf.shape) * scale, leaf.dtype) for leaf in leaves])
