"""Figures of a monitored run: cosines over steps with their null band, and heat maps.

The figures need the rows and the summary alone (see monitoring.run). The style is of figures.py.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weightsteer_jax.experiments.report.figures import ARM_COLOURS, GRID, INK, MUTED, styled

if TYPE_CHECKING:
  from matplotlib.artist import Artist
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Row = Mapping[str, Any]
# Colours of numbers in heat maps: the cells do not follow the page's theme, nor may the numbers.
DARK = '#101317'
LIGHT = '#fdfdfd'
# Opacity of the band of the random controls, which is thin.
BAND_OPACITY = 0.35
# Directions that are shown, each in a panel; more would not be read.
SHOWN = 6


@styled
def cosines(rows: Sequence[Row], summary: Mapping[str, Any]) -> 'Figure':
  """A panel for each direction: the cosine over the steps.

  With the cosine stand the range of random directions, given controls, threshold and alarm.
  """
  from matplotlib.figure import Figure

  names = list(summary['directions'])[:SHOWN]
  columns = min(len(names), 3)
  lines = math.ceil(len(names) / columns)
  figure = Figure(figsize=(max(4.0 * columns, 6.4), 3.0 * lines + 0.7), layout='constrained')
  grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
  for axes, name in zip(grid, names):
    _draw_cosine(axes, rows, summary, name)
  for axes in grid[len(names) :]:
    axes.set_axis_off()
  for line in range(lines):
    grid[line * columns].set_ylabel('cosine with the update')
  _legend(figure, summary)
  return figure


@styled
def layers(rows: Sequence[Row], summary: Mapping[str, Any]) -> 'Figure':
  """A heat map for each direction: cosines with the last update by layer and module."""
  from matplotlib.figure import Figure

  names = list(summary['directions'])[:SHOWN]
  last = max(row['step'] for row in rows)
  cells = [row for row in rows if row['step'] == last and row.get('role') == 'direction']
  # Modules in the order of the model, layers by number.
  modules = list(dict.fromkeys(row['module'] for row in cells if row['module'] is not None))
  numbers = sorted({row['layer'] for row in cells if row['layer'] is not None})
  columns = min(len(names), 2)
  lines = math.ceil(len(names) / columns)
  # Inches: a cell's size times the cells, with room for the labels.
  width = 0.42 * (len(numbers) + 1) + 1.9
  height = 0.3 * (len(modules) + 1) + 1.1
  figure = Figure(figsize=(max(width * columns, 6.4), height * lines), layout='constrained')
  grid = figure.subplots(lines, columns, squeeze=False).ravel()
  tables = {name: _layer_table(cells, name, modules, numbers) for name in names}
  # One scale for all panels.
  limit = _limit([value for table in tables.values() for line in table for value in line])
  for axes, name in zip(grid, names):
    mesh = _heat(axes, tables[name], ['whole', *modules], ['all', *map(str, numbers)], limit)
    axes.set_title(f'{name}, step {last}')
    axes.set_xlabel('layer')
  for axes in grid[len(names) :]:
    axes.set_axis_off()
  _colour_bar(figure, mesh, list(grid))
  return figure


@styled
def similarity(summary: Mapping[str, Any]) -> 'Figure':
  """The cosines of all pairs of directions, controls and task vectors."""
  from matplotlib.figure import Figure

  table = summary['similarity']['cosines']
  names = []
  for name, role in zip(summary['similarity']['names'], summary['similarity']['roles']):
    names.append(name if role == 'direction' else f'{name} ({role.replace("_", " ")})')
  size = max(0.62 * len(names) + 2.6, 4.2)
  figure = Figure(figsize=(size + 0.8, size * 0.8), layout='constrained')
  axes = figure.subplots()
  # The diagonal is 1 and would hide all other differences of colour.
  off_diagonal = []
  for i, line in enumerate(table):
    off_diagonal += line[:i] + line[i + 1 :]
  mesh = _heat(axes, table, names, names, _limit(off_diagonal))
  axes.set_xticks(axes.get_xticks(), names, rotation=35, ha='right')
  _colour_bar(figure, mesh, axes)
  return figure


def _draw_cosine(axes: 'Axes', rows: Sequence[Row], summary: Mapping[str, Any], name: str) -> None:
  """Draws the panel of one direction."""
  alarm = summary['directions'][name]['alarm']
  band = _random_range(rows, name)
  if band:
    steps = sorted(band)
    axes.fill_between(
      steps,
      [band[step][0] for step in steps],
      [band[step][1] for step in steps],
      color=MUTED,
      alpha=BAND_OPACITY,
      linewidth=0,
      zorder=0.5,
    )
  for control in summary['controls']:
    points = _whole(rows, control)
    _plot(axes, points, color=MUTED, linewidth=1.0, marker='.', markersize=3, zorder=2)
  if alarm['threshold'] is not None:
    dashed = (0, (4, 2))
    height = alarm['threshold']
    axes.axhline(height, color=ARM_COLOURS[1], linewidth=1.0, linestyle=dashed, zorder=1.5)
  points = _whole(rows, name)
  _plot(axes, points, color=ARM_COLOURS[0], marker='o', markersize=3.6, zorder=3)
  if alarm['step'] is not None:
    value = dict(points)[alarm['step']]
    axes.plot(
      [alarm['step']],
      [value],
      linestyle='none',
      marker='o',
      markersize=9,
      markerfacecolor='none',
      markeredgecolor=ARM_COLOURS[1],
      markeredgewidth=1.4,
      zorder=4,
    )
    axes.annotate(
      f'alarm at step {alarm["step"]}',
      (alarm['step'], value),
      xytext=(8, -10),
      textcoords='offset points',
      fontsize=8,
      va='top',
    )
  axes.axhline(0, color=GRID, linewidth=0.8, zorder=0.4)
  axes.grid(axis='y')
  axes.set_title(name)
  axes.set_xlabel('step')
  # No half steps on the axis.
  axes.locator_params(axis='x', integer=True)
  axes.margins(x=0.04, y=0.1)


def _plot(axes: 'Axes', points: Sequence[tuple[int, float]], **style) -> None:
  axes.plot([step for step, _ in points], [value for _, value in points], **style)


def _whole(rows: Sequence[Row], name: str) -> list[tuple[int, float]]:
  """(step, cosine) of the whole updates, zero updates left out."""
  points = []
  for row in rows:
    # Rows of random controls bear the direction's name, and no module.
    if row['name'] != name or row['role'] == 'random':
      continue
    is_whole = row['module'] is None and row['layer'] is None
    if is_whole and row['cosine'] is not None:
      points.append((row['step'], row['cosine']))
  return points


def _random_range(rows: Sequence[Row], name: str) -> dict[int, tuple[float, float]]:
  """{step: (lowest, highest) cosine of the direction's random controls}."""
  cosines_of: dict[int, list[float]] = {}
  for row in rows:
    is_control = row['role'] == 'random' and row['name'] == name
    # An update of zero has no cosine.
    if is_control and row['cosine'] is not None:
      cosines_of.setdefault(row['step'], []).append(row['cosine'])
  ranges = {}
  for step, values in cosines_of.items():
    ranges[step] = (min(values), max(values))
  return ranges


def _layer_table(
  cells: Sequence[Row], name: str, modules: Sequence[str], numbers: Sequence[int]
) -> list[list[Any]]:
  """Cosines: lines are the whole and each module, columns are all layers and each."""
  cosine_at = {}
  for row in cells:
    if row['name'] == name:
      cosine_at[row['module'], row['layer']] = row['cosine']
  # None stands for all modules and for all layers, as in the rows.
  table = []
  for module in (None, *modules):
    table.append([cosine_at.get((module, layer)) for layer in (None, *numbers)])
  return table


def _limit(values: Sequence[float | None]) -> float:
  """The end of a symmetric scale of colours; 1 if all is zero or blank."""
  sizes = [abs(value) for value in values if value is not None]
  return max(sizes, default=0.0) or 1.0


def _heat(
  axes: 'Axes',
  table: Sequence[Sequence[float | None]],
  lines: Sequence[str],
  columns: Sequence[str],
  limit: float,
) -> Any:
  """The mesh of a heat map just drawn, with numbers in cells of some size."""
  import numpy as np

  # None becomes NaN, and NaN a blank cell.
  values = np.array(table, float)
  mesh = axes.pcolormesh(values, cmap='RdBu_r', vmin=-limit, vmax=limit, edgecolors='none')
  axes.set_yticks(np.arange(len(lines)) + 0.5, lines)
  # At most 33 labels fit side by side.
  stride = math.ceil(len(columns) / 33)
  axes.set_xticks(np.arange(len(columns))[::stride] + 0.5, columns[::stride])
  axes.invert_yaxis()
  axes.tick_params(length=0)
  for spine in axes.spines.values():
    spine.set_visible(False)
  if len(columns) <= 16:
    for (i, j), value in np.ndenumerate(values):
      if not np.isfinite(value):
        continue
      axes.text(
        j + 0.5,
        i + 0.5,
        # Cells are narrow: .12 for 0.12.
        f'{value:.2f}'.replace('0.', '.', 1),
        ha='center',
        va='center',
        fontsize=6.5,
        # Cells are dark at both ends of the scale.
        color=LIGHT if abs(value) > 0.6 * limit else DARK,
      )
  return mesh


def _colour_bar(figure: 'Figure', mesh: Any, axes: Any) -> None:
  """Adds the scale of a heat map."""
  solids = figure.colorbar(mesh, ax=axes, label='cosine', shrink=0.8).solids
  # A mesh has filled colours; only contour lines have none.
  assert solids is not None
  # As vectors: the page's policy allows no images.
  solids.set_rasterized(False)


def _legend(figure: 'Figure', summary: Mapping[str, Any]) -> None:
  from matplotlib.lines import Line2D
  from matplotlib.patches import Patch

  direction = Line2D([], [], color=ARM_COLOURS[0], marker='o', markersize=4, label='direction')
  handles: list[Artist] = [direction]
  if summary['random']:
    label = f'range of {summary["random"]} random directions'
    handles.append(Patch(color=MUTED, alpha=BAND_OPACITY, linewidth=0, label=label))
  if summary['controls']:
    handles.append(Line2D([], [], color=MUTED, marker='.', label='controls'))
  if summary['random'] or summary['controls']:
    dashed = (0, (4, 2))
    line = Line2D([], [], color=ARM_COLOURS[1], linestyle=dashed, linewidth=1.0, label='threshold')
    handles.append(line)
  figure.legend(
    handles=handles,
    loc='outside upper left',
    ncols=len(handles),
    fontsize=8,
    handletextpad=0.5,
    labelcolor=INK,
  )
