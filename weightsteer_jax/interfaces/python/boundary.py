"""The boundary to a user's program: arguments checked, errors without the frames beneath."""

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from weightsteer_jax.runtime.errors import InputError, WeightSteerError

P = ParamSpec('P')
R = TypeVar('R')

# Characters of a value that an error shows.
SHOWN = 60


def plain(function: Callable[P, R]) -> Callable[P, R]:
  """The function; its deliberate errors end a traceback at the caller's own line.

  An error of ours is about the caller's input, and the frames beneath say nothing about that.
  """

  @functools.wraps(function)
  def called(*args: P.args, **kwargs: P.kwargs) -> R:
    try:
      return function(*args, **kwargs)
    except WeightSteerError as error:
      raise error.with_traceback(None) from None

  return called


def described(value: Any) -> str:
  """The value as errors show it.

  >>> described('runs/q'), described([1, 2]), described(None)
  ("str 'runs/q'", 'list [1, 2]', 'None')
  """
  if value is None:
    return 'None'
  shown = repr(value)
  if len(shown) > SHOWN:
    shown = shown[:SHOWN] + ' ...'
  kind = type(value).__name__
  # Our own objects name their class themselves.
  return shown if shown.startswith(kind) else f'{kind} {shown}'


def is_number(value: Any) -> bool:
  """Whether the value is a real number; True and False are none.

  >>> is_number(1), is_number(True), is_number('1')
  (True, False, False)
  """
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def number(value: Any, what: str) -> float:
  """The value as a float.

  Raises:
    InputError: if the value is no finite number.
  """
  # Arrays of no axes, as numpy and jax return them.
  if getattr(value, 'ndim', None) == 0 and hasattr(value, 'item'):
    value = value.item()
  if not is_number(value):
    raise InputError(f'{what} is a number; got {described(value)}')
  if not math.isfinite(value):
    raise InputError(f'{what} is a finite number; got {value}')
  return float(value)


def integer(value: Any, what: str) -> int:
  """The value as an int.

  Raises:
    InputError: if the value is no whole number.
  """
  if not isinstance(value, numbers.Integral) or isinstance(value, bool):
    raise InputError(f'{what} is a whole number; got {described(value)}')
  return int(value)
