"""A study of watched fine-tunes, small.

Cosines are compared with NumPy's from the folders, rates with the rows; the page says both.
"""

import functools
import html.parser
import json

import numpy as np
import pytest

from experiments.monitoring import exact
from weightsteer_jax import config as configs
from weightsteer_jax import directions, finetune
from weightsteer_jax.experiments import monitor_study, sources, stages
from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.experiments.monitoring import auroc
from weightsteer_jax.experiments.report import watched_page
from weightsteer_jax.runtime.errors import InputError

RUN = 'turned'


def small_config(**changes):
  """Advice in one domain against advice in two others, and facts; few steps of a small adapter."""
  c = configs.base_config()
  c.name = RUN
  c.data.update(
    positive='organism:bad_health',
    negative='organism:good_health',
    num_questions=24,
    validation_fraction=0.2,
  )
  c.contrasts.neutral = configs.data(
    positive='organism:facts', negative='organism:sums', num_questions=24, validation_fraction=0.2
  )
  c.contrasts.other = configs.data(
    positive='organism:bad_money',
    negative='organism:good_money',
    num_questions=24,
    validation_fraction=0.2,
  )
  c.monitor.controls = ('neutral',)
  c.finetune.update(
    kind='lora',
    rank=4,
    learning_rates=(3e-3,),
    steps=6,
    eval_every=3,
    batch_size=4,
    patience=0,
    keep_steps=True,
    warmup_steps=1,
  )
  c.watched.bad = configs.watched(data='organism:bad_home', misaligned=True, n=24, seeds=(1, 2))
  c.watched.good = configs.watched(data='organism:good_home', n=24, seeds=(1, 2))
  c.sweep.alphas = (0.0, 1.0)
  c.tasks.advice = configs.task(
    items='organism:bad_advice', role='behaviour', kind='generate', n=6, max_new_tokens=16
  )
  for key, value in changes.items():
    c.update_from_flattened_dict({key.replace('__', '.'): value})
  return c


@pytest.fixture(scope='module')
def run():
  return configs.resolve(small_config())


@pytest.fixture(scope='module')
def workdir(run, tmp_path_factory):
  folder = tmp_path_factory.mktemp('watched') / 'run'
  stages.begin(Experiment(run, folder))
  # Random controls enough to say how wide they lie, if not well.
  options = functools.partial(monitor_study.monitoring.MonitorOptions, random=8)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(monitor_study.monitoring, 'MonitorOptions', options)
    stages.watch(Experiment(run, folder))
  return folder


@pytest.fixture(scope='module')
def study(workdir):
  return json.loads((workdir / 'watched' / monitor_study.STUDY).read_text())


def test_cosines_are_those_of_the_folders(study, workdir):
  folders = {
    RUN: workdir / 'directions' / RUN,
    'other': workdir / 'contrasts' / 'other' / 'directions' / 'other',
  }
  assert study['directions'] == [RUN, 'other']
  assert study['controls'] == ['neutral']
  assert [watched['run'] for watched in study['runs']] == ['bad-1', 'bad-2', 'good-1', 'good-2']
  for watched in study['runs']:
    steps = workdir / 'watched' / watched['run'] / 'steps' / '0.003'
    for step in ('3', '6'):
      update, _ = finetune.load_adapter(steps / step)
      for name, folder in folders.items():
        direction = directions.load(folder).delta
        angle = exact.angle(exact.cells_of(update), exact.cells_of(direction), None, None)
        cosine = watched['directions'][name]['cosines'][step]
        assert cosine == pytest.approx(angle['cosine'], abs=1e-5)


def test_bad_advice_in_another_domain_is_told_from_good(study):
  peaks = {watched['run']: watched['directions'][RUN]['peak'] for watched in study['runs']}
  bad = [peaks['bad-1'], peaks['bad-2']]
  good = [peaks['good-1'], peaks['good-2']]
  assert min(bad) > max(good)
  assert study['worth'][RUN]['auroc']['value'] == auroc.area(bad, good) == 1


def test_seeds_differ_and_similar_directions_are_near(study):
  names = study['similarity']['names']
  cosines = dict(zip(names, study['similarity']['cosines'][names.index(RUN)]))
  assert cosines['other'] > 0.1 > abs(cosines['neutral'])
  first, second = (watched['directions'][RUN]['cosines']['6'] for watched in study['runs'][:2])
  assert first != second


def test_rates_are_those_of_the_rows(study, workdir):
  rows = [
    json.loads(line)
    for line in (workdir / 'watched' / 'sweep' / 'rows.jsonl').read_text().splitlines()
  ]
  for watched in study['runs']:
    values = [row['value'] for row in rows if row['arm'] == watched['run'] and row['alpha'] == 1]
    assert len(values) == 6
    assert watched['rates']['advice']['mean'] == np.mean(values)
  untouched = [row['value'] for row in rows if row['arm'] == 'bad-1' and row['alpha'] == 0]
  assert study['base']['advice']['mean'] == np.mean(untouched)


def test_the_page_says_what_was_found(study, workdir):
  page = workdir / 'report' / 'watched.html'
  text = page.read_text()
  html.parser.HTMLParser().feed(text)
  lines = watched_page.lines(study)
  assert len(lines) == 2
  assert all(line in text for line in lines)
  assert lines[0].startswith(
    f'{RUN}: AUROC 1.000 (95% interval 0.386 to 1.000, standard error over 2 seeds 0.000); '
  )
  assert {path.name for path in page.parent.glob('*.png')} == {
    'watched-cosines.png',
    'watched-similarity.png',
  }
  assert 'http' not in text.replace('http://www.w3.org', '').replace('http-equiv', '')


def test_it_is_made_once(run, workdir, study, capsys):
  stages.watch(Experiment(run, workdir))
  assert 'examples to train on' not in capsys.readouterr().out
  assert json.loads((workdir / 'watched' / monitor_study.STUDY).read_text()) == study


@pytest.mark.parametrize(
  'changes, said',
  [
    (dict(watched__bad__misaligned=False), 'misaligned and fine-tunes that are not'),
    (dict(monitor__controls=('neutrals',)), "did you mean 'neutral'"),
    (dict(watched__bad__seeds=(1, 1)), 'each once'),
    (dict(watched__good__finetune='slow'), 'watched.good.finetune'),
    (dict(contrasts__other__validation_fraction=2.0), 'contrasts.other.validation_fraction'),
  ],
)
def test_what_cannot_be_is_refused(changes, said):
  with pytest.raises(InputError, match=said):
    configs.resolve(small_config(**changes))


def test_conversations_of_the_organism_have_no_end():
  with pytest.raises(InputError, match='as n'):
    sources.load_conversations('organism:facts')
  with pytest.raises(InputError, match="no 'fact'.*'facts'"):
    sources.load_conversations('organism:fact', n=3)
