"""Figures of a monitored run: cosines over steps with their null band, and heat maps.

They are drawn from the rows and the summary alone (see monitoring.run), in the style of figures.py.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weightsteer_jax.experiments.report.figures import ARM_COLOURS, GRID, INK, MUTED, styled

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Row = Mapping[str, Any]
# Numbers stand in cells whose colours do not follow the page's theme, and so must theirs not.
DARK, LIGHT = '#101317', '#fdfdfd'
NULL_ALPHA = 0.35  # Of the band of the random controls, which is thin.
SHOWN = 6  # Directions, each with a panel.


@styled
def cosines(rows: Sequence[Row], summary: Mapping[str, Any]) -> 'Figure':
  """A panel per direction: its cosine against the step, the range of random ones, given controls,
  threshold, alarm.
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
  """A heat map per direction: its cosine with the last update in each layer and kind of module."""
  from matplotlib.figure import Figure

  names = list(summary['directions'])[:SHOWN]
  last = max(row['step'] for row in rows)
  cells = [row for row in rows if row['step'] == last and row.get('role') == 'direction']
  modules = list(dict.fromkeys(row['module'] for row in cells if row['module'] is not None))
  numbers = sorted({row['layer'] for row in cells if row['layer'] is not None})
  columns = min(len(names), 2)
  lines = math.ceil(len(names) / columns)
  width = 0.42 * (len(numbers) + 1) + 1.9
  figure = Figure(
    figsize=(max(width * columns, 6.4), (0.3 * (len(modules) + 1) + 1.1) * lines),
    layout='constrained',
  )
  grid = figure.subplots(lines, columns, squeeze=False).ravel()
  tables = {name: _layer_table(cells, name, modules, numbers) for name in names}
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

  found = summary['similarity']
  names = [
    f'{name} ({role.replace("_", " ")})' if role != 'direction' else name
    for name, role in zip(found['names'], found['roles'])
  ]
  size = max(0.62 * len(names) + 2.6, 4.2)
  figure = Figure(figsize=(size + 0.8, size * 0.8), layout='constrained')
  axes = figure.subplots()
  off = [value for i, line in enumerate(found['cosines']) for j, value in enumerate(line) if i != j]
  mesh = _heat(axes, found['cosines'], names, names, _limit(off) if off else 1.0)
  axes.set_xticks(axes.get_xticks(), names, rotation=35, ha='right')
  _colour_bar(figure, mesh, axes)
  return figure


def _draw_cosine(axes: 'Axes', rows: Sequence[Row], summary: Mapping[str, Any], name: str) -> None:
  alarm = summary['directions'][name]['alarm']
  band = _random_range(rows, name)
  if band:
    steps = sorted(band)
    axes.fill_between(
      steps,
      [band[s][0] for s in steps],
      [band[s][1] for s in steps],
      color=MUTED,
      alpha=NULL_ALPHA,
      linewidth=0,
      zorder=0.5,
    )
  for control in summary['controls']:
    _plot(
      axes, _whole(rows, control), color=MUTED, linewidth=1.0, marker='.', markersize=3, zorder=2
    )
  if alarm['threshold'] is not None:
    axes.axhline(
      alarm['threshold'], color=ARM_COLOURS[1], linewidth=1.0, linestyle=(0, (4, 2)), zorder=1.5
    )
  found = _whole(rows, name)
  _plot(axes, found, color=ARM_COLOURS[0], marker='o', markersize=3.6, zorder=3)
  if alarm['step'] is not None:
    value = dict(found)[alarm['step']]
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
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.margins(x=0.04, y=0.1)


def _plot(axes: 'Axes', points: Sequence[tuple[int, float]], **style) -> None:
  axes.plot([step for step, _ in points], [value for _, value in points], **style)


def _whole(rows: Sequence[Row], name: str) -> list[tuple[int, float]]:
  """(step, cosine) of the whole updates, where it is defined."""
  return [
    (row['step'], row['cosine'])
    for row in rows
    if row['name'] == name
    and row['role'] != 'random'
    and row['module'] is None
    and row['layer'] is None
    and row['cosine'] is not None
  ]


def _random_range(rows: Sequence[Row], name: str) -> dict[int, tuple[float, float]]:
  """{step: (lowest, highest) cosine of the direction's random controls}."""
  found: dict[int, list[float]] = {}
  for row in rows:
    if row['role'] == 'random' and row['name'] == name and row['cosine'] is not None:
      found.setdefault(row['step'], []).append(row['cosine'])
  return {step: (min(values), max(values)) for step, values in found.items()}


def _layer_table(
  cells: Sequence[Row], name: str, modules: Sequence[str], numbers: Sequence[int]
) -> list[list[Any]]:
  """Cosines: lines the whole and each module, columns all layers and each."""
  found = {(row['module'], row['layer']): row['cosine'] for row in cells if row['name'] == name}
  return [[found.get((module, layer)) for layer in (None, *numbers)] for module in (None, *modules)]


def _limit(values: Sequence[float | None]) -> float:
  """The end of a symmetric scale of colours."""
  return max((abs(value) for value in values if value is not None), default=0.0) or 1.0


def _heat(
  axes: 'Axes',
  table: Sequence[Sequence[float | None]],
  lines: Sequence[str],
  columns: Sequence[str],
  limit: float,
) -> Any:
  """Draws a heat map, vector cells with numbers where there is room; empty cells are blank."""
  import numpy as np

  values = np.array(
    [[np.nan if value is None else value for value in line] for line in table], float
  )
  mesh = axes.pcolormesh(values, cmap='RdBu_r', vmin=-limit, vmax=limit, edgecolors='none')
  axes.set_yticks(np.arange(len(lines)) + 0.5, lines)
  stride = math.ceil(len(columns) / 33)
  axes.set_xticks(np.arange(len(columns))[::stride] + 0.5, columns[::stride])
  axes.invert_yaxis()
  axes.tick_params(length=0)
  for spine in axes.spines.values():
    spine.set_visible(False)
  if len(columns) <= 16:
    for (i, j), value in np.ndenumerate(values):
      if np.isfinite(value):
        axes.text(
          j + 0.5,
          i + 0.5,
          f'{value:.2f}'.replace('0.', '.', 1),
          ha='center',
          va='center',
          fontsize=6.5,
          color=LIGHT if abs(value) > 0.6 * limit else DARK,
        )
  return mesh


def _colour_bar(figure: 'Figure', mesh: Any, axes: Any) -> None:
  """The scale of a heat map, as vectors too: a page that loads nothing cannot show an image."""
  figure.colorbar(mesh, ax=axes, label='cosine', shrink=0.8).solids.set_rasterized(False)


def _legend(figure: 'Figure', summary: Mapping[str, Any]) -> None:
  from matplotlib.lines import Line2D
  from matplotlib.patches import Patch

  handles = [Line2D([], [], color=ARM_COLOURS[0], marker='o', markersize=4, label='direction')]
  if summary['random']:
    label = f'range of {summary["random"]} random directions'
    handles.append(Patch(color=MUTED, alpha=NULL_ALPHA, linewidth=0, label=label))
  if summary['controls']:
    handles.append(Line2D([], [], color=MUTED, marker='.', label='controls'))
  if summary['random'] or summary['controls']:
    handles.append(
      Line2D([], [], color=ARM_COLOURS[1], linestyle=(0, (4, 2)), linewidth=1.0, label='threshold')
    )
  figure.legend(
    handles=handles,
    loc='outside upper left',
    ncols=len(handles),
    fontsize=8,
    handletextpad=0.5,
    labelcolor=INK,
  )
