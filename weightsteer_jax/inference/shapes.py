"""Few fixed shapes for many rows of different lengths.

Each shape costs a compilation, each padded token a computation.
"""

import collections
import itertools
from collections.abc import Sequence

# Lengths along one or more axes, tokens.
Shape = tuple[int, ...]
# Shapes to begin to merge with: merging looks at all pairs, again and again.
MOST_CANDIDATES = 40


def plan_shapes(
  sizes: Sequence[Shape], *, multiples: Shape, most: Shape, max_shapes: int, compile_tokens: int
) -> list[Shape]:
  """The shapes to compile, smallest first; every size fits into at least one of them.

  Shapes start as the sizes rounded up, and are merged two by two, the pair with the least padding
  first, until there are few enough and another merge would cost more than a compilation.

  >>> rows = [(5,), (7,), (90,)] * 100
  >>> plan_shapes(rows, multiples=(8,), most=(512,), max_shapes=2, compile_tokens=0)
  [(8,), (96,)]

  Args:
    sizes: lengths of each row, in tokens, along one or more axes.
    multiples: what each axis is rounded up to.
    most: the longest that each axis may get by rounding.
    max_shapes: shapes at most.
    compile_tokens: tokens computed in the time of one compilation.
  """
  counts = collections.Counter(_round(size, multiples, most) for size in sizes)
  while len(counts) > MOST_CANDIDATES:
    multiples = tuple(2 * multiple for multiple in multiples)
    counts = collections.Counter(_round(size, multiples, most) for size in sizes)
  while len(counts) > 1:
    # (tokens of padding that merging two shapes adds, the shapes); of equals the smallest shapes.
    candidates = []
    for a, b in itertools.combinations(sorted(counts), 2):
      whole = sum(_cover(a, b))
      added = counts[a] * (whole - sum(a)) + counts[b] * (whole - sum(b))
      candidates.append((added, a, b))
    added, a, b = min(candidates)
    if len(counts) <= max_shapes and added > compile_tokens:
      break
    number = counts.pop(a) + counts.pop(b)
    counts[_cover(a, b)] += number
  return sorted(counts, key=lambda shape: (sum(shape), shape))


def fitting(size: Shape, shapes: Sequence[Shape]) -> Shape:
  """The first of the shapes that holds the size."""
  return next(shape for shape in shapes if all(n <= room for n, room in zip(size, shape)))


def rows_for(count: int, batch_size: int) -> int:
  """Rows of a batch: `batch_size`, or the power of two above `count` where that is less.

  >>> rows_for(5, 64), rows_for(500, 64)
  (8, 64)
  """
  return min(batch_size, 1 << max(count - 1, 0).bit_length())


def _round(size: Shape, multiples: Shape, most: Shape) -> Shape:
  rounded = []
  for length, multiple, limit in zip(size, multiples, most):
    up = -(-max(length, 1) // multiple) * multiple
    rounded.append(min(up, max(limit, length)))
  return tuple(rounded)


def _cover(a: Shape, b: Shape) -> Shape:
  return tuple(max(pair) for pair in zip(a, b))
