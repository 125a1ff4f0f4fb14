"""Real processes over gloo: what one computes two compute too, and what ends one ends both."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

from distributed import harness
from weightsteer_jax import directions
from weightsteer_jax.runtime import tree
from weightsteer_jax.storage import checkpoint

CONVERSATION = pathlib.Path(__file__).parent / 'conversation.py'


def rows(workdir: pathlib.Path) -> dict[tuple, dict]:
  lines = (workdir / 'sweep' / 'rows.jsonl').read_text().splitlines()
  # The check is of the order of finishing too.
  found = [json.loads(line) | {'check': ''} for line in lines]
  return {(row['alpha'], row['task'], row['example']): row for row in found}


def losses(workdir: pathlib.Path, side: str) -> list[tuple]:
  lines = (workdir / 'finetune' / side / 'metrics.jsonl').read_text().splitlines()
  return [
    (row['step'], row.get('train_loss'), row.get('validation_loss'))
    for row in map(json.loads, lines)
  ]


def assert_alike(one: pathlib.Path, other: pathlib.Path) -> None:
  """Losses, direction, scores and greedy texts of two workdirs agree, the numbers within
  rounding."""
  for side in ('positive', 'negative'):
    for (step, *mine), (their_step, *theirs) in zip(
      losses(one, side), losses(other, side), strict=True
    ):
      assert step == their_step
      np.testing.assert_allclose(np.array(mine, float), np.array(theirs, float), rtol=1e-4)
  x, y = (
    tree.flatten(directions.load(workdir / 'directions' / 'small').delta)
    for workdir in (one, other)
  )
  assert x.keys() == y.keys()
  for path in x:
    assert np.linalg.norm(x[path] - y[path]) < 1e-4 * np.linalg.norm(x[path]), path
  mine, theirs = rows(one), rows(other)
  assert mine.keys() == theirs.keys() and len(mine) == 36
  for key, row in mine.items():
    assert row.get('completion') == theirs[key].get('completion'), key
    np.testing.assert_allclose(row.get('logprobs', 0), theirs[key].get('logprobs', 0), atol=1e-4)


def test_two_processes_of_two_devices_compute_what_one_does(experiment, tmp_path):
  one, two = (
    experiment(1, 'steer', tmp_path / 'one', devices=1),
    experiment(2, 'steer', tmp_path / 'two'),
  )
  assert (one.wait(200), two.wait(200)) == ([0], [0, 0]), one.said() + two.said()
  assert_alike(tmp_path / 'one', tmp_path / 'two')
  assert 'data:4' in two.output(0) and 'fine-tune positive' in two.output(0)
  # Gloo's threads break each other's one sentence in two.
  gloo = ('Gloo', 'peer ranks. Expected number of connected peer ranks')
  said = [
    line
    for line in two.output(1).splitlines()
    if line.strip() and not any(part in line for part in gloo)
  ]
  assert not said, 'the other processes have nothing to say'


def test_two_processes_speak_and_save_together_and_one_alone_reads_what_they_saved(tmp_path):
  group = harness.start(2, CONVERSATION, f'--folder={tmp_path}/folder', logs=tmp_path)
  assert group.wait(120) == [0, 0] and 'all said' in group.output(0), group.said()
  abstract = {
    'a': jax.ShapeDtypeStruct((8, 12), np.float32),
    'n': jax.ShapeDtypeStruct((), np.int32),
  }
  restored = checkpoint.restore(tmp_path / 'folder' / 'run' / '00000001', abstract)
  np.testing.assert_array_equal(restored['a'], np.arange(96).reshape(8, 12))


def test_an_exception_on_one_process_ends_the_other_with_its_message_and_status(tmp_path):
  group = harness.start(2, CONVERSATION, f'--folder={tmp_path}/folder', '--fail', logs=tmp_path)
  assert group.wait(120) == [1, 1], group.said()
  assert 'Traceback' in group.output(1) and group.output(1).endswith(
    'error: RuntimeError: a fault of the test\n'
  )
  assert 'Traceback' not in group.output(0)
  assert re.search(
    r'error: process 1 of 2 on \S+: RuntimeError: a fault of the test\n', group.output(0)
  ), group.said()
  assert group.apart() < 5


@pytest.mark.slow
def test_sigterm_to_one_process_saves_on_both_and_what_was_saved_goes_on_in_one(
  experiment, tmp_path
):
  faults = '--fault=stop', '--on=1', '--at=2', '--pause=0.2'
  group = experiment(2, 'finetune', tmp_path / 'run', '--side=positive', *faults)
  assert group.wait(120) == [75, 75], group.said()
  assert all('SIGTERM (to process 1 of 2) came: step ' in group.output(i) for i in range(2)), (
    group.said()
  )
  saved = sorted(
    path.name
    for path in (tmp_path / 'run' / 'finetune' / 'positive' / 'checkpoints' / '0.003').iterdir()
  )
  assert 2 <= int(saved[-1]) < 6
  group = experiment(1, 'finetune', tmp_path / 'run', '--side=positive', devices=1)
  assert group.wait(120) == [0], group.said()
  steps = [step for step, loss, _ in losses(tmp_path / 'run', 'positive') if loss is not None]
  assert steps == [1, 2, 3, 4, 5, 6]
