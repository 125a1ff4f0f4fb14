"""LoRA pairs of experts as libraries load them: a pair for each expert, or one for a stack of all.

The layouts are those that directions/adapters/experts.py reads.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange

from weightsteer_jax import models
from weightsteer_jax.directions.adapters import factor_patterns
from weightsteer_jax.directions.adapters.experts import STACKS, by_expert
from weightsteer_jax.models import Dense, LowRank, stored
from weightsteer_jax.models.families import FAMILIES, TensorRow

# lora_A [R, inputs] and lora_B [outputs, R] of one module.
Pair = tuple[np.ndarray, np.ndarray]
PATHS = 'layers/mlp/experts/{}/kernel'


class Stacks(NamedTuple):
  """The pairs of stacks of experts.

  Attributes:
    pairs: {module: pair}, nested as PEFT nests its wrappers.
    parameters: {end of a parameter's name: how many times the adapter's rank its pair has}.
  """

  pairs: dict[str, Pair]
  parameters: dict[str, int]


def rows_of(family: str) -> dict[str, TensorRow]:
  """{projection: row} of the experts of a family; empty without experts."""
  by_path = {row.path: row for row in FAMILIES[family].tensors}
  rows = {}
  for names in STACKS.values():
    for name in names:
      path = PATHS.format(name)
      if path in by_path:
        rows[name] = by_path[path]
  return rows


def each(
  changes: Mapping[str, LowRank | Dense], family: str, config: models.ModelConfig
) -> dict[str, Pair]:
  """{module: pair} of every projection of every expert, if any expert changes.

  vLLM and llama.cpp load all three projections of all experts of a layer, or none: what does not
  change has a pair of rank 0, to be filled with zeros.

  Source: `PackedLoRALayerWeights.pack_moe` (vllm/lora/lora_weights.py, 0.33.0); the models'
    `modify_tensors` in llama.cpp's convert_hf_to_gguf.py.
  """
  rows = rows_of(family)
  if not any(row.path in changes for row in rows.values()):
    return {}
  pairs = {}
  for row in rows.values():
    for layer in range(config.num_layers):
      a_ERI, b_EOR = _factors(row, changes.get(row.path), layer, config)
      for expert, (a_RI, b_OR) in enumerate(zip(a_ERI, b_EOR)):
        module = row.name.format(l=layer, e=expert).removesuffix('.weight')
        pairs[module] = (a_RI, b_OR)
  return pairs


def stacks(
  changes: Mapping[str, LowRank | Dense], family: str, config: models.ModelConfig, rank: int
) -> Stacks:
  """The pairs of the changed stacks, filled with zeros up to a rank for each projection.

  Projections of a stack with one factor A have one pair, as an adapter that was trained on the
  stack gave them. Otherwise the pair is block-diagonal, and the ranks add up.
  """
  rows = rows_of(family)
  changed = []
  for parameter, names in STACKS.items():
    projections = [rows[name] for name in names if name in rows]
    if any(row.path in changes for row in projections):
      changed.append((parameter, projections))
  pairs = {}
  parameters = {}
  # PEFT wraps the module once for each parameter, the first parameter innermost.
  for level, (parameter, projections) in enumerate(reversed(changed)):
    stored_name = projections[0].name
    container, _ = FAMILIES[family].module_name(stored_name).split('.{e}.')
    # What follows the number of the layer names the parameter in every layer.
    _, _, end = container.rpartition('{l}.')
    shared = _share_a([changes.get(row.path) for row in projections])
    parameters[f'{end}.{parameter}'] = 1 if shared else len(projections)
    for layer in range(config.num_layers):
      parts = []
      for row in projections:
        factors = _factors(row, changes.get(row.path), layer, config)
        parts.append(_padded(factors, rank))
      a_ERI, b_EOR = _one_below_the_other(parts) if shared else _block_diagonal(parts)
      # The rows of A go expert by expert, the columns of B rank by rank.
      lora_a = rearrange(a_ERI, 'E R I -> (E R) I')
      lora_b = rearrange(b_EOR, 'E O R -> O (R E)')
      module = container.format(l=layer) + level * '.base_layer'
      pairs[module] = (lora_a, lora_b)
  return Stacks(pairs, parameters)


def _padded(factors: Pair, rank: int) -> Pair:
  """The factors a [E, R, I] and b [E, O, R], filled with zeros up to a rank."""
  a_ERI, b_EOR = factors
  missing = rank - a_ERI.shape[1]
  padded_a = np.pad(a_ERI, [(0, 0), (0, missing), (0, 0)])
  padded_b = np.pad(b_EOR, [(0, 0), (0, 0), (0, missing)])
  return padded_a, padded_b


def _share_a(leaves: Sequence[LowRank | Dense | None]) -> bool:
  """Whether the changes have the same factor A, in all layers."""
  first, *rest = leaves
  if not isinstance(first, LowRank):
    return False
  a = np.asarray(first.a)
  return all(isinstance(leaf, LowRank) and np.array_equal(a, np.asarray(leaf.a)) for leaf in rest)


def _one_below_the_other(parts: Sequence[Pair]) -> Pair:
  """One pair of the projections' pairs, which have one A; a [E, R, I] and b [E, O, R] each."""
  a_ERI, _ = parts[0]
  return a_ERI, np.concatenate([b for _, b in parts], axis=1)


def _block_diagonal(parts: Sequence[Pair]) -> Pair:
  """One pair of the projections' pairs, whose ranks add up."""
  a_ERI = np.concatenate([a for a, _ in parts], axis=1)
  num_experts, ranks, _ = a_ERI.shape
  outputs = sum(b.shape[1] for _, b in parts)
  b_EOR = np.zeros((num_experts, outputs, ranks), np.float32)
  row = 0
  column = 0
  for _, b in parts:
    next_row = row + b.shape[1]
    next_column = column + b.shape[2]
    b_EOR[:, row:next_row, column:next_column] = b
    row = next_row
    column = next_column
  return a_ERI, b_EOR


def _factors(
  row: TensorRow, leaf: LowRank | Dense | None, layer: int, config: models.ModelConfig
) -> Pair:
  """The factors a [E, R, I] and b [E, O, R] of a parameter at a layer; of rank 0 if unchanged."""
  outputs, inputs = stored.their_shape(row.pattern, config)
  if leaf is None:
    no_a = np.zeros((config.num_experts, 0, inputs), np.float32)
    no_b = np.zeros((config.num_experts, outputs, 0), np.float32)
    return no_a, no_b
  # Dense kernels, which no adapter has a place for, are folded or refused before (see
  # targets.check).
  assert isinstance(leaf, LowRank)
  a_pattern, b_pattern = factor_patterns(row.pattern)
  a = np.asarray(leaf.a[layer], np.float32)
  b = np.asarray(leaf.b[layer], np.float32)
  # The experts go along as one more axis in front.
  a_ERI = stored.to_theirs(a, by_expert(a_pattern), config)
  b_EOR = stored.to_theirs(b, by_expert(b_pattern), config)
  return a_ERI, b_EOR
