"""The change that a PEFT adapter makes to a base, as a delta.

A module that holds several of our parameters (a fused qkv_proj) is taken apart by its rows. The
change of a module that was saved whole is the saved tensor minus the base's own.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import EinopsError

from weightsteer_jax import models
from weightsteer_jax.directions.peft_adapter import Adapter, factor_patterns, scaling
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.models import Dense, LowRank, ModelConfig, stored
from weightsteer_jax.models.families import TensorRow
from weightsteer_jax.models.stored import EMBEDDING, HEAD
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

PyTree = Any


def to_delta(adapter: Adapter, base: Checkpoint) -> PyTree:
  """The adapter as a delta of the base.

  Raises:
    InputError: if a module is not in the base, a shape or rank is not that of the config and the
      base, or the two ends of tied embeddings are changed differently.
  """
  leaves: dict[str, LowRank | Dense] = {}
  # Pairs without a parameter so far: a pair must never be dropped in silence.
  left = set(adapter.pairs)
  for path, row in base.rows.items():
    # PEFT has no LoRA of stacked experts; their modules end up among the unknown.
    if '{e}' in row.name:
      continue
    # Of a fused module, each parameter takes its own rows below.
    modules = {}
    for layer in range(base.num_layers(path)):
      tensor_name = row.name.format(l=layer)
      module = tensor_name.removesuffix('.weight')
      if module in adapter.pairs:
        modules[layer] = module
    if not modules:
      continue
    # Kernels stay factors, and an embedding becomes dense. LoRA has no form for anything else, so
    # such a pair stays among the unknown.
    site = models.sites(base.config)[path]
    if site.inputs:
      leaf = _stack_pairs(adapter, base.config, row, modules)
      if leaf is not None:
        leaves[path] = leaf
    elif row.name == EMBEDDING:
      leaves[path] = _table_change(adapter, base, modules[0])
    else:
      continue
    left -= set(modules.values())
  if left:
    raise InputError(_unknown_modules(adapter, base, left))
  for path, change in _whole_changes(adapter, base).items():
    # One of the two would overwrite the other's change.
    if path in leaves:
      raise InputError(
        f"{adapter.folder}: '{path}' is both a LoRA target and saved whole; one of them must go"
      )
    leaves[path] = change
  return tree.unflatten(leaves)


def _stack_pairs(
  adapter: Adapter, config: ModelConfig, row: TensorRow, modules: Mapping[int, str]
) -> LowRank | None:
  """One leaf from the pairs of a parameter's layers, or None if the pairs do not change it.

  Layers without a pair, and ranks below the largest, are filled with zeros.

  Args:
    modules: {layer: Hugging Face module name} of the layers with a pair.
  """
  is_fused = bool(row.before or row.after)
  pairs = {}
  for layer, module in modules.items():
    a, b = _convert_pair(adapter, config, module, row)
    # A fused module's adapter may have ranks that change only the other parameters of the module.
    if is_fused:
      output_axes = tuple(range(1, b.ndim))
      used = np.flatnonzero(b.any(axis=output_axes))
      a = a[..., used]
      b = b[used]
    pairs[layer] = (a, b)
  # rank_pattern may give each layer a rank of its own.
  rank = max(len(b) for _, b in pairs.values())
  if rank == 0:
    return None
  site = models.sites(config)[row.path]
  num_layers = site.shape[0] if site.stack else 1
  # Behind the layers, a kernel's shape is its inputs, then its outputs.
  axes = site.shape[len(site.stack) :]
  inputs = axes[: site.inputs]
  outputs = axes[site.inputs :]
  whole_a = np.zeros((num_layers, *inputs, rank), np.float32)
  whole_b = np.zeros((num_layers, rank, *outputs), np.float32)
  for layer, (a, b) in pairs.items():
    # Zeros in the other ranks add nothing to A B.
    layer_rank = len(b)
    whole_a[layer, ..., :layer_rank] = a
    whole_b[layer, :layer_rank] = b
  # A parameter outside the layer stack has no layer axis.
  if not site.stack:
    whole_a = whole_a[0]
    whole_b = whole_b[0]
  return LowRank(jnp.asarray(whole_a), jnp.asarray(whole_b))


def _convert_pair(
  adapter: Adapter, config: ModelConfig, module: str, row: TensorRow
) -> tuple[np.ndarray, np.ndarray]:
  """A module's factors in our axes, the scale in b; b is cut to the rows of this parameter."""
  a, b = adapter.pairs[module]
  scale = _checked_scale(adapter, module, a, b)
  a_pattern, b_pattern = factor_patterns(row.pattern)
  # The shape of the weight that B A is added to.
  shape = (b.shape[0], a.shape[1])
  expected = stored.stored_shape(row, config)
  if shape != expected:
    raise InputError(
      f"{adapter.folder}: '{module}' changes a weight of shape {shape}; the base's is {expected}: "
      'the adapter is for another architecture'
    )
  # The rows of B A are those of B, so a fused module's parameters share A.
  rows = stored.stored_rows(row, config)
  try:
    our_a = stored.to_ours(a, a_pattern, config)
    our_b = stored.to_ours(b[rows], b_pattern, config)
    return our_a, scale * our_b
  except EinopsError as error:
    raise InputError(
      f"{adapter.folder}: '{module}' does not fit the base's '{row.pattern}'"
    ) from error


def _checked_scale(adapter: Adapter, module: str, a: np.ndarray, b: np.ndarray) -> np.float32:
  rank, scale = scaling(adapter.config, module)
  # A wrong rank would give a wrong scale: the config is of another adapter, or was edited.
  if a.shape[:1] != (rank,) or b.shape[1:] != (rank,):
    raise InputError(
      f"{adapter.folder}: '{module}' has factors {a.shape} and {b.shape}, but its config says rank "
      f"{rank}"
    )
  return np.float32(scale)


def _table_change(adapter: Adapter, base: Checkpoint, module: str) -> Dense:
  """The change of an embedding, float32: `A^T B^T` times the scale.

  Source: peft.tuners.lora.layer.Embedding.
  """
  a_RV, b_DR = adapter.pairs[module]
  scale = _checked_scale(adapter, module, a_RV, b_DR)
  if base.config.tied:
    raise InputError(
      f"{adapter.folder}: '{module}' has a low-rank change, and the base '{base.source}' ties its "
      'head to it: PEFT applies the change to the one and not to the other, which a tied model '
      'cannot hold. Save the embedding whole (modules_to_save, ensure_weight_tying=True) instead'
    )
  shape = (a_RV.shape[1], b_DR.shape[0])
  expected = (base.config.vocab_size, base.config.width)
  if shape != expected:
    raise InputError(
      f"{adapter.folder}: '{module}' changes an embedding of shape {shape}; the base's is "
      f"{expected}"
    )
  return Dense(jnp.asarray(scale * (a_RV.T @ b_DR.T)))


def _whole_changes(adapter: Adapter, base: Checkpoint) -> dict[str, Dense]:
  """{path: saved minus base} of the modules that were saved whole and changed."""
  wholes = _untie(adapter, base) if base.config.tied else adapter.wholes
  # {tensor name: (path, layer)} of the base's parameters, except experts.
  owners = {}
  for path, row in base.rows.items():
    if '{e}' in row.name:
      continue
    for layer in range(base.num_layers(path)):
      tensor_name = row.name.format(l=layer)
      owners[tensor_name] = (path, layer)
  changes: dict[str, np.ndarray] = {}
  for name, tensor in wholes.items():
    if name not in owners:
      raise InputError(_unknown_modules(adapter, base, {name}))
    path, layer = owners[name]
    saved = _as_base_layer(adapter, base, name, path, tensor)
    change = saved - base.layer(path, layer)
    # PEFT also saves modules that were never trained; these are no part of the delta.
    if not change.any():
      continue
    if not base.is_stacked(path):
      changes[path] = change
      continue
    # Layers that were not saved do not change.
    if path not in changes:
      shape = models.sites(base.config)[path].shape
      changes[path] = np.zeros(shape, np.float32)
    changes[path][layer] = change
  return {path: Dense(jnp.asarray(change)) for path, change in changes.items()}


def _as_base_layer(
  adapter: Adapter, base: Checkpoint, name: str, path: str, tensor: np.ndarray
) -> np.ndarray:
  expected = base.tensors.shape(name)
  if tensor.shape != expected:
    hint = ''
    # Of all tensors only these two grow with the tokenizer, as by resize_token_embeddings.
    if name in (HEAD, EMBEDDING):
      hint = '; the vocabulary was resized after the base was saved'
    raise InputError(
      f"{adapter.folder}: '{name}' was saved with shape {tensor.shape}, the base has "
      f"{expected}{hint}"
    )
  return stored.to_ours(tensor, base.rows[path].pattern, base.config)


def _untie(adapter: Adapter, base: Checkpoint) -> dict[str, np.ndarray]:
  """The saved modules for a tied base, as changes of the embedding alone.

  Raises:
    InputError: if the two ends were changed differently, which a tied model cannot hold.
  """
  wholes = dict(adapter.wholes)
  head = wholes.pop(HEAD, None)
  embedding = wholes.get(EMBEDDING)
  if head is None and embedding is None:
    return wholes
  # An end that was not saved is as in the base.
  unchanged = base.tensors.read(EMBEDDING).astype(np.float32)
  head = unchanged if head is None else head
  embedding = unchanged if embedding is None else embedding
  if not np.array_equal(head, embedding):
    # Of other shapes where the vocabulary of one end was resized.
    largest = math.inf
    if head.shape == embedding.shape:
      largest = float(np.abs(head - embedding).max())
    raise InputError(
      f"{adapter.folder}: the base '{base.source}' ties its head to its embedding, but the adapter "
      'changes the two differently (largest difference '
      f'{largest:.3g}). Merged and loaded again, transformers would '
      "keep one of them and drop the other in silence. Either train again with PEFT's "
      'ensure_weight_tying=True, or give the base separate matrices (tie_word_embeddings false '
      'and lm_head.weight saved as a copy of the embedding) and pass that as the base'
    )
  return wholes | {EMBEDDING: embedding}


def _unknown_modules(adapter: Adapter, base: Checkpoint, names: set[str]) -> str:
  # The modules of the first layer stand for those of all layers in the suggestion.
  known = {row.name.replace('{l}', '0').removesuffix('.weight') for row in base.rows.values()}
  first = sorted(names)[0]
  # A tied head is stored as the embedding, so the base has no parameter of that name.
  tied = ''
  if base.config.tied and any(name.startswith('lm_head') for name in names):
    tied = ' The base ties its head to its embedding, so it has no head of its own to change.'
  return (
    f"{adapter.folder} changes {len(names)} module(s) that the base '{base.source}' does not have, "
    f"or that cannot be changed so, '{first}' for one{did_you_mean(first, known)}; it was "
    f'made for another architecture.{tied}'
  )
