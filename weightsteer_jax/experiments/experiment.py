"""An experiment: one run in its workdir, and as objects what the run's config names.

Everything is made when it is first asked for and kept with the experiment, nothing with the
module: two experiments in one process do not disturb each other.
"""

import contextlib
import copy
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from weightsteer_jax import config as configs
from weightsteer_jax import data as datas
from weightsteer_jax import evaluation, inference, models
from weightsteer_jax.config import ModelChoice, Run
from weightsteer_jax.data import Conversation, Example
from weightsteer_jax.experiments import sources
from weightsteer_jax.models import placement
from weightsteer_jax.runtime import processes, sharding, tree
from weightsteer_jax.runtime.sharding import Layout
from weightsteer_jax.storage import sealed

Path = str | pathlib.Path


class Experiment:
  """A run in its workdir, with its layouts, tokenizer, tasks, judges and one model in memory.

  Attributes:
    run: the checked settings.
    workdir: the folder that stages read and write.
  """

  def __init__(self, run: Run, workdir: Path):
    self.run = run
    self.workdir = pathlib.Path(workdir)
    self._held = _HeldModel()

  def of_contrast(self, name: str) -> 'Experiment':
    """The experiment of one of the run's further contrasts, in a folder of its own.

    The two experiments hold one model together.
    """
    # A shallow copy: model, tokenizer, layouts and tasks do not depend on the contrast.
    further = copy.copy(self)
    further.run = dataclasses.replace(self.run, name=name, data=self.run.contrasts[name])
    further.workdir = self.workdir / 'contrasts' / name
    return further

  @functools.cached_property
  def checkpoint(self) -> pathlib.Path:
    """The local folder of the run's model."""
    source = sources.folder_of(self.run.model.source)
    return models.resolve(source, revision=self.run.model.revision or None)[0]

  @functools.cached_property
  def layouts(self) -> placement.Layouts:
    """The layouts of the weights on the devices, in fine-tuning and in evaluation."""
    config, _ = models.load_config(self.checkpoint)
    options = self.run.finetune

    def init_delta():
      return models.init_delta(
        config, options.kind, jax.random.key(0), rank=options.rank, lora_alpha=options.lora_alpha
      )

    # Only the shapes: how much is trained decides whether the base fits beside its training state.
    trained = tree.count(jax.eval_shape(init_delta))
    return placement.choose(config, self.run.mesh, dtype=self.run.model.dtype, trained=trained)

  @functools.cached_property
  def tokenizer(self) -> Any:
    """The tokenizer of the run's model.

    Raises:
      InputError: if the tokenizer has no chat template.
    """
    return _chat_tokenizer(self.checkpoint)

  @functools.cached_property
  def tasks(self) -> list[evaluation.tasks.Task]:
    """The tasks of the sweep, with their checked items."""
    return sources.load_tasks(self.run.tasks)

  @functools.cached_property
  def validation_tasks(self) -> list[evaluation.tasks.Task]:
    """The tasks by which arms are selected, with their checked items."""
    return sources.load_tasks(self.run.validation)

  def encode(self, conversations: Sequence[Conversation]) -> list[Example]:
    """The conversations as examples, cut or refused by the run's lengths."""
    return datas.chat.encode_examples(
      self.tokenizer,
      conversations,
      max_length=self.run.data.max_length,
      truncate=self.run.data.truncate,
    )

  def model(self, layout: Layout) -> models.Model:
    """The run's model, in a layout.

    The model is read once and then moved between layouts. Earlier references are invalid once this
    method was called with another layout, or once a local judge was asked.

    Raises:
      InputError, CorruptError, NotFiniteError: see `load_model`.
    """
    return self._held.load(self.run.model, layout)

  def engine(self, arms: Mapping[str, Any]) -> inference.Engine:
    """The engine that answers under these arms, in the layout of evaluation."""
    layout = self.layouts.evaluate
    return inference.Engine(
      self.model(layout),
      self.tokenizer,
      arms,
      batch_size=self.run.sweep.batch_size,
      stop_ids=inference.stop_ids(self.tokenizer),
      layout=layout,
    )

  @contextlib.contextmanager
  def judges(self) -> Iterator[list[evaluation.judges.Judge]]:
    """The run's judges, each with its model only while the context lasts.

    A local judge loads its model in place of the run's when it is first asked. All processes enter
    and leave the context together; one of them may ask alone.
    """
    try:
      yield [
        evaluation.judges.make(
          name,
          options,
          cache=self.workdir / 'judges',
          engine=functools.partial(self._judge_engine, options),
        )
        for name, options in self.run.judges.items()
      ]
    finally:
      # Where one process asked alone, the others still hold the run's model. All of them forget
      # what they hold, so that they load the next model together.
      if any(options.kind == 'model' for options in self.run.judges.values()):
        self._held.forget()

  def direction_folder(self, finetune_name: str = '') -> pathlib.Path:
    """The folder of the run's direction.

    Args:
      finetune_name: the entry of the run's `finetunes` that the fine-tunes take; '' is the run's
        own `finetune`.
    """
    name = f'{self.run.name}-{finetune_name}' if finetune_name else self.run.name
    return self.workdir / 'directions' / name

  def _judge_engine(self, options: configs.Judge) -> inference.Engine:
    choice = ModelChoice(options.model, options.revision, options.dtype)
    model = self._held.load(choice, sharding.single())
    tokenizer = _chat_tokenizer(model.folder)
    return inference.Engine(model, tokenizer, {}, batch_size=options.batch_size)


class _HeldModel:
  """The one model in memory, with the choice that the model was read for."""

  def __init__(self):
    self._choice: ModelChoice | None = None
    self._model: models.Model | None = None

  def load(self, choice: ModelChoice, layout: Layout) -> models.Model:
    """The chosen model in a layout: the held one moved, or another one read in its place."""
    if self._model is None or choice != self._choice:
      # First the old model goes, since two need not fit in memory.
      self.forget()
      self._model = load_model(choice, layout)
      self._choice = choice
    self._model = placement.relay(self._model, layout)
    return self._model

  def forget(self) -> None:
    """Gives the held model up."""
    self._model = self._choice = None


def load_model(choice: ModelChoice, layout: Layout | None = None) -> models.Model:
  """The chosen model, read from its files and laid out, by default on one device.

  Raises:
    InputError, NotFiniteError: see `models.load`.
    CorruptError: see `models.load`; also if the checkpoint is a damaged export of ours.
  """
  source = sources.folder_of(choice.source)
  revision = choice.revision or None

  def check_export():
    sealed.check_checkpoint(models.resolve(source, revision=revision)[0])

  processes.on_main(check_export)
  model = models.load(
    source, dtype=choice.dtype, revision=revision, layout=layout, attention=choice.attention
  )
  # Provenance names the model as the config does, 'organism' and not the folder of this machine.
  return dataclasses.replace(model, source=choice.source)


def _chat_tokenizer(folder: pathlib.Path) -> Any:
  """The tokenizer in a checkpoint's folder.

  Raises:
    InputError: if the tokenizer has no chat template.
  """
  tokenizer = datas.load_tokenizer(folder)
  datas.require_chat_template(tokenizer)
  return tokenizer
