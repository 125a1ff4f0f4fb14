"""A model and its directions, loaded for requests that come one by one."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from weightsteer_jax import config as configs
from weightsteer_jax import directions, inference, models
from weightsteer_jax.config import ModelChoice
from weightsteer_jax.data.batches import round_up
from weightsteer_jax.experiments import sources
from weightsteer_jax.experiments.experiment import load_model, load_tokenizer
from weightsteer_jax.inference.live import Live
from weightsteer_jax.interfaces.serving import strengths
from weightsteer_jax.interfaces.serving.bodies import Served
from weightsteer_jax.models import placement
from weightsteer_jax.runtime.errors import InputError

# Positions of a row by default, at most: a cache of more is seldom wanted on a small machine.
MOST_POSITIONS = 2048


class Loaded(NamedTuple):
  """What requests are answered with."""

  served: Served
  engine: inference.Engine
  live: Live
  steering: Mapping[str, directions.Direction]


def load(
  choice: ModelChoice,
  folders: Mapping[str, str],
  *,
  name: str = '',
  slots: int,
  max_length: int = 0,
  mesh: str = 'auto',
) -> Loaded:
  """The model with its directions.

  Args:
    folders: {name: folder} of the directions.
    name: the model's name to clients; '' is the last part of its source.
    slots: answers that are generated together.
    max_length: positions of a prompt and its answer; 0 is the model's own, at most MOST_POSITIONS.
    mesh: see `config.Mesh.shape`.

  Raises:
    InputError: if the model or a direction cannot be used; before weights are read wherever it can
      be known.
  """
  steering = _directions(folders)
  folder, _ = models.resolve(sources.folder_of(choice.source), revision=choice.revision or None)
  config, _ = models.load_config(folder)
  max_length = max_length or min(config.max_positions, MOST_POSITIONS)
  if max_length > config.max_positions:
    raise InputError(
      f'--max_length={max_length}: the model has {config.max_positions} positions; lower it'
    )
  on = configs.Mesh(shape=mesh)
  layout = placement.choose(config, on, dtype=choice.dtype).evaluate
  if slots % layout.rows:
    raise InputError(
      f'--slots={slots}: the mesh shares them between {layout.rows} groups of devices; take a '
      f'multiple of {layout.rows}, as {round_up(slots, layout.rows)} is'
    )
  model = load_model(choice, layout)
  for direction in steering.values():
    directions.check_base(direction, model)

  @functools.lru_cache(maxsize=8)
  def tokenizer_of(arguments: str) -> Any:
    told = {**choice.chat_template_args, **json.loads(arguments)}
    with_arguments = dataclasses.replace(choice, chat_template_args=told)
    return load_tokenizer(folder, with_arguments, choice.chat_date)

  tokenizer = tokenizer_of('{}')
  engine = inference.Engine(
    model,
    tokenizer,
    {name: [(direction.delta, None)] for name, direction in steering.items()},
    batch_size=slots,
    stop_ids=inference.stop_ids(tokenizer, folder),
    layout=layout,
  )
  live = Live(engine, slots=slots, max_length=max_length)
  name = name or str(choice.source).rstrip('/').split('/')[-1]
  served = Served(
    name=name,
    directions=tuple(steering),
    tokenizer_for=lambda arguments: tokenizer_of(json.dumps(dict(arguments), sort_keys=True)),
    max_length=max_length,
    vocab_size=config.vocab_size,
    stop_ids=engine.stop_ids,
    bos=_puts_bos(tokenizer),
  )
  return Loaded(served, engine, live, steering)


def _directions(folders: Mapping[str, str]) -> dict[str, directions.Direction]:
  """{name: direction}, before any model is read."""
  loaded = {}
  for name, folder in folders.items():
    if not name or any(mark in name for mark in (strengths.AT, strengths.AND, strengths.IS)):
      raise InputError(
        f"--direction: '{name}' cannot be a direction's name, which stands in a model's name as "
        f'in MODEL{strengths.AT}NAME{strengths.IS}-0.5'
      )
    loaded[name] = directions.load(sources.direction_folder(folder))
  return loaded


def _puts_bos(tokenizer: Any) -> bool:
  """Whether the tokenizer itself begins raw texts with its token for that."""
  first = tokenizer('a')['input_ids'][:1]
  return tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
