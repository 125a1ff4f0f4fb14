"""The bases that adapters name, compared with the base that they are read with.

A base may lie in a copy under another name, so a name alone refuses nothing: it is told. Weights
that are known to be others are refused.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions.streamed import checkpoints
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.models import ModelConfig
from weightsteer_jax.runtime.errors import WeightSteerError
from weightsteer_jax.runtime.progress import say
from weightsteer_jax.storage import files, sealed


def check(
  named: Mapping[pathlib.Path, str],
  base: Checkpoint,
  record: bases.Base,
  *,
  allow_other_base: bool = False,
) -> None:
  """Tells of adapters that name another base than the one that they are read with.

  Args:
    named: {folder of an adapter: the base that its config names, '' for none}.
    base, record: the base that was given.
    allow_other_base: accept other weights of the same architecture.

  Raises:
    InputError: if an adapter is known to be of other weights: an export of ours by its digest, any
      adapter by the folder that it names.
  """
  # Two adapters mostly name one base, whose digest is a pass over its weights.
  records: dict[str, bases.Base | None] = {}
  unknown = {}
  for folder, name in named.items():
    other = _base_of_export(folder)
    if other is None and (not name or is_same_name(name, base)):
      continue
    if other is None:
      if name not in records:
        records[name] = _base_in_folder(name)
      other = records[name]
    if other is None:
      unknown[folder] = name
      continue
    what = f"{folder}, made for '{other.source}', and the base '{base.source}'"
    if _is_derived(other.config, record.config):
      say(f'warning: {what} differ in the size of the vocabulary or in tied embeddings')
      continue
    bases.same_base(other, record, what=what, allow_other_base=allow_other_base)
  if unknown:
    names = ' and '.join(f"'{name}'" for name in sorted(set(unknown.values())))
    folders = ' and '.join(str(folder) for folder in unknown)
    say(
      f'warning: {folders} name {names} as their base, and are read with '
      f"'{base.source}' (digest {record.digest}). Nothing here says whether both are the same "
      'weights: with another base, the direction is wrong'
    )


def _is_derived(named: ModelConfig, used: ModelConfig) -> bool:
  """Whether a base was resized or untied, as adapters may need it, so that digests say nothing."""
  derived = dataclasses.replace(named, vocab_size=used.vocab_size, tied=used.tied)
  return named != used and derived == used


def is_same_name(name: str, base: Checkpoint) -> bool:
  """Whether a name is that of the base: its path, its hub id, or the name of its folder.

  A revision behind '@' says nothing about a folder.
  """
  plain = name.split('@')[0]
  if plain == base.source.split('@')[0] or name == _name_or_path(base.folder):
    return True
  folder = pathlib.Path(plain).expanduser()
  if folder.is_dir() and folder.resolve() == base.folder.resolve():
    return True
  # Hugging Face's cache calls the folder of org/name 'models--org--name', with snapshots below.
  parts = [part.lower() for part in base.folder.resolve().parts]
  cached = 'models--' + plain.replace('/', '--').lower()
  # A folder that exists has weights that can be compared, which says more than its name.
  return cached in parts or (not folder.is_dir() and parts[-1:] == [folder.name.lower()])


def _name_or_path(folder: pathlib.Path) -> str:
  path = folder / 'config.json'
  if not path.is_file():
    return ''
  config = files.read_json(path, what='the config of a model')
  return config.get('_name_or_path', '') if isinstance(config, dict) else ''


def _base_of_export(folder: pathlib.Path) -> bases.Base | None:
  """The base of an export of ours, None of any other folder."""
  path = folder / sealed.PROVENANCE
  if not path.is_file():
    return None
  record = files.read_json(path, what='the provenance of an export')
  try:
    base = record['direction']['base']
    # Exported for another base than its own, the direction says nothing about that base.
    if record['steered_model'] != base['source'] or not base['digest']:
      return None
    return bases.from_json(base, where=str(path))
  except (KeyError, TypeError):
    return None


def _base_in_folder(name: str) -> bases.Base | None:
  """The record of the model in a folder of this machine, None where there is none to read."""
  folder = pathlib.Path(name.split('@')[0]).expanduser()
  # A relative path was meant from the folder of the training.
  if not (folder.is_absolute() and (folder / 'config.json').is_file()):
    return None
  try:
    with checkpoints.open_checkpoint(folder) as checkpoint:
      return checkpoint.base()
  except WeightSteerError:
    # A model that cannot be read is not known to be another.
    return None
