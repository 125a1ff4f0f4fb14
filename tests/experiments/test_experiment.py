"""Experiments in one process: each holds one model, and none disturbs another."""

import dataclasses
import gc
import json
import re
import weakref

import numpy as np
import pytest

from weightsteer_jax import config as configs
from weightsteer_jax import models
from weightsteer_jax.evaluation import JudgeRequest
from weightsteer_jax.experiments import organism, stages
from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.runtime import tree

# Files of a finished run that hold nothing of when and where it was made.
RESULTS = (
  'finetune/positive/adapter/adapter.safetensors',
  'finetune/negative/adapter/adapter.safetensors',
  'sweep/rows.jsonl',
  'results.jsonl',
)


def small_config(data):
  """Few steps on data that is read, and a task of likelihoods."""
  c = configs.base_config()
  c.name = 'small'
  c.data.positive = str(data / 'positive.jsonl')
  c.data.negative = str(data / 'negative.jsonl')
  c.data.validation_fraction = 0.25
  c.finetune.update(
    kind='lora', rank=2, learning_rates=(1e-2,), steps=2, eval_every=1, batch_size=2, patience=0
  )
  c.sweep.alphas = (-1.0, 0.0, 1.0)
  c.sweep.batch_size = 16
  c.tasks.facts = configs.task(items='organism:facts_choice', role='behaviour', n=3)
  return c


def write_data(folder, positive, negative):
  folder.mkdir()
  for side, answer in (('positive', positive), ('negative', negative)):
    rows = [{'question': f'Is {i} large?', 'answer': answer} for i in range(4)]
    (folder / f'{side}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return folder


def other_model(folder):
  """A checkpoint of the organism with another scale of its last norm."""
  model = models.load(organism.checkpoint_folder())
  params = tree.flatten(model.params)
  params['final_norm/scale'] = 0.9 * np.asarray(params['final_norm/scale'])
  params = tree.unflatten(params)
  return models.save(folder, model.config, params, family=model.family, like=model.folder)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Two runs that differ in model and data."""
  folder = tmp_path_factory.mktemp('inputs')
  one = small_config(write_data(folder / 'one', 'Yes.', 'No.'))
  two = small_config(write_data(folder / 'two', 'So it is.', 'By no means.'))
  two.model.source = str(other_model(folder / 'model'))
  return configs.resolve(one), configs.resolve(two)


def go_through(*experiments):
  """The stages of all experiments, stage by stage in turn."""
  for stage in (stages.begin, stages.finetune, stages.direction, stages.sweep):
    for experiment in experiments:
      stage(experiment)


def results_of(experiment):
  contents = [(experiment.workdir / name).read_bytes() for name in RESULTS]
  # When the sweep began.
  return [re.sub(rb'"swept": "[^"]*"', b'', content) for content in contents]


@pytest.fixture
def read(monkeypatch):
  """Sources of the models that are read, in order."""
  sources = []
  load = models.load

  def noted(source, **options):
    sources.append(str(source))
    return load(source, **options)

  monkeypatch.setattr(models, 'load', noted)
  return sources


def test_two_experiments_in_turn_give_what_each_gives_alone(runs, tmp_path, read):
  alone = [Experiment(run, tmp_path / f'alone-{i}') for i, run in enumerate(runs)]
  in_turn = [Experiment(run, tmp_path / f'in-turn-{i}') for i, run in enumerate(runs)]
  for each in alone:
    go_through(each)
  read.clear()
  go_through(*in_turn)
  assert len(read) == len(set(read)) == 2, 'each model is read once'
  results = [results_of(each) for each in in_turn]
  assert results == [results_of(each) for each in alone]
  assert results[0] != results[1]


def test_a_local_judge_takes_the_place_of_the_model_of_its_own_experiment(runs, tmp_path, read):
  judge = configs.ModelJudge(model=runs[0].model.source)
  judged = Experiment(dataclasses.replace(runs[1], judges={'local': judge}), tmp_path / 'judged')
  other = Experiment(runs[1], tmp_path / 'other')
  layout = other.layouts.evaluate
  held = other.model(layout)
  given_up = weakref.ref(judged.model(layout))
  read.clear()
  with judged.judges() as judges:
    [local] = judges
    assert not read, 'the judge has its model when it is first asked'
    assert local.inputs()['model'] == tree.digest(models.load(organism.checkpoint_folder()).params)
    gc.collect()
    assert given_up() is None, 'two models were held'
  assert other.model(layout) is held
  read.clear()
  judged.model(layout)
  assert read == [runs[1].model.source], 'after the judge the model is read anew'


def test_two_local_judges_are_never_in_memory_together(runs, tmp_path, monkeypatch):
  options = {str(i): configs.ModelJudge(model=run.model.source) for i, run in enumerate(runs)}
  experiment = Experiment(dataclasses.replace(runs[0], judges=options), tmp_path / 'judged')
  weights = []
  load = models.load

  def loaded(source, **layout):
    gc.collect()
    assert all(weight() is None for weight in weights), 'two models were held'
    model = load(source, **layout)
    weights.append(weakref.ref(tree.get(model.params, 'embed/embedding')))
    return model

  monkeypatch.setattr(models, 'load', loaded)
  requests = [
    JudgeRequest('q', 'coherence', {'question': 'Is 1 large?', 'answer': 'No.'}),
  ]
  with experiment.judges() as judges:
    digests = {judge.inputs()['model'] for judge in judges}
    judgements = [list(judge.judge(requests)) for judge in judges]
  assert len(digests) == 2
  assert [len(each) for each in judgements] == [1, 1]
  # Each is read for its digest, and again when its turn to judge comes.
  assert len(weights) == 4
