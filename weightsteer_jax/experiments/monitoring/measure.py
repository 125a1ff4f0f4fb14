"""Cosines and projections of an update on directions, whole and by part of the model.

The parts are kinds of modules, layers, and both. Every angle comes from sums of the same numbers,
a set for each layer of each site: the inner product and both squared norms. The numbers come from
the factors (see directions.gram), in one pass over the update for all directions.
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

# (kind of module, layer; None outside the stack).
Where = tuple[str, int | None]
# {path: squared norms [L, E]}.
Squares = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Angle:
  """An update seen from a direction, over some part of the weights.

  Attributes:
    cosine: cosine of the angle between update and direction; None where either is zero.
    projection: the update's component along the direction's unit vector, in the units of the
      weights; None where the direction is zero.
    alpha: the projection in multiples of the direction, the strength at which steering would move
      the weights as far along the direction; None where the direction is zero.
    norm: norm of the update.
    direction_norm: norm of the direction.
    null_std: standard deviation of the cosine with a random direction of the same rank and
      spectrum; None where either is zero.
  """

  cosine: float | None
  projection: float | None
  alpha: float | None
  norm: float
  direction_norm: float
  null_std: float | None


@dataclasses.dataclass
class AngleSums:
  """The sums that one layer of one kind of module adds to the angles.

  Attributes:
    product: <update, direction>.
    update: squared norm of the update.
    direction: squared norm of the direction.
    null: variance of the product with a random direction: |update|^2 |direction|^2 / (inputs
      outputs).
  """

  product: float = 0.0
  update: float = 0.0
  direction: float = 0.0
  null: float = 0.0

  def __add__(self, other: 'AngleSums') -> 'AngleSums':
    return AngleSums(
      product=self.product + other.product,
      update=self.update + other.update,
      direction=self.direction + other.direction,
      null=self.null + other.null,
    )

  def angle(self) -> Angle:
    """The angle given by the sums."""
    # Squared norms from factors may round to slightly below zero.
    norm = math.sqrt(max(self.update, 0.0))
    direction_norm = math.sqrt(max(self.direction, 0.0))
    both = norm * direction_norm
    cosine = None
    null_std = None
    projection = None
    alpha = None
    if both:
      cosine = self.product / both
      null_std = math.sqrt(self.null) / both
    if direction_norm:
      # <update, direction> / |direction|, a length;
      projection = self.product / direction_norm
      # and once more by |direction|, a multiple of the direction.
      alpha = self.product / direction_norm**2
    return Angle(
      cosine=cosine,
      projection=projection,
      alpha=alpha,
      norm=norm,
      direction_norm=direction_norm,
      null_std=null_std,
    )


@dataclasses.dataclass(frozen=True)
class Measured:
  """An update against one direction.

  Attributes:
    sums: {(module, layer): sums}.
    random: cosines of the whole update with the direction's random controls [controls].
  """

  sums: Mapping[Where, AngleSums]
  random: np.ndarray

  @property
  def whole(self) -> Angle:
    """The angle over the whole parameter vector.

    Source: the global cosine of arXiv 2511.05408, section 5.
    """
    total = sum(self.sums.values(), AngleSums())
    return total.angle()

  def angles(self) -> Iterator[tuple[str | None, int | None, Angle]]:
    """(module, layer, angle) of all parts of the weights.

    First comes the whole, with (None, None), then modules over all layers, then layers over all
    modules, then each layer of each module.
    """
    yield None, None, self.whole
    modules: dict[str, AngleSums] = collections.defaultdict(AngleSums)
    layers: dict[int, AngleSums] = collections.defaultdict(AngleSums)
    for (module, layer), sums in self.sums.items():
      modules[module] += sums
      # Embeddings, head and last norm are in no layer.
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
    draws: {name: random controls} of the directions with controls.
    squares: {name: squared_norms(direction)}, where known.

  Raises:
    InputError: if a site of the update has another shape in a direction.
  """
  draws = draws or {}
  if not squares:
    squares = {name: squared_norms(direction) for name, direction in directions.items()}
  sums: dict[str, dict[Where, AngleSums]] = {}
  for name, squares_of in squares.items():
    sums[name] = {}
    # Sites that the update leaves alone lengthen the direction all the same.
    for path, squares_LE in squares_of.items():
      _add(sums[name], path, 0, direction=squares_LE)
  # {name: products of the update with each control}.
  random = {}
  for name in directions:
    num_controls = draws[name].count if name in draws else 0
    random[name] = np.zeros(num_controls)
  # One pass over the update, which may be streamed from a disk.
  for path in update.paths():
    for first, leaf in update.pieces(path):
      count = num_layers(path, leaf)
      update_LE = products(path, leaf, leaf)
      for name, direction in directions.items():
        # Sites that the direction leaves alone lengthen the update all the same.
        _add(sums[name], path, first, update=update_LE)
        if path not in squares[name]:
          continue
        piece = direction.piece(path, first, count)
        product_LE = products(path, piece, leaf)
        # E <P M Q, W>^2 = |M|^2 |W|^2 / (I O); see controls.py.
        direction_LE = squares[name][path][first : first + count]
        null_LE = update_LE * direction_LE / controls.num_entries(path, leaf)
        _add(sums[name], path, first, product=product_LE, null=null_LE)
        if name in draws:
          random[name] += draws[name].products(path, first, piece, leaf)
  measured = {}
  for name in directions:
    whole = sum(sums[name].values(), AngleSums())
    # A control is as long as its direction; max as in AngleSums.angle.
    both = math.sqrt(max(whole.update * whole.direction, 0.0))
    cosines = np.full_like(random[name], np.nan)
    if both:
      cosines = random[name] / both
    measured[name] = Measured(sums[name], cosines)
  return measured


def products(path: str, x: Leaf, y: Leaf) -> np.ndarray:
  """Inner products of two leaves' changes [L, E], float64.

  L is 1 outside the stack, E is 1 without experts.
  """
  products_of_matrices = gram.matrix_products(path, x, y)
  return products_of_matrices.reshape(num_layers(path, x), -1)


def squared_norms(change: Change) -> Squares:
  """{path: squared norms [L, E], float64} of a change, read once."""
  squares = {}
  for path in change.paths():
    # Each piece is dropped before the next is read.
    pieces = [products(path, leaf, leaf) for _, leaf in change.pieces(path)]
    squares[path] = np.concatenate(pieces)
  return squares


def cosine(x: Change, y: Change, *, norms: tuple[float, float]) -> float | None:
  """Cosine of two changes of these norms; None where either norm is zero.

  Changes are read once, piece by piece.
  """
  terms = []
  paths_of_y = set(y.paths())
  for path in x.paths():
    # Where only one of the two changes anything, the product is zero.
    if path not in paths_of_y:
      continue
    for first, leaf in x.pieces(path):
      count = num_layers(path, leaf)
      piece = y.piece(path, first, count)
      product_LE = products(path, leaf, piece)
      terms.append(float(product_LE.sum()))
  norm_x, norm_y = norms
  both = norm_x * norm_y
  if not both:
    return None
  # Summed exactly, so that the order of the sites does not matter.
  return math.fsum(terms) / both


def module_of(path: str) -> str:
  """The kind of module at a path.

  >>> module_of('layers/attn/q/kernel'), module_of('layers/attn/q/bias')
  ('attn.q', 'attn.q.bias')
  >>> module_of('embed/embedding')
  'embed'
  """
  # A module has one weight of these names; a bias stands beside it.
  inside = path.removeprefix('layers/')
  module = re.sub(r'/(kernel|scale|embedding)$', '', inside)
  return module.replace('/', '.')


def _add(sums: dict[Where, AngleSums], path: str, first: int, **parts_LE: np.ndarray) -> None:
  """Adds to the sums of the layers from `first` on.

  Args:
    parts_LE: fields of AngleSums, of each layer and expert.
  """
  module = module_of(path)
  is_stacked = bool(stack_axes(path))
  # All parts have the same number of layers.
  count = len(next(iter(parts_LE.values())))
  for index in range(count):
    layer = first + index if is_stacked else None
    where = (module, layer)
    # Experts of a layer are summed: angles are told apart by layer, not by expert.
    parts = {}
    for name, part_LE in parts_LE.items():
      parts[name] = float(part_LE[index].sum())
    before = sums.get(where, AngleSums())
    sums[where] = before + AngleSums(**parts)
