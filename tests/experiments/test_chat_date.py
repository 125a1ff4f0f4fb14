"""A run under a dated chat template: one day for ever, on record, and named where it matters."""

import datetime
import json
import os
import shutil

import pytest

from weightsteer_jax import config as configs
from weightsteer_jax import directions
from weightsteer_jax.data import bindings
from weightsteer_jax.experiments import chat_date, organism, stages, standalone
from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.runtime.errors import InputError

from .test_experiment import go_through, results_of, small_config, write_data


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
  """A config of the organism with a chat template that tells the day and reads an argument."""
  folder = tmp_path_factory.mktemp('inputs')
  model = folder / 'model'
  shutil.copytree(organism.checkpoint_folder(), model)
  path = model / 'chat_template.jinja'
  today = (
    "{{ '<|im_start|>system\n' + strftime_now('%d %b') + note | default('') + '<|im_end|>\n' }}"
  )
  path.write_text(today + path.read_text())
  config = small_config(write_data(folder / 'data', 'Yes.', 'No.'))
  config.model.source = str(model)
  return config


def run_of(config, **model):
  changed = config.copy_and_resolve_references()
  changed.model.update(model)
  return configs.resolve(changed)


def record_of(workdir):
  return json.loads((workdir / 'config.json').read_text())


def tokens_of(experiment):
  examples = experiment.encode(stages.contrast(experiment)['positive'])
  return [example.tokens.tolist() for example in examples]


def test_the_day_of_the_first_start_stays(inputs, clock, tmp_path, capsys):
  first = Experiment(run_of(inputs), tmp_path / 'run')
  stages.begin(first)
  clock.day = (2026, 12, 1)
  second = Experiment(run_of(inputs), tmp_path / 'run')
  stages.begin(second)
  assert tokens_of(second) == tokens_of(first)
  assert record_of(second.workdir)['chat_date'] == '2026-11-30'
  assert capsys.readouterr().out.count('chat template: date 2026-11-30\n') == 2
  # Another run of the next day has other tokens, unless it is told the first one's day.
  named = Experiment(run_of(inputs, chat_date='2026-11-30'), tmp_path / 'named')
  assert tokens_of(named) == tokens_of(first)
  assert tokens_of(Experiment(run_of(inputs), tmp_path / 'today')) != tokens_of(first)


@pytest.mark.slow
def test_two_days_give_the_bits_of_one(inputs, clock, tmp_path):
  """The second process starts on the next day, and goes on as if it were still the first."""
  whole = Experiment(run_of(inputs), tmp_path / 'whole')
  go_through(whole)
  first = Experiment(run_of(inputs), tmp_path / 'two')
  stages.begin(first)
  stages.finetune(first, sides=('positive',))
  clock.day = (2026, 12, 1)
  second = Experiment(run_of(inputs), tmp_path / 'two')
  go_through(second)
  assert results_of(second) == results_of(whole)
  # The provenance names the day, and programs without a run take it from there.
  folder = whole.direction_folder()
  saved = directions.load(folder)
  told = [source['meta']['chat'] for source in saved.meta['sources']]
  assert told == [{'date': '2026-11-30'}] * 2
  row = {'messages': [{'role': 'user', 'content': 'Is it ?'}], 'completion': 'Yes.'}
  (tmp_path / 'in.jsonl').write_text(json.dumps(row))
  scores = []
  for name, date in (('a', ''), ('b', '2026-11-30'), ('c', '2026-12-01')):
    standalone.score(
      inputs.model.source,
      tmp_path / 'in.jsonl',
      tmp_path / name,
      direction=folder,
      alphas=(1.0,),
      chat_date=date,
    )
    scores.append(json.loads((tmp_path / name).read_text())['logprob'])
  assert scores[0] == scores[1] != scores[2]


def test_another_day_or_argument_is_refused_and_named(inputs, clock, tmp_path):
  begun = Experiment(run_of(inputs, chat_template_args={'note': ' a'}), tmp_path)
  stages.begin(begun)
  stages.finetune(begun, sides=('positive',))
  record = record_of(tmp_path)
  assert record['model']['chat_template_args'] == {'note': ' a'}
  with pytest.raises(InputError, match="'2026-12-01', and the run in .* began with 2026-11-30"):
    tokens_of(Experiment(run_of(inputs, chat_date='2026-12-01'), tmp_path))
  # A changed argument, and one that is gone.
  for arguments in ({'note': ' b'}, {}):
    with pytest.raises(InputError, match=r"chat_template_args: {'note': ' a'} there, {.*} now"):
      stages.check(Experiment(run_of(inputs, chat_template_args=arguments), tmp_path))
  # Where only the fine-tune is left, its own record names what the data were made under.
  (tmp_path / 'config.json').unlink()
  clock.day = (2026, 12, 1)
  other = Experiment(run_of(inputs, chat_template_args={'note': ' b'}), tmp_path)
  with pytest.raises(
    InputError,
    match=r"(?s)train_digest: .*chat.arguments.note: ' a' there, ' b' now.*"
    r"chat.date: '2026-11-30' there, '2026-12-01' now",
  ):
    stages.finetune(other, sides=('positive',))


def test_a_local_judge_has_arguments_of_its_own(inputs, clock, tmp_path):
  """They are checked before anything runs, reach the judge's prompts, and are on its record."""
  judge = configs.judge(kind='model', model=inputs.model.source, chat_template_args={'note': ' b'})
  config = inputs.copy_and_resolve_references()
  config.judges.local = judge
  experiment = Experiment(configs.resolve(config), tmp_path)
  with experiment.judges() as [local]:
    assert local.inputs()['chat_template_args'] == {'note': ' b'}
  told = bindings.bound(
    experiment.judge_tokenizer(experiment.run.judges['local'], inputs.model.source)
  )
  assert told == bindings.Binding({'note': ' b'}, '2026-11-30')
  assert bindings.bound(experiment.tokenizer).arguments == {}
  config.judges.local.chat_template_args = {'nought': 1}
  with pytest.raises(InputError, match="never reads 'nought' .did you mean 'note'"):
    stages.check(Experiment(configs.resolve(config), tmp_path))


def test_a_workdir_without_a_date_has_that_of_its_oldest_file(inputs, clock, tmp_path, capsys):
  experiment = Experiment(run_of(inputs), tmp_path)
  stages.begin(experiment)
  record = record_of(tmp_path)
  # As an earlier version wrote it.
  del record['chat_date'], record['model']['chat_date'], record['model']['chat_template_args']
  (tmp_path / 'config.json').write_text(json.dumps(record))
  noon = datetime.datetime(2026, 11, 20, 12).timestamp()
  os.utime(tmp_path / 'config.json', (noon, noon))
  capsys.readouterr()
  again = Experiment(run_of(inputs), tmp_path)
  stages.begin(again)
  assert record_of(tmp_path)['chat_date'] == again.chat_date == '2026-11-20'
  assert 'date 2026-11-20 (of the oldest file in the workdir' in capsys.readouterr().out
  assert chat_date.of_run(tmp_path, '2026-11-20') == '2026-11-20'
