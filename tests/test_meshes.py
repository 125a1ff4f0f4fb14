"""A mesh changes no loss, gradient, score or token, and gathers no weight but those that fsdp cuts,
a layer at a time."""

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
COLLECTIVE = re.compile(
  r'= (\S.*?) '
  r'(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(?:-start)?\('
)


def run(folder: pathlib.Path, names) -> dict:
  """{layout: what tests/meshes.py gives}, from a process with eight devices."""
  env = os.environ | {
    'XLA_FLAGS': f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': os.pathsep.join([str(HERE.parent), str(HERE)]),
  }
  done = subprocess.run(
    [sys.executable, str(HERE / 'meshes.py'), str(folder / 'found.json'), 'single', *names],
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  assert 'rematerialization' not in done.stderr, (
    'the partitioner moved an activation through all devices'
  )
  return json.loads((folder / 'found.json').read_text())


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  return run(tmp_path_factory.mktemp('meshes'), QUICK)


@pytest.mark.parametrize('name', QUICK)
def test_a_mesh_gives_what_one_device_gives(found, name):
  same(found[name], found['single'])


@pytest.mark.parametrize('name', ['single', *QUICK])
def test_fine_tunes_trained_together_are_what_they_are_alone_on_any_mesh(found, name):
  ours, theirs = found[name]['together'], found['single']['together']
  np.testing.assert_allclose(
    [measured[0] for measured in ours['metrics']], found['single']['metrics'][0], rtol=2e-5
  )
  np.testing.assert_allclose(ours['metrics'], theirs['metrics'], rtol=2e-5)
  for path, values in theirs['delta'].items():
    np.testing.assert_allclose(
      ours['delta'][path], values, atol=1e-3 * np.abs(values).max(), err_msg=path
    )


@pytest.fixture(scope='module')
def everything(tmp_path_factory):
  return run(tmp_path_factory.mktemp('meshes'), EVERY)


@pytest.mark.slow
@pytest.mark.parametrize('name', EVERY)
def test_every_mesh_gives_what_one_device_gives(everything, name):
  same(everything[name], everything['single'])


@pytest.mark.slow
def test_where_only_rows_are_cut_nothing_but_gradients_and_results_move(everything):
  hlo = everything['8x1x1 tensor']['hlo']
  moved = collectives(hlo['train_step'])
  assert set(moved) == {'all-reduce'}
  gradients = sum(
    layer_sizes(meshes.delta_of(meshes.OPTIONS.kind))
  )  # Summed as the backward pass leaves each layer.
  assert gradients <= sum(moved['all-reduce']) <= gradients + 10
  assert collectives(hlo['admit']) == {}
  for name in ('score_batch', 'decode'):
    assert (
      max(sum(collectives(hlo[name]).values(), [])) <= 16 * 32
    )  # rows of the results, tokens of an answer


def same(one: dict, other: dict) -> None:
  np.testing.assert_allclose(one['metrics'], other['metrics'], rtol=2e-5)
  for what, tolerance in (('gradients', 1e-4), ('delta', 1e-3)):
    assert one[what].keys() == other[what].keys()
    for path, values in other[what].items():
      np.testing.assert_allclose(
        one[what][path], values, atol=tolerance * max(np.abs(values).max(), 1e-6), err_msg=path
      )
  assert one['answers'] == other['answers'] and len(set(map(tuple, other['answers'].values()))) > 20
  assert one['scores'].keys() == other['scores'].keys()
  np.testing.assert_allclose(
    *([x['scores'][key] for key in one['scores']] for x in (one, other)), atol=1e-4
  )


def test_fsdp_gathers_a_layer_at_a_time(found):
  """Every gather is one layer of one parameter, or of one factor of a delta, and never their
  stack."""
  parameters, delta = models.abstract_params(meshes.CONFIG), meshes.delta_of(meshes.OPTIONS.kind)
  gathered = collectives(found['1x8x1 fsdp']['hlo']['train_step'])
  assert set(gathered) == {'all-gather', 'all-reduce'}
  kernels = {size for size in layer_sizes(parameters) if size > 1000}
  assert kernels <= set(gathered['all-gather']) <= {*layer_sizes(parameters), *layer_sizes(delta)}


def test_fine_tunes_trained_together_gather_each_weight_once(found):
  """Of the base a layer of a parameter, as one alone does, and of the changes that of both."""
  parameters, delta = models.abstract_params(meshes.CONFIG), meshes.delta_of(meshes.OPTIONS.kind)
  alone, together = (found['1x8x1 fsdp']['hlo'][name] for name in ('train_step', 'train_together'))
  kernels = {size for size in layer_sizes(parameters) if size > 1000}
  gathered = collectives(together)
  assert set(gathered) == {'all-gather', 'all-reduce'}
  assert (
    kernels
    <= set(gathered['all-gather'])
    <= {*layer_sizes(parameters), *(2 * size for size in layer_sizes(delta))}
  )
  assert len(gathered['all-gather']) <= len(collectives(alone)['all-gather'])
  assert set(collectives(found['1x1x8 tensor']['hlo']['train_together'])) == {'all-reduce'}


def test_tensor_cuts_gather_no_weight(found):
  """What moves is partial sums of activations (all-reduce) and, where a token is picked, one
  candidate per shard."""
  hlo = found['1x1x8 tensor']['hlo']
  for name in ('train_step', 'score_batch', 'admit'):
    assert set(collectives(hlo[name])) == {'all-reduce'}
  decode = collectives(hlo['decode'])
  assert set(decode) == {'all-gather', 'all-reduce'}
  assert set(decode['all-gather']) == {16 * 8}  # slots x shards
  assert (
    max(decode['all-reduce']) <= 4 * 16 * meshes.CONFIG.width
  )  # the residual stream of one step


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
    shapes = re.findall(r'[a-z]+\d*\[([\d,]*)\]', re.sub(r'\{[^}]*\}', '', types))
    moved[kind].append(sum(math.prod(map(int, filter(None, shape.split(',')))) for shape in shapes))
  return dict(moved)
