"""The checkpoints of a training run, of any supported kind, in order, each as a change of the base.

ours           <run>/checkpoints/<learning rate>/<step>, and with `keep_steps` <run>/steps/<learning
               rate>/<step>
PEFT           <run>/checkpoint-<step> with an adapter_config.json
Hugging Face   <run>/checkpoint-<step>, or a folder per revision whose name ends in a number, with a
               config.json; or a folder of the hub's cache (refs/ and snapshots/), whose revisions'
               names end in numbers
"""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from weightsteer_jax import directions
from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions.between import CHECKPOINT, DESCRIPTIONS, RUN, OpenBase, recognise
from weightsteer_jax.directions.streamed import checkpoints
from weightsteer_jax.experiments.monitoring import changes
from weightsteer_jax.experiments.monitoring.changes import Change
from weightsteer_jax.finetune import adapter, claim
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import listed
from weightsteer_jax.storage import checkpoint, files

STATE = 'state'  # A training state of ours, adapter and optimizer, in orbax's format.
KINDS = DESCRIPTIONS | {STATE: 'a training state of ours'}
LOOKED_FOR = (
  'checkpoints/<learning rate>/<step> or steps/<learning rate>/<step> (ours), checkpoint-<step> or '
  'other folders whose names end in a number, with an adapter_config.json (PEFT) or a config.json '
  '(Hugging Face), refs and snapshots (the cache of the hub)'
)


@dataclasses.dataclass(frozen=True)
class Step:
  """A checkpoint of a run: optimizer steps taken, what kind it is, where it lies."""

  step: int
  kind: str
  folder: pathlib.Path


def find(run: files.Path, *, learning_rate: float | None = None) -> list[Step]:
  """The run's checkpoints, ascending by step.

  Args:
    learning_rate: which of several that a run of ours tried; by default the one that its product
      was trained with.

  Raises:
    InputError: no such run, no checkpoints in it (says what was looked for), several of one step,
      or several learning rates to choose from.
  """
  folder = pathlib.Path(run).expanduser()
  if not folder.is_dir():
    raise InputError(f'no training run at {folder}{files.nearest(folder)}')
  rates = _learning_rates(folder)
  if rates:
    found = _ours(folder, _chosen_rate(folder, rates, learning_rate))
  elif (folder / 'refs').is_dir() and (folder / 'snapshots').is_dir():
    found = _revisions(folder)
  else:
    found = _folders(folder)
  if not found:
    raise InputError(_nothing(folder))
  steps = [one.step for one in found]
  twice = sorted({step for step in steps if steps.count(step) > 1})
  if twice:
    names = ', '.join(one.folder.name for one in found if one.step == twice[0])
    raise InputError(
      f'{folder} holds several checkpoints of step {twice[0]}: {names}; move the others away'
    )
  return sorted(found, key=lambda one: one.step)


@contextlib.contextmanager
def open_change(
  one: Step, run: files.Path, base: OpenBase, *, allow_other_base: bool = False
) -> Iterator[Change]:
  """What the run had changed of the base at that step.

  Raises:
    InputError: it was trained from another base (which may be allowed), or is of another
      architecture. CorruptError: it is cut short or damaged.
  """
  if one.kind == STATE:
    options = _options(pathlib.Path(run).expanduser())
    where = f'{run} and the base {base.record.source}'
    config = bases.config_from_json(options['model_config'], where=str(run))
    record = bases.Base(
      config, options['base_family'], str(run), '', options['base_digest_bfloat16']
    )
    bases.same_base(record, base.record, what=where, allow_other_base=allow_other_base)
    yield changes.stored(one.folder, config, options['options'])
  elif one.kind == CHECKPOINT:
    with checkpoints.open_checkpoint(one.folder) as opened:
      bases.same_architecture(
        opened.config, base.record.config, what=f'{one.folder} and the base {base.record.source}'
      )
      yield changes.Streamed(opened, base.checkpoint, allow_other_base)
  else:
    yield changes.Held(
      directions.task_vector(one.folder, base, allow_other_base=allow_other_base).delta
    )


def _learning_rates(folder: pathlib.Path) -> dict[float, str]:
  """{learning rate: its folder's name} of a run of ours."""
  names = {
    path.name
    for kind in ('checkpoints', 'steps')
    for path in (folder / kind).glob('*')
    if path.is_dir()
  }
  return {float(name): name for name in names if re.fullmatch(r'[0-9.]+(e[-+]?[0-9]+)?', name)}


def _chosen_rate(folder: pathlib.Path, rates: Mapping[float, str], asked: float | None) -> str:
  product = folder / 'adapter' / adapter.MANIFEST
  if asked is None and product.exists():
    asked = files.read_json(product, what='the manifest of an adapter').get('learning_rate')
  if asked is None and len(rates) == 1:
    return next(iter(rates.values()))
  if asked not in rates:
    raise InputError(
      f'{folder} tried the learning rates '
      f'{", ".join(sorted(rates.values()))}{"" if asked is None else f", not {asked:g}"}; choose '
      'one with --learning_rate'
    )
  return rates[asked]


def _ours(folder: pathlib.Path, rate: str) -> list[Step]:
  """Adapters kept of the steps, and training states of the other steps."""
  kept = {
    int(path.name): Step(int(path.name), RUN, path)
    for path in (folder / 'steps' / rate).glob('*')
    if path.name.isdigit()
  }
  states = {step: Step(step, STATE, path) for step, path in _states(folder / 'checkpoints' / rate)}
  return list((states | kept).values())


def _states(folder: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
  found = checkpoint.Checkpoints(folder)
  return [(step, found.path(step)) for step in found.steps()]


def _revisions(folder: pathlib.Path) -> list[Step]:
  """Of the hub's cache: revisions with a number in their names, by the commit that each file in
  refs/ holds.
  """
  found = []
  for ref in sorted(path for path in (folder / 'refs').rglob('*') if path.is_file()):
    number, snapshot = (
      _number(ref.name),
      folder / 'snapshots' / ref.read_text(encoding='utf-8').strip(),
    )
    if number is not None and snapshot.is_dir():
      found.append(Step(number, recognise(snapshot).kind, snapshot))
  return found


def _folders(folder: pathlib.Path) -> list[Step]:
  found = []
  for path in sorted(folder.iterdir()):
    number = _number(path.name)
    if number is not None and path.is_dir() and any((path / name).exists() for name in _MARKS):
      source = recognise(path)
      found.append(Step(number, source.kind, path))
  return found


_MARKS = ('adapter_config.json', 'config.json', adapter.MANIFEST, adapter.TENSORS)


def _number(name: str) -> int | None:
  """The number that a name ends in.

  >>> _number('checkpoint-20'), _number('step_0040'), _number('main')
  (20, 40, None)
  """
  match = re.search(r'(\d+)$', name)
  return int(match[1]) if match and not name.startswith('.') else None


def _options(run: pathlib.Path) -> dict[str, Any]:
  return files.read_json(run / claim.OPTIONS, what='the options of a fine-tune')


def _nothing(folder: pathlib.Path) -> str:
  names = sorted(path.name for path in folder.iterdir())
  inner = sorted(str(path.parent) for path in folder.glob('finetune/*/checkpoints'))
  hint = (
    f'. It is the folder of several fine-tunes: name one, {" or ".join(inner)}' if inner else ''
  )
  return (
    f'{folder} holds no checkpoints. Looked for: {LOOKED_FOR}. It holds: '
    f'{listed(names, 8) or "nothing"}{hint}'
  )
