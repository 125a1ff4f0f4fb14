"""A fine-tune against its base: the same change from every way of saying so, and its reverse."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from weightsteer_jax import directions
from weightsteer_jax.runtime import tree

from . import oracle
from .test_between import assert_same_changes, save_run

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def changes(untied, adapters) -> dict[str, np.ndarray]:
  """{tensor: PEFT's merged weight minus the base's} of the first adapter."""
  base = oracle.torch_weights(untied)
  tuned = oracle.torch_weights(untied, adapters[0])
  changes = {name: tuned[name] - base[name] for name in tuned}
  return {name: change for name, change in changes.items() if change.any()}


def test_an_adapter_against_its_base_is_its_change(untied, adapters, changes, tmp_path):
  copy = shutil.copytree(untied, tmp_path / 'copy')
  minus = {name: -change for name, change in changes.items()}
  assert_same_changes(directions.between(adapters[0]).delta, changes)
  assert_same_changes(directions.between(adapters[0], untied).delta, changes)
  # Other files with the same weights are the same base.
  assert_same_changes(directions.between(adapters[0], copy, base=untied).delta, changes)
  assert_same_changes(directions.between(None, adapters[0]).delta, minus)
  assert_same_changes(directions.between(untied, adapters[0]).delta, minus)


def test_the_base_is_recorded_as_the_other_side(untied, adapters):
  alone = directions.between(adapters[0])
  assert [(source['role'], source['kind']) for source in alone.meta['sources']] == [
    ('positive', 'peft'),
    ('negative', 'base'),
  ]
  assert alone.meta['sources'][1]['path'] == str(untied)
  reverse = directions.between(untied, adapters[0])
  assert [source['kind'] for source in reverse.meta['sources']] == ['base', 'peft']


def test_a_run_of_ours_needs_no_base_beside_it(untied, untied_model, tmp_path):
  expected = oracle.dense_in_torch_axes(save_run(tmp_path / 'run', untied_model, 1))
  for negative in (None, untied):
    direction = directions.between(tmp_path / 'run', negative)
    assert_same_changes(direction.delta, expected, tolerance=1e-6)
  assert directions.between(tmp_path / 'run').meta['sources'][1]['kind'] == 'base'


def test_a_checkpoint_alone_is_taken_from_the_base_that_is_passed(untied, tmp_path):
  tuned = oracle.make_checkpoint(tmp_path / 'tuned', tied=False, moved=0.02)
  expected = directions.between(tuned, untied)
  for made in (directions.between(tuned, base=untied), directions.task_vector(tuned, untied)):
    for path, leaf in tree.flatten(expected.delta).items():
      np.testing.assert_array_equal(tree.flatten(made.delta)[path], leaf)
  reverse = directions.between(None, tuned, base=untied)
  assert abs(directions.cosine(reverse, expected) + 1) < 1e-6


def test_the_loss_of_a_bfloat16_route_is_measured_against_the_base(adapters):
  direction = directions.between(adapters[0], compare_bfloat16=True)
  assert 0.5 < direction.meta['bfloat16_route']['cosine'] < 1


@pytest.mark.parametrize('flags', [['--positive'], ['--negative']])
def test_the_program_takes_one_side(untied, adapters, tmp_path, flags):
  command = [sys.executable, ROOT / 'launch/direction.py', f'{flags[0]}={adapters[0]}']
  command += [f'--output={tmp_path / "out"}', '--nosync', '--compilation_cache=off']
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  manifest = json.loads((tmp_path / 'out' / 'direction.json').read_text())
  kinds = [source['kind'] for source in manifest['sources']]
  assert kinds == (['peft', 'base'] if flags == ['--positive'] else ['base', 'peft'])
  made = directions.load(tmp_path / 'out')
  sign = 1 if flags == ['--positive'] else -1
  assert abs(directions.cosine(made, directions.task_vector(adapters[0])) - sign) < 1e-6
