"""Sealed manifests: JSON written last, under a hash of the JSON's own contents.

Every folder made by the project (an adapter, a direction, persona vectors, a checkpoint, an export)
holds a manifest, written when all else is complete. A folder cut short has no manifest, and a
changed manifest no longer fits the seal.

An export's manifest, `provenance.json`, also holds the SHA-256 of every other file. A changed bit,
a missing file and a folder copied in part are found, and named, without loading a model.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from weightsteer_jax.runtime import hashes
from weightsteer_jax.runtime.errors import CorruptError, InputError
from weightsteer_jax.runtime.messages import listed
from weightsteer_jax.storage import files

PROVENANCE = 'provenance.json'
# Files or keys that an error lists.
NAMED = 8


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The manifest of a kind of folder.

  Attributes:
    noun: the kind in an error's words, as in 'adapter'.
    name: the manifest's file name.
    remedy: how to get a whole folder again, as in 'copy or train the adapter again'.
    format: the format written by this version; None where manifests have no format.
    earlier_formats: other formats read by this version.
    unsealed_formats: formats without a seal.
    needs: keys of every manifest.
    tensors: a file written before the manifest; '' if every such folder must have a manifest.
    made_by: the program to make a folder with.
  """

  noun: str
  name: str
  remedy: str
  format: int | None = None
  earlier_formats: tuple[int, ...] = ()
  unsealed_formats: tuple[int, ...] = ()
  needs: tuple[str, ...] = ()
  tensors: str = ''
  made_by: str = ''

  def write(self, folder: pathlib.Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the manifest of a folder, complete but for the manifest, and returns it.

    Raises:
      OutputError: if the file cannot be written.
    """
    # A record may be read from one folder and written to another, changed, as a direction's is.
    content = {key: value for key, value in record.items() if key != 'seal'}
    if self.format is not None:
      content['format'] = self.format
    manifest = sealed(content)
    files.write_json(folder / self.name, manifest)
    return manifest

  def read(self, folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a folder, checked against the seal.

    Raises:
      InputError: if the folder is missing or holds something else, or the format is unknown.
      CorruptError: if the folder was cut short, or the manifest was changed or lacks a key.
    """
    self._check_presence(folder)
    path = folder / self.name
    # NaN is no JSON, so we have written none.
    manifest = files.read_json(path, what=f'the manifest of the {self.noun}', finite=True)
    format_ = manifest.get('format') if isinstance(manifest, dict) else None
    # Where some formats have no seal, only the number says whether one is due. Elsewhere the seal
    # comes first, since a number that does not fit it is damage and no other format.
    if self.unsealed_formats:
      self._check_format(path, format_)
    if format_ not in self.unsealed_formats and not is_sealed(manifest):
      raise CorruptError(f'{path} was changed or damaged after it was written; {self.remedy}')
    self._check_format(path, format_)
    missing = [key for key in self.needs if key not in manifest]
    if missing:
      raise CorruptError(f'{path} lacks {listed(missing, NAMED)}; {self.remedy}')
    return manifest

  def check_fingerprints(
    self, folder: pathlib.Path, expected: Mapping[str, str | None], got: Mapping[str, str | None]
  ) -> None:
    """Raises CorruptError if the folder's tensors have other names or fingerprints than expected.

    Args:
      expected, got: {tensor: fingerprint}.
    """
    changed = []
    for name in {*expected, *got}:
      if name not in expected or expected[name] != got.get(name):
        changed.append(name)
    if changed:
      raise mismatch(f'the {self.noun} {folder}', changed, remedy=self.remedy)

  def _check_presence(self, folder: pathlib.Path) -> None:
    if not folder.is_dir():
      raise InputError(f'no {self.noun} at {folder}{files.path_hint(folder)}')
    if (folder / self.name).is_file():
      return
    # The manifest is written last: a folder with tensors and no manifest was not finished.
    if not self.tensors or (folder / self.tensors).exists():
      raise CorruptError(
        f'{folder} has no {self.name}, which is written last: it is no {self.noun} of ours, or was '
        f'cut short while it was written or copied; {self.remedy}'
      )
    hint = f'; make one with {self.made_by}' if self.made_by else ''
    raise InputError(f'{folder} holds no {self.noun} ({self.name} and {self.tensors}){hint}')

  def _check_format(self, path: pathlib.Path, found: Any) -> None:
    if self.format is None or found in (self.format, *self.earlier_formats):
      return
    earlier = ' or earlier' if self.earlier_formats else ''
    raise InputError(
      f'{path} is of format {found}; this version reads each {self.noun} of format '
      f'{self.format}{earlier}'
    )


# Whether an export must be there at all is for callers to know: any checkpoint may be one.
EXPORT = Manifest(
  noun='export', name=PROVENANCE, remedy='copy or make the export again', needs=('files',)
)


def mismatch(what: str, tensors: Iterable[str], *, remedy: str) -> CorruptError:
  """The error for tensors that do not match their fingerprints."""
  return CorruptError(
    f'{what} does not match its fingerprints at {", ".join(sorted(tensors))}: it was changed or '
    f'damaged after it was written; {remedy}'
  )


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
  """A JSON object, as if read from a file, with a hash of the contents under 'seal'."""
  # Sorted, so that the hash does not depend on the order of keys. NaN is no JSON, and other readers
  # of the file would refuse it.
  text = json.dumps(dict(value), sort_keys=True, allow_nan=False)
  return {**json.loads(text), 'seal': hashes.of_text(text)}


def is_sealed(value: Any) -> bool:
  """Whether a JSON value is an unchanged result of `sealed`."""
  if not isinstance(value, dict):
    return False
  return value == sealed({key: item for key, item in value.items() if key != 'seal'})


def seal_export(
  folder: pathlib.Path, record: Mapping[str, Any], known: Mapping[str, str] | None = None
) -> dict[str, Any]:
  """Writes the provenance of an export, otherwise complete, and returns the provenance.

  Args:
    known: {file: SHA-256} of files hashed in writing.
  """
  known = known or {}
  sums = {}
  for name in export_files(folder):
    # Large files were hashed on their way to the disk.
    sums[name] = known.get(name) or hashes.of_file(folder / name)
  return EXPORT.write(folder, {**record, 'files': sums})


def check_if_export(folder: pathlib.Path) -> None:
  """Raises CorruptError if a checkpoint is an export of ours with missing or changed files.

  The model card and other pages may change: nothing is computed from pages.
  """
  if (folder / PROVENANCE).is_file():
    check_export(folder, lambda name: not name.endswith('.md'))


def check_export(folder: pathlib.Path, wanted: Callable[[str], bool]) -> set[str]:
  """The names of the wanted files of an export, each checked against the SHA-256.

  Raises:
    CorruptError: if a file is missing or was changed; the error names the file.
  """
  # Files beyond the manifest's are no fault: users add notes and tokenizers.
  sums = EXPORT.read(folder)['files']
  expected = {name: digest for name, digest in sums.items() if wanted(name)}
  present = set(export_files(folder)) & set(expected)
  missing = sorted(set(expected) - present)
  changed = sorted(name for name in present if hashes.of_file(folder / name) != expected[name])
  faults = []
  if missing:
    faults.append(f'missing: {listed(missing, NAMED)}')
  if changed:
    faults.append(f'changed: {listed(changed, NAMED)}')
  if faults:
    raise CorruptError(
      f'the export {folder} is not as it was written ({"; ".join(faults)}); {EXPORT.remedy}'
    )
  return set(expected)


def export_files(folder: pathlib.Path) -> list[str]:
  """Every file below an export but the provenance, by name relative to the export."""
  names = (path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())
  return sorted(name for name in names if name != PROVENANCE)
