"""The identity of a fine-tune, and the claim of a workdir by one fine-tune."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax import config, models
from weightsteer_jax.data import Example
from weightsteer_jax.finetune import adapter
from weightsteer_jax.runtime import processes, tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import files
from weightsteer_jax.storage.versions import versions

OPTIONS = 'options.json'
# Keys that say how a fine-tune is computed, not what: a run may go on with other values.
NOT_COMPARED = ('options.remat', 'options.together', 'versions.')
# What the data's digest comes from: told where something differs, and not compared by itself.
TOLD = 'chat.'


def identity(
  model: models.Model,
  train: Sequence[Example],
  validation: Sequence[Example],
  options: config.FineTune,
  *,
  seed: int,
  row_length: int,
  chat: Mapping[str, Any],
) -> dict[str, Any]:
  """What a run is a function of, as JSON values.

  Args:
    chat: what the chat template was told, an entry of the record where it is not empty.
  """
  base = adapter.describe_base(model)
  # The model's digest counts, and not where the model was read from.
  del base['base'], base['base_revision']
  compared = {
    key: value
    for key, value in dataclasses.asdict(options).items()
    if f'options.{key}' not in NOT_COMPARED
  }
  # Absent where it names none, as in records of earlier versions.
  if not options.targets:
    del compared['targets']
  record = {
    'options': compared,
    'seed': seed,
    'row_length': row_length,
    'num_train': len(train),
    'train_digest': data_digest(train),
    'num_validation': len(validation),
    'validation_digest': data_digest(validation),
    **base,
  }
  if chat:
    record['chat'] = dict(chat)
  # As the record comes back from a file: tuples as lists.
  return json.loads(json.dumps(record))


def data_digest(examples: Sequence[Example]) -> str:
  """16 hex digits that name the tokens, the masks and the order of examples."""
  sha = hashlib.sha256()
  for example in examples:
    # The length keeps two short examples apart from one long one.
    sha.update(np.int64(len(example)).tobytes())
    sha.update(np.asarray(example.tokens, np.int32).tobytes())
    sha.update(np.asarray(example.loss_mask, bool).tobytes())
  return sha.hexdigest()[:16]


def claim(workdir: pathlib.Path, mine: Mapping[str, Any]) -> None:
  """Makes the workdir this run's by writing options.json, unless it is already.

  Every process calls this.

  Raises:
    InputError: if the workdir holds another fine-tune, or if the processes' fine-tunes differ;
      lists what differs.
  """
  processes.agree(tree.dotted(mine), what='what a fine-tune is made from')
  processes.on_main(lambda: _claim(workdir, mine))


def _claim(workdir: pathlib.Path, mine: Mapping[str, Any]) -> None:
  path = workdir / OPTIONS
  if not path.exists():
    files.refuse_existing(workdir / 'adapter', what='a fine-tune')
    files.refuse_existing(workdir / 'checkpoints', what='a fine-tune')
    files.write_json(path, {**mine, 'versions': versions(*adapter.PACKAGES)})
    return
  there = tree.dotted(files.read_json(path, what='the options of a fine-tune'))
  here = tree.dotted(mine)
  differing: list[str] = []
  told: list[str] = []
  for key in sorted({*there, *here}):
    if key.startswith(NOT_COMPARED) or there.get(key) == here.get(key):
      continue
    line = f'  {key}: {there.get(key)!r} there, {here.get(key)!r} now'
    (told if key.startswith(TOLD) else differing).append(line)
  if differing:
    about = (
      f'{workdir} holds another fine-tune: name another workdir, or move it away. What differs:'
    )
    raise InputError('\n'.join([about, *differing, *told]))
