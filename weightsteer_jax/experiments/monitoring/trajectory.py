"""The checkpoints of a training run, of any supported kind, in order, each as a change of the base.

ours           <run>/checkpoints/<learning rate>/<step>, and with `keep_steps` <run>/steps/<learning
               rate>/<step>
PEFT           <run>/checkpoint-<step> with an adapter_config.json
Hugging Face   <run>/checkpoint-<step>, or a folder per revision with a number at the end of the
               name, with a config.json inside; or a folder of the hub's cache (refs/ and
               snapshots/) with a number at the end of each revision's name
"""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping

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

# A training state of ours, adapter and optimizer, in orbax's format.
STATE = 'state'
KINDS = DESCRIPTIONS | {STATE: 'a training state of ours'}
LOOKED_FOR = (
  'checkpoints/<learning rate>/<step> or steps/<learning rate>/<step> (ours), checkpoint-<step> or '
  'other folders whose names end in a number, with an adapter_config.json (PEFT) or a config.json '
  '(Hugging Face), refs and snapshots (the cache of the hub)'
)


# Files by which a folder whose name ends in a number is known as a checkpoint.
_MARKS = ('adapter_config.json', 'config.json', adapter.MANIFEST, adapter.TENSORS)


@dataclasses.dataclass(frozen=True)
class Step:
  """A checkpoint of a run.

  Attributes:
    step: optimizer steps taken.
    kind: a key of KINDS.
  """

  step: int
  kind: str
  folder: pathlib.Path


def find(run: files.Path, *, learning_rate: float | None = None) -> list[Step]:
  """The run's checkpoints, ascending by step.

  Args:
    learning_rate: the learning rate to look at, where a run of ours tried several; by default
      the learning rate of the run's adapter.

  Raises:
    InputError: if the run is missing, holds no checkpoints, holds several checkpoints of a step,
      or tried several learning rates and none is chosen.
  """
  folder = pathlib.Path(run).expanduser()
  if not folder.is_dir():
    raise InputError(f'no training run at {folder}{files.path_hint(folder)}')
  # By what lies in the folder: ours, then a cache of the hub, then folders named by steps.
  rates = _learning_rates(folder)
  if rates:
    steps = _ours(folder, _chosen_rate(folder, rates, learning_rate))
  elif (folder / 'refs').is_dir() and (folder / 'snapshots').is_dir():
    steps = _revisions(folder)
  else:
    steps = _folders(folder)
  if not steps:
    raise InputError(_nothing(folder))
  steps.sort(key=lambda step: step.step)
  # Sorted, so that checkpoints of one step are neighbours.
  for before, after in zip(steps, steps[1:]):
    if before.step == after.step:
      twice = [step.folder.name for step in steps if step.step == after.step]
      names = ', '.join(twice)
      raise InputError(
        f'{folder} holds several checkpoints of step {after.step}: {names}; move the others away'
      )
  return steps


@contextlib.contextmanager
def open_change(
  step: Step, run: files.Path, base: OpenBase, *, allow_other_base: bool = False
) -> Iterator[Change]:
  """The run's change of the base at a step.

  Raises:
    InputError: if the run was trained from another base (and `allow_other_base` is off), or the
      checkpoint is of another architecture.
    CorruptError: if the checkpoint is cut short or damaged.
  """
  if step.kind == STATE:
    # A training state says nothing about its base; the run's options do.
    path = pathlib.Path(run).expanduser() / claim.OPTIONS
    options = files.read_json(path, what='the options of a fine-tune')
    config = bases.config_from_json(options['model_config'], where=str(run))
    family = options['base_family']
    digest = options['base_digest_bfloat16']
    record = bases.Base(config, family, str(run), '', digest)
    what = f'{run} and the base {base.record.source}'
    bases.same_base(record, base.record, what=what, allow_other_base=allow_other_base)
    yield changes.stored(step.folder, config, options['options'])
  elif step.kind == CHECKPOINT:
    with checkpoints.open_checkpoint(step.folder) as opened:
      what = f'{step.folder} and the base {base.record.source}'
      # A full checkpoint names no base: whether the base fits is seen in the weights, when read.
      bases.same_architecture(opened.config, base.record.config, what=what)
      yield changes.Streamed(opened, base.checkpoint, allow_other_base)
  else:
    task_vector = directions.task_vector(step.folder, base, allow_other_base=allow_other_base)
    yield changes.Held(task_vector.delta)


def _learning_rates(folder: pathlib.Path) -> dict[float, str]:
  """{learning rate: name of the folder} of a run of ours; empty for other runs."""
  rates = {}
  for kind in ('checkpoints', 'steps'):
    for path in (folder / kind).glob('*'):
      # '0.0001' or '1e-05', as a fine-tune names the folder.
      is_rate = re.fullmatch(r'[0-9.]+(e[-+]?[0-9]+)?', path.name)
      if is_rate and path.is_dir():
        rates[float(path.name)] = path.name
  return rates


def _chosen_rate(folder: pathlib.Path, rates: Mapping[float, str], rate: float | None) -> str:
  """The name of the folder of a learning rate, or of the adapter's learning rate."""
  # The adapter of a finished fine-tune names the learning rate that was chosen.
  path = folder / 'adapter' / adapter.MANIFEST
  if rate is None and path.exists():
    manifest = files.read_json(path, what='the manifest of an adapter')
    rate = manifest.get('learning_rate')
  if rate is None and len(rates) == 1:
    (name,) = rates.values()
    return name
  if rate is None or rate not in rates:
    tried = ', '.join(sorted(rates.values()))
    missing = '' if rate is None else f', not {rate:g}'
    raise InputError(
      f'{folder} tried the learning rates {tried}{missing}; choose one with --learning_rate'
    )
  return rates[rate]


def _ours(folder: pathlib.Path, rate: str) -> list[Step]:
  """Adapters kept of the steps, and training states of the other steps."""
  states = checkpoint.Checkpoints(folder / 'checkpoints' / rate)
  steps = {}
  for number in states.steps():
    steps[number] = Step(number, STATE, states.path(number))
  # Where both are there, the adapter is read, the smaller of the two.
  for path in (folder / 'steps' / rate).glob('*'):
    # Other names are those of folders still being written.
    if not path.name.isdigit():
      continue
    number = int(path.name)
    steps[number] = Step(number, RUN, path)
  return list(steps.values())


def _revisions(folder: pathlib.Path) -> list[Step]:
  """Revisions in the hub's cache with a number at the end of the name."""
  steps = []
  for ref in sorted((folder / 'refs').rglob('*')):
    number = _number(ref.name)
    if number is None or not ref.is_file():
      continue
    # A file in refs/ bears a revision's name and holds the commit that snapshots/ goes by.
    commit = ref.read_text(encoding='utf-8').strip()
    snapshot = folder / 'snapshots' / commit
    # A revision may be known to the cache and not downloaded.
    if snapshot.is_dir():
      steps.append(Step(number, recognise(snapshot).kind, snapshot))
  return steps


def _folders(folder: pathlib.Path) -> list[Step]:
  """Checkpoints in folders with a number at the end of the name."""
  steps = []
  for path in sorted(folder.iterdir()):
    number = _number(path.name)
    if number is None or not path.is_dir():
      continue
    # Other folders too may have a number at the end of the name.
    if any((path / name).exists() for name in _MARKS):
      steps.append(Step(number, recognise(path).kind, path))
  return steps


def _number(name: str) -> int | None:
  """The number at the end of a name, or None.

  >>> _number('checkpoint-20'), _number('step_0040'), _number('main')
  (20, 40, None)
  """
  match = re.search(r'(\d+)$', name)
  # Hidden folders are no checkpoints: a download or a write under way may have a number too.
  if not match or name.startswith('.'):
    return None
  return int(match[1])


def _nothing(folder: pathlib.Path) -> str:
  """The message for a folder without checkpoints."""
  names = sorted(path.name for path in folder.iterdir())
  # A common slip: the workdir in place of a fine-tune in there.
  inner = sorted(str(path.parent) for path in folder.glob('finetune/*/checkpoints'))
  hint = ''
  if inner:
    hint = f'. It is the folder of several fine-tunes: name one, {" or ".join(inner)}'
  return (
    f'{folder} holds no checkpoints. Looked for: {LOOKED_FOR}. It holds: '
    f'{listed(names, 8) or "nothing"}{hint}'
  )
