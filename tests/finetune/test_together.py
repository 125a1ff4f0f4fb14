"""Fine-tunes trained as one program: what comes of each is what comes of it alone, and on disk
nothing tells them apart."""

import dataclasses
import functools
import json
import os
import signal

import jax
import numpy as np
import pytest

from weightsteer_jax import data, finetune
from weightsteer_jax.finetune import group, memory, optimizer
from weightsteer_jax.finetune import step as steps
from weightsteer_jax.runtime import sharding, tree
from weightsteer_jax.runtime.errors import InputError, NotFiniteError, Preempted

from .test_loop import metrics, stop_at, without_time


@pytest.fixture
def sides(checkpoint, options, make_examples, tmp_path):
  """Two fine-tunes with data of different lengths (so that batches differ in rows) below tmp_path /
  name; keywords change their options."""

  def start(name, *, together='on', seeds=(0, 0), model=None, alone=False, **changes):
    model = model or checkpoint('llama3').model
    fits = [
      finetune.Fit(
        make_examples(9, seed=1, shortest=17),
        make_examples(5, seed=2, shortest=17),
        tmp_path / name / 'one',
        seeds[0],
        32,
      ),
      finetune.Fit(
        make_examples(7, seed=3, shortest=4, longest=9),
        make_examples(3, seed=4),
        tmp_path / name / 'other',
        seeds[1],
        32,
      ),
    ]
    # One set of options, so that what is compiled for one test serves the others.
    shared = dict(steps=4, eval_every=3, epsilon=1e-3, dropout=0.3, accumulation=2, clip_norm=0.2)
    chosen = options(**{**shared, 'together': together, **changes})
    calls = [[fit] for fit in fits] if alone else [fits]
    return [
      result
      for call in calls
      for result in finetune.run_together(model, call, chosen, progress=False)
    ]

  return start


def assert_alike(ones, others):
  """Deltas and losses within rounding (with an epsilon of Adam's that is not itself as small as
  rounding)."""
  for one, other in zip(ones, others, strict=True):
    assert (one.step, one.learning_rate) == (other.step, other.learning_rate)
    np.testing.assert_allclose(one.validation_loss, other.validation_loss, rtol=2e-6)
    for path, leaf in tree.flatten(one.delta).items():
      scale = np.abs(leaf).max()
      assert scale > 0, path
      np.testing.assert_allclose(
        tree.flatten(other.delta)[path], leaf, rtol=1e-4, atol=2e-5 * scale, err_msg=path
      )


def assert_same_logs(one, other):
  for name in ('one', 'other'):
    # Rows of several learning rates stand in the order in which they happened.
    mine, theirs = (
      sorted(
        without_time(metrics(folder / name)), key=lambda row: (row['peak'], row['step'], len(row))
      )
      for folder in (one, other)
    )
    assert [sorted(row) for row in mine] == [sorted(row) for row in theirs]
    for row, twin in zip(mine, theirs):
      assert row == pytest.approx(twin, rel=1e-4)


def assert_alike_on_disk(one, other):
  for name in ('one', 'other'):
    listings = [
      sorted(
        '/'.join(path.relative_to(folder).parts[:3]).split('.out.')[0] for path in folder.rglob('*')
      )
      for folder in (one / name, other / name)
    ]
    assert listings[0] == listings[1] and 'checkpoints/0.02/00000004' in listings[0]
    options = [json.loads((folder / name / 'options.json').read_text()) for folder in (one, other)]
    assert options[0] == options[1] and 'together' not in options[0]['options']


def test_each_is_what_it_is_alone(sides, tmp_path):
  """The losses of every step, the gradient norms by which each is clipped, and what is trained,
  with random masks, microbatches, other seeds and numbers of rows; and on disk nothing tells them
  apart."""
  together, apart = sides('together', seeds=(0, 1)), sides('apart', seeds=(0, 1), alone=True)
  assert_alike(together, apart)
  assert_same_logs(tmp_path / 'together', tmp_path / 'apart')
  assert_alike_on_disk(tmp_path / 'together', tmp_path / 'apart')
  norms = [
    [row['grad_norm'] for row in metrics(tmp_path / 'together' / name) if 'grad_norm' in row]
    for name in ('one', 'other')
  ]
  assert min(min(row) for row in norms) > 0.2, 'each is clipped'
  assert min(abs(x / y - 1) for x, y in zip(*norms)) > 1e-3, (
    'two fine-tunes that tell nothing apart'
  )


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['lora_embeddings', 'bias', 'full'])
def test_each_is_what_it_is_alone_of_every_kind(sides, tmp_path, kind):
  rates = dict(kind=kind, learning_rates=(5e-3, 2e-2))
  assert_alike(sides('together', **rates), sides('apart', together='off', **rates))
  assert_same_logs(tmp_path / 'together', tmp_path / 'apart')


@pytest.mark.parametrize('first,then', [('on', 'on'), ('off', 'on'), ('on', 'off')])
def test_a_stopped_run_goes_on_either_way(sides, tmp_path, monkeypatch, first, then):
  """Together as it was, bit for bit; otherwise within rounding."""
  whole = sides('whole', steps=7)
  stop_at(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
  with pytest.raises(Preempted, match='step 5 of 7'):
    sides('stopped', steps=7, together=first)
  saved = [
    sorted(path.name for path in (tmp_path / 'stopped' / name / 'checkpoints' / '0.02').glob('0*'))
    for name in ('one', 'other')
  ]
  assert saved[0][-1] == '00000005' and (saved[0] == saved[1] if first == 'on' else not saved[1])
  again = sides('stopped', steps=7, together=then)
  if first == then:
    for one, other in zip(again, whole):
      jax.tree.map(np.testing.assert_array_equal, one.delta, other.delta)
      assert one.validation_loss == other.validation_loss
  assert_alike(again, whole)
  assert_same_logs(tmp_path / 'stopped', tmp_path / 'whole')


def test_whoever_is_done_leaves_its_place_to_the_next(sides, tmp_path, monkeypatch):
  """Four trials, two at a time: the second is stopped by patience, and the third goes on beside the
  first."""
  losses = {
    0.02: iter([9.0, 5.0, 4.0, 3.0, 2.0]),
    0.01: iter([9.0, 5.0, 6.0]),
    0.04: iter([9.0, 8.0, 7.0, 7.5, 7.6]),
  }
  beside = []

  def scripted(trials, delta):
    beside.append([trial.rate for trial in trials])
    return [
      next(losses[trial.rate]) if trial.fit.workdir.name == 'one' else 1.0 for trial in trials
    ]

  monkeypatch.setattr(group, '_losses', scripted)
  monkeypatch.setattr(memory, 'plan', lambda *_, **__: memory.Plan(2, 'none'))
  results = sides('a', learning_rates=(2e-2, 1e-2, 4e-2), steps=4, eval_every=1, patience=1)
  assert beside[:6] == [
    [0.02, 0.01],
    [0.02, 0.01],
    [0.02, 0.01],
    [0.04],
    [0.02, 0.04],
    [0.02, 0.04],
  ]
  _, meta = finetune.load_adapter(results[0].folder)
  assert meta['validations'] == {
    '0.02': [[0, 9.0], [1, 5.0], [2, 4.0], [3, 3.0], [4, 2.0]],
    '0.01': [[0, 9.0], [1, 5.0], [2, 6.0]],
    '0.04': [[0, 9.0], [1, 8.0], [2, 7.0], [3, 7.5]],
  }
  assert (results[0].learning_rate, results[0].step) == (0.02, 4)


def test_two_with_one_workdir_are_refused(checkpoint, options, make_examples, tmp_path):
  fit = finetune.Fit(make_examples(9, seed=1), make_examples(3, seed=2), tmp_path / 'a')
  with pytest.raises(InputError, match='two fine-tunes'):
    finetune.run_together(checkpoint('llama3').model, [fit, fit], options(), progress=False)
  assert not (tmp_path / 'a').exists()


def test_what_is_not_finite_is_held_back_for_one_alone(checkpoint, options, make_examples):
  """One of two has an infinite change: its state stays as it is, and the other's step is as if it
  were alone."""
  config, params = checkpoint('llama3').model.config, checkpoint('llama3').model.params
  recipe, layout = optimizer.adamw(options(epsilon=1e-3, clip_norm=0.2)), sharding.single()
  make = steps.initial_state_fn(config, 'lora', 3, 5.0, recipe, layout)
  good, bad = make(0), make(1)
  kernel = bad.delta['layers']['mlp']['up']['kernel']
  bad.delta['layers']['mlp']['up']['kernel'] = dataclasses.replace(kernel, b=kernel.b + np.inf)
  before = jax.tree.map(np.asarray, bad)
  found = data.Batches(
    make_examples(8, shortest=17), batch_size=4, seed=0, row_length=32, accumulation=2
  )
  batch, schedule = (
    data.microbatches(found.batch(0), 2),
    optimizer.schedule(options(), peak=1e-2, total=10),
  )
  pair = functools.partial(jax.tree.map, lambda x: np.stack([x, x]))
  train = functools.partial(steps.train_step_fn, config, recipe, layout, remat='none', dropout=0.3)
  stacked = steps.stack_fn(config, recipe, layout)([good, bad])
  with layout.context():
    stacked, told = train(together=True)(
      stacked, params, layout.put_batch(pair(batch), '_ABT'), pair(schedule), np.zeros(2, np.int32)
    )
    alone, told_alone = train(together=False)(
      good, params, layout.put_batch(batch, 'ABT'), schedule, 0
    )
  moved, kept = steps.unstack_fn(config, recipe, layout)(stacked)
  assert told['finite'].tolist() == [True, False]
  jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, kept), before)
  assert moved.step == 1 and float(told['train_loss'][0]) == pytest.approx(
    float(told_alone['train_loss']), rel=1e-6
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7),
    moved.opt_state,
    alone.opt_state,
  )


def test_a_number_that_is_none_names_the_fine_tune_that_has_it(sides, checkpoint, tmp_path):
  with pytest.raises(NotFiniteError, match='learning rate 1e[+]30'):
    sides('a', learning_rates=(1e30,), warmup_steps=0)
  assert not list((tmp_path / 'a').glob('*/adapter'))


def test_models_with_experts_are_trained_one_by_one(checkpoint, options):
  load = memory.Load('lora', 3, 'float32', 4, 32)
  for name, together in (('llama3', 2), ('qwen3_moe', 1)):
    chosen = memory.plan(
      checkpoint(name).model.config,
      options(together='on'),
      load,
      sharding.single(),
      count=2,
      memory=2**30,
    )
    assert chosen == memory.Plan(together, 'none')
