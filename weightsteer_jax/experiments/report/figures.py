"""Figures of a sweep: every task against alpha, and behaviour against capability.

One colour per arm everywhere (Okabe and Ito's palette, told apart in every common form of colour
blindness), one panel per task. matplotlib is imported inside the functions: whoever only wants the
table does not pay for it.

Source: Okabe and Ito, "Color Universal Design" (2008), for the palette.
"""

import functools
import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from weightsteer_jax.experiments.report import labels, words
from weightsteer_jax.experiments.report.pick import Pick
from weightsteer_jax.experiments.report.study import format_alpha

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Every colour is one of these, so that the page can swap the whole theme of an SVG by name.
INK, MUTED, GRID, BAND, PAPER = '#22272e', '#68707a', '#e3e6ea', '#e9f1ec', '#fefefe'
ARM_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
THEME = {
  INK: 'ink',
  MUTED: 'muted',
  GRID: 'grid',
  BAND: 'band',
  PAPER: 'paper',
  **{colour: f'arm-{index}' for index, colour in enumerate(ARM_COLOURS)},
}
# Shape is the second cue: a printout in grey still tells the arms apart. Lines are dashed where
# colours begin again.
ARM_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '<', '>', 'h')
ARM_LINES = ('-', (0, (4, 1.5)))
LABELLED_ARMS = 2  # Of more arms, points carry no alpha: their labels would hide each other.
RING = {
  'linestyle': 'none',
  'marker': 'o',
  'markersize': 8.5,
  'markerfacecolor': 'none',
  'markeredgewidth': 1.1,
  'zorder': 4,
}
STYLE = {
  'text.parse_math': False,
  'font.family': 'sans-serif',
  'font.size': 9,
  'text.color': INK,
  'axes.edgecolor': MUTED,
  'axes.labelcolor': INK,
  'axes.facecolor': PAPER,
  'figure.facecolor': PAPER,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.linewidth': 0.7,
  'axes.titlesize': 9.5,
  'axes.titlelocation': 'left',
  'axes.titlepad': 6,
  'axes.axisbelow': True,
  'xtick.color': MUTED,
  'ytick.color': MUTED,
  'xtick.labelcolor': INK,
  'ytick.labelcolor': INK,
  'xtick.labelsize': 8,
  'ytick.labelsize': 8,
  'xtick.major.width': 0.7,
  'ytick.major.width': 0.7,
  'xtick.major.size': 3,
  'ytick.major.size': 3,
  'grid.color': GRID,
  'grid.linewidth': 0.7,
  'lines.linewidth': 1.6,
  'legend.frameon': False,
  'svg.fonttype': 'none',
  'svg.hashsalt': 'weightsteer',
}


def styled(draw):
  """The function run under STYLE, which text reads when it is made and axes when they are drawn."""

  @functools.wraps(draw)
  def inside(*args, **kwargs):
    import matplotlib

    with matplotlib.rc_context(STYLE):
      return draw(*args, **kwargs)

  return inside


@styled
def curves(picks: Sequence[Pick]) -> 'Figure':
  """One panel per task, mean ± standard error against alpha: behaviours above, capabilities with
  their band below.

  Alphas stand at even distances when the grid itself is uneven, so that the useful range around
  zero and the breaking points far out can be read in one figure; the axis says so.
  """
  from matplotlib.figure import Figure

  rows = [
    [task for task in tasks if any(task in pick.comparison.table for pick in picks)]
    for tasks in _tasks_by_role(picks)
  ]
  rows = [row for row in rows if row]
  columns = min(max(map(len, rows), default=1), 3)
  rows = [row[start : start + columns] for row in rows for start in range(0, len(row), columns)]
  figure = Figure(figsize=(3.1 * columns + 0.4, 2.3 * len(rows) + 0.6), layout='constrained')
  grid = figure.subplots(max(len(rows), 1), columns, squeeze=False)
  alphas = sorted({alpha for pick in picks for alpha in pick.comparison.alphas})
  limits = _shared_limits(picks)
  for panels, row in zip(grid, rows):
    for panel, task in zip(panels, row):
      _draw_task(panel, picks, task, alphas, limits)
    for panel in panels[len(row) :]:
      panel.set_axis_off()
  _label_edges(grid, rows, alphas, _tasks_by_role(picks)[1])
  _legend(figure, picks)
  return figure


@styled
def tradeoff(picks: Sequence[Pick]) -> 'Figure':
  """Behaviour against the largest capability change, one curve per arm through its alphas in order.

  The band holds exactly the alphas that the picking rule admits.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6.4, 4.4), layout='constrained')
  axes = figure.subplots()
  _tradeoff_frame(axes, picks)
  texts = []
  for index, pick in enumerate(picks):
    labelled = _draw_path(axes, pick, index)
    if len(picks) <= LABELLED_ARMS:
      texts += labelled
    elif not texts:
      texts += [label for label in labelled if label.text == 'base']
  axes.margins(x=0.08, y=0.09)
  labels.place(figure, axes, texts)
  _legend(figure, picks)
  return figure


@styled
def png(figure: 'Figure') -> bytes:
  """The figure as a PNG at 200 dots per inch."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  buffer = io.BytesIO()
  FigureCanvasAgg(figure)
  figure.savefig(buffer, format='png', dpi=200, metadata={'Software': None})
  return buffer.getvalue()


@styled
def svg(figure: 'Figure', title: str) -> str:
  """The figure as an SVG element to put into a page; its colours are CSS variables `--fig-ink`,
  `--fig-arm-0`, ...

  `title` is what a screen reader says; it must hold no markup.
  """
  buffer = io.StringIO()
  figure.savefig(
    buffer, format='svg', metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None}
  )
  text = buffer.getvalue()
  text = text[text.index('<svg') :]
  text = re.sub(r'<metadata>.*?</metadata>\s*', '', text, flags=re.DOTALL)
  for colour, name in THEME.items():
    text = text.replace(colour, f'var(--fig-{name})')
  size = r'width="[\d.]+pt" height="[\d.]+pt"'
  text = re.sub(f'<svg ([^>]*?){size}', r'<svg \1', text, count=1)
  return text.replace('<svg ', f'<svg role="img" aria-label="{title}" ', 1).strip()


def positions(alphas: Sequence[float]) -> dict[float, float]:
  """Where each alpha stands on the axis: its value when the grid is even, its rank from the zero
  when it is not.

  >>> positions([-3.0, -0.5, 0.0, 0.5])
  {-3.0: -2.0, -0.5: -1.0, 0.0: 0.0, 0.5: 1.0}
  >>> positions([-1.0, 0.0, 1.0])
  {-1.0: -1.0, 0.0: 0.0, 1.0: 1.0}
  """
  if is_even(alphas):
    return {alpha: alpha for alpha in alphas}
  centre = sum(alpha < 0 for alpha in alphas)
  return {alpha: float(rank - centre) for rank, alpha in enumerate(alphas)}


def is_even(alphas: Sequence[float]) -> bool:
  """Whether neighbours all lie equally far apart, to within 1%."""
  steps = [after - before for before, after in zip(alphas, alphas[1:])]
  return not steps or max(steps) - min(steps) <= 0.01 * max(steps)


def _look(index: int) -> tuple[str, str, 'str | tuple']:
  """(colour, marker, line style) of an arm."""
  return (
    ARM_COLOURS[index % len(ARM_COLOURS)],
    ARM_MARKERS[index % len(ARM_MARKERS)],
    ARM_LINES[index // len(ARM_COLOURS) % len(ARM_LINES)],
  )


def _tasks_by_role(picks: Sequence[Pick]) -> tuple[list[str], list[str]]:
  capability = list(dict.fromkeys(task for pick in picks for task in pick.comparison.capability))
  every = dict.fromkeys(
    task for pick in picks for task in (*pick.comparison.behaviour, *pick.comparison.table)
  )
  return [task for task in every if task not in capability], capability


def _shared_limits(picks: Sequence[Pick]) -> tuple[float, float] | None:
  """The same 0 to 1 for all panels when every mean is a rate; None lets a panel find its own."""
  means = [
    cell.mean
    for pick in picks
    for column in pick.comparison.table.values()
    for cell in column.values()
  ]
  return (-0.04, 1.04) if all(0 <= mean <= 1 for mean in means if math.isfinite(mean)) else None


def _draw_task(
  axes: 'Axes', picks: Sequence[Pick], task: str, alphas: Sequence[float], limits
) -> None:
  where = positions(alphas)
  axes.set_title(task)
  axes.grid(axis='y')
  for index, pick in enumerate(picks):
    numbers, (colour, marker, line) = pick.comparison, _look(index)
    measured = [alpha for alpha in numbers.alphas if numbers.cell(task, alpha).measured]
    cells = [numbers.cell(task, alpha) for alpha in measured]
    if task in numbers.capability and 0.0 in measured:
      base = numbers.cell(task, 0.0).mean
      axes.axhspan(
        base - numbers.tolerance, base + numbers.tolerance, color=BAND, linewidth=0, zorder=0.5
      )
    for alpha in pick.alphas:
      axes.axvline(where[alpha], color=colour, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
    axes.errorbar(
      [where[alpha] for alpha in measured],
      [cell.mean for cell in cells],
      _bars(cells),
      color=colour,
      marker=marker,
      linestyle=line,
      markersize=3.6,
      elinewidth=0.9,
      capsize=0,
      zorder=3,
    )
    picked = [alpha for alpha in pick.alphas if alpha in measured]
    axes.plot(
      [where[alpha] for alpha in picked],
      [numbers.cell(task, alpha).mean for alpha in picked],
      **RING,
      markeredgecolor=colour,
    )
  axes.set_xticks([where[alpha] for alpha in alphas], _tick_labels(alphas), rotation=0)
  if limits:
    axes.set_ylim(*limits)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ['0', '', '0.5', '', '1'])


def _bars(cells) -> list[float]:
  """Error bars, nothing where the standard error is not known."""
  return [cell.sem if math.isfinite(cell.sem) else 0.0 for cell in cells]


def _tick_labels(alphas: Sequence[float]) -> list[str]:
  """At most nine labels; the zero, the ends and every other alpha in between keep theirs."""
  stride = math.ceil(len(alphas) / 9)
  centre = sum(alpha < 0 for alpha in alphas)
  return [
    format_alpha(round(alpha, 2)) if (rank - centre) % stride == 0 else ''
    for rank, alpha in enumerate(alphas)
  ]


def _label_edges(
  grid, rows: Sequence[Sequence[str]], alphas: Sequence[float], capability: Sequence[str]
) -> None:
  for panels, row in zip(grid, rows):
    panels[0].set_ylabel('capability' if row[0] in capability else 'behaviour')
  label = 'alpha' if is_even(alphas) else 'alpha (evenly spaced, not to scale)'
  for column in range(len(grid[0])):
    filled = [index for index, row in enumerate(rows) if column < len(row)]
    if filled:
      grid[filled[-1]][column].set_xlabel(label)


def _legend(figure: 'Figure', picks: Sequence[Pick]) -> None:
  """Arms, where there are several, and what the marks mean."""
  from matplotlib.lines import Line2D
  from matplotlib.patches import Patch

  handles = []
  for index, pick in enumerate(picks if len(picks) > 1 else ()):
    colour, marker, line = _look(index)
    handles.append(
      Line2D([], [], color=colour, markersize=4, label=pick.arm, marker=marker, linestyle=line)
    )
  if any(pick.alphas for pick in picks):
    handles.append(Line2D([], [], **RING, markeredgecolor=INK, label='picked alpha'))
  if any(pick.comparison.capability for pick in picks):
    tolerance = max(pick.comparison.tolerance for pick in picks)
    handles.append(Patch(color=BAND, label=f'within {tolerance:g} of the base'))
  handles.append(
    Line2D(
      [], [], color=MUTED, marker='|', markersize=9, linestyle='none', label='± one standard error'
    )
  )
  figure.legend(
    handles=handles,
    loc='outside upper left',
    ncols=min(len(handles), 4),
    fontsize=8,
    handletextpad=0.5,
  )


def _tradeoff_frame(axes: 'Axes', picks: Sequence[Pick]) -> None:
  tolerance = max((pick.comparison.tolerance for pick in picks), default=0.0)
  axes.axvspan(-tolerance, tolerance, color=BAND, linewidth=0, zorder=0.5)
  axes.grid()
  axes.set_xlabel('largest change of a capability task from the base')
  names = {words.subject(pick.comparison) for pick in picks if pick.comparison.behaviour}
  axes.set_ylabel(names.pop() if len(names) == 1 else 'behaviour')


def _draw_path(axes: 'Axes', pick: Pick, index: int) -> list[labels.Label]:
  """The labels of one arm's points, after drawing them and the line through them."""
  numbers, (colour, marker, line) = pick.comparison, _look(index)
  usable = [
    alpha
    for alpha in numbers.alphas
    if numbers.worst(alpha) and numbers.behaviour_at(alpha).measured
  ]
  xs = [numbers.worst(alpha).difference for alpha in usable]
  cells = [numbers.behaviour_at(alpha) for alpha in usable]
  ys = [cell.mean for cell in cells]
  sems = [numbers.worst(alpha).sem for alpha in usable]
  axes.errorbar(
    xs,
    ys,
    _bars(cells),
    [sem if math.isfinite(sem) else 0.0 for sem in sems],
    color=colour,
    linewidth=1.1,
    marker=marker,
    linestyle=line,
    markersize=4,
    elinewidth=0.6,
    capsize=0,
    zorder=3,
  )
  for alpha, x, y in zip(usable, xs, ys):
    if alpha in pick.alphas or alpha == 0:
      axes.plot(
        [x], [y], **{**RING, 'markerfacecolor': 'none' if alpha else PAPER}, markeredgecolor=colour
      )
  return [
    labels.Label(x, y, format_alpha(alpha) if alpha else 'base', alpha in pick.alphas or alpha == 0)
    for alpha, x, y in zip(usable, xs, ys)
  ]
