"""The rule that picks a mesh and two layouts, by what a device holds."""

import dataclasses

import jax
import numpy as np
import pytest
from runtime.test_sharding import QWEN_7B

from weightsteer_jax import config as configs
from weightsteer_jax.models import placement
from weightsteer_jax.runtime import sharding
from weightsteer_jax.runtime.errors import InputError

GIB = 2**30
LORA = 40_370_176  # parameters of rank 16 on the seven projections of a 7B model


@dataclasses.dataclass(frozen=True)
class Chip:
  """As much of a device as the rule looks at."""

  id: int
  platform: str = 'tpu'
  device_kind: str = 'TPU v0'


@pytest.fixture(autouse=True)
def meshes_of_chips(monkeypatch):
  """jax orders real devices by their links; these have none."""

  def make_mesh(shape, devices=None):
    sizes = tuple(shape[axis] for axis in sharding.AXES)
    assert np.prod(sizes) == len(devices)
    return jax.sharding.Mesh(np.array(devices).reshape(sizes), sharding.AXES)

  monkeypatch.setattr(sharding, 'make_mesh', make_mesh)


def chosen(chips: int, gib: float, trained: int = LORA, **choice):
  return placement.choose(
    QWEN_7B,
    configs.Mesh(**choice),
    dtype='bfloat16',
    trained=trained,
    devices=[Chip(i) for i in range(chips)],
    memory=gib * GIB,
  )


@pytest.mark.parametrize(
  'chips, gib, shape',
  [
    (1, 80, (1, 1, 1)),
    (16, 95, (16, 1, 1)),
    (16, 31.25, (16, 1, 1)),
    (16, 15.75, (1, 8, 2)),
    (256, 15.75, (1, 128, 2)),
    (8, 4, (1, 2, 4)),
  ],
)
def test_the_base_is_whole_where_it_fits_and_cut_by_as_little_tensor_as_it_takes(chips, gib, shape):
  """15.2 GB of weights: whole in 0.6 of 31.25 GiB; half of them in 0.6 of 15.75 GiB; and tensor
  divides 4 kv heads."""
  assert tuple(chosen(chips, gib).evaluate.mesh.shape.values()) == shape


def test_what_is_chosen_is_said():
  words = chosen(16, 15.75).words
  assert words[0] == (
    'mesh: data:1,fsdp:8,tensor:2 (auto) on 16 device(s), TPU v0, 15.8 GiB each; weights 14.2 GiB, '
    'with training state 14.8 GiB'
  )
  assert (
    words[1] == 'training: weights cut over fsdp and tensor, 0.9 GiB each; rows of a batch cut in 8'
  )
  assert (
    words[2]
    == 'scoring and generation: weights cut over tensor, 7.1 GiB each; rows of a batch cut in 8'
  )


def test_training_replicates_the_base_where_it_fits_or_where_asked():
  assert not chosen(16, 95).train.fsdp
  assert chosen(16, 95, base='shard', shape='1x16x1').train.fsdp
  assert chosen(16, 95, shape='1x16x1').train.fsdp  # A mesh that is asked for is the mesh one gets.


def test_a_mesh_that_does_not_divide_the_model_is_refused_at_once():
  with pytest.raises(InputError, match='kv heads .K = 4. cannot be cut over tensor = 8'):
    chosen(16, 95, shape='1x2x8')
  kept = chosen(16, 95, shape='1x2x8', indivisible='replicate')
  assert kept.train.indivisible == 'replicate'
