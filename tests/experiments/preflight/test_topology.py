"""Names of hardware, as jax and as its sellers spell them."""

import importlib.util

import pytest

from weightsteer_jax.experiments.preflight import topology
from weightsteer_jax.runtime import sharding
from weightsteer_jax.runtime.errors import InputError


@pytest.mark.parametrize(
  'name, expected',
  [
    ('v5e:4x4', ('v5e', (4, 4))),
    ('v5litepod-16', ('v5e', (4, 4))),
    ('v5e-256', ('v5e', (16, 16))),
    ('v6e-32', ('v6e', (4, 8))),
    ('v5p:2x2x4', ('v5p', (2, 2, 4))),
    ('v5p-32', ('v5p', (2, 2, 4))),
    ('v4-128', ('v4', (4, 4, 4))),
    ('v5p-8', ('v5p', (2, 2, 1))),
  ],
)
def test_names(name, expected):
  assert topology.parse(name) == expected


@pytest.mark.parametrize(
  'name, message',
  [
    ('v5e:3x4', 'multiples of 2x2'),
    ('v5e:4x4x4', 'has 2 axes'),
    ('v6e:32x32', 'at most 256 chips'),
    ('v5e-24', 'power of two'),
    ('v5p-17', 'counts 2 to a chip'),
    ('v6', "did you mean 'v6e'"),
    ('h100', "expected 'local'"),
    ('v5e', "expected 'local'"),
  ],
)
def test_hardware_that_is_not_sold_is_refused(name, message):
  with pytest.raises(InputError, match=message):
    topology.parse(name)


def test_the_local_devices():
  local = topology.find_hardware('local')
  assert (
    local.name == 'local'
    and local.chip is None
    and local.memory > 2**30
    and len(local.devices) >= 1
  )


@pytest.mark.skipif(
  not importlib.util.find_spec('libtpu'), reason="needs libtpu: pip install 'weightsteer_jax[tpu]'"
)
@pytest.mark.parametrize(
  'name, shape', [('v5e:4x4', '1x2x8'), ('v6e:4x4', '1x2x8'), ('v5p:2x2x4', '2x8x1')]
)
def test_a_mesh_may_cut_across_the_axes_of_a_pod(name, shape):
  devices = topology.find_hardware(name).devices
  mesh = sharding.make_mesh(sharding.parse(shape), devices)
  assert sorted(device.id for device in mesh.devices.flat) == sorted(
    device.id for device in devices
  )
