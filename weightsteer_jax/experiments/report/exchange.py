"""The page's figure of behaviour against capability: every strength a point, and a link.

The band holds exactly the strengths that the picking rule admits by their means. tradeoff.png has
the same for slides.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from weightsteer_jax.experiments.report import axis, curves, words
from weightsteer_jax.experiments.report.comparison import TaskChange
from weightsteer_jax.experiments.report.pick import Pick
from weightsteer_jax.experiments.report.safe import escape
from weightsteer_jax.experiments.report.study import Cell, format_alpha

# Units of the drawing, about a pixel each.
WIDTH = 540
HEIGHT = 360
LEFT = 60
RIGHT = 16
TOP = 14
BOTTOM = 44
# Between the outermost points and the ends of the plot.
ROOM = 8
# With more arms, only picks and the base are labelled: the labels would hide each other.
LABELLED_ARMS = 2
# A letter's width, a line's height, and the places of a label around its point, best first: the
# bars go up, down and sideways.
LETTER = 6.4
LINE = 13.0
AROUND = ((8, -6), (-8, -6), (8, 15), (-8, 15), (10, 4), (-10, 4), (0, -11), (0, 20))

# Left, top, right, bottom.
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class _Point:
  """An arm at an alpha.

  Attributes:
    change: of the capability that lost most.
    behaviour: mean of the behaviours.
  """

  alpha: float
  change: TaskChange
  behaviour: Cell


def draw(picks: Sequence[Pick]) -> str:
  """The figure as an SVG element; '' where no arm has both behaviour and capability."""
  arms = [_points(pick) for pick in picks]
  if not any(arms):
    return ''
  plane = _Plane([point for points in arms for point in points])
  parts = [_band(picks, plane), _axes(picks, plane)]
  for number, points in enumerate(arms):
    parts.append(_path(number, points, plane))
  for number, points in enumerate(arms):
    parts.append(_dots(picks[number], number, points, plane))
  parts.append(_labels(picks, arms, plane))
  return (
    f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" '
    f'aria-label="behaviour against capability">{"".join(parts)}</svg>'
  )


def _points(pick: Pick) -> list[_Point]:
  numbers = pick.comparison
  points = []
  for alpha in numbers.alphas:
    worst = numbers.worst(alpha)
    behaviour = numbers.behaviour_at(alpha)
    if worst and behaviour.measured:
      points.append(_Point(alpha, worst, behaviour))
  return points


class _Plane:
  """From changes and means to places in the drawing.

  Attributes:
    columns, rows: numbers with a grid line, of changes and of means.
  """

  def __init__(self, points: Sequence[_Point]):
    changes = [0.0]
    means = []
    for point in points:
      below, above = point.change.reach
      better = point.change.improvement
      changes += [better - below, better + above]
      means += [*point.behaviour.bar]
    self.columns = axis.round_steps(min(changes), max(changes), most=7)
    self.rows = axis.round_steps(min(means), max(means))
    self._left = min(self.columns[0], *changes)
    self._right = max(self.columns[-1], *changes)
    self._low = min(self.rows[0], *means)
    self._high = max(self.rows[-1], *means)

  def x(self, change: float) -> float:
    """Distance from the left."""
    share = _share(change, self._left, self._right)
    return LEFT + ROOM + (WIDTH - LEFT - RIGHT - 2 * ROOM) * share

  def y(self, mean: float) -> float:
    """Distance from the top."""
    share = _share(mean, self._low, self._high)
    return TOP + ROOM + (HEIGHT - TOP - BOTTOM - 2 * ROOM) * (1 - share)

  def at(self, point: _Point) -> tuple[float, float]:
    """The place of a point."""
    return self.x(point.change.improvement), self.y(point.behaviour.mean)


def _share(value: float, low: float, high: float) -> float:
  """The place of a value between two others, from 0 to 1, held inside."""
  # A single value has no span.
  span = high - low or 1.0
  return min(1.0, max(0.0, (value - low) / span))


def _band(picks: Sequence[Pick], plane: _Plane) -> str:
  """The changes that the rule admits; what is gained is kept, unless every change counts."""
  rule = picks[0].comparison.rule
  left = plane.x(-rule.tolerance)
  right = plane.x(rule.tolerance if rule.counts == 'change' else math.inf)
  if rule.counts != 'change':
    right = WIDTH - RIGHT
  height = HEIGHT - TOP - BOTTOM
  return (
    f'<rect class="band" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{height}"/>'
  )


def _axes(picks: Sequence[Pick], plane: _Plane) -> str:
  floor = HEIGHT - BOTTOM
  parts = []
  for change in plane.columns:
    x = plane.x(change)
    parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{floor}"/>')
    parts.append(f'<text class="middle" x="{x:.1f}" y="{floor + 16}">{change:g}</text>')
  for mean in plane.rows:
    y = plane.y(mean)
    parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text class="end" x="{LEFT - 7}" y="{y + 4:.1f}">{mean:g}</text>')
  parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}"/>')
  # Arms with different behaviours share only the word.
  names = {words.subject(pick.comparison) for pick in picks if pick.comparison.behaviour}
  behaviour = escape(names.pop() if len(names) == 1 else 'behaviour')
  middle = (LEFT + WIDTH - RIGHT) / 2
  about = 'change of the capability that lost most (right: better)'
  parts.append(f'<text class="middle soft" x="{middle}" y="{HEIGHT - 8}">{about}</text>')
  half = (TOP + floor) / 2
  turned = f'transform="rotate(-90 12 {half})"'
  parts.append(f'<text class="middle soft" x="12" y="{half}" {turned}>{behaviour}</text>')
  return ''.join(parts)


def _path(number: int, points: Sequence[_Point], plane: _Plane) -> str:
  """The line through an arm's points in the order of alphas, and the bars of both numbers."""
  places = [plane.at(point) for point in points]
  bars = []
  for point, (x, y) in zip(points, places):
    below, above = point.change.reach
    better = point.change.improvement
    left = plane.x(better - below)
    right = plane.x(better + above)
    bars.append(f'M{left:.1f} {y:.1f}H{right:.1f}')
    low, high = point.behaviour.bar
    bottom = plane.y(low)
    top = plane.y(high)
    bars.append(f'M{x:.1f} {bottom:.1f}V{top:.1f}')
  # One path through all points.
  line = 'L'.join(f'{x:.1f} {y:.1f}' for x, y in places)
  path = f'<path class="line"{curves.dash(number)} d="M{line}"/>' if places else ''
  thin = f'<path class="bars thin" d="{"".join(bars)}"/>'
  return f'<g class="{curves.colour(number)}">{thin}{path}</g>'


def _dots(pick: Pick, number: int, points: Sequence[_Point], plane: _Plane) -> str:
  numbers = pick.comparison
  parts = []
  for point in points:
    # Of several behaviours the first stands for the answers.
    href = curves.address(numbers.behaviour[0], pick.arm, point.alpha)
    x, y = plane.at(point)
    is_marked = point.alpha in pick.alphas or point.alpha == 0
    parts.append(
      curves.dot(
        (x, y),
        number,
        alpha=point.alpha,
        words=_words(pick, point),
        href=href,
        ring=is_marked,
        hollow=point.alpha == 0,
      )
    )
  return f'<g class="{curves.colour(number)}">{"".join(parts)}</g>'


def _words(pick: Pick, point: _Point) -> list[str]:
  """What stands beside a point under the pointer, a line each."""
  change = point.change
  interval = f' ({change.interval})' if change.interval else ''
  said = [
    f'{pick.arm}, alpha {format_alpha(point.alpha)}',
    f'{words.subject(pick.comparison)}: {point.behaviour.mean:.3g}',
    f'{change.task}: {change.difference:+.2f}{interval}',
  ]
  if point.alpha in pick.alphas:
    said.append('picked')
  return said


def _labels(picks: Sequence[Pick], arms: Sequence[Sequence[_Point]], plane: _Plane) -> str:
  """Alphas beside their points, where there is room; picks and the base come first."""
  taken: list[Box] = []
  for points in arms:
    for point in points:
      x, y = plane.at(point)
      taken.append((x - 5, y - 5, x + 5, y + 5))
  parts = []
  for number, (pick, points) in enumerate(zip(picks, arms)):
    # All arms share the base's point, nearly: one label is enough.
    marked = [point for point in points if point.alpha in pick.alphas]
    marked += [point for point in points if point.alpha == 0 and number == 0]
    others = [point for point in points if point.alpha and point not in marked]
    for point in (*marked, *(others if len(arms) <= LABELLED_ARMS else ())):
      text = format_alpha(point.alpha) if point.alpha else 'base'
      for x, y, anchor, box in _places(plane.at(point), text):
        if not any(_overlap(box, other) for other in taken):
          taken.append(box)
          # On a phone letters are larger, and only the marked points keep their labels.
          kind = 'strong' if point in marked else 'free'
          parts.append(f'<text class="{anchor} {kind}" x="{x:.1f}" y="{y:.1f}">{text}</text>')
          break
  return ''.join(parts)


def _places(at: tuple[float, float], text: str) -> Iterator[tuple[float, float, str, Box]]:
  """(x, y of the baseline, anchor, box) of each place for a text beside a point."""
  width = LETTER * len(text)
  for right, down in AROUND:
    x = at[0] + right
    y = at[1] + down
    # The text grows away from the point.
    anchor = 'middle'
    left = x - width / 2
    if right > 0:
      anchor = 'start'
      left = x
    elif right < 0:
      anchor = 'end'
      left = x - width
    box = (left, y - LINE + 3, left + width, y + 2)
    # Outside of the plot a label would be cut off, or stand among those of the axes.
    inside_across = LEFT < box[0] and box[2] < WIDTH - 2
    inside_down = 0 < box[1] and box[3] < HEIGHT - BOTTOM
    if inside_across and inside_down:
      yield x, y, anchor, box


def _overlap(one: Box, other: Box) -> bool:
  across = one[0] < other[2] and other[0] < one[2]
  down = one[1] < other[3] and other[1] < one[3]
  return across and down
