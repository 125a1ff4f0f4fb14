"""The methods of a comparison, each made into an arm of the sweep; alpha is signed, and at 0 all
are the same base.

  direction    alpha * (tau+ - tau-): contrastive weight steering; bias-only where its fine-tunes
               are of kind 'bias'
  positive     alpha * tau+, the fine-tune on the behaviour alone
  negative     alpha * -tau-, the fine-tune on its opposite alone
  activation   alpha * persona vectors in the residual stream
  finetune     the fine-tune on the behaviour (alpha > 0) or its opposite (alpha < 0) after that
               share of its steps
  joint        the task's data mixed with the behaviour (alpha 1) or its opposite (alpha -1),
               fine-tuned on at once
  prompts      system prompts that ask for the behaviour (alpha 1) or its opposite (alpha -1)

Where a run has a task model theta_ft, that is the base: steering adds to it, and 'finetune' goes on
from it. Directions and persona vectors are those of the model before the task, as in the paper
(arXiv 2511.05408, section 3).

What an arm needs is made once and kept in the workdir:

  finetune/<side>, finetune/<options>-<side>     the contrast's two fine-tunes, with the run's or
  named options
  finetune/task, finetune/<arm>-<side>           the task's; those of 'joint', and of 'finetune'
  behind a task directions/<name>, directions/<name>-<options>
  persona_vectors/, activations/<arm>/           of the contrast; how an arm's layer was selected
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax import config as configs
from weightsteer_jax import data as datas
from weightsteer_jax import directions, evaluation, finetune, inference, models
from weightsteer_jax.config import Run
from weightsteer_jax.data import Example
from weightsteer_jax.directions import algebra, persona_vectors
from weightsteer_jax.experiments import monitoring
from weightsteer_jax.experiments.experiment import (
  direction_folder,
  encode,
  engine,
  layouts_of,
  load_conversations,
  load_model,
  load_tasks,
  say,
  tokenizer_of,
)
from weightsteer_jax.inference import arms
from weightsteer_jax.runtime import processes
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import files

PyTree = Any
Path = str | pathlib.Path
Sides = Mapping[str, Sequence[Example]]

SIDES = ('positive', 'negative')
DEFAULT = {'weights': configs.Arm()}  # The arms of a run that names none.


@dataclasses.dataclass(frozen=True)
class Method:
  """An arm that is ready to be swept, and its strengths."""

  arm: inference.Arm
  alphas: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class _Making:
  """What every arm is made from.

  Attributes:
    examples: of both sides of the contrast. task: the task model's delta, or None.
  """

  run: Run
  workdir: pathlib.Path
  examples: Sides
  task: PyTree | None

  @property
  def base(self) -> list[arms.Part]:
    """The parts of the base of all arms."""
    return [] if self.task is None else [(self.task, 1.0)]


def make(run: Run, workdir: Path, examples: Sides) -> dict[str, Method]:
  """{name: method} of the run's arms, in the order of KINDS; what they need and is not there is
  made.

  Args:
    examples: both sides of the contrast.

  Raises:
    InputError, NotFiniteError, CorruptError, OutputError, Preempted: as fine-tuning and the sweep
    do.
  """
  making = _Making(run, pathlib.Path(workdir), examples, task_delta(run, workdir))
  methods = {}
  order = list(KINDS)
  for name, arm in sorted(
    (run.arms or DEFAULT).items(),
    key=lambda item: (order.index(item[1].kind), item[1].finetune, item[0]),
  ):
    method = KINDS[arm.kind](making, name, arm)
    methods[name] = dataclasses.replace(
      method, alphas=tuple(sorted({*(arm.alphas or method.alphas), 0.0}))
    )
  return methods


def sides(
  run: Run, workdir: Path, examples: Sides, *, options: str = '', only: Sequence[str] = SIDES
) -> dict[str, finetune.FineTuneResult]:
  """The fine-tunes of the contrast's sides. Both start from the same factors and see their data in
  the same order.

  Args:
    options: name among the run's `finetunes`; '' is the run's own.
  """

  def folder(side):
    return pathlib.Path(workdir) / 'finetune' / (f'{options}-{side}' if options else side)

  length = _row_length(*examples.values())
  fits = [
    finetune.Fit(*_split(run, examples[side]), folder(side), run.seed, length) for side in only
  ]
  return dict(zip(only, fine_tune(run, fits, configs.finetune_of(run, options))))


def direction(
  run: Run, workdir: Path, examples: Sides, *, options: str = ''
) -> directions.Direction:
  """The direction of the contrast, positive minus negative: made once and kept."""
  folder = direction_folder(run, workdir, options)
  if not processes.broadcast(folder.exists()):
    trained = sides(run, workdir, examples, options=options)
    base = load_model(run.model, layouts_of(run).train)
    processes.on_main(
      lambda: directions.save(
        folder, directions.contrast(*(trained[side].folder.parent for side in SIDES), base=base)
      )
    )
    processes.see(folder)
  found = directions.load(folder)
  say(f'direction: {folder}, norm {found.meta["norm"]:.4g}')
  return found


def task_delta(run: Run, workdir: Path) -> PyTree | None:
  """What fine-tuning on the task changes, or None where the run has no task."""
  if not run.task_model.data:
    return None
  options = configs.finetune_of(run, run.task_model.finetune)
  fit = fit_on(run, pathlib.Path(workdir) / 'finetune' / 'task', task_examples(run))
  return fine_tune(run, [fit], options)[0].delta


def fit_on(run: Run, folder: pathlib.Path, examples: Sequence[Example]) -> finetune.Fit:
  """A fine-tune on these examples, by the run's seed, some of them kept for validation."""
  train, validation = _split(run, examples)
  return finetune.Fit(train, validation, folder, run.seed, _row_length(train, validation))


def fine_tune(
  run: Run, fits: Sequence[finetune.Fit], options: configs.FineTune, *, after: PyTree | None = None
) -> list[finetune.FineTuneResult]:
  """The fine-tunes of the run's model, or of what it is `after` a change; made once and kept in
  their folders.
  """
  new = set()  # Several arms may need one: it is told of once.
  for fit in fits:
    if not processes.broadcast((fit.workdir / 'adapter').exists()):
      new.add(fit.workdir)
      say(
        f'fine-tune {fit.workdir.name}: {len(fit.train)} examples to train on, '
        f'{len(fit.validation)} to validate'
      )
  layout = layouts_of(run).train
  model = load_model(run.model, layout)
  if after is not None:
    model = dataclasses.replace(model, params=models.merge(model.config, model.params, after, 1.0))
  results = finetune.run_together(
    model, fits, options, layout=layout, watch=_watch(run) if new else None
  )
  for fit, result in zip(fits, results):
    if fit.workdir in new:
      say(
        f'fine-tune {fit.workdir.name}: validation loss {result.validation_loss:.4f} nats per '
        f'token at step {result.step}, learning rate {result.learning_rate:g}'
      )
  return results


def task_examples(run: Run) -> list[Example]:
  """The task's data as examples.

  Raises:
    InputError: it cannot be read, or is no chat data.
  """
  task = run.task_model
  conversations = load_conversations(
    task.data, split=task.split, revision=task.revision, n=task.n, seed=run.seed
  )
  return encode(run, tokenizer_of(run.model), conversations)


def _direction(making: _Making, name: str, arm: configs.Arm) -> Method:
  found = direction(making.run, making.workdir, making.examples, options=arm.finetune)
  directions.check_base(found, load_model(making.run.model, layouts_of(making.run).train))
  return _swept(making, found.delta)


def _one_side(making: _Making, name: str, arm: configs.Arm, *, side: str) -> Method:
  delta = sides(making.run, making.workdir, making.examples, options=arm.finetune, only=(side,))[
    side
  ].delta
  return _swept(making, delta if side == 'positive' else algebra.scale_delta(delta, -1.0))


def _activation(making: _Making, name: str, arm: configs.Arm) -> Method:
  folder = making.workdir / 'activations' / name
  vectors = _persona_vectors(making)

  def delta_of(layer):
    return _placed(arm, persona_vectors.at_layer(vectors, layer))

  if arm.layer == 'all':
    return _swept(making, _placed(arm, persona_vectors.at_all_layers(vectors)))
  layer = (
    _selected_layer(making, arm, folder, delta_of, len(vectors) - 1)
    if arm.layer == 'select'
    else int(arm.layer)
  )
  return _swept(making, delta_of(layer))


def _finetune(making: _Making, name: str, arm: configs.Arm) -> Method:
  run = making.run
  options = configs.finetune_of(run, arm.finetune)
  if making.task is None:
    trained = sides(run, making.workdir, making.examples, options=arm.finetune)
  else:
    length = _row_length(*making.examples.values())
    fits = [
      finetune.Fit(
        *_split(run, making.examples[side]),
        making.workdir / 'finetune' / f'{name}-{side}',
        run.seed,
        length,
      )
      for side in SIDES
    ]
    trained = dict(zip(SIDES, fine_tune(run, fits, options, after=making.task)))
  parts, alphas = [], []
  for side, sign in zip(SIDES, (1, -1)):
    result, total = (
      trained[side],
      finetune.total_steps(options, len(_split(run, making.examples[side])[0])),
    )
    for step, folder in finetune.kept_steps(result.folder.parent, result.learning_rate).items():
      alphas.append(sign * round(step / total, 4))
      parts.append((finetune.load_adapter(folder)[0], {alphas[-1]: 1.0}))
  return Method(inference.Arm([*making.base, *parts]), tuple(alphas))


def _joint(making: _Making, name: str, arm: configs.Arm) -> Method:
  run = making.run
  options = configs.finetune_of(run, arm.finetune or run.task_model.finetune)
  task_train, task_validation = _split(run, task_examples(run))
  fits = []
  for side in SIDES:
    train, validation = _split(run, making.examples[side])
    mixed, validation = (
      task_train + _repeated(train, arm.upsample, run.seed),
      task_validation + validation,
    )
    fits.append(
      finetune.Fit(
        mixed,
        validation,
        making.workdir / 'finetune' / f'{name}-{side}',
        run.seed,
        _row_length(mixed, validation),
      )
    )
  trained = fine_tune(run, fits, options)
  parts = [(result.delta, {sign: 1.0}) for result, sign in zip(trained, (1.0, -1.0))]
  return Method(inference.Arm([(making.task, {0.0: 1.0}), *parts]), (-1.0, 1.0))


def _prompts(making: _Making, name: str, arm: configs.Arm) -> Method:
  prompts = {
    alpha: texts
    for alpha, texts in ((-1.0, arm.negative_prompts), (1.0, arm.positive_prompts))
    if texts
  }
  return Method(inference.Arm(making.base, prompts), tuple(prompts))


KINDS: dict[str, Callable[[_Making, str, configs.Arm], Method]] = {
  'direction': _direction,
  'positive': functools.partial(_one_side, side='positive'),
  'negative': functools.partial(_one_side, side='negative'),
  'activation': _activation,
  'finetune': _finetune,
  'joint': _joint,
  'prompts': _prompts,
}


def _swept(making: _Making, delta: PyTree) -> Method:
  return Method(inference.Arm([*making.base, (delta, None)]), making.run.sweep.alphas)


def _watch(run: Run) -> finetune.Watch | None:
  """What the run's fine-tunes are watched for; None for nothing.

  Raises:
    InputError: a direction that is not there, or not of the run's model.
  """
  if not run.monitor.directions:
    return None
  layout = layouts_of(run).train
  model, found = load_model(run.model, layout), {}
  for folder, name in monitoring.names(run.monitor.directions).items():
    loaded = directions.load(folder)
    directions.check_base(loaded, model)
    found[name] = loaded.delta
  return monitoring.watch(found, model.config, every=run.monitor.every, layout=layout)


def _split(run: Run, examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
  return datas.split(examples, run.data.validation_fraction, run.seed)


def _row_length(*sets: Sequence[Example]) -> int:
  """One row length for all, so that they share their compiled programs."""
  return datas.batches.row_length_for(
    max(len(example) for examples in sets for example in examples)
  )


def _repeated(examples: list[Example], times: float, seed: int) -> list[Example]:
  """The examples so many times over; of a last fraction, a random part.

  >>> _repeated(['a', 'b'], 2.5, seed=0)
  ['a', 'b', 'a', 'b', 'a']
  """
  whole, fraction = divmod(times, 1)
  part = np.sort(
    np.random.default_rng(seed).permutation(len(examples))[: round(fraction * len(examples))]
  )
  return examples * int(whole) + [examples[i] for i in part]


def _persona_vectors(making: _Making) -> np.ndarray:
  """Of the contrast, made once for all arms."""
  path = making.workdir / 'persona_vectors'
  if not processes.broadcast(path.exists()):
    run = making.run
    layout = layouts_of(run).train
    model = load_model(run.model, layout)
    examples = [making.examples[side] for side in SIDES]
    vectors = persona_vectors.persona_vectors(model, *examples, layout=layout)
    about = {side: len(rows) for side, rows in zip(SIDES, examples)}
    persona_vectors.save(path, vectors, {**finetune.describe_base(model), 'examples': about})
    processes.see(path / persona_vectors.MANIFEST)
  return persona_vectors.load(path)[0]


def _placed(arm: configs.Arm, delta: PyTree) -> PyTree:
  return inference.AnswerOnly(delta) if arm.positions == 'answer' else delta


def _selected_layer(
  making: _Making,
  arm: configs.Arm,
  folder: pathlib.Path,
  delta_of: Callable[[int], PyTree],
  layers: int,
) -> int:
  """The layer whose vector moves the validation tasks' behaviour most, from the lowest strength to
  the highest.
  """
  run, path = making.run, folder / 'layer.json'
  candidates = arm.layers or tuple(range(1, layers + 1))
  names = {f'layer {layer}': layer for layer in candidates}
  tasks = [task for task in load_tasks(run.validation) if task.options.role == 'behaviour']
  arms = {
    name: inference.Arm([*making.base, (delta_of(layer), None)]) for name, layer in names.items()
  }
  say(
    f'{folder.name}: selecting one of {len(candidates)} layers on '
    f'{", ".join(task.name for task in tasks)}'
  )
  rows = evaluation.sweep.run(
    engine(run, arms),
    tasks,
    alphas=dict.fromkeys(arms, sorted(arm.select_alphas)),
    workdir=folder,
    seed=run.sweep.seed,
  )
  results = evaluation.metrics.results(rows, run.validation)
  effects = {layer: _effect(name, tasks, results) for name, layer in names.items()}
  if not any(map(np.isfinite, effects.values())):
    raise InputError(
      f"no layer can be selected: {', '.join(task.name for task in tasks)} gave no number without "
      'a judge; name a layer in the arm, or a validation task that rules can score'
    )
  chosen = max(effects, key=lambda layer: (effects[layer], -layer))
  processes.on_main(
    lambda: files.write_json(
      path, {'layer': chosen, 'effects': effects, 'alphas': list(arm.select_alphas)}
    )
  )
  say(f'{folder.name}: layer {chosen}, which moves it by {effects[chosen]:.3f}')
  return chosen


def _effect(
  arm: str, tasks: Sequence[evaluation.tasks.Task], results: Sequence[Mapping[str, Any]]
) -> float:
  """Mean over tasks of how far apart the metric they are plotted by is at the lowest strength and
  at the highest.
  """
  moved = []
  for task in tasks:
    rows = [row for row in results if row['arm'] == arm and row['task'] == task.name]
    means = {row['alpha']: row['mean'] for row in rows if row['metric'] == rows[0]['metric']}
    low, high = means[min(means)], means[max(means)]
    moved.append(-np.inf if low is None or high is None else abs(high - low))
  return float(np.mean(moved))
