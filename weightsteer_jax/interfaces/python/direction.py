"""Directions with arithmetic, read from folders or made between two fine-tunes."""

import os
import pathlib
from typing import Any

from weightsteer_jax import directions, models
from weightsteer_jax.experiments import sources
from weightsteer_jax.interfaces.python.boundary import described, is_number, number, plain
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

# Characters of a name; a longer expression is called a combination.
LONGEST_NAME = 60


class SteeringDirection:
  """A change of a model's weights, to steer by, to add, to scale and to compare.

  `2 * v - w`, `-w`, `v + w` and `w / 2` are directions again, exact in their factors: the ranks of
  low-rank changes add up, and nothing is rounded to a smaller rank. All take directions of one base
  model, and numbers. Two directions are equal only if they are the same object.

  Made by `load_direction`, `between` and arithmetic.

  Attributes:
    name: the folder's name, or the expression that the direction was computed by.
    folder: the folder that the direction was read from; None if it was computed.
  """

  # Of `np.float32(2) * w`: numpy would else take the direction for an array of objects.
  __array_ufunc__ = None

  def __init__(
    self, held: directions.Direction, name: str, folder: pathlib.Path | None = None
  ) -> None:
    self._held = held
    self.folder = folder
    self.name = name if len(name) <= LONGEST_NAME else 'a combination'
    self._norm: float | None = held.meta.get('norm')

  @property
  def base(self) -> str:
    """The model that the direction is a change of, as it was named then; '' if unknown."""
    return self._held.base.source

  @property
  def meta(self) -> dict[str, Any]:
    """How the direction was made, as JSON values (see directions/direction.py)."""
    return dict(self._held.meta)

  @property
  def unwrapped(self) -> directions.Direction:
    """The direction as the rest of the package takes it: its delta and provenance."""
    return self._held

  @plain
  def norm(self) -> float:
    """The Frobenius norm of the whole change, over all parameters."""
    if self._norm is None:
      self._norm = directions.norm(self._held)
    return self._norm

  @plain
  def dot(self, other: 'SteeringDirection') -> float:
    """The inner product over all parameters, each taken as a flat vector.

    Raises:
      InputError: if the two are of different architectures.
    """
    return directions.dot(self._held, _other(other, 'dot'))

  @plain
  def cosine(self, other: 'SteeringDirection') -> float:
    """The cosine of the angle to another direction, -1 to 1; 0 if either is zero.

    Raises:
      InputError: if the two are of different architectures.
    """
    return directions.cosine(self._held, _other(other, 'cosine'))

  @plain
  def project(self, other: 'SteeringDirection') -> 'SteeringDirection':
    """The multiple of the other direction that is nearest to this one.

    `w - w.project(v)` is the part of w that v has no share in.

    Raises:
      InputError: if the two are of different architectures.
    """
    projected = directions.project(self._held, _other(other, 'project'))
    return SteeringDirection(projected, f'{self.name} along {other.name}')

  @plain
  def save(self, folder: str | pathlib.Path) -> pathlib.Path:
    """The new folder, which `load_direction` and every program of the package read.

    Args:
      folder: must not exist.

    Raises:
      InputError: if the folder exists.
      NotFiniteError: if a value is NaN or infinite.
      OutputError: if the folder could not be written; nothing is left of it.
    """
    path = path_of(folder, 'save')
    directions.save(path, self._held)
    return path

  @plain
  def __add__(self, other: 'SteeringDirection') -> 'SteeringDirection':
    if not isinstance(other, SteeringDirection):
      return NotImplemented
    total = directions.add(self._held, other.unwrapped)
    return SteeringDirection(total, f'{self.name} + {other.name}')

  def __radd__(self, other: Any) -> 'SteeringDirection':
    # `sum([v, w])` begins with 0 + v.
    return self if is_number(other) and other == 0 else NotImplemented

  @plain
  def __sub__(self, other: 'SteeringDirection') -> 'SteeringDirection':
    if not isinstance(other, SteeringDirection):
      return NotImplemented
    difference = directions.subtract(self._held, other.unwrapped)
    return SteeringDirection(difference, f'{self.name} - {_subtracted(other.name)}')

  @plain
  def __mul__(self, factor: float) -> 'SteeringDirection':
    # A product of two directions is no direction, and of a text neither.
    if not is_number(factor) and getattr(factor, 'ndim', None) != 0:
      return NotImplemented
    multiple = number(factor, 'the factor of a direction')
    scaled = directions.scale(self._held, multiple)
    return SteeringDirection(scaled, f'{multiple:g} * {as_factor(self.name)}')

  __rmul__ = __mul__

  @plain
  def __truediv__(self, divisor: float) -> 'SteeringDirection':
    if not is_number(divisor) and getattr(divisor, 'ndim', None) != 0:
      return NotImplemented
    quotient = number(divisor, 'the divisor of a direction')
    if quotient == 0:
      raise InputError(f'{self.name} / 0: a direction is divided by a number other than 0')
    scaled = directions.scale(self._held, 1 / quotient)
    return SteeringDirection(scaled, f'{as_factor(self.name)} / {quotient:g}')

  def __neg__(self) -> 'SteeringDirection':
    return SteeringDirection(directions.negate(self._held), f'-{as_factor(self.name)}')

  def __pos__(self) -> 'SteeringDirection':
    return self

  def __repr__(self) -> str:
    leaves = tree.flatten(self._held.delta, models.is_delta_leaf).values()
    ranks = [leaf.a.shape[-1] for leaf in leaves if isinstance(leaf, models.LowRank)]
    parts = [self.name]
    # A norm that nobody asked for may take a pass over changes as large as the model.
    if self._norm is not None:
      parts.append(f'norm {self._norm:.4g}')
    if ranks:
      span = f'{min(ranks)}' if min(ranks) == max(ranks) else f'{min(ranks)} to {max(ranks)}'
      parts.append(f'{len(ranks)} kernels of rank {span}')
    if len(leaves) > len(ranks):
      parts.append(f'{len(leaves) - len(ranks)} dense changes')
    parts.append(f'base {self.base or "unknown"}')
    return f'SteeringDirection({", ".join(parts)})'


@plain
def load_direction(source: str | pathlib.Path) -> SteeringDirection:
  """The direction in a folder, or of a run, every tensor checked against its fingerprint.

  Args:
    source: a direction's folder, or the workdir of a run, whose own direction it is then.

  Raises:
    InputError: if there is no direction, or there are several and none is the run's own.
    CorruptError: if the direction was cut short, or changed after it was written.
  """
  folder = sources.direction_folder(path_of(source, 'load_direction'))
  return SteeringDirection(directions.load(folder), folder.resolve().name, folder)


def path_of(value: Any, what: str) -> pathlib.Path:
  """The path that a caller named.

  Raises:
    InputError: if the value is no path.
  """
  if not isinstance(value, (str, os.PathLike)) or not str(value):
    raise InputError(f'{what} takes a folder; got {described(value)}')
  return pathlib.Path(value).expanduser()


def _other(value: Any, what: str) -> directions.Direction:
  if not isinstance(value, SteeringDirection):
    raise InputError(f'{what} takes a direction; got {described(value)}')
  return value.unwrapped


def as_factor(name: str) -> str:
  """The name as a factor: in brackets where it is a sum or a product.

  >>> as_factor('evil'), as_factor('evil + sycophancy')
  ('evil', '(evil + sycophancy)')
  """
  return f'({name})' if ' ' in name or name.startswith('-') else name


def _subtracted(name: str) -> str:
  """The name behind a minus: in brackets where it is a sum."""
  is_sum = ' + ' in name or ' - ' in name or name.startswith('-')
  return f'({name})' if is_sum else name
