"""The sweeps that the rows of a workdir come from: sweep/grids.jsonl, a line a grid.

A workdir may be swept again with other strengths, tasks or arms. All its rows are then one set of
results, as long as they are made from the same model, directions, items, tokens and sampling, which
`plan.json` holds and every sweep is compared with before it begins.

A line has the fields of `Grid`: `inputs` is the part of the plan that the grid needs, `settings` is
what its config said of strengths. The same sweep started again is the same grid.
"""

import collections
import dataclasses
import datetime
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weightsteer_jax.runtime.errors import CorruptError
from weightsteer_jax.storage import files

Row = Mapping[str, Any]
# An arm, a task and a strength.
Place = tuple[str, str, float]


@dataclasses.dataclass(frozen=True)
class Grid:
  """One sweep of a workdir.

  Attributes:
    grid: its number, from 1.
    alphas: {arm: strengths}.
    tasks: names of the tasks.
    inputs: what its rows are made from, as in plan.json.
    command: the command line; '' where not on record.
    settings: the strengths and arms of its config.
    begun, finished: ISO 8601, UTC; `finished` is '' for a sweep that did not end.
  """

  grid: int
  alphas: Mapping[str, Sequence[float]]
  tasks: Sequence[str]
  inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  command: str = ''
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  begun: str = ''
  finished: str = ''

  def holds(self, place: Place) -> bool:
    """Whether the grid names an arm, a task and a strength."""
    arm, task, alpha = place
    return task in self.tasks and alpha in self.alphas.get(arm, ())


def path_of(workdir: pathlib.Path) -> pathlib.Path:
  """The file of a workdir's grids."""
  return workdir / 'sweep' / 'grids.jsonl'


def read(workdir: pathlib.Path) -> list[Grid]:
  """The grids of a workdir in order; [] for a workdir of an earlier version.

  Raises:
    CorruptError: if a line is no grid.
  """
  path = path_of(workdir)
  if not path.is_file():
    return []
  names = {field.name for field in dataclasses.fields(Grid)}
  grids = []
  for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1):
    try:
      # A later version may add keys.
      values = {key: value for key, value in json.loads(line).items() if key in names}
      grids.append(Grid(**values))
    except (ValueError, TypeError, AttributeError) as error:
      raise CorruptError(
        f'{path}:{number} is no record of a sweep ({error}): move the file away; its rows are '
        'then those of one sweep'
      ) from None
  return grids


def begin(workdir: pathlib.Path, grid: Grid) -> int:
  """The number of a grid, which is put on record unless it is there.

  Args:
    grid: its number does not matter.
  """
  known = read(workdir)
  for each in known:
    if _content(each) == _content(grid):
      return each.grid
  number = len(known) + 1
  _write(workdir, [*known, dataclasses.replace(grid, grid=number, begun=now())])
  return number


def finish(workdir: pathlib.Path, number: int) -> None:
  """Records that all rows of a grid are on disk; the first time counts."""
  grids = []
  for grid in read(workdir):
    if grid.grid == number and not grid.finished:
      grid = dataclasses.replace(grid, finished=now())
    grids.append(grid)
  _write(workdir, grids)


def adopt(
  workdir: pathlib.Path,
  rows: Iterable[Row],
  inputs: Mapping[str, Any],
  *,
  command: str = '',
  settings: Mapping[str, Any],
) -> None:
  """Records the rows of an earlier version, which kept no grids, as one grid.

  Args:
    rows: all rows of the workdir.
    inputs: those of plan.json.
  """
  alphas: dict[str, set[float]] = {}
  tasks: dict[str, None] = {}
  for row in rows:
    alphas.setdefault(row['arm'], set()).add(float(row['alpha']))
    tasks[row['task']] = None
  written = (workdir / 'sweep' / 'rows.jsonl').stat().st_mtime
  when = _iso(datetime.datetime.fromtimestamp(written, datetime.UTC))
  strengths = {arm: sorted(values) for arm, values in alphas.items()}
  _write(workdir, [Grid(1, strengths, list(tasks), inputs, command, settings, when, when)])


def together(
  workdir: pathlib.Path, rows: Iterable[Row], tasks: Sequence[str] | None = None
) -> tuple[list[Row], dict[Place, Grid], list[str]]:
  """(the rows that belong together, the grid of each cell, what was left out in words).

  A cell (an arm, a task and a strength) is left out whole where its task is not among `tasks`,
  where its grid was made from other inputs than plan.json has, or where it lacks rows, as after a
  sweep that was interrupted. Rows come by arm in the order of the grids, then by task.

  Args:
    tasks: names in order; None is all.
  """
  cells: dict[Place, list[Row]] = {}
  for row in rows:
    cells.setdefault((row['arm'], row['task'], float(row['alpha'])), []).append(row)
  grids = read(workdir)
  plan = workdir / 'sweep' / 'plan.json'
  inputs = {}
  if plan.is_file():
    inputs = files.read_json(plan, what='the plan of a sweep').get('inputs', {})
  examples: dict[str, set[str]] = {}
  for (_, task, _), rows_of in cells.items():
    examples.setdefault(task, set()).update(row['example'] for row in rows_of)
  origins = {}
  # {reason: cells}, to say a reason once.
  left: dict[str, list[Place]] = {}
  for place, rows_of in cells.items():
    grid = _grid_of(place, grids)
    reason = ''
    if tasks is not None and place[1] not in tasks:
      reason = 'the config has no such task'
    elif grid and _differing(grid, inputs, place):
      reason = f'made from other inputs than the rest ({_differing(grid, inputs, place)})'
    elif _lacks(rows_of, examples[place[1]]):
      reason = 'not all of its rows are there: sweep it again to finish it'
    if reason:
      left.setdefault(reason, []).append(place)
    elif grid:
      origins[place] = grid
  out = {place for places in left.values() for place in places}
  kept = [place for place in cells if place not in out]
  ordered = sorted(kept, key=_order(grids, kept, tasks))
  chosen = [row for place in ordered for row in cells[place]]
  return chosen, origins, [_words(reason, places, cells) for reason, places in left.items()]


def summary(grids: Sequence[Grid]) -> list[str]:
  """The grids in words, a line each."""
  lines = []
  for grid in grids:
    arms = []
    for arm, alphas in grid.alphas.items():
      strengths = ', '.join(f'{alpha:g}' for alpha in alphas)
      arms.append(f'{arm} at {strengths}')
    ended = '' if grid.finished else ', not finished'
    lines.append(f'sweep {grid.grid} ({grid.begun[:10]}{ended}): {"; ".join(arms)}')
  return lines


def now() -> str:
  """The time, as grids have it."""
  return _iso(datetime.datetime.now(datetime.UTC))


def _iso(time: datetime.datetime) -> str:
  return time.strftime('%Y-%m-%dT%H:%M:%SZ')


def _write(workdir: pathlib.Path, grids: Sequence[Grid]) -> None:
  files.write_jsonl(path_of(workdir), [dataclasses.asdict(grid) for grid in grids])


def _content(grid: Grid) -> Any:
  """What makes two sweeps the same grid, as JSON has it."""
  return json.loads(json.dumps([grid.alphas, sorted(grid.tasks), grid.inputs]))


def _grid_of(place: Place, grids: Sequence[Grid]) -> Grid | None:
  """The first sweep that made a cell: the first to finish, or one that may have made it."""
  named = [grid for grid in grids if grid.holds(place)]
  finished = [grid for grid in named if grid.finished]
  return next(iter([*finished, *named]), None)


def _differing(grid: Grid, inputs: Mapping[str, Any], place: Place) -> str:
  """Names of inputs of a cell that plan.json has otherwise; '' for none."""
  arm, task, _ = place
  names = []
  for name, value in grid.inputs.items():
    # Inputs of other arms and tasks are nothing to this cell.
    of_other = name.endswith("'") and f"'{arm}'" not in name and f"'{task}'" not in name
    if not of_other and name in inputs and inputs[name] != json.loads(json.dumps(value)):
      names.append(name)
  return ', '.join(names)


def _lacks(rows: Sequence[Row], examples: set[str]) -> bool:
  """Whether a cell lacks an example of its task, or a sample that other examples have."""
  counts = collections.Counter(row['example'] for row in rows)
  return counts.keys() != examples or len(set(counts.values())) > 1


def _order(grids: Sequence[Grid], places: Iterable[Place], tasks: Sequence[str] | None) -> Any:
  """A key that sorts cells by arm, then by task; of one key, cells stay in order."""
  arms = {arm: None for grid in grids for arm in grid.alphas}
  arms |= {arm: None for arm, _, _ in places if arm not in arms}
  names = list(tasks or dict.fromkeys(task for _, task, _ in places))
  ranks = list(arms)
  return lambda place: (ranks.index(place[0]), names.index(place[1]))


def _words(reason: str, places: Sequence[Place], cells: Mapping[Place, Sequence[Row]]) -> str:
  rows = sum(len(cells[place]) for place in places)
  named = []
  for arm, task in dict.fromkeys((arm, task) for arm, task, _ in places):
    alphas = sorted(alpha for a, t, alpha in places if (a, t) == (arm, task))
    strengths = ', '.join(f'{alpha:g}' for alpha in alphas)
    named.append(f"task '{task}' of arm '{arm}' at alpha {strengths}")
  return f'results leave out {rows} rows in sweep/rows.jsonl, of {"; ".join(named)}: {reason}'
