"""The fine-tuning loop: train, validate, keep the best, stop early, and continue where an interrupted run stopped.

A workdir holds one fine-tune:

  options.json        what the run is a function of; a rerun must agree with it
  metrics.jsonl       see log.py; the same scalars are under tensorboard/
  checkpoints/<learning rate>/<step>
  adapter/            the product (see adapter.py), written when all learning rates are done
"""
import dataclasses
import hashlib
import json
import math
import pathlib
from typing import Any, Callable, Sequence

import jax
import numpy as np

from weightsteer_jax import checkpoint, config, data, files, models
from weightsteer_jax.data import Batch, Example
from weightsteer_jax.data.batches import row_length_for
from weightsteer_jax.errors import InputError, NotFiniteError, Preempted
from weightsteer_jax.finetune import adapter, optimizer, preemption, step as steps
from weightsteer_jax.finetune.log import Log

PyTree = Any
History = list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class FineTuneResult:
  """A finished fine-tune.

  Attributes:
    delta: the trained change, of the step with the lowest validation loss. validation_loss: there, nats per target token.
    learning_rate: the peak that gave it. step: steps taken until it. folder: the adapter's folder.
  """
  delta: PyTree
  validation_loss: float
  learning_rate: float
  step: int
  folder: pathlib.Path


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

  def initial_state(self) -> Callable[[int], steps.TrainState]:
    o = self.options
    return steps.initial_state_fn(self.model.config, o.kind, o.rank, o.lora_alpha, optimizer.adamw(o))

  def train_step(self) -> Callable:
    o = self.options
    return steps.train_step_fn(self.model.config, optimizer.adamw(o), remat=o.remat, dropout=o.dropout)


@dataclasses.dataclass(frozen=True)
class _Trial:
  """One learning rate's finished run: validation losses by step (step 0 is the base model)."""
  learning_rate: float
  history: History
  checkpoints: checkpoint.Checkpoints


def run(model: models.Model, train: Sequence[Example], validation: Sequence[Example], options: config.FineTune, *,
        workdir: files.Path, seed: int = 0, progress: bool = True) -> FineTuneResult:
  """The delta that `options` train on `train`, the best by validation loss over steps and learning rates.

  All that happens is a function of (model, train, validation, options, seed). Run again with the same, an interrupted run continues
  from its last checkpoint, bit for bit, and a finished one returns its product; with others, it is an error.

  Args:
    workdir: see the module; made if missing.
    seed: of the initial factors, the order of examples and dropout. Give both sides of a contrast the same (see initial_state_fn).
    progress: whether to show a progress bar on stderr.
  Raises:
    InputError: bad data, or a workdir that belongs to another run (names what differs).
    NotFiniteError: a loss or gradient became NaN or infinite; names the step, the learning rate and the examples of the batch.
    Preempted: SIGTERM or SIGINT came; the state is saved. CorruptError, OutputError: see checkpoint.py and adapter.py.
  """
  workdir = pathlib.Path(workdir)
  identity = _identity(model, train, validation, options, seed)
  _claim(workdir, identity)
  folder = workdir / 'adapter'
  if not folder.exists():
    with preemption.watch() as stopped:
      job = _make_job(model, train, validation, options, workdir, seed, progress)
      trials = [_fit(job, rate, stopped) for rate in options.learning_rates]
      _write_product(job, trials, identity, folder)
    if stopped():
      raise Preempted(f'{stopped()} came while the last of {workdir} was written; it is whole: start again to go on from there')
  delta, meta = adapter.load_adapter(folder)
  return FineTuneResult(delta, meta['validation_loss'], meta['learning_rate'], meta['step'], folder)


def total_steps(options: config.FineTune, num_examples: int) -> int:
  """Optimizer steps of a run: `steps`, or as many as `epochs` need, rounded up."""
  return options.steps or math.ceil(options.epochs * num_examples / options.batch_size)


def _make_job(model, train, validation, options, workdir, seed, progress) -> _Job:
  if not validation:
    raise InputError('there are no validation examples: the best step and learning rate are picked by validation loss')
  # One row length for both, so that a run knows few shapes.
  row_length = row_length_for(max(len(example) for example in [*train, *validation])) if train else None
  batches = data.Batches(train, batch_size=options.batch_size, seed=seed, row_length=row_length, accumulation=options.accumulation)
  rows = max(count for count, _ in batches.shapes) // options.accumulation
  return _Job(model, options, batches, list(data.eval_batches(validation, rows=rows, row_length=row_length)), workdir, seed,
              total_steps(options, len(train)), progress)


def _fit(job: _Job, rate: float, stopped: Callable[[], str]) -> _Trial:
  """The finished run of one learning rate, from scratch or from its last checkpoint."""
  checkpoints = checkpoint.Checkpoints(job.workdir / 'checkpoints' / f'{rate:g}')
  state, step, history = _start(job, checkpoints)
  with Log(job.workdir, peak=rate, step=step, total=job.steps, progress=job.progress) as log:
    if not history:
      history = [(0, _validate(job, state.delta, rate, 0, log))]
    while not _is_done(history, job):
      first, step = step, min((step // job.options.eval_every + 1) * job.options.eval_every, job.steps)
      state, reached = _train(job, state, range(first, step), rate, stopped, log)
      if reached == step:
        history = [*history, (step, _validate(job, state.delta, rate, step, log))]
      checkpoints.save(reached, state, metadata={'validations': history})
      if stopped() and not _is_done(history, job):
        raise Preempted(f'{stopped()} came: step {reached} of {job.steps} (learning rate {rate:g}) is saved in {checkpoints.folder}; '
                        'start again to continue')
      checkpoints.keep({reached, first, _best(history)[0]})
  return _Trial(rate, history, checkpoints)


def _start(job: _Job, checkpoints: checkpoint.Checkpoints) -> tuple[steps.TrainState, int, History]:
  """(state, steps taken, history) to go on from; a checkpoint only counts if the best one before it is whole too."""
  initial_state = job.initial_state()
  abstract = jax.eval_shape(initial_state, job.seed)
  while (newest := checkpoints.newest(abstract)) is not None:
    step, state, metadata = newest
    history = [(int(at), float(loss)) for at, loss in metadata['validations']]
    if len(history) < 2 or _best(history)[0] == step or checkpoints.is_whole(_best(history)[0], abstract):
      return state, step, history
    checkpoints.set_aside(step)
  return initial_state(job.seed), 0, []


def _train(job, state, batch_steps, rate, stopped, log) -> tuple[steps.TrainState, int]:
  """(state, steps taken) after the given steps, or fewer if the run is to stop.

  Step n + 1 is dispatched before the metrics of step n are read, so that the device does not wait for the host.
  """
  train_step = job.train_step()
  schedule = optimizer.schedule(job.options, peak=rate, total=job.steps)
  pending = None
  for step in batch_steps:
    batch = job.batches.batch(step)
    parts = data.microbatches(batch, job.options.accumulation)
    state, metrics = train_step(state, job.model.params, parts, schedule, job.seed)
    if pending:
      _read(job, *pending, rate, log)
    pending = (step, metrics, int(np.count_nonzero(batch.segment_ids_BT)))
    if stopped():
      break
  _read(job, *pending, rate, log)
  return state, pending[0] + 1


def _read(job, step, metrics, tokens, rate, log) -> None:
  values = {name: value.item() for name, value in jax.device_get(metrics).items()}
  if not values.pop('finite'):
    names = job.batches.names(step)
    raise NotFiniteError(f'the loss is {values["loss"]} and the gradient norm {values["grad_norm"]} at step {step + 1} of {job.steps}, '
                         f'learning rate {rate:g} (here {values["learning_rate"]:.3g}), on the {int(values["tokens"])} target tokens of: '
                         f'{", ".join(names)}. Try a lower learning rate, and look at these examples; the last checkpoint is kept')
  log.step(step + 1, {'train_loss': values['loss'], 'grad_norm': values['grad_norm'], 'learning_rate': values['learning_rate'],
                      'target_tokens': int(values['tokens'])}, tokens=tokens)


def _validate(job: _Job, delta: PyTree, rate: float, step: int, log: Log) -> float:
  """Validation loss, nats per target token over all validation examples."""
  eval_loss = steps.eval_loss_fn(job.model.config)
  sums, counts = zip(*jax.device_get([eval_loss(delta, job.model.params, batch) for batch in job.validation]))
  loss = float(np.sum(sums, dtype=np.float64) / np.sum(counts, dtype=np.float64))
  if not math.isfinite(loss):
    raise NotFiniteError(f'the validation loss is {loss} after step {step} of {job.steps}, learning rate {rate:g}: try a lower one, and '
                         'look at the validation examples')
  log.validation(step, loss)
  return loss


def _best(history: History) -> tuple[int, float]:
  """(step, loss) of the lowest validation loss after training began, the earlier of two equal ones."""
  return min(history[1:], key=lambda item: item[1], default=(0, math.inf))


def _is_done(history: History, job: _Job) -> bool:
  step = history[-1][0]
  worse = sum(at > _best(history)[0] for at, _ in history[1:])
  return step == job.steps or 0 < job.options.patience <= worse


def _write_product(job: _Job, trials: list[_Trial], identity: dict[str, Any], folder: pathlib.Path) -> None:
  chosen = min(trials, key=lambda trial: _best(trial.history)[1])
  step, loss = _best(chosen.history)
  abstract = jax.eval_shape(job.initial_state(), job.seed)
  state = chosen.checkpoints.restore(step, abstract)
  adapter.save_adapter(folder, state.delta, {
      **identity, 'base': job.model.source, 'base_revision': job.model.revision, 'kind': job.options.kind,
      'learning_rate': chosen.learning_rate, 'step': step,
      'steps': job.steps, 'validation_loss': loss, 'base_validation_loss': chosen.history[0][1],
      'validations': {f'{trial.learning_rate:g}': trial.history for trial in trials}, 'versions': adapter.versions()})


def _identity(model, train, validation, options, seed) -> dict[str, Any]:
  """What a run is a function of, as JSON values."""
  identity = {'options': dataclasses.asdict(options), 'seed': seed, 'num_train': len(train), 'num_validation': len(validation),
              'train_digest': data_digest(train), 'validation_digest': data_digest(validation), **adapter.describe_base(model)}
  for place in ('base', 'base_revision'):  # Where the model was read from does not matter, its digest does.
    del identity[place]
  return json.loads(json.dumps(identity))


def data_digest(examples: Sequence[Example]) -> str:
  """16 hex digits that name the tokens, masks and order of the examples (not where they were read from)."""
  sha = hashlib.sha256()
  for example in examples:
    sha.update(np.int64(len(example)).tobytes())
    sha.update(np.asarray(example.tokens, np.int32).tobytes() + np.asarray(example.loss_mask, bool).tobytes())
  return sha.hexdigest()[:16]


def _claim(workdir: pathlib.Path, identity: dict[str, Any]) -> None:
  """Makes the workdir this run's, or sees that it is already."""
  path = workdir / 'options.json'
  if not path.exists():
    files.refuse_existing(workdir / 'adapter', what='a fine-tune')
    files.refuse_existing(workdir / 'checkpoints', what='a fine-tune')
    files.write_json(path, identity)
    return
  there, here = _flat(files.read_json(path, what='the options of a fine-tune')), _flat(identity)
  differing = [f'  {key}: {there.get(key)!r} there, {here.get(key)!r} now' for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
  if differing:
    raise InputError('\n'.join([f'{workdir} holds another fine-tune; name another workdir, or move it away. What differs:', *differing]))


def _flat(value: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, item in value.items():
    flat |= _flat(item, f'{prefix}{key}.') if isinstance(item, dict) else {f'{prefix}{key}': item}
  return flat
