"""Tables of the metrics without figures.

Further metrics of the tasks, shares of failures, what became of thoughts, and agreement of judges.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weightsteer_jax.experiments.report import markup, tables
from weightsteer_jax.experiments.report.examples import Survey
from weightsteer_jax.experiments.report.safe import escape
from weightsteer_jax.experiments.report.study import (
  FAILURES,
  THOUGHTS,
  Study,
  cell_of,
  format_alpha,
  metric_of,
)

Row = Mapping[str, Any]


def further(sweep: Study) -> str:
  """The tasks' further metrics, folded away; '' without further metrics."""
  # Shares of failures have a table of their own.
  plotted = {task.name: metric_of(sweep.results, task.name) for task in sweep.tasks}
  rows = []
  for row in sweep.results:
    shown = (plotted[row['task']], *FAILURES, *THOUGHTS)
    if row['metric'] not in shown:
      rows.append(row)
  if not rows:
    return ''
  content = _tables(sweep, rows, _mean_cell)
  return f'<details><summary>Further metrics</summary>{content}</details>'


def accounted(sweep: Study) -> str:
  """The failure accounting as counts with denominators; '' without rows."""
  # Counts need a denominator, which only rows with 'values' have.
  rows = [row for row in sweep.results if row['metric'] in FAILURES and 'values' in row]
  if not rows:
    return ''
  return (
    '<p class="note">How many of how many: answers that could be judged, that '
    'refuse, that ran into the length limit, that repeat themselves, in which nothing could be '
    'read, and questions to the judge that it gave no score to. One answer can be in '
    f'several.</p>{_tables(sweep, rows, _count_cell)}'
  )


def thoughts(sweep: Study, survey: Survey) -> str:
  """What became of thoughts, by task and alpha; '' where no model thinks."""
  rows = [row for row in sweep.results if row['metric'] in THOUGHTS and 'values' in row]
  behind = [
    f'<p>Choices of {escape(task)} are scored behind {escape(what)}, as the model would think '
    'first.</p>'
    for task, what in survey.behind.items()
  ]
  if not rows:
    return ''.join(behind)
  table = _tables(sweep, rows, _thought_cell)
  return (
    '<p>The model thinks before it answers. Rules and judges read the answers; thoughts are kept '
    f'beside them.{_judged_too(sweep)} {_cut_words(sweep, survey)}</p>{"".join(behind)}'
    '<p class="note">How many of how many answers have a thought; mean tokens of these thoughts; '
    'thoughts that were cut, so that no answer came; <b>thought leaks</b>, answers with thinking '
    'outside of its place: behind the beginning of the answer, in a second thought, before a '
    'closing tag that nothing opened, or where the prompt had closed an empty thought; and '
    'answered thoughts that show by the rule of the task what the answer does not show '
    f'(thought_only_rate).</p>{table}'
  )


def _cut_words(sweep: Study, survey: Survey) -> str:
  """How many thoughts were cut, and which key to raise."""
  if not survey.cut:
    return 'No thought was cut.'
  cut = sum(endings.total() for endings in survey.cut.values())
  at_limit = sum(endings['length'] for endings in survey.cut.values())
  verb = 'thought was' if cut == 1 else 'thoughts were'
  words = (
    f'{cut} {verb} cut before an answer came: such rows have no value, are missed examples in '
    'shares of all examples, and are in no other mean.'
  )
  if at_limit:
    keys = []
    for task, endings in survey.cut.items():
      limit = _options(sweep).get(task, {}).get('max_new_tokens')
      now = '' if limit is None else f' (now {limit})'
      if endings['length']:
        keys.append(f'<code>tasks.{escape(task)}.max_new_tokens</code>{now}')
    words += f' {at_limit} ran into the length limit: raise {", ".join(keys)}.'
  # A model that ends its turn within a thought needs no more room.
  if cut > at_limit:
    words += f' {cut - at_limit} ended the turn within the thought, which no limit mends.'
  return words


def _judged_too(sweep: Study) -> str:
  """The tasks whose judges see thoughts, in a sentence; '' for none."""
  options = _options(sweep)
  names = [escape(name) for name, keys in options.items() if keys.get('judge_thoughts')]
  return f' Judges of {", ".join(names)} see thoughts too.' if names else ''


def _options(sweep: Study) -> Mapping[str, Mapping[str, Any]]:
  """{task: its keys in the config}."""
  tasks = sweep.config['tasks']
  # A config of another's making may have a list.
  return tasks if isinstance(tasks, Mapping) else {task['name']: task for task in tasks}


def agreement(sweep: Study) -> str:
  """How far every two judges agree, by purpose; '' with fewer than two judges."""
  # A single judge has nobody to agree with.
  if not sweep.agreement:
    return ''
  rows = []
  for row in sweep.agreement:
    judges = f'{escape(row["first"])}, {escape(row["second"])}'
    rows.append(
      f'<tr><th scope="row" class="left">{escape(row["purpose"])}<small>{judges}</small></th>'
      f'<td>{row["n"]}</td>'
      f'<td>{_number(row["kappa"])}<small>cut at {row["cut"]:g}</small></td>'
      f'<td>{_number(row["pearson"])}</td>'
      f'<td>{_number(row["spearman"])}</td></tr>'
    )
  columns = ('rows', 'kappa', 'Pearson', 'Spearman')
  heads = ''.join(f'<th scope="col">{name}</th>' for name in columns)
  return (
    '<h3>Judges</h3><p class="note">How far two judges agree on the rows that both scored; '
    'the first one counts.</p>'
    f'{markup.table(f"<tr><td></td>{heads}</tr>", rows, kind="accounting")}'
  )


def _tables(sweep: Study, rows: Sequence[Row], cell: Callable[[Row | None], str]) -> str:
  """For every arm a table of tasks and metrics against alpha."""
  parts = []
  for arm in sweep.arms:
    # The only arm of a page needs no heading.
    if len(sweep.arms) > 1:
      parts.append(f'<h3>{escape(arm)}</h3>')
    rows_of_arm = [row for row in rows if row['arm'] == arm]
    parts.append(_table(rows_of_arm, cell))
  return ''.join(parts)


def _table(rows: Sequence[Row], cell: Callable[[Row | None], str]) -> str:
  alphas = sorted({float(row['alpha']) for row in rows})
  # A line of the table for each task and metric, in the order of the results.
  rows_by_metric: dict[tuple[str, str], dict[float, Row]] = {}
  for row in rows:
    by_alpha = rows_by_metric.setdefault((row['task'], row['metric']), {})
    by_alpha[float(row['alpha'])] = row
  heads = ''.join(f'<th scope="col">{format_alpha(alpha)}</th>' for alpha in alphas)
  lines = []
  for (task, metric), by_alpha in rows_by_metric.items():
    cells = ''.join(cell(by_alpha.get(alpha)) for alpha in alphas)
    name = f'{escape(task)}<small>{escape(metric)}</small>'
    lines.append(f'<tr><th scope="row" class="left">{name}</th>{cells}</tr>')
  head = f'<tr><th scope="col" class="left">task</th>{heads}</tr>'
  return markup.table(head, lines, kind='accounting')


def _mean_cell(row: Row | None) -> str:
  if row is None or row['mean'] is None:
    return '<td>–</td>'
  cell = cell_of(row)
  words = f'{tables.format_cell(cell)}{tables.unread(cell)}'
  return (
    f'<td title="{escape(tables.digits(cell))}">{words}<small>{escape(cell.counted)}</small></td>'
  )


def _thought_cell(row: Row | None) -> str:
  # A length is a mean, all else are counts.
  if row is None or row['mean'] is None or row['metric'] != 'thought_tokens':
    return _count_cell(row)
  return f'<td>{row["mean"]:.1f}</td>'


def _count_cell(row: Row | None) -> str:
  if row is None or row['mean'] is None:
    return '<td>–</td>'
  # The mean of a share over `values` answers is a count over `values`.
  count = round(row['mean'] * row['values'])
  return f'<td>{count}/{row["values"]}</td>'


def _number(value: float | None) -> str:
  return '–' if value is None else f'{value:.2f}'
