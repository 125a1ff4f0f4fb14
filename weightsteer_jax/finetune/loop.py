"""The fine-tuning loop: train, validate, keep the best, stop early, and continue where an
interrupted run stopped.

A workdir holds one fine-tune:

  options.json        what the run is a function of; a rerun must agree with it
  metrics.jsonl       see log.py; the same scalars are under tensorboard/
  checkpoints/<learning rate>/<step>
  steps/<learning rate>/<step>
                      with `keep_steps`, the adapter of every validation
  adapter/            the product (see adapter.py), written when all learning rates are done

Several fine-tunes, and the learning rates of each, are trained side by side (see group.py) as far
as that helps and fits (see memory.py). It shows nowhere in what they leave: one that was begun by
itself can go on beside others, and the other way round.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from weightsteer_jax import config, models
from weightsteer_jax.data import Example
from weightsteer_jax.data.batches import row_length_for
from weightsteer_jax.finetune import adapter, claim, group
from weightsteer_jax.finetune import memory as memories
from weightsteer_jax.finetune import trial as trials
from weightsteer_jax.finetune.trial import Job, Trial, Watch, total_steps
from weightsteer_jax.models import placement
from weightsteer_jax.runtime import preemption, processes, sharding
from weightsteer_jax.runtime.errors import InputError, Preempted
from weightsteer_jax.runtime.sharding import Layout
from weightsteer_jax.storage import checkpoint, files

PyTree = Any

__all__ = ['Fit', 'FineTuneResult', 'Watch', 'kept_steps', 'run', 'run_together', 'total_steps']


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
  """One fine-tune of several of a model.

  Attributes:
    workdir: see the module; made if missing.
    seed: of the initial factors, the order of examples and dropout. Give both sides of a contrast
      the same (see steps.initial_state_fn).
    row_length: tokens per row of a batch; 0 is the longest example, rounded up. Fine-tunes with
      rows of one length can be trained together, and compile once.
  """

  train: Sequence[Example]
  validation: Sequence[Example]
  workdir: files.Path
  seed: int = 0
  row_length: int = 0


@dataclasses.dataclass(frozen=True)
class FineTuneResult:
  """A finished fine-tune.

  Attributes:
    delta: the trained change, of the step with the lowest validation loss.
    validation_loss: of it, nats per target token.
    learning_rate: the peak it was trained with. step: steps taken until it. folder: the adapter's
      folder.
  """

  delta: PyTree
  validation_loss: float
  learning_rate: float
  step: int
  folder: pathlib.Path


def run(
  model: models.Model,
  train: Sequence[Example],
  validation: Sequence[Example],
  options: config.FineTune,
  *,
  workdir: files.Path,
  seed: int = 0,
  row_length: int | None = None,
  progress: bool = True,
  layout: Layout | None = None,
  watch: Watch | None = None,
) -> FineTuneResult:
  """The delta that `options` train on `train`, the best by validation loss over steps and learning
  rates.

  For the arguments see `Fit`, for all else `run_together`, of which this is the case of one.
  """
  fit = Fit(train, validation, workdir, seed, row_length or 0)
  return run_together(model, [fit], options, progress=progress, layout=layout, watch=watch)[0]


def run_together(
  model: models.Model,
  fits: Sequence[Fit],
  options: config.FineTune,
  *,
  progress: bool = True,
  layout: Layout | None = None,
  watch: Watch | None = None,
  memory: float = 0.0,
) -> list[FineTuneResult]:
  """Of each fit the delta that `options` train, the best by validation loss over steps and learning
  rates.

  All that happens in a workdir is a function of (model, fit, options), within rounding: that it is
  trained beside others moves no more than the last bits. Run again with the same, an interrupted
  run continues from its last checkpoints, bit for bit (within rounding, where a crash came after
  the save of one and before that of another), and a finished one returns its product; with others,
  it is an error.

  Args:
    progress: whether to show progress bars on stderr.
    layout: how the model's parameters lie, and all else is to; one device by default. Another one
      gives the same result within rounding.
    watch: what else to log of the deltas; nothing else depends on it.
    memory: bytes of a device, of which `options` choose rematerialisation and how many go together;
      asked of it if 0.

  Raises:
    InputError: bad data, a layout that does not divide the model, one workdir for two, or one that
      belongs to another run (names what differs).
    NotFiniteError: a loss or gradient became NaN or infinite; names the step, the learning rate and
      the examples.
    Preempted: SIGTERM or SIGINT came; the states of all are saved.
    CorruptError, OutputError: see checkpoint.py and adapter.py.
  """
  jobs = [_job(model, fit, options, progress, layout or sharding.single(), watch) for fit in fits]
  folders = [str(job.workdir.absolute()) for job in jobs]
  if twice := sorted({folder for folder in folders if folders.count(folder) > 1}):
    raise InputError(f'two fine-tunes are to be made in one workdir, {twice[0]}: give each its own')
  for job in jobs:
    claim.claim(job.workdir, job.identity)
  unfinished = [job for job in jobs if not processes.broadcast(_product(job).exists())]
  if unfinished:
    with preemption.watch() as stop:
      for alike in _alike(unfinished):
        if stop.name:
          raise _preempted(stop, [])
        _fit(alike, stop, memory or placement.least_memory())
    if stop.name:
      raise Preempted(
        f'{stop.name} came while {_product(unfinished[-1])} was written; it is whole: start again '
        'to go on from there'
      )
  return [_result(job) for job in jobs]


def kept_steps(workdir: files.Path, learning_rate: float) -> dict[int, pathlib.Path]:
  """{step: adapter} of a run with `keep_steps`, ascending."""
  folder = pathlib.Path(workdir) / 'steps' / f'{learning_rate:g}'
  return {
    int(path.name): path for path in sorted(folder.glob('[0-9]*'), key=lambda path: int(path.name))
  }


def _job(
  model: models.Model,
  fit: Fit,
  options: config.FineTune,
  progress: bool,
  layout: Layout,
  watch: Watch | None,
) -> Job:
  longest = max(map(len, [*fit.train, *fit.validation]), default=1)
  return trials.make_job(
    model,
    fit.train,
    fit.validation,
    options,
    workdir=pathlib.Path(fit.workdir),
    seed=fit.seed,
    row_length=fit.row_length or row_length_for(longest),
    progress=progress,
    layout=layout,
    watch=watch,
  )


def _alike(jobs: Sequence[Job]) -> list[list[Job]]:
  """The jobs by length of row: those of one length can share programs."""
  lengths = list(dict.fromkeys(job.row_length for job in jobs))
  return [[job for job in jobs if job.row_length == length] for length in lengths]


def _fit(jobs: Sequence[Job], stop: preemption.Stop, memory: float) -> None:
  """Trains all learning rates of the jobs, a number of them together, and writes each product when
  it can be.
  """
  options, biggest = jobs[0].options, max((job.load for job in jobs), key=lambda load: load.rows)
  waiting = [(job, rate) for job in jobs for rate in options.learning_rates]
  plan = memories.plan(
    jobs[0].model.config, options, biggest, jobs[0].layout, count=len(waiting), memory=memory
  )
  active: list[Trial] = []
  done: dict[pathlib.Path, list[Trial]] = {job.workdir: [] for job in jobs}
  with contextlib.ExitStack() as stack:
    while waiting or active:
      while (
        waiting and len(active) < plan.together
      ):  # Whoever is done gives its place in the program to the next one.
        active.append(_start(*waiting.pop(0), stack))
      fresh = [trial for trial in active if not trial.history]
      if fresh:
        validated = iter(group.validate(fresh))
        active = [trial if trial.history else next(validated) for trial in active]
      chosen = _chosen(active)
      if chosen:
        advanced = dict(
          zip(chosen, group.advance([active[i] for i in chosen], stop, remat=plan.remat))
        )
        active = [advanced.get(i, trial) for i, trial in enumerate(active)]
      for trial in [trial for trial in active if trial.done]:
        trial.log.close()
        _finish(trial, done[trial.job.workdir])
      active = [trial for trial in active if not trial.done]
      if stop.name and (waiting or active):
        raise _preempted(stop, active)


def _start(job: Job, rate: float, stack: contextlib.ExitStack) -> Trial:
  checkpoints = stack.enter_context(
    checkpoint.Checkpoints(job.workdir / 'checkpoints' / f'{rate:g}')
  )
  trial = trials.start(job, rate, checkpoints)
  stack.callback(trial.log.close)
  return trial


def _chosen(active: Sequence[Trial]) -> list[int]:
  """Which go on together: of those that are not done the one that is furthest behind, and all that
  have as many steps to go to their next validation.
  """
  going = [i for i, trial in enumerate(active) if not trial.done]
  if not going:
    return []
  last = min(going, key=lambda i: active[i].step)
  return [
    i for i in going if active[i].goal - active[i].step == active[last].goal - active[last].step
  ]


def _finish(trial: Trial, finished: list[Trial]) -> None:
  """Adds a trial that is done to those of its job, and writes the job's product if it is the last
  one.
  """
  rates = trial.job.options.learning_rates
  finished.append(dataclasses.replace(trial, state=None))
  if len(finished) == len(rates):
    trials.write_product(
      sorted(finished, key=lambda trial: rates.index(trial.rate)), _product(trial.job)
    )


def _preempted(stop: preemption.Stop, active: Sequence[Trial]) -> Preempted:
  """The error, when all are saved."""
  for trial in active:
    trial.checkpoints.wait()
  saved = '; '.join(
    f'step {trial.step} of {trial.job.steps} (learning rate {trial.rate:g}) is saved in '
    f'{trial.checkpoints.folder}'
    for trial in active
  )
  return Preempted(f'{stop.name} came: {saved or "what is done is saved"}; start again to continue')


def _product(job: Job) -> pathlib.Path:
  return job.workdir / 'adapter'


def _result(job: Job) -> FineTuneResult:
  folder = _product(job)
  processes.see(folder / adapter.MANIFEST)
  delta, meta = adapter.load_adapter(folder)
  return FineTuneResult(delta, meta['validation_loss'], meta['learning_rate'], meta['step'], folder)
