"""What the benchmarks run on: random checkpoints of three sizes, an adapter, rows to score and
prompts, from one seed.

A checkpoint and its adapter are folders as transformers and PEFT write them, so that each side
reads the same files. The rows have no text: tokenisation is outside every clock. Lengths are drawn
so that, as in real data, they differ.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

# Qwen2 shapes. Source of the 7B: the config.json of Qwen/Qwen2.5-7B-Instruct.
SIZES = {
  '3m': dict(
    hidden_size=192,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=512,
    vocab_size=4096,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
  ),
  '100m': dict(
    hidden_size=640,
    num_hidden_layers=12,
    num_attention_heads=10,
    num_key_value_heads=2,
    intermediate_size=2816,
    vocab_size=32000,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
  ),
  '7b': dict(
    hidden_size=3584,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    intermediate_size=18944,
    vocab_size=152064,
    max_position_embeddings=32768,
    tie_word_embeddings=False,
    rope_theta=1e6,
  ),
}
ALPHAS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
RANK = 32  # of a direction: two fine-tunes of rank 16
MODULES = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']


@dataclasses.dataclass(frozen=True)
class Question:
  """A prompt and its choices, as token ids."""

  prompt: tuple[int, ...]
  choices: tuple[tuple[int, ...], ...]


def config_of(size: str, layers: int = 0) -> Any:
  """Our config of a size; `layers` of it, 0 for all."""
  from weightsteer_jax.models import families

  config = families.read_config(
    {
      'model_type': 'qwen2',
      'architectures': ['Qwen2ForCausalLM'],
      'rms_norm_eps': 1e-6,
      'hidden_act': 'silu',
      'rope_theta': 1e4,
      **SIZES[size],
    },
    where=size,
  )
  return dataclasses.replace(config, num_layers=layers or config.num_layers)


def make_checkpoint(folder: pathlib.Path, size: str, *, dtype: str, layers: int = 0) -> None:
  """Writes folder/base and folder/adapter, unless they are there."""
  if (folder / 'adapter').exists():
    return
  import torch
  import transformers
  from peft import LoraConfig, get_peft_model
  from peft.tuners.lora import LoraLayer

  torch.manual_seed(0)
  options = SIZES[size] | ({'num_hidden_layers': layers} if layers else {})
  options['layer_types'] = ['full_attention'] * options['num_hidden_layers']
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  with torch.device(device):
    model = transformers.AutoModelForCausalLM.from_config(
      transformers.Qwen2Config(**options), dtype=getattr(torch, dtype)
    )
  model.save_pretrained(folder / 'base')
  adapted = get_peft_model(
    model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=MODULES, task_type='CAUSAL_LM')
  )
  for module in adapted.modules():
    if isinstance(module, LoraLayer):
      torch.nn.init.normal_(module.lora_B['default'].weight, std=0.01)
  adapted.save_pretrained(folder / 'adapter')


def questions(
  count: int, *, vocabulary: int, prompt: int, choices: int, seed: int = 0
) -> list[Question]:
  """Questions with prompts of about that many tokens (log-normal, a factor 1.6 up and down) and
  answers of 1 to 12."""
  random = np.random.default_rng(seed)
  return [
    Question(
      tokens(random, n, vocabulary),
      tuple(tokens(random, m, vocabulary) for m in random.integers(1, 13, choices)),
    )
    for n in lengths(random, count, median=prompt, factor=1.6, most=4 * prompt)
  ]


def conversations(
  count: int, *, vocabulary: int, length: int, seed: int
) -> list[tuple[tuple[int, ...], int]]:
  """(token ids, where the answer begins) of chats of about that many tokens (log-normal, a factor
  2), two fifths question."""
  random = np.random.default_rng(seed)
  return [
    (tokens(random, n, vocabulary), 2 * n // 5)
    for n in lengths(random, count, median=length, factor=2.0, most=4 * length)
  ]


def lengths(
  random: np.random.Generator, count: int, *, median: int, factor: float, most: int
) -> Sequence[int]:
  """Log-normal lengths, at least 8."""
  return np.clip(median * factor ** random.standard_normal(count), 8, most).astype(int).tolist()


def tokens(random: np.random.Generator, count: int, vocabulary: int) -> tuple[int, ...]:
  """Token ids, none special."""
  return tuple(random.integers(10, vocabulary, count).tolist())
