"""The update of a fine-tune: a spectrum for each matrix, and how the fine-tune was made."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from weightsteer_jax import directions, models
from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions import spectra
from weightsteer_jax.directions.between import CHECKPOINT, BaseSource, OpenBase, recognise
from weightsteer_jax.directions.spectra import Spectrum
from weightsteer_jax.directions.streamed import checkpoints
from weightsteer_jax.experiments.monitoring import changes, measure, trajectory
from weightsteer_jax.experiments.monitoring.changes import Change
from weightsteer_jax.models import LowRank
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import listed
from weightsteer_jax.storage import files

# (kind of module, layer, expert); None outside the stack, and without experts.
Where = tuple[str, int | None, int | None]
# Of a run of ours, the options that say how it was trained; the data and the seed may differ.
_TRAINING = (
  'learning_rate',
  'step',
  'batch_size',
  'accumulation',
  'warmup_steps',
  'weight_decay',
  'clip_norm',
  'dropout',
  'beta1',
  'beta2',
  'epsilon',
)
# What transformers' Trainer writes beside an adapter or a checkpoint, and the names of its entries.
_TRAINER = 'trainer_state.json'
_TRAINER_ENTRIES = {'global_step': 'step', 'train_batch_size': 'batch_size'}


@dataclasses.dataclass(frozen=True)
class Update:
  """What a fine-tune changed.

  Attributes:
    spectra: {place: spectrum of the matrix there}.
    method: how the update is built: kind, rank, alpha, modules. Updates that differ here have
      spectra that cannot be compared.
    training: how it was trained, as far as recorded: optimizer, steps, batch size.
  """

  folder: pathlib.Path
  spectra: Mapping[Where, Spectrum]
  method: Mapping[str, Any]
  training: Mapping[str, Any]


@contextlib.contextmanager
def opened_base(base: BaseSource) -> Iterator[OpenBase]:
  """The base, open; its weights are not read for a digest, which may take minutes.

  The spectra of an adapter need only the base's architecture.
  """
  if isinstance(base, OpenBase):
    yield base
    return
  source = base.folder if isinstance(base, models.Model) else base
  with checkpoints.open_checkpoint(source) as checkpoint:
    record = bases.Base(
      config=checkpoint.config,
      family=checkpoint.family.model_type,
      source=checkpoint.source,
      revision=checkpoint.revision,
      digest='',
    )
    yield OpenBase(checkpoint, record)


def read(fine_tune: files.Path, base: OpenBase, *, allow_other_base: bool = False) -> Update:
  """The update of a run of ours, an adapter or a full checkpoint.

  Raises:
    InputError: if the folder holds no fine-tune of the base, or the fine-tune changed nothing.
    CorruptError: if a file was cut short or damaged.
    NotFiniteError: if a value is NaN or infinite.
  """
  folder = pathlib.Path(fine_tune).expanduser()
  kind = recognise(folder).kind
  sites = models.sites(base.record.config)
  found: dict[Where, Spectrum] = {}
  ranks: set[int | None] = set()
  with _open(folder, kind, base, allow_other_base) as (change, record):
    for path in change.paths():
      inputs = sites[path].inputs if path in sites else 0
      for first, leaf in change.pieces(path):
        spectra_of_leaf = list(spectra.of_leaf(path, leaf, inputs))
        # A parameter that a checkpoint left alone is no part of its update.
        if kind != CHECKPOINT or any(spectrum.square for spectrum in spectra_of_leaf):
          found |= _placed(path, first, changes.num_layers(path, leaf), spectra_of_leaf)
          ranks.add(leaf.a.shape[-1] if isinstance(leaf, LowRank) else None)
  if not any(spectrum.square for spectrum in found.values()):
    raise InputError(f"{folder} changes nothing of '{base.record.source}': nothing to audit")
  return Update(folder, found, _method(kind, record, found, ranks), _training(folder, record))


def folders_of(good: Sequence[files.Path]) -> list[pathlib.Path]:
  """The folders of the good fine-tunes: each one named, or all that lie in a folder named.

  Raises:
    InputError: if a folder is missing, holds no fine-tune, or is named twice.
  """
  folders: list[pathlib.Path] = []
  for path in good:
    folder = pathlib.Path(path).expanduser()
    if _is_fine_tune(folder):
      folders.append(folder)
      continue
    if not folder.is_dir():
      raise InputError(f'no folder {folder}{files.path_hint(folder)}, named among the good ones')
    inside = [path for path in sorted(folder.iterdir()) if _is_fine_tune(path)]
    if not inside:
      names = listed(sorted(path.name for path in folder.iterdir()), 6)
      raise InputError(
        f'{folder}, named among the good ones, is no fine-tune and holds none; it holds: '
        f'{names or "nothing"}'
      )
    folders += inside
  resolved = [folder.resolve() for folder in folders]
  for folder in folders:
    if resolved.count(folder.resolve()) > 1:
      raise InputError(f'{folder} is named twice among the good ones')
  return folders


def _is_fine_tune(folder: pathlib.Path) -> bool:
  try:
    recognise(folder)
  except InputError:
    return False
  return True


@contextlib.contextmanager
def _open(
  folder: pathlib.Path, kind: str, base: OpenBase, allow_other_base: bool
) -> Iterator[tuple[Change, Mapping[str, Any]]]:
  """The change, and what the fine-tune's own files say of it."""
  if kind == CHECKPOINT:
    step = trajectory.Step(0, kind, folder)
    # Layer by layer, so that never more than a layer of each of the two is in memory.
    with trajectory.open_change(step, folder, base, allow_other_base=allow_other_base) as change:
      yield change, {'kind': 'full'}
    return
  vector = directions.task_vector(folder, base, allow_other_base=allow_other_base)
  (source,) = vector.meta['sources']
  yield changes.Held(vector.delta), source['meta']


def _placed(path: str, first: int, layers: int, found: Sequence[Spectrum]) -> dict[Where, Spectrum]:
  """{place: spectrum} of the matrices of a piece, layers first and experts within."""
  module = measure.module_of(path)
  experts = len(found) // layers
  stack = models.stack_axes(path)
  placed: dict[Where, Spectrum] = {}
  for index, spectrum in enumerate(found):
    layer, expert = divmod(index, experts)
    where = (module, first + layer if stack else None, expert if 'E' in stack else None)
    placed[where] = spectrum
  return placed


def _method(
  kind: str, record: Mapping[str, Any], found: Mapping[Where, Spectrum], ranks: set[int | None]
) -> dict[str, Any]:
  config = record.get('config', {})
  # PEFT says 'LORA' where a run of ours says 'lora': the same method.
  made_by = str(record.get('kind') or config.get('peft_type') or kind).lower()
  if config.get('use_dora'):
    made_by = 'dora'
  # The modules that were changed, not the names in a config: 'all-linear' is many names.
  modules = sorted({module for module, _, _ in found})
  return {
    'kind': made_by,
    'rank': sorted(rank for rank in ranks if rank is not None),
    'alpha': record.get('lora_alpha', config.get('lora_alpha')),
    'rslora': bool(config.get('use_rslora')),
    'modules': modules,
  }


def _training(folder: pathlib.Path, record: Mapping[str, Any]) -> dict[str, Any]:
  """The settings of the training that are on record."""
  recorded = {**record.get('options', {}), **record}
  training = {name: recorded[name] for name in _TRAINING if name in recorded}
  config = record.get('config', {})
  if 'lora_dropout' in config:
    training['dropout'] = config['lora_dropout']
  state = folder / _TRAINER
  if state.is_file():
    entries = files.read_json(state, what="the state of transformers' Trainer")
    for theirs, ours in _TRAINER_ENTRIES.items():
      if entries.get(theirs) is not None:
        training[ours] = entries[theirs]
  return training
