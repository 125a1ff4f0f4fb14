"""Figures of a sweep: every task against alpha, and behaviour against capability.

One colour per arm everywhere (Okabe and Ito's palette, told apart in every common form of colour
blindness), one panel per task. matplotlib, which takes a second to import, is imported inside the
functions, for the sake of programs with no figures.

Source: Okabe and Ito, "Color Universal Design" (2008), for the palette.
"""

import functools
import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from weightsteer_jax.experiments.report import axis, labels, words
from weightsteer_jax.experiments.report.comparison import TaskChange
from weightsteer_jax.experiments.report.pick import Pick
from weightsteer_jax.experiments.report.study import Cell, format_alpha

if TYPE_CHECKING:
  import numpy as np
  from matplotlib.artist import Artist
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

P = ParamSpec('P')
T = TypeVar('T')

# Figures use no other colours, so that the page can swap the whole theme of an SVG by name.
INK = '#22272e'
MUTED = '#68707a'
GRID = '#e3e6ea'
BAND = '#e9f1ec'
PAPER = '#fefefe'
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
# Least distance between the labels of two alphas, as a share of a panel's width.
LABEL_GAP = 0.1
# With more arms, points carry no alpha: the labels would hide each other.
LABELLED_ARMS = 2
# Around a marker: a picked alpha, or an alarm.
RING: dict[str, Any] = {
  'linestyle': 'none',
  'marker': 'o',
  'markersize': 8.5,
  'markerfacecolor': 'none',
  'markeredgewidth': 1.1,
  'zorder': 4,
}
STYLE = {
  # Task names may hold dollar signs.
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
  'xtick.major.size': 4,
  'xtick.minor.size': 2,
  'ytick.major.size': 3,
  'grid.color': GRID,
  'grid.linewidth': 0.7,
  'lines.linewidth': 1.6,
  'legend.frameon': False,
  # Text stays text, which can be searched and follows the page's fonts.
  'svg.fonttype': 'none',
  # Ids that are the same in every run make the same bytes.
  'svg.hashsalt': 'weightsteer',
}


def styled(draw: Callable[P, T]) -> Callable[P, T]:
  """The function, run under STYLE."""

  # Text reads the style when made, axes when drawn: so drawing and saving both run here.
  @functools.wraps(draw)
  def inside(*args: P.args, **kwargs: P.kwargs) -> T:
    import matplotlib

    with matplotlib.rc_context(STYLE):
      return draw(*args, **kwargs)

  return inside


@styled
def curves(picks: Sequence[Pick]) -> 'Figure':
  """One panel per task, mean ± standard error against alpha.

  Behaviours stand above, capabilities below, with a band within tolerance of the base. The axis of
  alphas is to scale.
  """
  from matplotlib.figure import Figure

  behaviours, capabilities = _tasks_by_role(picks)
  measured = {task for pick in picks for task in pick.comparison.table}
  shown = [
    [task for task in behaviours if task in measured],
    [task for task in capabilities if task in measured],
  ]
  columns = min(max(len(tasks) for tasks in shown) or 1, 3)
  # Each role begins a row of its own.
  rows = []
  for tasks in shown:
    for start in range(0, len(tasks), columns):
      rows.append(tasks[start : start + columns])
  # Inches for each panel, and for the legend above.
  figure = Figure(figsize=(3.1 * columns + 0.4, 2.3 * len(rows) + 0.6), layout='constrained')
  grid = figure.subplots(max(len(rows), 1), columns, squeeze=False)
  alphas = sorted({alpha for pick in picks for alpha in pick.comparison.alphas})
  for panels, row in zip(grid, rows):
    for panel, task in zip(panels, row):
      _draw_task(panel, picks, task, alphas)
    for panel in panels[len(row) :]:
      panel.set_axis_off()
  _label_edges(grid, rows, capabilities)
  _legend(figure, picks)
  return figure


@styled
def tradeoff(picks: Sequence[Pick]) -> 'Figure':
  """Behaviour against the largest capability change, a curve for each arm, by alpha.

  The band holds exactly the alphas admitted by the picking rule.
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
    # All arms share the base's point, nearly: one label is enough.
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
  """The figure as an SVG element to put into a page.

  Colours are CSS variables `--fig-ink`, `--fig-arm-0`, and so on.

  Args:
    title: words for a screen reader; must hold no markup.
  """
  buffer = io.StringIO()
  # Without the date, the same numbers make the same bytes.
  metadata = {'Date': None, 'Creator': None, 'Format': None, 'Type': None}
  figure.savefig(buffer, format='svg', metadata=metadata)
  text = buffer.getvalue()
  # Inside a page, the XML declaration and the metadata have no place.
  text = text[text.index('<svg') :]
  text = re.sub(r'<metadata>.*?</metadata>\s*', '', text, flags=re.DOTALL)
  for colour, name in THEME.items():
    text = text.replace(colour, f'var(--fig-{name})')
  # Without a size of its own the element fills the page's column.
  size = r'width="[\d.]+pt" height="[\d.]+pt"'
  text = re.sub(f'<svg ([^>]*?){size}', r'<svg \1', text, count=1)
  return text.replace('<svg ', f'<svg role="img" aria-label="{title}" ', 1).strip()


def _look(index: int) -> tuple[str, str, Any]:
  """(colour, marker, line style) of an arm."""
  return (
    ARM_COLOURS[index % len(ARM_COLOURS)],
    ARM_MARKERS[index % len(ARM_MARKERS)],
    ARM_LINES[index // len(ARM_COLOURS) % len(ARM_LINES)],
  )


def _tasks_by_role(picks: Sequence[Pick]) -> tuple[list[str], list[str]]:
  """(behaviours, capabilities) of all arms, each once, in the order of the arms' tasks."""
  # Dictionaries as ordered sets.
  capabilities: dict[str, None] = {}
  every: dict[str, None] = {}
  for pick in picks:
    capabilities.update(dict.fromkeys(pick.comparison.capability))
    every.update(dict.fromkeys(pick.comparison.behaviour))
    every.update(dict.fromkeys(pick.comparison.table))
  behaviours = [task for task in every if task not in capabilities]
  return behaviours, list(capabilities)


def _is_rate(picks: Sequence[Pick], task: str) -> bool:
  """Whether every mean of a task lies between 0 and 1."""
  for pick in picks:
    for cell in pick.comparison.table.get(task, {}).values():
      if cell.measured and not 0 <= cell.mean <= 1:
        return False
  return True


def _draw_task(
  axes: 'Axes',
  picks: Sequence[Pick],
  task: str,
  alphas: Sequence[float],
) -> None:
  """Draws the panel of a task: every arm's means, bands and picks."""
  axes.set_title(task)
  axes.grid(axis='y')
  for index, pick in enumerate(picks):
    _draw_arm(axes, pick, task, index)
  picked_anywhere = [alpha for pick in picks for alpha in pick.alphas]
  ticks = axis.labelled(alphas, picked_anywhere, gap=LABEL_GAP)
  axes.set_xticks(ticks, [format_alpha(alpha) for alpha in ticks])
  # A tick for every other alpha, without a label.
  axes.set_xticks(alphas, minor=True)
  # All rates have one scale, so that panels can be compared by eye.
  if _is_rate(picks, task):
    # A little more than 0 to 1, so that markers at the ends are whole.
    axes.set_ylim(-0.04, 1.04)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ['0', '', '0.5', '', '1'])


def _draw_arm(axes: 'Axes', pick: Pick, task: str, index: int) -> None:
  """Draws an arm's means of a task, the band around its base, and its picks."""
  numbers = pick.comparison
  colour, marker, line = _look(index)
  measured = [alpha for alpha in numbers.alphas if numbers.cell(task, alpha).measured]
  cells = [numbers.cell(task, alpha) for alpha in measured]
  if task in numbers.capability and 0.0 in measured:
    low, high = numbers.kept(task)
    ends = [end for cell in cells for end in cell.bar]
    # A side on which nothing can be lost is shaded as far as there is something to see.
    low = max(low, min(ends))
    high = min(high, max(ends))
    axes.axhspan(low, high, color=BAND, linewidth=0, zorder=0.5)
  for alpha in pick.alphas:
    axes.axvline(alpha, color=colour, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
  axes.errorbar(
    measured,
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
  # Hollow where most answers could not be read: the mean says little.
  unread = [alpha for alpha in measured if numbers.cell(task, alpha).few]
  axes.plot(
    unread,
    [numbers.cell(task, alpha).mean for alpha in unread],
    marker=marker,
    linestyle='none',
    color=colour,
    markerfacecolor=PAPER,
    markersize=3.6,
    zorder=3.5,
  )
  # Rings around the picks; a task need not be measured at a pick.
  picked = [alpha for alpha in pick.alphas if alpha in measured]
  axes.plot(
    picked,
    [numbers.cell(task, alpha).mean for alpha in picked],
    **RING,
    markeredgecolor=colour,
  )


def _bars(cells: Sequence[Cell]) -> tuple[list[float], list[float]]:
  """Lengths of the error bars, downwards and upwards."""
  down = []
  up = []
  for cell in cells:
    low, high = cell.bar
    # At the end of a scale, rounding may put a mean beyond its interval.
    down.append(max(0.0, cell.mean - low))
    up.append(max(0.0, high - cell.mean))
  return down, up


def _label_edges(
  grid: 'np.ndarray',
  rows: Sequence[Sequence[str]],
  capabilities: Sequence[str],
) -> None:
  """Labels the first panel of each row and the lowest panel of each column."""
  for panels, row in zip(grid, rows):
    panels[0].set_ylabel('capability' if row[0] in capabilities else 'behaviour')
  for column in range(len(grid[0])):
    filled = [index for index, row in enumerate(rows) if column < len(row)]
    if filled:
      grid[filled[-1]][column].set_xlabel('alpha')


def _legend(figure: 'Figure', picks: Sequence[Pick]) -> None:
  """Adds a legend: the arms, where there are several, and the marks."""
  from matplotlib.lines import Line2D
  from matplotlib.patches import Patch

  handles: list[Artist] = []
  for index, pick in enumerate(picks if len(picks) > 1 else ()):
    colour, marker, line = _look(index)
    handles.append(
      Line2D([], [], color=colour, markersize=4, label=pick.arm, marker=marker, linestyle=line)
    )
  if any(pick.alphas for pick in picks):
    handles.append(Line2D([], [], **RING, markeredgecolor=INK, label='picked alpha'))
  if any(pick.comparison.capability for pick in picks):
    handles.append(Patch(color=BAND, label=words.shaded(picks[0].comparison.rule)))
  few = any(
    cell.few
    for pick in picks
    for by_alpha in pick.comparison.table.values()
    for cell in by_alpha.values()
  )
  if few:
    hollow: dict[str, Any] = dict(
      marker='o', markersize=3.6, markerfacecolor=PAPER, linestyle='none'
    )
    handles.append(Line2D([], [], color=MUTED, label='most answers unreadable', **hollow))
  error = words.bars([pick.comparison for pick in picks])
  handles.append(
    Line2D([], [], color=MUTED, marker='|', markersize=9, linestyle='none', label=error)
  )
  figure.legend(
    handles=handles,
    loc='outside upper left',
    ncols=min(len(handles), 4),
    fontsize=8,
    handletextpad=0.5,
  )


def _tradeoff_frame(axes: 'Axes', picks: Sequence[Pick]) -> None:
  """Draws the band of the tolerance, and the labels of both axes."""
  tolerance = max((pick.comparison.tolerance for pick in picks), default=0.0)
  right = tolerance
  # What a capability gains is kept, however much it is.
  if picks and picks[0].comparison.rule.counts == 'loss':
    right = max([right, *(change.improvement for change in _worst_changes(picks))])
  axes.axvspan(-tolerance, right, color=BAND, linewidth=0, zorder=0.5)
  axes.grid()
  axes.set_xlabel('change of the capability that lost most (right: better)')
  # Arms with different behaviours share only the word.
  names = {words.subject(pick.comparison) for pick in picks if pick.comparison.behaviour}
  axes.set_ylabel(names.pop() if len(names) == 1 else 'behaviour')


def _worst_changes(picks: Sequence[Pick]) -> list[TaskChange]:
  """The change that costs most at each alpha of each arm, where one is known."""
  changes = []
  for pick in picks:
    for alpha in pick.comparison.alphas:
      worst = pick.comparison.worst(alpha)
      if worst:
        changes.append(worst)
  return changes


def _draw_path(axes: 'Axes', pick: Pick, index: int) -> list[labels.Label]:
  """The labels of one arm's points, after drawing points and line."""
  numbers = pick.comparison
  colour, marker, line = _look(index)
  usable = []
  xs = []
  x_down = []
  x_up = []
  cells = []
  for alpha in numbers.alphas:
    worst = numbers.worst(alpha)
    behaviour = numbers.behaviour_at(alpha)
    if worst and behaviour.measured:
      usable.append(alpha)
      # A loss that rises is a capability lost, as a rate that falls is.
      xs.append(worst.improvement)
      below, above = worst.reach
      x_down.append(below)
      x_up.append(above)
      cells.append(behaviour)
  ys = [cell.mean for cell in cells]
  axes.errorbar(
    xs,
    ys,
    _bars(cells),
    (x_down, x_up),
    color=colour,
    linewidth=1.1,
    marker=marker,
    linestyle=line,
    markersize=4,
    elinewidth=0.6,
    capsize=0,
    zorder=3,
  )
  texts = []
  for alpha, x, y in zip(usable, xs, ys):
    marked = alpha in pick.alphas or alpha == 0
    if marked:
      # The base's ring is filled: on a printout too, it is no pick.
      ring = {**RING, 'markerfacecolor': 'none' if alpha else PAPER}
      axes.plot([x], [y], **ring, markeredgecolor=colour)
    text = format_alpha(alpha) if alpha else 'base'
    texts.append(labels.Label(x, y, text, bold=marked))
  return texts
