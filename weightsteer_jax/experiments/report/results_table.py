"""The page's table of an arm: a row for each alpha, a column for each task, grouped by role."""

import dataclasses
import math

from weightsteer_jax.experiments.report import curves, markup, study, tables
from weightsteer_jax.experiments.report.comparison import Comparison
from weightsteer_jax.experiments.report.pick import Pick
from weightsteer_jax.experiments.report.safe import escape
from weightsteer_jax.experiments.report.study import ROLES, Cell, Study, format_alpha

NOT_MEASURED = Cell(math.nan, math.nan, 0)


@dataclasses.dataclass(frozen=True)
class _Column:
  """A task's metric.

  Attributes:
    is_own: whether the metric is the task's own, by which a capability is kept or lost.
    is_first: whether a new role begins with the column.
  """

  task: str
  metric: str
  cells: dict[float, Cell]
  is_own: bool
  is_first: bool


def of_arm(sweep: Study, choice: Pick) -> str:
  """One arm's means as a table, log-odds beside the rates of choices."""
  numbers = choice.comparison
  columns: list[_Column] = []
  role_heads = []
  for role in ROLES:
    of_role = _columns(sweep, numbers, role)
    if of_role:
      role_heads.append(f'<th colspan="{len(of_role)}" class="first-of-role">{role}</th>')
    columns += of_role
  task_heads = [_head(numbers, column) for column in columns]
  head = (
    f'<tr class="roles"><td></td>{"".join(role_heads)}</tr>'
    f'<tr><th scope="col" class="left">alpha</th>{"".join(task_heads)}</tr>'
  )
  rows = [_row(choice, columns, alpha) for alpha in numbers.alphas]
  return markup.table(head, rows, kind='results')


def _columns(sweep: Study, numbers: Comparison, role: str) -> list[_Column]:
  columns: list[_Column] = []
  for task in sweep.tasks:
    # An arm may have been measured on some of the tasks only.
    if task.role != role or task.name not in numbers.table:
      continue
    own = study.metric_of(sweep.results, task.name)
    for metric in dict.fromkeys((own, tables.BESIDE)):
      cells = study.column(sweep.results, numbers.arm, task.name, metric)
      if cells:
        columns.append(_Column(task.name, metric, cells, metric == own, not columns))
  return columns


def _head(numbers: Comparison, column: _Column) -> str:
  kind = ' class="first-of-role"' if column.is_first else ''
  about = escape(column.metric)
  if column.is_own:
    about += f', {escape(tables.count(numbers, column.task))}'
  return f'<th{kind} scope="col">{escape(column.task)}<small>{about}</small></th>'


def _row(choice: Pick, columns: list[_Column], alpha: float) -> str:
  broken = {change.task for change in choice.comparison.broken(alpha)}
  cells = []
  for column in columns:
    names = []
    if column.is_own and column.task in broken:
      names.append('outside')
    if column.is_first:
      names.append('first-of-role')
    href = curves.address(column.task, choice.arm, alpha)
    cells.append(_cell(column.cells.get(alpha, NOT_MEASURED), ' '.join(names), href))
  mark = ''
  if alpha in choice.alphas:
    mark = 'picked'
  elif alpha == 0:
    mark = 'base'
  note = f'<span class="mark">{mark}</span>' if mark else ''
  # Arm and alpha with all digits, for programs that read the page.
  return (
    f'<tr class="{mark}" data-arm="{escape(choice.arm)}" data-alpha="{alpha!r}">'
    f'<th scope="row" class="left">{format_alpha(alpha)}{note}</th>{"".join(cells)}</tr>'
  )


def _cell(cell: Cell, classes: str, href: str) -> str:
  """A number with its error, and below the share of answers that could not be read."""
  if not cell.measured:
    return f'<td class="{classes}" title="not measured">–</td>'
  error = tables.error(cell)
  sem = f' <span class="sem">{escape(error)}</span>' if error else ''
  unread = ''
  if cell.unreadable:
    kind = 'unread most' if cell.few else 'unread'
    unread = f'<small class="{kind}">{escape(tables.percent(cell.unread))} not read</small>'
  # All digits in the title, two on the page.
  return (
    f'<td class="{classes}" title="{escape(tables.digits(cell))}">'
    f'<a href="{escape(href)}">{cell.mean:.2f}</a>{sem}{unread}</td>'
  )
