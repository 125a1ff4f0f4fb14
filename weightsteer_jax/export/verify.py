"""What an export is sealed with, and whether anything of ours on disk is whole.

An export's `provenance.json` is written last. It holds the SHA-256 of every file beside it and of
itself, so that a changed bit, a missing file and a folder that was copied in part are found without
a model, and named. Directions, adapters and checkpoints carry a fingerprint per tensor instead,
whatever files it was cut into.
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
  """What was found whole.

  Attributes:
    kind: 'export', 'direction', 'adapter' or 'checkpoint'. checked: what was compared, in words.
    unlisted: files of an export that it was not written with; nothing is known of them.
  """

  kind: str
  checked: str
  unlisted: tuple[str, ...] = ()


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
    'direction, adapter or checkpoint of ours, or was cut short while it was written or copied'
  )


def _verify_export(folder: pathlib.Path) -> Verified:
  expected = sealed.check_export(folder, lambda name: True)
  return Verified(
    'export',
    f'{len(expected)} files by SHA-256',
    tuple(sorted(set(sealed.export_files(folder)) - expected)),
  )


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
  sealed.PROVENANCE: _verify_export,
  direction.MANIFEST: _verify_direction,
  adapter.MANIFEST: _verify_adapter,
  checkpoint.MARKER: _verify_checkpoint,
}
