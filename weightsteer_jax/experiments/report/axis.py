"""The axis of strengths, to scale, in every figure: which strengths carry a label."""

import math
from collections.abc import Iterable, Sequence


def labelled(alphas: Sequence[float], first: Iterable[float] = (), *, gap: float) -> list[float]:
  """The alphas to write a label under, ascending, no two closer together than `gap`.

  >>> labelled([-4, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 4], [0.25], gap=0.2)
  [-4, 0.25, 4]
  >>> labelled([-1, 0, 1], gap=0.2)
  [-1, 0, 1]

  Args:
    first: alphas to label before all others, if they have room.
    gap: least distance between labels, as a share of the whole axis.
  """
  if not alphas:
    return []
  least = gap * (max(alphas) - min(alphas))
  ends = (max(alphas), min(alphas))
  # Far from zero the grid is wide, and its labels tell the scale.
  outward = sorted(alphas, key=abs, reverse=True)
  chosen: list[float] = []
  for alpha in (*first, 0, *ends, *outward):
    known = alpha in alphas
    if known and all(abs(alpha - other) >= least for other in chosen):
      chosen.append(alpha)
  return sorted(set(chosen))


def round_steps(low: float, high: float, most: int = 5) -> list[float]:
  """Round numbers from about `low` to about `high`, for the lines of a grid.

  >>> round_steps(-3.1, 8.2)
  [-4.0, 0.0, 4.0, 8.0]
  >>> round_steps(3.81, 4.03)
  [3.8, 3.9, 4.0, 4.1]
  """
  span = high - low
  # A single number has no span of its own.
  if span <= 0:
    return [low]
  power = 10.0 ** math.floor(math.log10(span / most))
  for factor in (1, 2, 2.5, 4, 5, 10):
    step = factor * power
    first = math.floor(low / step + 0.25)
    last = math.ceil(high / step - 0.25)
    if last - first < most:
      break
  # Rounded as numbers are read: 3 * 0.1 is 0.30000000000000004.
  return [float(f'{count * step:.6g}') for count in range(first, last + 1)]
