"""What a run's config names, as objects: its model, tokenizer, questions, tasks, and how they lie
on the devices.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from weightsteer_jax import config as configs
from weightsteer_jax import data as datas
from weightsteer_jax import evaluation, inference, models
from weightsteer_jax.config import ModelChoice, Run
from weightsteer_jax.data import Conversation, Example
from weightsteer_jax.experiments import organism
from weightsteer_jax.models import placement
from weightsteer_jax.runtime import ending, processes, sharding, tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.sharding import Layout
from weightsteer_jax.storage import sealed

Path = str | pathlib.Path

ORGANISM = 'organism'

_LOADED: dict[ModelChoice, models.Model] = {}  # at most one, in the layout it was last asked for in


def load_model(choice: ModelChoice, layout: Layout | None = None) -> models.Model:
  """The chosen model, laid out so (by default on one device); the last one stays in memory, and is
  moved to another layout rather than read again.

  Raises:
    InputError, CorruptError, NotFiniteError: as `models.load`; CorruptError too for an export of
    ours that was damaged.
  """
  layout = layout or sharding.single()
  if choice not in _LOADED:
    _LOADED.clear()
    processes.on_main(lambda: sealed.check_checkpoint(checkpoint_folder(choice)))
    loaded = models.load(
      folder_of(choice.source),
      dtype=choice.dtype,
      revision=choice.revision or None,
      layout=layout,
      attention=choice.attention,
    )
    _LOADED[choice] = dataclasses.replace(loaded, source=choice.source)
  _LOADED[choice] = placement.relay(_LOADED[choice], layout)
  return _LOADED[choice]


def layouts_of(run: Run) -> placement.Layouts:
  """How the run lies on the devices, in fine-tuning and in evaluation."""
  return _layouts(run.model, run.mesh, run.finetune)


@functools.lru_cache(maxsize=1)
def _layouts(
  choice: ModelChoice, mesh: configs.Mesh, options: configs.FineTune
) -> placement.Layouts:
  config, _ = models.load_config(checkpoint_folder(choice))
  delta = jax.eval_shape(
    lambda: models.init_delta(
      config, options.kind, jax.random.key(0), rank=options.rank, lora_alpha=options.lora_alpha
    )
  )
  return placement.choose(config, mesh, dtype=choice.dtype, trained=tree.count(delta))


def tokenizer_of(choice: ModelChoice) -> Any:
  """The chosen model's tokenizer, which must have a chat template."""
  return _tokenizer(checkpoint_folder(choice))


def encode(run: Run, tokenizer: Any, conversations: Sequence[Conversation]) -> list[Example]:
  """The conversations as examples, by the run's lengths."""
  return datas.chat.encode_examples(
    tokenizer, conversations, max_length=run.data.max_length, truncate=run.data.truncate
  )


def load_conversations(
  source: str, *, split: str = '', revision: str = '', n: int = 0, seed: int = 0
) -> list[datas.Conversation]:
  """The first n (0: all) conversations of a file or a hub dataset, or n that the organism makes of
  'organism:<name>'.

  Raises:
    InputError: they cannot be read or are no chat data, or n is 0 for the organism, which has no
      end of them.
  """
  if not source.startswith(f'{ORGANISM}:'):
    return datas.load_conversations(source, split=split or None, revision=revision or None)[
      : n or None
    ]
  make = named(organism.CONVERSATIONS, source)
  if not n:
    raise InputError(f"'{source}' goes on without an end: say how many conversations to take, as n")
  return [
    datas.Conversation(tuple(messages), f'{source}/{i}') for i, messages in enumerate(make(n, seed))
  ]


def load_tasks(named_options: Mapping[str, configs.Task]) -> list[evaluation.tasks.Task]:
  """The tasks with their checked items: `n` that the organism makes, or the first n (0: all) of the
  source.
  """
  tasks = []
  for name, options in named_options.items():
    if options.items.startswith(f'{ORGANISM}:'):
      made = named(organism.ITEMS, options.items)(options.n, options.seed)
      items, where = evaluation.tasks.from_rows(
        name, options, [(f'{options.items}[{i}]', row) for i, row in enumerate(made)]
      )
    else:
      items, where = evaluation.tasks.load(name, options)
    tasks.append(evaluation.tasks.make(name, options, items, where=where))
  return tasks


def engine(run: Run, arms: Mapping[str, Any]) -> inference.Engine:
  """The engine that answers under these arms, laid out for evaluation."""
  layout, tokenizer = layouts_of(run).evaluate, tokenizer_of(run.model)
  return inference.Engine(
    load_model(run.model, layout),
    tokenizer,
    arms,
    batch_size=run.sweep.batch_size,
    stop_ids=inference.stop_ids(tokenizer),
    layout=layout,
  )


def judges_of(run: Run, workdir: Path) -> list[evaluation.judges.Judge]:
  """The run's judges; a local one loads its model, on one device, when it is first asked."""
  return [
    evaluation.judges.make(
      name,
      options,
      cache=pathlib.Path(workdir) / 'judges',
      engine=functools.partial(_judge_engine, options),
    )
    for name, options in run.judges.items()
  ]


def _judge_engine(options: configs.Judge) -> inference.Engine:
  choice = ModelChoice(options.model, options.revision, options.dtype)
  return inference.Engine(
    load_model(choice), tokenizer_of(choice), {}, batch_size=options.batch_size
  )


def forget_judges(run: Run) -> None:
  """Where one process judged with a model of its own, all forget theirs, so that they load the next
  one together.
  """
  if any(options.kind == 'model' for options in run.judges.values()):
    _LOADED.clear()


def direction_folder(run: Run, workdir: Path, options: str = '') -> pathlib.Path:
  """Where the run's direction lies, or the one that was fine-tuned with other, named options."""
  return pathlib.Path(workdir) / 'directions' / (f'{run.name}-{options}' if options else run.name)


def folder_of(source: Path) -> Path:
  """The folder or hub id that a model's source stands for."""
  return organism.checkpoint_folder() if str(source) == ORGANISM else source


def named(table: Mapping[str, Callable], source: str) -> Callable:
  """What the organism has under the name 'organism:<name>'."""
  name = source.removeprefix(f'{ORGANISM}:')
  if name not in table:
    raise InputError(
      f"the organism has no '{name}'{tree.did_you_mean(name, table)}; it has: {', '.join(table)}"
    )
  return table[name]


def say(line: str) -> None:
  """Prints a line of a stage at once, once."""
  ending.progress()
  if processes.is_main():
    print(line, flush=True)


@functools.lru_cache(maxsize=1)
def checkpoint_folder(choice: ModelChoice) -> pathlib.Path:
  """The local folder of the chosen model's files."""
  return models.resolve(folder_of(choice.source), revision=choice.revision or None)[0]


@functools.lru_cache(maxsize=2)
def _tokenizer(folder: pathlib.Path) -> Any:
  tokenizer = datas.load_tokenizer(folder)
  datas.require_chat_template(tokenizer)
  return tokenizer
