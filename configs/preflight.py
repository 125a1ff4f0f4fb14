"""The settings of a contrast on a large model, for weightsteer preflight alone: no data is named.

  weightsteer preflight --config=preflight:Qwen2.5-7B --topology=v5e:4x4

After the colon stands a model whose architecture lies in configs/preflight/ (Qwen2.5-7B,
Llama-2-7B, Llama-3.3-70B, Qwen3-30B-A3B), with the fields of the published config.json that a
forward pass depends on. A model of your own is --config.model.source=FOLDER, or a hub id, of which
config.json alone is downloaded.

LoRA of rank 32 on all linear layers, in bfloat16, one example of up to 1,024 tokens to a shard of
the rows.
"""

import pathlib

from weightsteer_jax import config as configs

ARCHITECTURES = pathlib.Path(__file__).parent / 'preflight'


def get_config(model: str = 'Qwen2.5-7B'):
  c = configs.base_config()
  c.name = 'preflight'
  c.model.source = str(ARCHITECTURES / model)
  c.model.dtype = 'bfloat16'
  c.data.positive = 'positive.jsonl'
  c.data.negative = 'negative.jsonl'
  c.finetune.kind = 'lora'
  c.finetune.rank = 32
  c.finetune.batch_size = 1
  c.finetune.remat = 'full'
  c.sweep.batch_size = 64
  return c
