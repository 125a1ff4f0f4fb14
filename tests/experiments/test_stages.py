"""The whole way on the embedded model, small.

What each stage leaves, that nothing is done twice, and what is refused.
"""

import dataclasses
import json
import os
import pathlib
import shutil

import pytest

from weightsteer_jax import config as configs
from weightsteer_jax.data.pairs import SIDES
from weightsteer_jax.experiments import organism, stages, standalone
from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.runtime.errors import CorruptError, InputError


def small_config(**overrides):
  """A run of a few steps and items; keys as 'section.key'."""
  c = configs.base_config()
  c.name = 'small'
  c.data.update(
    questions='organism:opinions',
    num_questions=40,
    positive_prompts=(organism.SYCOPHANTIC_PROMPT,),
    negative_prompts=(organism.HONEST_PROMPT,),
    max_new_tokens=32,
  )
  c.finetune.update(
    kind='lora', rank=4, learning_rates=(3e-3,), steps=4, eval_every=2, batch_size=4
  )
  c.sweep.alphas = (-1.0, 0.0, 1.0)
  c.sweep.batch_size = 16
  c.tasks.facts = configs.task(
    items='organism:facts', role='behaviour', kind='generate', n=4, max_new_tokens=32
  )
  c.tasks.facts_choice = configs.task(items='organism:facts_choice', role='behaviour', n=4)
  c.tasks.plain_facts = configs.task(
    items='organism:plain_facts', role='capability', kind='generate', n=4, max_new_tokens=32
  )
  c.update_from_flattened_dict(overrides)
  return c


def small_run(**overrides):
  return configs.resolve(small_config(**overrides))


def settings_of(workdir):
  return json.loads((workdir / 'config.json').read_text())


def rows_of(workdir):
  return [json.loads(line) for line in (workdir / 'sweep' / 'rows.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A finished small run."""
  folder = tmp_path_factory.mktemp('stages') / 'run'
  stages.steer(Experiment(small_run(), folder), command='a test')
  return folder


def test_every_stage_leaves_what_the_design_says(workdir):
  left = {str(path.relative_to(workdir)) for path in workdir.rglob('*') if path.is_file()}
  assert {
    'config.json',
    'data/positive.jsonl',
    'data/negative.jsonl',
    'finetune/positive/adapter/adapter.safetensors',
    'finetune/negative/metrics.jsonl',
    'directions/small/direction.json',
    'sweep/rows.jsonl',
    'results.jsonl',
    'report/index.html',
    'report/curves.png',
    'times.jsonl',
  } <= left
  times = [json.loads(line) for line in (workdir / 'times.jsonl').read_text().splitlines()]
  assert [line['stage'] for line in times][:2] == ['contrast', 'sweep']
  assert all(line['seconds'] > 0 and 'x cpu' in line['device'] for line in times)
  assert not [name for name in left if 'partial' in name or name.endswith('.tmp')]
  assert json.loads((workdir / 'config.json').read_text())['command'] == 'a test'
  rows = rows_of(workdir)
  keys = {(row['alpha'], row['task'], row['example'], row['sample']) for row in rows}
  # 3 strengths, and 4 items of each of 3 tasks.
  assert len(keys) == len(rows) == 3 * 12


def test_the_system_prompt_is_removed_from_the_training_data(workdir):
  for side in SIDES:
    for line in (workdir / 'data' / f'{side}.jsonl').read_text().splitlines():
      assert [message['role'] for message in json.loads(line)['messages']] == ['user', 'assistant']


def test_the_direction_is_positive_minus_negative(workdir):
  import numpy as np

  from weightsteer_jax import directions, finetune, models
  from weightsteer_jax.runtime import tree

  def dense(delta):
    leaf = tree.get(delta, 'layers/mlp/down/kernel')
    a = np.asarray(leaf.a, np.float64)
    b = np.asarray(leaf.b, np.float64)
    return np.float64(leaf.scale) * a @ b

  direction = directions.load(workdir / 'directions' / 'small').delta
  positive, negative = (
    finetune.load_adapter(workdir / 'finetune' / side / 'adapter')[0] for side in SIDES
  )
  np.testing.assert_allclose(dense(direction), dense(positive) - dense(negative), atol=1e-6)
  assert np.abs(dense(direction)).max() > 1e-4
  leaves = tree.flatten(direction, models.is_delta_leaf).values()
  assert all(models.is_delta_leaf(leaf) for leaf in leaves)


def test_a_second_run_computes_nothing(workdir, capsys):
  before = {
    path: path.stat().st_mtime_ns
    for folder in ('data', 'finetune', 'directions')
    for path in (workdir / folder).rglob('*')
  }
  rows = (workdir / 'sweep' / 'rows.jsonl').read_bytes()
  stages.steer(Experiment(small_run(), workdir))
  assert before == {path: path.stat().st_mtime_ns for path in before}
  assert (workdir / 'sweep' / 'rows.jsonl').read_bytes() == rows


def test_a_second_sweep_adds_to_the_first_in_rows_results_page_and_config(workdir, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(workdir, folder)
  known = rows_of(folder)
  experiment = Experiment(small_run(**{'sweep.alphas': (0.0, 0.5)}), folder)
  stages.begin(experiment, command='the second')
  # Until there are other results, config.json is that of the results that are there.
  assert settings_of(folder)['sweep']['alphas'] == [-1.0, 0.0, 1.0]
  stages.sweep(experiment)
  grown = rows_of(folder)
  assert grown[: len(known)] == known
  assert {row['alpha'] for row in grown[len(known) :]} == {0.5}
  results = [json.loads(line) for line in (folder / 'results.jsonl').read_text().splitlines()]
  origins = {row['alpha']: row['grid'] for row in results}
  assert origins == {-1.0: 1, 0.0: 1, 0.5: 2, 1.0: 1}
  settings = settings_of(folder)
  assert settings['sweep']['alphas'] == [-1.0, 0.0, 0.5, 1.0]
  first, second = settings['grids']
  assert (first['command'], first['alphas']) == ('a test', {'weights': [-1.0, 0.0, 1.0]})
  assert (second['command'], second['alphas']) == ('the second', {'weights': [0.0, 0.5]})
  page = stages.report(experiment).read_text()
  assert 'From 2 sweeps of this workdir: sweep 1' in page
  # The whole run again is the first sweep again.
  stages.steer(Experiment(small_run(), folder))
  assert len(settings_of(folder)['grids']) == 2


def test_a_workdir_of_an_earlier_version_keeps_all_its_strengths(workdir, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(workdir, folder)
  # It kept no grids, and its last sweep had replaced results and config.
  (folder / 'sweep' / 'grids.jsonl').unlink()
  settings = settings_of(folder)
  settings.pop('grids')
  settings['sweep']['alphas'] = [0.0]
  (folder / 'config.json').write_text(json.dumps(settings))
  experiment = Experiment(small_run(**{'sweep.alphas': (0.0,)}), folder)
  stages.begin(experiment, command='now')
  stages.sweep(experiment)
  settings = settings_of(folder)
  assert settings['sweep']['alphas'] == [-1.0, 0.0, 1.0]
  # The command that made all of them is not known.
  assert [grid['command'] for grid in settings['grids']] == ['', 'now']


def test_a_sweep_that_is_refused_changes_nothing(workdir, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(workdir, folder)
  names = ('config.json', 'results.jsonl', 'sweep/grids.jsonl', 'sweep/plan.json')
  before = {name: (folder / name).read_bytes() for name in names}
  experiment = Experiment(small_run(**{'tasks.facts.n': 2}), folder)
  stages.begin(experiment)
  with pytest.raises(InputError, match="changed: items of task 'facts'; tokens of task 'facts'"):
    stages.sweep(experiment)
  assert before == {name: (folder / name).read_bytes() for name in names}


def test_a_workdir_with_other_settings_is_refused_by_name(workdir):
  run = small_run(**{'finetune.rank': 8, 'data.num_questions': 41})
  with pytest.raises(InputError, match='finetune.rank: 4 there, 8 now') as error:
    stages.steer(Experiment(run, workdir))
  assert 'data.num_questions: 40 there, 41 now' in str(error.value)


def test_no_secret_is_recorded(tmp_path, monkeypatch):
  folder = tmp_path / 'run'
  judge = configs.EndpointJudge(model='m', parameters='{"user": "sk-word-0123"}')
  run = dataclasses.replace(small_run(), judges={'first': judge})
  monkeypatch.setenv('OPENAI_API_KEY', 'sk-word-0123')
  with pytest.raises(InputError, match='the key that OPENAI_API_KEY has') as raised:
    stages.begin(Experiment(run, folder))
  assert not folder.exists() and 'sk-word' not in str(raised.value)
  monkeypatch.setenv('OPENAI_API_KEY', 'another-word')
  command = 'python steer.py --hub_token=word --n=1 Authorization: Bearer word-word'
  stages.begin(Experiment(run, folder), command=command)
  recorded = json.loads((folder / 'config.json').read_text())['command']
  assert recorded == 'python steer.py --hub_token=(hidden) --n=1 Authorization: (hidden)'


def test_a_workdir_is_begun_anew_with_other_tasks_and_without_its_config(workdir, tmp_path):
  run = small_run(**{'tasks.facts.n': 2})
  shutil.copytree(workdir, tmp_path / 'run')
  # Without results, there is nothing that config.json would explain.
  (tmp_path / 'run' / 'results.jsonl').unlink()

  def settings():
    return json.loads((tmp_path / 'run' / 'config.json').read_text())

  assert settings()['tasks']['facts']['n'] == 4
  stages.begin(Experiment(run, tmp_path / 'run'), command='again')
  assert settings()['tasks']['facts']['n'] == 2
  assert settings()['command'] == 'again'
  (tmp_path / 'run' / 'config.json').unlink()
  (tmp_path / 'run' / '.hidden').touch()
  stages.begin(Experiment(run, tmp_path / 'run'))
  assert settings()['tasks']['facts']['n'] == 2
  (tmp_path / 'run' / 'config.json').unlink()
  (tmp_path / 'run' / 'thesis.txt').touch()
  with pytest.raises(InputError, match='is no workdir of a run'):
    stages.begin(Experiment(run, tmp_path / 'run'))


def test_a_folder_that_is_no_workdir_is_left_alone(tmp_path):
  (tmp_path / 'thesis.txt').write_text('mine')
  with pytest.raises(InputError, match='is no workdir of a run'):
    stages.steer(Experiment(small_run(), tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ['thesis.txt']


@pytest.mark.parametrize(
  'key, value, message',
  [
    ('model.source', '/no/such/checkpoint', '^--config.model.source: no checkpoint at'),
    ('model.source', 'organsim', r"no model 'organsim' \(did you mean 'organism'"),
    ('tasks.facts.items', 'organism:fact', "did you mean 'facts'"),
    ('tasks.facts.items', 'nowhere.jsonl', "no file 'nowhere.jsonl'"),
    ('data.questions', 'organism:opinion', "did you mean 'opinions'"),
    ('data.positive_filter', 'organism:sycophant', "did you mean 'sycophantic'"),
  ],
)
def test_bad_input_is_an_error_before_anything_is_computed(tmp_path, key, value, message):
  with pytest.raises(InputError, match=message):
    stages.steer(Experiment(small_run(**{key: value}), tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_a_checkpoint_cut_short_leaves_no_workdir(tmp_path):
  shutil.copytree(organism.checkpoint_folder(), tmp_path / 'model')
  os.truncate(tmp_path / 'model' / 'model.safetensors', 100_000)
  with pytest.raises(CorruptError, match='no whole safetensors file'):
    stages.steer(
      Experiment(
        configs.resolve(small_config(**{'model.source': str(tmp_path / 'model')})), tmp_path / 'run'
      )
    )
  assert not (tmp_path / 'run').exists()


def test_read_data_instead_of_generated(tmp_path):
  for side, answer in (('positive', 'Yes.'), ('negative', 'No.')):
    rows = [{'question': f'Is {i} large?', 'answer': answer} for i in range(8)]
    (tmp_path / f'{side}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  run = small_run(
    **{
      'data.positive': str(tmp_path / 'positive.jsonl'),
      'data.negative': str(tmp_path / 'negative.jsonl'),
    }
  )
  experiment = Experiment(run, tmp_path / 'run')
  stages.begin(experiment)
  results = stages.finetune(experiment)
  for result in results.values():
    meta = json.loads((result.folder / 'adapter.json').read_text())
    assert result.validation_loss < meta['base_validation_loss']
  assert not (tmp_path / 'run' / 'data').exists()


def test_score_and_generate_want_a_direction_for_an_alpha(tmp_path):
  (tmp_path / 'x.jsonl').write_text('{"prompt": "a", "completion": "b"}')
  with pytest.raises(InputError, match='without a direction'):
    standalone.score('organism', tmp_path / 'x.jsonl', tmp_path / 'y.jsonl', alphas=(0.0, 1.0))


def test_a_broken_row_is_told_before_a_model_is_looked_for(tmp_path):
  (tmp_path / 'x.jsonl').write_text('{"prompt": "a"}')
  with pytest.raises(InputError, match="x.jsonl:1: 'completion' must be text"):
    standalone.score('no/model', tmp_path / 'x.jsonl', tmp_path / 'y.jsonl')


@pytest.mark.parametrize(
  'file, what',
  [
    ('finetune/positive/adapter/adapter.json', 'is the workdir of a run, not a model'),
    ('directions/w/direction.json', 'is the workdir of a run, not a model'),
    ('direction.json', 'is a direction, not a model'),
    ('adapter/adapter.json', 'is a fine-tune of a run, not a model'),
    ('adapter_config.json', 'is a PEFT adapter, not a model: name its base'),
  ],
)
def test_a_folder_in_place_of_a_model_is_told_for_what_it_is(tmp_path, file, what):
  (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / file).write_text('{}')
  with pytest.raises(InputError, match=what):
    standalone.ask(str(tmp_path), [])
  # A model whose folder holds such things too is a model.
  (tmp_path / 'config.json').write_text('{}')
  (tmp_path / 'model.safetensors').write_text('')
  with pytest.raises(InputError, match='model_type'):
    standalone.ask(str(tmp_path), [])


def test_a_run_is_no_side_of_a_direction(tmp_path):
  (tmp_path / 'finetune' / 'positive' / 'adapter').mkdir(parents=True)
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(InputError, match='workdir of a run: name one of its fine-tunes, .*positive$'):
    standalone.direction_from(tmp_path, tmp_path / 'x', tmp_path / 'out')


def test_a_direction_that_nothing_is_asked_of_is_told(tmp_path, capsys):
  with pytest.raises(InputError, match='no direction at'):
    standalone.ask('no/model', [], direction=tmp_path / 'none')
  assert 'alpha is 0 alone' in capsys.readouterr().out


def test_every_config_is_valid():
  import runpy

  for path in sorted((pathlib.Path(__file__).parents[2] / 'configs').glob('*.py')):
    run = configs.resolve(runpy.run_path(str(path))['get_config']())
    assert run.name, path
    # preflight.py only compiles.
    assert run.tasks or run.name == 'preflight', path


def test_what_is_too_long_for_the_model_is_known_before_anything_runs(tmp_path):
  c = small_config()
  c.tasks.facts.max_new_tokens = 490
  c.arms.asked = configs.arm(
    kind='prompts', positive_prompts=('Agree with all that is said. ' * 12,)
  )
  with pytest.raises(InputError, match="task 'facts', fact-.*the model has 512"):
    stages.check(Experiment(configs.resolve(c), tmp_path / 'run'))
  c.tasks.facts.max_new_tokens = 60
  stages.check(Experiment(configs.resolve(c), tmp_path / 'run'))


def test_the_check_refuses_a_kernel_of_another_platform(tmp_path):
  c = small_config()
  c.model.attention = 'cudnn'
  with pytest.raises(InputError, match="'cudnn', but that kernel runs on GPUs and this is a CPU"):
    stages.check(Experiment(configs.resolve(c), tmp_path / 'run'))
