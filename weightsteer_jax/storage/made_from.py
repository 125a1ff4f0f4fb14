"""What finished work was made from, kept beside it, so that it is never continued with something
else.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from weightsteer_jax.runtime import hashes, processes
from weightsteer_jax.runtime.errors import CorruptError, InputError
from weightsteer_jax.storage import files


def check(
  path: pathlib.Path,
  inputs: Mapping[str, Any],
  *,
  fresh: bool,
  what: str = 'a sweep',
  rows: str = 'rows',
  remedy: str = 'Start in another workdir, or move that folder away',
) -> None:
  """Nothing, if what lies beside `path` was made from these inputs; new ones are recorded there.

  Args:
    inputs: {name in an error's words: JSON value or hash}.
    fresh: whether nothing has been made yet.
    what, rows, remedy: whose plan it is, what lies beside it, and what to do when they do not fit,
    in words.

  Raises:
    InputError: inputs that differ; names them. CorruptError: no plan beside finished work.
  """
  known: dict[str, Any] = {}
  if path.exists():
    known = files.read_json(path, what=f'the plan of {what}').get('inputs', {})
  elif not fresh:
    raise CorruptError(
      f'{path} is missing beside the {rows} it explains: move the folder {path.parent} away '
      'and start again'
    )
  changed = [
    name
    for name, value in inputs.items()
    if name in known and known[name] != json.loads(json.dumps(value))
  ]
  if changed and not fresh:
    raise InputError(
      f'{path.parent} holds {rows} that were made from other inputs; changed: '
      f'{"; ".join(changed)}. {remedy}'
    )
  processes.barrier('plan')  # All have read it.
  processes.on_main(lambda: files.write_json(path, {'inputs': {**known, **inputs}}))


def digest(value: Any) -> str:
  """16 hex digits that name a JSON value."""
  return hashes.of_text(json.dumps(value, sort_keys=True, ensure_ascii=True), hashes.SHORT)
