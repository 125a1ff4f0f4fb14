"""What an export is sealed with, and whether anything of ours on disk is whole.

An export's `provenance.json` is written last. It holds the SHA-256 of every file beside it and of
itself, so that a changed bit, a missing file and a folder that was copied in part are found without
a model, and named. Directions, adapters and checkpoints carry a fingerprint per tensor instead,
whatever files it was cut into.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from weightsteer_jax import checkpoint, files
from weightsteer_jax.directions import direction
from weightsteer_jax.errors import CorruptError, InputError
from weightsteer_jax.finetune import adapter

PROVENANCE = 'provenance.json'
NAMED = 8  # files that a message names of those that are wrong


@dataclasses.dataclass(frozen=True)
class Verified:
  """What was found whole.

  Attributes:
    kind: 'export', 'direction', 'adapter' or 'checkpoint'. checked: what was compared, in words.
    unlisted: files of an export that it was not written with; nothing is known of them.
  """

  kind: str
  checked: str
  unlisted: tuple[str, ...] = ()


def seal(
  folder: pathlib.Path, record: Mapping[str, Any], known: Mapping[str, str] | None = None
) -> dict[str, Any]:
  """Writes `provenance.json` into an export that is complete but for it; the record, with its files
  and seal.

  Args:
    known: {file: SHA-256} of those that were hashed as they were written.
  """
  known = known or {}
  hashes = {name: known.get(name) or _sha256(folder / name) for name in _names(folder)}
  sealed = checkpoint.sealed({**record, 'files': hashes})
  files.write_json(folder / PROVENANCE, sealed)
  return sealed


def verify(folder: files.Path) -> Verified:
  """What an export, a direction, an adapter or a checkpoint was checked for; it is whole.

  Raises:
    InputError: no such folder. CorruptError: a file or tensor is missing or was changed, or the
      marker that is written last is not there; names it.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise InputError(f'no folder at {folder}{files.nearest(folder)}')
  for marker, check in CHECKS.items():
    if (folder / marker).is_file():
      return check(folder)
  raise CorruptError(
    f'{folder} has none of {", ".join(CHECKS)}, which are written last: it is no export, '
    'direction, '
    'adapter or checkpoint of ours, or was cut short while it was written or copied'
  )


def check_checkpoint(folder: pathlib.Path) -> None:
  """Nothing, if the checkpoint in the folder is no export of ours, or its weights and what they are
  read with (all but the model card) are those it was written with.

  Raises:
    CorruptError: a file is missing or was changed; names it.
  """
  if (folder / PROVENANCE).is_file():
    _compare(folder, lambda name: not name.endswith('.md'))


def _verify_export(folder: pathlib.Path) -> Verified:
  expected = _compare(folder, lambda name: True)
  return Verified(
    'export', f'{len(expected)} files by SHA-256', tuple(sorted(set(_names(folder)) - expected))
  )


def _compare(folder: pathlib.Path, wanted: Callable[[str], bool]) -> set[str]:
  """Names of the wanted files of an export, each as it was written."""
  record = files.read_json(folder / PROVENANCE, what='the provenance of an export')
  if not checkpoint.is_sealed(record) or not isinstance(record.get('files'), dict):
    raise CorruptError(
      f'{folder / PROVENANCE} was changed or damaged after it was written; copy the export again'
    )
  expected = {name: digest for name, digest in record['files'].items() if wanted(name)}
  found = set(_names(folder)) & set(expected)
  missing, changed = (
    sorted(set(expected) - found),
    sorted(name for name in found if _sha256(folder / name) != expected[name]),
  )
  if missing or changed:
    faults = [
      f'{what}: {_some(names)}'
      for what, names in (('missing', missing), ('changed', changed))
      if names
    ]
    raise CorruptError(
      f'the export {folder} is not as it was written ({"; ".join(faults)}); copy or make it again'
    )
  return set(expected)


def _verify_direction(folder: pathlib.Path) -> Verified:
  found = direction.load(folder)
  return Verified('direction', f'{len(found.meta["fingerprints"])} tensors by fingerprint')


def _verify_adapter(folder: pathlib.Path) -> Verified:
  found, _ = adapter.load_adapter(folder)
  return Verified('adapter', f'{len(jax.tree.leaves(found))} tensors by fingerprint')


def _verify_checkpoint(folder: pathlib.Path) -> Verified:
  return Verified('checkpoint', f'{len(checkpoint.verify(folder))} arrays by fingerprint')


# By the file that is written last.
CHECKS: dict[str, Callable[[pathlib.Path], Verified]] = {
  PROVENANCE: _verify_export,
  direction.MANIFEST: _verify_direction,
  adapter.MANIFEST: _verify_adapter,
  checkpoint.MARKER: _verify_checkpoint,
}


def _names(folder: pathlib.Path) -> list[str]:
  """Every file below an export but its provenance, relative to it."""
  names = (path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())
  return sorted(name for name in names if name != PROVENANCE)


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _some(names: list[str]) -> str:
  more = f' and {len(names) - NAMED} more' if len(names) > NAMED else ''
  return ', '.join(names[:NAMED]) + more
