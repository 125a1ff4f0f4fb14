"""The inputs of finished work, kept beside the work, for no other inputs to continue."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from weightsteer_jax.runtime import hashes, processes
from weightsteer_jax.runtime.errors import CorruptError, InputError
from weightsteer_jax.storage import files


def check_and_record(
  path: pathlib.Path,
  inputs: Mapping[str, Any],
  *,
  fresh: bool,
  what: str = 'a sweep',
  rows: str = 'rows',
  remedy: str = 'Start in another workdir, or move that folder away',
) -> None:
  """Compares the inputs of finished work with the record, and records new inputs.

  Args:
    path: the JSON file of inputs, in the folder of the finished work.
    inputs: {name in an error's words: JSON value or hash}.
    fresh: whether nothing has been made yet.
    what: the work in an error's words, as in 'a sweep'.
    rows: the parts of the work in an error's words, as in 'rows'.
    remedy: the advice of an error about other inputs.

  Raises:
    InputError: if an input differs from the input on record; the error names each such input.
    CorruptError: if finished work has no record of inputs.
  """
  known: dict[str, Any] = {}
  if path.exists():
    known = files.read_json(path, what=f'the plan of {what}').get('inputs', {})
  elif not fresh:
    raise CorruptError(
      f'{path} is missing beside the {rows} it explains: move the folder {path.parent} away '
      'and start again'
    )
  changed = []
  for name, value in inputs.items():
    # Through JSON, as the inputs on record went: tuples are lists in both.
    if name in known and known[name] != json.loads(json.dumps(value)):
      changed.append(name)
  # A record without rows is of a run that was interrupted early: other inputs may take its place.
  if changed and not fresh:
    raise InputError(
      f'{path.parent} holds {rows} that were made from other inputs; changed: '
      f'{"; ".join(changed)}. {remedy}'
    )
  # The main process must not write before all have read.
  processes.barrier('plan')
  # Inputs of earlier arms or tasks stay on record, since their rows stay.
  processes.on_main(lambda: files.write_json(path, {'inputs': {**known, **inputs}}))


def digest(value: Any) -> str:
  """16 hex digits to name a JSON value."""
  return hashes.of_text(json.dumps(value, sort_keys=True, ensure_ascii=True), hashes.SHORT)
