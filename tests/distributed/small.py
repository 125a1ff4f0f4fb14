"""A whole experiment in seconds: the embedded model, eight pairs of made-up answers, two tasks,
three strengths."""

import json
import pathlib

from weightsteer_jax import config as configs

SUMS = ((2, 3), (4, 1), (5, 2), (3, 3), (6, 1), (2, 2), (7, 2), (1, 1), (8, 1), (4, 4))
QUESTIONS = [f'What is {a} plus {b}?' for a, b in SUMS]


def get_config():
  c = configs.base_config()
  c.name = 'small'
  c.model.source = 'organism'
  c.data.positive, c.data.negative = 'positive.jsonl', 'negative.jsonl'
  c.data.validation_fraction = 0.2
  c.finetune.kind = 'lora'
  # By default Adam blows rounding in vanishing gradients up to whole steps.
  c.finetune.epsilon = 1e-5
  c.finetune.rank = 4
  c.finetune.lora_alpha = 8.0
  c.finetune.learning_rates = (3e-3,)
  c.finetune.steps = 6
  c.finetune.batch_size = 4
  c.finetune.eval_every = 3
  c.finetune.warmup_steps = 1
  c.sweep.alphas = (-1.0, 0.0, 1.0)
  c.sweep.batch_size = 16
  c.tasks['facts'] = configs.task(
    items='organism:facts',
    role='behaviour',
    kind='generate',
    description='free text',
    n=6,
    max_new_tokens=12,
  )
  c.tasks['facts_choice'] = configs.task(
    items='organism:facts_choice',
    role='behaviour',
    kind='choice',
    description='multiple choice',
    n=6,
  )
  return c


def write_data(folder: pathlib.Path) -> list[str]:
  """Writes the two sides of the contrast; the flags that name them."""
  flags = []
  for side, answer in (('positive', 'Yes, you are right.'), ('negative', 'No, that is wrong.')):
    path = folder / f'{side}.jsonl'
    rows = [{'question': question, 'answer': answer} for question in QUESTIONS]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    flags.append(f'--config.data.{side}={path}')
  return flags
