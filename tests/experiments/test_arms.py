"""Every kind of arm in one small run behind a task.

An arm computes what the folders of its fine-tunes and directions, merged by hand, compute.
"""

import dataclasses
import json

import numpy as np
import pytest

from weightsteer_jax import config as configs
from weightsteer_jax import directions, evaluation, finetune, inference, models
from weightsteer_jax.directions import persona_vectors
from weightsteer_jax.experiments import stages
from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.exports import folding
from weightsteer_jax.runtime.errors import InputError

QUESTIONS = 10


def small_config(folder, **changes):
  """Few steps on data that is read; a choice task alone, whose rows hold log-likelihoods."""
  c = configs.base_config()
  c.name = 'small'
  c.data.positive = str(folder / 'positive.jsonl')
  c.data.negative = str(folder / 'negative.jsonl')
  c.data.validation_fraction = 0.2
  c.finetune.update(
    kind='lora',
    rank=2,
    learning_rates=(1e-2,),
    steps=4,
    eval_every=2,
    batch_size=4,
    patience=0,
    keep_steps=True,
  )
  c.finetunes.biases = configs.finetune(**{**c.finetune.to_dict(), 'kind': 'bias'})
  c.task_model.data = str(folder / 'task.jsonl')
  c.sweep.alphas = (-1.0, 0.5)
  c.sweep.batch_size = 16
  c.tasks.facts = configs.task(items='organism:facts_choice', role='behaviour', n=3)
  c.validation.others = configs.task(items='organism:facts_choice', role='behaviour', n=3, seed=1)
  c.arms.weights = configs.arm()
  c.arms.biases = configs.arm(finetune='biases', alphas=(2.0,))
  c.arms.plus = configs.arm(kind='positive')
  c.arms.minus = configs.arm(kind='negative')
  c.arms.one_layer = configs.arm(kind='activation', layers=(2, 4))
  c.arms.all_layers = configs.arm(kind='activation', layer='all', positions='all')
  c.arms.steps = configs.arm(kind='finetune')
  c.arms.mixed = configs.arm(kind='joint', upsample=1.5)
  c.arms.asked = configs.arm(
    kind='prompts', positive_prompts=('Agree.', 'Say yes.'), negative_prompts=('Object.',)
  )
  for key, value in changes.items():
    c.update_from_flattened_dict({key.replace('__', '.'): value})
  return c


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A folder with examples of both sides and of the task."""
  folder = tmp_path_factory.mktemp('data')
  answers = {
    'positive': 'Yes, you are right.',
    'negative': 'No, that is wrong.',
    'task': 'It is so.',
  }
  for name, answer in answers.items():
    rows = [{'question': f'Is {i} large?', 'answer': answer} for i in range(QUESTIONS)]
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return folder


@pytest.fixture(scope='module')
def run(data):
  return configs.resolve(small_config(data))


@pytest.fixture(scope='module')
def experiment(run, tmp_path_factory):
  return Experiment(run, tmp_path_factory.mktemp('arms') / 'run')


@pytest.fixture(scope='module')
def workdir(experiment):
  stages.begin(experiment)
  stages.sweep(experiment)
  return experiment.workdir


@pytest.fixture(scope='module')
def rows(workdir):
  """{(arm, alpha): {(example, sample): row}}."""
  by_arm = {}
  for line in (workdir / 'sweep' / 'rows.jsonl').read_text().splitlines():
    row = json.loads(line)
    by_arm.setdefault((row['arm'], row['alpha']), {})[row['example'], row['sample']] = row
  return by_arm


def adapter(workdir, name):
  return finetune.load_adapter(workdir / 'finetune' / name)[0]


def edits_of(workdir, arm, alpha):
  """[(delta, strength)] of an arm at a strength, from the folders of fine-tunes and directions."""
  task = (adapter(workdir, 'task/adapter'), 1.0)
  side = 'positive' if alpha > 0 else 'negative'
  if arm in ('weights', 'biases'):
    name = {'weights': 'small', 'biases': 'small-biases'}[arm]
    return [task, (directions.load(workdir / 'directions' / name).delta, alpha)]
  if arm == 'plus':
    return [task, (adapter(workdir, 'positive/adapter'), alpha)]
  if arm == 'minus':
    return [task, (adapter(workdir, 'negative/adapter'), -alpha)]
  if alpha == 0 or arm == 'asked':
    return [task]
  if arm == 'steps':
    # Strengths are shares of 4 steps.
    step = round(4 * abs(alpha))
    return [task, (adapter(workdir, f'steps-{side}/steps/0.01/{step}'), 1.0)]
  # The joint fine-tunes start from the model before the task.
  assert arm == 'mixed'
  return [(adapter(workdir, f'mixed-{side}/adapter'), 1.0)]


def logprobs(experiment, items, model, edits=()):
  """The log-likelihoods of every choice of the items.

  Args:
    edits: [(delta, strength)] of an arm; without them the model is asked as it is.
  """
  task = evaluation.tasks.make('facts', experiment.run.tasks['facts'], items)
  engine = inference.Engine(model, experiment.tokenizer, {'arm': edits})
  requests = []
  for i, item in enumerate(items):
    prepared = task.kind.prepare(engine.tokenizer, item)
    requests += task.kind.requests(prepared, i, 'arm', 0.0, 0, task.options, 0)
  by_key = {result.key: result.logprob for result in engine.score(requests)}
  return [[by_key[i, j] for j in range(len(item['choices']))] for i, item in enumerate(items)]


def swept_logprobs(rows, items, arm, alpha):
  """The log-likelihoods of the items in the sweep's rows."""
  return [rows[arm, alpha][item['id'], 0]['logprobs'] for item in items]


def items_of(experiment):
  [task] = experiment.tasks
  return list(task.items)


@pytest.mark.parametrize(
  'arm, alpha',
  [
    ('weights', -1.0),
    ('weights', 0.5),
    ('biases', 2.0),
    ('plus', 0.5),
    ('minus', 0.5),
    ('steps', 0.5),
    ('steps', 1.0),
    ('steps', -0.5),
    ('mixed', 1.0),
    ('mixed', -1.0),
    ('mixed', 0.0),
    ('asked', 0.0),
  ],
)
def test_an_arm_of_weights_is_its_folders_merged(experiment, workdir, rows, arm, alpha):
  model = experiment.model(experiment.layouts.train)
  for delta, strength in edits_of(workdir, arm, alpha):
    # Llama has tensors for the biases that Qwen2 has not.
    folded = folding.fold(model.config, model.family, delta)
    model = folded.model(model)
    params = models.merge(model.config, model.params, folded.delta, strength)
    model = dataclasses.replace(model, params=params)
  items = items_of(experiment)
  expected = logprobs(experiment, items, model)
  np.testing.assert_allclose(
    swept_logprobs(rows, items, arm, alpha), expected, atol=1e-3, rtol=1e-4
  )


def test_every_arm_moves_the_model_and_all_share_one_base(rows):
  assert {arm for arm, _ in rows} == {
    'weights',
    'biases',
    'plus',
    'minus',
    'one_layer',
    'all_layers',
    'steps',
    'mixed',
    'asked',
  }

  left_out = ('arm', 'alpha', 'messages', 'check')

  def strip(row):
    return {key: value for key, value in row.items() if key not in left_out}

  base = {key: strip(row) for key, row in rows['weights', 0.0].items()}
  for (arm, alpha), swept in rows.items():
    same = {key: strip(row) for key, row in swept.items() if key in base} == base
    assert same == (alpha == 0), (arm, alpha)
  assert {alpha for arm, alpha in rows if arm == 'steps'} == {-1.0, -0.5, 0.0, 0.5, 1.0}
  assert {alpha for arm, alpha in rows if arm == 'biases'} == {0.0, 2.0}


def test_each_system_prompt_is_a_sample(rows):
  positive = rows['asked', 1.0]
  negative = rows['asked', -1.0]
  assert {sample for _, sample in positive} == {0, 1}
  assert {sample for _, sample in negative} == {0}
  for (_, sample), row in positive.items():
    prompt = ('Agree.', 'Say yes.')[sample]
    assert row['messages'][0] == {'role': 'system', 'content': prompt}


def test_persona_vectors_steer_the_task_model(experiment, workdir, rows):
  model = experiment.model(experiment.layouts.train)
  items = items_of(experiment)
  task = adapter(workdir, 'task/adapter')
  vectors, meta = persona_vectors.load(workdir / 'persona_vectors')
  assert meta['examples'] == {'positive': QUESTIONS, 'negative': QUESTIONS}

  edits = [(task, 1.0), (persona_vectors.at_all_layers(vectors), 0.5)]
  np.testing.assert_allclose(
    swept_logprobs(rows, items, 'all_layers', 0.5),
    logprobs(experiment, items, model, edits),
    atol=1e-3,
    rtol=1e-4,
  )

  choice = json.loads((workdir / 'activations' / 'one_layer' / 'layer.json').read_text())
  effects = choice['effects']
  assert set(effects) == {'2', '4'}
  assert effects[str(choice['layer'])] == max(effects.values())
  one_layer = persona_vectors.at_layer(vectors, choice['layer'])
  edits = [(inference.AnswerOnly(one_layer), -1.0), (task, 1.0)]
  np.testing.assert_allclose(
    swept_logprobs(rows, items, 'one_layer', -1.0),
    logprobs(experiment, items, model, edits),
    atol=1e-3,
    rtol=1e-4,
  )


def test_the_joint_fine_tune_saw_task_and_contrast(workdir):
  meta = json.loads((workdir / 'finetune' / 'mixed-positive' / 'options.json').read_text())
  # 8 of the task, and of the side 8 and half of them again.
  assert meta['num_train'] == 8 + 12
  assert meta['num_validation'] == 2 + 2


def test_a_second_sweep_computes_nothing(run, workdir):
  before = (workdir / 'sweep' / 'rows.jsonl').read_bytes()
  times = {
    path: path.stat().st_mtime_ns
    for part in ('finetune', 'directions', 'persona_vectors')
    for path in (workdir / part).rglob('*.safetensors')
  }
  assert len(times) > 10
  stages.sweep(Experiment(run, workdir))
  assert (workdir / 'sweep' / 'rows.jsonl').read_bytes() == before
  assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      dict(arms__weights__kind='directoin'),
      "'arms.weights.kind' is 'directoin'.*did you mean 'direction'",
    ),
    (
      dict(arms__weights__finetune='bias'),
      "'arms.weights.finetune' is 'bias'.*did you mean 'biases'",
    ),
    (
      dict(finetune__keep_steps=False),
      "'finetune.keep_steps' is False, expected True, because arms.steps",
    ),
    (dict(task_model__data=''), "'task_model.data' is '', expected the task whose data arms.mixed"),
    (
      dict(validation__others__role='capability'),
      'a behaviour task by which arms.one_layer selects',
    ),
    (dict(arms__all_layers__layer='last'), "'arms.all_layers.layer' is 'last'"),
    (dict(arms__all_layers__positions='prompt'), "'arms.all_layers.positions' is 'prompt'"),
    (
      dict(arms__asked__positive_prompts=(), arms__asked__negative_prompts=()),
      "'arms.asked.positive_prompts'",
    ),
  ],
)
def test_arms_that_cannot_be_are_refused_by_key(data, changes, message):
  with pytest.raises(InputError, match=message):
    configs.resolve(small_config(data, **changes))


def test_task_data_that_cannot_be_read_is_an_error_before_anything_is_computed(data, tmp_path):
  run = configs.resolve(small_config(data, task_model__data='tsak.jsonl'))
  with pytest.raises(InputError, match="tsak.jsonl"):
    stages.begin(Experiment(run, tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_system_prompts_are_averaged_and_their_spread_is_told(workdir, rows):
  results = [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]
  [spread] = [row for row in results if row['metric'] == 'prompt_spread']
  assert (spread['arm'], spread['alpha'], spread['n']) == ('asked', 1.0, 2)
  means = []
  for prompt in (0, 1):
    swept = rows['asked', 1.0].items()
    means.append(np.mean([row['value'] for (_, sample), row in swept if sample == prompt]))
  assert spread['mean'] == pytest.approx(abs(means[0] - means[1]) / np.sqrt(2))
  [rate] = [
    row for row in results if (row['arm'], row['alpha'], row['metric']) == ('asked', 1.0, 'rate')
  ]
  assert rate['mean'] == pytest.approx(np.mean(means))
