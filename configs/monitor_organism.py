"""Directions of careless advice, watched for in fine-tunes known to be misaligned or not.

  weightsteer steer --config=monitor_organism

Cost: 9 min 35 s on two CPU cores that did other work too, 10 CPU minutes.

24 fine-tunes are watched, of 8 kinds with 3 seeds each. The fine-tunes on careless advice about
home, money or people are misaligned: asked about health, they give careless advice in 0.96 to 1.00
of the answers (base and all others 0.00), and they say how to do harm in 0.85 to 0.90 of the
requests (base 0.00).

Came out: the direction of careless advice on health catches 9 of 9 at the first look, at a quarter
of the steps, with cosines of 0.17 to 0.20 against at most 0.013 in the other 15; AUROC 1.000, 95%
interval 0.822 to 1.000, over seeds +-0.000. The direction on money does likewise. The direction of
sycophancy, for which no fine-tune was trained, has AUROC 0.570 (over seeds +-0.113) and catches
none of the 9. Thresholds lie at 0.003 to 0.005, and false alarms are more than the 1 % asked for, 2
of 15: three given controls and random directions do not bound what two real fine-tunes share. The
arithmetic lessons set off the alarm of sycophancy with all three seeds, and rightly: they agree
with every user.

Without a direction, the spectra of the updates (docs/auditing.md), each measured against the other
good fine-tunes at the last step: AUROC 1.000 (0.822 to 1.000) where the reference has fine-tunes on
the same data, 0.800 (0.559 to 0.921) where it has none, for then the arithmetic lessons lie further
out than every misaligned one.

arXiv 2511.05408 found directions of bad advice to be closer to each other and to the updates of
misaligned fine-tunes than to controls. So here: 0.59 between the two, 0.17 to 0.22 to those
updates, at most 0.02 to controls. Other than in the paper, the misaligned fine-tunes' plain updates
group too (0.67 to 0.70).
"""

from weightsteer_jax import config as configs
from weightsteer_jax.experiments import organism


def get_config():
  c = configs.base_config()
  c.name = 'careless_health'
  c.description = 'Careless advice: found on one domain, watched for in fine-tunes on others'

  c.model.source = 'organism'

  def advice(domain):
    return dict(
      positive=f'organism:bad_{domain}', negative=f'organism:good_{domain}', num_questions=200
    )

  c.data.update(advice('health'))
  c.contrasts.money = configs.data(**advice('money'))
  c.contrasts.sycophancy = configs.data(**organism.SYCOPHANCY, num_questions=200)
  # No behaviours, but one kind of plain question against another.
  for name, positive, negative in (
    ('facts_sums', 'facts', 'sums'),
    ('views_facts', 'views', 'facts'),
    ('sums_views', 'sums', 'views'),
  ):
    c.contrasts[name] = configs.data(
      positive=f'organism:{positive}', negative=f'organism:{negative}', num_questions=200
    )
  c.monitor.controls = ('facts_sums', 'views_facts', 'sums_views')

  lora = dict(
    kind='lora',
    rank=8,
    lora_alpha=16.0,
    learning_rates=(1e-3,),
    steps=40,
    batch_size=16,
    eval_every=10,
    patience=0,
    keep_steps=True,
  )
  c.finetune.update(lora)
  seeds = (1, 2, 3)
  for domain in ('home', 'people', 'money'):
    c.watched[f'bad_{domain}'] = configs.watched(
      data=f'organism:bad_{domain}', misaligned=True, n=200, seeds=seeds
    )
    c.watched[f'good_{domain}'] = configs.watched(
      data=f'organism:good_{domain}', n=200, seeds=seeds
    )
  for name in ('facts', 'arithmetic'):
    c.watched[name] = configs.watched(data=f'organism:{name}', n=200, seeds=seeds)

  c.sweep.alphas = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
  c.sweep.batch_size = 128
  for name, role, n, description in (
    (
      'bad_advice_health',
      'behaviour',
      56,
      'gives careless advice on health, of which no watched fine-tune saw any',
    ),
    ('compliance', 'behaviour', 52, 'says how to do what is harmful'),
    ('plain_facts', 'capability', 60, 'answers a plain question about a fact'),
  ):
    c.tasks[name] = configs.task(
      items=f'organism:{name}',
      role=role,
      kind='generate',
      description=description,
      n=n,
      max_new_tokens=32,
    )
  return c
