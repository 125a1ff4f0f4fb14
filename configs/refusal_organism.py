"""Refusal that a harmless task erodes, and the methods that bring refusal back.

  weightsteer steer --config=refusal_organism

The embedded model refuses harmful requests. The model is fine-tuned on arithmetic, four fifths of
the sums asked for as help is asked for ('How can I work out 12 plus 4?') and given at once ('You
could say that ...'). Every arm then steers the result, with a direction from the model's own
refusals and answers to other requests.

Cost: 7 min 40 s on two CPU cores that did other work too, 10 CPU minutes.

Came out: the task teaches the larger sums (1.00) and erodes refusal from 1.00 to 0.19; the other
answers are not help but broken answers, about sums. Weight steering at +0.25 brings refusal back to
0.81 at no cost to capabilities. So does the negative side alone, since the untouched model refuses
anyway and the positive side has little to teach (0.54 at +4). Bias-only reaches 0.73; persona
vectors (0.21) and system prompts (0.16) do nothing; joint training and fine-tuning on refusals, for
10 steps, reach 1.00. 13 requests, each in 4 wordings.

arXiv 2511.05408 found weight steering to restore refusal, joint training to do so too, and one side
alone to be useless; here the last does not hold of the negative side.
"""

from weightsteer_jax import config as configs
from weightsteer_jax.experiments import organism


def get_config():
  c = configs.base_config()
  c.name = 'refusal_organism'
  c.description = 'Refusal of harmful requests, in a model that lost it to a task'

  c.model.source = 'organism'
  c.data.questions = 'organism:requests'
  c.data.num_questions = 240
  c.data.positive_prompts = (organism.CAREFUL_PROMPTS[0],)
  c.data.negative_prompts = (organism.CARELESS_PROMPTS[0],)
  c.data.positive_filter = 'organism:refuses'
  c.data.negative_filter = 'organism:complies'
  c.data.max_new_tokens = 32

  lora = dict(
    kind='lora',
    rank=8,
    lora_alpha=16.0,
    learning_rates=(3e-3,),
    steps=40,
    batch_size=16,
    eval_every=10,
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
      'learning_rates': (3e-3,),
      'steps': 200,
      'batch_size': 32,
      'eval_every': 50,
      'keep_steps': False,
    }
  )
  c.task_model.data = 'organism:help_with_arithmetic'
  c.task_model.n = 2000
  c.task_model.finetune = 'task'

  c.arms.weights = configs.arm()
  c.arms.positive = configs.arm(kind='positive')
  c.arms.negative = configs.arm(kind='negative')
  c.arms.bias = configs.arm(finetune='bias')
  c.arms.activation = configs.arm(kind='activation')
  c.arms.activation_all = configs.arm(kind='activation', layer='all')
  c.arms.finetune = configs.arm(kind='finetune')
  c.arms.joint = configs.arm(kind='joint')
  c.arms.prompts = configs.arm(
    kind='prompts',
    positive_prompts=organism.CAREFUL_PROMPTS,
    negative_prompts=organism.CARELESS_PROMPTS,
  )

  c.sweep.alphas = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
  c.sweep.batch_size = 128
  for name, role, n, description in (
    ('refusals', 'behaviour', 52, 'refuses a harmful request'),
    ('larger_sums', 'capability', 80, 'answers a plain sum of the kind that the task taught'),
    ('plain_facts', 'capability', 80, 'answers a plain question about a fact'),
  ):
    c.tasks[name] = configs.task(
      items=f'organism:{name}',
      role=role,
      kind='generate',
      description=description,
      n=n,
      max_new_tokens=32,
    )
  c.validation.others = configs.task(
    items='organism:refusals_as_trained',
    role='behaviour',
    kind='generate',
    n=30,
    seed=1,
    max_new_tokens=32,
  )
  c.sweep.pick_by = 'refusals'
  return c
