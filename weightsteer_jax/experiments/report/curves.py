"""The page's curves: an SVG for each task and metric, every point a link to its answers.

Drawn here and not by matplotlib, because a point must be a link that a keyboard reaches, and
because each panel is to find its own place on a wide screen, a phone and paper. curves.png has the
same numbers for slides.
"""

import dataclasses
import math
import urllib.parse
from collections.abc import Sequence

from weightsteer_jax.experiments.report import axis, study, tables
from weightsteer_jax.experiments.report.pick import Pick
from weightsteer_jax.experiments.report.safe import escape
from weightsteer_jax.experiments.report.study import Cell, Study, SweptTask, format_alpha

# Units of the drawing, about a pixel each: the panel, and the plot inside.
WIDTH = 340
LEFT = 38
RIGHT = 12
TOP = 10
HEIGHT = 150
# Below the plot: ticks and labels, and where something is unreadable a strip of bars.
AXIS = 40
STRIP = 16
# Arms share a panel unless the strengths of one reach this many times further: the steps of a
# vector of activations and of a direction in weights have nothing in common.
REACH = 3.0
# Least distance between labels, as a share of the axis.
LABEL_GAP = 0.1
# Markers by arm, as paths around (0, 0); colour alone would not tell arms apart.
MARKERS = (
  'M3.6 0A3.6 3.6 0 1 1-3.6 0A3.6 3.6 0 1 1 3.6 0Z',
  'M-3.3-3.3H3.3V3.3H-3.3Z',
  'M0-4.3L4.1 3.2H-4.1Z',
  'M0-4.6L4.6 0L0 4.6L-4.6 0Z',
  'M0 4.3L4.1-3.2H-4.1Z',
  'M-1.5-4.2H1.5V-1.5H4.2V1.5H1.5V4.2H-1.5V1.5H-4.2V-1.5H-1.5Z',
)
COLOURS = 6
DASHES = ('', '6 3', '2 2')


@dataclasses.dataclass(frozen=True)
class Point:
  """A measured number of an arm.

  Attributes:
    unreadable: share of answers that could not be read; 0 where not known.
    href: address of the answers behind the point; '' for none.
  """

  alpha: float
  cell: Cell
  unreadable: float
  href: str


@dataclasses.dataclass(frozen=True)
class Line:
  """An arm's points in one panel, alphas ascending.

  Attributes:
    number: the arm's place among all arms, for its colour.
  """

  arm: str
  number: int
  points: tuple[Point, ...]
  picked: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Panel:
  """What one drawing shows.

  Attributes:
    band: (lowest, highest) mean at which the capability is kept; None for behaviours.
    name: what a screen reader calls the drawing.
  """

  name: str
  lines: tuple[Line, ...]
  band: tuple[float, float] | None = None


def groups(picks: Sequence[Pick]) -> list[list[int]]:
  """Numbers of the arms that share panels: those whose strengths reach about as far.

  Arms at a single strength, the base, join the first group.
  """
  reach = []
  for pick in picks:
    reach.append(max((abs(alpha) for alpha in pick.comparison.alphas), default=0.0))
  found: list[list[int]] = []
  for number, far in enumerate(reach):
    for group in found:
      others = [reach[other] for other in group if reach[other]]
      near = not others or (far <= REACH * min(others) and max(others) <= REACH * far)
      if near or not far:
        group.append(number)
        break
    else:
      found.append([number])
  return found


def panel(
  sweep: Study, picks: Sequence[Pick], arms: Sequence[int], task: SweptTask, metric: str
) -> Panel | None:
  """A task's metric under some arms; None where nothing was measured."""
  lines = []
  bands = []
  for number in arms:
    pick = picks[number]
    points = points_of(sweep, pick.arm, task.name, metric)
    if not points:
      continue
    lines.append(Line(pick.arm, number, points, pick.alphas))
    numbers = pick.comparison
    is_plotted = metric == study.metric_of(sweep.results, task.name)
    base = numbers.cell(task.name, 0.0)
    if is_plotted and task.name in numbers.capability and base.measured:
      bands.append(numbers.kept(task.name))
  if not lines:
    return None
  # All arms have one base, nearly; several bands would hide each other.
  return Panel(f'{task.name}, {metric}', tuple(lines), bands[0] if bands else None)


def points_of(
  sweep: Study, arm: str, task: str, metric: str, page: str | None = ''
) -> tuple[Point, ...]:
  """The measured points of an arm, alphas ascending.

  Args:
    page: address of the page that has the answers; '' is the page itself, None is no page.
  """
  cells = study.column(sweep.results, arm, task, metric)
  # What older results know of unreadable answers.
  valid = study.column(sweep.results, arm, task, 'valid_rate')
  points = []
  for alpha in sorted(cells):
    if not cells[alpha].measured:
      continue
    unreadable = cells[alpha].unread
    # Results of earlier versions have the share of answers that could be judged, as a metric.
    if not cells[alpha].asked and alpha in valid and valid[alpha].measured:
      unreadable = 1 - valid[alpha].mean
    href = '' if page is None else page + address(task, arm, alpha)
    points.append(Point(alpha, cells[alpha], unreadable, href))
  return tuple(points)


def key(number: int) -> str:
  """The mark of an arm for a legend."""
  return (
    f'<svg class="sign {colour(number)}" viewBox="-14 -6 28 12" aria-hidden="true">'
    f'<path class="line"{dash(number)} d="M-13 0H13"/>'
    f'<path class="dot" d="{marker(number)}"/></svg>'
  )


def draw(panel: Panel) -> str:
  """The panel as an SVG element; every point a link, with its values as title."""
  scale = _Scale(panel)
  strip = _strip(panel, scale)
  parts = [
    _band(panel, scale),
    _value_axis(scale),
    _alpha_axis(panel, scale),
    *(_picks(line, scale) for line in panel.lines),
    *(_curve(line, scale) for line in panel.lines),
    strip,
    *(_dots(line, scale) for line in panel.lines),
  ]
  height = TOP + HEIGHT + AXIS + (STRIP if strip else 0)
  return (
    f'<svg class="curve" viewBox="0 0 {WIDTH} {height}" role="group" '
    f'aria-label="{escape(panel.name)}">{"".join(parts)}</svg>'
  )


class _Scale:
  """From alphas and means to places in the drawing.

  Attributes:
    alphas: all alphas of the panel, ascending.
    bottom, top: means at the ends of the axis.
    ticks: means with a grid line.
  """

  def __init__(self, panel: Panel):
    points = [point for line in panel.lines for point in line.points]
    self.alphas = sorted({point.alpha for point in points})
    ends = []
    for point in points:
      low, high = point.cell.bar
      ends += [low, high]
    self.is_rate = all(0 <= point.cell.mean <= 1 for point in points)
    # All rates have one scale, so that panels can be compared by eye.
    if self.is_rate:
      self.ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
      self.bottom = 0.0
      self.top = 1.0
    else:
      self.ticks = axis.round_steps(min(ends), max(ends))
      self.bottom = min(self.ticks[0], *ends)
      self.top = max(self.ticks[-1], *ends)

  def x(self, alpha: float) -> float:
    """Distance from the left."""
    first = self.alphas[0]
    span = self.alphas[-1] - first or 1.0
    # Markers at the ends need some room.
    inner = WIDTH - LEFT - RIGHT - 12
    return LEFT + 6 + inner * (alpha - first) / span

  def y(self, mean: float) -> float:
    """Distance from the top, held inside of the plot."""
    span = self.top - self.bottom or 1.0
    share = (mean - self.bottom) / span
    return TOP + HEIGHT * (1 - min(1.0, max(0.0, share)))


def address(task: str, arm: str, alpha: float) -> str:
  """The page's address of a task's answers at a strength, beside those of the base."""
  # All digits, and 1 for 1.0, as the scripts write addresses.
  digits = repr(alpha).removesuffix('.0')
  return '#' + urllib.parse.urlencode({'task': task, 'b': f'{arm}@{digits}'}, errors='replace')


def words(line: Line, point: Point) -> list[str]:
  """What stands beside a point under the pointer, a line each."""
  cell = point.cell
  said = [f'{line.arm}, alpha {format_alpha(point.alpha)}', f'{cell.mean:.4g}{_doubt(cell)}']
  said.append(cell.counted)
  if point.unreadable:
    said.append(f'{tables.percent(point.unreadable)} could not be read')
  if point.alpha in line.picked:
    said.append('picked')
  return said


def _doubt(cell: Cell) -> str:
  """How surely a mean is known."""
  has_interval = math.isfinite(cell.low) and math.isfinite(cell.high)
  if has_interval:
    return f' (95 %: {cell.low:.3g} to {cell.high:.3g})'
  # Results of earlier versions, and means without an interval.
  return f' ±{cell.sem:.3g}' if math.isfinite(cell.sem) else ''


def _band(panel: Panel, scale: _Scale) -> str:
  if panel.band is None:
    return ''
  low, high = panel.band
  top = scale.y(high)
  height = scale.y(low) - top
  return (
    f'<rect class="band" x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" '
    f'height="{height:.1f}"/>'
  )


def _value_axis(scale: _Scale) -> str:
  parts = []
  for tick in scale.ticks:
    y = scale.y(tick)
    parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
    # A rate's quarters are lines without a number.
    if not scale.is_rate or tick in (0.0, 0.5, 1.0):
      parts.append(
        f'<text class="end" x="{LEFT - 6}" y="{y + 3.5:.1f}">{escape(f"{tick:g}")}</text>'
      )
  return ''.join(parts)


def _alpha_axis(panel: Panel, scale: _Scale) -> str:
  """Ticks at every alpha, labels where there is room, and a mark under each picked alpha."""
  floor = TOP + HEIGHT
  picked = sorted({alpha for line in panel.lines for alpha in line.picked})
  ends = [alpha for alpha in scale.alphas if alpha in picked]
  parts = [f'<path class="axis" d="M{LEFT} {floor}H{WIDTH - RIGHT}"/>']
  for alpha in scale.alphas:
    parts.append(f'<path class="axis" d="M{scale.x(alpha):.1f} {floor}v4"/>')
  for alpha in axis.labelled(scale.alphas, ends, gap=LABEL_GAP):
    kind = 'middle strong' if alpha in picked else 'middle'
    x = scale.x(alpha)
    parts.append(f'<text class="{kind}" x="{x:.1f}" y="{floor + 18}">{format_alpha(alpha)}</text>')
  middle = (LEFT + WIDTH - RIGHT) / 2
  parts.append(f'<text class="middle soft" x="{middle:.0f}" y="{floor + 33}">alpha</text>')
  return ''.join(parts)


def _picks(line: Line, scale: _Scale) -> str:
  """A dashed line at each picked alpha, with a triangle on the axis."""
  floor = TOP + HEIGHT
  parts = []
  for alpha in line.picked:
    if alpha in scale.alphas:
      x = scale.x(alpha)
      parts.append(
        f'<g class="pick {colour(line.number)}"><path class="at" d="M{x:.1f} {TOP}V{floor}"/>'
        f'<path class="flag" d="M{x:.1f} {floor}l4 7h-8Z"/></g>'
      )
  return ''.join(parts)


def _curve(line: Line, scale: _Scale) -> str:
  """The line through an arm's points, and the bars of their uncertainty."""
  places = [(scale.x(point.alpha), scale.y(point.cell.mean)) for point in line.points]
  path = 'L'.join(f'{x:.1f} {y:.1f}' for x, y in places)
  bars = []
  for point in line.points:
    low, high = point.cell.bar
    bars.append(f'M{scale.x(point.alpha):.1f} {scale.y(low):.1f}V{scale.y(high):.1f}')
  return (
    f'<g class="{colour(line.number)}"><path class="bars" d="{"".join(bars)}"/>'
    f'<path class="line"{dash(line.number)} d="M{path}"/></g>'
  )


def _dots(line: Line, scale: _Scale) -> str:
  """An arm's points: links with their values as title, hollow where most is unreadable."""
  parts = []
  for point in line.points:
    parts.append(
      dot(
        (scale.x(point.alpha), scale.y(point.cell.mean)),
        line.number,
        alpha=point.alpha,
        words=words(line, point),
        href=point.href,
        ring=point.alpha in line.picked,
        hollow=point.unreadable > study.MOSTLY_UNREAD,
      )
    )
  return f'<g class="{colour(line.number)}">{"".join(parts)}</g>'


def dot(
  at: tuple[float, float],
  number: int,
  *,
  alpha: float,
  words: Sequence[str],
  href: str,
  ring: bool,
  hollow: bool,
) -> str:
  """A point of a drawing, with words for the pointer and a link to its answers.

  Args:
    at: place in the drawing.
    number: the arm's place among all arms.
    href: address of the answers; '' for none.
  """
  kind = 'dot hollow' if hollow else 'dot'
  around = '<circle class="ring" r="6.6"/>' if ring else ''
  # The circle without colour is what a finger or a pointer has to meet.
  shape = f'{around}<circle class="hit" r="9"/><path class="{kind}" d="{marker(number)}"/>'
  title = f'<title>{escape("; ".join(words))}</title>'
  where = f'transform="translate({at[0]:.1f} {at[1]:.1f})"'
  about = f'class="point" data-alpha="{alpha!r}"'
  if not href:
    return f'<g {about} role="img" {where}>{title}{shape}</g>'
  return f'<a {about} href="{escape(href)}"><g {where}>{title}{shape}</g></a>'


def colour(number: int) -> str:
  """The class in page.css with an arm's colour."""
  return f'arm-{number % COLOURS}'


def marker(number: int) -> str:
  """The path of an arm's marker, around (0, 0)."""
  return MARKERS[number % len(MARKERS)]


def dash(number: int) -> str:
  """The attribute that dashes an arm's line where colours begin again; '' for a whole line."""
  pattern = DASHES[number // COLOURS % len(DASHES)]
  return f' stroke-dasharray="{pattern}"' if pattern else ''


def _strip(panel: Panel, scale: _Scale) -> str:
  """Bars below the axis: the share of answers that could not be read; '' where all could."""
  points = [(line, point) for line in panel.lines for point in line.points if point.unreadable]
  if not points:
    return ''
  top = TOP + HEIGHT + AXIS - 2
  bars = []
  for line, point in points:
    # Arms stand beside each other.
    x = scale.x(point.alpha) + 3 * (panel.lines.index(line) - (len(panel.lines) - 1) / 2)
    height = max(1.0, STRIP * point.unreadable)
    bars.append(
      f'<rect x="{x - 2:.1f}" y="{top + STRIP - height:.1f}" width="4" height="{height:.1f}"/>'
    )
  return (
    f'<g class="unreadable"><path class="grid" d="M{LEFT} {top + STRIP}H{WIDTH - RIGHT}"/>'
    f'<text class="end" x="{LEFT - 6}" y="{top + STRIP}">unread</text>{"".join(bars)}</g>'
  )
