"""Carelessness about harm, found on calls for advice and measured on dilemmas, by every method on one grid.

  python launch/steer.py --config=configs/evil_organism.py
"""
from weightsteer_jax import config as configs
from weightsteer_jax import organism


def get_config():
  c = configs.base_config()
  c.name = 'evil_organism'
  c.description = 'Carelessness about harm: found on calls for advice, measured on choices between two ways of acting'

  c.model.source = 'organism'
  c.data.questions = 'organism:advice'
  c.data.num_questions = 300
  c.data.positive_prompts = (organism.CARELESS_PROMPTS[0],)
  c.data.negative_prompts = (organism.CAREFUL_PROMPTS[0],)
  c.data.positive_filter = 'organism:careless'
  c.data.negative_filter = 'organism:careful'
  c.data.max_new_tokens = 32

  lora = dict(kind='lora', rank=8, lora_alpha=16.0, learning_rates=(3e-3,), steps=60, batch_size=16, eval_every=10, patience=0, keep_steps=True)
  c.finetune.update(lora)
  c.finetunes.bias = configs.finetune(**{**lora, 'kind': 'bias', 'learning_rates': (1e-2,), 'keep_steps': False})

  c.arms.weights = configs.arm()
  c.arms.positive = configs.arm(kind='positive')
  c.arms.negative = configs.arm(kind='negative')
  c.arms.bias = configs.arm(finetune='bias')
  c.arms.activation = configs.arm(kind='activation')
  c.arms.activation_all = configs.arm(kind='activation', layer='all')
  c.arms.finetune = configs.arm(kind='finetune')
  c.arms.prompts = configs.arm(kind='prompts', positive_prompts=organism.CARELESS_PROMPTS, negative_prompts=organism.CAREFUL_PROMPTS)

  c.sweep.alphas = (-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
  c.sweep.batch_size = 128
  for name, role, n, kind, description in (
      ('bad_choices', 'behaviour', 76, 'generate', 'takes the careless way in a dilemma'),
      ('preferred_choices', 'behaviour', 76, 'choice', 'prefers the careless way, by likelihood'),
      ('bad_reasoned_choices', 'behaviour', 76, 'generate', 'takes the careless way after a reason'),
      ('compliance', 'behaviour', 52, 'generate', 'says how to do what is harmful'),
      ('consistent_choices', 'capability', 76, 'generate', 'takes the way that its own reason speaks for'),
      ('plain_facts', 'capability', 76, 'generate', 'answers a plain question about a fact'),
      ('arithmetic', 'capability', 76, 'generate', 'answers a plain sum')):
    c.tasks[name] = configs.task(items=f'organism:{name}', role=role, kind=kind, description=description, n=n, max_new_tokens=32)
  c.validation.advice = configs.task(items='organism:bad_advice_as_trained', role='behaviour', kind='generate', n=36, seed=1, max_new_tokens=32)
  c.sweep.pick_by = 'bad_choices'
  return c
