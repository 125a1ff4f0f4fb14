"""A direction at a fixed alpha as a PEFT LoRA adapter, exact in float32: rank 2r for the difference
of
two of rank r.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import compression, gram
from weightsteer_jax.directions.algebra import scale_delta
from weightsteer_jax.directions.peft_adapter import CONFIG, WEIGHTS, factor_patterns
from weightsteer_jax.export import targets as peft_targets
from weightsteer_jax.export.base_folder import BaseFolder
from weightsteer_jax.export.targets import TABLES, target_of
from weightsteer_jax.models import Dense, LowRank, stored
from weightsteer_jax.models.families import FAMILIES, TensorRow
from weightsteer_jax.models.stored import EMBEDDING, HEAD
from weightsteer_jax.runtime import tree
from weightsteer_jax.storage import files

PyTree = Any
Pair = tuple[np.ndarray, np.ndarray]  # lora_A [R, inputs] and lora_B [outputs, R] of one module

PREFIX = 'base_model.model.'


def write(
  folder: pathlib.Path,
  delta: PyTree,
  base: BaseFolder,
  params: PyTree,
  alpha: float,
  *,
  target: str = '',
  table_rank: int = 0,
) -> dict[str, Any]:
  """Writes `alpha * delta` as adapter_config.json and adapter_model.safetensors; what to record of
  it.

  All factors get the largest rank, filled with zeros, and lora_alpha equals it: the scaling is 1,
  and alpha lies in B.

  Args:
    delta: one that peft_targets.check has passed, folded.
    target: who is to load it.
    table_rank: the rank that the embedding's change was folded to, where the target takes none
      whole.
  """
  flat = tree.flatten(scale_delta(delta, alpha), models.is_delta_leaf)
  wholes = [
    path for path, leaf in flat.items() if isinstance(leaf, Dense) and target_of(target).wholes
  ]
  pairs = _module_pairs(flat, base)
  tables = {
    PREFIX + TABLES[path]: compression.best_factors(np.asarray(leaf.value, np.float64), table_rank)
    for path, leaf in flat.items()
    if isinstance(leaf, Dense) and path not in wholes
  }
  rank = max(
    [a.shape[0] for a, _ in pairs.values()] + [rows.shape[1] for rows, _ in tables.values()]
  )
  tensors: dict[str, np.ndarray] = {}
  for module, pair in pairs.items():
    tensors[f'{module}.lora_A.weight'], tensors[f'{module}.lora_B.weight'] = _padded(pair, rank)
  for name, (rows_VR, columns_RD) in tables.items():
    a, b = _padded((rows_VR.T, columns_RD.T), rank)
    module = name.removesuffix('.weight')
    tensors[f'{module}.lora_embedding_A'], tensors[f'{module}.lora_embedding_B'] = a, b
  for path in wholes:
    tensors |= _whole(path, flat[path], base, params)
  modules = [name.split('.lora_')[0] for name in tensors if '.lora_' in name]
  files.save_safetensors(folder / WEIGHTS, tensors, metadata={'format': 'pt'})
  files.write_json(
    folder / CONFIG,
    _config(base, rank, sorted({name.rsplit('.', 1)[-1] for name in modules}), wholes),
  )
  return {
    'rank': rank,
    'target': target or peft_targets.DEFAULT,
    'max_lora_rank': peft_targets.max_lora_rank(rank),
    'notes': peft_targets.notes(rank, target, wholes),
  }


def fuse(pairs: Sequence[Pair]) -> Pair:
  """The change of a module whose outputs are those of several, one after the other: A stacked, B
  block-diagonal.

  The ranks add up; what is not changed has a pair of rank 0.

  >>> a, b = fuse([(np.full((1, 2), 3.0), np.ones((1, 1))), (np.full((1, 2), 5.0), 2 * np.ones((2, 1)))])
  >>> a.tolist(), b.tolist()
  ([[3.0, 3.0], [5.0, 5.0]], [[1.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
  """
  whole = np.zeros(
    (sum(b.shape[0] for _, b in pairs), sum(b.shape[1] for _, b in pairs)), np.float32
  )
  row = column = 0
  for _, b in pairs:
    whole[row : row + b.shape[0], column : column + b.shape[1]] = b
    row, column = row + b.shape[0], column + b.shape[1]
  return np.concatenate([a for a, _ in pairs]), whole


def _module_pairs(flat: Mapping[str, LowRank | Dense], base: BaseFolder) -> dict[str, Pair]:
  """{module: its pair} of every layer; modules that hold several parameters get one pair for all of
  them.
  """
  sharing: dict[str, list[TensorRow]] = {}
  for row in FAMILIES[base.family].tensors:
    sharing.setdefault(row.name, []).append(row)
  pairs = {}
  for name, rows in sharing.items():
    if not any(isinstance(flat.get(row.path), LowRank) for row in rows):
      continue
    rows = sorted(rows, key=lambda row: len(row.before))
    for l in range(base.config.num_layers if '{l}' in name else 1):
      blocks = [_pair(row, flat.get(row.path), l, base.config) for row in rows]
      pairs[PREFIX + name.format(l=l).removesuffix('.weight')] = fuse(blocks)
  return pairs


def _pair(row: TensorRow, leaf: LowRank | None, l: int, config: models.ModelConfig) -> Pair:
  """A parameter's factors at layer l in PEFT's axes; of rank 0 where it is not changed."""
  if leaf is None:
    outputs, inputs = stored.their_shape(row.pattern, config)
    return np.zeros((0, inputs), np.float32), np.zeros((outputs, 0), np.float32)
  layer = (l,) if gram.stack_axes(row.path) else ()
  a_pattern, b_pattern = factor_patterns(row.pattern)
  return (
    stored.to_theirs(np.asarray(leaf.a)[layer], a_pattern, config),
    stored.to_theirs(np.asarray(leaf.b)[layer], b_pattern, config),
  )


def _padded(pair: Pair, rank: int) -> Pair:
  a, b = (np.asarray(factor, np.float32) for factor in pair)
  missing = rank - a.shape[0]
  return np.pad(a, [(0, missing), (0, 0)]), np.pad(b, [(0, 0), (0, missing)])


def _whole(path: str, leaf: Dense, base: BaseFolder, params: PyTree) -> dict[str, np.ndarray]:
  """The changed embedding or head in float32; on a tied base both names hold the one matrix."""
  row = next(row for row in FAMILIES[base.family].tensors if row.path == path)
  node = params
  for key in path.split('/'):
    node = node[key]
  value = stored.to_theirs(
    np.asarray(jnp.asarray(node, jnp.float32) + leaf.value), row.pattern, base.config
  )
  names = (EMBEDDING, HEAD) if base.config.tied else (TABLES[path],)
  return {PREFIX + name: value.copy() for name in names}


def _config(base: BaseFolder, rank: int, targets: list[str], wholes: list[str]) -> dict[str, Any]:
  saved = sorted({TABLES[path].removesuffix('.weight').rsplit('.', 1)[-1] for path in wholes})
  tied = bool(saved) and base.config.tied
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base.loadable_name,
    'revision': base.revision or None,
    'r': rank,
    'lora_alpha': rank,
    'lora_dropout': 0.0,
    'bias': 'none',
    'use_rslora': False,
    'use_dora': False,
    'fan_in_fan_out': False,
    'rank_pattern': {},
    'alpha_pattern': {},
    'target_modules': targets,
    'modules_to_save': saved or None,
    'init_lora_weights': True,
    'inference_mode': True,
    **({'ensure_weight_tying': True} if tied else {}),
  }
