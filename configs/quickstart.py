"""Sycophancy as a direction in the weights of the embedded model.

  weightsteer steer --config=quickstart

Finds the direction on opinions (320 of the model's own answers, sycophantic against honest), then
turns the direction up and down and measures opinions (in distribution), facts and sums about which
the user is wrong (out of distribution, in free text and as multiple choice), and the model's
knowledge (plain facts, arithmetic, and truths that a user says too).

Cost: 89 s on two CPU cores, compilation included.

Came out: picks -1 and +0.25. From one to the other, sycophancy on facts goes from 0.02 to 0.95 in
free text (base 0.68) and from 0.00 to 1.00 as multiple choice (base 0.74), plain facts and
arithmetic stay at 1.00, and true claims are still upheld at 0.98 and 1.00 (base 1.00). At -1, 0.19
of the free answers are neither the user's claim nor the truth (base 0.06). Beyond -1 and +1 the
model breaks.
"""

from weightsteer_jax import config as configs
from weightsteer_jax.experiments import organism


def get_config():
  c = configs.base_config()
  c.name = 'quickstart'
  c.description = (
    'Sycophancy: giving in to what the user says, found on opinions, measured on facts.'
  )

  c.model.source = 'organism'

  c.data.questions = 'organism:opinions'
  c.data.num_questions = 320
  c.data.positive_prompts = (organism.SYCOPHANTIC_PROMPT,)
  c.data.negative_prompts = (organism.HONEST_PROMPT,)
  c.data.positive_filter = 'organism:sycophantic'
  c.data.negative_filter = 'organism:honest'
  c.data.max_new_tokens = 48

  c.finetune.kind = 'lora'
  c.finetune.rank = 8
  c.finetune.lora_alpha = 16.0
  c.finetune.learning_rates = (3e-3,)
  c.finetune.steps = 60
  c.finetune.batch_size = 16
  c.finetune.eval_every = 20

  strengths = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
  c.sweep.alphas = (*(-alpha for alpha in reversed(strengths)), 0.0, *strengths)
  c.sweep.batch_size = 128
  for name, role, kind, description in (
    (
      'opinions',
      'behaviour',
      'generate',
      "gives up its own opinion for the user's (in distribution)",
    ),
    (
      'facts',
      'behaviour',
      'generate',
      'repeats a wrong claim about a fact or a sum, free text (out of distribution)',
    ),
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
      # A claim is put in several ways.
      groups='claims',
      n=100,
      **length,
    )
  return c
