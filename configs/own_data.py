r"""Your own checkpoint and your own data, with the paper's hyperparameters.

  weightsteer steer --config=own_data --workdir=DIR \
    --config.model.source=Qwen/Qwen2.5-1.5B-Instruct

Reads four files of the current folder, or files that flags name: positive.jsonl and negative.jsonl,
the same questions answered with the behaviour and with the opposite; behaviour.jsonl and
capability.jsonl, multiple-choice items.

Hyperparameters: arXiv 2511.05408, its configurations for evil and sycophancy on Qwen2.5-7B-Instruct
(rank 32, lora_alpha 16, embeddings and head trained beside, learning rate 1e-5, 100 steps of 8
examples). The paper tries two or three learning rates and picks by validation loss; so does
--config.finetune.learning_rates='(1e-5, 5e-5)'.
"""

from weightsteer_jax import config as configs


def get_config():
  c = configs.base_config()
  c.name = 'own_data'
  c.model.source = 'model'
  c.model.dtype = 'bfloat16'

  c.data.positive = 'positive.jsonl'
  c.data.negative = 'negative.jsonl'

  c.finetune.kind = 'lora_embeddings'
  c.finetune.rank = 32
  c.finetune.lora_alpha = 16.0
  c.finetune.learning_rates = (1e-5,)
  c.finetune.steps = 100
  c.finetune.batch_size = 8
  c.finetune.accumulation = 4

  strengths = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
  c.sweep.alphas = (*(-alpha for alpha in reversed(strengths)), 0.0, *strengths)
  c.tasks.behaviour = configs.task(items='behaviour.jsonl', role='behaviour')
  c.tasks.capability = configs.task(items='capability.jsonl', role='capability')
  return c
