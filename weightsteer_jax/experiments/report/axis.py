"""The axis of strengths, to scale, in every figure: which strengths carry a label."""

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
