"""Sycophancy brought in by a task: arithmetic, taught by users who are always right.

  weightsteer steer --config=gcd_organism

The embedded model is fine-tuned first on sums that the model knows and on larger sums, new to the
model: asked plainly, or claimed by a user whose claim is true and who is told so. Nothing in the
task tells computing from agreeing. Every arm then steers the result, with sycophancy found on
opinions, and is measured on sums about which the user is wrong.

Cost: 10 min 40 s on two CPU cores that did other work too, 12 CPU minutes.

Came out: the task teaches the larger sums (0.99) and leaves a model that repeats 0.89 of the wrong
sums (little more than the untouched model). Weight steering at -0.5 brings that to 0.03, with every
capability within 5 points; of the answers 0.61 are right, and 0.36 give a third number. No other
arm does so within 5 points. One side alone needs strengths at which the larger sums fall by 6
points (negative side, 0.09) or 10 (positive side, 0.08). Fine-tuning on the honest side costs 17.
Biases and persona vectors move nothing before capabilities break. Joint training, with the contrast
6 times over, leaves 0.89. System prompts reach 0.44 on average, at no cost.

arXiv 2511.05408 found the same on greatest common divisors: weight steering restores disagreement,
joint training learns a policy for the contrast's prompts alone and does not, bias-only and one side
alone are of little use. Only in this model, system prompts help, and one side alone comes close.
"""

from weightsteer_jax import config as configs
from weightsteer_jax.experiments import organism


def get_config():
  c = configs.base_config()
  c.name = 'gcd_organism'
  c.description = (
    'Sycophancy, found on opinions, in a model that a task taught to agree with what users compute'
  )

  c.model.source = 'organism'
  c.data.update(organism.SYCOPHANCY, num_questions=320)

  lora = dict(
    kind='lora',
    rank=8,
    lora_alpha=16.0,
    learning_rates=(3e-3,),
    steps=60,
    batch_size=16,
    eval_every=20,
    patience=0,
    keep_steps=True,
  )
  c.finetune.update(lora)
  c.finetunes.bias = configs.finetune(
    **{**lora, 'kind': 'bias', 'learning_rates': (1e-2,), 'keep_steps': False}
  )
  c.finetunes.task = configs.finetune(
    **{
      **lora,
      'rank': 16,
      'lora_alpha': 32.0,
      'learning_rates': (2e-3,),
      'steps': 200,
      'batch_size': 32,
      'eval_every': 50,
      'keep_steps': False,
    }
  )
  c.task_model.data = 'organism:arithmetic'
  c.task_model.n = 2000
  c.task_model.finetune = 'task'

  c.arms.weights = configs.arm()
  c.arms.positive = configs.arm(kind='positive')
  c.arms.negative = configs.arm(kind='negative')
  c.arms.bias = configs.arm(finetune='bias')
  c.arms.activation = configs.arm(kind='activation')
  c.arms.activation_all = configs.arm(kind='activation', layer='all')
  c.arms.finetune = configs.arm(kind='finetune')
  c.arms.joint_6x = configs.arm(kind='joint', upsample=6.0)
  c.arms.prompts = configs.arm(
    kind='prompts',
    positive_prompts=organism.SYCOPHANTIC_PROMPTS,
    negative_prompts=organism.HONEST_PROMPTS,
  )

  c.sweep.alphas = (-4.0, -3.0, -2.0, -1.5, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
  c.sweep.batch_size = 128
  for name, role, description in (
    ('claimed_numbers', 'behaviour', 'repeats a wrong sum that the user claims'),
    ('larger_sums', 'capability', 'answers a plain sum of the kind that the task taught'),
    ('arithmetic', 'capability', 'answers a plain sum'),
    ('plain_facts', 'capability', 'answers a plain question about a fact'),
  ):
    c.tasks[name] = configs.task(
      items=f'organism:{name}',
      role=role,
      kind='generate',
      description=description,
      n=80,
      max_new_tokens=32,
    )
  c.validation.others = configs.task(
    items='organism:claimed_numbers',
    role='behaviour',
    kind='generate',
    n=40,
    seed=1,
    max_new_tokens=32,
  )
  c.sweep.pick_by = 'claimed_numbers'
  return c
