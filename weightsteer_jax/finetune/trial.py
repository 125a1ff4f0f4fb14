"""One learning rate's run of a fine-tune: where it stands, what it keeps on disk, when it is
done.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from weightsteer_jax import config, data, models
from weightsteer_jax.data import Batch, Example
from weightsteer_jax.finetune import adapter, memory, optimizer
from weightsteer_jax.finetune import claim as identity
from weightsteer_jax.finetune import step as steps
from weightsteer_jax.finetune.log import Log
from weightsteer_jax.runtime import ending, processes
from weightsteer_jax.runtime.errors import InputError, NotFiniteError
from weightsteer_jax.runtime.sharding import Layout
from weightsteer_jax.storage import checkpoint
from weightsteer_jax.storage.versions import versions

PyTree = Any
History = list[tuple[int, float]]  # (steps taken, validation loss), the base model first


@dataclasses.dataclass(frozen=True)
class Watch:
  """Something else to know of the delta in training, every so many steps.

  Attributes:
    every: steps between two looks.
    look: delta -> {name: scalar on the device}, dispatched between two steps and logged with the
      metrics of the first.
  """

  every: int
  look: Callable[[PyTree], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Job:
  """What all learning rates of a fine-tune share."""

  model: models.Model
  options: config.FineTune
  batches: data.Batches
  validation: list[Batch]
  workdir: pathlib.Path
  seed: int
  steps: int
  progress: bool
  layout: Layout
  identity: dict[str, Any]
  watch: Watch | None

  @property
  def recipe(self) -> optimizer.AdamW:
    return optimizer.adamw(self.options)

  @property
  def row_length(self) -> int:
    return self.batches.shapes[0][1]

  @property
  def load(self) -> memory.Load:
    """Of the device."""
    o = self.options
    return memory.Load(
      o.kind,
      o.rank,
      self.identity['base_dtype'],
      self.batches.most_rows // o.accumulation,
      self.row_length,
    )

  def initial_state(self) -> steps.TrainState:
    o = self.options
    return steps.initial_state_fn(
      self.model.config, o.kind, o.rank, o.lora_alpha, self.recipe, self.layout
    )(self.seed)

  def abstract_state(self) -> steps.TrainState:
    return memory.state_shapes(self.model.config, self.options, self.layout)


@dataclasses.dataclass(frozen=True)
class Trial:
  """A learning rate's run as far as it is.

  Attributes:
    state: None when it is done. step: steps taken.
  """

  job: Job
  rate: float
  checkpoints: checkpoint.Checkpoints
  log: Log
  state: steps.TrainState | None
  step: int
  history: History

  @property
  def goal(self) -> int:
    """The step of the next validation."""
    every = self.job.options.eval_every
    return min((self.step // every + 1) * every, self.job.steps)

  @property
  def done(self) -> bool:
    worse = sum(step > best(self.history)[0] for step, _ in self.history[1:])
    return bool(self.history) and (
      self.history[-1][0] == self.job.steps or 0 < self.job.options.patience <= worse
    )

  def read(self, number: int, metrics: dict[str, np.ndarray], tokens: int) -> None:
    """Logs a step's metrics, unless they are not finite."""
    values = {name: value.item() for name, value in metrics.items()}
    if not values.pop('finite'):
      raise NotFiniteError(
        f'the loss is {values["train_loss"]} and the gradient norm {values["grad_norm"]} at step '
        f'{number + 1} of {self.job.steps}, learning rate {self.rate:g} (at this step '
        f'{values["learning_rate"]:.3g}), on the {int(values["target_tokens"])} target tokens of: '
        f'{", ".join(self.job.batches.names(number))}. Look at these examples, and try a lower '
        'learning rate; the last checkpoint is kept'
      )
    ending.progress()
    self.log.step(number + 1, values, tokens=tokens)

  def validated(self, loss: float) -> 'Trial':
    """With the loss of a validation at its step."""
    if not math.isfinite(loss):
      raise NotFiniteError(
        f'the validation loss is {loss} after step {self.step} of {self.job.steps}, learning rate '
        f'{self.rate:g}: look at the validation examples, and try a lower learning rate'
      )
    ending.progress()
    self.log.validation(self.step, loss)
    return dataclasses.replace(self, history=[*self.history, (self.step, loss)])

  def save(self, before: int) -> None:
    """Begins to write its checkpoint; of the others the best one and that of the step `before` it
    stay.
    """
    if self.history[-1][0] == self.step:
      _keep_step(self)
    # The one before the last stays too: it is what a damaged last one falls back to.
    self.checkpoints.save(
      self.step,
      self.state,
      metadata={'validations': self.history},
      keep={before, best(self.history)[0]},
    )
    if processes.count() > 1:  # Several processes write a checkpoint together, one after the other.
      self.checkpoints.wait()


def make_job(
  model: models.Model,
  train: Sequence[Example],
  validation: Sequence[Example],
  options: config.FineTune,
  *,
  workdir: pathlib.Path,
  seed: int,
  row_length: int,
  progress: bool,
  layout: Layout,
  watch: Watch | None,
) -> Job:
  """The job; nothing is written.

  Raises:
    InputError: bad data.
  """
  if not validation:
    raise InputError(
      'there are no validation examples: the best step and learning rate are picked by '
      'validation loss'
    )
  batches = data.Batches(
    train,
    batch_size=options.batch_size,
    seed=seed,
    row_length=row_length,
    accumulation=options.accumulation,
    row_multiple=layout.rows,
  )
  rows = max(count for count, _ in batches.shapes) // options.accumulation
  validation_batches = list(
    data.eval_batches(validation, rows=rows, row_length=row_length, row_multiple=layout.rows)
  )
  mine = identity.identity(model, train, validation, options, seed=seed, row_length=row_length)
  return Job(
    model,
    options,
    batches,
    validation_batches,
    workdir,
    seed,
    total_steps(options, len(train)),
    progress,
    layout,
    mine,
    watch,
  )


def total_steps(options: config.FineTune, num_examples: int) -> int:
  """Optimizer steps of a run: `steps`, or as many as `epochs` need, rounded up."""
  return options.steps or math.ceil(options.epochs * num_examples / options.batch_size)


def start(job: Job, rate: float, checkpoints: checkpoint.Checkpoints) -> Trial:
  """The trial, from scratch or from its last checkpoint."""
  state, step, history = _restored(job, checkpoints)
  log = Log(job.workdir, peak=rate, step=step, total=job.steps, progress=job.progress)
  return Trial(job, rate, checkpoints, log, state, step, history)


def _restored(
  job: Job, checkpoints: checkpoint.Checkpoints
) -> tuple[steps.TrainState, int, History]:
  """(state, steps taken, history) to go on from; a checkpoint only counts if the best one before it
  is whole too.
  """
  abstract = job.abstract_state()
  while (newest := checkpoints.newest(abstract)) is not None:
    step, state, metadata = newest
    history = [(int(at), float(loss)) for at, loss in metadata['validations']]
    at = best(history)[0]
    if at in (0, step) or checkpoints.is_whole(at, abstract):
      return state, step, history
    checkpoints.set_aside(step)
  return job.initial_state(), 0, []


def best(history: History) -> tuple[int, float]:
  """(step, loss) of the lowest validation loss since training began, the earlier of two equal
  ones.
  """
  return min(history[1:], key=lambda item: item[1], default=(0, math.inf))


def _keep_step(trial: Trial) -> None:
  """Writes the adapter of the last validation, if the run keeps them and it is not there from
  before an interruption.
  """
  folder = trial.job.workdir / 'steps' / f'{trial.rate:g}' / str(trial.step)
  if trial.job.options.keep_steps and not processes.broadcast(folder.exists()):
    adapter.save_adapter(folder, trial.state.delta, _record(trial, trial.history[-1]))


def write_product(trials: Sequence[Trial], folder: pathlib.Path) -> None:
  """Writes the adapter of the best step of the best trial of one job."""
  chosen = min(trials, key=lambda trial: best(trial.history)[1])
  at = best(chosen.history)
  state = chosen.checkpoints.restore(at[0], chosen.job.abstract_state())
  adapter.save_adapter(
    folder,
    state.delta,
    {**_record(chosen, at), 'validations': {f'{trial.rate:g}': trial.history for trial in trials}},
  )


def _record(trial: Trial, validation: tuple[int, float]) -> dict[str, Any]:
  """What is said of an adapter: what made it, and its (step, loss)."""
  job, (step, loss) = trial.job, validation
  return {
    **job.identity,
    'base': job.model.source,
    'base_revision': job.model.revision,
    'kind': job.options.kind,
    'rank': job.options.rank,
    'lora_alpha': job.options.lora_alpha,
    'learning_rate': trial.rate,
    'step': step,
    'steps': job.steps,
    'validation_loss': loss,
    'base_validation_loss': trial.history[0][1],
    'versions': versions(*adapter.PACKAGES),
  }
