"""The fine-tuning loop: train, validate, keep the best, stop early, and continue where it stopped.

A workdir holds one fine-tune:

  options.json        the identity of the run, with which a rerun must agree
  metrics.jsonl       see log.py; the same scalars are under tensorboard/
  checkpoints/<learning rate>/<step>
                      the newest state of a trial, the one before, and the best (see trial.py)
  steps/<learning rate>/<step>
                      with `keep_steps`, the adapter of every validation
  adapter/            the product (see adapter.py), written when all learning rates are done

Several fine-tunes, and the learning rates of each, are trained side by side (see group.py) as far
as memory allows (see memory.py). The files do not depend on the company: a fine-tune begun alone
can go on beside others, and the other way round.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from weightsteer_jax import config, models
from weightsteer_jax.data import Example
from weightsteer_jax.finetune import adapter, claim, group
from weightsteer_jax.finetune import memory as memories
from weightsteer_jax.finetune import trial as trials
from weightsteer_jax.finetune.fit import Fit, PreparedFit, Watch, prepare
from weightsteer_jax.finetune.trial import Trial
from weightsteer_jax.models import placement
from weightsteer_jax.runtime import preemption, processes, sharding
from weightsteer_jax.runtime.errors import InputError, Preempted
from weightsteer_jax.runtime.sharding import Layout
from weightsteer_jax.storage import checkpoint, files

PyTree = Any


@dataclasses.dataclass(frozen=True)
class FineTuneResult:
  """A finished fine-tune.

  Attributes:
    delta: the change, as trained up to the chosen step.
    validation_loss: the lowest of the fine-tune, nats per target token.
    learning_rate: the peak learning rate of the trial with that loss.
    step: the chosen step: optimizer steps of that trial until that loss.
    folder: the adapter's folder.
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
  """The delta with the best validation loss over all steps and learning rates.

  This is `run_together` for one fit; see there and `Fit` for the arguments and errors.
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
  """The delta of each fit with the best validation loss over all steps and learning rates.

  All that happens in a workdir is a function of (model, fit, options), within rounding: training
  beside others moves no more than the last bits. Called again with the same arguments, an
  interrupted run continues from the last checkpoints, bit for bit (within rounding, where a crash
  came between the saves of two trials), and a finished run returns the product. With other
  arguments the call is an error.

  Args:
    progress: whether to show progress bars on stderr.
    layout: how the model's parameters lie, and all other arrays will; a single device by default.
      Another layout gives the same result within rounding.
    watch: further metrics of the deltas to log; training does not depend on them.
    memory: bytes of a device, for the choice of rematerialisation and of the number of trials to
      train together; 0 asks the device.

  Raises:
    InputError: if data is bad, if the layout does not divide the model, if two fits have one
      workdir, or if a workdir belongs to another run (names what differs).
    NotFiniteError: if a loss or gradient became NaN or infinite; names the step, the learning rate
      and the examples.
    Preempted: if SIGTERM or SIGINT came; the states of all unfinished trials are saved.
    CorruptError, OutputError: see checkpoint.py and adapter.py.
  """
  # All fits are checked before the first write, which claims the workdirs.
  layout = layout or sharding.single()
  prepared = []
  for fit in fits:
    prepared.append(prepare(model, fit, options, progress=progress, layout=layout, watch=watch))
  _refuse_shared_workdirs(prepared)
  for prepared_fit in prepared:
    claim.claim(prepared_fit.workdir, prepared_fit.identity)
  # Train the fits without a product; what process 0 sees counts for all processes.
  unfinished = [fit for fit in prepared if not processes.broadcast(fit.product.exists())]
  if unfinished:
    with preemption.watch() as stop:
      # Fits with rows of one length can share programs.
      for length in dict.fromkeys(fit.row_length for fit in unfinished):
        # A signal between two groups: what is trained is saved.
        if stop.name:
          raise _preempted(stop, [])
        alike = [fit for fit in unfinished if fit.row_length == length]
        _train(alike, stop, memory or placement.least_memory())
    # A signal that came after the last step: the next stage must not begin.
    if stop.name:
      raise Preempted(
        f'{stop.name} came while {unfinished[-1].product} was written; it is whole: start again '
        'to go on from there'
      )
  return [_result(fit) for fit in prepared]


def kept_steps(workdir: files.Path, learning_rate: float) -> dict[int, pathlib.Path]:
  """{step: adapter} of a run with `keep_steps`, ascending."""
  folder = pathlib.Path(workdir) / 'steps' / f'{learning_rate:g}'
  adapters = {}
  for path in folder.glob('[0-9]*'):
    adapters[int(path.name)] = path
  return dict(sorted(adapters.items()))


def _refuse_shared_workdirs(fits: Sequence[PreparedFit]) -> None:
  seen = set()
  # Absolute, so that two spellings of a folder are the same; sorted, so that every process names
  # the same folder.
  folders = [str(fit.workdir.absolute()) for fit in fits]
  for folder in sorted(folders):
    if folder in seen:
      raise InputError(f'two fine-tunes are to be made in one workdir, {folder}: give each its own')
    seen.add(folder)


def _train(fits: Sequence[PreparedFit], stop: preemption.Stop, memory: float) -> None:
  """Trains all learning rates of the fits, a number of them together, and writes each product."""
  first = fits[0]
  options = first.options
  waiting = [(fit, rate) for fit in fits for rate in options.learning_rates]
  # The fit with the most rows needs the most memory.
  loads = [fit.load for fit in fits]
  plan = memories.plan(
    first.model.config,
    options,
    max(loads, key=lambda load: load.rows),
    first.layout,
    count=len(waiting),
    memory=memory,
  )
  active: list[Trial] = []
  done: dict[pathlib.Path, list[Trial]] = {fit.workdir: [] for fit in fits}
  # Logs and checkpoints are closed on every way out.
  with contextlib.ExitStack() as stack:
    while waiting or active:
      # A trial that is done gives its place in the program to the next one.
      while waiting and len(active) < plan.together:
        fit, rate = waiting.pop(0)
        active.append(_start(fit, rate, stack))
      # A trial's history begins with the loss before any training.
      fresh = [trial for trial in active if not trial.history]
      if fresh:
        validated = iter(group.validate(fresh))
        active = [trial if trial.history else next(validated) for trial in active]
      # Train up to the next validation.
      chosen = _next_group(active)
      if chosen:
        members = [active[i] for i in chosen]
        advanced = group.advance(members, stop, remat=plan.remat)
        for i, trial in zip(chosen, advanced):
          active[i] = trial
      # The last trial of a fit writes the product.
      for trial in active:
        if trial.done:
          trial.log.close()
          _finish(trial, done[trial.fit.workdir])
      active = [trial for trial in active if not trial.done]
      if stop.name and (waiting or active):
        raise _preempted(stop, active)


def _start(fit: PreparedFit, rate: float, stack: contextlib.ExitStack) -> Trial:
  folder = fit.workdir / 'checkpoints' / f'{rate:g}'
  checkpoints = stack.enter_context(checkpoint.Checkpoints(folder))
  trial = trials.start(fit, rate, checkpoints)
  stack.callback(trial.log.close)
  return trial


def _next_group(active: Sequence[Trial]) -> list[int]:
  """Indices of the next group.

  The unfinished trial with the fewest steps, and every trial equally far from its next validation.
  """
  going = [i for i, trial in enumerate(active) if not trial.done]
  if not going:
    return []
  # Trials of one group take the same number of steps, whatever steps they are at.
  distances = {i: active[i].goal - active[i].step for i in going}
  last = min(going, key=lambda i: active[i].step)
  return [i for i in going if distances[i] == distances[last]]


def _finish(trial: Trial, finished: list[Trial]) -> None:
  """Adds a trial to the finished ones of its fit, and writes the product after the last one."""
  rates = trial.fit.options.learning_rates
  # The state is in the checkpoint: its memory is the next trial's.
  finished.append(dataclasses.replace(trial, state=None))
  if len(finished) == len(rates):
    # In the order of the options, so that of two equal losses the same one always wins.
    in_order = sorted(finished, key=lambda trial: rates.index(trial.rate))
    trials.write_product(in_order, trial.fit.product)


def _preempted(stop: preemption.Stop, active: Sequence[Trial]) -> Preempted:
  """The error to raise, once the checkpoints of all active trials are written."""
  saved = []
  for trial in active:
    # Checkpoints are written in the background.
    trial.checkpoints.wait()
    saved.append(
      f'step {trial.step} of {trial.fit.steps} (learning rate {trial.rate:g}) is saved in '
      f'{trial.checkpoints.folder}'
    )
  listed = '; '.join(saved) or 'what is done is saved'
  return Preempted(f'{stop.name} came: {listed}; start again to continue')


def _result(fit: PreparedFit) -> FineTuneResult:
  # Process 0 wrote the adapter; a shared file system shows new files to other hosts late.
  processes.see(fit.product / adapter.MANIFEST)
  delta, meta = adapter.load_adapter(fit.product)
  return FineTuneResult(
    delta=delta,
    validation_loss=meta['validation_loss'],
    learning_rate=meta['learning_rate'],
    step=meta['step'],
    folder=fit.product,
  )
