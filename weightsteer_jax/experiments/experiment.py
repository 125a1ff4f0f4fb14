"""An experiment: a run in a workdir, with the objects named by the run's config.

Objects are made when first used, and belong to the experiment, never to the module: two
experiments in one process do not disturb each other.
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
from weightsteer_jax.experiments import chat_date, sources
from weightsteer_jax.models import placement
from weightsteer_jax.runtime import processes, sharding, tree
from weightsteer_jax.runtime.sharding import Layout
from weightsteer_jax.storage import locks, sealed

Path = str | pathlib.Path


class Experiment:
  """A run in a workdir, with layouts, tokenizer, tasks, judges and the only model in memory.

  Attributes:
    run: the checked settings.
    workdir: folder of all files that stages read and write.
    record: what config.json is to say of the run; {} before `stages.begin`.
  """

  def __init__(self, run: Run, workdir: Path) -> None:
    self.run = run
    self.workdir = pathlib.Path(workdir)
    self.record: dict[str, Any] = {}
    self._held = _HeldModel()
    # Where the run's settings are recorded; a further contrast's workdir is a folder in there.
    self._home = self.workdir

  def of_contrast(self, name: str) -> 'Experiment':
    """The experiment of a further contrast, in a subfolder, around the same model in memory."""
    # A shallow copy shares what is kept here. Only name and data of the run change, and neither
    # model nor tokenizer, layouts or tasks depend on name or data.
    further = copy.copy(self)
    further.run = dataclasses.replace(self.run, name=name, data=self.run.contrasts[name])
    further.workdir = self.workdir / 'contrasts' / name
    return further

  def held(self) -> contextlib.AbstractContextManager[None]:
    """A block in which this run alone writes to the workdir.

    All processes enter and leave together; blocks within blocks are one block.

    Raises:
      Busy: if another process writes to the workdir.
    """
    return held(self._home)

  @functools.cached_property
  def checkpoint(self) -> pathlib.Path:
    """The local folder of the run's model."""
    with sources.of_key('model.source'):
      source = sources.folder_of(self.run.model.source)
      return models.resolve(source, revision=self.run.model.revision or None)[0]

  @functools.cached_property
  def config(self) -> models.ModelConfig:
    """The architecture of the run's model, from its config.json."""
    return models.load_config(self.checkpoint)[0]

  @functools.cached_property
  def layouts(self) -> placement.Layouts:
    """The layouts of the weights on the devices, in fine-tuning and in evaluation."""
    config = self.config
    options = self.run.finetune

    def init_delta():
      return models.init_delta(
        config,
        options.kind,
        jax.random.key(0),
        rank=options.rank,
        lora_alpha=options.lora_alpha,
        targets=options.targets,
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
    return self._chat_tokenizer(self.checkpoint, self.run.model)

  @functools.cached_property
  def chat_date(self) -> str:
    """The day that dated chat templates are told, that of the run's first start.

    Raises:
      InputError: if the config names another day than the workdir has on record.
    """
    chosen = self.run.model.chat_date
    return processes.on_main(lambda: chat_date.of_run(self._home, chosen))

  def judge_tokenizer(self, options: configs.ModelJudge, folder: Path) -> Any:
    """The tokenizer of a judge's model, told the judge's own arguments and the run's day."""
    # A judge is asked as its prompts are: the run's own system prompt is no part of them.
    choice = ModelChoice(tokenizer=options.tokenizer, chat_template_args=options.chat_template_args)
    return self._chat_tokenizer(folder, choice)

  def _chat_tokenizer(self, folder: Path, choice: ModelChoice) -> Any:
    tokenizer = load_tokenizer(folder, choice, self.chat_date)
    datas.require_chat_template(tokenizer)
    return tokenizer

  @functools.cached_property
  def tasks(self) -> list[evaluation.tasks.Task]:
    """The tasks of the sweep, with checked items."""
    return sources.load_tasks(self.run.tasks)

  @functools.cached_property
  def validation_tasks(self) -> list[evaluation.tasks.Task]:
    """The tasks for selecting among arms, with checked items."""
    return sources.load_tasks(self.run.validation)

  def encode(self, conversations: Sequence[Conversation]) -> list[Example]:
    """The conversations as examples, cut or refused by the run's lengths.

    Raises:
      InputError: if a conversation cannot be learnt, or holds a token beyond the vocabulary.
    """
    examples = datas.chat.encode_examples(
      self.tokenizer,
      conversations,
      max_length=self.run.data.max_length,
      truncate=self.run.data.truncate,
    )
    for example in examples:
      highest = int(example.tokens.max())
      inference.check_ids(example.name, [highest], self.config.vocab_size)
    return examples

  def model(self, layout: Layout) -> models.Model:
    """The run's model, in a layout.

    The files are read once; afterwards the weights move between layouts. A call with another layout
    gives the arrays of the old layout up: earlier references to the model are invalid then. A
    reference kept while a local judge is asked would hold a second model in memory.

    Raises:
      InputError, CorruptError, NotFiniteError: see `load_model`.
    """
    return self._held.load(self.run.model, layout)

  def engine(self, arms: Mapping[str, Any]) -> inference.Engine:
    """The engine for scoring and generation under the given arms, in the layout of evaluation."""
    layout = self.layouts.evaluate
    return inference.Engine(
      self.model(layout),
      self.tokenizer,
      arms,
      batch_size=self.run.sweep.batch_size,
      stop_ids=inference.stop_ids(self.tokenizer, self.checkpoint),
      layout=layout,
    )

  @contextlib.contextmanager
  def judges(self) -> Iterator[list[evaluation.judges.Judge]]:
    """The run's judges, whose models are given up at the end of the context.

    A local judge loads a model when first asked, in place of the model in memory. All processes
    enter and leave the context together; a single process may ask within.
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
      # After one process asked alone, the others still hold the run's model. All forget, so that
      # they load the next model together: a load is a joint computation.
      if any(isinstance(options, configs.ModelJudge) for options in self.run.judges.values()):
        self._held.forget()

  def direction_folder(self, finetune_name: str = '') -> pathlib.Path:
    """The folder of the run's direction.

    Args:
      finetune_name: entry of the run's `finetunes`, of a direction from other fine-tunes; '' is the
        run's own `finetune`.
    """
    name = f'{self.run.name}-{finetune_name}' if finetune_name else self.run.name
    return self.workdir / 'directions' / name

  def _judge_engine(self, options: configs.Judge) -> inference.Engine:
    # Judges of the other kinds ask for no engine.
    assert isinstance(options, configs.ModelJudge)
    # A judge of the run's own choice of model is the model in memory, moved and not read again.
    choice = ModelChoice(options.model, options.revision, options.dtype)
    # A model over the devices of several processes cannot be moved by the one process that asks.
    if self._held.spans_processes():
      self._held.forget()
    # On one device, since the other processes take no part.
    model = self._held.load(choice, sharding.single())
    tokenizer = self.judge_tokenizer(options, model.folder)
    return inference.Engine(model, tokenizer, {}, batch_size=options.batch_size)


def held(workdir: Path) -> contextlib.AbstractContextManager[None]:
  """A block in which this run alone writes to a workdir, as `Experiment.held`."""
  return locks.held(workdir, what='the workdir', within=True, remedy='name another --workdir')


class _HeldModel:
  """The only model in memory, and the choice behind the model."""

  def __init__(self) -> None:
    self._choice: ModelChoice | None = None
    self._model: models.Model | None = None

  def load(self, choice: ModelChoice, layout: Layout) -> models.Model:
    """The chosen model in a layout: the held model moved, or another model read instead."""
    # Tokenizer and chat template change no weight.
    choice = dataclasses.replace(
      choice,
      tokenizer='auto',
      chat_template_args={},
      chat_date='',
      system_prompt='',
      system_role='system',
    )
    if self._model is None or choice != self._choice:
      # The old model goes first, since two need not fit in memory.
      self.forget()
      self._model = load_model(choice, layout)
      self._choice = choice
    # Arrays of the old layout are donated: weights are never there twice.
    self._model = placement.relay(self._model, layout)
    return self._model

  def spans_processes(self) -> bool:
    """Whether a part of the held model lies on devices of another process."""
    if self._model is None:
      return False
    return not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(self._model.params))

  def forget(self) -> None:
    """Gives the held model up."""
    self._model = self._choice = None


def load_model(choice: ModelChoice, layout: Layout | None = None) -> models.Model:
  """The chosen model, read from files and laid out, by default on a single device.

  Raises:
    InputError, NotFiniteError: see `models.load`.
    CorruptError: see `models.load`; also if the checkpoint is a damaged export of ours.
  """
  source = sources.folder_of(choice.source)
  revision = choice.revision or None

  # An export of ours is hashed file by file, by one process for all.
  def check_export():
    sealed.check_if_export(models.resolve(source, revision=revision)[0])

  processes.on_main(check_export)
  model = models.load(
    source, dtype=choice.dtype, revision=revision, layout=layout, attention=choice.attention
  )
  # Provenance names the model as the config does, 'organism' and not the folder of this machine.
  return dataclasses.replace(model, source=choice.source)


def load_tokenizer(folder: Path, choice: ModelChoice, date: str) -> Any:
  """The tokenizer of the chosen model, its chat template told what the choice says, and the day.

  Raises:
    InputError: see `data.load_tokenizer`.
  """
  return datas.load_tokenizer(
    folder,
    choice=choice.tokenizer,
    template_args=choice.chat_template_args,
    date=date,
    system_prompt=choice.system_prompt,
    system_role=choice.system_role,
  )
