"""The loop: what it keeps, when it stops, and that an interrupted run is as if it had not been."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess

import jax
import numpy as np
import pytest

from weightsteer_jax import data, finetune, models
from weightsteer_jax.data import Example
from weightsteer_jax.finetune import claim, fit, group, log, loop, optimizer
from weightsteer_jax.finetune import step as steps
from weightsteer_jax.runtime.errors import (
  CorruptError,
  InputError,
  NotFiniteError,
  OutputError,
  Preempted,
)


@pytest.fixture
def run(checkpoint, options, make_examples, tmp_path):
  """A short run into tmp_path / name; keywords change its options. With one example a row, one
  shape is compiled."""
  train, validation = make_examples(9, seed=1, shortest=17), make_examples(3, seed=2, shortest=17)

  def start(name, *, train=train, validation=validation, model=None, seed=0, **changes):
    return finetune.run(
      model or checkpoint('llama3').model,
      train,
      validation,
      options(**changes),
      workdir=tmp_path / name,
      seed=seed,
      progress=False,
    )

  return start


def metrics(workdir):
  return [json.loads(line) for line in (workdir / log.METRICS).read_text().splitlines()]


def without_time(rows):
  return [{key: value for key, value in row.items() if key != 'seconds'} for row in rows]


def assert_same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one.delta, other.delta)
  assert dataclasses.replace(one, delta=None, folder=None) == dataclasses.replace(
    other, delta=None, folder=None
  )


def stop_at(monkeypatch, when, act):
  """Has `act()` happen when the metrics of step `when` are logged, once."""
  log_step, done = log.Log.step, []

  def step(self, number, *args, **kwargs):
    log_step(self, number, *args, **kwargs)
    if number == when and not done:
      done.append(number)
      act()

  monkeypatch.setattr(log.Log, 'step', step)


def test_a_run_leaves_its_product_its_log_and_its_options(run, tmp_path, checkpoint):
  result = run('a')
  assert result.folder == tmp_path / 'a' / 'adapter'
  rows = metrics(tmp_path / 'a')
  assert [row['step'] for row in rows if 'train_loss' in row] == [1, 2, 3, 4, 5, 6, 7]
  validations = [(row['step'], row['validation_loss']) for row in rows if 'validation_loss' in row]
  assert [step for step, _ in validations] == [0, 3, 6, 7]
  assert (result.step, result.validation_loss) == min(validations[1:], key=lambda item: item[1])
  assert rows[1]['learning_rate'] == 0 and rows[2]['learning_rate'] == pytest.approx(1e-2)
  assert all(17 * 4 <= row['tokens'] <= 20 * 4 for row in rows if 'tokens' in row)
  delta, meta = finetune.load_adapter(result.folder, model=checkpoint('llama3').model)
  jax.tree.map(np.testing.assert_array_equal, delta, result.delta)
  assert meta['validations'] == {'0.02': [[step, loss] for step, loss in validations]}
  assert meta['base_validation_loss'] == validations[0][1]
  assert (
    meta['options']['rank'] == 3
    and meta['seed'] == 0
    and meta['versions']['jax'] == jax.__version__
  )
  assert {'adapter', 'checkpoints', 'metrics.jsonl', 'options.json', 'tensorboard'} == set(
    os.listdir(tmp_path / 'a')
  )


def test_tensorboard_reads_the_scalars(run, tmp_path):
  accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
  run('a')
  events = accumulator.EventAccumulator(str(tmp_path / 'a' / 'tensorboard' / '0.02')).Reload()
  rows = {row['step']: row['train_loss'] for row in metrics(tmp_path / 'a') if 'train_loss' in row}
  assert {event.step: event.value for event in events.Scalars('train_loss')} == pytest.approx(rows)
  assert [event.step for event in events.Scalars('validation_loss')] == [0, 3, 6, 7]


def test_training_learns(run):
  """Three fixed sentences are known by heart after a while: the loss is that of training, not of
  anything else."""
  sentences = [
    Example(np.arange(start, start + 18, dtype=np.int32), np.ones(18, bool), f's{start}')
    for start in (3, 30, 60)
  ]
  result = run('a', train=sentences, validation=sentences, batch_size=3, steps=60, eval_every=60)
  _, meta = finetune.load_adapter(result.folder)
  assert meta['base_validation_loss'] > 4 and result.validation_loss < 0.2


def test_a_crashed_run_resumes_bit_for_bit(run, tmp_path, monkeypatch):
  whole = run('whole')

  def crash():
    raise RuntimeError('power cut')

  stop_at(monkeypatch, 5, crash)
  with pytest.raises(RuntimeError):
    run('crashed')
  assert not (tmp_path / 'crashed' / 'adapter').exists()
  assert_same(run('crashed'), whole)
  assert without_time(metrics(tmp_path / 'crashed')) == without_time(metrics(tmp_path / 'whole'))


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('when', [1, 5, 7])
def test_a_preempted_run_saves_where_it_is_and_resumes_bit_for_bit(
  run, tmp_path, monkeypatch, number, when
):
  whole = run('whole')
  handler = signal.getsignal(number)
  stop_at(monkeypatch, when, lambda: os.kill(os.getpid(), number))
  with pytest.raises(Preempted, match=number.name):
    run('stopped')
  assert signal.getsignal(number) is handler
  saved = sorted((tmp_path / 'stopped' / 'checkpoints' / '0.02').iterdir())
  assert int(saved[-1].name) in (when, when + 1), 'the step in flight is finished, nothing else'
  assert_same(run('stopped'), whole)
  assert without_time(metrics(tmp_path / 'stopped')) == without_time(metrics(tmp_path / 'whole'))


def test_a_damaged_checkpoint_is_not_resumed_from(run, tmp_path, monkeypatch):
  whole = run('whole')
  stop_at(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
  monkeypatch.setattr(loop.trials, 'write_product', lambda *_: pytest.fail('it was to be stopped'))
  with pytest.raises((Preempted, pytest.fail.Exception)):
    run('damaged')
  monkeypatch.undo()
  steps_left = sorted(
    path.name for path in (tmp_path / 'damaged' / 'checkpoints' / '0.02').iterdir()
  )
  assert steps_left[-2:] == ['00000006', '00000007']
  for path in (tmp_path / 'damaged' / 'checkpoints' / '0.02' / '00000007').rglob('*'):
    if path.is_file() and path.parent.name == 'd':
      path.write_bytes(path.read_bytes()[:-20])
  assert_same(run('damaged'), whole)
  assert (tmp_path / 'damaged' / 'checkpoints' / '0.02' / '00000007.corrupt').is_dir()


def test_a_finished_run_is_not_run_again(run, tmp_path, monkeypatch):
  first = run('a')
  monkeypatch.setattr(loop, '_train', lambda *_: pytest.fail('it was finished'))
  assert_same(run('a'), first)
  data = bytearray((first.folder / 'adapter.safetensors').read_bytes())
  data[-1] ^= 1
  (first.folder / 'adapter.safetensors').write_bytes(bytes(data))
  with pytest.raises(CorruptError):
    run('a')


def test_another_run_in_the_same_workdir_is_refused_by_what_differs(
  run, tmp_path, checkpoint, make_examples
):
  run('a')
  before = sorted(path for path in (tmp_path / 'a').rglob('*'))
  with pytest.raises(InputError, match=r'options\.rank: 3 there, 5 now'):
    run('a', rank=5)
  with pytest.raises(InputError, match=r'seed: 0 there, 1 now'):
    run('a', seed=1)
  with pytest.raises(InputError, match=r'train_digest: .* there, .* now'):
    run('a', train=make_examples(9, seed=3, shortest=17))
  model = checkpoint('llama3').model
  params = dict(model.params, final_norm={'scale': model.params['final_norm']['scale'] + 1})
  with pytest.raises(InputError, match=r'base_digest: .* there, .* now'):
    run('a', model=dataclasses.replace(model, params=params))
  assert sorted(path for path in (tmp_path / 'a').rglob('*')) == before
  (tmp_path / 'a' / claim.OPTIONS).unlink()
  with pytest.raises(InputError, match='exists already'):
    run('a')


def test_bad_data_claims_no_workdir(run, tmp_path):
  with pytest.raises(InputError, match='batch_size'):
    run('a', batch_size=10)
  with pytest.raises(InputError, match='no validation examples'):
    run('a', validation=[])
  assert not (tmp_path / 'a').exists()


def test_both_sides_start_from_the_same_factors(options, checkpoint):
  """They depend on the seed alone, and a run leaves A where it was drawn until B has moved."""
  chosen, config = options(), checkpoint('llama3').model.config
  initial = steps.initial_state_fn(config, 'lora', 3, 5.0, optimizer.adamw(chosen))
  one, two, other = initial(4).delta, initial(4).delta, initial(5).delta
  jax.tree.map(np.testing.assert_array_equal, one, two)
  a, b = one['layers']['attn']['q']['kernel'].a, one['layers']['attn']['q']['kernel'].b
  assert not np.array_equal(a, other['layers']['attn']['q']['kernel'].a)
  assert not b.any() and abs(float(a.max()) - config.width**-0.5) < 0.05 * config.width**-0.5


def test_patience_stops_and_the_best_is_kept(run, tmp_path, monkeypatch):
  losses = iter([9.0, 5.0, 6.0, 4.0, 4.0, 7.0, 1.0])
  monkeypatch.setattr(group, '_losses', lambda trials, delta: [next(losses)])
  result = run('a', eval_every=1, patience=2)
  assert (result.step, result.validation_loss) == (3, 4.0)
  _, meta = finetune.load_adapter(result.folder)
  assert meta['validations'] == {
    '0.02': [[0, 9.0], [1, 5.0], [2, 6.0], [3, 4.0], [4, 4.0], [5, 7.0]]
  }
  kept = sorted(path.name for path in (tmp_path / 'a' / 'checkpoints' / '0.02').iterdir())
  assert kept == ['00000003', '00000004', '00000005']


def test_learning_rates_are_swept_in_one_program_and_the_best_is_picked(run, tmp_path, monkeypatch):
  run('warm')
  compiled = steps.train_step_fn.cache_info().misses
  run = functools.partial(run, together='off')
  stop_at(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
  with pytest.raises(Preempted):
    run('sweep', learning_rates=(1e-9, 2e-2, 3.0))
  result = run('sweep', learning_rates=(1e-9, 2e-2, 3.0))
  assert steps.train_step_fn.cache_info().misses == compiled
  _, meta = finetune.load_adapter(result.folder)
  best = {
    rate: min(loss for step, loss in history if step)
    for rate, history in meta['validations'].items()
  }
  assert set(best) == {'1e-09', '0.02', '3'} and best['1e-09'] == pytest.approx(
    meta['base_validation_loss'], rel=1e-4
  )
  assert f'{result.learning_rate:g}' == min(best, key=best.get) and result.validation_loss == min(
    best.values()
  )
  assert len({row['peak'] for row in metrics(tmp_path / 'sweep')}) == 3


def test_not_a_number_stops_with_step_rate_and_examples(run, tmp_path, checkpoint, make_examples):
  """One token's embedding is infinite; the order of examples decides at which step the one example
  with it comes."""
  model = checkpoint('llama3').model
  params = dict(
    model.params, embed={'embedding': model.params['embed']['embedding'].at[88].set(np.inf)}
  )
  train, validation = (
    [dataclasses.replace(example, tokens=example.tokens % 88) for example in examples]
    for examples in (make_examples(9, seed=1, shortest=17), make_examples(2, shortest=17))
  )
  bad = train[5]
  bad.tokens[2] = 88
  with pytest.raises(NotFiniteError) as caught:
    run('a', train=train, validation=validation, model=dataclasses.replace(model, params=params))
  found = next(
    step for step in range(3) if bad.name in data.Batches(train, batch_size=4, seed=0).names(step)
  )
  assert f'at step {found + 1} of 7, learning rate 0.02' in str(caught.value) and bad.name in str(
    caught.value
  )
  assert str(caught.value).count('made-up:') == 4
  assert all(row['step'] <= found for row in metrics(tmp_path / 'a'))


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can mount a small file system')
def test_a_disk_that_fills_up_stops_with_a_message_and_the_run_continues_later(run, tmp_path):
  whole = run('whole')
  small = tmp_path / 'small'
  small.mkdir()
  if subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=200k', 'tmpfs', small], capture_output=True
  ).returncode:
    pytest.skip('this machine does not let us mount a small file system')
  try:
    with pytest.raises(OutputError, match='[Nn]o space left on device'):
      run('small/run')
    assert not (small / 'run' / 'adapter').exists()
    left = [
      path for path in (small / 'run').rglob('*') if 'partial' in path.name or 'tmp' in path.name
    ]
    assert not left
    shutil.copytree(small / 'run', tmp_path / 'run')
  finally:
    subprocess.run(['umount', small], check=True)
  assert_same(run('run'), whole)


def test_steps_follow_from_epochs(options):
  assert fit.total_steps(options(steps=0, epochs=1.0), 9) == 3
  assert fit.total_steps(options(steps=0, epochs=2.5), 9) == 6
  assert fit.total_steps(options(steps=5, epochs=2.5), 9) == 5


@pytest.mark.parametrize('kind', ['bias', 'lora_embeddings'])
def test_dense_leaves_train_on_a_tied_model_too(run, checkpoint, kind):
  model = checkpoint('qwen2_tied').model
  result = run('a', kind=kind, steps=2, eval_every=2, warmup_steps=0, model=model)
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(result.delta))
  models.check_delta(model.config, result.delta)
