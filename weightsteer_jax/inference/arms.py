"""Arms: named ways of changing the model or its prompt, their deltas held once each."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

PyTree = Any

BASE = 'base'
# What a delta is multiplied with: a number whatever the row's strength, the strength itself (None),
# or by strength.
Coefficient = float | None | Mapping[float, float]
Part = tuple[PyTree, Coefficient]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AnswerOnly:
  """A delta that is applied from the last token of a prompt on: there the answer's first token is
  predicted.
  """

  delta: PyTree


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way of changing the model, at any strength alpha; at alpha 0 it is the experiment's base.

  Attributes:
    parts: deltas with their coefficients.
    prompts: {strength: system prompts that a row of that strength is asked under, one sample under
      each}.
  """

  parts: Sequence[Part] = ()
  prompts: Mapping[float, Sequence[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Arms:
  """The deltas of all arms, each once, and which coefficients a row of an arm gives them.

  Attributes:
    deltas: the distinct deltas, in order; bare, or AnswerOnly.
    parts: {arm: ((index of a delta, its coefficient), ...)}.
    prompts: {arm: {strength: system prompts}} of the arms that have any.
  """

  deltas: tuple[PyTree, ...]
  parts: Mapping[str, tuple[tuple[int, Coefficient], ...]]
  prompts: Mapping[str, Mapping[float, Sequence[str]]]

  def coefficients(self, arm: str, alpha: float) -> tuple[float, ...]:
    """One coefficient per delta. Equal coefficients mean the same model: at alpha 0 that is the
    base, whatever the arm.

    >>> steered, task = {}, {}
    >>> arms = make_arms({'weights': [(steered, None)], 'task': [(task, 1.0), (steered, {-1.0: 0.0, 1.0: 2.0})]})
    >>> arms.coefficients('weights', -0.5), arms.coefficients('task', 1.0), arms.coefficients('base', 0.0)
    ((-0.5, 0.0), (2.0, 1.0), (0.0, 0.0))

    Raises:
      InputError: an unknown arm, an alpha that is not finite, or one that means nothing to the arm.
    """
    if arm not in self.parts:
      raise InputError(
        f"no arm '{arm}'{did_you_mean(arm, self.parts)}; there are: {', '.join(self.parts)}"
      )
    if not math.isfinite(alpha):
      raise InputError(f"alpha is {alpha} for the arm '{arm}', expected a finite number")
    self._check_known(arm, alpha)
    total = [0.0] * len(self.deltas)
    for index, coefficient in self.parts[arm]:
      if isinstance(coefficient, Mapping):
        coefficient = coefficient.get(alpha, 0.0)
      total[index] += alpha if coefficient is None else coefficient
    return tuple(total)

  def prompts_of(self, arm: str, alpha: float) -> Sequence[str]:
    """System prompts of the arm at that strength; none for most."""
    return self.prompts.get(arm, {}).get(alpha, ())

  def _check_known(self, arm: str, alpha: float) -> None:
    """Nothing, if the strength is 0 or one that something of the arm depends on."""
    tables = [coefficient for _, coefficient in self.parts[arm] if isinstance(coefficient, Mapping)]
    tables += [self.prompts[arm]] if arm in self.prompts else []
    free = any(coefficient is None for _, coefficient in self.parts[arm])
    if alpha and not free and not any(alpha in table for table in tables):
      known = sorted({strength for table in tables for strength in table})
      there_are = (
        f'it has: {", ".join(f"{strength:g}" for strength in known)}' if known else 'expected 0'
      )
      raise InputError(
        f"alpha is {alpha} for the arm '{arm}', in which nothing depends on alpha there; "
        f"{there_are}"
      )


def make_arms(arms: Mapping[str, Arm | Sequence[Part]]) -> Arms:
  """The arms, and 'base' beside them. A delta that is the same object in several arms is held and
  computed once.
  """
  deltas: list[PyTree] = []
  parts: dict[str, tuple[tuple[int, Coefficient], ...]] = {BASE: ()}
  prompts = {}
  for name, arm in arms.items():
    arm = arm if isinstance(arm, Arm) else Arm(arm)
    if name == BASE and (arm.parts or arm.prompts):
      raise InputError(f"'{BASE}' is the unsteered model: give the arm another name")
    indexed = []
    for delta, coefficient in arm.parts:
      index = next((i for i, known in enumerate(deltas) if known is delta), len(deltas))
      if index == len(deltas):
        deltas.append(delta)
      indexed.append((index, coefficient))
    parts[name] = tuple(indexed)
    if arm.prompts:
      prompts[name] = dict(arm.prompts)
  return Arms(tuple(deltas), parts, prompts)


def bare(delta: PyTree) -> PyTree:
  """The delta itself, wherever it is applied."""
  return delta.delta if isinstance(delta, AnswerOnly) else delta


def delta_sets(asked: Iterable[Sequence[float]]) -> dict[tuple[float, ...], tuple[int, ...]]:
  """{coefficients: indices of the deltas that their rows are computed with}.

  Only deltas that some row of a batch needs are computed in it, and rows go to few kinds of
  batches: those whose deltas are all among another's go with it.

  >>> delta_sets([(0.0, 0.0, 0.0), (1.0, 0.5, 0.0), (1.0, 0.0, 0.0), (1.0, 0.0, 2.0)])
  {(0.0, 0.0, 0.0): (0, 1), (1.0, 0.5, 0.0): (0, 1), (1.0, 0.0, 0.0): (0, 1), (1.0, 0.0, 2.0): (0, 2)}
  """
  needed = {
    row: tuple(i for i, value in enumerate(row) if value)
    for row in dict.fromkeys(map(tuple, asked))
  }
  sets = list(dict.fromkeys(needed.values()))
  largest = [one for one in sets if not any(set(one) < set(other) for other in sets)]
  return {
    row: next(group for group in largest if set(indices) <= set(group))
    for row, indices in needed.items()
  }
