"""A direction at a fixed alpha as a PEFT LoRA adapter, exact in float32.

The difference of two adapters of rank r has rank 2r.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import compression, gram
from weightsteer_jax.directions.adapters import CONFIG, WEIGHTS, factor_patterns
from weightsteer_jax.directions.algebra import scale_delta
from weightsteer_jax.exports import experts
from weightsteer_jax.exports import targets as peft_targets
from weightsteer_jax.exports.base_folder import BaseFolder
from weightsteer_jax.exports.experts import Pair
from weightsteer_jax.exports.targets import TABLES
from weightsteer_jax.models import Dense, LowRank, stored
from weightsteer_jax.models.families import FAMILIES, TensorRow
from weightsteer_jax.models.stored import EMBEDDING, HEAD
from weightsteer_jax.runtime import tree
from weightsteer_jax.storage import files, safetensors

PyTree = Any
# PEFT wraps the base twice: the base is `base_model.model` of a PeftModel.
PREFIX = 'base_model.model.'
ROUTER = 'layers/mlp/router/kernel'


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
  """Entries of the provenance of `alpha * delta`, written as an adapter.

  All factors are filled with zeros up to the largest rank, and lora_alpha equals the rank: the
  scaling is 1, and alpha lies in B.

  Args:
    folder: gets adapter_config.json and adapter_model.safetensors.
    delta: the delta of a folded direction, passed by targets.check.
    params: the base's parameters, to which the changes of whole embeddings are added.
    target: the library to load the adapter, a key of targets.TARGETS.
    table_rank: rank of the embedding's folded change, if the target takes no whole embeddings.
  """
  # PEFT scales an adapter by lora_alpha / r, which is 1 here: alpha goes into the factors.
  changes = tree.flatten(scale_delta(delta, alpha), models.is_delta_leaf)
  stacked = peft_targets.target_of(target).stacked
  # What is dense here is an embedding, a head or a norm: kernels are folded, and what no adapter
  # holds is refused (see targets.check).
  dense = {path: leaf for path, leaf in changes.items() if isinstance(leaf, Dense)}
  takes_wholes = peft_targets.target_of(target).wholes
  wholes = list(dense) if takes_wholes else []
  pairs = module_pairs(changes, base, stacked=stacked)
  tables = {}
  if not takes_wholes:
    tables = table_pairs(dense, table_rank)
  # A tied head is a module of its own, which has to change as the embedding does.
  if tables and base.config.tied:
    a_RV, b_DR = tables[PREFIX + _module(EMBEDDING)]
    pairs[PREFIX + _module(HEAD)] = (b_DR.T, a_RV.T)
  # One rank for all modules: llama.cpp reads no `rank_pattern`.
  ranks = [a.shape[0] for a, _ in (*pairs.values(), *tables.values())]
  ranks += [leaf.a.shape[-1] for leaf in changes.values() if isinstance(leaf, LowRank)]
  rank = max(ranks)
  pairs = {module: padded(pair, rank) for module, pair in pairs.items()}
  parameters = {}
  # Stacks come with a rank of their own, which only PEFT is to read.
  if stacked:
    stacks = experts.stacks(changes, base.family, base.config, rank)
    pairs |= {PREFIX + module: pair for module, pair in stacks.pairs.items()}
    parameters = stacks.parameters | _routers(changes, base)

  # Every tensor by the name that PEFT gives it in a file.
  tensors: dict[str, np.ndarray] = {}
  for module, (a, b) in pairs.items():
    tensors[f'{module}.lora_A.weight'] = a
    tensors[f'{module}.lora_B.weight'] = b
  # Embeddings are looked up, not multiplied, and have names of their own without '.weight'.
  for module, pair in tables.items():
    a, b = padded(pair, rank)
    tensors[f'{module}.lora_embedding_A'] = a
    tensors[f'{module}.lora_embedding_B'] = b
  for path in wholes:
    tensors |= _whole(path, changes[path], base, params)

  safetensors.save(folder / WEIGHTS, tensors, metadata={'format': 'pt'})
  # PEFT matches modules by the last part of their names.
  modules = {module.rsplit('.', 1)[-1] for module in (*pairs, *tables)}
  if parameters:
    modules -= {'experts', 'base_layer', 'gate'}
  config = _config(base, rank, sorted(modules), wholes)
  files.write_json(folder / CONFIG, config | _parameter_fields(parameters, rank))
  return {
    'rank': rank,
    'target': target or peft_targets.DEFAULT,
    'max_lora_rank': peft_targets.max_lora_rank(rank),
    'notes': peft_targets.notes(rank, target, wholes, by_parameter=bool(parameters)),
  }


def fuse(pairs: Sequence[Pair]) -> Pair:
  """The change of a module with the outputs of several modules in turn.

  A is stacked, B is block-diagonal, and the ranks add up. A part without a change has a pair of
  rank 0.

  >>> first = (np.full((1, 2), 3.0), np.ones((1, 1)))
  >>> second = (np.full((1, 2), 5.0), 2 * np.ones((2, 1)))
  >>> a, b = fuse([first, second])
  >>> a.tolist(), b.tolist()
  ([[3.0, 3.0], [5.0, 5.0]], [[1.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
  """
  outputs = sum(b.shape[0] for _, b in pairs)
  ranks = sum(b.shape[1] for _, b in pairs)
  fused_b = np.zeros((outputs, ranks), np.float32)
  row = 0
  column = 0
  for _, b in pairs:
    next_row = row + b.shape[0]
    next_column = column + b.shape[1]
    fused_b[row:next_row, column:next_column] = b
    row = next_row
    column = next_column
  fused_a = np.concatenate([a for a, _ in pairs])
  return fused_a, fused_b


def _module(tensor: str) -> str:
  return tensor.removesuffix('.weight')


def module_pairs(
  changes: Mapping[str, LowRank | Dense], base: BaseFolder, *, stacked: bool
) -> dict[str, Pair]:
  """{module: pair} of every changed layer, one pair for all parameters of a module.

  Args:
    stacked: whether modules have the names of transformers 5, which stacks experts: their pairs
      are left out. Otherwise each expert has pairs of its own.
  """
  family = FAMILIES[base.family]
  rows_by_tensor: dict[str, list[TensorRow]] = {}
  for row in family.tensors:
    if '{e}' not in row.name:
      rows_by_tensor.setdefault(row.name, []).append(row)
  low_rank = {path for path, leaf in changes.items() if isinstance(leaf, LowRank)}
  pairs = {}
  for name, rows in rows_by_tensor.items():
    # A tensor may hold several parameters (q, k and v of Phi-3), some of them unchanged.
    if not any(row.path in low_rank for row in rows):
      continue
    # In the order in which the tensor holds its parameters.
    rows = sorted(rows, key=lambda row: len(row.before))
    num_layers = base.config.num_layers if '{l}' in name else 1
    for layer in range(num_layers):
      parts = []
      for row in rows:
        leaf = changes.get(row.path)
        parts.append(_pair(row, leaf, layer, base.config))
      module = _module(name.format(l=layer))
      if stacked:
        module = family.module_name(module)
      pairs[PREFIX + module] = fuse(parts)
  if not stacked:
    for module, pair in experts.each(changes, base.family, base.config).items():
      pairs[PREFIX + module] = pair
  return pairs


def table_pairs(dense: Mapping[str, Dense], rank: int) -> dict[str, Pair]:
  """{module: pair} of every changed embedding and head."""
  pairs = {}
  for path, leaf in dense.items():
    change_VD = np.asarray(leaf.value, np.float64)
    # The change has this rank already (see compression), so nothing is lost here.
    a_VR, b_RD = compression.best_factors(change_VD, rank)
    pairs[PREFIX + _module(TABLES[path])] = (a_VR.T, b_RD.T)
  return pairs


def _pair(
  row: TensorRow, leaf: LowRank | Dense | None, layer: int, config: models.ModelConfig
) -> Pair:
  """The factors of a parameter at a layer in PEFT's axes; of rank 0 without a change."""
  if leaf is None:
    outputs, inputs = stored.their_shape(row.pattern, config)
    no_a = np.zeros((0, inputs), np.float32)
    no_b = np.zeros((outputs, 0), np.float32)
    return no_a, no_b
  # Dense kernels, which PEFT has no place for, are folded or refused before (see targets.check).
  assert isinstance(leaf, LowRank)
  # Parameters outside the layer stack have no axis of layers.
  at = (layer,) if gram.stack_axes(row.path) else ()
  a_pattern, b_pattern = factor_patterns(row.pattern)
  a = np.asarray(leaf.a)[at]
  b = np.asarray(leaf.b)[at]
  a_RI = stored.to_theirs(a, a_pattern, config)
  b_OR = stored.to_theirs(b, b_pattern, config)
  return a_RI, b_OR


def padded(pair: Pair, rank: int) -> Pair:
  """The pair in float32, filled with zeros up to a rank."""
  a, b = pair
  a_RI = np.asarray(a, np.float32)
  b_OR = np.asarray(b, np.float32)
  # Zeros change nothing in the product.
  missing = rank - a_RI.shape[0]
  a_RI = np.pad(a_RI, [(0, missing), (0, 0)])
  b_OR = np.pad(b_OR, [(0, 0), (0, missing)])
  return a_RI, b_OR


def _whole(
  path: str, leaf: LowRank | Dense, base: BaseFolder, params: PyTree
) -> dict[str, np.ndarray]:
  """A changed embedding, head or norm in float32, by the names of its tensors."""
  assert isinstance(leaf, Dense)
  row = _row(base, path)
  arrays = tree.flatten(params)
  before = jnp.asarray(arrays[path], jnp.float32)
  # A whole module replaces the base's, so the base is part of the sum.
  after = np.asarray(before + leaf.value)
  tensors = {}
  for at, name in stored.stored_names(row, base.config).items():
    tensors[PREFIX + name] = stored.to_theirs(after[at], row.pattern, base.config)
  # On a tied base, both modules hold the one matrix; safetensors refuses tensors that share memory.
  if base.config.tied and row.name == EMBEDDING:
    tensors[PREFIX + HEAD] = tensors[PREFIX + EMBEDDING].copy()
  return tensors


def _row(base: BaseFolder, path: str) -> TensorRow:
  return next(row for row in FAMILIES[base.family].tensors if row.path == path)


def _saved_modules(base: BaseFolder, wholes: list[str]) -> list[str]:
  """The ends of the names of modules saved whole, in every layer.

  PEFT takes all modules whose names end so: of a final norm, 'norm' alone would be all norms.
  """
  ends = set()
  for path in wholes:
    module = _module(_row(base, path).name)
    if path in TABLES:
      ends.add(module.rpartition('.')[2])
    else:
      # What follows the number of the layer; the whole name outside the layers.
      ends.add(module.rpartition('{l}.')[2])
  return sorted(ends)


def _routers(changes: Mapping[str, LowRank | Dense], base: BaseFolder) -> dict[str, int]:
  """{end of the parameter's name: 1} of routers, which are no linear layers in transformers 5."""
  if ROUTER not in changes:
    return {}
  name = FAMILIES[base.family].module_name(_row(base, ROUTER).name)
  return {name.rpartition('{l}.')[2]: 1}


def _parameter_fields(parameters: Mapping[str, int], rank: int) -> dict[str, Any]:
  """The fields of the config that name parameters, with their ranks where these are not one."""
  if not parameters:
    return {}
  larger = {name: times * rank for name, times in parameters.items() if times > 1}
  # Rank and alpha grow alike, so that the scaling stays 1.
  return {
    'target_parameters': sorted(parameters),
    'rank_pattern': larger,
    'alpha_pattern': larger,
  }


def _config(base: BaseFolder, rank: int, modules: list[str], wholes: list[str]) -> dict[str, Any]:
  saved = _saved_modules(base, wholes)
  tied = bool({*wholes} & {*TABLES}) and base.config.tied
  config: dict[str, Any] = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base.loadable_name,
    'revision': base.loadable_revision or None,
    'r': rank,
    # The scaling is lora_alpha / r = 1.
    'lora_alpha': rank,
    'lora_dropout': 0.0,
    'bias': 'none',
    'use_rslora': False,
    'use_dora': False,
    'fan_in_fan_out': False,
    'rank_pattern': {},
    'alpha_pattern': {},
    'target_modules': modules,
    'modules_to_save': saved or None,
    'init_lora_weights': True,
    'inference_mode': True,
  }
  # The embedding and the head of a tied base are one matrix.
  if tied:
    config['ensure_weight_tying'] = True
  return config
