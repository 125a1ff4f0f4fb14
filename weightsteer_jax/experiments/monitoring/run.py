"""A training run measured against directions, and what came out as files.

monitor.jsonl   one row for each (step, direction or control, module, layer), and for each (step,
                direction, random control) its cosine
summary.json    thresholds, alarms, where everything came from, and how similar directions and task
                vectors are
"""

import collections
import contextlib
import dataclasses
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

ROWS, SUMMARY = 'monitor.jsonl', 'summary.json'
RANDOM, GIVEN = 'random', 'given'  # The families of controls.
DIRECTION, CONTROL, TASK_VECTOR = 'direction', 'control', 'task_vector'


@dataclasses.dataclass(frozen=True)
class MonitorOptions:
  """How a run is measured.

  Attributes:
    random: random controls of each direction (0: none). seed: of them.
    false_alarm_rate: of a whole run, of the threshold (see alarm.py).
    learning_rate: which of several that a run of ours tried.
    allow_other_base: go on where a source says that it was made from another model of the
      architecture.
  """

  random: int = 100
  seed: int = 0
  false_alarm_rate: float = 0.01
  learning_rate: float | None = None
  allow_other_base: bool = False


@dataclasses.dataclass(frozen=True)
class Vector:
  """Something that updates, or other vectors, are compared with: its name, role, folder and
  change.
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
  say: Callable[[str], None] = print,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """The rows and the summary of a run.

  Args:
    run: see trajectory.find. base: the model it was trained from.
    sources: {role: folders} of directions, controls and task vectors; each a direction, or anything
      that directions.task_vector takes.

  Raises:
    InputError: sources that are not there, or do not belong together. CorruptError: one that was
      damaged.
  """
  alarm.check_rate(options.false_alarm_rate)
  steps = trajectory.find(run, learning_rate=options.learning_rate)
  names(
    [folder for folders in sources.values() for folder in folders]
  )  # Before anything is opened.
  if not sources.get(DIRECTION):
    raise InputError('no direction to look for; name at least one with --direction')
  with contextlib.ExitStack() as stack:
    opened = stack.enter_context(open_base((), base))
    if opened is None:
      raise InputError('the base that the run was trained from is needed; name it with --base')
    vectors = _vectors(stack, sources, opened, options.allow_other_base)
    squares = {one.name: measure.squared_norms(one.change) for one in vectors}
    measured = _measure(
      run, steps, opened, [one for one in vectors if one.role != TASK_VECTOR], squares, options, say
    )
    similarity = _similarities(vectors, squares)
    record = opened.record
  rows = [row for step, found in measured.items() for row in _rows(step, found, vectors)]
  cosines = _Cosines(measured, vectors)
  about = {
    'run': str(run),
    'base': record.source,
    'base_digest': record.digest,
    **dataclasses.asdict(options),
    'steps': [{'step': one.step, 'kind': one.kind, 'folder': str(one.folder)} for one in steps],
  }
  found = {
    one.name: {
      'folder': str(one.folder),
      'cosines': cosines.of(one.name),
      'alarm': alarm.alarm(
        cosines.of(one.name), cosines.families(one.name), rate=options.false_alarm_rate
      ).to_json(),
    }
    for one in vectors
    if one.role == DIRECTION
  }
  summary = {
    **about,
    'directions': found,
    'controls': {one.name: str(one.folder) for one in vectors if one.role == CONTROL},
    'task_vectors': {one.name: str(one.folder) for one in vectors if one.role == TASK_VECTOR},
    'similarity': similarity,
    'versions': versions('weightsteer_jax', 'jax', 'numpy'),
  }
  return rows, summary


def similarities(
  sources: Mapping[str, Sequence[files.Path]], base: BaseSource, *, allow_other_base: bool = False
) -> dict[str, Any]:
  """Cosines of all pairs of directions, controls and task vectors: names, roles, norms, and the
  rows of the symmetric matrix.

  Args:
    sources, base: as of `monitor`.

  Raises:
    InputError, CorruptError: as of `monitor`.
  """
  with contextlib.ExitStack() as stack:
    vectors = _vectors(stack, sources, stack.enter_context(open_base((), base)), allow_other_base)
    return _similarities(vectors, {one.name: measure.squared_norms(one.change) for one in vectors})


def write(
  folder: pathlib.Path, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> None:
  """Writes the rows and the summary into a folder."""
  files.write_jsonl(folder / ROWS, rows)
  files.write_json(folder / SUMMARY, summary)


Measured = dict[str, measure.Measured]


@dataclasses.dataclass(frozen=True)
class _Cosines:
  """The cosines of the whole updates, by step."""

  measured: Mapping[int, Measured]
  vectors: Sequence[Vector]

  def of(self, name: str) -> dict[int, float | None]:
    return {step: found[name].whole.cosine for step, found in self.measured.items()}

  def families(self, name: str) -> dict[str, np.ndarray]:
    """{family: [steps, controls]} of a direction's controls; NaN where an update was zero."""
    random = np.stack([found[name].random for found in self.measured.values()])
    given = [list(self.of(one.name).values()) for one in self.vectors if one.role == CONTROL]
    return {
      RANDOM: random,
      GIVEN: np.array(given, np.float64).reshape(len(given), len(self.measured)).T,
    }


def _measure(
  run,
  steps: Sequence[trajectory.Step],
  base: OpenBase,
  vectors: Sequence[Vector],
  squares: Mapping[str, measure.Squares],
  options: MonitorOptions,
  say: Callable[[str], None],
) -> dict[int, Measured]:
  draws = {
    one.name: Draws(base.record.config, options.seed, options.random)
    for one in vectors
    if one.role == DIRECTION and options.random
  }
  compared, found = {one.name: one.change for one in vectors}, {}
  for one in steps:
    with trajectory.open_change(
      one, run, base, allow_other_base=options.allow_other_base
    ) as update:
      found[one.step] = measure.measure(update, compared, draws=draws, squares=squares)
    angles = {
      vector.name: found[one.step][vector.name].whole
      for vector in vectors
      if vector.role == DIRECTION
    }
    say(f'step {one.step} ({trajectory.KINDS[one.kind]}): {_said(angles)}')
  return found


def _said(angles: Mapping[str, measure.Angle]) -> str:
  return ', '.join(
    f'{name} no change'
    if angle.cosine is None
    else f'{name} {angle.cosine:+.4f} (alpha {angle.alpha:+.3g})'
    for name, angle in angles.items()
  )


def _rows(step: int, measured: Measured, vectors: Sequence[Vector]) -> Iterator[dict[str, Any]]:
  roles = {one.name: one.role for one in vectors}
  for name, found in measured.items():
    for module, layer, angle in found.angles():
      place = {'module': module, 'layer': layer}
      yield {'step': step, 'name': name, 'role': roles[name], **place, **dataclasses.asdict(angle)}
    for draw, cosine in enumerate(found.random):
      yield {
        'step': step,
        'name': name,
        'role': RANDOM,
        'draw': draw,
        'cosine': None if np.isnan(cosine) else float(cosine),
      }


def _similarities(
  vectors: Sequence[Vector], squares: Mapping[str, measure.Squares]
) -> dict[str, Any]:
  """Cosines of all pairs: names, their roles, and the rows of the symmetric matrix."""
  norms = [
    float(np.sqrt(sum(part.sum() for part in squares[one.name].values()))) for one in vectors
  ]
  matrix: list[list[float | None]] = [[None] * len(vectors) for _ in vectors]
  for i, x in enumerate(vectors):
    for j, y in enumerate(vectors[:i]):
      matrix[i][j] = matrix[j][i] = measure.cosine(x.change, y.change, norms=(norms[i], norms[j]))
    matrix[i][i] = 1.0 if norms[i] else None
  names_, roles = [one.name for one in vectors], [one.role for one in vectors]
  return {'names': names_, 'roles': roles, 'norms': norms, 'cosines': matrix}


def _vectors(
  stack: contextlib.ExitStack,
  sources: Mapping[str, Sequence[files.Path]],
  base: OpenBase,
  allow_other_base: bool,
) -> list[Vector]:
  """All sources, open as long as the stack is."""
  roles = [role for role, folders in sources.items() for _ in folders]
  named = names([folder for folders in sources.values() for folder in folders])
  return [
    Vector(name, role, folder, stack.enter_context(_open(folder, base, allow_other_base)))
    for role, (folder, name) in zip(roles, named.items())
  ]


@contextlib.contextmanager
def _open(folder: pathlib.Path, base: OpenBase, allow_other_base: bool) -> Iterator[Change]:
  """A direction, or the change that a fine-tune made, checked to be one of the base's."""
  what = f'{folder} and the base {base.record.source}'
  if (folder / MANIFEST).exists() or (folder / TENSORS).exists():
    direction = directions_.load(folder)
    bases.same_base(direction.base, base.record, what=what, allow_other_base=allow_other_base)
    yield changes.Held(direction.delta)
  elif recognise(folder).kind == CHECKPOINT:
    with checkpoints.open_checkpoint(folder) as opened:
      bases.same_architecture(opened.config, base.record.config, what=what)
      yield changes.Streamed(opened, base.checkpoint, allow_other_base)
  else:
    yield changes.Held(
      directions_.task_vector(folder, base, allow_other_base=allow_other_base).delta
    )


def names(folders: Sequence[files.Path]) -> dict[pathlib.Path, str]:
  """{folder: name}: the last part of its path, or as many of the last as tell it from the others.

  >>> names(['runs/a/directions/w', 'runs/b/directions/w', 'runs/v'])[pathlib.Path('runs/b/directions/w')]
  'b/directions/w'

  Raises:
    InputError: one folder is named twice.
  """
  paths = [pathlib.Path(folder).expanduser() for folder in folders]
  resolved = [path.resolve() for path in paths]
  twice = [str(path) for path, count in collections.Counter(resolved).items() if count > 1]
  if twice:
    raise InputError(f'{twice[0]} is named twice, among directions, controls and task vectors')
  found = {}
  for path, whole in zip(paths, resolved):
    depth = next(
      n
      for n in range(1, len(whole.parts) + 1)
      if sum(other.parts[-n:] == whole.parts[-n:] for other in resolved) == 1
    )
    found[path] = '/'.join(whole.parts[-depth:])
  return found
