"""The watch in training: the same numbers on any mesh, from where the factors lie."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from directions import oracle

from weightsteer_jax import models
from weightsteer_jax.experiments.monitoring import hook
from weightsteer_jax.runtime.errors import InputError

TESTS = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_a_look_on_meshes():
  env = os.environ | {
    'XLA_FLAGS': f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': os.pathsep.join([str(TESTS.parent), str(TESTS)]),
  }
  done = subprocess.run(
    [sys.executable, str(TESTS / 'monitoring' / 'sharded.py')],
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert (
    len(found) == 4 and found['single']['monitor/v/cosine'] != found['single']['monitor/w/cosine']
  )
  for look in found.values():
    assert look == pytest.approx(found['single'], rel=1e-4, abs=1e-7)


def test_before_the_first_step_there_is_no_angle(model):
  direction = oracle.random_direction(model, 1)
  delta = models.init_delta(model.config, 'lora', jax.random.key(0), rank=2)
  look = hook.watch({'w': direction.delta}, model.config, every=1).look(delta)
  assert {name: float(value) for name, value in look.items()} == {
    f'monitor/w/{key}': 0.0 for key in ('cosine', 'alpha', 'null_std')
  }


def test_directions_of_other_architectures_are_refused(model, tmp_path):
  wide = models.load(oracle.make_checkpoint(tmp_path / 'wide', tied=False, width=32))
  with pytest.raises(InputError, match='made for another architecture'):
    hook.watch({'w': oracle.random_direction(wide, 1).delta}, model.config, every=1)
