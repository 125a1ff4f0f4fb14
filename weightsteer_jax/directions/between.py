"""Directions between two fine-tunes: runs of ours, PEFT adapters, or full checkpoints.

The direction of a behaviour is `w = (theta_positive - theta_base) - (theta_negative - theta_base)`.
Two adapters of the same base give w exactly, as factors of rank r+ + r-:

  A = [A+ | A-]     B = [s+ B+ ; -s- B-]     with the scales s+ and s- of the adapters

Two checkpoints give w dense, in float32. Where one of the two is the base itself, w is the other's
change, or its reverse.

Source: arXiv 2511.05408, equation 1.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import adapters, algebra, bfloat16_route, named_bases
from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions.direction import Direction
from weightsteer_jax.directions.streamed import checkpoints, computed
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.finetune.adapter import load_adapter
from weightsteer_jax.models import Dense, gguf
from weightsteer_jax.runtime import hashes, tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import listed
from weightsteer_jax.runtime.progress import say
from weightsteer_jax.storage import files

PyTree = Any
RUN = 'run'
PEFT = 'peft'
CHECKPOINT = 'checkpoint'
BASE = 'base'
DESCRIPTIONS = {
  RUN: 'a fine-tune of ours',
  PEFT: 'a PEFT adapter',
  CHECKPOINT: 'a full checkpoint',
  BASE: 'the base',
}


@dataclasses.dataclass(frozen=True)
class OpenBase:
  """The open checkpoint of a base, and the base's record.

  The digest in the record takes a pass over all weights, so several sources share one open base.
  """

  checkpoint: Checkpoint
  record: bases.Base


BaseSource = str | pathlib.Path | models.Model | OpenBase


@dataclasses.dataclass(frozen=True)
class Source:
  """A side of a direction on disk.

  Attributes:
    kind: 'run', 'peft', 'checkpoint' or 'base', a key of DESCRIPTIONS.
    folder: of a run, the folder with adapter.json in it; '.' of a base that was not named.
  """

  kind: str
  folder: pathlib.Path


def between(
  positive: files.Path | None,
  negative: files.Path | None = None,
  *,
  base: BaseSource | None = None,
  allow_other_base: bool = False,
  compare_bfloat16: bool = False,
  unread: bool = False,
) -> Direction:
  """The direction that points from the negative fine-tune to the positive.

  Args:
    positive, negative: two full checkpoints, or two adapters, each a run folder of ours or a PEFT
      adapter folder. One of the two may be the base of the other: its folder, or None.
    base: the model that both were trained on. Runs of ours need none. PEFT adapters need the base
      where the model that they name cannot be found. With checkpoints, the base tells the
      direction's model from others of the same architecture.
    allow_other_base: go on where the two, or the two and `base`, name different bases of the same
      architecture.
    compare_bfloat16: also measure the route over merged bfloat16 checkpoints (see
      bfloat16_route.bfloat16_route).
    unread: leave dense changes of kernels on disk, to be read or computed when the direction is
      saved, exported or used: of two checkpoints, and of adapters that are no plain LoRA.

  Raises:
    InputError: if a source is missing or not supported, or the two do not go together.
    CorruptError: if a source was cut short or damaged.
  """
  sources = _sources(positive, negative)
  are_checkpoints = CHECKPOINT in {source.kind for source in sources}
  if are_checkpoints and compare_bfloat16:
    raise InputError(
      'the bfloat16 route can be compared for adapters only; these are checkpoints: their '
      'difference is that route already'
    )
  # A base that stands as one side is the base of the other.
  if base is None:
    base = _base_side(sources)
  if are_checkpoints and base is None and BASE in {source.kind for source in sources}:
    raise InputError(
      f'{positive or negative} is a full checkpoint: what it changed is only known with the base '
      'it was trained from; pass that as base, or as the other side'
    )
  with open_base(sources, base, allow_other_base) as opened:
    # theta_base cancels out between two checkpoints: w = theta_positive - theta_negative.
    if are_checkpoints:
      return _between_checkpoints(sources, opened, unread)
    _check_base_side(sources, opened)
    x, y = _task_vectors(sources, opened, allow_other_base)
    # The bases are compared here, where an error can name both folders, so `subtract` need not.
    what = f'{positive} and {negative}'
    bases.same_base(x.base, y.base, what=what, allow_other_base=allow_other_base)
    changes = _without_zeros(_subtract(x, y, unread))
    delta = _not_empty(changes, positive or x.base.source, negative or y.base.source)
    meta = _meta(x.base, [*x.meta['sources'], *y.meta['sources']])
    # Measured on the two task vectors: the route rounds each of the two merged models.
    if compare_bfloat16:
      with _reopened(opened, x.base) as checkpoint:
        meta['bfloat16_route'] = bfloat16_route.bfloat16_route(x.delta, y.delta, checkpoint)
    return Direction(delta, meta)


def _subtract(x: Direction, y: Direction, unread: bool) -> PyTree:
  """The delta of x minus that of y; computed changes stay computed if left unread."""
  if unread and (computed.is_computed(x.delta) or computed.is_computed(y.delta)):
    family = models.FAMILIES[x.base.family]
    return computed.subtract(x.delta, y.delta, x.base.config, family)
  return computed.in_memory(algebra.subtract(x, y, allow_other_base=True).delta)


def _sources(positive: files.Path | None, negative: files.Path | None) -> tuple[Source, Source]:
  """Both sides; a checkpoint beside an adapter is the base, and so is a side that is left out.

  Raises:
    InputError: if both are left out, or both are the same folder.
  """
  if not positive and not negative:
    raise InputError('a direction needs a fine-tune: pass positive, negative or both')
  x = recognise(positive) if positive else Source(BASE, pathlib.Path())
  y = recognise(negative) if negative else Source(BASE, pathlib.Path())
  # Links are resolved: two names of one folder would give a direction of zero.
  if x.folder.resolve() == y.folder.resolve():
    raise InputError(
      f'positive and negative are both {x.folder}: there is no direction between a model and itself'
    )
  # A run and a PEFT adapter go together: both are changes of one base.
  if x.kind in (RUN, PEFT) and y.kind == CHECKPOINT:
    y = Source(BASE, y.folder)
  if y.kind in (RUN, PEFT) and x.kind == CHECKPOINT:
    x = Source(BASE, x.folder)
  return x, y


def _base_side(sources: tuple[Source, Source]) -> pathlib.Path | None:
  """The folder of the base that stands as one side; None if there is none, or none was named."""
  for source in sources:
    if source.kind == BASE and source.folder != pathlib.Path():
      return source.folder
  return None


def _check_base_side(sources: tuple[Source, Source], opened: OpenBase | None) -> None:
  """Raises InputError if the checkpoint beside an adapter holds other weights than the base."""
  folder = _base_side(sources)
  if folder is None or opened is None:
    return
  if folder.resolve() == opened.checkpoint.folder.resolve():
    return
  with checkpoints.open_checkpoint(folder) as checkpoint:
    record = checkpoint.base()
  if record.digest != opened.record.digest or record.config != opened.record.config:
    (fine_tune,) = [source for source in sources if source.kind != BASE]
    raise InputError(
      f'{fine_tune.folder} is {DESCRIPTIONS[fine_tune.kind]} and {folder} is a full checkpoint, '
      f"which is not the base '{opened.record.source}': pass two adapters, an adapter and its "
      'base, or two checkpoints (merge the adapter into its base in float32 first)'
    )


def _task_vectors(
  sources: tuple[Source, Source], opened: OpenBase | None, allow_other_base: bool
) -> tuple[Direction, Direction]:
  """The changes of both sides; a base has changed nothing."""
  made = {}
  read = {source: adapters.read(source.folder) for source in sources if source.kind == PEFT}
  if len(read) == 2 and opened is not None:
    x, y = read.values()
    read = dict(zip(read, adapters.without_new_rows(x, y, opened.checkpoint)))
  # A start that both took out of the base cancels out of their difference.
  shared = adapters.shared(*read.values()) if len(read) == 2 else frozenset()
  for index, source in enumerate(sources):
    if source.kind == PEFT:
      made[index] = _of_adapter(source, read[source], opened, shared)
    elif source.kind != BASE:
      made[index] = _task_vector(source, opened, allow_other_base)
  # Of a base as one side, all that is known is the record that the other side has of it.
  record = next(iter(made.values())).meta['base']
  for index, source in enumerate(sources):
    if source.kind == BASE:
      named = source.folder != pathlib.Path()
      path = str(source.folder) if named else record['source']
      origin: dict[str, Any] = {'kind': BASE, 'path': path, 'meta': {}}
      meta = {'kind': 'task_vector', 'base': record, 'sources': [origin]}
      made[index] = Direction({}, meta)
  return made[0], made[1]


def base_for(source: files.Path, base: files.Path) -> files.Path | None:
  """The base to pass to `between` with this source: None for a full checkpoint."""
  # Two checkpoints give a direction without a base, which would be read whole, only to be named.
  return None if recognise(source).kind == CHECKPOINT else base


def task_vector(
  fine_tune: files.Path, base: BaseSource | None = None, *, allow_other_base: bool = False
) -> Direction:
  """The change of one fine-tune: an adapter's exact factors, or a checkpoint minus `base`.

  Raises:
    InputError: if `between` would raise it, or a checkpoint comes without `base`.
  """
  source = recognise(fine_tune)
  if source.kind == CHECKPOINT and base is None:
    raise InputError(
      f'{fine_tune} is a full checkpoint: what it changed is only known with the base it was '
      'trained from; pass base'
    )
  with open_base((source,), base, allow_other_base) as opened:
    vector = _task_vector(source, opened, allow_other_base)
  return dataclasses.replace(vector, delta=computed.in_memory(vector.delta))


def recognise(fine_tune: files.Path) -> Source:
  """The kind of fine-tune in a folder.

  Raises:
    InputError: if the folder is missing, or holds no fine-tune.
  """
  folder = pathlib.Path(fine_tune).expanduser()
  if gguf.is_gguf(folder):
    return Source(CHECKPOINT, folder)
  if not folder.is_dir():
    raise InputError(
      f'no folder {folder}{files.path_hint(folder)}; expected a run of ours, a PEFT adapter, a '
      'checkpoint or a GGUF file'
    )
  # An adapter that was cut short has tensors and no manifest; reading it names the damage.
  for adapter in (folder / 'adapter', folder):
    if (adapter / 'adapter.json').exists() or (adapter / 'adapter.safetensors').exists():
      return Source(RUN, adapter)
  # Before checkpoints: a training folder may hold the config of the base beside the adapter.
  if adapters.is_adapter(folder):
    return Source(PEFT, folder)
  own = sorted(str(path.parent) for path in folder.glob('finetune/*/adapter'))
  if own:
    raise InputError(
      f'{folder} is the workdir of a run: name one of its fine-tunes, {listed(own, 6)}'
    )
  if (folder / 'config.json').exists():
    return Source(CHECKPOINT, folder)
  names = sorted(path.name for path in folder.iterdir())
  last = _last_checkpoint(folder)
  if last is not None:
    raise InputError(
      f'{folder} holds the checkpoints of a training, and no fine-tune of its own (did you mean '
      f"'{last}'?)"
    )
  raise InputError(
    f'{folder} is no source of a direction: expected a finished run of ours '
    f'(adapter/adapter.json), a PEFT adapter ({adapters.CONFIG}) or a Hugging Face checkpoint '
    f'(config.json); it holds {listed(names, 6) or "nothing"}'
  )


def _last_checkpoint(folder: pathlib.Path) -> pathlib.Path | None:
  """The last 'checkpoint-100' in the output folder of transformers' Trainer, None in others."""
  steps = {}
  for path in folder.glob('checkpoint-*'):
    step = path.name.removeprefix('checkpoint-')
    if step.isdecimal() and (adapters.is_adapter(path) or (path / 'config.json').exists()):
      steps[int(step)] = path
  return steps[max(steps)] if steps else None


@contextlib.contextmanager
def open_base(
  sources: Iterable[Source], base: BaseSource | None, allow_other_base: bool = False
) -> Iterator[OpenBase | None]:
  """Opens the given base, or the base that PEFT adapters name; None where none is needed.

  A base that was open before stays open afterwards.

  Raises:
    InputError: if adapters name different bases, or no base that can be found.
  """
  if isinstance(base, OpenBase):
    yield base
    return
  named = _named_bases(sources)
  # Without `base`, nothing says which of several named bases is meant.
  may_differ = base is not None and allow_other_base
  if len(set(named.values())) > 1 and not may_differ:
    lines = '; '.join(f"{folder} names '{name}'" for folder, name in named.items())
    raise InputError(
      f'the adapters belong to different base models: {lines}. If both are the same model, pass it '
      'as base and allow it with allow_other_base'
    )
  if base is None and not named:
    yield None
    return
  with _open_checkpoint(base, named) as checkpoint:
    # Reads all weights, for the digest.
    record = checkpoint.base()
    if base is not None:
      named_bases.check(named, checkpoint, record, allow_other_base=allow_other_base)
    yield OpenBase(checkpoint, record)


@contextlib.contextmanager
def _open_checkpoint(
  base: str | pathlib.Path | models.Model | None, named: dict[pathlib.Path, str]
) -> Iterator[Checkpoint]:
  if isinstance(base, models.Model):
    # The record calls the base by the name that the user gave, not by the folder of its files.
    with checkpoints.open_checkpoint(base.folder) as checkpoint:
      yield dataclasses.replace(checkpoint, source=base.source, revision=base.revision)
    return
  if base is None:
    # By now all adapters name the same base, so the first speaks for all.
    folder, base = next(iter(named.items()))
    if not base:
      raise InputError(f'{folder} is an adapter that names no base model; pass it as base')
    # Resolved first, to name the adapter in the error: the user never typed this base.
    try:
      models.resolve(base)
    except InputError as error:
      raise InputError(
        f'{folder} is an adapter of a base model that is needed and could not be opened; pass it '
        f'as base. {error}'
      ) from error
  with checkpoints.open_checkpoint(base) as checkpoint:
    yield checkpoint


@contextlib.contextmanager
def _reopened(opened: OpenBase | None, record: bases.Base) -> Iterator[Checkpoint]:
  # Runs of ours need no base, so perhaps none is open yet.
  if opened is not None:
    yield opened.checkpoint
    return
  source = f'{record.source}@{record.revision}' if record.revision else record.source
  with checkpoints.open_checkpoint(source) as checkpoint:
    # The folder may hold another model than when the runs were trained.
    bases.same_base(record, checkpoint.base(), what='the runs and the base they name')
    yield checkpoint


def _named_bases(sources: Iterable[Source]) -> dict[pathlib.Path, str]:
  """{folder: base named in the config, with '@revision' if any} of the PEFT adapters."""
  named = {}
  for source in sources:
    if source.kind == PEFT:
      config = adapters.read_config(source.folder)
      # PEFT writes null for a field that was never set.
      name = config.get('base_model_name_or_path') or ''
      revision = config.get('revision')
      named[source.folder] = f'{name}@{revision}' if revision else str(name)
  return named


def _task_vector(source: Source, opened: OpenBase | None, allow_other_base: bool) -> Direction:
  meta: dict[str, Any] = {}
  if source.kind == RUN:
    delta, record, meta = _read_run(source, opened, allow_other_base)
  else:
    # A PEFT adapter names a base, and `task_vector` refuses a checkpoint without one.
    assert opened is not None
    record = opened.record
    if source.kind == PEFT:
      return _of_adapter(source, adapters.read(source.folder), opened)
    with checkpoints.open_checkpoint(source.folder) as checkpoint:
      changes = checkpoints.difference(checkpoint, opened.checkpoint)
    delta = _not_empty(changes, source.folder, opened.checkpoint.source)
  return _vector(source, delta, record, meta)


def _of_adapter(
  source: Source,
  adapter: adapters.Adapter,
  opened: OpenBase | None,
  shared: frozenset[str] = frozenset(),
) -> Direction:
  # A PEFT adapter names a base, or is refused without one.
  assert opened is not None
  delta = adapters.to_delta(adapter, opened.checkpoint, shared=shared)
  meta = {'config': adapter.config, 'sha256': hashes.of_file(adapter.file)}
  meta |= adapters.read_by(adapter)
  return _vector(source, delta, opened.record, meta)


def _vector(
  source: Source, delta: PyTree, record: bases.Base, meta: Mapping[str, Any]
) -> Direction:
  models.check_delta(record.config, delta)
  origin = {'kind': source.kind, 'path': str(source.folder), 'meta': meta}
  return Direction(
    delta,
    {'kind': 'task_vector', 'base': record.to_json(), 'sources': [origin]},
  )


def _read_run(
  source: Source, opened: OpenBase | None, allow_other_base: bool
) -> tuple[PyTree, bases.Base, dict[str, Any]]:
  delta, meta = load_adapter(source.folder)
  record = bases.Base(
    config=bases.config_from_json(meta['model_config'], where=str(source.folder)),
    family=meta['base_family'],
    source=meta['base'],
    revision=meta['base_revision'],
    digest=meta['base_digest_bfloat16'],
  )
  if opened is not None:
    what = f"{source.folder} and the base '{opened.record.source}'"
    bases.same_base(record, opened.record, what=what, allow_other_base=allow_other_base)
  # Left out: the adapter's own fingerprints, and what the direction's record of its base repeats.
  dropped = ('fingerprints', 'model_config', 'leaves', 'format')
  kept = {key: value for key, value in meta.items() if key not in dropped}
  return delta, record, kept


def _between_checkpoints(
  sources: tuple[Source, Source], opened: OpenBase | None, unread: bool
) -> Direction:
  # A base that is left out is the one that is open.
  positive, negative = (
    opened.checkpoint.folder if source.kind == BASE and opened else source.folder
    for source in sources
  )
  subtract = checkpoints.unread_difference if unread else checkpoints.difference
  with (
    checkpoints.open_checkpoint(positive) as x,
    checkpoints.open_checkpoint(negative) as y,
  ):
    delta = _not_empty(subtract(x, y), positive, negative)
    if opened is not None:
      record = opened.record
    else:
      # Two checkpoints do not say which weights they were trained from.
      record = bases.Base(x.config, x.family.model_type, source='', revision='', digest='')
    what = f'{positive} and the base {record.source}'
    bases.same_architecture(x.config, record.config, what=what)
  _tell_of_tied_tables(delta, x.config, [positive, negative])
  records = []
  for source, folder in zip(sources, (positive, negative)):
    records.append({'kind': source.kind, 'path': str(folder), 'meta': {}})
  return Direction(delta, _meta(record, records))


def _meta(base: bases.Base, sources: list[dict[str, Any]]) -> dict[str, Any]:
  """The provenance of the direction from the second source to the first."""
  roles = []
  for role, source in zip(('positive', 'negative'), sources):
    roles.append({'role': role, **source})
  # Directions were saved under this kind before the difference was called `between`.
  return {'kind': 'contrast', 'base': base.to_json(), 'sources': roles}


def _without_zeros(delta: PyTree) -> dict[str, Any]:
  """{path: change} of the changes that are not zero; changes on disk are taken for such.

  Both sides may have saved the same table whole. A dense change of zeros would stand in the way of
  exports that hold no dense changes.
  """
  kept = {}
  for path, leaf in tree.flatten(delta, models.is_delta_leaf).items():
    arrays = [leaf.value] if isinstance(leaf, Dense) else [leaf.a, leaf.b]
    in_memory = all(isinstance(array, (np.ndarray, jax.Array)) for array in arrays)
    if not in_memory or all(np.asarray(array).any() for array in arrays):
      kept[path] = leaf
  return kept


def _tell_of_tied_tables(delta: PyTree, config: models.ModelConfig, folders: list[Any]) -> None:
  """Says that the one matrix of tied checkpoints moved, which PEFT's merging gets wrong.

  Source: PEFT 0.21.2, `merge_and_unload` of a LoRA on one end of tied embeddings: the shared matrix
  is changed, so both ends move; with ensure_weight_tying, which gives both ends a LoRA, it moves
  twice.
  """
  if not config.tied or 'embedding' not in delta.get('embed', {}):
    return
  say(
    f'warning: the embedding of {" and ".join(map(str, folders))} differs, and the checkpoints tie '
    "their head to it. If PEFT's merge_and_unload made one from a LoRA on embed_tokens or lm_head, "
    'it moved both ends, and with ensure_weight_tying it moved them twice: the checkpoint is not '
    'the model that was trained. Pass the adapters in place of the merged checkpoints'
  )


def _not_empty(changes: dict[str, Any], x: files.Path, y: files.Path) -> PyTree:
  if not changes:
    raise InputError(f'{x} and {y} hold the same weights: there is no direction between them')
  return tree.unflatten(changes)
