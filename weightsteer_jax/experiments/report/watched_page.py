"""The page of a study of watched fine-tunes.

Fine-tunes caught by the alarm, how well each direction tells misaligned fine-tunes from others,
and how similar directions and updates are.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weightsteer_jax.experiments.report import figures, markup, monitor_figures
from weightsteer_jax.experiments.report.safe import escape
from weightsteer_jax.storage import files

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# What monitor_study.py writes to watched/study.json.
StudyJson = Mapping[str, Any]
MISALIGNED = figures.ARM_COLOURS[1]
OTHER = figures.ARM_COLOURS[0]


def write(path: pathlib.Path, study: StudyJson, *, title: str) -> None:
  """Writes the page, and watched-cosines.png and watched-similarity.png beside.

  Args:
    study: see monitor_study.py.
    title: any text; the page escapes the text.

  Raises:
    OutputError: if a file cannot be written.
  """
  drawn = {
    'watched-cosines': cosines(study),
    'watched-similarity': monitor_figures.similarity(study),
  }
  # The page holds vectors; the pictures beside are for slides.
  for name, figure in drawn.items():
    files.write_bytes(path.parent / f'{name}.png', figures.png(figure))
  drawings = {name: figures.svg(figure, name) for name, figure in drawn.items()}
  files.write_text(path, _page(study, drawings, escape(title)))


def lines(study: StudyJson) -> list[str]:
  """A line for each direction: AUROC, detections and false alarms; then the spectra's AUROC."""
  told = [
    _line(name, worth['auroc'], worth['detections']) for name, worth in study['worth'].items()
  ]
  # Studies of earlier versions have none.
  for left_out, worth in study.get('spectra', {}).items():
    told.append(
      f'without a direction, spectra against good fine-tunes, {left_out} left out: '
      f'{_area(worth["auroc"])}'
    )
  return told


@figures.styled
def cosines(study: StudyJson) -> 'Figure':
  """A panel for each direction: every fine-tune's cosine over the steps.

  The colour says whether a fine-tune is misaligned, a ring where the alarm went off first.
  """
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D

  names = study['directions']
  # Three panels fill the width of a page.
  columns = min(len(names), 3)
  rows = math.ceil(len(names) / columns)
  figure = Figure(figsize=(max(4.0 * columns, 6.4), 3.0 * rows + 0.7), layout='constrained')
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes, name in zip(grid, names):
    for run in study['runs']:
      _draw(axes, run['directions'][name], misaligned=run['misaligned'])
    axes.axhline(0, color=figures.GRID, linewidth=0.8, zorder=0.4)
    axes.grid(axis='y')
    axes.set_title(name)
    axes.set_xlabel('step')
  # Places of the grid without a panel.
  for axes in grid[len(names) :]:
    axes.set_axis_off()
  for row in range(rows):
    grid[row * columns].set_ylabel('cosine with the update')
  handles = [
    Line2D([], [], color=MISALIGNED, marker='o', markersize=4, label='misaligned'),
    Line2D([], [], color=OTHER, marker='s', markersize=4, label='not misaligned'),
    Line2D([], [], color=figures.MUTED, label='first alarm', **figures.RING),
  ]
  figure.legend(
    handles=handles, loc='outside upper left', ncols=3, fontsize=8, labelcolor=figures.INK
  )
  return figure


def _draw(axes: 'Axes', angles: Mapping[str, Any], *, misaligned: bool) -> None:
  """Draws one fine-tune's cosines with one direction."""
  # Steps are texts in JSON; a step that changed nothing has no cosine.
  points = {int(step): value for step, value in angles['cosines'].items() if value is not None}
  steps = sorted(points)
  axes.plot(
    steps,
    [points[step] for step in steps],
    color=MISALIGNED if misaligned else OTHER,
    linewidth=1.0,
    # The shape is the second cue, for a printout in grey.
    marker='o' if misaligned else 's',
    markersize=2.6,
  )
  alarm_step = angles['step']
  if alarm_step is not None:
    axes.plot([alarm_step], [points[alarm_step]], markeredgecolor=figures.MUTED, **figures.RING)


def _line(name: str, auroc: Mapping[str, Any], detections: Mapping[str, Any]) -> str:
  caught = len(detections['caught'])
  false_alarms = len(detections['false_alarms'])
  return (
    f'{name}: {_area(auroc)}; '
    f'{caught} of {auroc["num_misaligned"]} misaligned fine-tunes caught, {false_alarms} '
    f'false alarms in {auroc["num_others"]}'
  )


def _area(auroc: Mapping[str, Any]) -> str:
  low, high = auroc['interval']
  # A single seed has no standard error over seeds.
  seeds = ''
  if auroc['seed_standard_error'] is not None:
    error = auroc['seed_standard_error']
    seeds = f', standard error over {auroc["num_seeds"]} seeds {error:.3f}'
  return f'AUROC {auroc["value"]:.3f} (95% interval {low:.3f} to {high:.3f}{seeds})'


def _page(study: StudyJson, drawings: Mapping[str, str], title: str) -> str:
  items = ''.join(f'<li>{escape(line)}</li>' for line in lines(study))
  return markup.document(
    f'{title}: watched fine-tunes',
    [
      f'<h1>{title}: {len(study["runs"])} fine-tunes watched</h1>',
      f'<ul>{items}</ul>',
      markup.section(
        'Over the steps',
        markup.figure(
          drawings['watched-cosines'],
          'Cosine of the angle between all that a fine-tune had changed and the direction. An '
          'alarm is the first cosine above what the controls reach; thresholds are in each '
          "fine-tune's monitor/summary.json.",
        ),
      ),
      markup.section(
        'Each kind of fine-tune',
        _table(study),
        '<p>Rates are those of the untouched model and of the fine-tuned ones, means over seeds; '
        "cosines are the largest of a fine-tune's steps, means over seeds; in brackets the seeds "
        'that set off the alarm.</p>',
      ),
      markup.section(
        'How similar directions and updates are',
        markup.figure(
          drawings['watched-similarity'], 'Updates are those of the first seed.', narrow=True
        ),
      ),
    ],
  )


def _table(study: StudyJson) -> str:
  """A row for the untouched model, then a row for each kind of fine-tune."""
  tasks = list(study['base'])
  directions = study['directions']
  # Seeds of a kind have one name.
  groups: dict[str, list[Mapping[str, Any]]] = {}
  for run in study['runs']:
    groups.setdefault(run['name'], []).append(run)
  # The untouched model has no update, so no cosines.
  base_rates = [_rate(study['base'][task]['mean']) for task in tasks]
  blanks = [''] * len(directions)
  rows = [_row(['base', '', *base_rates, *blanks])]
  for name, runs in groups.items():
    rows.append(_row(_group_cells(name, runs, tasks, directions)))
  heads = markup.column_heads(['fine-tune', 'misaligned', *tasks, *directions])
  return markup.table(heads, rows)


def _group_cells(
  name: str, runs: Sequence[Mapping[str, Any]], tasks: Sequence[str], directions: Sequence[str]
) -> list[str]:
  """The cells of a kind of fine-tune, means over the seeds."""
  # Misaligned is the kind of fine-tune, not a single seed of the kind.
  cells = [name, 'yes' if runs[0]['misaligned'] else 'no']
  for task in tasks:
    rates = [run['rates'][task]['mean'] for run in runs]
    cells.append(_rate(_mean(rates)))
  for direction in directions:
    angles = [run['directions'][direction] for run in runs]
    peak = _mean([angle['peak'] for angle in angles])
    alarms = sum(angle['step'] is not None for angle in angles)
    cells.append(f'{peak:+.3f} ({alarms} of {len(runs)})')
  return cells


def _row(texts: Sequence[str]) -> str:
  name, *values = texts
  cells = ''.join(f'<td>{escape(value)}</td>' for value in values)
  return f'<tr><th scope="row" class="left">{escape(name)}</th>{cells}</tr>'


def _mean(values: Sequence[float | None]) -> float | None:
  # A seed without a number enters no mean.
  known = [value for value in values if value is not None]
  return sum(known) / len(known) if known else None


def _rate(value: float | None) -> str:
  return '–' if value is None else f'{value:.2f}'
