"""One learning rate of a fit: progress, checkpoints, and end."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from weightsteer_jax.finetune import adapter
from weightsteer_jax.finetune import step as steps
from weightsteer_jax.finetune.fit import PreparedFit
from weightsteer_jax.finetune.log import Log
from weightsteer_jax.runtime import ending, processes
from weightsteer_jax.runtime.errors import NotFiniteError
from weightsteer_jax.storage import checkpoint
from weightsteer_jax.storage.versions import versions

# (steps taken, validation loss in nats per target token); the first entry is where training begins,
# which is the base model.
History = list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Trial:
  """One learning rate of a fit, at some step of the training.

  Attributes:
    rate: the peak learning rate.
    state: the delta and the optimizer's moments; None when the trial is done.
    step: steps taken.
    history: the validations so far.
  """

  fit: PreparedFit
  rate: float
  checkpoints: checkpoint.Checkpoints
  log: Log
  state: steps.TrainState | None
  step: int
  history: History

  @property
  def goal(self) -> int:
    """The step of the next validation."""
    every = self.fit.options.eval_every
    next_multiple = (self.step // every + 1) * every
    # The last step is validated even if it is no multiple.
    return min(next_multiple, self.fit.steps)

  @property
  def done(self) -> bool:
    """Whether the last step is validated, or patience has ended the trial."""
    if not self.history:
      return False
    if self.history[-1][0] == self.fit.steps:
      return True
    best_step, _ = best(self.history)
    # The validations since the best one.
    worse = sum(step > best_step for step, _ in self.history[1:])
    # Patience 0 never stops.
    return 0 < self.fit.options.patience <= worse

  def record_step(self, number: int, metrics: dict[str, np.ndarray], tokens: int) -> None:
    """Logs the metrics of a step.

    Args:
      number: the step, from 0.
      tokens: number of tokens in the step's batch, without padding.

    Raises:
      NotFiniteError: if the loss or the gradient is not finite; names the step and the examples.
    """
    values = {name: value.item() for name, value in metrics.items()}
    # A step that is not finite leaves the state as it was (see step.py), and the run ends here.
    if not values.pop('finite'):
      raise NotFiniteError(
        f'the loss is {values["train_loss"]} and the gradient norm {values["grad_norm"]} at step '
        f'{number + 1} of {self.fit.steps}, learning rate {self.rate:g} (at this step '
        f'{values["learning_rate"]:.3g}), on the {int(values["target_tokens"])} target tokens of: '
        f'{", ".join(self.fit.batches.names(number))}. Look at these examples, and try a lower '
        'learning rate; the last checkpoint is kept'
      )
    # Winds the watchdog that would end a stalled run.
    ending.progress()
    self.log.step(number + 1, values, tokens=tokens)

  def validated(self, loss: float) -> 'Trial':
    """The trial with one more validation, which is logged.

    Raises:
      NotFiniteError: if the loss is not finite.
    """
    if not math.isfinite(loss):
      raise NotFiniteError(
        f'the validation loss is {loss} after step {self.step} of {self.fit.steps}, learning rate '
        f'{self.rate:g}: look at the validation examples, and try a lower learning rate'
      )
    ending.progress()
    self.log.validation(self.step, loss)
    return dataclasses.replace(self, history=[*self.history, (self.step, loss)])

  def save(self, before: int) -> None:
    """Begins to write a checkpoint of this step.

    Two of the other checkpoints stay: the best, and the checkpoint of the step `before`. With
    `keep_steps`, the adapter of a validated step is written too.
    """
    assert self.state is not None, 'a trial that is done has no state to save'
    if self.fit.options.keep_steps and self.history[-1][0] == self.step:
      folder = self.fit.workdir / 'steps' / f'{self.rate:g}' / f'{self.step}'
      # The adapter may be there already, from before an interruption.
      if not processes.broadcast(folder.exists()):
        adapter.save_adapter(folder, self.state.delta, _record(self, self.history[-1]))
    # The previous checkpoint is there to fall back on, should the newest be damaged.
    best_step, _ = best(self.history)
    self.checkpoints.save(
      self.step,
      self.state,
      metadata={'validations': self.history},
      keep={before, best_step},
    )
    # Several processes write a checkpoint together, one after the other.
    if processes.count() > 1:
      self.checkpoints.wait()


def start(fit: PreparedFit, rate: float, checkpoints: checkpoint.Checkpoints) -> Trial:
  """The trial of a learning rate, from scratch or from the last checkpoint."""
  state, step, history = _restored(fit, checkpoints)
  return Trial(
    fit=fit,
    rate=rate,
    checkpoints=checkpoints,
    log=Log(fit.workdir, peak=rate, step=step, total=fit.steps, progress=fit.progress),
    state=state,
    step=step,
    history=history,
  )


def best(history: History) -> tuple[int, float]:
  """(step, loss) of the lowest validation loss since training began, the earlier of two equal."""
  # Before the first validation of training nothing is best. `min` takes the first of equals.
  trained = history[1:]
  return min(trained, key=lambda validation: validation[1], default=(0, math.inf))


def write_product(trials: Sequence[Trial], folder: pathlib.Path) -> None:
  """Writes the adapter of the best step of the best trial of one fit."""

  def best_loss(trial):
    _, loss = best(trial.history)
    return loss

  chosen = min(trials, key=best_loss)
  validation = best(chosen.history)
  best_step, _ = validation
  # The state in memory is of the last step; the best step is in a checkpoint.
  state = chosen.checkpoints.restore(best_step, chosen.fit.abstract_state())
  histories = {f'{trial.rate:g}': trial.history for trial in trials}
  meta = {**_record(chosen, validation), 'validations': histories}
  adapter.save_adapter(folder, state.delta, meta)


def _restored(
  fit: PreparedFit, checkpoints: checkpoint.Checkpoints
) -> tuple[steps.TrainState, int, History]:
  """(state, steps taken, history) to go on from."""
  abstract = fit.abstract_state()
  while (newest := checkpoints.newest(abstract)) is not None:
    step, state, metadata = newest
    # JSON has made lists of the pairs.
    history = [(int(at), float(loss)) for at, loss in metadata['validations']]
    best_step, _ = best(history)
    # A checkpoint counts only if the checkpoint of the best step, of which the product may be made,
    # is whole too.
    if best_step in (0, step) or checkpoints.is_whole(best_step, abstract):
      return state, step, history
    checkpoints.set_aside(step)
  # From scratch: no step, no validation yet.
  return fit.initial_state(), 0, []


def _record(trial: Trial, validation: tuple[int, float]) -> dict[str, Any]:
  """The record of an adapter: origin, hyperparameters, step and loss."""
  fit = trial.fit
  step, loss = validation
  return {
    **fit.identity,
    'base': fit.model.source,
    'base_revision': fit.model.revision,
    'kind': fit.options.kind,
    'rank': fit.options.rank,
    'lora_alpha': fit.options.lora_alpha,
    'targets': fit.options.targets,
    'learning_rate': trial.rate,
    'step': step,
    'steps': fit.steps,
    'validation_loss': loss,
    'base_validation_loss': trial.history[0][1],
    'versions': versions(*adapter.PACKAGES),
  }
