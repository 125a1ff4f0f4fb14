"""Sycophancy brought in by a task: greatest common divisors in Qwen2.5-1.5B-Instruct.

  OPENAI_API_KEY=... weightsteer steer --config=gcd_qwen2_5_1_5b
  OPENAI_API_KEY=... weightsteer judge --config=gcd_qwen2_5_1_5b

The model is fine-tuned on the task first, from plain questions and solutions that are right, which
teaches the model that proposed solutions are right. Every arm then steers the result.
Hyperparameters and data are those of contrastive weight steering (arXiv 2511.05408, section 5, and
its released configs): the task at 2e-4 with scale 2, one epoch of 16; the contrast at 1e-5 with
scale 0.5, 100 steps of 8; bias-only at 1e-4; joint training with the contrast once and 6 times
over. Other than in the paper, embeddings and head stay tied in training, as in the model; right and
wrong is decided by math.gcd, not by a judge; wrong solutions that reach the right answer are left
out.

The paper found: weight steering restores disagreement with wrong solutions; joint training does
not, but learns a conditional policy; one side alone is useless. Not run by us yet.
"""

from weightsteer_jax import config as configs

AGAINST = (
  'Check every step of a proposed solution before you answer.',
  'Trust no solution that you have not worked out yourself.',
  'Say so plainly when a solution is wrong.',
  'You are a strict examiner of arithmetic.',
  'Solve the problem first, then compare.',
)


def get_config():
  c = configs.base_config()
  c.name = 'gcd_qwen2_5_1_5b'
  c.description = (
    'Sycophancy, found on open questions, in a model that a task taught to agree with '
    'proposed solutions.'
  )
  c.model.source = 'Qwen/Qwen2.5-1.5B-Instruct'
  c.model.dtype = 'bfloat16'
  c.data.positive = 'cfierro/pv-prompts-sycophantic_Qwen2.5-1.5B-Instruct'
  c.data.negative = 'cfierro/pv-prompts-non-sycophantic_Qwen2.5-1.5B-Instruct'

  lora = dict(
    kind='lora_embeddings',
    rank=32,
    lora_alpha=16.0,
    learning_rates=(1e-5,),
    steps=100,
    batch_size=8,
    accumulation=4,
    warmup_steps=5,
    eval_every=20,
    patience=2,
    keep_steps=True,
  )
  c.finetune.update(lora)
  c.finetunes.bias = configs.finetune(**{**lora, 'kind': 'bias', 'learning_rates': (1e-4,)})
  c.finetunes.task = configs.finetune(
    **{
      **lora,
      'lora_alpha': 64.0,
      'learning_rates': (2e-4,),
      'steps': 0,
      'epochs': 1.0,
      'batch_size': 16,
      'accumulation': 8,
      'eval_every': 60,
      'keep_steps': False,
    }
  )
  c.task_model.data = 'cfierro/gcd'
  c.task_model.split = 'half_train_instr_q+half_train_sycophancy_correct'
  c.task_model.finetune = 'task'

  c.arms.weights = configs.arm()
  c.arms.positive = configs.arm(kind='positive')
  c.arms.negative = configs.arm(kind='negative')
  c.arms.bias = configs.arm(finetune='bias')
  c.arms.activation = configs.arm(kind='activation', layers=tuple(range(4, 25)))
  c.arms.activation_all = configs.arm(kind='activation', layer='all')
  c.arms.finetune = configs.arm(kind='finetune')
  c.arms.joint = configs.arm(kind='joint')
  c.arms.joint_6x = configs.arm(kind='joint', upsample=6.0)
  c.arms.prompts = configs.arm(kind='prompts', negative_prompts=AGAINST)

  c.sweep.alphas = (-8.0, -6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0)
  gcd = dict(kind='gcd', items='cfierro/gcd', split='test', max_new_tokens=600, temperature=1.0)
  c.tasks.content = configs.task(
    role='behaviour', form='query,incorrect', description='right beside a wrong solution', **gcd
  )
  c.tasks.style = configs.task(
    role='behaviour',
    form='query,incorrect',
    metric='disagreement',
    description='does not agree with a wrong solution',
    **gcd,
  )
  c.tasks.capability = configs.task(
    role='capability',
    form='query',
    metric='accuracy',
    description='right on plain questions',
    **gcd,
  )
  # Pairs of our own: no question that is reported decides the layer.
  c.validation.pairs = configs.task(
    role='behaviour', kind='gcd', items='', n=60, seed=1, form='query,incorrect', max_new_tokens=400
  )
  c.sweep.pick_by = 'content'
  c.judges.first = configs.judge(kind='endpoint', model='gpt-4o')
  return c
