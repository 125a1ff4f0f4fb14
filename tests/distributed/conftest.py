"""What the tests of this room share: the small experiment, as groups of processes run it."""

import pathlib

import pytest

from distributed import harness, small

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope='session')
def experiment(tmp_path_factory):
  """(count, launcher, workdir, flags...) -> the running group."""
  folder = tmp_path_factory.mktemp('data')
  data = small.write_data(folder)

  def start(
    count: int, launcher: str, workdir: pathlib.Path, *args: str, devices: int = 2
  ) -> harness.Group:
    return harness.start(
      count,
      HERE / 'program.py',
      launcher,
      f'--config={HERE}/small.py',
      f'--workdir={workdir}',
      *data,
      *args,
      logs=workdir.parent / f'{workdir.name}-logs',
      devices=devices,
    )

  return start
