"""Checks whether an export, a direction, an adapter or a checkpoint of ours is whole.

An export's `provenance.json` is written last, and holds the SHA-256 of every file beside it and of
itself. A changed bit, a missing file and a partly copied folder are found without a model, and
named. Directions, adapters and checkpoints carry a fingerprint per tensor instead, which does not
depend on how tensors are cut into files.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import jax

from weightsteer_jax.directions import direction
from weightsteer_jax.finetune import adapter
from weightsteer_jax.runtime.errors import CorruptError, InputError
from weightsteer_jax.storage import checkpoint, files, sealed


@dataclasses.dataclass(frozen=True)
class Verified:
  """A folder found whole.

  Attributes:
    kind: 'export', 'direction', 'adapter' or 'checkpoint'.
    checked: the comparison, in words.
    unlisted: files of an export that are not in the provenance, and not checked.
  """

  kind: str
  checked: str
  unlisted: tuple[str, ...] = ()


def verify(folder: files.Path) -> Verified:
  """The kind of a whole folder, and how it was checked.

  Raises:
    InputError: if the folder does not exist.
    CorruptError: if a file or tensor is missing or was changed, or the marker written last is
      missing.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise InputError(f'no folder at {folder}{files.path_hint(folder)}')
  # A folder cut short lacks the marker, because the marker is written last.
  for marker, check in CHECKS.items():
    if (folder / marker).is_file():
      return check(folder)
  raise CorruptError(
    f'{folder} has none of {", ".join(CHECKS)}, which are written last: it is no export, '
    'direction, adapter or checkpoint of ours, or was cut short while it was written or copied'
  )


def _verify_export(folder: pathlib.Path) -> Verified:
  listed = sealed.check_export(folder, lambda name: True)
  # Files that the user added are no fault of the export.
  unlisted = sorted(set(sealed.export_files(folder)) - listed)
  return Verified('export', f'{len(listed)} files by SHA-256', tuple(unlisted))


def _verify_direction(folder: pathlib.Path) -> Verified:
  # Loading compares every tensor with its fingerprint.
  fingerprints = direction.load(folder).meta['fingerprints']
  return Verified('direction', f'{len(fingerprints)} tensors by fingerprint')


def _verify_adapter(folder: pathlib.Path) -> Verified:
  tensors, _ = adapter.load_adapter(folder)
  count = len(jax.tree.leaves(tensors))
  return Verified('adapter', f'{count} tensors by fingerprint')


def _verify_checkpoint(folder: pathlib.Path) -> Verified:
  arrays = checkpoint.verify(folder)
  return Verified('checkpoint', f'{len(arrays)} arrays by fingerprint')


# {the file that is written last: the check of such a folder}.
CHECKS: dict[str, Callable[[pathlib.Path], Verified]] = {
  sealed.PROVENANCE: _verify_export,
  direction.MANIFEST: _verify_direction,
  adapter.MANIFEST: _verify_adapter,
  checkpoint.MARKER: _verify_checkpoint,
}
