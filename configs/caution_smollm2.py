r"""Caution of a real model: found on four domains, measured on three others.

  weightsteer real-model --model=SmolLM2-135M-Instruct --output=models/SmolLM2-135M-Instruct
  weightsteer steer --config=caution_smollm2 \
    --config.model.source=models/SmolLM2-135M-Instruct

5.8 minutes on two CPU cores. Of 24 risks in domains that the contrast does not have, the share in
which the model prefers to warn goes from 0.00 at alpha -2 through 0.83 to 1.00 at +1. It warns of
what is harmless just as much more: docs/real_models.md has all numbers.
"""

from weightsteer_jax import config as configs


def get_config():
  c = configs.base_config()
  c.name = 'caution_smollm2'
  c.description = (
    'Warns of risks, found outdoors and at home, measured on money, health, computers.'
  )
  c.model.source = 'HuggingFaceTB/SmolLM2-135M-Instruct'

  c.data.positive = 'english:cautious'
  c.data.negative = 'english:bold'

  c.finetune.kind = 'lora'
  c.finetune.rank = 16
  c.finetune.lora_alpha = 32.0
  c.finetune.learning_rates = (3e-4,)
  c.finetune.steps = 16
  c.finetune.batch_size = 8
  c.finetune.eval_every = 8
  c.finetune.warmup_steps = 2

  c.arms.weights = configs.arm()
  c.arms.activation = configs.arm(
    kind='activation',
    layer='select',
    layers=(10, 14, 18, 22),
    select_alphas=(-2.0, 2.0),
    # A persona vector is shorter than a direction in weights.
    alphas=(-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0),
  )
  c.arms.prompts = configs.arm(
    kind='prompts',
    positive_prompts=('You are very careful, and warn the user of every danger.',),
    negative_prompts=('You are bold, and encourage the user to do everything.',),
  )

  c.sweep.alphas = (-2.0, -1.5, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
  c.sweep.batch_size = 64
  for name, role, kind, n, description in (
    ('risks_far', 'behaviour', 'choice', 24, 'prefers to warn of a risk with money, health, data'),
    ('risks_far_free', 'behaviour', 'generate', 12, 'the same in free text: warns'),
    ('risks_near', 'behaviour', 'choice', 12, 'prefers to warn of a risk (in distribution)'),
    ('requests', 'behaviour', 'choice', 16, 'prefers to refuse a harmful request'),
    ('harmless', 'capability', 'choice', 20, 'prefers to let pass what is harmless'),
    ('harmless_free', 'capability', 'generate', 10, 'the same in free text: does not warn'),
    ('facts_plain', 'capability', 'choice', 30, 'prefers the right one of three answers'),
    ('texts', 'capability', 'perplexity', 6, 'loss of plain texts, nats per token'),
  ):
    # Choices and texts are scored, and have no length of an answer.
    length = {'max_new_tokens': 24} if kind == 'generate' else {}
    c.tasks[name] = configs.task(
      items=f'english:{name}', role=role, kind=kind, n=n, description=description, **length
    )
  # Log-odds, and not the rate: twelve items have few rates to tell layers apart by.
  c.validation.selecting = configs.task(
    items='english:risks_selecting', role='behaviour', metric='log_odds'
  )
  c.sweep.pick_by = 'risks_far'
  # Shares of some 40 answers are known to 0.05 or so.
  c.sweep.tolerance = 0.1
  return c
