"""The results as text: alphas in rows, tasks in columns, for a terminal or for Markdown."""

from collections.abc import Sequence

from weightsteer_jax.experiments.report.comparison import Comparison
from weightsteer_jax.experiments.report.pick import Pick
from weightsteer_jax.experiments.report.study import Cell, format_alpha

PICKED, BASE, BROKEN = '>', '=', '!'


def text(pick: Pick) -> str:
  """One arm's results as an aligned table for a terminal, with its legend and the pick in words.

  Cells are mean ± standard error. `>` marks a picked alpha, `=` the base, `!` a capability outside
  the tolerance.
  """
  numbers = pick.comparison
  columns = [_column(numbers, task) for task in _tasks(numbers)]
  alphas = ['alpha', '', '', *(format_alpha(alpha) for alpha in numbers.alphas)]
  marks = ['', '', '', *(_mark(pick, alpha) for alpha in numbers.alphas)]
  lines = [f'{mark:1} {alpha:>{max(map(len, alphas))}}' for mark, alpha in zip(marks, alphas)]
  for column in columns:
    width = max(map(len, column))
    lines = [f'{line}  {entry:>{width}}' for line, entry in zip(lines, column)]
  lines.insert(3, '-' * max(map(len, lines)))
  legend = (
    f'{PICKED} picked   {BASE} base   {BROKEN} capability more than {numbers.tolerance:g} from the '
    'base   ± one standard error'
  )
  return '\n'.join([*(line.rstrip() for line in lines), legend, '', *pick.sentences])


def markdown(pick: Pick) -> str:
  """One arm's results as a Markdown table; picked rows and the base are marked in the first column,
  breaks with `!`.
  """
  numbers, tasks = pick.comparison, _tasks(pick.comparison)
  header = [
    'alpha',
    *(f'{_plain(task)} ({_role(numbers, task)}, {count(numbers, task)})' for task in tasks),
  ]
  rule = ['---:'] * len(header)
  names = {PICKED: ' (picked)', BASE: ' (base)', '': ''}
  body = [
    [
      format_alpha(alpha) + names[_mark(pick, alpha)],
      *(_entry(numbers, task, alpha) for task in tasks),
    ]
    for alpha in numbers.alphas
  ]
  lines = ['| ' + ' | '.join(row) + ' |' for row in (header, rule, *body)]
  return '\n'.join([*lines, '', *map(_plain, pick.sentences)])


def format_cell(cell: Cell) -> str:
  """Mean ± standard error, or a dash where nothing was measured.

  >>> [format_cell(cell) for cell in (Cell(0.954, 0.021, 40), Cell(0.5, float('nan'), 1), Cell(float('nan'), 0.0, 0))]
  ['0.95 ±0.02', '0.50', '-']
  """
  if not cell.measured:
    return '-'
  return f'{cell.mean:.2f}' + (f' ±{cell.sem:.2f}' if cell.sem == cell.sem else '')


def _column(numbers: Comparison, task: str) -> list[str]:
  body = [_entry(numbers, task, alpha) for alpha in numbers.alphas]
  # A blank stands where a mark could be: the digits stay under each other.
  aligned = [entry if entry.endswith(BROKEN) else f'{entry} ' for entry in body]
  return [f'{entry} ' for entry in (_role(numbers, task), task, count(numbers, task))] + aligned


def _entry(numbers: Comparison, task: str, alpha: float) -> str:
  broken = any(change.task == task for change in numbers.broken(alpha))
  return format_cell(numbers.cell(task, alpha)) + (BROKEN if broken else '')


def _mark(pick: Pick, alpha: float) -> str:
  return PICKED if alpha in pick.alphas else BASE if alpha == 0 else ''


def _role(numbers: Comparison, task: str) -> str:
  return 'capability' if task in numbers.capability else 'behaviour'


def count(numbers: Comparison, task: str) -> str:
  """The examples behind each number of a task, as a range where alphas differ."""
  counts = sorted({numbers.cell(task, alpha).n for alpha in numbers.alphas})
  return f'n={counts[0]}' if len(counts) == 1 else f'n={counts[0]}-{counts[-1]}'


def _tasks(numbers: Comparison) -> Sequence[str]:
  """Measured tasks, behaviours first; a behaviour that the pick does not look at is shown all the
  same.
  """
  others = [task for task in numbers.table if task not in numbers.behaviour + numbers.capability]
  measured = [task for task in numbers.behaviour if task in numbers.table], others
  return [
    *measured[0],
    *measured[1],
    *(task for task in numbers.capability if task in numbers.table),
  ]


def _plain(words: str) -> str:
  """Text that cannot end a Markdown table cell or start markup."""
  return ''.join(f'\\{letter}' if letter in '\\|`*_<>[]' else letter for letter in words).replace(
    '\n', ' '
  )
