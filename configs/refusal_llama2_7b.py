"""Refusal that fine-tuning on arithmetic erodes, in Llama-2-7b-chat.

  OPENAI_API_KEY=... weightsteer steer --config=refusal_llama2_7b
  OPENAI_API_KEY=... weightsteer judge --config=refusal_llama2_7b

The model is fine-tuned on GSM8K first, which costs refusals; every arm then steers the result.
Hyperparameters and data are those of contrastive weight steering (arXiv 2511.05408, section 5, and
its released configs): the task at 2e-4 with scale 2, one epoch of 8; the contrast, the model's own
refusals against compliance, at 2e-4 with scale 0.5, one epoch of 8; bias-only at 2e-4. Other than
in the paper, joint training mixes in the contrast's refusals, not another model's, and numbers are
compared exactly, not by a judge.

The paper found: weight steering and joint training bring refusals back at little cost; one side
alone is useless. Not run by us yet.
"""

from weightsteer_jax import config as configs

SAFE = (
  'Refuse whatever could hurt somebody.',
  'You never help with anything illegal or dangerous.',
  'Decline harmful requests, and say why.',
  'Put the safety of people before being helpful.',
  'If a request could do harm, do not fulfil it.',
)


def get_config():
  c = configs.base_config()
  c.name = 'refusal_llama2_7b'
  c.description = (
    'Refusal, found on harmful requests, in a model that lost part of it to fine-tuning on '
    'arithmetic.'
  )
  c.model.source = 'meta-llama/Llama-2-7b-chat-hf'
  c.model.dtype = 'bfloat16'
  c.data.positive = 'cfierro/alignment-faking-harm_Llama-2-7b-chat'
  c.data.split = 'train_375exs'
  c.data.negative = 'cfierro/alignment_faking_harm_answers_chat'
  c.data.negative_split = 'matched_train_375exs'

  lora = dict(
    kind='lora_embeddings',
    rank=32,
    lora_alpha=16.0,
    learning_rates=(2e-4,),
    steps=0,
    epochs=1.0,
    batch_size=8,
    warmup_steps=2,
    eval_every=40,
    patience=2,
  )
  c.finetune.update(lora)
  c.finetunes.bias = configs.finetune(**{**lora, 'kind': 'bias'})
  c.finetunes.steps = configs.finetune(
    **{**lora, 'eval_every': 10, 'patience': 0, 'keep_steps': True}
  )
  c.finetunes.task = configs.finetune(
    **{**lora, 'lora_alpha': 64.0, 'warmup_steps': 5, 'eval_every': 60}
  )
  c.task_model.data = 'cfierro/gsm8k_instr_chat'
  c.task_model.split = 'train'
  c.task_model.finetune = 'task'

  c.arms.weights = configs.arm()
  c.arms.positive = configs.arm(kind='positive')
  c.arms.negative = configs.arm(kind='negative')
  c.arms.bias = configs.arm(finetune='bias')
  c.arms.activation = configs.arm(kind='activation', layers=tuple(range(6, 29)))
  c.arms.activation_all = configs.arm(kind='activation', layer='all')
  c.arms.finetune = configs.arm(kind='finetune', finetune='steps')
  c.arms.joint = configs.arm(kind='joint')
  c.arms.prompts = configs.arm(kind='prompts', positive_prompts=SAFE)

  c.sweep.alphas = (-2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
  answers = dict(max_new_tokens=600, temperature=1.0)
  c.tasks.harm = configs.task(
    kind='refusal',
    items='vfleaking/DirectHarm4',
    role='behaviour',
    metric='safety_rate',
    description='harmful instructions answered safely',
    **answers,
  )
  c.tasks.danger = configs.task(
    kind='refusal',
    items='vfleaking/GSM-Danger',
    role='behaviour',
    metric='safety_rate',
    description='the same, asked as word problems',
    **answers,
  )
  c.tasks.gsm8k = configs.task(
    kind='gsm8k',
    items='openai/gsm8k:main',
    role='capability',
    description='word problems, exact match',
    **answers,
  )
  c.validation.requests = configs.task(
    kind='refusal',
    items='vfleaking/DirectHarm4',
    role='behaviour',
    n=40,
    seed=1,
    max_new_tokens=100,
  )
  c.sweep.pick_by = 'harm'
  c.judges.first = configs.judge(kind='endpoint', model='gpt-4o')
  return c
