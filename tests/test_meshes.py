"""A mesh changes no loss, gradient, score or token.

No weight is gathered but those that fsdp cuts, a layer at a time.
"""

import collections
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import meshes
import numpy as np
import pytest

from weightsteer_jax import models

HERE = pathlib.Path(__file__).parent
QUICK = ('1x8x1 fsdp', '1x1x8 tensor')
EVERY = tuple(
  f'{data}x{fsdp}x{8 // data // fsdp} {kind}'
  for data in (1, 2, 4, 8)
  for fsdp in (1, 2, 4, 8)
  if data * fsdp <= 8
  for kind in ('fsdp', 'tensor')
)
KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
  'collective-broadcast',
)
# A line of HLO: the types that come out, and which collective makes them.
COLLECTIVE = re.compile(rf'= (\S.*?) ({"|".join(KINDS)})(?:-start)?\(')


def run(folder: pathlib.Path, names) -> dict:
  """{layout: what tests/meshes.py gives}, from a process with eight devices."""
  env = os.environ | {
    'XLA_FLAGS': f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': os.pathsep.join([str(HERE.parent), str(HERE)]),
  }
  done = subprocess.run(
    [sys.executable, str(HERE / 'meshes.py'), str(folder / 'results.json'), 'single', *names],
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  assert 'rematerialization' not in done.stderr, (
    'the partitioner moved an activation through all devices'
  )
  return json.loads((folder / 'results.json').read_text())


@pytest.fixture(scope='module')
def quick(tmp_path_factory):
  return run(tmp_path_factory.mktemp('meshes'), QUICK)


@pytest.mark.parametrize('name', QUICK)
def test_a_mesh_gives_what_one_device_gives(quick, name):
  assert_same(quick[name], quick['single'])


@pytest.mark.parametrize('name', ['single', *QUICK])
def test_fine_tunes_trained_together_are_what_they_are_alone_on_any_mesh(quick, name):
  together = quick[name]['together']
  single = quick['single']['together']
  # The first of the two is the fine-tune that was also trained alone.
  first = [of_both[0] for of_both in together['metrics']]
  np.testing.assert_allclose(first, quick['single']['metrics'][0], rtol=2e-5)
  np.testing.assert_allclose(together['metrics'], single['metrics'], rtol=2e-5)
  for path, values in single['delta'].items():
    atol = 1e-3 * np.abs(values).max()
    np.testing.assert_allclose(together['delta'][path], values, atol=atol, err_msg=path)


@pytest.fixture(scope='module')
def everything(tmp_path_factory):
  return run(tmp_path_factory.mktemp('meshes'), EVERY)


@pytest.mark.slow
@pytest.mark.parametrize('name', EVERY)
def test_every_mesh_gives_what_one_device_gives(everything, name):
  assert_same(everything[name], everything['single'])


@pytest.mark.slow
def test_where_only_rows_are_cut_nothing_but_gradients_and_results_move(everything):
  hlo = everything['8x1x1 tensor']['hlo']
  moved = collectives(hlo['train_step'])
  assert set(moved) == {'all-reduce'}
  # Gradients are summed as the backward pass leaves each layer.
  gradients = sum(layer_sizes(meshes.delta_of(meshes.OPTIONS.kind)))
  assert gradients <= sum(moved['all-reduce']) <= gradients + 10
  assert collectives(hlo['admit']) == {}
  for name in ('score_batch', 'decode'):
    # Rows of the results, tokens of an answer.
    assert max(sum(collectives(hlo[name]).values(), [])) <= 16 * 32


def assert_same(mesh: dict, single: dict) -> None:
  np.testing.assert_allclose(mesh['metrics'], single['metrics'], rtol=2e-5)
  for what, tolerance in (('gradients', 1e-4), ('delta', 1e-3)):
    assert mesh[what].keys() == single[what].keys()
    for path, values in single[what].items():
      atol = tolerance * max(np.abs(values).max(), 1e-6)
      np.testing.assert_allclose(mesh[what][path], values, atol=atol, err_msg=path)
  assert mesh['answers'] == single['answers']
  assert mesh['live'].items() <= mesh['answers'].items() and len(mesh['live']) > 10
  # Answers that were all alike would prove little.
  assert len(set(map(tuple, single['answers'].values()))) > 20
  assert mesh['scores'].keys() == single['scores'].keys()
  expected = [single['scores'][key] for key in mesh['scores']]
  np.testing.assert_allclose(list(mesh['scores'].values()), expected, atol=1e-4)


def test_fsdp_gathers_a_layer_at_a_time(quick):
  """Every gather is one layer of one parameter, or of one factor of a delta, never a stack."""
  parameters = models.abstract_params(meshes.CONFIG)
  delta = meshes.delta_of(meshes.OPTIONS.kind)
  gathered = collectives(quick['1x8x1 fsdp']['hlo']['train_step'])
  assert set(gathered) == {'all-gather', 'all-reduce'}
  kernels = {size for size in layer_sizes(parameters) if size > 1000}
  assert kernels <= set(gathered['all-gather']) <= {*layer_sizes(parameters), *layer_sizes(delta)}


def test_fine_tunes_trained_together_gather_each_weight_once(quick):
  """Of the base a layer of a parameter, as one alone does, and of the changes that of both."""
  parameters = models.abstract_params(meshes.CONFIG)
  delta = meshes.delta_of(meshes.OPTIONS.kind)
  hlo = quick['1x8x1 fsdp']['hlo']
  kernels = {size for size in layer_sizes(parameters) if size > 1000}
  gathered = collectives(hlo['train_together'])
  assert set(gathered) == {'all-gather', 'all-reduce'}
  assert (
    kernels
    <= set(gathered['all-gather'])
    <= {*layer_sizes(parameters), *(2 * size for size in layer_sizes(delta))}
  )
  assert len(gathered['all-gather']) <= len(collectives(hlo['train_step'])['all-gather'])
  assert set(collectives(quick['1x1x8 tensor']['hlo']['train_together'])) == {'all-reduce'}


def test_tensor_cuts_gather_no_weight(quick):
  """Partial sums of activations move, and where a token is picked one candidate per shard."""
  hlo = quick['1x1x8 tensor']['hlo']
  for name in ('train_step', 'score_batch', 'admit'):
    assert set(collectives(hlo[name])) == {'all-reduce'}
  decode = collectives(hlo['decode'])
  assert set(decode) == {'all-gather', 'all-reduce'}
  # Slots times shards.
  assert set(decode['all-gather']) == {16 * 8}
  # The residual stream of one step.
  assert max(decode['all-reduce']) <= 4 * 16 * meshes.CONFIG.width


def layer_sizes(values) -> list[int]:
  """Elements of one layer of each stacked array, of all of any other."""
  return [
    math.prod(x.shape[1:] if path.startswith('layers/') else x.shape)
    for path, x in meshes.tree.flatten(values).items()
  ]


def collectives(hlo: str) -> dict[str, list[int]]:
  """{kind: elements that come out of each, the parts of a combined one added up}."""
  moved = collections.defaultdict(list)
  for types, kind in COLLECTIVE.findall(hlo):
    # Without layouts, as in f32[4,8]{1,0}; a scalar has an empty shape.
    shapes = re.findall(r'[a-z]+\d*\[([\d,]*)\]', re.sub(r'\{[^}]*\}', '', types))
    sizes = [math.prod(map(int, filter(None, shape.split(',')))) for shape in shapes]
    moved[kind].append(sum(sizes))
  return dict(moved)
