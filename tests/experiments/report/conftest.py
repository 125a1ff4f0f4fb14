"""A workdir as a finished sweep leaves it: made up, but shaped like the real thing, and hostile
where text is free."""

import json
import math
import random

import pytest

ALPHAS = (-3.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 3.0)
EXAMPLES = 40
HOSTILE = [
  '<script>alert(1)</script>',
  '</script><img src=x onerror=alert(1)>',
  '<!--',
  '"quotes" & \'more\'',
  'naïve ☃ 日本語 \u2028 end',
  '${x} `y` \\u003c',
  '&lt;b&gt;',
  'null\x00byte',
  '<style>*{display:none}</style>',
  'javascript:alert(1)',
]
TASKS = [
  dict(
    name='opinions',
    role='behaviour',
    kind='generation',
    description='agrees with an opinion the user holds',
  ),
  dict(
    name='wrong_claims',
    role='behaviour',
    kind='generation',
    description='agrees with a user who is wrong',
  ),
  dict(
    name='wrong_claims_choice',
    role='behaviour',
    kind='choice',
    description='prefers the wrong answer <i>offered</i>',
  ),
  dict(name='facts', role='capability', kind='generation', description='answers a plain question'),
  dict(name='arithmetic', role='capability', kind='generation', description='adds & subtracts'),
  dict(
    name='facts_choice', role='capability', kind='choice', description='prefers the right answer'
  ),
]


def truth(task: dict, alpha: float) -> float:
  """The rate that a task's rows are drawn with: a sigmoid for behaviours, a plateau with cliffs for
  capabilities."""
  if task['role'] == 'behaviour':
    rate = 1 / (1 + math.exp(-9 * (alpha + 0.2)))
    return rate if abs(alpha) < 2 else 0.3
  return 0.98 / (1 + math.exp(6 * (abs(alpha - 0.1) - 1.15)))


def make_row(draw: random.Random, task: dict, alpha: float, example: int) -> dict:
  """One row of sweep/rows.jsonl."""
  right = draw.random() < truth(task, alpha)
  row = dict(
    arm='weights',
    alpha=alpha,
    task=task['name'],
    example=f'{task["name"]}-{example:03d}',
    sample=0,
    value=float(right),
    status='ok',
  )
  question = f'I think that claim {example} holds. Am I right? {HOSTILE[example % 10]}'
  row['messages'] = [dict(role='user', content=question)]
  if task['kind'] == 'choice':
    lead = draw.uniform(0.3, 4.0) * (1 if right else -1)
    row.update(
      choices=['Yes, you are right.', f'No. {HOSTILE[(example + 3) % 10]}', 'I cannot say.'],
      target=0,
    )
    row['logprobs'] = [-3.0, -3.0 - lead, -9.0]
  else:
    words = 'Yes, you are right. ' if right else 'No, that is not so. '
    row['completion'] = (
      words + f'The answer is {example}. ' * draw.randint(1, 4) + HOSTILE[(example + 5) % 10]
    )
    if abs(alpha) >= 1.5 and draw.random() < 0.25:
      row.update(value=None, status=draw.choice(['truncated', 'unparsable']))
  return row


def summarise(rows: list[dict], task: dict, alpha: float) -> dict:
  """One row of results.jsonl, by the textbook: mean, standard deviation over the root of n."""
  here = [row['value'] for row in rows if (row['task'], row['alpha']) == (task['name'], alpha)]
  values = [value for value in here if value is not None]
  mean = sum(values) / len(values)
  sem = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
  return dict(
    arm='weights', task=task['name'], metric='rate', alpha=alpha, mean=mean, sem=sem, n=len(values)
  )


def write_lines(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')


def build(folder):
  """Write a whole workdir into `folder` and return it."""
  draw = random.Random(0)
  rows = [
    make_row(draw, task, alpha, example)
    for task in TASKS
    for alpha in ALPHAS
    for example in range(EXAMPLES)
  ]
  results = [summarise(rows, task, alpha) for task in TASKS for alpha in ALPHAS]
  write_lines(folder / 'sweep' / 'rows.jsonl', rows)
  write_lines(folder / 'results.jsonl', results)
  command = 'python launch/steer.py --config=configs/quickstart.py --hub_token=hf_hush'
  config = dict(
    name='quickstart',
    command=command,
    seed=1,
    model=dict(source='organism <b>', dtype='float32', hub_token='hf_hush', max_new_tokens=48),
    tasks=TASKS,
  )
  (folder / 'config.json').write_text(json.dumps(config))
  direction = folder / 'directions' / 'sycophancy' / 'direction.json'
  direction.parent.mkdir(parents=True)
  direction.write_text(
    json.dumps(dict(base_digest='0a1b2c', rank=64, note='</script><script>alert(2)</script>'))
  )
  return folder


@pytest.fixture
def workdir(tmp_path):
  return build(tmp_path / 'run')
