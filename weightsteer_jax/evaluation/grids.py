"""The sweeps that the rows of a workdir come from: sweep/grids.jsonl, a line a grid.

A workdir may be swept again with other strengths, tasks or arms. All rows of the workdir are then
one set of results, as long as the rows are made from the same model, directions, items, tokens and
sampling. `plan.json` holds these inputs, and every sweep is compared with the plan before the sweep
begins. The same sweep started again is the same grid.
"""

import collections
import dataclasses
import datetime
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weightsteer_jax.runtime import json_text
from weightsteer_jax.runtime.errors import CorruptError
from weightsteer_jax.storage import files

Row = Mapping[str, Any]
# An arm, a task and a strength.
Place = tuple[str, str, float]
UNFINISHED = 'not all of its rows are there: sweep it again to finish it'


@dataclasses.dataclass(frozen=True)
class Grid:
  """One sweep of a workdir.

  Attributes:
    grid: the number of the sweep, from 1.
    alphas: {arm: strengths}.
    tasks: names of the tasks.
    inputs: what the rows are made from, as in plan.json.
    command: the command line; '' where not on record.
    settings: strengths of the config, as `swept_settings.strengths` has them.
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
  for number, line in enumerate(path.read_bytes().splitlines(), start=1):
    try:
      # A later version may add keys.
      values = {key: value for key, value in json_text.parse(line).items() if key in names}
      grids.append(Grid(**values))
    except (ValueError, TypeError, AttributeError) as error:
      raise CorruptError(
        f'{path}:{number} is no record of a sweep ({error}): move the file away, and all rows '
        'count as those of one sweep'
      ) from None
  return grids


def begin(workdir: pathlib.Path, grid: Grid) -> int:
  """The number of a grid, which is put on record unless it is there.

  Args:
    grid: a grid of any number.
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

  A cell is an arm, a task and a strength. Left out whole is a cell of a task that is not among
  `tasks`, a cell whose grid was made from other inputs than plan.json has, and a cell that lacks
  rows, as after an interrupted sweep. Rows come by arm in the order of the grids, then by task.

  Args:
    tasks: names in order; None is all.

  Raises:
    CorruptError: if a record of a sweep is broken.
  """
  cells: dict[Place, list[Row]] = {}
  # What a whole cell of a task has.
  examples: dict[str, set[str]] = {}
  for row in rows:
    place = (row['arm'], row['task'], float(row['alpha']))
    cells.setdefault(place, []).append(row)
    examples.setdefault(row['task'], set()).add(row['example'])
  grids = read(workdir)
  inputs = _planned(workdir)
  origins: dict[Place, Grid] = {}
  kept: list[Place] = []
  # {reason: cells}, to say each reason once.
  left: dict[str, list[Place]] = {}
  for place, rows_of_cell in cells.items():
    grid = _grid_of(place, grids)
    differing = _differing(grid, inputs, place) if grid else ''
    if tasks is not None and place[1] not in tasks:
      left.setdefault('the config has no such task', []).append(place)
    elif differing:
      reason = f'made from other inputs than the rest ({differing})'
      left.setdefault(reason, []).append(place)
    elif not _is_whole(rows_of_cell, examples[place[1]]):
      left.setdefault(UNFINISHED, []).append(place)
    else:
      kept.append(place)
      if grid:
        origins[place] = grid
  chosen: list[Row] = []
  for place in _in_order(kept, grids, tasks):
    chosen += cells[place]
  words = [_words(reason, places, cells) for reason, places in left.items()]
  return chosen, origins, words


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


def _planned(workdir: pathlib.Path) -> Mapping[str, Any]:
  """The inputs of plan.json; {} without the file."""
  plan = workdir / 'sweep' / 'plan.json'
  if not plan.is_file():
    return {}
  return files.read_json(plan, what='the plan of a sweep').get('inputs', {})


def _grid_of(place: Place, grids: Sequence[Grid]) -> Grid | None:
  """The sweep that made a cell; None where no sweep names the cell."""
  named = [grid for grid in grids if grid.holds(place)]
  # The first to finish has made every cell that it names. An unfinished one may have.
  finished = [grid for grid in named if grid.finished]
  candidates = finished or named
  return candidates[0] if candidates else None


def _differing(grid: Grid, inputs: Mapping[str, Any], place: Place) -> str:
  """Names of inputs of a cell that plan.json has otherwise; '' for none."""
  arm, task, _ = place
  own = (f"'{arm}'", f"'{task}'")
  names = []
  for name, value in grid.inputs.items():
    # A name that ends with a quoted one is an input of that arm or task alone.
    if name.endswith("'") and not name.endswith(own):
      continue
    # Through JSON, as the plan went: tuples are lists in both.
    if name in inputs and inputs[name] != json.loads(json.dumps(value)):
      names.append(name)
  return ', '.join(names)


def _is_whole(rows: Sequence[Row], examples: set[str]) -> bool:
  """Whether a cell has all examples of the task, each with as many samples."""
  counts = collections.Counter(row['example'] for row in rows)
  return counts.keys() == examples and len(set(counts.values())) == 1


def _in_order(
  places: Sequence[Place], grids: Sequence[Grid], tasks: Sequence[str] | None
) -> list[Place]:
  """Cells by arm, then by task; cells of one arm and task stay in order."""
  # Dictionaries as sets that keep an order: the grids' arms first.
  arms: dict[str, None] = {}
  for grid in grids:
    arms |= dict.fromkeys(grid.alphas)
  names = dict.fromkeys(tasks or ())
  for arm, task, _ in places:
    arms.setdefault(arm)
    names.setdefault(task)
  arm_ranks = {arm: rank for rank, arm in enumerate(arms)}
  task_ranks = {task: rank for rank, task in enumerate(names)}
  return sorted(places, key=lambda place: (arm_ranks[place[0]], task_ranks[place[1]]))


def _words(reason: str, places: Sequence[Place], cells: Mapping[Place, Sequence[Row]]) -> str:
  """The cells left out for one reason, in a sentence."""
  alphas: dict[tuple[str, str], list[float]] = {}
  rows = 0
  for arm, task, alpha in places:
    alphas.setdefault((arm, task), []).append(alpha)
    rows += len(cells[arm, task, alpha])
  named = []
  for (arm, task), strengths in alphas.items():
    at = ', '.join(f'{alpha:g}' for alpha in sorted(strengths))
    named.append(f"task '{task}' of arm '{arm}' at alpha {at}")
  return f'results leave out {rows} rows in sweep/rows.jsonl, of {"; ".join(named)}: {reason}'
