"""A training run measured against directions, as rows and a summary, and both as files.

monitor.jsonl   a row for each (step, direction or control, module, layer), and a row with the
                cosine for each (step, direction, random control)
summary.json    thresholds, alarms, where everything came from, and how similar directions and task
                vectors are
"""

import collections
import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax import directions as directions_
from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions.between import (
  CHECKPOINT,
  BaseSource,
  OpenBase,
  open_base,
  recognise,
)
from weightsteer_jax.directions.direction import MANIFEST, TENSORS
from weightsteer_jax.directions.streamed import checkpoints
from weightsteer_jax.experiments.monitoring import alarm, changes, measure, trajectory
from weightsteer_jax.experiments.monitoring.changes import Change
from weightsteer_jax.experiments.monitoring.controls import Draws
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import files
from weightsteer_jax.storage.versions import versions

# The files of a measured run.
ROWS = 'monitor.jsonl'
SUMMARY = 'summary.json'
# The families of controls: drawn from each direction, and named by the user.
RANDOM = 'random'
GIVEN = 'given'
# The roles of what updates are compared with.
DIRECTION = 'direction'
CONTROL = 'control'
TASK_VECTOR = 'task_vector'


@dataclasses.dataclass(frozen=True)
class MonitorOptions:
  """How a run is measured.

  Attributes:
    random: number of random controls of each direction; 0 for none.
    seed: seed of the random controls.
    false_alarm_rate: rate of false alarms in a whole run, for the threshold (see alarm.py).
    learning_rate: the learning rate to look at, where a run of ours tried several.
    allow_other_base: whether to go on where a source says that another model of the architecture
      was the base.
  """

  random: int = 100
  seed: int = 0
  false_alarm_rate: float = 0.01
  learning_rate: float | None = None
  allow_other_base: bool = False


@dataclasses.dataclass(frozen=True)
class Vector:
  """A change of the weights to compare updates, or other vectors, with.

  Attributes:
    role: DIRECTION, CONTROL or TASK_VECTOR.
  """

  name: str
  role: str
  folder: pathlib.Path
  change: Change


def monitor(
  run: files.Path,
  base: BaseSource,
  sources: Mapping[str, Sequence[files.Path]],
  options: MonitorOptions,
  *,
  steps: Sequence[trajectory.Step] = (),
  say: Callable[[str], None] = print,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """The rows and the summary of a run.

  Args:
    run: folder of the training run; see trajectory.find.
    base: the model before training.
    sources: {role: folders} of directions, controls and task vectors; each folder a direction, or
      anything that directions.task_vector takes.
    steps: the checkpoints to measure; by default, all that trajectory.find finds.
    say: called with a line for each step.

  Raises:
    InputError: if a source is missing, or the sources do not belong together.
    CorruptError: if a source was damaged.
  """
  # Whatever can be refused is refused before weights are read, which may take minutes.
  alarm.check_rate(options.false_alarm_rate)
  steps = steps or trajectory.find(run, learning_rate=options.learning_rate)
  # Ambiguous names are refused before anything is opened.
  names(_all_folders(sources))
  if not sources.get(DIRECTION):
    raise InputError('no direction to look for; name at least one with --direction')
  with contextlib.ExitStack() as stack:
    opened = _open_base(stack, base)
    vectors = _open_vectors(stack, sources, opened, options.allow_other_base)
    squares = {vector.name: measure.squared_norms(vector.change) for vector in vectors}
    # Task vectors are compared with the directions only, not with the run.
    compared = [vector for vector in vectors if vector.role != TASK_VECTOR]
    by_step = _measure(run, steps, opened, compared, squares, options, say)
    similarity = _similarities(vectors, squares)
    record = opened.record
  rows: list[dict[str, Any]] = []
  for step, measured in by_step.items():
    rows += _rows(step, measured, vectors)
  steps_read = [
    {'step': step.step, 'kind': step.kind, 'folder': str(step.folder)} for step in steps
  ]
  summary = {
    'run': str(run),
    'base': record.source,
    'base_digest': record.digest,
    **dataclasses.asdict(options),
    'steps': steps_read,
    'directions': _alarms(by_step, vectors, options.false_alarm_rate),
    'controls': _folders(vectors, CONTROL),
    'task_vectors': _folders(vectors, TASK_VECTOR),
    'similarity': similarity,
    'versions': versions('weightsteer_jax', 'jax', 'numpy'),
  }
  return rows, summary


def similarities(
  sources: Mapping[str, Sequence[files.Path]], base: BaseSource, *, allow_other_base: bool = False
) -> dict[str, Any]:
  """Cosines of all pairs of directions, controls and task vectors.

  The result holds names, roles, norms, and the rows of the symmetric matrix of cosines.

  Args:
    sources, base: as of `monitor`.

  Raises:
    InputError, CorruptError: as of `monitor`.
  """
  with contextlib.ExitStack() as stack:
    opened = _open_base(stack, base)
    vectors = _open_vectors(stack, sources, opened, allow_other_base)
    squares = {vector.name: measure.squared_norms(vector.change) for vector in vectors}
    return _similarities(vectors, squares)


def write(
  folder: pathlib.Path, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> None:
  """Writes the rows and the summary into a folder."""
  files.write_jsonl(folder / ROWS, rows)
  files.write_json(folder / SUMMARY, summary)


# {name of a vector: an update measured against the vector}.
Measured = dict[str, measure.Measured]


def _alarms(
  by_step: Mapping[int, Measured], vectors: Sequence[Vector], rate: float
) -> dict[str, Any]:
  """{direction: folder, cosines by step, and the alarm} for the summary."""
  given = []
  for vector in vectors:
    if vector.role == CONTROL:
      cosines = _cosines(by_step, vector.name)
      given.append(list(cosines.values()))
  # float64 makes NaN of None, where an update was zero. The shape is given because it cannot be
  # inferred without controls.
  given_cosines = np.array(given, np.float64).reshape(len(given), len(by_step)).T
  # Each direction has random controls of its own; the given controls are shared by all.
  about = {}
  for vector in vectors:
    if vector.role != DIRECTION:
      continue
    name = vector.name
    random_cosines = np.stack([measured[name].random for measured in by_step.values()])
    families = {RANDOM: random_cosines, GIVEN: given_cosines}
    cosines = _cosines(by_step, name)
    raised = alarm.alarm(cosines, families, rate=rate)
    about[name] = {
      'folder': str(vector.folder),
      'cosines': cosines,
      'alarm': raised.to_json(),
    }
  return about


def _cosines(by_step: Mapping[int, Measured], name: str) -> dict[int, float | None]:
  """{step: cosine of the whole update with a vector}."""
  return {step: measured[name].whole.cosine for step, measured in by_step.items()}


def _folders(vectors: Sequence[Vector], role: str) -> dict[str, str]:
  return {vector.name: str(vector.folder) for vector in vectors if vector.role == role}


def _measure(
  run: files.Path,
  steps: Sequence[trajectory.Step],
  base: OpenBase,
  vectors: Sequence[Vector],
  squares: Mapping[str, measure.Squares],
  options: MonitorOptions,
  say: Callable[[str], None],
) -> dict[int, Measured]:
  """{step: the update of that step against each vector}, with a line said for each step."""
  changes_of = {vector.name: vector.change for vector in vectors}
  directions = [vector.name for vector in vectors if vector.role == DIRECTION]
  # Controls named by the user get no random controls of their own.
  draws = {}
  if options.random:
    for name in directions:
      draws[name] = Draws(base.record.config, options.seed, options.random)
  by_step = {}
  for step in steps:
    opened = trajectory.open_change(step, run, base, allow_other_base=options.allow_other_base)
    with opened as update:
      measured = measure.measure(update, changes_of, draws=draws, squares=squares)
    by_step[step.step] = measured
    angles = []
    for name in directions:
      angle = measured[name].whole
      if angle.cosine is None:
        angles.append(f'{name} no change')
      else:
        angles.append(f'{name} {angle.cosine:+.4f} (alpha {angle.alpha:+.3g})')
    kind = trajectory.KINDS[step.kind]
    say(f'step {step.step} ({kind}): {", ".join(angles)}')
  return by_step


def _rows(step: int, measured: Measured, vectors: Sequence[Vector]) -> Iterator[dict[str, Any]]:
  """Rows of monitor.jsonl: all parts of the weights, then the random controls."""
  roles = {vector.name: vector.role for vector in vectors}
  for name, against in measured.items():
    for module, layer, angle in against.angles():
      yield {
        'step': step,
        'name': name,
        'role': roles[name],
        'module': module,
        'layer': layer,
        **dataclasses.asdict(angle),
      }
    for draw, cosine in enumerate(against.random):
      yield {
        'step': step,
        'name': name,
        'role': RANDOM,
        'draw': draw,
        # JSON has no NaN, the cosine of a zero update.
        'cosine': None if np.isnan(cosine) else float(cosine),
      }


def _similarities(
  vectors: Sequence[Vector], squares: Mapping[str, measure.Squares]
) -> dict[str, Any]:
  """Names, roles, norms and the matrix of cosines of all vectors."""
  norms = []
  for vector in vectors:
    squares_of_sites = squares[vector.name].values()
    square = sum(square_LE.sum() for square_LE in squares_of_sites)
    norms.append(float(np.sqrt(square)))
  # A list for each row: rows made by one multiplication would be one and the same list.
  matrix: list[list[float | None]] = [[None] * len(vectors) for _ in vectors]
  for i, x in enumerate(vectors):
    # A cosine with itself is 1 without being computed; a zero vector has none.
    matrix[i][i] = 1.0 if norms[i] else None
    # Half of the pairs are computed, each read from disk once; the matrix is symmetric.
    for j, y in enumerate(vectors[:i]):
      norms_xy = (norms[i], norms[j])
      cosine = measure.cosine(x.change, y.change, norms=norms_xy)
      matrix[i][j] = cosine
      matrix[j][i] = cosine
  return {
    'names': [vector.name for vector in vectors],
    'roles': [vector.role for vector in vectors],
    'norms': norms,
    'cosines': matrix,
  }


def _open_base(stack: contextlib.ExitStack, base: BaseSource) -> OpenBase:
  """The base, open as long as the stack is."""
  opened = stack.enter_context(open_base((), base))
  if opened is None:
    raise InputError('the base that the run was trained from is needed; name it with --base')
  return opened


def _open_vectors(
  stack: contextlib.ExitStack,
  sources: Mapping[str, Sequence[files.Path]],
  base: OpenBase,
  allow_other_base: bool,
) -> list[Vector]:
  """All sources, open as long as the stack is."""
  # Names tell the folders of all roles apart, and come in the order of the folders.
  named_folders = iter(names(_all_folders(sources)).items())
  vectors = []
  for role, folders in sources.items():
    for path, name in itertools.islice(named_folders, len(folders)):
      change = stack.enter_context(_open(path, base, allow_other_base))
      vectors.append(Vector(name, role, path, change))
  return vectors


def _all_folders(sources: Mapping[str, Sequence[files.Path]]) -> list[files.Path]:
  """The folders of all roles, in order."""
  return list(itertools.chain(*sources.values()))


@contextlib.contextmanager
def _open(folder: pathlib.Path, base: OpenBase, allow_other_base: bool) -> Iterator[Change]:
  """A direction, or the change that a fine-tune made of this base."""
  what = f'{folder} and the base {base.record.source}'
  # One of the two files is enough: a direction that lacks the other is refused by `load`.
  is_direction = (folder / MANIFEST).exists() or (folder / TENSORS).exists()
  if is_direction:
    direction = directions_.load(folder)
    bases.same_base(direction.base, base.record, what=what, allow_other_base=allow_other_base)
    yield changes.Held(direction.delta)
  elif recognise(folder).kind == CHECKPOINT:
    # A full checkpoint names no base: only the architecture can be checked before reading.
    with checkpoints.open_checkpoint(folder) as opened:
      bases.same_architecture(opened.config, base.record.config, what=what)
      yield changes.Streamed(opened, base.checkpoint, allow_other_base)
  else:
    task_vector = directions_.task_vector(folder, base, allow_other_base=allow_other_base)
    yield changes.Held(task_vector.delta)


def names(folders: Sequence[files.Path]) -> dict[pathlib.Path, str]:
  """{folder: name}, each name as short as possible and different from the others.

  A name is the last part of the folder's path, or as many of the last parts as needed.

  >>> paths = ['runs/a/directions/w', 'runs/b/directions/w', 'runs/v']
  >>> names(paths)[pathlib.Path('runs/b/directions/w')]
  'b/directions/w'

  Raises:
    InputError: if a folder is named twice.
  """
  paths = [pathlib.Path(folder).expanduser() for folder in folders]
  # Resolved, since two paths may lead to one folder.
  resolved = [path.resolve() for path in paths]
  counts = collections.Counter(resolved)
  for path, count in counts.items():
    if count > 1:
      raise InputError(f'{path} is named twice, among directions, controls and task vectors')
  names_of = {}
  for path, whole in zip(paths, resolved):
    depth = 1
    # Ends, because no two resolved paths are equal; each path is among the paths compared.
    while sum(other.parts[-depth:] == whole.parts[-depth:] for other in resolved) > 1:
      depth += 1
    names_of[path] = '/'.join(whole.parts[-depth:])
  return names_of
