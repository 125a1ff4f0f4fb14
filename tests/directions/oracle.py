"""Tiny random models in torch, real PEFT adapters, and their changes by torch in float64."""

import pathlib
import warnings

import jax
import numpy as np
import peft
import torch
import transformers

from weightsteer_jax import models
from weightsteer_jax.directions import Direction, base_of
from weightsteer_jax.exports import parity
from weightsteer_jax.models import Dense, LowRank

LORA_TARGETS = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']
# As many as the default prompts: nothing compiles twice.
TOKENS = np.random.default_rng(7).integers(0, 40, (4, 16))
TORCH_NAMES = {
  'embed/embedding': 'model.embed_tokens.weight',
  'lm_head/kernel': 'lm_head.weight',
  'final_norm/scale': 'model.norm.weight',
  'layers/attn_norm/scale': 'input_layernorm.weight',
  'layers/mlp_norm/scale': 'post_attention_layernorm.weight',
  **{f'layers/attn/{x}/kernel': f'self_attn.{x}_proj.weight' for x in 'qkvo'},
  **{f'layers/attn/{x}/bias': f'self_attn.{x}_proj.bias' for x in 'qkv'},
  **{f'layers/mlp/{x}/kernel': f'mlp.{x}_proj.weight' for x in ('gate', 'up', 'down')},
}


def make_checkpoint(
  folder: pathlib.Path, *, tied: bool, seed: int = 0, width: int = 16, moved: float = 0.0
) -> pathlib.Path:
  """A saved Qwen2 of two layers, with biases and norms away from their defaults.

  Args:
    moved: size of random changes; of the same seed, a fine-tune of the model with 0.
  """
  torch.manual_seed(seed)
  config = transformers.Qwen2Config(
    vocab_size=40,
    hidden_size=width,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=tied,
  )
  model = transformers.Qwen2ForCausalLM(config)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
    for parameter in model.parameters() if moved else ():
      parameter.add_(moved * torch.randn_like(parameter))
  model.save_pretrained(folder)
  return folder


def make_adapter(
  folder: pathlib.Path,
  base: pathlib.Path,
  *,
  seed: int,
  size: float = 0.05,
  r: int = 3,
  lora_alpha: int = 5,
  model_class: type = transformers.AutoModelForCausalLM,
  **options,
) -> pathlib.Path:
  """A saved PEFT adapter whose trainable tensors were moved at random."""
  torch.manual_seed(seed)
  options = {'target_modules': LORA_TARGETS, 'task_type': 'CAUSAL_LM'} | options
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    model = model_class.from_pretrained(base)
    model = peft.get_peft_model(model, peft.LoraConfig(r=r, lora_alpha=lora_alpha, **options))
    with torch.no_grad():
      for parameter in model.parameters():
        if parameter.requires_grad:
          parameter.add_(size * torch.randn_like(parameter))
    model.save_pretrained(folder)
  return folder


def torch_weights(base: pathlib.Path, adapter: pathlib.Path | None = None) -> dict[str, np.ndarray]:
  """{tensor name: float64 array} of a checkpoint, with an adapter merged in by PEFT if given."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    model = transformers.AutoModelForCausalLM.from_pretrained(base).double()
    if adapter is not None:
      model = (
        peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
        .double()
        .merge_and_unload()
      )
  return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def dense_in_torch_axes(delta) -> dict[str, np.ndarray]:
  """{torch tensor name: float64 change} of a delta, computed here from its leaves alone."""
  changes = {}
  for path, leaf in leaves_of(delta).items():
    stacked = path.startswith('layers/')
    for layer, change in enumerate(_layers(leaf, stacked)):
      name = f'model.layers.{layer}.{TORCH_NAMES[path]}' if stacked else TORCH_NAMES[path]
      changes[name] = change.T if path.endswith('kernel') else change
  return changes


def leaves_of(delta) -> dict[str, LowRank | Dense]:
  leaves = jax.tree_util.tree_leaves_with_path(delta, is_leaf=models.is_delta_leaf)
  return {'/'.join(key.key for key in path): leaf for path, leaf in leaves}


def _layers(leaf, stacked):
  """Each layer's change in float64; kernels as [inputs, outputs]."""
  if isinstance(leaf, LowRank):
    a = np.asarray(leaf.a, np.float64)
    b = leaf.scale * np.asarray(leaf.b, np.float64)
    if not stacked:
      a = a[None]
      b = b[None]
    return [x.reshape(-1, x.shape[-1]) @ y.reshape(y.shape[0], -1) for x, y in zip(a, b)]
  value = np.asarray(leaf.value, np.float64)
  value = value if stacked else value[None]
  if value.ndim <= 3 and not (stacked and value.ndim == 3 and value.shape[1] == 4):
    return list(value)
  raise AssertionError('dense attention kernels are compared in our own axes')


def random_direction(
  model: models.Model, seed: int, *, kinds: str = 'mixed', rank: int = 3, size: float = 0.1
) -> Direction:
  """A random direction: factors at the kernels and, if 'mixed', dense embedding and head."""
  random = np.random.default_rng(seed)
  kind = 'lora_embeddings' if kinds == 'mixed' else 'lora'
  delta = models.init_delta(
    model.config, kind, jax.random.key(seed), rank=rank, lora_alpha=2.0 * rank
  )
  delta = jax.tree.map(lambda x: (size * random.standard_normal(x.shape)).astype(np.float32), delta)
  meta = {'kind': 'test', 'base': base_of(model).to_json(), 'sources': []}
  return Direction(jax.tree.map(jax.numpy.asarray, delta), meta)


def unmerged_logits(model: models.Model, direction: Direction, alpha: float) -> np.ndarray:
  """Our logits of TOKENS with the direction applied unmerged."""
  return parity.logits(model.config, model.params, TOKENS, delta=direction.delta, alpha=alpha)


def torch_logits(model: torch.nn.Module) -> np.ndarray:
  """Torch's logits of TOKENS."""
  with torch.no_grad():
    return model.eval()(torch.tensor(TOKENS)).logits.float().numpy()
