"""The day that a run's chat templates are told: that of the first start, for ever.

Templates of Llama 3.2, Granite 3 and others write the present day into every prompt. A run that
began on one day and goes on the next would train, sample and score under two different prompts.
"""

import datetime
import pathlib
from collections.abc import Mapping
from typing import Any

from weightsteer_jax.data import bindings
from weightsteer_jax.directions import Direction
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import files

# The key of the record in config.json.
KEY = 'chat_date'
# Files that a run writes early and not again.
_EARLY = ('finetune/*/options.json', 'answers/*', 'data/*', 'sweep/*', 'config.json')


def of_run(workdir: pathlib.Path, chosen: str) -> str:
  """The day of the run in a workdir, as in 2026-12-01.

  The recorded day comes first; without a record the chosen day; and without both the present day,
  or in a workdir without a record, which an earlier version made, that of the oldest file.

  Args:
    chosen: the config's `model.chat_date`; '' for none.

  Raises:
    InputError: if another day was chosen than the workdir's.
  """
  recorded = _recorded(workdir)
  if recorded and chosen and chosen != recorded:
    raise InputError(
      f"the config key 'model.chat_date' is '{chosen}', and the run in {workdir} began with "
      f'{recorded}: leave the key out, or name another --workdir'
    )
  if recorded or chosen:
    return recorded or chosen
  return _oldest(workdir) if is_unrecorded(workdir) else bindings.today()


def of_direction(direction: Direction) -> str:
  """The day that the chat template was told when the direction's data were made; '' if unknown."""
  return _of_sources(direction.meta)


def _of_sources(meta: Mapping[str, Any]) -> str:
  for source in meta.get('sources', ()):
    # The sources of a sum or a multiple are directions, with sources of their own.
    date = source.get('meta', {}).get('chat', {}).get('date', '') or _of_sources(source)
    if date:
      return date
  return ''


def is_unrecorded(workdir: pathlib.Path) -> bool:
  """Whether the workdir is of a version that recorded no day."""
  return (workdir / 'config.json').exists() and not _recorded(workdir)


def _recorded(workdir: pathlib.Path) -> str:
  path = workdir / 'config.json'
  if not path.exists():
    return ''
  return files.read_json(path, what='the config of a run').get(KEY, '')


def _oldest(workdir: pathlib.Path) -> str:
  """The day of the oldest file that a run writes early."""
  times = [path.stat().st_mtime for pattern in _EARLY for path in workdir.glob(pattern)]
  return datetime.datetime.fromtimestamp(min(times)).date().isoformat()
