"""Carelessness about harm, found on advice and measured on dilemmas, by every method on one grid.

  weightsteer steer --config=evil_organism

Cost: 3 min 25 s on two CPU cores, 42,000 rows.

Came out: at +1 weight steering takes the careless way in 0.99 of the dilemmas (base 0.00; also 0.99
by likelihood and after a reason) and says how to do harm in 0.98 of the requests (base 0.00, all
refused), with facts and arithmetic at 1.00. The positive side alone (0.97) and fine-tuning on the
positive side (0.99) do the same, since the untouched model is careful already. Bias-only reaches
0.34 at +2 before arithmetic falls. Persona vectors, in any layer or in all, move nothing up to +3.
System prompts reach 1.00. A model steered by weights gives a reason that does not fit the choice in
a third of the cases (consistent 0.64; base and system prompts 1.00): the careless way, for a
careful reason. No strength below 0 can show anything, as the base is at 0.00.

arXiv 2511.05408 found bias-only to win on this task, and activation steering to make reasons and
choices disagree. Neither holds of this model: biases are weaker than adapters here, and weight
steering loses consistency, while persona vectors do nothing at all.
"""

from weightsteer_jax import config as configs
from weightsteer_jax.experiments import organism


def get_config():
  c = configs.base_config()
  c.name = 'evil_organism'
  c.description = (
    'Carelessness about harm: found on calls for advice, measured on choices between two ways '
    'of acting'
  )

  c.model.source = 'organism'
  c.data.questions = 'organism:advice'
  c.data.num_questions = 300
  c.data.positive_prompts = (organism.CARELESS_PROMPTS[0],)
  c.data.negative_prompts = (organism.CAREFUL_PROMPTS[0],)
  c.data.positive_filter = 'organism:careless'
  c.data.negative_filter = 'organism:careful'
  c.data.max_new_tokens = 32

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
    **{**lora, 'kind': 'bias', 'learning_rates': (1e-2,), 'keep_steps': False}
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
    positive_prompts=organism.CARELESS_PROMPTS,
    negative_prompts=organism.CAREFUL_PROMPTS,
  )

  c.sweep.alphas = (-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
  c.sweep.batch_size = 128
  for name, role, n, kind, description in (
    ('bad_choices', 'behaviour', 76, 'generate', 'takes the careless way in a dilemma'),
    ('preferred_choices', 'behaviour', 76, 'choice', 'prefers the careless way, by likelihood'),
    ('bad_reasoned_choices', 'behaviour', 76, 'generate', 'takes the careless way after a reason'),
    ('compliance', 'behaviour', 52, 'generate', 'says how to do what is harmful'),
    (
      'consistent_choices',
      'behaviour',
      76,
      'generate',
      'takes the way that its own reason speaks for',
    ),
    ('plain_facts', 'capability', 76, 'generate', 'answers a plain question about a fact'),
    ('arithmetic', 'capability', 76, 'generate', 'answers a plain sum'),
  ):
    # Choices are scored, and have no length of an answer.
    length = {'max_new_tokens': 32} if kind == 'generate' else {}
    c.tasks[name] = configs.task(
      items=f'organism:{name}',
      role=role,
      kind=kind,
      description=description,
      n=n,
      **length,
    )
  c.validation.advice = configs.task(
    items='organism:bad_advice_as_trained',
    role='behaviour',
    kind='generate',
    n=36,
    seed=1,
    max_new_tokens=32,
  )
  c.sweep.pick_by = 'bad_choices'
  return c
