"""The change that an adapter makes to a base: each kind of tensor read by its own reader."""

from collections.abc import Callable, Mapping
from typing import Any

from weightsteer_jax.directions import algebra
from weightsteer_jax.directions.adapters import (
  experts,
  low_rank,
  modules,
  rest,
  starts,
  tensors,
  wholes,
)
from weightsteer_jax.directions.adapters.tensors import Adapter
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

PyTree = Any
Leaf = LowRank | Dense


def to_delta(adapter: Adapter, base: Checkpoint, *, shared: frozenset[str] = frozenset()) -> PyTree:
  """The adapter as a delta of the base.

  Args:
    shared: modules whose start in the base is not subtracted (see starts.py), because another
      adapter has the same one and the two deltas are subtracted.

  Raises:
    InputError: if a module is not in the base, a shape or rank is not that of the config and the
      base, or the two ends of tied embeddings are changed differently.
  """
  leaves: dict[str, Leaf] = {}
  for kind, reader in READERS.items():
    if not adapter.tensors[kind]:
      continue
    for path, change in reader(adapter, base).items():
      # One of the two would overwrite the other's change.
      if path in leaves:
        raise InputError(
          f"{adapter.folder}: '{path}' is both a LoRA target and saved whole; one of them must go"
        )
      leaves[path] = change
  delta = tree.unflatten(leaves)
  if starts.start_of(adapter.config):
    start = tree.unflatten(dict(low_rank.pairs(rest.of_base(adapter, base, shared), base)))
    delta = algebra.add_deltas(delta, algebra.scale_delta(start, -1.0))
  return delta


def _refuse_magnitudes(adapter: Adapter, base: Checkpoint) -> dict[str, Leaf]:
  module = modules.first(adapter.tensors[tensors.MAGNITUDE])
  raise InputError(
    f"{adapter.folder}: '{module}' has a magnitude vector, which belongs to DoRA, whose change is "
    'no product A B: merge it and pass checkpoints'
  )


# {kind of tensor: the function that gives {path: change} for all tensors of the kind}. A reader
# reads every tensor of its kind or raises: none is dropped in silence.
READERS: dict[str, Callable[[Adapter, Checkpoint], Mapping[str, Leaf]]] = {
  tensors.PAIR: low_rank.pairs,
  tensors.EXPERT_PAIR: experts.pairs,
  tensors.EMBEDDING_PAIR: low_rank.embedding_pairs,
  tensors.MAGNITUDE: _refuse_magnitudes,
  tensors.WHOLE: wholes.saved,
  tensors.BASE_LAYER: wholes.base_layers,
}
