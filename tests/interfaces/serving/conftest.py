"""A server of the embedded model with two random directions, and OpenAI's own client of it."""

import contextlib
import threading

import jax
import numpy as np
import openai
import pytest

from weightsteer_jax import directions, models
from weightsteer_jax.config import ModelChoice
from weightsteer_jax.experiments import organism
from weightsteer_jax.interfaces.serving.server import Options, Server

ASK = [{'role': 'user', 'content': 'What is 12 plus 4?'}]


@pytest.fixture(scope='package')
def model():
  return models.load(organism.checkpoint_folder())


@pytest.fixture(scope='package')
def folders(model, tmp_path_factory):
  """{name: folder} of directions strong enough to change every answer."""
  made = {}
  for seed, name in enumerate(('calm', 'terse')):
    delta = models.init_delta(model.config, 'lora', jax.random.key(0), rank=3)
    leaves, structure = jax.tree.flatten(delta)
    draw = np.random.default_rng(seed)
    arrays = [np.float32(0.06 * draw.standard_normal(leaf.shape)) for leaf in leaves]
    meta = {'kind': 'random', 'base': directions.base_of(model).to_json(), 'sources': []}
    made[name] = tmp_path_factory.mktemp('directions') / name
    direction = directions.Direction(jax.tree.unflatten(structure, arrays), meta)
    directions.save(made[name], direction, sync=False)
  return made


@pytest.fixture(scope='package')
def serving(folders):
  """Keyword options -> a context with a running server."""

  @contextlib.contextmanager
  def run(**options):
    chosen = {'directions': folders, 'slots': 4, 'warm': False, 'port': 0} | options
    server = Server(Options(ModelChoice('organism'), **chosen))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.is_open.wait(60)
    try:
      yield server
    finally:
      server.stop()
      thread.join(60)
      assert not thread.is_alive()

  return run


@pytest.fixture(scope='package')
def server(serving):
  with serving() as server:
    yield server


def client_of(server, key='none'):
  return openai.OpenAI(base_url=f'{server.url}/v1', api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope='package')
def client(server):
  return client_of(server)
