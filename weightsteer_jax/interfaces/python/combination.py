"""Directions put together, beyond what arithmetic says."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.directions import combining
from weightsteer_jax.directions.streamed import computed
from weightsteer_jax.interfaces.python.boundary import described, plain
from weightsteer_jax.interfaces.python.direction import SteeringDirection, load_direction
from weightsteer_jax.runtime.errors import InputError

# A direction, or the folder of one.
Source = SteeringDirection | str | pathlib.Path


@plain
def combine(
  terms: Mapping[Source, Any] | str | pathlib.Path,
  *,
  method: str = 'task_arithmetic',
  density: Any = None,
  normalize: bool | None = None,
  rescale: bool | None = None,
  seed: int = 0,
  orthogonal_to: Source | Sequence[Source] = (),
  by_module: bool = False,
  layers: str | Sequence[int] | None = None,
  modules: Sequence[str] = (),
  rank: int = 0,
  allow_other_base: bool = False,
) -> SteeringDirection:
  """Directions put together: a weighted sum, exact in its factors, or a merge of some elements.

  `ws.combine({v: 1, w: -0.5}, orthogonal_to=u)`. Names are mergekit's (docs/combining.md).

  Args:
    terms: {direction or its folder: weight}, where a weight may be a list over the layers; or the
      path of a recipe, whose keys then say everything else.
    method: task_arithmetic, ties, dare_linear or dare_ties.
    density: share of the elements of each tensor that TIES and DARE keep; 1 if None.
    normalize, rescale: as in mergekit; None is the method's own.
    seed: of the elements that DARE keeps.
    orthogonal_to: directions that are projected out of the result, as one subspace.
    by_module: whether they are projected out of each layer of each module apart.
    layers: layers that may change, from 0, as in '4-11,15'; None for all.
    modules: modules that may change, as in ('q_proj', 'down_proj'); () for all.
    rank: the result's rank at most; 0 leaves the result exact.
    allow_other_base: combine directions of other weights of one architecture.

  Raises:
    InputError: if a term is no direction, bases differ, a name is unknown, or nothing is left.
  """
  if isinstance(terms, (str, os.PathLike)):
    recipe = combining.read(terms)
    held = {source: load_direction(source) for source in _sources(recipe)}
  else:
    held = {}
    value = _recipe(terms, method, density, held)
    value['orthogonal_to'] = [_name(one, held) for one in _listed(orthogonal_to)]
    value |= {'by_module': by_module, 'modules': list(modules), 'rank': rank}
    value['layers'] = layers if layers is None or isinstance(layers, str) else list(layers)
    told = {'normalize': normalize, 'rescale': rescale, 'seed': seed}
    value['parameters'] = {key: one for key, one in told.items() if one is not None}
    recipe = combining.parse(value, 'combine')
  combined = combining.combine(
    [held[term.source].unwrapped for term in recipe.terms],
    recipe,
    orthogonal_to=[held[source].unwrapped for source in recipe.orthogonal_to],
    allow_other_base=allow_other_base,
  )
  # Computed now: a model that is steered reads every change at each step.
  combined = dataclasses.replace(combined, delta=computed.in_memory(combined.delta))
  names = ', '.join(held[term.source].name for term in recipe.terms)
  return SteeringDirection(combined, f'{recipe.method} of {names}')


def _recipe(
  terms: Any, method: str, density: Any, held: dict[str, SteeringDirection]
) -> dict[str, Any]:
  """The keys of a recipe for some terms, whose directions are held by name."""
  if not isinstance(terms, Mapping) or not terms:
    raise InputError(
      f'combine takes {{direction: weight}} or the path of a recipe; got {described(terms)}'
    )
  models = []
  for source, weight in terms.items():
    parameters = {'weight': weight}
    if density is not None:
      parameters['density'] = density
    models.append({'model': _name(source, held), 'parameters': parameters})
  return {'merge_method': method, 'models': models}


def _name(source: Any, held: dict[str, SteeringDirection]) -> str:
  """A name of its own for a direction, under which it is held."""
  direction = source if isinstance(source, SteeringDirection) else load_direction(source)
  name = direction.name
  # Two directions may have one name, and one direction may stand in two places.
  while held.get(name, direction) is not direction:
    name += "'"
  held[name] = direction
  return name


def _listed(value: Any) -> list[Any]:
  is_one = isinstance(value, (SteeringDirection, str, os.PathLike))
  return [value] if is_one else list(value)


def _sources(recipe: combining.Recipe) -> set[str]:
  return {*(term.source for term in recipe.terms), *recipe.orthogonal_to}
