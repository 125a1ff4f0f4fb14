"""Tables of the metrics that no figure shows: what else a task measures, and the shares of what
failed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weightsteer_jax.experiments.report.safe import escape
from weightsteer_jax.experiments.report.study import FAILURES, Study, format_alpha, metric_of

Row = Mapping[str, Any]


def further(sweep: Study) -> str:
  """What tasks measure beside what is plotted, folded away; nothing where they measure nothing
  else.
  """
  plotted = {task.name: metric_of(sweep.results, task.name) for task in sweep.tasks}
  rows = [row for row in sweep.results if row['metric'] not in (plotted[row['task']], *FAILURES)]
  return (
    f'<details><summary>Further metrics</summary>{_tables(sweep, rows, _mean)}</details>'
    if rows
    else ''
  )


def accounted(sweep: Study) -> str:
  """The failure accounting as counts with denominators; nothing where there is none."""
  rows = [row for row in sweep.results if row['metric'] in FAILURES and 'values' in row]
  if not rows:
    return ''
  return (
    '<h3>Shares</h3><p class="note">How many of how many: answers that could be judged, that '
    'refuse, that ran into the length limit, that repeat themselves, in which nothing could be '
    'read, and questions to the judge that it gave no score to. One answer can be in '
    f'several.</p>{_tables(sweep, rows, _count)}'
  )


def agreement(sweep: Study) -> str:
  """How far every two judges agree, by purpose; nothing where one judge was asked, or none."""
  if not sweep.agreement:
    return ''

  def number(value):
    return '–' if value is None else f'{value:.2f}'

  rows = [
    '<tr><th scope="row" '
    f'class="left">{escape(row["purpose"])}<small>{escape(row["first"])}, '
    f'{escape(row["second"])}</small></th>'
    f'<td>{row["n"]}</td><td>{number(row["kappa"])}<small>cut at '
    f'{row["cut"]:g}</small></td><td>{number(row["pearson"])}</td>'
    f'<td>{number(row["spearman"])}</td></tr>'
    for row in sweep.agreement
  ]
  heads = ''.join(
    f'<th scope="col">{name}</th>' for name in ('rows', 'kappa', 'Pearson', 'Spearman')
  )
  return (
    '<h3>Judges</h3><p class="note">How far two judges agree on the rows that both scored; '
    'the first one counts.</p>'
    f'{scrolling("accounting", f"<tr><th></th>{heads}</tr>", rows)}'
  )


def scrolling(kind: str, head: str, rows: Sequence[str]) -> str:
  """A table that scrolls sideways by itself where the window is narrow."""
  return (
    f'<div class="scroll"><table class="{kind}"><thead>{head}</thead>'
    f'<tbody>{"".join(rows)}</tbody></table></div>'
  )


def _tables(sweep: Study, rows: Sequence[Row], cell: Callable[[Row | None], str]) -> str:
  """For every arm a table of tasks and metrics against alpha."""
  several = len(sweep.arms) > 1
  return ''.join(
    (f'<h3>{escape(arm)}</h3>' if several else '')
    + _table([row for row in rows if row['arm'] == arm], cell)
    for arm in sweep.arms
  )


def _table(rows: Sequence[Row], cell: Callable[[Row | None], str]) -> str:
  alphas = sorted({float(row['alpha']) for row in rows})
  by_name: dict[tuple[str, str], dict[float, Row]] = {}
  for row in rows:
    by_name.setdefault((row['task'], row['metric']), {})[float(row['alpha'])] = row
  heads = ''.join(f'<th scope="col">{format_alpha(alpha)}</th>' for alpha in alphas)
  lines = [
    f'<tr><th scope="row" class="left">{escape(task)}<small>{escape(metric)}</small></th>'
    f'{"".join(cell(column.get(alpha)) for alpha in alphas)}</tr>'
    for (task, metric), column in by_name.items()
  ]
  return scrolling('accounting', f'<tr><th scope="col" class="left">task</th>{heads}</tr>', lines)


def _mean(row: Row | None) -> str:
  if row is None or row['mean'] is None:
    return '<td>–</td>'
  sem = '' if row['sem'] is None else f' ±{row["sem"]:.2f}'
  return f'<td>{row["mean"]:.2f}{sem}<small>n={row["n"]}</small></td>'


def _count(row: Row | None) -> str:
  if row is None or row['mean'] is None:
    return '<td>–</td>'
  return f'<td>{round(row["mean"] * row["values"])}/{row["values"]}</td>'
