"""Labels beside points in a figure, placed where they cover neither the points, nor the lines, nor
each other.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Label:
  """A text for the point at (x, y), in data coordinates."""

  x: float
  y: float
  text: str
  bold: bool


def place(figure: 'Figure', axes: 'Axes', labels: Sequence[Label]) -> None:
  """Write each label beside its point, at the first place around it where nothing has been written
  and no point lies.

  Points pile up where a behaviour saturates; a label that stands further off is tied to its point
  by a thin line.
  """
  figure.draw_without_rendering()
  scale = figure.dpi / 72  # pixels per point
  spots = axes.transData.transform([(label.x, label.y) for label in labels]) if labels else []
  taken = [(px - 4 * scale, py - 4 * scale, px + 4 * scale, py + 4 * scale) for px, py in spots]
  taken += [(px - scale, py - scale, px + scale, py + scale) for px, py in _along(spots, 5 * scale)]
  # Bold labels first: the picks and the base get the best places.
  for label, spot in sorted(zip(labels, spots), key=lambda pair: not pair[0].bold):
    width, height = (5.2 * len(label.text) + 2) * scale, 9 * scale
    dx, dy = _first_free(spot, width, height, scale, taken, axes.get_window_extent())
    taken.append((spot[0] + dx, spot[1] + dy, spot[0] + dx + width, spot[1] + dy + height))
    far = math.hypot(dx + width / 2, dy + height / 2) > 24 * scale
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
      arrowprops=dict(arrowstyle='-', linewidth=0.5, alpha=0.6, shrinkA=0, shrinkB=3)
      if far
      else None,
    )


def _first_free(
  spot, width: float, height: float, scale: float, taken, frame
) -> tuple[float, float]:
  """Offset in pixels of the first free place for a label of this size around `spot`; close by where
  none is free.
  """
  px, py = spot
  for dx, dy in _offsets(scale, width, height):
    if _is_free((px + dx, py + dy, px + dx + width, py + dy + height), taken, frame):
      return dx, dy
  return 6 * scale, 6 * scale


def _along(spots, step: float):
  """Points every `step` pixels on the straight lines between neighbouring spots."""
  for (x0, y0), (x1, y1) in zip(spots, spots[1:]):
    count = int(math.hypot(x1 - x0, y1 - y0) / step)
    for index in range(1, count):
      yield x0 + (x1 - x0) * index / count, y0 + (y1 - y0) * index / count


def _offsets(scale: float, width: float, height: float):
  """Lower left corners to try for a label, in pixels from its point, rings outward."""
  for ring in (6, 14, 22, 32, 44, 58, 74):
    for turn in range(16):
      angle = math.pi / 8 * turn + math.pi / 4
      reach_x, reach_y = ring * scale + width / 2, ring * scale + height / 2
      yield reach_x * math.cos(angle) - width / 2, reach_y * math.sin(angle) - height / 2


def _is_free(box, taken, frame) -> bool:
  left, bottom, right, top = box
  if left < frame.x0 or right > frame.x1 or bottom < frame.y0 or top > frame.y1:
    return False
  return all(right < x0 or left > x1 or top < y0 or bottom > y1 for x0, y0, x1, y1 in taken)
