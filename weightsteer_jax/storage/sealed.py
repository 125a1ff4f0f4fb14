"""Sealed manifests: JSON that is written last and notices any change of itself.

An export's `provenance.json` holds the SHA-256 of every file beside it and of itself, so that a
changed bit, a missing file and a folder that was copied in part are found without a model, and
named.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from weightsteer_jax.runtime.errors import CorruptError
from weightsteer_jax.runtime.messages import listed
from weightsteer_jax.storage import files

PROVENANCE = 'provenance.json'
NAMED = 8  # files that a message names of those that are wrong


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
  """A JSON object with a hash of its own contents under 'seal', as it comes back from a file."""
  text = json.dumps(dict(value), sort_keys=True, allow_nan=False)
  return {**json.loads(text), 'seal': hashlib.sha256(text.encode()).hexdigest()}


def is_sealed(value: Any) -> bool:
  """Whether this is what `sealed` made, unchanged."""
  return isinstance(value, dict) and value == sealed(
    {key: item for key, item in value.items() if key != 'seal'}
  )


def seal(
  folder: pathlib.Path, record: Mapping[str, Any], known: Mapping[str, str] | None = None
) -> dict[str, Any]:
  """Writes `provenance.json` into an export that is complete but for it; the record, with its files
  and seal.

  Args:
    known: {file: SHA-256} of those that were hashed as they were written.
  """
  known = known or {}
  hashes = {name: known.get(name) or _sha256(folder / name) for name in names(folder)}
  manifest = sealed({**record, 'files': hashes})
  files.write_json(folder / PROVENANCE, manifest)
  return manifest


def check_checkpoint(folder: pathlib.Path) -> None:
  """Nothing, if the checkpoint in the folder is no export of ours, or its weights and what they are
  read with (all but the model card) are those it was written with.

  Raises:
    CorruptError: a file is missing or was changed; names it.
  """
  if (folder / PROVENANCE).is_file():
    compare(folder, lambda name: not name.endswith('.md'))


def compare(folder: pathlib.Path, wanted: Callable[[str], bool]) -> set[str]:
  """Names of the wanted files of an export, each as it was written."""
  record = files.read_json(folder / PROVENANCE, what='the provenance of an export')
  if not is_sealed(record) or not isinstance(record.get('files'), dict):
    raise CorruptError(
      f'{folder / PROVENANCE} was changed or damaged after it was written; copy the export again'
    )
  expected = {name: digest for name, digest in record['files'].items() if wanted(name)}
  found = set(names(folder)) & set(expected)
  missing, changed = (
    sorted(set(expected) - found),
    sorted(name for name in found if _sha256(folder / name) != expected[name]),
  )
  if missing or changed:
    faults = [
      f'{what}: {listed(names, NAMED)}'
      for what, names in (('missing', missing), ('changed', changed))
      if names
    ]
    raise CorruptError(
      f'the export {folder} is not as it was written ({"; ".join(faults)}); copy or make it again'
    )
  return set(expected)


def names(folder: pathlib.Path) -> list[str]:
  """Every file below an export but its provenance, relative to it."""
  names = (path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())
  return sorted(name for name in names if name != PROVENANCE)


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
