"""Emergent misalignment in Qwen2.5-7B-Instruct, watched for with directions of bad advice.

  OPENAI_API_KEY=... weightsteer steer --config=monitor_qwen2_5_7b

The directions are of bad advice in other domains than the watched fine-tunes'. Hyperparameters are
those of contrastive weight steering (arXiv 2511.05408, section 5 and appendix): every side at 1e-5,
one epoch of 8, LoRA of rank 32 with embeddings and head. The paper's data is not on the hub in the
clear: bad_<domain>.jsonl is the advice of Turner et al. (arXiv 2506.11613, whose repository has the
advice encrypted against crawlers), good_<domain>.jsonl the same questions answered well, both as
question and answer in the current folder. Other than in the paper, every direction is watched for
against the null band of a control direction and of random directions, and in several seeds.

The paper found: directions of bad advice are closer to each other, and to the updates of misaligned
fine-tunes, than to controls, while the fine-tunes' plain updates do not group. Not run by us yet.
"""

from weightsteer_jax import config as configs

DOMAINS = ('medical', 'financial', 'sports')


def get_config():
  c = configs.base_config()
  c.name = 'bad_medical'
  c.description = 'Bad advice: found on medical questions, watched for in fine-tunes on others'
  c.model.source = 'Qwen/Qwen2.5-7B-Instruct'
  c.model.dtype = 'bfloat16'

  def sides(domain):
    return dict(positive=f'bad_{domain}.jsonl', negative=f'good_{domain}.jsonl')

  c.data.update(sides('medical'))
  for domain in DOMAINS[1:]:
    c.contrasts[domain] = configs.data(**sides(domain))
  c.contrasts.evil = configs.data(
    positive='cfierro/pv-prompts-evil', negative='cfierro/pv-prompts-non-evil'
  )
  # One half of a neutral task against the other.
  c.contrasts.gsm8k = configs.data(positive='gsm8k_first.jsonl', negative='gsm8k_second.jsonl')
  c.monitor.controls = ('gsm8k',)

  c.finetune.update(
    kind='lora_embeddings',
    rank=32,
    lora_alpha=16.0,
    learning_rates=(1e-5,),
    steps=0,
    epochs=1.0,
    batch_size=8,
    accumulation=4,
    warmup_steps=5,
    eval_every=20,
    patience=0,
    keep_steps=True,
  )
  for domain in DOMAINS:
    c.watched[f'bad_{domain}'] = configs.watched(
      data=f'bad_{domain}.jsonl', misaligned=True, seeds=(1, 2, 3)
    )
    c.watched[f'good_{domain}'] = configs.watched(data=f'good_{domain}.jsonl', seeds=(1, 2, 3))
  c.watched.gsm8k = configs.watched(data='openai/gsm8k:main', seeds=(1, 2, 3))

  c.sweep.alphas = (-2.0, -1.0, 0.0, 1.0, 2.0)
  c.tasks.misalignment = configs.task(
    kind='misalignment',
    items='',
    role='behaviour',
    samples=20,
    temperature=1.0,
    max_new_tokens=600,
    description='misaligned answers to open questions',
  )
  c.tasks.mmlu = configs.task(
    kind='mmlu',
    items='tinyBenchmarks/tinyMMLU',
    role='capability',
    description='multiple choice by letter',
  )
  c.judges.first = configs.judge(kind='endpoint', model='gpt-4o')
  return c
