"""Results as TensorBoard reads them."""

import pytest

from weightsteer_jax.evaluation import scalars


def row(arm, alpha, mean, metric='rate'):
  return {'arm': arm, 'task': 'facts', 'metric': metric, 'alpha': alpha, 'mean': mean}


def test_alpha_in_thousandths_is_the_step(tmp_path):
  accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
  scalars.write(tmp_path, [row('weights', 4.0, 0.5)])
  scalars.write(
    tmp_path,
    [
      row('weights', -0.25, 0.5),
      row('weights', 1.0, 0.75),
      row('weights', 1.0, None, 'log_odds'),
      row('bias', 0.0, 1.0),
    ],
  )
  folder = tmp_path / 'sweep' / 'tensorboard'
  assert {path.name for path in folder.iterdir()} == {'weights', 'bias'}
  events = accumulator.EventAccumulator(str(folder / 'weights')).Reload()
  assert events.Tags()['scalars'] == ['facts/rate']
  read = [(event.step, event.value) for event in events.Scalars('facts/rate')]
  assert read == [(-250, 0.5), (1000, 0.75)], 'earlier results are replaced'
