"""The fine-tuning loop: train, validate, keep the best, stop early, and continue where an interrupted run stopped.

A workdir holds one fine-tune:

  options.json        what the run is a function of; a rerun must agree with it
  metrics.jsonl       see log.py; the same scalars are under tensorboard/
  checkpoints/<learning rate>/<step>
  steps/<learning rate>/<step>
                      with `keep_steps`, the adapter of every validation
  adapter/            the product (see adapter.py), written when all learning rates are done
"""
import dataclasses
import functools
import math
import pathlib
from typing import Any, Callable, Sequence

import jax
import numpy as np

from weightsteer_jax import checkpoint, config, data, distributed, files, lifeline, models, sharding, tracing
from weightsteer_jax.data import Batch, Example
from weightsteer_jax.data.batches import row_length_for
from weightsteer_jax.errors import InputError, NotFiniteError, Preempted
from weightsteer_jax.finetune import adapter, identity, optimizer, preemption, step as steps
from weightsteer_jax.finetune.log import Log
from weightsteer_jax.sharding import Layout
from weightsteer_jax.versions import versions

PyTree = Any
History = list[tuple[int, float]]  # (steps taken, validation loss), the base model first


@dataclasses.dataclass(frozen=True)
class FineTuneResult:
  """A finished fine-tune.

  Attributes:
    delta: the trained change, of the step with the lowest validation loss.
    validation_loss: of it, nats per target token.
    learning_rate: the peak it was trained with. step: steps taken until it. folder: the adapter's folder.
  """
  delta: PyTree
  validation_loss: float
  learning_rate: float
  step: int
  folder: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Watch:
  """Something else to know of the delta in training, every so many steps.

  Attributes:
    every: steps between two looks.
    look: delta -> {name: scalar on the device}, dispatched between two steps and logged with the metrics of the first.
  """
  every: int
  look: Callable[[PyTree], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class _Job:
  """What all learning rates of a run share."""
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

  def initial_state(self) -> steps.TrainState:
    o = self.options
    make = steps.initial_state_fn(self.model.config, o.kind, o.rank, o.lora_alpha, optimizer.adamw(o), self.layout)
    return make(self.seed)

  def abstract_state(self) -> steps.TrainState:
    shapes = jax.eval_shape(self.initial_state)
    shardings = steps.state_shardings(self.model.config, optimizer.adamw(self.options), self.layout, shapes)
    return sharding.placed(shapes, shardings)

  def train_step(self, rate: float) -> Callable[[steps.TrainState, Batch], tuple[steps.TrainState, steps.Metrics]]:
    o = self.options
    train_step = steps.train_step_fn(self.model.config, optimizer.adamw(o), self.layout, remat=o.remat,
                                     dropout=o.dropout)
    schedule = optimizer.schedule(o, peak=rate, total=self.steps)

    def step(state, batch):
      parts = self.layout.put_batch(data.microbatches(batch, o.accumulation), 'ABT')
      with self.layout.context():
        return train_step(state, self.model.params, parts, schedule, self.seed)

    return step

  def eval_loss(self, delta: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
    with self.layout.context():
      return steps.eval_loss_fn(self.model.config)(delta, self.model.params, self.layout.put_batch(batch))


@dataclasses.dataclass(frozen=True)
class _Trial:
  """One learning rate's finished run."""
  learning_rate: float
  history: History
  checkpoints: checkpoint.Checkpoints


def run(model: models.Model, train: Sequence[Example], validation: Sequence[Example], options: config.FineTune, *,
        workdir: files.Path, seed: int = 0, row_length: int | None = None, progress: bool = True,
        layout: Layout | None = None, watch: Watch | None = None) -> FineTuneResult:
  """The delta that `options` train on `train`, the best by validation loss over steps and learning rates.

  All that happens is a function of (model, train, validation, options, seed, row_length). Run again with the same, an
  interrupted run continues from its last checkpoint, bit for bit, and a finished one returns its product; with others,
  it is an error.

  Args:
    workdir: see the module; made if missing.
    seed: of the initial factors, the order of examples and dropout. Give both sides of a contrast the same (see
      initial_state_fn).
    row_length: tokens per row of a batch; by default the longest example, rounded up. Two runs with batches of the
      same shape in one process compile once.
    progress: whether to show a progress bar on stderr.
    layout: how the model's parameters lie, and all else is to; one device by default. Another one gives the same result
      within rounding.
    watch: what else to log of the delta; nothing else depends on it.
  Raises:
    InputError: bad data, a layout that does not divide the model, or a workdir that belongs to another run (names what
      differs).
    NotFiniteError: a loss or gradient became NaN or infinite; names the step, the learning rate and the examples.
    Preempted: SIGTERM or SIGINT came; the state is saved.
    CorruptError, OutputError: see checkpoint.py and adapter.py.
  """
  workdir = pathlib.Path(workdir)
  row_length = row_length or row_length_for(max(map(len, [*train, *validation]), default=1))
  job = _make_job(model, train, validation, options, workdir, seed, row_length, progress, layout or sharding.single(),
                  watch)
  identity.claim(workdir, job.identity)
  folder = workdir / 'adapter'
  if not distributed.broadcast(folder.exists()):
    with preemption.watch() as stop:
      trials = [_fit(job, rate, stop) for rate in options.learning_rates]
      _write_product(job, trials, folder)
    if stop.name:
      raise Preempted(f'{stop.name} came while {folder} was written; it is whole: start again to go on from there')
  distributed.see(folder / adapter.MANIFEST)
  delta, meta = adapter.load_adapter(folder)
  return FineTuneResult(delta, meta['validation_loss'], meta['learning_rate'], meta['step'], folder)


def total_steps(options: config.FineTune, num_examples: int) -> int:
  """Optimizer steps of a run: `steps`, or as many as `epochs` need, rounded up."""
  return options.steps or math.ceil(options.epochs * num_examples / options.batch_size)


def _make_job(model, train, validation, options, workdir, seed, row_length, progress, layout, watch) -> _Job:
  if not validation:
    raise InputError('there are no validation examples: the best step and learning rate are picked by validation loss')
  batches = data.Batches(train, batch_size=options.batch_size, seed=seed, row_length=row_length,
                         accumulation=options.accumulation, row_multiple=layout.rows)
  rows = max(count for count, _ in batches.shapes) // options.accumulation
  validation_batches = list(data.eval_batches(validation, rows=rows, row_length=row_length, row_multiple=layout.rows))
  mine = identity.identity(model, train, validation, options, seed=seed, row_length=row_length)
  return _Job(model, options, batches, validation_batches, workdir, seed, total_steps(options, len(train)), progress,
              layout, mine, watch)


def _fit(job: _Job, rate: float, stop: preemption.Stop) -> _Trial:
  """The finished run of one learning rate, from scratch or from its last checkpoint."""
  with checkpoint.Checkpoints(job.workdir / 'checkpoints' / f'{rate:g}') as checkpoints:
    state, step, history = _start(job, checkpoints)
    with Log(job.workdir, peak=rate, step=step, total=job.steps, progress=job.progress) as log:
      if not history:
        history = [(0, _validate(job, state.delta, rate, 0, log))]
      while not _is_done(job, history):
        first, goal = step, min((step // job.options.eval_every + 1) * job.options.eval_every, job.steps)
        state, step = _train(job, state, range(first, goal), rate, stop, log)
        if step == goal:
          history = [*history, (step, _validate(job, state.delta, rate, step, log))]
          _keep_step(job, state.delta, rate, history)
        # The one before the last stays too: it is what a damaged last one falls back to.
        checkpoints.save(step, state, metadata={'validations': history}, keep={first, _best(history)[0]})
        if stop.name and not _is_done(job, history):
          checkpoints.wait()
          raise Preempted(f'{stop.name} came: step {step} of {job.steps} (learning rate {rate:g}) is saved in '
                          f'{checkpoints.folder}; start again to continue')
  return _Trial(rate, history, checkpoints)


def _start(job: _Job, checkpoints: checkpoint.Checkpoints) -> tuple[steps.TrainState, int, History]:
  """(state, steps taken, history) to go on from; a checkpoint only counts if the best one before it is whole too."""
  abstract = job.abstract_state()
  while (newest := checkpoints.newest(abstract)) is not None:
    step, state, metadata = newest
    history = [(int(at), float(loss)) for at, loss in metadata['validations']]
    best = _best(history)[0]
    if best in (0, step) or checkpoints.is_whole(best, abstract):
      return state, step, history
    checkpoints.set_aside(step)
  return job.initial_state(), 0, []


def _train(job: _Job, state: steps.TrainState, numbers: range, rate: float, stop: preemption.Stop,
           log: Log) -> tuple[steps.TrainState, int]:
  """(state, steps taken) after the steps of these numbers, or after fewer if the run is to stop.

  Step n + 1 is dispatched before the metrics of step n are read, so that the device does not wait for the host.
  """
  train_step, read = job.train_step(rate), functools.partial(_read, job, rate, log)
  pending = None
  for number in numbers:
    with tracing.unit('train step', number):
      batch = job.batches.batch(number)
      state, metrics = train_step(state, batch)
    if job.watch and (number + 1) % job.watch.every == 0:
      metrics = metrics | job.watch.look(state.delta)
    if pending:
      read(*pending)
    pending = (number, metrics, int(np.count_nonzero(batch.segment_ids_BT)))
    if stop.reached():
      break
  read(*pending)
  return state, pending[0] + 1


@jax.profiler.annotate_function
def _read(job: _Job, rate: float, log: Log, number: int, metrics: steps.Metrics, tokens: int) -> None:
  """Waits for a step's metrics and logs them, unless they are not finite."""
  values = {name: value.item() for name, value in jax.device_get(metrics).items()}
  if not values.pop('finite'):
    raise NotFiniteError(
        f'the loss is {values["train_loss"]} and the gradient norm {values["grad_norm"]} at step {number + 1} of '
        f'{job.steps}, learning rate {rate:g} (at this step {values["learning_rate"]:.3g}), on the '
        f'{int(values["target_tokens"])} target tokens of: {", ".join(job.batches.names(number))}. Look at these '
        'examples, and try a lower learning rate; the last checkpoint is kept')
  lifeline.progress()
  log.step(number + 1, values, tokens=tokens)


@jax.profiler.annotate_function
def _validate(job: _Job, delta: PyTree, rate: float, step: int, log: Log) -> float:
  """Validation loss, nats per target token over all validation examples."""
  sums, counts = zip(*jax.device_get([job.eval_loss(delta, batch) for batch in job.validation]))
  loss = float(np.sum(sums, dtype=np.float64) / np.sum(counts, dtype=np.float64))
  if not math.isfinite(loss):
    raise NotFiniteError(f'the validation loss is {loss} after step {step} of {job.steps}, learning rate {rate:g}: '
                         'look at the validation examples, and try a lower learning rate')
  lifeline.progress()
  log.validation(step, loss)
  return loss


def _best(history: History) -> tuple[int, float]:
  """(step, loss) of the lowest validation loss since training began, the earlier of two equal ones."""
  return min(history[1:], key=lambda item: item[1], default=(0, math.inf))


def _is_done(job: _Job, history: History) -> bool:
  worse = sum(step > _best(history)[0] for step, _ in history[1:])
  return history[-1][0] == job.steps or 0 < job.options.patience <= worse


def _keep_step(job: _Job, delta: PyTree, rate: float, history: History) -> None:
  """Writes the adapter of the last validation, if the run keeps them and it is not there from before an interruption."""
  folder = job.workdir / 'steps' / f'{rate:g}' / str(history[-1][0])
  if job.options.keep_steps and not distributed.broadcast(folder.exists()):
    adapter.save_adapter(folder, delta, _record(job, rate, history[-1], history[0][1]))


def kept_steps(workdir: files.Path, learning_rate: float) -> dict[int, pathlib.Path]:
  """{step: adapter} of a run with `keep_steps`, ascending."""
  folder = pathlib.Path(workdir) / 'steps' / f'{learning_rate:g}'
  return {int(path.name): path for path in sorted(folder.glob('[0-9]*'), key=lambda path: int(path.name))}


def _write_product(job: _Job, trials: list[_Trial], folder: pathlib.Path) -> None:
  chosen = min(trials, key=lambda trial: _best(trial.history)[1])
  best = _best(chosen.history)
  state = chosen.checkpoints.restore(best[0], job.abstract_state())
  record = _record(job, chosen.learning_rate, best, chosen.history[0][1])
  adapter.save_adapter(folder, state.delta, {
      **record, 'validations': {f'{trial.learning_rate:g}': trial.history for trial in trials}})


def _record(job: _Job, rate: float, validation: tuple[int, float], base_loss: float) -> dict[str, Any]:
  """What is said of an adapter: what made it, and its (step, loss)."""
  step, loss = validation
  return {**job.identity, 'base': job.model.source, 'base_revision': job.model.revision, 'kind': job.options.kind,
          'rank': job.options.rank, 'lora_alpha': job.options.lora_alpha, 'learning_rate': rate, 'step': step,
          'steps': job.steps, 'validation_loss': loss, 'base_validation_loss': base_loss,
          'versions': versions(*adapter.PACKAGES)}
