"""Arms: named ways of changing the model, all held in one tuple of edits."""
import dataclasses
import math
from typing import Any, Mapping, Sequence

from weightsteer_jax import tree
from weightsteer_jax.errors import InputError

PyTree = Any

BASE = 'base'
# Each part of an arm: a delta and its coefficient, or None for "the row's alpha".
Part = tuple[PyTree, float | None]


@dataclasses.dataclass(frozen=True)
class Arms:
  """The deltas of all arms, each once, and which coefficients a row of an arm gives them.

  Attributes:
    deltas: the distinct deltas, in order; edit i of every batch applies deltas[i].
    parts: {arm: ((index of a delta, fixed coefficient or None), ...)}.
  """
  deltas: tuple[PyTree, ...]
  parts: Mapping[str, tuple[tuple[int, float | None], ...]]

  def coefficients(self, arm: str, alpha: float) -> tuple[float, ...]:
    """One coefficient per delta. Equal coefficients mean the same model: at alpha 0 that is the base, whatever the arm.

    >>> steered, task = {}, {}
    >>> arms = make_arms({'weights': [(steered, None)], 'task': [(task, 1.0), (steered, None)]})
    >>> arms.coefficients('weights', -0.5), arms.coefficients('task', -0.5), arms.coefficients('base', 0.0)
    ((-0.5, 0.0), (-0.5, 1.0), (0.0, 0.0))

    Raises:
      InputError: an unknown arm, an alpha that is not finite, or one other than 0 for the base.
    """
    if arm not in self.parts:
      raise InputError(f"no arm '{arm}'{tree.did_you_mean(arm, self.parts)}; there are: {', '.join(self.parts)}")
    if not math.isfinite(alpha):
      raise InputError(f"alpha is {alpha} for the arm '{arm}', expected a finite number")
    if alpha and all(fixed is not None for _, fixed in self.parts[arm]):
      raise InputError(f"alpha is {alpha} for the arm '{arm}', in which nothing depends on alpha: expected 0")
    total = [0.0] * len(self.deltas)
    for index, fixed in self.parts[arm]:
      total[index] += alpha if fixed is None else fixed
    return tuple(total)


def make_arms(arms: Mapping[str, Sequence[Part]]) -> Arms:
  """The arms, and 'base' beside them. A delta that is the same object in several arms is held and computed once."""
  deltas: list[PyTree] = []
  parts: dict[str, tuple[tuple[int, float | None], ...]] = {BASE: ()}
  for arm, members in arms.items():
    if arm == BASE and members:
      raise InputError(f"'{BASE}' is the unsteered model: give the arm another name")
    indexed = []
    for delta, fixed in members:
      index = next((i for i, known in enumerate(deltas) if known is delta), len(deltas))
      if index == len(deltas):
        deltas.append(delta)
      indexed.append((index, fixed))
    parts[arm] = tuple(indexed)
  return Arms(tuple(deltas), parts)
