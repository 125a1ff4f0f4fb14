"""The sweep's rows counted, and where each example's rows stand in the file.

One pass over rows.jsonl, which keeps two numbers a row and no texts: a long sweep fits in memory.
`parts.py` reads the rows again, example by example.
"""

import array
import collections
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from weightsteer_jax.experiments.report import study
from weightsteer_jax.experiments.report.study import SweptTask
from weightsteer_jax.runtime.errors import InputError


@dataclasses.dataclass
class Counts:
  """Rows of one (arm, task, alpha).

  Attributes:
    statuses: {status: rows}.
    without_value: rows without a value.
  """

  statuses: collections.Counter
  without_value: int = 0

  @property
  def total(self) -> int:
    """Number of all rows."""
    return self.statuses.total()

  @property
  def failed(self) -> dict[str, int]:
    """{status: rows} of all but the ok rows, commonest first."""
    return {status: count for status, count in self.statuses.most_common() if status != 'ok'}


@dataclasses.dataclass(slots=True)
class Places:
  """The rows of one example.

  Attributes:
    lines: first byte of each row's line in rows.jsonl.
  """

  lines: array.array = dataclasses.field(default_factory=lambda: array.array('q'))


@dataclasses.dataclass(frozen=True)
class Survey:
  """Counts over all rows of a sweep.

  Attributes:
    counts: {(arm, task, alpha): Counts}.
    places: {task: {example: Places}}.
    values: {task: (smallest, largest) value}, for the colours of the page.
    cut: {task: {how generation ended: rows whose thought was cut}}.
    behind: {task: what its choices are scored behind}, where it is not the model's own prompt.
  """

  counts: dict[tuple[str, str, float], Counts]
  places: dict[str, dict[str, Places]]
  values: dict[str, tuple[float, float]]
  cut: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
  behind: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def arms(self) -> list[str]:
    """Names of the arms, in the order of the rows."""
    return list(dict.fromkeys(arm for arm, _, _ in self.counts))


def count_rows(workdir: str | Path, tasks: Sequence[SweptTask]) -> Survey:
  """The counts of a sweep, from one pass over all rows.

  Raises:
    InputError: if the config lacks a row's task.
    CorruptError: as `study.sample_rows`.
  """
  counts: dict[tuple[str, str, float], Counts] = {}
  places: dict[str, dict[str, Places]] = {task.name: {} for task in tasks}
  values: dict[str, tuple[float, float]] = {}
  cut: dict[str, collections.Counter[str]] = {}
  behind: dict[str, str] = {}
  for line, row in study.placed_rows(workdir):
    task = row['task']
    if task not in places:
      raise InputError(
        f'sweep/rows.jsonl: task {task!r} is not in config.json, which has '
        f'{", ".join(sorted(places)) or "no tasks"}'
      )
    place = places[task].setdefault(row['example'], Places())
    place.lines.append(line)
    count = counts.setdefault((row['arm'], task, row['alpha']), Counts(collections.Counter()))
    count.statuses[str(row['status'])] += 1
    if row.get('thought_cut'):
      cut.setdefault(task, collections.Counter())[str(row.get('finish'))] += 1
    if row.get('behind'):
      behind[task] = str(row['behind'])
    value = row['value']
    # Infinite values have no colour, and JSON has none.
    if math.isfinite(value):
      low, high = values.get(task, (value, value))
      values[task] = (min(low, value), max(high, value))
    else:
      count.without_value += 1
  return Survey(counts, places, values, cut, behind)
