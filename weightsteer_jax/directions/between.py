"""Directions from what training left behind: two fine-tunes of ours, two PEFT adapters, or two full
checkpoints.

The direction of a behaviour is `w = (theta_positive - theta_base) - (theta_negative - theta_base)`.
Two adapters of one base give it exactly, as factors of rank r+ + r-: `[A+ | A-]` and `[s+ B+ ; -s-
B-]`. Two checkpoints give it dense, in float32.

Source: arXiv 2511.05408, equation 1.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from weightsteer_jax import models
from weightsteer_jax.directions import algebra, bfloat16_route, peft_adapter, peft_delta
from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions.direction import Direction
from weightsteer_jax.directions.streamed import checkpoints
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.finetune.adapter import load_adapter
from weightsteer_jax.runtime import hashes, tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import listed
from weightsteer_jax.storage import files

PyTree = Any
RUN, PEFT, CHECKPOINT = 'run', 'peft', 'checkpoint'
DESCRIPTIONS = {RUN: 'a fine-tune of ours', PEFT: 'a PEFT adapter', CHECKPOINT: 'a full checkpoint'}


@dataclasses.dataclass(frozen=True)
class OpenBase:
  """The base's open checkpoint and its record (whose digest took reading it all)."""

  checkpoint: Checkpoint
  record: bases.Base


BaseSource = str | pathlib.Path | models.Model | OpenBase


@dataclasses.dataclass(frozen=True)
class Source:
  """Something a direction can be made from: what kind it is, and where it lies."""

  kind: str
  folder: pathlib.Path


def between(
  positive: files.Path,
  negative: files.Path,
  *,
  base: BaseSource | None = None,
  allow_other_base: bool = False,
  compare_bfloat16: bool = False,
  unread: bool = False,
) -> Direction:
  """The direction that points from the negative to the positive.

  Args:
    positive, negative: each a run folder of ours, or a PEFT adapter folder (the two may be mixed);
    or both full
      checkpoints.
    base: the model both were trained on. Not needed for runs of ours; for PEFT adapters, where the
      one they name cannot be found; for checkpoints, to tell the direction's base from other models
      of the architecture.
    allow_other_base: go on where the two, or they and `base`, say they belong to different bases of
      one architecture.
    compare_bfloat16: also measure what the route over merged bfloat16 checkpoints would have given
      (see rounding.bfloat16_route).
    unread: leave the difference of two checkpoints where it is, to be read from them when it is
      saved, exported, used.

  Raises:
    InputError: sources that are not there, not supported, or do not go together. CorruptError: one
      that is cut short or damaged.
  """
  sources = recognise(positive), recognise(negative)
  if sources[0].kind != sources[1].kind and CHECKPOINT in (sources[0].kind, sources[1].kind):
    raise InputError(
      f'{positive} is {DESCRIPTIONS[sources[0].kind]} and {negative} is '
      f'{DESCRIPTIONS[sources[1].kind]}: pass two adapters, or two checkpoints (merge the adapter '
      'into its base in float32 first)'
    )
  if sources[0].folder.resolve() == sources[1].folder.resolve():
    raise InputError(
      f'positive and negative are both {sources[0].folder}: there is no direction between a model '
      'and itself'
    )
  with open_base(sources, base, allow_other_base) as opened:
    if sources[0].kind == CHECKPOINT:
      delta, record, metas = _between_checkpoints(sources, opened, unread)
    else:
      x, y = (_task_vector(source, opened, allow_other_base) for source in sources)
      bases.same_base(
        x.base, y.base, what=f'{positive} and {negative}', allow_other_base=allow_other_base
      )
      delta, record = algebra.subtract(x, y, allow_other_base=True).delta, x.base
      metas = [*x.meta['sources'], *y.meta['sources']]
    roles = [{'role': role, **meta} for role, meta in zip(('positive', 'negative'), metas)]
    direction = Direction(delta, {'kind': 'contrast', 'base': record.to_json(), 'sources': roles})
    if not compare_bfloat16:
      return direction
    if sources[0].kind == CHECKPOINT:
      raise InputError(
        'the bfloat16 route can be compared for adapters only; these are checkpoints: their '
        'difference is that route already'
      )
    with _reopened(opened, record) as checkpoint:
      measured = bfloat16_route.bfloat16_route(x.delta, y.delta, checkpoint)
    return Direction(delta, {**direction.meta, 'bfloat16_route': measured})


def base_for(source: files.Path, base: files.Path) -> files.Path | None:
  """The base, if it takes one to read the source; of full checkpoints it would only be read to name
  it.
  """
  return None if recognise(source).kind == CHECKPOINT else base


def task_vector(
  source: files.Path, base: BaseSource | None = None, *, allow_other_base: bool = False
) -> Direction:
  """What one fine-tune changed: an adapter's exact factors, or a checkpoint's difference from
  `base`.

  Raises:
    InputError: as `between`, or a checkpoint without `base`.
  """
  found = recognise(source)
  if found.kind == CHECKPOINT and base is None:
    raise InputError(
      f'{source} is a full checkpoint: what it changed is only known with the base it was trained '
      'from; pass base'
    )
  with open_base((found,), base, allow_other_base) as opened:
    return _task_vector(found, opened, allow_other_base)


def recognise(source: files.Path) -> Source:
  """What kind of source lies at a path.

  Raises:
    InputError: nothing is there, or nothing that a direction can be made from.
  """
  folder = pathlib.Path(source).expanduser()
  if not folder.is_dir():
    raise InputError(
      f'no folder {folder}{files.nearest(folder)}; expected a run of ours, a PEFT adapter or a '
      'checkpoint'
    )
  if (folder / 'adapter' / 'adapter.json').exists() or (
    folder / 'adapter' / 'adapter.safetensors'
  ).exists():
    return Source(RUN, folder / 'adapter')
  if (folder / 'adapter.json').exists() or (folder / 'adapter.safetensors').exists():
    return Source(RUN, folder)
  if peft_adapter.is_adapter(folder):
    return Source(PEFT, folder)
  if (folder / 'config.json').exists():
    return Source(CHECKPOINT, folder)
  raise InputError(
    f'{folder} is no source of a direction: expected a finished run of ours '
    f'(adapter/adapter.json), a PEFT adapter ({peft_adapter.CONFIG}) or a Hugging Face checkpoint '
    f'(config.json); it holds {_listing(folder)}'
  )


@contextlib.contextmanager
def open_base(
  sources: Iterable[Source], base: BaseSource | None, allow_other_base: bool = False
) -> Iterator[OpenBase | None]:
  """The given base, or the one that PEFT adapters name, or None where none is needed; an open one
  stays open.
  """
  if isinstance(base, OpenBase):
    yield base
    return
  named = _named_bases(sources)
  if len(set(named.values())) > 1 and not (base is not None and allow_other_base):
    lines = '; '.join(f"{folder} names '{name}'" for folder, name in named.items())
    raise InputError(
      f'the adapters belong to different base models: {lines}. If both are the same model, pass it '
      'as base and allow it with allow_other_base'
    )
  if base is None and not named:
    yield None
    return
  with _open_checkpoint(base, named) as checkpoint:
    yield OpenBase(checkpoint, checkpoint.base())


@contextlib.contextmanager
def _open_checkpoint(
  base: BaseSource | None, named: dict[pathlib.Path, str]
) -> Iterator[Checkpoint]:
  if isinstance(base, models.Model):
    with checkpoints.open_checkpoint(base.folder) as checkpoint:
      yield dataclasses.replace(checkpoint, source=base.source, revision=base.revision)
    return
  if base is None:
    folder, base = next(iter(named.items()))
    if not base:
      raise InputError(f'{folder} is an adapter that names no base model; pass it as base')
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
  """The open base, or the one the record names, if it is still the same."""
  if opened is not None:
    yield opened.checkpoint
    return
  source = f'{record.source}@{record.revision}' if record.revision else record.source
  with checkpoints.open_checkpoint(source) as checkpoint:
    bases.same_base(record, checkpoint.base(), what='the runs and the base they name')
    yield checkpoint


def _named_bases(sources: Iterable[Source]) -> dict[pathlib.Path, str]:
  """{folder: base_model_name_or_path, with '@revision' if there is one} of the PEFT adapters among
  the sources.
  """
  configs = {
    source.folder: peft_adapter.read_config(source.folder)
    for source in sources
    if source.kind == PEFT
  }
  return {folder: _named_base(config) for folder, config in configs.items()}


def _named_base(config: Mapping[str, Any]) -> str:
  revision = config.get('revision')
  return str(config.get('base_model_name_or_path') or '') + (f'@{revision}' if revision else '')


def _task_vector(source: Source, opened: OpenBase | None, allow_other_base: bool) -> Direction:
  if source.kind == RUN:
    delta, record, meta = _read_run(source, opened, allow_other_base)
  elif source.kind == PEFT:
    adapter = peft_adapter.read(source.folder)
    delta, record = peft_delta.to_delta(adapter, opened.checkpoint), opened.record
    meta = {
      'config': adapter.config,
      'sha256': hashes.of_file(source.folder / peft_adapter.WEIGHTS),
    }
  else:
    with checkpoints.open_checkpoint(source.folder) as checkpoint:
      delta = _not_empty(
        checkpoints.difference(checkpoint, opened.checkpoint),
        source.folder,
        opened.checkpoint.source,
      )
    record, meta = opened.record, {}
  models.check_delta(record.config, delta)
  sources = [{'kind': source.kind, 'path': str(source.folder), 'meta': meta}]
  return Direction(delta, {'kind': 'task_vector', 'base': record.to_json(), 'sources': sources})


def _read_run(
  source: Source, opened: OpenBase | None, allow_other_base: bool
) -> tuple[PyTree, bases.Base, dict[str, Any]]:
  delta, meta = load_adapter(source.folder)
  config = bases.config_from_json(meta['model_config'], where=str(source.folder))
  record = bases.Base(
    config, meta['base_family'], meta['base'], meta['base_revision'], meta['base_digest_bfloat16']
  )
  if opened is not None:
    what = f"{source.folder} and the base '{opened.record.source}'"
    bases.same_base(record, opened.record, what=what, allow_other_base=allow_other_base)
  # The adapter's own fingerprints, and what the direction says of the base anyway, stay behind.
  dropped = ('fingerprints', 'model_config', 'leaves', 'format')
  return delta, record, {key: value for key, value in meta.items() if key not in dropped}


def _between_checkpoints(
  sources: tuple[Source, Source], opened: OpenBase | None, unread: bool
) -> tuple[PyTree, bases.Base, list[dict[str, Any]]]:
  subtract = checkpoints.unread_difference if unread else checkpoints.difference
  with (
    checkpoints.open_checkpoint(sources[0].folder) as x,
    checkpoints.open_checkpoint(sources[1].folder) as y,
  ):
    delta = _not_empty(subtract(x, y), sources[0].folder, sources[1].folder)
    record = (
      opened.record if opened is not None else bases.Base(x.config, x.family.model_type, '', '', '')
    )
    what = f'{sources[0].folder} and the base {record.source}'
    bases.same_architecture(x.config, record.config, what=what)
  return (
    delta,
    record,
    [{'kind': source.kind, 'path': str(source.folder), 'meta': {}} for source in sources],
  )


def _not_empty(changes: dict[str, Any], x: files.Path, y: files.Path) -> PyTree:
  if not changes:
    raise InputError(f'{x} and {y} hold the same weights: there is no direction between them')
  return tree.unflatten(changes)


def _listing(folder: pathlib.Path) -> str:
  names = sorted(path.name for path in folder.iterdir())
  return listed(names, 6) or 'nothing'
