"""By hand: the quickstart on several processes, and runs that are killed again and again. Minutes
each."""

import json
import pathlib
import random
import re
import time

import numpy as np
import pytest

from distributed import harness
from distributed.test_processes import losses, rows
from weightsteer_jax.finetune import load_adapter
from weightsteer_jax.runtime import tree

HERE = pathlib.Path(__file__).parent
QUICKSTART = HERE.parent.parent / 'configs' / 'quickstart.py'
pytestmark = pytest.mark.slow


def quickstart(count: int, workdir: pathlib.Path, *flags: str, devices: int = 2) -> harness.Group:
  # A third of the strengths: the others take time and break the model.
  flags = ('--config.sweep.alphas=(-1.0,-0.5,0.0,0.5,1.0)', *flags)
  return harness.start(
    count,
    HERE / 'program.py',
    'steer',
    f'--config={QUICKSTART}',
    f'--workdir={workdir}',
    *flags,
    logs=workdir.parent / f'{workdir.name}-logs',
    devices=devices,
    env={'JAX_DISABLE_MOST_OPTIMIZATIONS': '0'},
  )


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The quickstart's workdir, as one process makes it."""
  workdir = tmp_path_factory.mktemp('quickstart') / 'alone'
  group = quickstart(1, workdir, devices=1)
  assert group.wait(1200) == [0], group.said()
  return workdir


def compare_quickstart(one: pathlib.Path, other: pathlib.Path) -> dict[str, float]:
  """How far two runs of it are apart, for the test to print and to bound."""
  found = {}
  for side in ('positive', 'negative'):
    assert (one / 'data' / f'{side}.jsonl').read_text() == (
      other / 'data' / f'{side}.jsonl'
    ).read_text()
    # A loss of None becomes NaN.
    mine, theirs = (np.array(losses(workdir, side), float) for workdir in (one, other))
    found[f'{side} losses, relative'] = float(np.nanmax(np.abs(mine / theirs - 1)))
  mine, theirs = rows(one), rows(other)
  assert mine.keys() == theirs.keys()
  texts = [key for key, row in mine.items() if 'completion' in row]
  found['texts'] = len(texts)
  found['texts that differ'] = sum(
    mine[key]['completion'] != theirs[key]['completion'] for key in texts
  )
  found['scores, nats'] = max(
    np.abs(np.subtract(row['logprobs'], theirs[key]['logprobs'])).max()
    for key, row in mine.items()
    if 'logprobs' in row
  )
  results = [means(workdir) for workdir in (one, other)]
  found['means'] = max(abs(results[0][key] - results[1][key]) for key in results[0])
  return found


def means(workdir: pathlib.Path) -> dict[tuple, float]:
  lines = (workdir / 'results.jsonl').read_text().splitlines()
  return {(row['task'], row['metric'], row['alpha']): row['mean'] for row in map(json.loads, lines)}


@pytest.mark.parametrize('count', [2, 4])
def test_the_quickstart_comes_out_the_same_on_several_processes(alone, tmp_path, count, capsys):
  group = quickstart(count, tmp_path / 'run')
  assert group.wait(2400) == [0] * count, group.said()
  found = compare_quickstart(alone, tmp_path / 'run')
  with capsys.disabled():
    print(f'\n{count} x 2 devices against one: {json.dumps(found)}')
  assert (
    found['positive losses, relative'] < 1e-3
    and found['scores, nats'] < 0.05
    and found['means'] <= 0.02
  )


def test_one_of_four_is_killed_and_two_go_on_to_the_same_result(alone, tmp_path, capsys):
  group = quickstart(4, tmp_path / 'run', '--fault=kill', '--on=2', '--at=33')
  codes = group.wait(1200)
  assert codes == [75, 75, -9, 75], group.said()
  assert all('process 2 of 4 ended without a word' in group.output(i) for i in (0, 1, 3)), (
    group.said()
  )
  again = quickstart(2, tmp_path / 'run')
  assert again.wait(1800) == [0, 0], again.said()
  found = compare_quickstart(alone, tmp_path / 'run')
  with capsys.disabled():
    print(
      f'\n4 processes, one killed, then 2: {group.apart():.1f} s until the others ended; '
      f'{json.dumps(found)}'
    )
  assert (
    found['positive losses, relative'] < 1e-3
    and found['scores, nats'] < 0.05
    and found['means'] <= 0.02
  )


def test_sigterm_in_the_sweep_leaves_whole_rows_and_they_go_on(experiment, tmp_path):
  whole = experiment(2, 'steer', tmp_path / 'whole')
  assert whole.wait(600) == [0, 0], whole.said()
  group = experiment(
    2, 'steer', tmp_path / 'run', '--fault=stop', '--on=1', '--at_row=5', '--pause=0.1'
  )
  assert group.wait(600) == [75, 75], group.said()
  said = r'SIGTERM \(to process 1 of 2\) came: \d+ of 36 rows of the sweep are left'
  assert re.search(said, group.output(0)), group.said()
  left = rows(tmp_path / 'run')
  assert 5 <= len(left) < 36
  group = experiment(2, 'steer', tmp_path / 'run')
  assert group.wait(600) == [0, 0], group.said()
  assert rows(tmp_path / 'run') == rows(tmp_path / 'whole')


def test_a_stuck_process_ends_all_with_the_stacks_of_each(experiment, tmp_path):
  group = experiment(
    2, 'finetune', tmp_path / 'run', '--fault=hang', '--on=1', '--at=2', '--stall_minutes=1'
  )
  assert group.wait(600) == [75, 75], group.said()
  stacks = [group.output(i) for i in range(2)]
  assert 'in strike' in stacks[1] and 'in strike' not in stacks[0] and 'in _losses' in stacks[0], (
    group.said()
  )
  assert all(
    'no step, batch or stage was finished for 1 minutes' in group.output(i) for i in range(2)
  ), group.said()


@pytest.mark.parametrize('side', [0, 1])
def test_whichever_process_is_killed_the_other_ends_within_a_heartbeat(
  experiment, tmp_path, side, capsys
):
  group = experiment(2, 'finetune', tmp_path / 'run', '--fault=kill', f'--on={side}', '--at=2')
  codes = group.wait(600)
  assert codes == [-9 if i == side else 75 for i in range(2)], group.said()
  assert f'error: process {side} of 2 ended without a word' in group.output(1 - side), group.said()
  with capsys.disabled():
    print(f'\nprocess {side} of 2 killed: the other ended {group.apart():.1f} s later')
  assert group.apart() < 20


@pytest.mark.parametrize('count, kills', [(1, 20), (2, 5)])
def test_a_run_that_is_killed_at_random_ends_as_if_it_had_not_been(
  experiment, tmp_path, count, kills, capsys
):
  """SIGKILL whenever it comes, after a few lines of the log or the rows: in the midst of steps,
  saves, writes."""
  flags = ('--pause=0.1', '--config.finetune.steps=16', '--config.finetune.eval_every=2')
  whole = experiment(count, 'steer', tmp_path / 'whole', *flags)
  assert whole.wait(600) == [0] * count, whole.said()
  draw, happened, most = random.Random(0), [], 8 if count == 1 else 24
  while True:
    group = experiment(count, 'steer', tmp_path / 'killed', *flags)
    lines, done = draw.randint(1, most), lambda: group.processes[0].poll() is not None
    # As (file, size): a file that a restart drops and writes again counts again.
    seen = set()
    group.wait_until(
      lambda: seen.add(progress(tmp_path / 'killed')) or len(seen) > lines or done(), 300
    )
    time.sleep(draw.random() * 0.3)
    victim = draw.randrange(count)
    if done():
      break
    group.processes[victim].kill()
    codes = group.wait(60)
    assert codes[victim] == -9 and all(code == 75 for i, code in enumerate(codes) if i != victim), (
      group.said()
    )
    happened.append((victim, *progress(tmp_path / 'killed')))
  assert group.wait(60) == [0] * count, group.said()
  for side in ('positive', 'negative'):
    folders = (tmp_path / name / 'finetune' / side / 'adapter' for name in ('whole', 'killed'))
    (mine, _), (theirs, _) = map(load_adapter, folders)
    for path, leaf in tree.flatten(mine).items():
      np.testing.assert_array_equal(leaf, tree.flatten(theirs)[path])
    assert losses(tmp_path / 'whole', side) == losses(tmp_path / 'killed', side)
  assert rows(tmp_path / 'whole') == rows(tmp_path / 'killed')
  with capsys.disabled():
    print(
      f'\n{len(happened)} kills of {count} process(es), each (victim, lines of metrics, '
      f'rows): {happened}'
    )
  assert len(happened) >= kills


def progress(workdir: pathlib.Path) -> tuple[int, int]:
  """(lines logged by the fine-tunes, rows of the sweep)."""

  def lines(pattern):
    return sum(path.read_bytes().count(b'\n') for path in workdir.glob(pattern))

  return lines('finetune/*/metrics.jsonl'), lines('sweep/rows.jsonl')
