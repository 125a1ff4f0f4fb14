"""The arms of a comparison, made ready for the sweep, a kind of arm for each method.

Alpha is signed, and at 0 all arms are the same base:

  direction    alpha * (tau+ - tau-): contrastive weight steering; bias-only where the fine-tunes
               are of kind 'bias'
  positive     alpha * tau+, the fine-tune on the behaviour alone
  negative     alpha * -tau-, the fine-tune on the opposite alone
  activation   alpha * persona vectors in the residual stream
  finetune     the fine-tune on the behaviour (alpha > 0) or the opposite (alpha < 0), after
               abs(alpha) of the planned steps
  joint        a fine-tune on the task's data mixed with the behaviour (alpha 1) or the opposite
               (alpha -1)
  prompts      system prompts asking for the behaviour (alpha 1) or the opposite (alpha -1)

Where a run has a task, the base is the model fine-tuned on the task: steering is added to this
base, and 'finetune' arms train on from this base. Directions and persona vectors belong to the
model before the task. Source: arXiv 2511.05408, section 3.

The needs of an arm are made once and kept in the workdir:

  finetune/<side>, finetune/<options>-<side>
                  fine-tunes on the contrast's sides, with the run's own or with named options
  finetune/task   fine-tune on the task
  finetune/<arm>-<side>
                  fine-tunes of a 'joint' arm, and of a 'finetune' arm behind a task
  directions/<name>, directions/<name>-<options>
                  differences of the fine-tunes on both sides
  persona_vectors/
                  persona vectors of the contrast
  activations/<arm>/
                  sweep behind the selection of an arm's layer
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax import config as configs
from weightsteer_jax import data as datas
from weightsteer_jax import directions, evaluation, finetune, inference, models
from weightsteer_jax.data import Example
from weightsteer_jax.data.pairs import SIDES
from weightsteer_jax.directions import algebra, persona_vectors
from weightsteer_jax.experiments import monitoring, sources
from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.inference.arms import Part
from weightsteer_jax.runtime import processes
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.progress import say
from weightsteer_jax.storage import files

PyTree = Any
# {side: examples}
Sides = Mapping[str, Sequence[Example]]

# Name of the arm that is a direction and nothing else.
WEIGHTS = 'weights'
# The arms of a run that names none.
DEFAULT: dict[str, configs.Arm] = {WEIGHTS: configs.DirectionArm()}


@dataclasses.dataclass(frozen=True)
class SweptArm:
  """An arm ready to be swept, with the strengths to sweep."""

  arm: inference.Arm
  alphas: tuple[float, ...]


def make(experiment: Experiment, examples: Sides) -> dict[str, SweptArm]:
  """{name: arm} of the run's arms, in the order of KINDS.

  Missing fine-tunes, directions and vectors are made first.

  Args:
    examples: {side: examples} of the contrast.

  Raises:
    InputError, NotFiniteError, CorruptError, OutputError, Preempted: see fine-tuning and the sweep.
  """
  task = task_delta(experiment)
  order = list(KINDS)

  # Sorted by kind and by fine-tune, so that arms with the same fine-tunes stand together, and the
  # order of rows does not depend on the order in the config.
  def place(item: tuple[str, configs.Arm]) -> tuple[int, str, str]:
    name, options = item
    # Not every kind of arm has a fine-tune.
    return order.index(options.kind), getattr(options, 'finetune', ''), name

  arms = experiment.run.arms or DEFAULT
  swept = {}
  for name, options in sorted(arms.items(), key=place):
    make_arm = KINDS[options.kind]
    arm = make_arm(experiment, name, options, examples, task)
    # Alpha 0 is always swept: every effect is measured from that base.
    alphas = {*(options.alphas or arm.alphas), 0.0}
    swept[name] = dataclasses.replace(arm, alphas=tuple(sorted(alphas)))
  return swept


def fine_tune_sides(
  experiment: Experiment, examples: Sides, *, finetune_name: str = '', only: Sequence[str] = SIDES
) -> dict[str, finetune.FineTuneResult]:
  """{side: fine-tune} of the contrast, made once and kept.

  Both sides start from the same factors and see their data in the same order.

  Args:
    examples: {side: examples} of the contrast.
    finetune_name: entry of the run's `finetunes`; '' is the run's own `finetune`.
    only: the sides to fine-tune.
  """
  prefix = f'{finetune_name}-' if finetune_name else ''
  fits = _side_fits(experiment, examples, prefix, only=only)
  options = configs.finetune_of(experiment.run, finetune_name)
  results = fine_tune(experiment, fits, options)
  return dict(zip(only, results))


def direction(
  experiment: Experiment, examples: Sides, *, finetune_name: str = ''
) -> directions.Direction:
  """The direction of the contrast, positive minus negative, made once and kept."""
  folder = experiment.direction_folder(finetune_name)
  if not processes.broadcast(folder.exists()):
    trained = fine_tune_sides(experiment, examples, finetune_name=finetune_name)
    fine_tunes = [trained[side].folder.parent for side in SIDES]
    base = experiment.model(experiment.layouts.train)

    def make_and_save():
      made = directions.between(*fine_tunes, base=base)
      directions.save(folder, made)

    # From the files of the fine-tunes, on the process that writes; the others wait for the folder.
    processes.on_main(make_and_save)
    processes.see(folder)
  saved = directions.load(folder)
  say(f'direction: {folder}, norm {saved.meta["norm"]:.4g}')
  return saved


def task_delta(experiment: Experiment) -> PyTree | None:
  """The change by the fine-tune on the task, or None where the run has no task."""
  run = experiment.run
  if not run.task_model.data:
    return None
  options = configs.finetune_of(run, run.task_model.finetune)
  folder = experiment.workdir / 'finetune' / 'task'
  fit = fit_on(experiment, folder, task_examples(experiment), seed=run.seed)
  [result] = fine_tune(experiment, [fit], options)
  return result.delta


def fit_on(
  experiment: Experiment, folder: pathlib.Path, examples: Sequence[Example], *, seed: int
) -> finetune.Fit:
  """A fine-tune to be made on examples, a share of them held out for validation.

  Args:
    folder: the fine-tune's own folder.
    examples: examples to train on and to validate with.
    seed: seed of the split, the initial factors and the order of examples.
  """
  train, validation = _split(experiment, examples, seed)
  length = _row_length(train, validation)
  return finetune.Fit(train, validation, folder, seed, length, _told(experiment))


def _told(experiment: Experiment) -> dict[str, Any]:
  """What the chat template was told when examples were made, for the records of fine-tunes."""
  return datas.bindings.bound(experiment.tokenizer).to_json()


def fine_tune(
  experiment: Experiment,
  fits: Sequence[finetune.Fit],
  options: configs.FineTune,
  *,
  after: PyTree | None = None,
) -> list[finetune.FineTuneResult]:
  """The fine-tunes of the run's model, made once and kept in their folders.

  Args:
    fits: data, folder and seed of each fine-tune.
    options: how to train, alike for all.
    after: change to merge into the model first; None is no change.
  """
  # What exists already is read in silence, as several arms may need one fine-tune.
  new = set()
  for fit in fits:
    folder = pathlib.Path(fit.workdir)
    if not processes.broadcast((folder / 'adapter').exists()):
      new.add(folder)
      say(
        f'fine-tune {folder.name}: {len(fit.train)} examples to train on, '
        f'{len(fit.validation)} to validate'
      )
  layout = experiment.layouts.train
  model = experiment.model(layout)
  if after is not None:
    # The held model stays as it is: merging makes other weights, dropped with this call.
    params = models.merge(model.config, model.params, after, 1.0)
    model = dataclasses.replace(model, params=params)
  # Finished fine-tunes are not watched again, and need no directions loaded.
  watch = _watch(experiment) if new else None
  results = finetune.run_together(model, fits, options, layout=layout, watch=watch)
  for fit, result in zip(fits, results):
    folder = pathlib.Path(fit.workdir)
    if folder in new:
      say(
        f'fine-tune {folder.name}: validation loss {result.validation_loss:.4f} nats per '
        f'token at step {result.step}, learning rate {result.learning_rate:g}'
      )
  return results


def task_examples(experiment: Experiment) -> list[Example]:
  """The task's data as examples.

  Raises:
    InputError: if the data cannot be read, or is no chat data.
  """
  task = experiment.run.task_model
  conversations = sources.load_conversations(
    task.data, split=task.split, revision=task.revision, n=task.n, seed=experiment.run.seed
  )
  return experiment.encode(conversations)


# A function for each kind of arm. `examples` are the contrast's, by side; `task` is the change by
# the fine-tune on the task, or None.


def _direction(
  experiment: Experiment,
  name: str,
  options: configs.DirectionArm,
  examples: Sides,
  task: PyTree | None,
) -> SweptArm:
  steering = direction(experiment, examples, finetune_name=options.finetune)
  # A direction from an earlier run of the workdir may be of another checkpoint at the same path.
  directions.check_base(steering, experiment.model(experiment.layouts.train))
  return _scaled(experiment, steering.delta, task)


def _one_side(
  experiment: Experiment, name: str, options: configs.SideArm, examples: Sides, task: PyTree | None
) -> SweptArm:
  # The kinds 'positive' and 'negative' are named after their side.
  side = options.kind
  trained = fine_tune_sides(experiment, examples, finetune_name=options.finetune, only=(side,))
  delta = trained[side].delta
  # Alpha > 0 is more of the behaviour in every arm.
  if side == 'negative':
    delta = algebra.scale_delta(delta, -1.0)
  return _scaled(experiment, delta, task)


def _activation(
  experiment: Experiment,
  name: str,
  options: configs.ActivationArm,
  examples: Sides,
  task: PyTree | None,
) -> SweptArm:
  vectors = _persona_vectors(experiment, examples)
  # Increments: what is added up to layer l amounts to vectors[l] - vectors[0].
  if options.layer == 'all':
    delta = persona_vectors.at_all_layers(vectors)
    return _scaled(experiment, _placed(options, delta), task)
  if options.layer == 'select':
    layer = _selected_layer(experiment, name, options, vectors, task)
  else:
    layer = int(options.layer)
  delta = persona_vectors.at_layer(vectors, layer)
  return _scaled(experiment, _placed(options, delta), task)


def _finetune(
  experiment: Experiment,
  name: str,
  options: configs.FinetuneArm,
  examples: Sides,
  task: PyTree | None,
) -> SweptArm:
  run = experiment.run
  finetune_options = configs.finetune_of(run, options.finetune)
  # Without a task these are the fine-tunes of the direction; behind a task they start from the task
  # model, and are made for this arm.
  if task is None:
    trained = fine_tune_sides(experiment, examples, finetune_name=options.finetune)
  else:
    fits = _side_fits(experiment, examples, f'{name}-')
    results = fine_tune(experiment, fits, finetune_options, after=task)
    trained = dict(zip(SIDES, results))
  parts = _base(task)
  alphas = []
  for side, sign in zip(SIDES, (1, -1)):
    result = trained[side]
    train, _ = _split(experiment, examples[side], run.seed)
    total = finetune.total_steps(finetune_options, len(train))
    kept = finetune.kept_steps(result.folder.parent, result.learning_rate)
    for step, folder in kept.items():
      # The strength is the share of the planned steps: a fine-tune that stops early stays below 1.
      alpha = sign * round(step / total, 4)
      delta, _ = finetune.load_adapter(folder)
      alphas.append(alpha)
      # At this strength alone, and there in full: a fine-tune after fewer steps is no multiple.
      parts.append((delta, {alpha: 1.0}))
  return SweptArm(inference.Arm(parts), tuple(alphas))


def _joint(
  experiment: Experiment, name: str, options: configs.JointArm, examples: Sides, task: PyTree | None
) -> SweptArm:
  run = experiment.run
  finetune_options = configs.finetune_of(run, options.finetune or run.task_model.finetune)
  task_data = task_examples(experiment)
  # Split before mixing, so that no example to validate with is among the repeated ones.
  task_train, task_validation = _split(experiment, task_data, run.seed)
  fits = []
  for side in SIDES:
    side_train, side_validation = _split(experiment, examples[side], run.seed)
    train = task_train + _repeated(side_train, options.upsample, run.seed)
    validation = task_validation + side_validation
    folder = experiment.workdir / 'finetune' / f'{name}-{side}'
    length = _row_length(train, validation)
    fits.append(finetune.Fit(train, validation, folder, run.seed, length, _told(experiment)))
  positive, negative = fine_tune(experiment, fits, finetune_options)
  # These fine-tunes start from the model before the task: at alpha 0 alone the task's own applies.
  parts = [
    (task, {0.0: 1.0}),
    (positive.delta, {1.0: 1.0}),
    (negative.delta, {-1.0: 1.0}),
  ]
  return SweptArm(inference.Arm(parts), (-1.0, 1.0))


def _prompts(
  experiment: Experiment,
  name: str,
  options: configs.PromptsArm,
  examples: Sides,
  task: PyTree | None,
) -> SweptArm:
  prompts = {}
  if options.negative_prompts:
    prompts[-1.0] = options.negative_prompts
  if options.positive_prompts:
    prompts[1.0] = options.positive_prompts
  return SweptArm(inference.Arm(_base(task), prompts), tuple(prompts))


# In the order in which arms are made and swept. Each function takes the options of its own kind
# (see `config.ARM_KINDS`).
KINDS: dict[str, Callable[[Experiment, str, Any, Sides, PyTree | None], SweptArm]] = {
  'direction': _direction,
  'positive': _one_side,
  'negative': _one_side,
  'activation': _activation,
  'finetune': _finetune,
  'joint': _joint,
  'prompts': _prompts,
}


def _base(task: PyTree | None) -> list[Part]:
  """The parts of the arms' common base: the task's change, at every strength."""
  return [] if task is None else [(task, 1.0)]


def _scaled(experiment: Experiment, delta: PyTree, task: PyTree | None) -> SweptArm:
  """The arm of alpha times a change added to the base, at the strengths of the sweep."""
  # The coefficient None stands for alpha itself.
  parts = [*_base(task), (delta, None)]
  return SweptArm(inference.Arm(parts), experiment.run.sweep.alphas)


def _side_fits(
  experiment: Experiment, examples: Sides, prefix: str, *, only: Sequence[str] = SIDES
) -> list[finetune.Fit]:
  """Fine-tunes on the sides of the contrast, in finetune/<prefix><side>."""
  seed = experiment.run.seed
  # One row length for both sides, so that they share their compiled programs.
  length = _row_length(*examples.values())
  fits = []
  for side in only:
    train, validation = _split(experiment, examples[side], seed)
    folder = experiment.workdir / 'finetune' / f'{prefix}{side}'
    fits.append(finetune.Fit(train, validation, folder, seed, length, _told(experiment)))
  return fits


def _watch(experiment: Experiment) -> finetune.Watch | None:
  """The watch over the run's fine-tunes for its directions; None without directions.

  Raises:
    InputError: if a direction is missing, or is of another model.
  """
  options = experiment.run.monitor
  if not options.directions:
    return None
  layout = experiment.layouts.train
  model = experiment.model(layout)
  deltas = {}
  for folder, name in monitoring.names(options.directions).items():
    watched_for = directions.load(folder)
    directions.check_base(watched_for, model)
    deltas[name] = watched_for.delta
  return monitoring.watch(deltas, model.config, every=options.every, layout=layout)


def _split(
  experiment: Experiment, examples: Sequence[Example], seed: int
) -> tuple[list[Example], list[Example]]:
  fraction = experiment.run.data.validation_fraction

  # Answers of one conversation share their beginning: validation would know it from training.
  def conversation_of(example: Example) -> str:
    return example.conversation

  return datas.split(examples, fraction, seed, group_of=conversation_of)


def _row_length(*sets: Sequence[Example]) -> int:
  """The tokens of a row with room for every example of the sets."""
  longest = max(len(example) for examples in sets for example in examples)
  return datas.batches.row_length_for(longest)


def _repeated(examples: list[Example], times: float, seed: int) -> list[Example]:
  """The examples so many times over; of a last fraction, a random part in the order of the whole.

  >>> _repeated(['a', 'b'], 2.5, seed=0)
  ['a', 'b', 'a', 'b', 'a']
  """
  whole, fraction = divmod(times, 1)
  count = round(fraction * len(examples))
  rng = np.random.default_rng(seed)
  shuffled = rng.permutation(len(examples))
  chosen = np.sort(shuffled[:count])
  part = [examples[i] for i in chosen]
  return examples * int(whole) + part


def _persona_vectors(experiment: Experiment, examples: Sides) -> np.ndarray:
  """The persona vectors of the contrast, float32 [L + 1, D], made once for all arms."""
  path = experiment.workdir / 'persona_vectors'
  if not processes.broadcast(path.exists()):
    layout = experiment.layouts.train
    model = experiment.model(layout)
    positive, negative = [examples[side] for side in SIDES]
    vectors = persona_vectors.persona_vectors(model, positive, negative, layout=layout)
    counts = {side: len(examples[side]) for side in SIDES}
    about = {**finetune.describe_base(model), 'examples': counts}
    persona_vectors.save(path, vectors, about)
    # The manifest is written last, so the folder is whole once a process sees the file.
    processes.see(path / persona_vectors.MANIFEST)
  vectors, _ = persona_vectors.load(path)
  return vectors


def _placed(options: configs.ActivationArm, delta: PyTree) -> PyTree:
  return inference.AnswerOnly(delta) if options.positions == 'answer' else delta


def _selected_layer(
  experiment: Experiment,
  arm_name: str,
  options: configs.ActivationArm,
  vectors: np.ndarray,
  task: PyTree | None,
) -> int:
  """The layer with the vector of most effect on the validation tasks.

  The effect is measured between the lowest and the highest of `select_alphas`.
  """
  run = experiment.run
  folder = experiment.workdir / 'activations' / arm_name
  # vectors[0] belongs to the embeddings, before the first layer.
  candidates = options.layers or tuple(range(1, len(vectors)))
  layers = {f'layer {layer}': layer for layer in candidates}
  # One arm per layer, all in one sweep.
  arms = {}
  for name, layer in layers.items():
    delta = persona_vectors.at_layer(vectors, layer)
    # The coefficient None stands for alpha itself.
    parts = [*_base(task), (_placed(options, delta), None)]
    arms[name] = inference.Arm(parts)
  tasks = [each for each in experiment.validation_tasks if each.options.role == 'behaviour']
  task_names = ', '.join(each.name for each in tasks)
  say(f'{arm_name}: selecting one of {len(candidates)} layers on {task_names}')
  alphas = sorted(options.select_alphas)
  rows = evaluation.sweep.run(
    experiment.engine(arms),
    tasks,
    alphas=dict.fromkeys(arms, alphas),
    workdir=folder,
    seed=run.sweep.seed,
  )
  # Without judges: a selection should not wait for one, nor pay for one.
  results = evaluation.metrics.results(rows, run.validation)
  effects = {layer: _effect(name, tasks, results) for name, layer in layers.items()}
  # Infinite effects are of layers without a number.
  if not np.isfinite(list(effects.values())).any():
    raise InputError(
      f'no layer can be selected: {task_names} gave no number without a judge; name a layer in '
      'the arm, or a validation task that rules can score'
    )
  # The lowest of the layers with equal effects.
  chosen = max(effects, key=lambda layer: (effects[layer], -layer))
  record = {'layer': chosen, 'effects': effects, 'alphas': list(options.select_alphas)}
  processes.on_main(lambda: files.write_json(folder / 'layer.json', record))
  say(f'{arm_name}: layer {chosen}, which moves it by {effects[chosen]:.3f}')
  return chosen


def _effect(
  arm: str, tasks: Sequence[evaluation.tasks.Task], results: Sequence[Mapping[str, Any]]
) -> float:
  """Distance of an arm's plotted metrics between the lowest and highest alpha, mean over tasks."""
  distances = []
  for task in tasks:
    rows = [row for row in results if row['arm'] == arm and row['task'] == task.name]
    # A task is plotted by the first of its metrics.
    plotted = rows[0]['metric']
    means = {row['alpha']: row['mean'] for row in rows if row['metric'] == plotted}
    lowest = means[min(means)]
    highest = means[max(means)]
    if lowest is None or highest is None:
      # No answer at that strength could be scored: such a layer is never the best.
      distances.append(-np.inf)
    else:
      distances.append(abs(highest - lowest))
  return float(np.mean(distances))
