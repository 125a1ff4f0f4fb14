"""Strengths as they are typed in a terminal: -0.5 of the one direction, or calm=1,terse=-0.5."""

from collections.abc import Sequence

from weightsteer_jax.interfaces.serving import strengths
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean


def alphas(text: str, directions: Sequence[str]) -> dict[str, float]:
  """{direction: strength} of the directions that a text names.

  >>> alphas('-0.5', ['calm']), alphas('calm=1, terse=0', ['calm', 'terse'])
  ({'calm': -0.5}, {'calm': 1.0, 'terse': 0.0})

  Raises:
    InputError: if there is no such direction, one is named twice, or a strength is no number.
  """
  there = f'there are {", ".join(directions)}' if directions else 'none is loaded'
  chosen: dict[str, float] = {}
  for part in text.split(strengths.AND):
    name, equals, number = (word.strip() for word in part.partition(strengths.IS))
    if not equals:
      number = name
      name = directions[0] if len(directions) == 1 else ''
    alpha = strengths.finite(number)
    if alpha is None:
      raise InputError(f"alpha {text}: '{number}' is no finite number")
    if not name:
      raise InputError(f'alpha {text}: the strength of no direction; {there}, as in NAME={number}')
    if name not in directions:
      meant = did_you_mean(name, directions)
      raise InputError(f"alpha {text}: no direction '{name}'{meant}; {there}")
    if name in chosen:
      raise InputError(f"alpha {text}: '{name}' is named twice")
    chosen[name] = alpha
  return chosen
