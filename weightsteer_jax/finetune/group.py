"""Several trials trained as one program: what each does is what it would do by itself, within
rounding.

They share the base model and its layout, the options and the length of a row. What each has for
itself (its state, its batch, its learning rate, its seed) gets a leading axis; of one alone nothing
does. A batch has as many rows as that of the trial with the most.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from weightsteer_jax import data
from weightsteer_jax.data import Batch
from weightsteer_jax.finetune import optimizer
from weightsteer_jax.finetune import step as steps
from weightsteer_jax.finetune.trial import Trial
from weightsteer_jax.runtime import preemption, profiling

PyTree = Any


def advance(trials: Sequence[Trial], stop: preemption.Stop, *, remat: str) -> list[Trial]:
  """The trials trained on to their next validation, which is as many steps away for all, and their
  checkpoints begun; or trained as far as they come before the run is to stop, and saved there.
  """
  befores, count = [trial.step for trial in trials], trials[0].goal - trials[0].step
  state, taken = _train(trials, _join(trials), count, stop, remat)
  losses = _losses(trials, state.delta) if taken == count else None
  trials = [
    dataclasses.replace(trial, state=own, step=trial.step + taken)
    for trial, own in zip(trials, _split(trials, state))
  ]
  if losses is not None:
    trials = [trial.validated(loss) for trial, loss in zip(trials, losses)]
  for trial, before in zip(trials, befores):
    trial.save(before)
  return trials


def validate(trials: Sequence[Trial]) -> list[Trial]:
  """The trials with the loss of where they begin."""
  state = _join(trials)
  losses = _losses(trials, state.delta)
  return [
    dataclasses.replace(trial, state=own).validated(loss)
    for trial, own, loss in zip(trials, _split(trials, state), losses)
  ]


def _train(
  trials: Sequence[Trial], state: steps.TrainState, count: int, stop: preemption.Stop, remat: str
) -> tuple[steps.TrainState, int]:
  """(state, steps taken) after so many steps, or after fewer if the run is to stop.

  Step n + 1 is dispatched before the metrics of step n are read, so that the device does not wait
  for the host.
  """
  job = trials[0].job
  train_step = steps.train_step_fn(
    job.model.config,
    job.recipe,
    job.layout,
    remat=remat,
    dropout=job.options.dropout,
    together=len(trials) > 1,
  )
  schedule = _along(
    [optimizer.schedule(job.options, peak=trial.rate, total=trial.job.steps) for trial in trials]
  )
  seed = _along([trial.job.seed for trial in trials])
  pending = None
  for index in range(count):
    parts = [trial.job.batches.batch(trial.step + index) for trial in trials]
    batch = _put(
      trials, [data.microbatches(part, job.options.accumulation) for part in parts], 'ABT'
    )
    with job.layout.context(), profiling.unit('train step', trials[0].step + index):
      state, metrics = train_step(state, job.model.params, batch, schedule, seed)
    found = [
      _watched(trial, state.delta, index, place, len(trials)) for place, trial in enumerate(trials)
    ]
    if pending:
      _read(trials, *pending)
    pending = index, metrics, found, [int(np.count_nonzero(part.segment_ids_BT)) for part in parts]
    if stop.reached():
      break
  _read(trials, *pending)
  return state, pending[0] + 1


@jax.profiler.annotate_function
def _read(
  trials: Sequence[Trial],
  index: int,
  metrics: steps.Metrics,
  found: Sequence[steps.Metrics],
  tokens: Sequence[int],
) -> None:
  """Waits for a step's metrics and logs them."""
  metrics, found = jax.device_get((metrics, found))
  for place, trial in enumerate(trials):
    own = {name: value[place] if len(trials) > 1 else value for name, value in metrics.items()}
    trial.read(trial.step + index, own | found[place], tokens[place])


def _watched(
  trial: Trial, delta: PyTree, index: int, place: int, count: int
) -> dict[str, jax.Array]:
  """What the trial at that place is watched for, if it is at this step."""
  watch = trial.job.watch
  if not watch or (trial.step + index + 1) % watch.every:
    return {}
  return watch.look(delta if count == 1 else jax.tree.map(lambda x: x[place], delta))


@jax.profiler.annotate_function
def _losses(trials: Sequence[Trial], delta: PyTree) -> list[float]:
  """Validation losses, nats per target token over all validation examples of each."""
  job = trials[0].job
  eval_loss = steps.eval_loss_fn(job.model.config, together=len(trials) > 1)
  most = max(len(trial.job.validation) for trial in trials)
  rounds = [
    [
      trial.job.validation[i] if i < len(trial.job.validation) else _empty(trial.job.validation[0])
      for trial in trials
    ]
    for i in range(most)
  ]
  with job.layout.context():
    found = jax.device_get(
      [eval_loss(delta, job.model.params, _put(trials, batches, 'BT')) for batches in rounds]
    )
  sums, counts = (
    np.sum([np.atleast_1d(item[i]) for item in found], axis=0, dtype=np.float64) for i in (0, 1)
  )
  return [float(total / count) for total, count in zip(sums, counts)]


def _empty(batch: Batch) -> Batch:
  return jax.tree.map(np.zeros_like, batch)


def _join(trials: Sequence[Trial]) -> steps.TrainState:
  """The states, consumed, as one."""
  states, job = [trial.state for trial in trials], trials[0].job
  return (
    _consume(steps.stack_fn(job.model.config, job.recipe, job.layout), states)
    if len(states) > 1
    else states[0]
  )


def _split(trials: Sequence[Trial], state: steps.TrainState) -> Sequence[steps.TrainState]:
  """The state, consumed, as those of the trials."""
  job = trials[0].job
  return (
    _consume(steps.unstack_fn(job.model.config, job.recipe, job.layout), state)
    if len(trials) > 1
    else [state]
  )


def _consume(function: Callable[[PyTree], PyTree], argument: PyTree) -> PyTree:
  """What the function makes of arrays that are given up. They are not donated: no array of the
  result has their shape.
  """
  result = function(argument)
  jax.tree.map(lambda x: x.delete(), argument)
  return result


def _put(trials: Sequence[Trial], batches: Sequence[Batch], axes: str) -> Batch:
  """The batches on the devices; several along a leading axis that is whole on each."""
  layout = trials[0].job.layout
  if len(batches) == 1:
    return layout.put_batch(batches[0], axes)
  return layout.put_batch(data.side_by_side(batches), f'_{axes}')


def _along(values: Sequence[PyTree]) -> PyTree:
  """One value as it is, several along a leading axis."""
  return values[0] if len(values) == 1 else jax.tree.map(lambda *x: np.stack(x), *values)
