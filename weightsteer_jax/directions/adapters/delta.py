"""The change that an adapter makes to a base: each kind of tensor read by its own reader."""

from collections.abc import Callable, Mapping
from typing import Any

from weightsteer_jax.directions import algebra
from weightsteer_jax.directions.adapters import (
  completeness,
  dora,
  experts,
  library,
  low_rank,
  mlx,
  mlx_ends,
  overlaps,
  rest,
  starts,
  tables,
  tensors,
  wholes,
)
from weightsteer_jax.directions.adapters import config as configs
from weightsteer_jax.directions.adapters.tensors import Adapter
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.runtime import tree

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
  if adapter.config['peft_type'] != configs.LORA:
    return tree.unflatten(library.changes(adapter, base))
  if mlx.KEY in adapter.config:
    mlx_ends.check(adapter, base)
  if mlx.is_full(adapter.config):
    return tree.unflatten(wholes.streamed(adapter, base))
  adapter = mlx_ends.tied(adapter, base)
  overlaps.tell(adapter)
  plain, scaled = dora.split(adapter)
  delta = _read(plain, base)
  if starts.start_of(adapter.config):
    start = _read(rest.of_base(adapter, base, shared), base)
    delta = algebra.add_deltas(delta, algebra.scale_delta(start, -1.0))
  if scaled.tensors[tensors.MAGNITUDE]:
    delta = algebra.add_deltas(delta, tree.unflatten(dict(dora.changes(scaled, base))))
  # Last, because a module that the base does not have, or another shape, says more.
  completeness.check(adapter, base)
  return delta


def _read(adapter: Adapter, base: Checkpoint) -> PyTree:
  """The changes of all kinds together."""
  delta: PyTree = {}
  # A reader of several kinds reads them all at once.
  for reader in dict.fromkeys(READERS.values()):
    kinds = [kind for kind, other in READERS.items() if other is reader]
    if any(adapter.tensors[kind] for kind in kinds):
      # Kinds may change one parameter together, as biases trained beside a LoRA with biases.
      delta = algebra.add_deltas(delta, tree.unflatten(reader(adapter, base)))
  return delta


# {kind of tensor: the function that gives {path: change} for all tensors of the kind}. A reader
# reads every tensor of its kinds or raises: none is dropped in silence. Magnitudes are read with
# their pairs, by dora.changes.
READERS: dict[str, Callable[[Adapter, Checkpoint], Mapping[str, Leaf]]] = {
  tensors.PAIR: low_rank.pairs,
  tensors.EXPERT_PAIR: experts.pairs,
  tensors.EXPERT_WHOLE: experts.wholes,
  tensors.LORA_BIAS: low_rank.biases,
  tensors.HEAD_PAIR: tables.changes,
  tensors.EMBEDDING_PAIR: tables.changes,
  tensors.TOKEN_ROWS: tables.changes,
  tensors.TABLE: tables.changes,
  tensors.WHOLE: wholes.saved,
  tensors.BASE_LAYER: wholes.saved,
}
