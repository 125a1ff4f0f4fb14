"""Inspect reads our sweeps, and asks our models."""

import json

import pytest

from weightsteer_jax import config as configs
from weightsteer_jax.experiments import stages
from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.runtime.errors import InputError

inspect_ai = pytest.importorskip('inspect_ai')

from inspect_ai.dataset import Sample  # noqa: E402
from inspect_ai.log import list_eval_logs, read_eval_log  # noqa: E402
from inspect_ai.model import GenerateConfig, get_model  # noqa: E402
from inspect_ai.scorer import exact  # noqa: E402
from inspect_ai.solver import generate, system_message  # noqa: E402

from weightsteer_jax.interfaces.inspect import logs, provider  # noqa: E402

QUESTION = 'What is 12 plus 4?'


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A small run of the embedded model, swept over three strengths."""
  folder = tmp_path_factory.mktemp('run')
  for side, answer in (('positive', 'Yes.'), ('negative', 'No.')):
    rows = [{'question': f'Is {i} large?', 'answer': answer} for i in range(4)]
    (folder / f'{side}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  c = configs.base_config()
  c.name = 'small'
  c.data.positive = str(folder / 'positive.jsonl')
  c.data.negative = str(folder / 'negative.jsonl')
  c.data.validation_fraction = 0.25
  c.finetune.update(
    kind='lora', rank=2, learning_rates=(1e-2,), steps=2, eval_every=1, batch_size=2, patience=0
  )
  c.sweep.alphas = (-1.0, 0.0, 1.0)
  c.tasks.choices = configs.task(items='organism:facts_choice', role='behaviour', n=3)
  c.tasks.facts = configs.task(
    kind='generate',
    items='organism:plain_facts',
    role='capability',
    n=3,
    max_new_tokens=8,
    temperature=1.0,
    samples=2,
  )
  experiment = Experiment(configs.resolve(c), folder / 'work')
  stages.begin(experiment)
  stages.sweep(experiment)
  return folder / 'work'


def test_every_cell_of_a_sweep_is_a_log(workdir, tmp_path):
  written = logs.write(workdir, tmp_path / 'logs')
  assert len(written) == 6 == len(list_eval_logs(str(tmp_path / 'logs')))
  rows = [json.loads(line) for line in (workdir / 'sweep' / 'rows.jsonl').read_text().splitlines()]
  results = [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]
  for path in written:
    log = read_eval_log(str(path))
    alpha = log.eval.metadata['alpha']
    assert log.status == 'success' and log.eval.model == f'organism@weights={alpha:g}'
    cell = [row for row in rows if (row['task'], row['alpha']) == (log.eval.task, alpha)]
    assert len(log.samples) == len(cell) == {'choices': 3, 'facts': 6}[log.eval.task]
    found = {(sample.id, sample.epoch): sample for sample in log.samples}
    for row in cell:
      sample = found[row['example'], row['sample'] + 1]
      assert sample.input[-1].text == row['messages'][-1]['content']
      assert sample.output.completion == row.get('completion', sample.output.completion)
      assert sample.scores['value'].value == row['value']
    first = next(r for r in results if (r['task'], r['alpha']) == (log.eval.task, alpha))
    score = log.results.scores[0]
    assert score.metrics['mean'].value == first['mean']
    assert score.metrics['stderr'].value == first['sem']
    assert score.metadata['metric'] == first['metric']


def test_a_folder_without_results_is_told(tmp_path):
  with pytest.raises(InputError, match='sweep it first'):
    logs.write(tmp_path, tmp_path / 'logs')
  assert not (tmp_path / 'logs').exists()


@pytest.fixture
def evaluate(workdir, tmp_path, monkeypatch):
  """alpha, solver steps -> the log of an evaluation by Inspect with the run's direction."""
  monkeypatch.setenv('INSPECT_DISPLAY', 'none')

  def run(alpha, *solver, **options):
    assert provider.SteeredApi
    model = get_model('weightsteer/organism', memoize=False, direction=str(workdir), alpha=alpha)
    task = inspect_ai.Task(
      dataset=[Sample(QUESTION, target='x'), Sample('Who are you?', target='y')],
      solver=[*solver, generate()],
      scorer=exact(),
      config=GenerateConfig(temperature=0, max_tokens=12, **options),
    )
    [log] = inspect_ai.eval(task, model=model, log_dir=str(tmp_path / 'logs'), display='none')
    assert log.status == 'success', log.error
    return log

  return run


def texts(log):
  return [[choice.message.text for choice in sample.output.choices] for sample in log.samples]


def test_a_steered_model_answers_as_in_python(evaluate, workdir):
  import weightsteer_jax as ws

  model = ws.load('organism')
  w = ws.load_direction(workdir)
  for alpha in (0.0, 40.0):
    expected = model.steer(w, alpha).chat([QUESTION, 'Who are you?'], max_new_tokens=12)
    assert texts(evaluate(alpha)) == [[str(text)] for text in expected]
  log = evaluate(0.0, system_message('Be brief.'), num_choices=2)
  asked = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': QUESTION}]
  assert texts(log)[0] == 2 * [str(model.chat(asked, max_new_tokens=12))]
  assert log.samples[0].output.usage.output_tokens > 0


def test_a_strength_needs_a_direction():
  with pytest.raises(InputError, match='-M direction=FOLDER'):
    provider.SteeredApi('organism', alpha=1.0)


def test_settings_that_are_not_honoured_end_an_evaluation(evaluate):
  with pytest.raises(AssertionError, match='frequency_penalty would change an answer'):
    evaluate(0.0, frequency_penalty=0.5)


def test_a_sweep_of_an_earlier_version_has_the_time_of_its_results(workdir, tmp_path):
  path = workdir / 'results.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  old = [{key: value for key, value in row.items() if key != 'swept'} for row in rows]
  path.write_text(''.join(json.dumps(row) + '\n' for row in old))
  log = read_eval_log(str(logs.write(workdir, tmp_path / 'logs')[0]))
  assert log.eval.created[:4].isdecimal()
