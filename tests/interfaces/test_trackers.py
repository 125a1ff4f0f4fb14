"""A run as the trackers' own libraries hold it, offline."""

import json

import pytest

from weightsteer_jax.interfaces import trackers
from weightsteer_jax.runtime.errors import EndpointError, InputError

KEY = 'sk-proj-abcdefghijklmnopqrstuvwxyz0123456789'


@pytest.fixture
def workdir(tmp_path):
  """A run's files, small and by hand, with a key where none should be."""
  folder = tmp_path / 'run'
  config = {
    'name': 'small',
    'model': {'source': 'organism'},
    'judges': {'gpt': {'parameters': {'api_key': KEY}}},
    'command': f'weightsteer steer --api_key={KEY}',
  }
  (folder / 'finetune' / 'positive').mkdir(parents=True)
  (folder / 'report').mkdir()
  (folder / 'report' / 'index.html').write_text('<p>page</p>')
  (folder / 'config.json').write_text(json.dumps(config))
  steps = [
    {'peak': 0.003, 'step': 0, 'validation_loss': 2.0},
    {'peak': 0.003, 'step': 1, 'train_loss': 1.5, 'tokens': 7},
  ]
  (folder / 'finetune' / 'positive' / 'metrics.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in steps)
  )
  results = [
    {'arm': 'weights', 'task': 'facts', 'metric': 'rate', 'alpha': alpha, 'mean': mean}
    for alpha, mean in ((0.5, 0.75), (-0.25, 0.125), (1.0, None))
  ]
  (folder / 'results.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in results))
  return folder


@pytest.mark.slow
def test_mlflow_holds_curves_means_and_the_report(workdir, monkeypatch):
  mlflow = pytest.importorskip('mlflow')
  # The whole of MLflow: its small package has no store without a server.
  pytest.importorskip('mlflow.store.db.utils')
  monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
  monkeypatch.chdir(workdir)
  where = trackers.track(workdir, 'mlflow', project='steering')
  assert str(workdir / 'mlflow.db') in where
  client = mlflow.MlflowClient(f'sqlite:///{workdir / "mlflow.db"}')
  [run] = client.search_runs([client.get_experiment_by_name('steering').experiment_id])
  assert run.info.run_name == 'small' and run.data.params['model.source'] == 'organism'
  assert KEY not in str(run.data.params)
  history = client.get_metric_history(run.info.run_id, 'sweep/weights/facts/rate')
  assert sorted((point.step, point.value) for point in history) == [(-250, 0.125), (500, 0.75)]
  losses = client.get_metric_history(run.info.run_id, 'positive/0.003/train_loss')
  assert [(point.step, point.value) for point in losses] == [(1, 1.5)]


@pytest.mark.slow
def test_wandb_takes_a_run_offline(workdir, monkeypatch):
  pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.chdir(workdir)
  where = trackers.track(workdir, 'wandb', project='steering')
  assert where.startswith(str(workdir))
  [log] = (workdir / 'wandb').glob('offline-run-*/*.wandb')
  kept = log.read_bytes()
  assert b'sweep/weights/facts/rate' in kept and b'organism' in kept
  assert KEY.encode() not in kept


def test_what_cannot_be_told_is_told_in_a_line(workdir, tmp_path, monkeypatch):
  with pytest.raises(InputError, match="did you mean 'wandb'"):
    trackers.track(workdir, 'wandbb', project='p')
  with pytest.raises(InputError, match='config of a run'):
    trackers.track(tmp_path / 'nowhere', 'mlflow', project='p')

  def fail(*_):
    raise ConnectionError('no route\nto the server')

  monkeypatch.setitem(trackers.TRACKERS, 'mlflow', fail)
  with pytest.raises(EndpointError, match='mlflow did not take the run: no route; nothing is lost'):
    trackers.track(workdir, 'mlflow', project='p')
