"""By hand: SIGTERM at random moments of a whole run, which then goes on to the same bits.

STOPS=100 SEED=1 python -m pytest -m slow -s tests/distributed/test_stops.py
"""

import hashlib
import json
import os
import pathlib
import random
import signal
import time

import pytest

from distributed import harness

STOPS = int(os.environ.get('STOPS', '20'))
SEED = int(os.environ.get('SEED', '0'))
# From the signal to the end of the last process.
WITHIN_SECONDS = 10.0
pytestmark = pytest.mark.slow


def bits(workdir: pathlib.Path) -> dict[str, str | list[str]]:
  """What a run has computed: rows and means by their text, arrays by their bytes."""
  kept = {}
  for path in sorted(workdir.rglob('*')):
    name = str(path.relative_to(workdir))
    if path.suffix == '.safetensors' and 'checkpoints' not in name:
      kept[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    elif path.name in ('rows.jsonl', 'results.jsonl'):
      rows = [json.loads(line) for line in path.read_text().splitlines()]
      # The time of the sweep is no result. Rows come in the order of finishing, which the check
      # holds and an interruption changes.
      kept[name] = sorted(json.dumps(row | {'swept': '', 'check': ''}) for row in rows)
    elif path.name == 'metrics.jsonl':
      rows = [json.loads(line) for line in path.read_text().splitlines()]
      kept[name] = str([(row.get('step'), row.get('train_loss')) for row in rows])
  return kept


def begin(start, count: int, workdir: pathlib.Path, cache: pathlib.Path) -> harness.Group:
  devices = 1 if count == 1 else 2
  return start(count, 'steer', workdir, f'--compilation_cache={cache}', devices=devices)


@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize('warm', [False, True], ids=['cold', 'warm'])
def test_sigterm_at_any_moment_is_75_in_time_and_the_run_goes_on_to_the_same_bits(
  experiment, tmp_path, count, warm
):
  rng = random.Random(SEED)
  cache = tmp_path / 'cache'
  whole = begin(experiment, count, tmp_path / 'whole', cache)
  began = time.monotonic()
  assert whole.wait(300) == [0] * count, whole.said()
  if warm:
    began = time.monotonic()
    again = begin(experiment, count, tmp_path / 'again', cache)
    assert again.wait(300) == [0] * count, again.said()
  length = time.monotonic() - began
  expected = bits(tmp_path / 'whole')
  assert expected
  left = STOPS if count == 1 else max(1, STOPS // 5)
  tally = {75: 0, 0: 0}
  slowest = 0.0
  attempt = 0
  while left:
    workdir = tmp_path / f'run{attempt}'
    attempt += 1
    # A run is stopped again and again, until it has come to its end.
    while True:
      own = cache if warm else tmp_path / f'cache{attempt}'
      group = begin(experiment, count, workdir, own)
      # Python itself takes a moment to start; nothing hears a signal before.
      moment = rng.uniform(0.5, length)
      deadline = time.monotonic() + moment
      while time.monotonic() < deadline and any(p.poll() is None for p in group.processes):
        time.sleep(0.01)
      sent = left > 0 and all(process.poll() is None for process in group.processes)
      if sent:
        on = rng.randrange(count)
        group.processes[on].send_signal(signal.SIGTERM)
        began = time.monotonic()
      codes = group.wait(300)
      took = time.monotonic() - began
      # A signal in the last moments finds a run that is done.
      done = codes == [0] * count
      assert done or sent and codes == [75] * count, (SEED, moment, codes, group.said())
      if sent:
        assert done or took < WITHIN_SECONDS, (SEED, moment, took, group.said())
        tally[codes[0]] += 1
        slowest = max(slowest, took)
        left -= not done
      if done:
        break
    assert bits(workdir) == expected, (SEED, attempt)
  print(f'seed {SEED}, {count} processes, warm {warm}: {tally}, slowest {slowest:.1f} s')
