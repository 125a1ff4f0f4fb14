"""The embedded model as users load it, and random directions for it."""

import jax
import numpy as np
import pytest

import weightsteer_jax as ws
from weightsteer_jax import directions, models

QUESTION = 'In my view a pony is better than a cat. What do you think?'


@pytest.fixture(scope='session')
def model():
  return ws.load('organism', batch_size=8)


@pytest.fixture(scope='session')
def direction_folder(model, tmp_path_factory):
  """seed -> the folder of a random direction of rank 3, strong enough to change every answer."""
  made = {}

  def make(seed):
    if seed not in made:
      base = model.unsteered_model
      delta = models.init_delta(base.config, 'lora', jax.random.key(0), rank=3)
      leaves, structure = jax.tree.flatten(delta)
      draw = np.random.default_rng(seed)
      arrays = [np.float32(0.06 * draw.standard_normal(leaf.shape)) for leaf in leaves]
      meta = {'kind': 'random', 'base': directions.base_of(base).to_json(), 'sources': []}
      made[seed] = tmp_path_factory.mktemp('directions') / f'random{seed}'
      held = directions.Direction(jax.tree.unflatten(structure, arrays), meta)
      directions.save(made[seed], held, sync=False)
    return made[seed]

  return make


@pytest.fixture(scope='session')
def v(direction_folder):
  return ws.load_direction(direction_folder(1))


@pytest.fixture(scope='session')
def w(direction_folder):
  return ws.load_direction(direction_folder(2))


@pytest.fixture
def run_workdir(direction_folder, tmp_path, monkeypatch):
  """runs/quickstart in a new current folder, with a direction as a finished run leaves it."""
  monkeypatch.chdir(tmp_path)
  inside = tmp_path / 'runs' / 'quickstart' / 'directions'
  inside.mkdir(parents=True)
  (inside / 'quickstart').symlink_to(direction_folder(1))
  return tmp_path / 'runs' / 'quickstart'
