"""The models and adapters that the tests of this room share."""

import pathlib

import pytest

from weightsteer_jax import directions, models

from .oracle import make_adapter, make_checkpoint


@pytest.fixture(scope='session')
def untied(tmp_path_factory) -> pathlib.Path:
  return make_checkpoint(tmp_path_factory.mktemp('models') / 'untied', tied=False)


@pytest.fixture(scope='session')
def tied(tmp_path_factory) -> pathlib.Path:
  return make_checkpoint(tmp_path_factory.mktemp('models') / 'tied', tied=True)


@pytest.fixture(scope='session')
def untied_model(untied) -> models.Model:
  return models.load(untied)


@pytest.fixture(scope='session')
def tied_model(tied) -> models.Model:
  return models.load(tied)


@pytest.fixture(scope='session')
def adapters(untied, tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
  """Two adapters with the embedding and the head saved whole, of different ranks and scales."""
  folder = tmp_path_factory.mktemp('adapters')
  whole = ['embed_tokens', 'lm_head']
  return (
    make_adapter(folder / 'positive', untied, seed=1, r=3, lora_alpha=5, modules_to_save=whole),
    make_adapter(folder / 'negative', untied, seed=2, r=2, lora_alpha=7, modules_to_save=whole),
  )


@pytest.fixture(scope='session')
def direction(adapters) -> directions.Direction:
  return directions.between(*adapters)
