"""The request for a fine-tune (`Fit`), and the same with batches (`PreparedFit`).

A *trial* is one learning rate of a fit (see trial.py).
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from weightsteer_jax import config, data, models
from weightsteer_jax.data import Batch, Example
from weightsteer_jax.data.batches import row_length_for
from weightsteer_jax.finetune import claim, memory, optimizer
from weightsteer_jax.finetune.step import TrainState, initial_state_fn
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.sharding import Layout
from weightsteer_jax.storage import files

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
  """A fine-tune to make; several of one model may be trained together.

  Attributes:
    train: examples to train on.
    validation: examples whose loss chooses the step and the learning rate.
    workdir: folder of the fine-tune's files, as loop.py lists; made if missing.
    seed: decides the initial factors, the order of examples and dropout. Give both sides of a
      contrast the same seed (see step.initial_state_fn).
    row_length: tokens per row of a batch; 0 is the longest example, rounded up. Fine-tunes with
      rows of one length can be trained together, and compile once.
    chat: what the chat template was told when the examples were made, for the records.
  """

  train: Sequence[Example]
  validation: Sequence[Example]
  workdir: files.Path
  seed: int = 0
  row_length: int = 0
  chat: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Watch:
  """Further metrics of the delta in training, logged every so many steps.

  Attributes:
    every: steps between two looks.
    look: delta -> {name: scalar on the device}, dispatched between two steps and logged with the
      metrics of the step before.
  """

  every: int
  look: Callable[[PyTree], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class PreparedFit:
  """A fit with the common parts of all its trials.

  Attributes:
    batches: the training batches, each a function of the seed and the step.
    validation: the validation batches.
    steps: optimizer steps of a learning rate, if it does not stop early.
    progress: whether to show progress bars on stderr.
    identity: all arguments that decide the result (see claim.identity).
  """

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
    """The optimizer's hyperparameters that are compiled in."""
    return optimizer.adamw(self.options)

  @property
  def row_length(self) -> int:
    """Tokens per row of a batch."""
    # Shapes differ in their rows alone.
    _, row_length = self.batches.shapes[0]
    return row_length

  @property
  def product(self) -> pathlib.Path:
    """Folder of the adapter, written when all learning rates are done."""
    return self.workdir / 'adapter'

  @property
  def load(self) -> memory.Load:
    """What a training step asks of the device."""
    # Activations of one microbatch are in memory at a time.
    microbatch_rows = self.batches.most_rows // self.options.accumulation
    return memory.Load(
      self.options.kind,
      self.options.rank,
      self.identity['base_dtype'],
      microbatch_rows,
      self.row_length,
    )

  def initial_state(self) -> TrainState:
    """The state before the first step."""
    options = self.options
    # Compiled once for all trials: only the seed is data.
    make = initial_state_fn(
      self.model.config,
      options.kind,
      options.rank,
      options.lora_alpha,
      self.recipe,
      self.layout,
      targets=options.targets,
    )
    return make(self.seed)

  def abstract_state(self) -> TrainState:
    """Shapes and places of a state's arrays."""
    return memory.state_shapes(self.model.config, self.options, self.layout)


def prepare(
  model: models.Model,
  fit: Fit,
  options: config.FineTune,
  *,
  progress: bool,
  layout: Layout,
  watch: Watch | None,
) -> PreparedFit:
  """The fit with its batches; nothing is written.

  Raises:
    InputError: if the data is bad, or if there are no validation examples.
  """
  # Without validation there would be no best step to keep.
  if not fit.validation:
    raise InputError(
      'there are no validation examples: the best step and learning rate are picked by '
      'validation loss'
    )
  # One length for training and validation: the longest example of both fits into a row.
  examples = [*fit.train, *fit.validation]
  longest = max(map(len, examples), default=1)
  row_length = fit.row_length or row_length_for(longest)
  batches = data.Batches(
    fit.train,
    batch_size=options.batch_size,
    seed=fit.seed,
    row_length=row_length,
    accumulation=options.accumulation,
    row_multiple=layout.rows,
  )
  # As many rows as a microbatch has: validation needs no more memory than training.
  most_rows = max(count for count, _ in batches.shapes)
  rows = most_rows // options.accumulation
  validation_batches = data.eval_batches(
    fit.validation, rows=rows, row_length=row_length, row_multiple=layout.rows
  )
  # Everything that decides the result; layout and progress bars do not.
  identity = claim.identity(
    model,
    fit.train,
    fit.validation,
    options,
    seed=fit.seed,
    row_length=row_length,
    chat=fit.chat,
  )
  return PreparedFit(
    model=model,
    options=options,
    batches=batches,
    # A list: every validation goes over the same batches.
    validation=list(validation_batches),
    workdir=pathlib.Path(fit.workdir),
    seed=fit.seed,
    steps=total_steps(options, len(fit.train)),
    progress=progress,
    layout=layout,
    identity=identity,
    watch=watch,
  )


def total_steps(options: config.FineTune, num_examples: int) -> int:
  """Optimizer steps of a run: `steps`, or as many as `epochs` need, rounded up."""
  # Steps of 0 leave the number to the epochs.
  if options.steps:
    return options.steps
  return math.ceil(options.epochs * num_examples / options.batch_size)
