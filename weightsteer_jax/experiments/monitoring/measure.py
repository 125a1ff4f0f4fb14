"""Cosines and projections of an update on directions, whole, per kind of module, per layer, and per
both.

All of it is sums of the same numbers, one set for each layer of each site: the inner product, and
both squared norms. They come from the factors (see directions.gram), in one pass over the update
for all directions.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from weightsteer_jax.directions import gram
from weightsteer_jax.experiments.monitoring import controls
from weightsteer_jax.experiments.monitoring.changes import Change, Leaf, num_layers
from weightsteer_jax.models import stack_axes

Where = tuple[str, int | None]  # (kind of module, layer; None outside the stack)
Squares = dict[str, np.ndarray]  # {path: squared norms [L, E]}


@dataclasses.dataclass(frozen=True)
class Angle:
  """An update seen from a direction, over some part of the weights.

  Attributes:
    cosine: of the angle between them; None where either is zero.
    projection: the update's component along the direction's unit vector, in the units of the
      weights.
    alpha: that in multiples of the direction: the strength at which steering would move as far
      along it.
    norm: the update's. direction_norm: the direction's.
    null_std: standard deviation of the cosine with a random direction of the same rank and
      spectrum.
  """

  cosine: float | None
  projection: float | None
  alpha: float | None
  norm: float
  direction_norm: float
  null_std: float | None


@dataclasses.dataclass
class AngleSums:
  """What one layer of one kind of module adds to the angles.

  Attributes:
    product: <update, direction>. update, direction: squared norms.
    null: variance of the product with a random direction: |update|^2 |direction|^2 / (inputs
      outputs).
  """

  product: float = 0.0
  update: float = 0.0
  direction: float = 0.0
  null: float = 0.0

  def __add__(self, other: 'AngleSums') -> 'AngleSums':
    return AngleSums(
      *(
        getattr(self, field.name) + getattr(other, field.name)
        for field in dataclasses.fields(AngleSums)
      )
    )

  def angle(self) -> Angle:
    update, direction = math.sqrt(max(self.update, 0.0)), math.sqrt(max(self.direction, 0.0))
    both = update * direction
    return Angle(
      cosine=self.product / both if both else None,
      projection=self.product / direction if direction else None,
      alpha=self.product / direction**2 if direction else None,
      norm=update,
      direction_norm=direction,
      null_std=math.sqrt(self.null) / both if both else None,
    )


@dataclasses.dataclass(frozen=True)
class Measured:
  """An update against one direction: the sums, and the cosines with the direction's random controls
  [N].
  """

  sums: Mapping[Where, AngleSums]
  random: np.ndarray

  @property
  def whole(self) -> Angle:
    """Over the whole parameter vector. Source: the global cosine of arXiv 2511.05408, section 5."""
    return sum(self.sums.values(), AngleSums()).angle()

  def angles(self) -> Iterator[tuple[str | None, int | None, Angle]]:
    """(module, layer, angle): the whole (None, None), modules over all layers, layers over all
    modules, cells.
    """
    yield None, None, self.whole
    modules, layers = collections.defaultdict(AngleSums), collections.defaultdict(AngleSums)
    for (module, layer), sums in self.sums.items():
      modules[module] += sums
      if layer is not None:
        layers[layer] += sums
    for module, sums in modules.items():
      yield module, None, sums.angle()
    for layer, sums in sorted(layers.items()):
      yield None, layer, sums.angle()
    for (module, layer), sums in self.sums.items():
      if layer is not None:
        yield module, layer, sums.angle()


def measure(
  update: Change,
  directions: Mapping[str, Change],
  *,
  draws: Mapping[str, controls.Draws] | None = None,
  squares: Mapping[str, Squares] | None = None,
) -> dict[str, Measured]:
  """{name: Measured} of the update against each direction.

  Args:
    draws: {name: random controls} of those directions that are to have some.
    squares: {name: squared_norms(direction)}, where they are known.

  Raises:
    InputError: a site has other shapes in the two.
  """
  draws = draws or {}
  squares = squares or {name: squared_norms(direction) for name, direction in directions.items()}
  sums = {name: _sums_of_direction(found) for name, found in squares.items()}
  random = {name: np.zeros(draws[name].count if name in draws else 0) for name in directions}
  for path in update.paths():
    for first, leaf in update.pieces(path):
      count, lengths_LE = num_layers(path, leaf), products(path, leaf, leaf)
      for name, direction in directions.items():
        _add(sums[name], path, first, update=lengths_LE)
        if path not in squares[name]:
          continue
        theirs, theirs_LE = (
          direction.piece(path, first, count),
          squares[name][path][first : first + count],
        )
        _add(
          sums[name],
          path,
          first,
          product=products(path, theirs, leaf),
          null=lengths_LE * theirs_LE / controls.num_entries(path, leaf),
        )
        if name in draws:
          random[name] += draws[name].products(path, first, theirs, leaf)
  return {name: Measured(sums[name], _cosines(random[name], sums[name])) for name in directions}


def products(path: str, x: Leaf, y: Leaf) -> np.ndarray:
  """Inner products of two leaves' changes [L, E], float64: of each layer (outside the stack 1) and
  expert (else 1).
  """
  return gram.matrix_products(path, x, y).reshape(num_layers(path, x), -1)


def squared_norms(change: Change) -> Squares:
  """{path: squared norms [L, E], float64}; the change is read once."""
  return {
    path: np.concatenate([products(path, leaf, leaf) for _, leaf in change.pieces(path)])
    for path in change.paths()
  }


def cosine(x: Change, y: Change, *, norms: tuple[float, float]) -> float | None:
  """Cosine of two changes of these norms; x is read once, piece by piece."""
  theirs = {*y.paths()}
  product = math.fsum(
    float(products(path, leaf, y.piece(path, first, num_layers(path, leaf))).sum())
    for path in x.paths()
    if path in theirs
    for first, leaf in x.pieces(path)
  )
  both = norms[0] * norms[1]
  return product / both if both else None


def module_of(path: str) -> str:
  """The kind of module at a path.

  >>> module_of('layers/attn/q/kernel'), module_of('layers/attn/q/bias'), module_of('embed/embedding')
  ('attn.q', 'attn.q.bias', 'embed')
  """
  return re.sub(r'/(kernel|scale|embedding)$', '', path.removeprefix('layers/')).replace('/', '.')


def _sums_of_direction(squares: Squares) -> dict[Where, AngleSums]:
  found: dict[Where, AngleSums] = {}
  for path, squares_LE in squares.items():
    _add(found, path, 0, direction=squares_LE)
  return found


def _add(sums: dict[Where, AngleSums], path: str, first: int, **parts_LE: np.ndarray) -> None:
  """Adds these fields of AngleSums, of the layers from `first` on."""
  for l in range(len(next(iter(parts_LE.values())))):
    where = module_of(path), first + l if stack_axes(path) else None
    sums[where] = sums.get(where, AngleSums()) + AngleSums(
      **{name: float(part[l].sum()) for name, part in parts_LE.items()}
    )


def _cosines(products: np.ndarray, sums: Mapping[Where, AngleSums]) -> np.ndarray:
  whole = sum(sums.values(), AngleSums())
  both = math.sqrt(max(whole.update * whole.direction, 0.0))
  return products / both if both else np.full_like(products, np.nan)
