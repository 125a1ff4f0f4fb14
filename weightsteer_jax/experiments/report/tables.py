"""The results as text: alphas in rows, tasks in columns, for a terminal or for Markdown."""

import csv as csvs
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.experiments.report.comparison import Comparison
from weightsteer_jax.experiments.report.pick import Pick
from weightsteer_jax.experiments.report.study import Cell, format_alpha

# Marks of a picked alpha, of alpha 0, and of a capability outside the tolerance.
PICKED = '>'
BASE = '='
BROKEN = '!'


def text(pick: Pick) -> str:
  """One arm's results as an aligned table for a terminal, with legend and pick in words.

  Cells are mean ± standard error. `>` marks a picked alpha, `=` the base, `!` a capability outside
  the tolerance.
  """
  numbers = pick.comparison
  # Three lines of heads (role, task, n), then a line for each alpha.
  marks = ['', '', '']
  alphas = ['alpha', '', '']
  for alpha in numbers.alphas:
    marks.append(_mark(pick, alpha))
    alphas.append(format_alpha(alpha))
  width = max(len(alpha) for alpha in alphas)
  # The table grows by a column at a time, each as wide as the widest entry.
  lines = [f'{mark:1} {alpha:>{width}}' for mark, alpha in zip(marks, alphas)]
  for task in _tasks(numbers):
    heads = (_role(numbers, task), task, count(numbers, task))
    column = [f'{head} ' for head in heads]
    for alpha in numbers.alphas:
      entry = _entry(numbers, task, alpha)
      # A blank stands where a mark could be: the digits stay under each other.
      column.append(entry if entry.endswith(BROKEN) else f'{entry} ')
    width = max(len(entry) for entry in column)
    lines = [f'{line}  {entry:>{width}}' for line, entry in zip(lines, column)]
  lines.insert(3, '-' * max(len(line) for line in lines))
  legend = (
    f'{PICKED} picked   {BASE} base   {BROKEN} capability more than {numbers.tolerance:g} from the '
    'base   ± one standard error'
  )
  table = [line.rstrip() for line in lines]
  return '\n'.join([*table, legend, '', *pick.sentences])


def markdown(pick: Pick) -> str:
  """One arm's results as a Markdown table, with the pick in words.

  Picked alphas and the base are marked in the first column, breaks with `!`.
  """
  numbers = pick.comparison
  tasks = _tasks(numbers)
  header = ['alpha']
  for task in tasks:
    role = _role(numbers, task)
    header.append(f'{_plain(task)} ({role}, {count(numbers, task)})')
  # Numbers are aligned right.
  rows = [header, ['---:'] * len(header)]
  names = {PICKED: ' (picked)', BASE: ' (base)', '': ''}
  for alpha in numbers.alphas:
    mark = _mark(pick, alpha)
    name = format_alpha(alpha) + names[mark]
    entries = [_entry(numbers, task, alpha) for task in tasks]
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
  """Mean ± standard error, or a dash where nothing was measured.

  >>> nan = float('nan')
  >>> format_cell(Cell(0.954, 0.021, 40)), format_cell(Cell(0.5, nan, 1))
  ('0.95 ±0.02', '0.50')
  >>> format_cell(Cell(nan, 0.0, 0))
  '-'
  """
  if not cell.measured:
    return '-'
  mean = f'{cell.mean:.2f}'
  # One example has no standard error.
  if math.isnan(cell.sem):
    return mean
  return f'{mean} ±{cell.sem:.2f}'


def _entry(numbers: Comparison, task: str, alpha: float) -> str:
  entry = format_cell(numbers.cell(task, alpha))
  broken = [change.task for change in numbers.broken(alpha)]
  return entry + BROKEN if task in broken else entry


def _mark(pick: Pick, alpha: float) -> str:
  # Never both: a pick is never zero.
  if alpha in pick.alphas:
    return PICKED
  return BASE if alpha == 0 else ''


def _role(numbers: Comparison, task: str) -> str:
  return 'capability' if task in numbers.capability else 'behaviour'


def count(numbers: Comparison, task: str) -> str:
  """The examples behind each number of a task, as a range where alphas differ."""
  counts = sorted({numbers.cell(task, alpha).n for alpha in numbers.alphas})
  return f'n={counts[0]}' if len(counts) == 1 else f'n={counts[0]}-{counts[-1]}'


def _tasks(numbers: Comparison) -> Sequence[str]:
  """Measured tasks, behaviours first."""
  behaviours = [task for task in numbers.behaviour if task in numbers.table]
  capabilities = [task for task in numbers.capability if task in numbers.table]
  # Behaviours that the pick does not look at are shown all the same.
  known = numbers.behaviour + numbers.capability
  others = [task for task in numbers.table if task not in known]
  return behaviours + others + capabilities


def _plain(words: str) -> str:
  """Text that cannot end a Markdown table cell or start markup."""
  escaped = re.sub(r'[\\|`*_<>\[\]]', r'\\\g<0>', words)
  return escaped.replace('\n', ' ')
