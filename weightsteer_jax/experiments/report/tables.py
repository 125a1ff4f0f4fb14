"""The results as text: alphas in rows, tasks in columns, for a terminal or for Markdown."""

import csv as csvs
import dataclasses
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.experiments.report import words
from weightsteer_jax.experiments.report.comparison import Comparison
from weightsteer_jax.experiments.report.pick import Pick
from weightsteer_jax.experiments.report.study import Cell, column, format_alpha, metric_of

# Marks of a picked alpha, of alpha 0, and of a capability that costs more than the tolerance.
PICKED = '>'
BASE = '='
BROKEN = '!'
# Behind the share of answers that could not be read, and where that is most of them.
UNREAD = '?'
FEW = '??'
# The metric shown beside the rate of a choice, which stops at 0 and 1 where log-odds go on.
BESIDE = 'log_odds'


@dataclasses.dataclass(frozen=True)
class _Column:
  """A column of the table: lines of heads, and entries by alpha in three parts.

  Attributes:
    entries: {alpha: (number, mark, share not read)}.
  """

  heads: tuple[str, ...]
  entries: Mapping[float, tuple[str, str, str]]

  def lines(self, alphas: Sequence[float]) -> list[str]:
    """All lines of the column, equally wide."""
    numbers, _, shares = (max(map(len, part)) for part in zip(*self.entries.values()))
    lines = list(self.heads)
    for alpha in alphas:
      number, mark, share = self.entries[alpha]
      # Marks stand in places of their own, so that digits are under each other.
      beside = f' {share:>{shares}}' if shares else ''
      lines.append(f'{number:>{numbers}}{mark:1}{beside}')
    width = max(len(line) for line in lines)
    return [f'{line:>{width}}' for line in lines]


def text(pick: Pick, results: Sequence[Mapping[str, Any]] = ()) -> str:
  """One arm's results as an aligned table for a terminal, with legend and pick in words.

  `>` marks a picked alpha, `=` the base, `!` a capability that costs more than the tolerance, and
  `?` the share of answers that could not be read. Log-odds of choices have a table below.

  Args:
    results: the sweep's results, for the log-odds of choices and the sweeps behind the numbers.
  """
  numbers = pick.comparison
  columns = _columns(numbers)
  parts = [*_aligned(pick, columns), *_legend(numbers, columns)]
  origin = words.sweeps(results)
  if origin:
    parts.append(origin)
  odds = _odds(numbers, results)
  if odds:
    parts += ['', 'Log-odds of the choices, in nats:', *_aligned(pick, odds)]
  return '\n'.join([*parts, '', *pick.sentences])


def _aligned(pick: Pick, columns: Sequence[_Column]) -> list[str]:
  """The lines of a table: heads, a rule, and a line for each alpha."""
  numbers = pick.comparison
  heads = len(columns[0].heads) if columns else 1
  marks = [*[''] * heads, *(_mark(pick, alpha) for alpha in numbers.alphas)]
  alphas = ['alpha', *[''] * (heads - 1), *map(format_alpha, numbers.alphas)]
  width = max(len(alpha) for alpha in alphas)
  lines = [f'{mark:1} {alpha:>{width}}' for mark, alpha in zip(marks, alphas)]
  # The table grows by a column at a time.
  for each in columns:
    entries = each.lines(numbers.alphas)
    lines = [f'{line}  {entry}' for line, entry in zip(lines, entries)]
  lines.insert(heads, '-' * max(len(line) for line in lines))
  # Without groups of questions, the last line of heads says nothing.
  return [line.rstrip() for line in lines if line.strip()]


def _columns(numbers: Comparison) -> list[_Column]:
  """Role, task and counts of each task, over its numbers."""
  columns = []
  for task in _tasks(numbers):
    entries = {}
    for alpha in numbers.alphas:
      cell = numbers.cell(task, alpha)
      mark = BROKEN if _is_broken(numbers, task, alpha) else ''
      entries[alpha] = (format_cell(cell), mark, unread(cell).strip())
    columns.append(_Column((_role(numbers, task), task, *_counts(numbers, task)), entries))
  return columns


def _odds(numbers: Comparison, results: Sequence[Mapping[str, Any]]) -> list[_Column]:
  """The log-odds of the tasks that are shown by their rate."""
  nothing = Cell(math.nan, math.nan, 0)
  columns = []
  for task in _tasks(numbers):
    odds = column(results, numbers.arm, task, BESIDE)
    if odds and metric_of(results, task) != BESIDE:
      cells = {alpha: odds.get(alpha, nothing) for alpha in numbers.alphas}
      entries = {alpha: (format_cell(cell), '', '') for alpha, cell in cells.items()}
      columns.append(_Column((task,), entries))
  return columns


def _legend(numbers: Comparison, columns: Sequence[_Column]) -> list[str]:
  """The marks that the table holds, in words."""
  entries = [entry for each in columns for entry in each.entries.values()]
  said = [f'{PICKED} picked', f'{BASE} base']
  if any(mark for _, mark, _ in entries):
    said.append(f'{BROKEN} {words.mark(numbers.rule)}')
  said.append('± one standard error')
  if any('≤' in number or '≥' in number for number, _, _ in entries):
    said.append('≤ ≥ 95 % limit where all answers are alike')
  lines = ['   '.join(said)]
  if any(share for _, _, share in entries):
    lines.append(f'{UNREAD} share of answers that could not be read   {FEW} most of them')
  return lines


def markdown(pick: Pick) -> str:
  """One arm's results as a Markdown table, with the pick in words.

  Picked alphas and the base are marked in the first column, breaks with `!`, and answers that could
  not be read with `?`.
  """
  numbers = pick.comparison
  tasks = _tasks(numbers)
  header = ['alpha']
  for task in tasks:
    role = _role(numbers, task)
    header.append(f'{_plain(task)} ({role}, {_plain(count(numbers, task))})')
  # Numbers are aligned right.
  rows = [header, ['---:'] * len(header)]
  names = {PICKED: ' (picked)', BASE: ' (base)', '': ''}
  for alpha in numbers.alphas:
    mark = _mark(pick, alpha)
    name = format_alpha(alpha) + names[mark]
    entries = []
    for task in tasks:
      cell = numbers.cell(task, alpha)
      broken = BROKEN if _is_broken(numbers, task, alpha) else ''
      entries.append(format_cell(cell) + broken + unread(cell))
    rows.append([name, *entries])
  lines = [f'| {" | ".join(row)} |' for row in rows]
  return '\n'.join([*lines, '', *map(_plain, pick.sentences)])


def csv(results: Sequence[Mapping[str, Any]]) -> str:
  """The rows of results.jsonl as comma-separated values, all digits kept."""
  # Keys in order of appearance: rows of different metrics need not have the same.
  keys = dict.fromkeys(key for row in results for key in row)
  text = io.StringIO()
  writer = csvs.DictWriter(text, list(keys), lineterminator='\n')
  writer.writeheader()
  writer.writerows(results)
  return text.getvalue()


def format_cell(cell: Cell) -> str:
  """Mean and error, or a dash where nothing was measured.

  >>> nan = float('nan')
  >>> format_cell(Cell(0.954, 0.021, 40)), format_cell(Cell(0.5, nan, 1))
  ('0.95 ±0.02', '0.50')
  >>> format_cell(Cell(1.0, 0.0, 47, low=0.924, high=1.0)), format_cell(Cell(nan, 0.0, 0))
  ('1.00 ≥0.92', '-')
  """
  if not cell.measured:
    return '-'
  return ' '.join([f'{cell.mean:.2f}', error(cell)]).rstrip()


def error(cell: Cell) -> str:
  """The standard error; where all answers are alike, the end of the interval; '' if not known.

  Answers that are all alike have no standard error to be seen, which is no certainty.
  """
  # One question has no standard error.
  if math.isnan(cell.sem):
    return ''
  # Results of earlier versions have no interval, and NaN is not smaller.
  if cell.sem > 0 or not cell.low < cell.high:
    return f'±{cell.sem:.2f}'
  if cell.mean == cell.low:
    return f'≤{cell.high:.2f}'
  return f'≥{cell.low:.2f}'


def unread(cell: Cell) -> str:
  """The share of answers that could not be read, marked, behind a blank; '' for none.

  >>> unread(Cell(0.0, 0.0, 47, unreadable=96, asked=100))
  ' 96%??'
  """
  if not cell.unreadable:
    return ''
  return f' {percent(cell.unread)}{FEW if cell.few else UNREAD}'


def percent(share: float) -> str:
  """A share in words, never 0% for something nor 100% for less than all.

  >>> [percent(share) for share in (0.004, 0.25, 0.996)]
  ['<1%', '25%', '>99%']
  """
  if 0 < share < 0.01:
    return '<1%'
  if 0.99 < share < 1:
    return '>99%'
  return f'{100 * share:.0f}%'


def digits(cell: Cell) -> str:
  """All that is known of a cell, with all digits."""
  parts = [f'{cell.mean!r} ± {cell.sem!r}']
  if not math.isnan(cell.low):
    parts.append(f'95 %: {cell.low!r} to {cell.high!r}')
  if not math.isnan(cell.change):
    parts.append(f'change {cell.change!r} ± {cell.change_sem!r}')
  parts.append(cell.counted)
  if cell.unreadable:
    parts.append(f'{cell.unreadable} of {cell.asked} could not be read')
  if cell.grid:
    parts.append(f'from sweep {cell.grid}')
  return ', '.join(parts)


def _is_broken(numbers: Comparison, task: str, alpha: float) -> bool:
  return any(change.task == task for change in numbers.broken(alpha))


def _mark(pick: Pick, alpha: float) -> str:
  # Never both: a pick is never zero.
  if alpha in pick.alphas:
    return PICKED
  return BASE if alpha == 0 else ''


def _role(numbers: Comparison, task: str) -> str:
  return 'capability' if task in numbers.capability else 'behaviour'


def count(numbers: Comparison, task: str) -> str:
  """The answers behind each number of a task, on how many questions.

  A range stands where alphas differ.
  """
  return ' '.join(_counts(numbers, task)).strip()


def _counts(numbers: Comparison, task: str) -> tuple[str, str]:
  """(answers, the questions behind them), as ranges where alphas differ."""
  cells = [numbers.cell(task, alpha) for alpha in numbers.alphas]
  measured = [cell for cell in cells if cell.measured]
  if not measured:
    return 'no answers', ''
  answers = _range({cell.answers for cell in measured})
  things = measured[0].things
  if all(cell.answers == cell.n for cell in measured):
    return f'{answers} {things}', ''
  return f'{answers} {things}', f'on {_range({cell.n for cell in measured})} {measured[0].groups}'


def _range(numbers: set[int]) -> str:
  low = min(numbers)
  high = max(numbers)
  return str(low) if low == high else f'{low}-{high}'


def _tasks(numbers: Comparison) -> Sequence[str]:
  """Measured tasks, behaviours first."""
  behaviours = [task for task in numbers.behaviour if task in numbers.table]
  capabilities = [task for task in numbers.capability if task in numbers.table]
  # Behaviours that the pick does not look at are shown all the same.
  known = numbers.behaviour + numbers.capability
  others = [task for task in numbers.table if task not in known]
  return behaviours + others + capabilities


def _plain(line: str) -> str:
  """Text that cannot end a Markdown table cell or start markup."""
  escaped = re.sub(r'[\\|`*_<>\[\]]', r'\\\g<0>', line)
  return escaped.replace('\n', ' ')
