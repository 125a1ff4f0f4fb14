"""Strengths of a request: of which directions, and how much of each.

A request says `"alpha": -0.5` where there is one direction, or `"directions": {"calm": -0.5}`, or
names a model `qwen@calm=-0.5,terse=0.2`, which any client can.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.config.checks import LARGEST_ALPHA
from weightsteer_jax.interfaces.serving.refusals import Refusal
from weightsteer_jax.runtime.messages import did_you_mean

# Between a model's name and its strengths, between strengths, and before a number.
AT, AND, IS = '@,='


def parse_model(name: str, served: str, directions: Sequence[str]) -> dict[str, float]:
  """The strengths in a model's name.

  >>> parse_model('qwen@calm=-0.5,terse=1', 'qwen', ('calm', 'terse')), parse_model('q', 'q', ())
  ({'calm': -0.5, 'terse': 1.0}, {})

  Raises:
    Refusal: if no such model is served, or the strengths cannot be read.
  """
  base, at, tail = name.partition(AT)
  if base != served:
    raise Refusal(
      f"the model '{name}' is not served here; there is '{served}'{_spelling(served, directions)}",
      status=404,
      param='model',
      code='model_not_found',
    )
  strengths: dict[str, float] = {}
  if not at:
    return strengths
  for part in tail.split(AND):
    direction, _, number = part.partition(IS)
    if direction in strengths:
      raise Refusal(f"the model '{name}' names '{direction}' twice", param='model')
    strengths[_known(direction, directions, 'model')] = _finite(number, f"'{name}'", 'model')
  return strengths


def parse_fields(body: Mapping[str, Any], directions: Sequence[str]) -> dict[str, float]:
  """The strengths in a request's fields `alpha` and `directions`.

  Raises:
    Refusal: if they name no direction of the server, or are no finite numbers.
  """
  strengths: dict[str, float] = {}
  alpha = body.get('alpha')
  named = body.get('directions')
  if alpha is not None:
    value = _finite(alpha, 'alpha', 'alpha')
    if len(directions) == 1:
      strengths[directions[0]] = value
    # Without a direction 0 is all that can be meant.
    elif value or directions:
      there = f'there are {", ".join(directions)}' if directions else 'the server has none'
      raise Refusal(
        f'alpha is the strength of the one direction of a server, and {there}: use '
        '"directions": {"NAME": STRENGTH}',
        param='alpha',
      )
  if named is not None:
    if not isinstance(named, Mapping):
      raise Refusal(
        f'directions is {named!r:.80}, expected {{"NAME": STRENGTH}}', param='directions'
      )
    if alpha is not None and named:
      raise Refusal('alpha and directions say the same thing: give one of them', param='alpha')
    for name, value in named.items():
      strengths[_known(name, directions, 'directions')] = _finite(
        value, f'directions.{name}', 'directions'
      )
  return strengths


def _known(name: str, directions: Sequence[str], param: str) -> str:
  if name not in directions:
    there = f'there are {", ".join(directions)}' if directions else 'the server has none'
    raise Refusal(
      f"no direction '{name}' is served{did_you_mean(name, directions)}; {there}",
      param=param,
      code='direction_not_found',
    )
  return name


def _finite(value: Any, what: str, param: str) -> float:
  number = finite(value)
  if number is None or abs(number) > LARGEST_ALPHA:
    raise Refusal(f'{what}: {value!r:.80} is no finite number', param=param)
  return number


def finite(value: Any) -> float | None:
  """A number or a text of one, as a float; None for anything else.

  >>> finite(2), finite('-0.5'), finite(10**400), finite('nan'), finite(True)
  (2.0, -0.5, None, None, None)
  """
  try:
    # True is a number to Python, and none to a client.
    number = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    return None
  return number if math.isfinite(number) else None


def _spelling(served: str, directions: Sequence[str]) -> str:
  if not directions:
    return ''
  return f", and at a strength, as in '{served}{AT}{directions[0]}{IS}-0.5'"
