"""Sycophancy on facts in the embedded model, by every method on one grid.

  weightsteer steer --config=sycophancy_organism

As in the quickstart, sycophancy is found on opinions and measured on facts about which the user is
wrong. The methods are those that contrastive weight steering is compared with: one side alone, only
MLP biases trained, persona vectors in one layer and in all, fine-tuning after 10 to 60 steps,
system prompts.

Cost: 5 min 46 s on two CPU cores, 53,000 rows.

Came out: every method reaches 0.01 to 0.05 on one side and 0.94 to 0.97 on the other (free text;
base 0.68) with every capability within 5 points, so that the picks do not tell most methods apart.
Of the multiple choices, weights, sides, fine-tuning and prompts leave 0.00 sycophantic, persona
vectors 0.03 (one layer, the last, at -2) and 0.15 (all layers, at -1; base 0.74). A direction
reaches the end of its effect at a quarter of its length. Far out everything breaks: weights at -1.5
and +1.5, bias-only at -1 and +1, all layers at -1.5 and +1.5, a persona vector in one layer at -4
and +4 only.

arXiv 2511.05408 found weight steering to go further than activation steering before accuracy falls,
with bias-only between: of choices that holds here, in free text all saturate.
"""

from weightsteer_jax import config as configs
from weightsteer_jax.experiments import organism


def get_config():
  c = configs.base_config()
  c.name = 'sycophancy_organism'
  c.description = 'Sycophancy, found on opinions and measured on facts: every method on one grid.'
  c.model.source = 'organism'

  c.data.update(organism.SYCOPHANCY, num_questions=320)

  lora = dict(
    kind='lora',
    rank=8,
    lora_alpha=16.0,
    learning_rates=(3e-3,),
    steps=60,
    batch_size=16,
    eval_every=10,
    patience=0,
    keep_steps=True,
  )
  c.finetune.update(lora)
  c.finetunes.bias = configs.finetune(
    **{**lora, 'kind': 'bias', 'learning_rates': (1e-2, 3e-2), 'keep_steps': False}
  )

  c.arms.weights = configs.arm()
  c.arms.positive = configs.arm(kind='positive')
  c.arms.negative = configs.arm(kind='negative')
  c.arms.bias = configs.arm(finetune='bias')
  c.arms.activation = configs.arm(kind='activation')
  c.arms.activation_all = configs.arm(kind='activation', layer='all')
  c.arms.finetune = configs.arm(kind='finetune')
  c.arms.prompts = configs.arm(
    kind='prompts',
    positive_prompts=(organism.SYCOPHANTIC_PROMPT,),
    negative_prompts=(organism.HONEST_PROMPT,),
  )

  strengths = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
  c.sweep.alphas = (*(-alpha for alpha in reversed(strengths)), 0.0, *strengths)
  c.sweep.batch_size = 128
  for name, role, kind, description in (
    ('facts', 'behaviour', 'generate', 'repeats a wrong claim about a fact or a sum, free text'),
    (
      'facts_choice',
      'behaviour',
      'choice',
      'prefers the answer that gives in to a wrong claim, multiple choice',
    ),
    ('truths', 'capability', 'generate', 'says what the user says where that is true'),
    ('plain_facts', 'capability', 'generate', 'answers a plain question about a fact'),
    ('arithmetic', 'capability', 'generate', 'answers a plain sum'),
  ):
    # Choices are scored, and have no length of an answer.
    length = {'max_new_tokens': 48} if kind == 'generate' else {}
    c.tasks[name] = configs.task(
      items=f'organism:{name}',
      role=role,
      kind=kind,
      description=description,
      n=100,
      # A claim is put in several ways.
      groups='claims',
      **length,
    )
  c.validation.opinions = configs.task(
    items='organism:opinions', role='behaviour', kind='generate', n=40, seed=1, max_new_tokens=48
  )
  return c
