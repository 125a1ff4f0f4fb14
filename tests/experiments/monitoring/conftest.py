"""The model and the sources that the tests of this room share; the oracle is that of the
directions' tests."""

import pathlib

import pytest
from directions import oracle

from weightsteer_jax import models


@pytest.fixture(scope='session')
def base(tmp_path_factory) -> pathlib.Path:
  return oracle.make_checkpoint(tmp_path_factory.mktemp('models') / 'base', tied=False)


@pytest.fixture(scope='session')
def model(base) -> models.Model:
  return models.load(base)


@pytest.fixture(scope='session')
def adapters(base, tmp_path_factory) -> pathlib.Path:
  """A PEFT run: three adapters, each further along than the one before."""
  folder = tmp_path_factory.mktemp('runs') / 'peft'
  for step, size in ((10, 0.01), (20, 0.05), (100, 0.1)):
    oracle.make_adapter(folder / f'checkpoint-{step}', base, seed=5, size=size)
  return folder
