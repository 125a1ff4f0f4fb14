"""Few fixed shapes for many rows of different lengths.

Each shape costs a compilation, each padded token a computation.
"""

import collections
import itertools
from collections.abc import Hashable, Sequence

from weightsteer_jax.data.batches import round_up

# Lengths along one or more axes, tokens.
Shape = tuple[int, ...]
# Shapes to begin to merge with: merging looks at all pairs, again and again, so the time on the
# host grows with the third power of this number.
MOST_CANDIDATES = 40


def plan_shapes(
  sizes: Sequence[Shape], *, multiples: Shape, most: Shape, max_shapes: int, compile_tokens: int
) -> list[Shape]:
  """The shapes to compile, smallest first; every size fits into at least one shape.

  Shapes start as the sizes rounded up, and are merged two by two, the pair with the least padding
  first, until at most `max_shapes` are left and another merge would cost more than a compilation.

  >>> rows = [(5,), (7,), (90,)] * 100
  >>> plan_shapes(rows, multiples=(8,), most=(512,), max_shapes=2, compile_tokens=0)
  [(8,), (96,)]

  Args:
    sizes: lengths of each row, in tokens, along one or more axes.
    multiples: tokens; each axis is rounded up to a multiple.
    most: the longest that each axis may get by rounding.
    max_shapes: shapes at most.
    compile_tokens: tokens computed in the time of one compilation.
  """
  # Round the sizes up, more coarsely until few shapes are left.
  rounded = [_round(size, multiples, most) for size in sizes]
  while len(set(rounded)) > MOST_CANDIDATES:
    multiples = tuple(2 * multiple for multiple in multiples)
    rounded = [_round(size, multiples, most) for size in sizes]
  # {shape: rows}.
  counts = collections.Counter(rounded)
  # Merge two shapes at a time.
  while len(counts) > 1:
    # (tokens of padding that merging two shapes adds, the shapes); of equals the smallest shapes.
    candidates = []
    for a, b in itertools.combinations(sorted(counts), 2):
      covering = sum(_cover(a, b))
      added = counts[a] * (covering - sum(a))
      added += counts[b] * (covering - sum(b))
      candidates.append((added, a, b))
    added, a, b = min(candidates)
    # Few enough, and even the cheapest merge costs more than the compilation that it saves.
    if len(counts) <= max_shapes and added > compile_tokens:
      break
    rows = counts.pop(a)
    rows += counts.pop(b)
    # The covering shape may be one of the two, or be there already.
    counts[_cover(a, b)] += rows
  return sorted(counts, key=lambda shape: (sum(shape), shape))


def fitting(size: Shape, shapes: Sequence[Shape]) -> Shape:
  """The first of the shapes that holds the size."""

  def holds(shape):
    return all(length <= room for length, room in zip(size, shape))

  return next(filter(holds, shapes))


class KeptShapes:
  """The shapes of a session, in which a caller asks text by text.

  Each text has another length, and planned alone would be compiled anew. A shape that was compiled
  before is taken again where its padding costs less than a compilation; a new shape gets room for
  the texts to come, up to the next power of two along each axis.

  >>> kept = KeptShapes()
  >>> kept.covering('greedy', (16, 48), rows=1, most=(512, 512), compile_tokens=1000)
  (16, 64)
  >>> kept.covering('greedy', (80, 112), rows=1, most=(512, 512), compile_tokens=1000)
  (128, 128)
  >>> kept.covering('greedy', (32, 128), rows=1, most=(512, 512), compile_tokens=1000)
  (128, 128)
  """

  def __init__(self) -> None:
    self._shapes: dict[Hashable, list[Shape]] = collections.defaultdict(list)

  def covering(
    self, programs: Hashable, shape: Shape, *, rows: int, most: Shape, compile_tokens: int
  ) -> Shape:
    """The shape to compute in place of a planned one.

    Args:
      programs: names the programs that are compiled for the shape.
      rows: rows of the shape.
      most: the longest that each axis may get, tokens.
      compile_tokens: tokens computed in the time of one compilation.
    """

    def is_cheap(wider: Shape) -> bool:
      return rows * (sum(wider) - sum(shape)) <= compile_tokens

    wide = [kept for kept in self._shapes[programs] if _cover(kept, shape) == kept]
    nearest = min(wide, key=sum, default=None)
    if nearest is not None and is_cheap(nearest):
      return nearest
    roomy = tuple(min(_power_of_two(size), limit) for size, limit in zip(shape, most))
    chosen = roomy if is_cheap(roomy) else shape
    self._shapes[programs].append(chosen)
    return chosen


def rows_for(count: int, batch_size: int) -> int:
  """Rows of a batch: `batch_size`, or the power of two above `count` where that is less.

  >>> rows_for(5, 64), rows_for(500, 64)
  (8, 64)
  """
  return min(batch_size, _power_of_two(count))


def _power_of_two(count: int) -> int:
  # `bit_length` of count - 1 is the logarithm of count, rounded up.
  return 1 << max(count - 1, 0).bit_length()


def _round(size: Shape, multiples: Shape, most: Shape) -> Shape:
  rounded = []
  for length, multiple, limit in zip(size, multiples, most):
    # A prompt of one token has nothing to prefill, and still takes a column of the arrays.
    padded = round_up(max(length, 1), multiple)
    # Rounding goes to the limit at most, but never cuts the length itself.
    padded = min(padded, max(limit, length))
    rounded.append(padded)
  return tuple(rounded)


def _cover(a: Shape, b: Shape) -> Shape:
  return tuple(max(pair) for pair in zip(a, b))
