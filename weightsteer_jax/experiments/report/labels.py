"""Labels beside points in a figure, clear of the points, the lines and each other."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure
  from matplotlib.transforms import Bbox


# Coordinates in pixels: a point, and a rectangle as left, bottom, right, top.
Point = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Label:
  """A text for the point at (x, y), in data coordinates."""

  x: float
  y: float
  text: str
  bold: bool


def place(figure: 'Figure', axes: 'Axes', labels: Sequence[Label]) -> None:
  """Writes each label at the first free place around the label's point.

  Points pile up where a behaviour saturates; a thin line ties a label that stands further off to
  the point.
  """
  # Settles the layout: only then are the limits of the axes known, and with them pixels.
  figure.draw_without_rendering()
  if not labels:
    return
  frame = axes.get_window_extent()
  # Pixels per point, the unit of font sizes.
  scale = figure.dpi / 72
  pixels = axes.transData.transform([(label.x, label.y) for label in labels])
  spots = [(float(px), float(py)) for px, py in pixels]
  # Markers are some 4 points wide, the lines between them 1.
  taken = [_around(spot, 4 * scale) for spot in spots]
  taken += [_around(spot, scale) for spot in _along(spots, 5 * scale)]
  # Bold labels first: the picks and the base get the best places.
  for label, spot in sorted(zip(labels, spots), key=lambda pair: not pair[0].bold):
    # A letter of 8 points is some 5.2 points wide.
    width = (5.2 * len(label.text) + 2) * scale
    height = 9 * scale
    dx, dy = _first_free(spot, width, height, scale, taken, frame)
    taken.append(_box_at(spot, dx, dy, width, height))
    # From some 24 points on, a line has to tie the label to the point.
    to_middle = math.hypot(dx + width / 2, dy + height / 2)
    far = to_middle > 24 * scale
    line = dict(arrowstyle='-', linewidth=0.5, alpha=0.6, shrinkA=0, shrinkB=3)
    axes.annotate(
      label.text,
      (label.x, label.y),
      ((dx + width / 2) / scale, dy / scale),
      textcoords='offset points',
      fontsize=8,
      fontweight='bold' if label.bold else 'normal',
      ha='center',
      va='bottom',
      zorder=6,
      arrowprops=line if far else None,
    )


def _around(spot: Point, reach: float) -> Box:
  return spot[0] - reach, spot[1] - reach, spot[0] + reach, spot[1] + reach


def _box_at(spot: Point, dx: float, dy: float, width: float, height: float) -> Box:
  left = spot[0] + dx
  bottom = spot[1] + dy
  return left, bottom, left + width, bottom + height


def _first_free(
  spot: Point, width: float, height: float, scale: float, taken: Sequence[Box], frame: 'Bbox'
) -> tuple[float, float]:
  """Offset in pixels of the first free place for a label; close by where none is free."""
  for dx, dy in _offsets(scale, width, height):
    box = _box_at(spot, dx, dy, width, height)
    if _is_free(box, taken, frame):
      return dx, dy
  return 6 * scale, 6 * scale


def _along(spots: Sequence[Point], step: float) -> Iterator[Point]:
  """Points every `step` pixels on the straight lines between neighbouring spots."""
  for (x0, y0), (x1, y1) in zip(spots, spots[1:]):
    length_x = x1 - x0
    length_y = y1 - y0
    count = int(math.hypot(length_x, length_y) / step)
    # Without the ends, where the markers are.
    for index in range(1, count):
      x = x0 + length_x * index / count
      y = y0 + length_y * index / count
      yield x, y


def _offsets(scale: float, width: float, height: float) -> Iterator[tuple[float, float]]:
  """Lower left corners to try for a label, in pixels from the point, rings outward."""
  # Radii in points; the first clears the marker.
  for ring in (6, 14, 22, 32, 44, 58, 74):
    # Ellipses around the point: a label is wider than high.
    reach_x = ring * scale + width / 2
    reach_y = ring * scale + height / 2
    for turn in range(16):
      # The first place is above and to the right, where labels are expected.
      angle = math.pi / 8 * turn + math.pi / 4
      dx = reach_x * math.cos(angle) - width / 2
      dy = reach_y * math.sin(angle) - height / 2
      yield dx, dy


def _is_free(box: Box, taken: Sequence[Box], frame: 'Bbox') -> bool:
  left, bottom, right, top = box
  # A label across the frame would be cut off, or lie on the axis' numbers.
  if left < frame.x0 or right > frame.x1:
    return False
  if bottom < frame.y0 or top > frame.y1:
    return False
  for x0, y0, x1, y1 in taken:
    is_apart = right < x0 or left > x1 or top < y0 or bottom > y1
    if not is_apart:
      return False
  return True
