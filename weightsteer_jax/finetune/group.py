"""Several trials trained as one program, each as if alone, within rounding.

The trials share the base model and the layout, the options and the length of a row. State, batch,
learning rate and seed differ, and get a leading axis if there are several trials. A joint batch has
as many rows as the largest batch among the trials.
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
  """The trials at their next validation, or earlier if the run is to stop.

  A checkpoint of every trial is begun in both cases.

  Args:
    trials: equally many steps away from their next validation.
  """
  befores = [trial.step for trial in trials]
  count = trials[0].goal - trials[0].step
  state, taken = _train(trials, _join(trials), count, stop, remat)
  # Before `_split`, which consumes the joint state.
  losses = _losses(trials, state.delta) if taken == count else None
  advanced = []
  for trial, split in zip(trials, _split(trials, state)):
    advanced.append(dataclasses.replace(trial, state=split, step=trial.step + taken))
  if losses is not None:
    advanced = [trial.validated(loss) for trial, loss in zip(advanced, losses)]
  for trial, before in zip(advanced, befores):
    trial.save(before)
  return advanced


def validate(trials: Sequence[Trial]) -> list[Trial]:
  """The trials with the validation loss of their present step."""
  state = _join(trials)
  losses = _losses(trials, state.delta)
  validated = []
  for trial, split, loss in zip(trials, _split(trials, state), losses):
    validated.append(dataclasses.replace(trial, state=split).validated(loss))
  return validated


def _train(
  trials: Sequence[Trial], state: steps.TrainState, count: int, stop: preemption.Stop, remat: str
) -> tuple[steps.TrainState, int]:
  """(state, steps taken) after `count` steps, or after fewer if the run is to stop."""
  fit = trials[0].fit
  train_step = steps.train_step_fn(
    fit.model.config,
    fit.recipe,
    fit.layout,
    remat=remat,
    dropout=fit.options.dropout,
    together=len(trials) > 1,
  )
  schedules = [
    optimizer.schedule(fit.options, peak=trial.rate, total=trial.fit.steps) for trial in trials
  ]
  schedule = _along(schedules)
  seed = _along([trial.fit.seed for trial in trials])
  # (step, metrics, what was watched, tokens of each trial) of the step dispatched last.
  pending: tuple[int, steps.Metrics, list[steps.Metrics], list[int]] | None = None
  for index in range(count):
    parts = [trial.fit.batches.batch(trial.step + index) for trial in trials]
    microbatches = [data.microbatches(part, fit.options.accumulation) for part in parts]
    batch = _put(trials, microbatches, 'ABT')
    with fit.layout.context(), profiling.unit('train step', trials[0].step + index):
      state, metrics = train_step(state, fit.model.params, batch, schedule, seed)
    looks = [
      _look(trial, state.delta, index, place, len(trials)) for place, trial in enumerate(trials)
    ]
    # Step n + 1 is dispatched before the metrics of step n are read, so that the device does not
    # wait for the host.
    if pending:
      _read(trials, *pending)
    tokens = [int(np.count_nonzero(part.segment_ids_BT)) for part in parts]
    pending = index, metrics, looks, tokens
    if stop.reached():
      break
  assert pending is not None, 'a group has at least one step to take'
  _read(trials, *pending)
  return state, pending[0] + 1


@jax.profiler.annotate_function
def _read(
  trials: Sequence[Trial],
  index: int,
  metrics: steps.Metrics,
  looks: Sequence[steps.Metrics],
  tokens: Sequence[int],
) -> None:
  """Waits for a step's metrics and logs them."""
  told_metrics: dict[str, np.ndarray]
  told_looks: list[dict[str, np.ndarray]]
  # One transfer for both.
  told_metrics, told_looks = jax.device_get((metrics, looks))
  for place, trial in enumerate(trials):
    values = told_metrics
    if len(trials) > 1:
      values = {name: value[place] for name, value in told_metrics.items()}
    trial.record_step(trial.step + index, values | told_looks[place], tokens[place])


def _look(trial: Trial, delta: PyTree, index: int, place: int, count: int) -> dict[str, jax.Array]:
  """The watched scalars of the trial at a place; nothing between two looks."""
  watch = trial.fit.watch
  taken = trial.step + index + 1
  if not watch or taken % watch.every:
    return {}
  # A single trial has no leading axis.
  if count > 1:
    delta = jax.tree.map(lambda x: x[place], delta)
  return watch.look(delta)


@jax.profiler.annotate_function
def _losses(trials: Sequence[Trial], delta: PyTree) -> list[float]:
  """The validation loss of each trial, in nats per target token over all its examples."""
  fit = trials[0].fit
  eval_loss = steps.eval_loss_fn(fit.model.config, together=len(trials) > 1)
  most = max(len(trial.fit.validation) for trial in trials)
  sums_and_counts = []
  with fit.layout.context():
    for i in range(most):
      batches = [_validation_batch(trial, i) for trial in trials]
      batch = _put(trials, batches, 'BT')
      sums_and_counts.append(eval_loss(delta, fit.model.params, batch))
    # Read after the last batch is dispatched, so that the device does not wait for the host.
    sums_and_counts = jax.device_get(sums_and_counts)
  # In float64: a sum over many batches of float32 sums. The second axis is the trials'.
  totals = np.asarray([np.atleast_1d(total) for total, _ in sums_and_counts], np.float64)
  counts = np.asarray([np.atleast_1d(count) for _, count in sums_and_counts], np.float64)
  return (totals.sum(axis=0) / counts.sum(axis=0)).tolist()


def _validation_batch(trial: Trial, index: int) -> Batch:
  batches = trial.fit.validation
  if index < len(batches):
    return batches[index]
  # Past the last batch, an empty one, which counts nothing.
  return jax.tree.map(np.zeros_like, batches[0])


def _join(trials: Sequence[Trial]) -> steps.TrainState:
  """The joint state of the trials, whose states are consumed."""
  states = []
  for trial in trials:
    assert trial.state is not None, 'a trial that is done does not train'
    states.append(trial.state)
  fit = trials[0].fit
  if len(states) == 1:
    return states[0]
  return _consume(steps.stack_fn(fit.model.config, fit.recipe, fit.layout), states)


def _split(trials: Sequence[Trial], state: steps.TrainState) -> Sequence[steps.TrainState]:
  """The state of each trial from a joint state, which is consumed."""
  fit = trials[0].fit
  if len(trials) == 1:
    return [state]
  return _consume(steps.unstack_fn(fit.model.config, fit.recipe, fit.layout), state)


def _consume(function: Callable[[PyTree], PyTree], argument: PyTree) -> PyTree:
  """The function's result; the arrays of the argument are deleted."""
  result = function(argument)
  # Deleted and not donated: no array of the result has the shape of one of these.
  jax.tree.map(lambda x: x.delete(), argument)
  return result


def _put(trials: Sequence[Trial], batches: Sequence[Batch], axes: str) -> Batch:
  """The batches on the devices; several get a leading axis, whole on every device."""
  layout = trials[0].fit.layout
  if len(batches) == 1:
    return layout.put_batch(batches[0], axes)
  return layout.put_batch(data.side_by_side(batches), f'_{axes}')


def _along(values: Sequence[PyTree]) -> PyTree:
  """A single value unchanged, several values along a leading axis."""
  if len(values) == 1:
    return values[0]
  return jax.tree.map(lambda *x: np.stack(x), *values)
