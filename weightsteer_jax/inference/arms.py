"""Arms: named ways of changing the model or its prompt, their deltas held once each."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from weightsteer_jax.config.checks import LARGEST_ALPHA
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

PyTree = Any

# The arm of the unsteered model.
BASE = 'base'
# The factor of a delta: a number whatever the row's strength, the strength itself (None), or a
# number for each strength.
Coefficient = float | None | Mapping[float, float]
Part = tuple[PyTree, Coefficient]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AnswerOnly:
  """A delta applied from a prompt's last token on, where the answer's first is predicted."""

  delta: PyTree


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way of changing the model, at any strength alpha; alpha 0 is the experiment's base.

  Attributes:
    parts: deltas with their coefficients.
    prompts: {strength: system prompts for a row of this strength, one sample under each}.
  """

  parts: Sequence[Part] = ()
  prompts: Mapping[float, Sequence[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Arms:
  """The deltas of all arms, each once, and the coefficients that a row of an arm gives the deltas.

  Attributes:
    deltas: the distinct deltas, in order; bare, or AnswerOnly.
    parts: {arm: ((index of a delta, coefficient), ...)}.
    prompts: {arm: {strength: system prompts}} of the arms with prompts.
  """

  deltas: tuple[PyTree, ...]
  parts: Mapping[str, tuple[tuple[int, Coefficient], ...]]
  prompts: Mapping[str, Mapping[float, Sequence[str]]]

  def coefficients(self, arm: str, alpha: float) -> tuple[float, ...]:
    """One coefficient per delta.

    Equal coefficients mean the same model, across arms too.

    >>> steered, task = {}, {}
    >>> in_steps = {-1.0: 0.0, 1.0: 2.0}
    >>> arms = make_arms({'weights': [(steered, None)], 'task': [(task, 1.0), (steered, in_steps)]})
    >>> arms.coefficients('weights', -0.5), arms.coefficients('task', 1.0)
    ((-0.5, 0.0), (2.0, 1.0))
    >>> arms.coefficients('base', 0.0)
    (0.0, 0.0)

    Raises:
      InputError: if the arm is unknown, or if the alpha is not finite or means nothing to the arm.
    """
    if arm not in self.parts:
      raise InputError(
        f"no arm '{arm}'{did_you_mean(arm, self.parts)}; there are: {', '.join(self.parts)}"
      )
    # Coefficients are float32 on the device. False for NaN.
    if not abs(alpha) <= LARGEST_ALPHA:
      raise InputError(
        f"alpha is {alpha} for the arm '{arm}', expected a finite number, at most {LARGEST_ALPHA:g}"
      )
    self._refuse_without_meaning(arm, alpha)
    total = [0.0] * len(self.deltas)
    for index, coefficient in self.parts[arm]:
      if isinstance(coefficient, Mapping):
        # A strength without an entry leaves the delta out.
        coefficient = coefficient.get(alpha, 0.0)
      if coefficient is None:
        coefficient = alpha
      # An arm may hold a delta twice, say once always and once by strength.
      total[index] += coefficient
    return tuple(total)

  def prompts_of(self, arm: str, alpha: float) -> Sequence[str]:
    """System prompts of the arm at that strength; none for most."""
    by_strength = self.prompts.get(arm, {})
    return by_strength.get(alpha, ())

  def _refuse_without_meaning(self, arm: str, alpha: float) -> None:
    # Strength 0 is the base, and an arm with a free coefficient has every strength.
    coefficients = [coefficient for _, coefficient in self.parts[arm]]
    if not alpha or None in coefficients:
      return
    # Every other arm has the strengths of its prompts and of its coefficients.
    known = set(self.prompts.get(arm, ()))
    for coefficient in coefficients:
      if isinstance(coefficient, Mapping):
        known.update(coefficient)
    if alpha not in known:
      listed = ', '.join(f'{strength:g}' for strength in sorted(known))
      there_are = f'it has: {listed}' if known else 'expected 0'
      raise InputError(
        f"alpha is {alpha} for the arm '{arm}', in which nothing depends on alpha there; "
        f"{there_are}"
      )


def make_arms(arms: Mapping[str, Arm | Sequence[Part]]) -> Arms:
  """The arms, and 'base' beside them.

  A delta that is the same object in several arms is held and computed once.

  Raises:
    InputError: if an arm named 'base' changes the model.
  """
  deltas: list[PyTree] = []
  parts: dict[str, tuple[tuple[int, Coefficient], ...]] = {BASE: ()}
  prompts = {}
  for name, arm_or_parts in arms.items():
    # Bare parts are an arm without prompts.
    arm = arm_or_parts
    if not isinstance(arm, Arm):
      arm = Arm(arm)
    if name == BASE and (arm.parts or arm.prompts):
      raise InputError(f"'{BASE}' is the unsteered model: give the arm another name")
    indexed = []
    for delta, coefficient in arm.parts:
      # By identity: arrays have no truth value to compare by.
      matches = (i for i, known in enumerate(deltas) if known is delta)
      index = next(matches, None)
      if index is None:
        index = len(deltas)
        deltas.append(delta)
      indexed.append((index, coefficient))
    parts[name] = tuple(indexed)
    if arm.prompts:
      prompts[name] = dict(arm.prompts)
  return Arms(tuple(deltas), parts, prompts)


def bare(delta: PyTree) -> PyTree:
  """The delta itself, wherever it is applied."""
  return delta.delta if isinstance(delta, AnswerOnly) else delta


def delta_sets(rows: Iterable[Sequence[float]]) -> dict[tuple[float, ...], tuple[int, ...]]:
  """{coefficients: indices of the deltas that rows with these coefficients are computed with}.

  A batch computes only the deltas of its rows. Rows go to few kinds of batches: a row with a subset
  of another row's deltas goes with the other row.

  >>> sets = delta_sets([(0.0, 0.0, 0.0), (1.0, 0.5, 0.0), (1.0, 0.0, 0.0), (1.0, 0.0, 2.0)])
  >>> sets[0.0, 0.0, 0.0], sets[1.0, 0.5, 0.0], sets[1.0, 0.0, 0.0], sets[1.0, 0.0, 2.0]
  ((0, 1), (0, 1), (0, 1), (0, 2))
  """
  needed: dict[tuple[float, ...], tuple[int, ...]] = {}
  for row in rows:
    # A coefficient of 0 changes nothing: the row does without the delta.
    indices = tuple(i for i, coefficient in enumerate(row) if coefficient)
    needed[tuple(row)] = indices
  # Sets in no other set, in the order of their first rows.
  distinct = list(dict.fromkeys(needed.values()))
  largest = []
  for indices in distinct:
    if not any(set(indices) < set(other) for other in distinct):
      largest.append(indices)
  # Each row goes to the first set that has all of its deltas.
  sets = {}
  for coefficients, indices in needed.items():
    fitting = (group for group in largest if set(indices) <= set(group))
    sets[coefficients] = next(fitting)
  return sets
