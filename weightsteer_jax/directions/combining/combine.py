"""A recipe carried out: the weights of every layer, the sum or the merge, and what came of it."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions import compression
from weightsteer_jax.directions.combining import linear, settings, sparse
from weightsteer_jax.directions.combining.recipe import LINEAR, Recipe
from weightsteer_jax.directions.direction import Direction
from weightsteer_jax.directions.streamed import computed, on_disk
from weightsteer_jax.models import Dense
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

PyTree = Any
# Names of modules beside those of a LoRA's targets, and their paths.
OTHER_MODULES = {'embed_tokens': 'embed/embedding', 'lm_head': 'lm_head/kernel'}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a checkpoint: where its parameters lie in a delta.

  Attributes:
    name: in a checkpoint.
    depth: the place of its layer, 0 to 1.
    parts: the parameters that it holds, and which layer of them.
  """

  name: str
  depth: float
  parts: tuple[on_disk.Part, ...]


def combine(
  directions: Sequence[Direction],
  recipe: Recipe,
  *,
  orthogonal_to: Sequence[Direction] = (),
  allow_other_base: bool = False,
) -> Direction:
  """The combination of directions of one base.

  A weighted sum of low-rank changes is exact in factors whose ranks add up. A merge that leaves
  elements out is dense; it is computed when it is saved or used, tensor by tensor.

  Args:
    directions: of the recipe's terms, in order.
    orthogonal_to: of the recipe's `orthogonal_to`, in order.

  Returns:
    The direction. Its meta has `recipe`; of a projection `share_left`; of a merge `merge_error`,
    the distance from the weighted sum by the norm of that sum.

  Raises:
    InputError: if bases differ, a layer or module is none of the model's, or nothing is left.
  """
  base = _base(directions, orthogonal_to, recipe, allow_other_base)
  tensors = _tensors(base)
  allowed = _allowed(base, recipe)
  weights = []
  for term in recipe.terms:
    weights.append(_weights(term.weight, tensors, allowed))
  if recipe.method == LINEAR:
    if recipe.normalize:
      weights = _normalized(weights)
    weights = [_times(one, recipe.factor) for one in weights]
    held = [computed.in_memory(direction.delta) for direction in directions]
    delta = linear.weighted_sum(held, weights)
    record: dict[str, Any] = {}
    if linear.is_zero(delta):
      raise InputError('the combination is zero: the terms cancel out, or no weight is left')
  else:
    delta, record = _merge(directions, recipe, tensors, weights, base)
  if orthogonal_to:
    delta = computed.in_memory(delta)
    others = []
    for name, other in zip(recipe.orthogonal_to, orthogonal_to):
      # Only where the recipe may change anything: a projection must not reach other layers.
      part = linear.scaled(computed.in_memory(other.delta), allowed)
      others.append((name, part))
    delta, left = linear.projected_out(delta, others, by_module=recipe.by_module)
    record['share_left'] = left
  meta = {
    'kind': 'combination',
    'base': base.to_json(),
    'sources': [dict(direction.meta) for direction in directions],
    'recipe': recipe.to_json(),
    **record,
  }
  direction = Direction(delta, meta)
  if recipe.rank:
    direction, _ = compression.compress(direction, recipe.rank)
  return direction


def _base(
  directions: Sequence[Direction],
  others: Sequence[Direction],
  recipe: Recipe,
  allow_other_base: bool,
) -> bases.Base:
  """The base of all directions."""
  first = directions[0].base
  names = [*(term.source for term in recipe.terms), *recipe.orthogonal_to]
  for name, direction in zip(names[1:], [*directions[1:], *others]):
    what = f'{names[0]} and {name}'
    bases.same_base(first, direction.base, what=what, allow_other_base=allow_other_base)
    # A difference of two checkpoints has no digest; another direction may know the base.
    if not first.digest:
      first = direction.base
  return first


def _tensors(base: bases.Base) -> list[Tensor]:
  """The tensors of a checkpoint of the base."""
  last = max(base.config.num_layers - 1, 1)
  tensors = []
  for name, parts in on_disk.parts_of(base.config, models.FAMILIES[base.family]).items():
    at = parts[0].at
    # As in mergekit, a single layer is the last one, and what is outside of the layers the first.
    depth = (at[0] / last if base.config.num_layers > 1 else 1.0) if at else 0.0
    tensors.append(Tensor(name, depth, tuple(parts)))
  return tensors


def _allowed(base: bases.Base, recipe: Recipe) -> Mapping[str, np.ndarray]:
  """{path: 1 for each layer that may change, 0 for the others} of each place of a delta."""
  config = base.config
  if recipe.layers is not None and max(recipe.layers) >= config.num_layers:
    raise InputError(
      f'layers names {max(recipe.layers)}, and the model has layers 0 to {config.num_layers - 1}'
    )
  modules = _modules(config, recipe.modules)
  allowed = {}
  for path, site in models.delta_sites(config).items():
    stack = site.shape[: len(site.stack)]
    mask = np.ones(stack, np.float32)
    if modules is not None and _module(path) not in modules:
      mask[...] = 0
    if recipe.layers is not None:
      # What is outside of the layers is in none of them.
      if not site.stack:
        mask[...] = 0
      else:
        others = [layer for layer in range(stack[0]) if layer not in recipe.layers]
        mask[others] = 0
    allowed[path] = mask
  return allowed


def _module(path: str) -> str:
  """The module of a path: 'attn/q' of the kernel and the bias of queries."""
  return path.removeprefix('layers/').rpartition('/')[0] if path.startswith('layers/') else path


def _modules(config: models.ModelConfig, names: Sequence[str]) -> set[str] | None:
  """The modules behind names; None for all."""
  if not names:
    return None
  found = set()
  for name in names:
    if name in OTHER_MODULES:
      found.add(OTHER_MODULES[name])
      continue
    try:
      found |= {_module(path) for path in models.lora_paths(config, [name])}
    except InputError as error:
      near = did_you_mean(name, OTHER_MODULES)
      raise InputError(f'modules: {error}, {", ".join(OTHER_MODULES)}{near}') from None
  return found


def _weights(
  setting: Any, tensors: Sequence[Tensor], allowed: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """{path: weight of each layer} of every place of a delta."""
  weights = {path: np.zeros_like(mask) for path, mask in allowed.items()}
  named = set()
  for tensor in tensors:
    for part in tensor.parts:
      named.add(part.path)
      weights[part.path][part.at] = _value(setting, tensor.name, tensor.depth)
  # A bias or a residual that no tensor of the checkpoint holds goes by its own path.
  for path in weights.keys() - named:
    last = max(weights[path].shape[0] - 1, 1) if weights[path].shape else 1
    for at in np.ndindex(weights[path].shape):
      weights[path][at] = _value(setting, path, at[0] / last if at else 0.0)
  return {path: values * allowed[path] for path, values in weights.items()}


def _value(setting: Any, tensor: str, depth: float) -> float:
  value = settings.value_of(setting, tensor, depth)
  # No filter names the tensor.
  return 0.0 if value is None else value


def _normalized(weights: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
  """The weights, by the sum of all terms' weights at each layer."""
  divisors = {}
  for path in weights[0]:
    total = np.sum([one[path] for one in weights], axis=0)
    divisors[path] = np.where(np.abs(total) < 1e-8, 1, total)
  return [{path: values / divisors[path] for path, values in one.items()} for one in weights]


def _times(weights: Mapping[str, np.ndarray], factor: float) -> dict[str, np.ndarray]:
  return {path: factor * values for path, values in weights.items()}


def _merge(
  directions: Sequence[Direction],
  recipe: Recipe,
  tensors: Sequence[Tensor],
  weights: Sequence[Mapping[str, np.ndarray]],
  base: bases.Base,
) -> tuple[PyTree, dict[str, Any]]:
  """The merge, computed when it is read, and how far it is from the weighted sum."""
  flats = [tree.flatten(direction.delta, models.is_delta_leaf) for direction in directions]
  in_tensors = {part.path for tensor in tensors for part in tensor.parts}
  left = sorted({path for flat in flats for path in flat} - in_tensors)
  if left:
    raise InputError(
      f'{recipe.method} merges tensors of a checkpoint, and {left[0]} is in none: use {LINEAR}, or '
      'name other modules'
    )
  computes = {}
  lost, whole = [], []
  is_zero = True
  for tensor in tensors:
    if not any(_changed(tensor, flat, its) for flat, its in zip(flats, weights)):
      continue
    compute = functools.partial(_merged, tensor, flats, weights, recipe, base.config)
    computes[tensor.name] = compute
    total = _summed(tensor, flats, weights, recipe.factor, base.config)
    merged = compute()
    is_zero &= not merged.any()
    lost.append(float(np.square(merged - total, dtype=np.float64).sum()))
    whole.append(float(np.square(total, dtype=np.float64).sum()))
  if is_zero:
    raise InputError('the combination is zero: no weight is left, or the density keeps no element')
  size = math.fsum(whole)
  record = {'merge_error': math.sqrt(math.fsum(lost) / size) if size else None}
  leaves: dict[str, Dense] = computed.leaves(base.config, models.FAMILIES[base.family], computes)
  return tree.unflatten(dict(leaves)), record


def _changed(
  tensor: Tensor, flat: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """{path: change} of the tensor's parameters, without those that are left out."""
  parts = [part for part in tensor.parts if part.path in flat]
  return {part.path: flat[part.path] for part in parts if weights[part.path][part.at]}


def _taken(
  tensor: Tensor,
  flat: Mapping[str, Any],
  weights: Mapping[str, np.ndarray],
  config: models.ModelConfig,
) -> tuple[np.ndarray, float]:
  """(a direction's change of a tensor without what is left out, flat; its weight)."""
  changes = _changed(tensor, flat, weights)
  # Of a fused tensor some parameters may be left out; the others have the tensor's one weight.
  weight = max((float(weights[part.path][part.at]) for part in tensor.parts), key=abs)
  return computed.tensor_of(tensor.parts, config, changes), weight


def _merged(
  tensor: Tensor,
  flats: Sequence[Mapping[str, Any]],
  weights: Sequence[Mapping[str, np.ndarray]],
  recipe: Recipe,
  config: models.ModelConfig,
) -> np.ndarray:
  """The merge of a tensor, flat."""
  deltas, factors, densities = [], [], []
  for term, flat, its in zip(recipe.terms, flats, weights):
    delta, factor = _taken(tensor, flat, its, config)
    deltas.append(delta)
    factors.append(factor)
    density = settings.value_of(term.density, tensor.name, tensor.depth)
    densities.append(1.0 if density is None else density)
  return sparse.merged(deltas, factors, densities, recipe, tensor.name)


def _summed(
  tensor: Tensor,
  flats: Sequence[Mapping[str, Any]],
  weights: Sequence[Mapping[str, np.ndarray]],
  factor: float,
  config: models.ModelConfig,
) -> np.ndarray:
  """The weighted sum of a tensor, flat."""
  total: Any = 0
  for flat, its in zip(flats, weights):
    delta, weight = _taken(tensor, flat, its, config)
    total = total + np.float32(weight) * delta
  return np.asarray(np.float32(factor) * total)
