"""What a PEFT adapter changes of a base, as a delta.

A module that holds several of our parameters (a fused qkv_proj) is taken apart by its rows. Of a
module that was saved whole, the change is what was saved minus the base's own tensor.
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
    InputError: it changes modules the base does not have, has other shapes or ranks than its config
      and the base, or changes the two ends of tied embeddings differently.
  """
  leaves: dict[str, Any] = {}
  left = set(adapter.pairs)
  for path, row in base.rows.items():
    if '{e}' in row.name:
      continue
    modules = {
      l: row.name.format(l=l).removesuffix('.weight') for l in range(base.num_layers(path))
    }
    present = {l: module for l, module in modules.items() if module in adapter.pairs}
    if present and models.sites(base.config)[path].inputs:
      leaf = _stack_pairs(adapter, base.config, row, present)
      if leaf is not None:
        leaves[path] = leaf
      left -= set(present.values())
    elif present and row.name == EMBEDDING:
      leaves[path] = _table_change(adapter, base, present[0])
      left -= set(present.values())
  if left:
    raise InputError(_unknown_modules(adapter, base, left))
  for path, change in _whole_changes(adapter, base).items():
    if path in leaves:
      raise InputError(
        f"{adapter.folder}: '{path}' is both a LoRA target and saved whole; one of them must go"
      )
    leaves[path] = change
  return tree.unflatten(leaves)


def _stack_pairs(
  adapter: Adapter, config: ModelConfig, row: TensorRow, present: Mapping[int, str]
) -> LowRank | None:
  """One leaf from the pairs of its layers; layers without one, and ranks below the largest, are
  filled with zeros.

  None where the modules hold other parameters too, and the pairs change only those.
  """
  site = models.sites(config)[row.path]
  stack = site.axes.startswith('L')
  factors = {l: _convert_pair(adapter, config, module, row) for l, module in present.items()}
  if row.before or row.after:
    used = [np.flatnonzero(b.any(axis=tuple(range(1, b.ndim)))) for _, b in factors.values()]
    if not any(map(len, used)):
      return None
    factors = {l: (a[..., kept], b[kept]) for (l, (a, b)), kept in zip(factors.items(), used)}
  rank = max(b.shape[0] for _, b in factors.values())
  lead, inner = (site.shape[:1], site.shape[1:]) if stack else ((), site.shape)
  whole_a = np.zeros(lead + inner[: site.inputs] + (rank,), np.float32)
  whole_b = np.zeros(lead + (rank,) + inner[site.inputs :], np.float32)
  for l, (a, b) in factors.items():
    (whole_a[l] if stack else whole_a)[..., : a.shape[-1]] = a
    (whole_b[l] if stack else whole_b)[: b.shape[0]] = b
  return LowRank(jnp.asarray(whole_a), jnp.asarray(whole_b))


def _convert_pair(
  adapter: Adapter, config: ModelConfig, module: str, row: TensorRow
) -> tuple[np.ndarray, np.ndarray]:
  """A module's factors in our axes, the scale in b; of a module that holds several parameters, b is
  this one's part.
  """
  a, b = adapter.pairs[module]
  scale = _checked_scale(adapter, module, a, b)
  a_pattern, b_pattern = factor_patterns(row.pattern)
  theirs = stored.stored_shape(row, config)
  if (b.shape[0], a.shape[1]) != theirs:
    raise InputError(
      f"{adapter.folder}: '{module}' changes a weight of shape {(b.shape[0], a.shape[1])}; the "
      f"base's is {theirs}: the adapter is for another architecture"
    )
  b = b[stored.stored_rows(row, config)]
  try:
    return stored.to_ours(a, a_pattern, config), scale * stored.to_ours(b, b_pattern, config)
  except EinopsError as error:
    raise InputError(
      f"{adapter.folder}: '{module}' does not fit the base's '{row.pattern}'"
    ) from error


def _checked_scale(adapter: Adapter, module: str, a: np.ndarray, b: np.ndarray) -> np.float32:
  rank, scale = scaling(adapter.config, module)
  if a.shape[:1] != (rank,) or b.shape[1:] != (rank,):
    raise InputError(
      f"{adapter.folder}: '{module}' has factors {a.shape} and {b.shape}, but its config says rank "
      f"{rank}"
    )
  return np.float32(scale)


def _table_change(adapter: Adapter, base: Checkpoint, module: str) -> Dense:
  """The change of an embedding: the rows of `A^T` times `B^T`, in float32. Source:
  peft.tuners.lora.layer.Embedding.
  """
  a_RV, b_DR = adapter.pairs[module]
  scale = _checked_scale(adapter, module, a_RV, b_DR)
  if base.config.tied:
    raise InputError(
      f"{adapter.folder}: '{module}' has a low-rank change, and the base '{base.source}' ties its "
      'head to it: PEFT applies the change to the one and not to the other, which a tied model '
      'cannot hold. Save the embedding whole (modules_to_save, ensure_weight_tying=True) instead'
    )
  if (a_RV.shape[1], b_DR.shape[0]) != (base.config.vocab_size, base.config.width):
    raise InputError(
      f"{adapter.folder}: '{module}' changes an embedding of shape "
      f"{(a_RV.shape[1], b_DR.shape[0])}; the base's is "
      f'{(base.config.vocab_size, base.config.width)}'
    )
  return Dense(jnp.asarray(scale * (a_RV.T @ b_DR.T)))


def _whole_changes(adapter: Adapter, base: Checkpoint) -> dict[str, Dense]:
  """{path: saved minus base} of the modules saved whole, without those that are the base's own."""
  wholes = _untie(adapter, base) if base.config.tied else dict(adapter.wholes)
  owners = {
    row.name.format(l=l): (path, l)
    for path, row in base.rows.items()
    if '{e}' not in row.name
    for l in range(base.num_layers(path))
  }
  tree_changes: dict[str, np.ndarray] = {}
  for name, tensor in wholes.items():
    if name not in owners:
      raise InputError(_unknown_modules(adapter, base, {name}))
    path, l = owners[name]
    change = _as_base_layer(adapter, base, name, path, tensor) - base.layer(path, l)
    if change.any():
      whole = tree_changes.setdefault(
        path, np.zeros(models.sites(base.config)[path].shape, np.float32)
      )
      (whole[l] if '{l}' in base.rows[path].name else whole)[...] = change
  return {path: Dense(jnp.asarray(change)) for path, change in tree_changes.items()}


def _as_base_layer(
  adapter: Adapter, base: Checkpoint, name: str, path: str, tensor: np.ndarray
) -> np.ndarray:
  expected = base.tensors.shape(name)
  if tensor.shape != expected:
    hint = (
      '; the vocabulary was resized after the base was saved' if name in (HEAD, EMBEDDING) else ''
    )
    raise InputError(
      f"{adapter.folder}: '{name}' was saved with shape {tensor.shape}, the base has "
      f"{expected}{hint}"
    )
  return stored.to_ours(tensor, base.rows[path].pattern, base.config)


def _untie(adapter: Adapter, base: Checkpoint) -> dict[str, np.ndarray]:
  """The saved modules, the head dropped where it equals the embedding: on a tied base the two are
  one matrix.

  Raises:
    InputError: the two ends were changed differently, which a tied model cannot hold.
  """
  wholes = dict(adapter.wholes)
  head, embedding = wholes.pop(HEAD, None), wholes.get(EMBEDDING)
  if head is None and embedding is None:
    return wholes
  own = base.tensors.read(EMBEDDING).astype(np.float32)
  head = own if head is None else head
  embedding = own if embedding is None else embedding
  if not np.array_equal(head, embedding):
    raise InputError(
      f"{adapter.folder}: the base '{base.source}' ties its head to its embedding, but the adapter "
      'changes the two differently (largest difference '
      f'{_largest_difference(head, embedding):.3g}). Merged and loaded again, transformers would '
      "keep one of them and drop the other in silence. Either train again with PEFT's "
      'ensure_weight_tying=True, or give the base separate matrices (tie_word_embeddings false '
      'and lm_head.weight saved as a copy of the embedding) and pass that as the base'
    )
  return wholes | {EMBEDDING: embedding}


def _largest_difference(x: np.ndarray, y: np.ndarray) -> float:
  return float(np.abs(x - y).max()) if x.shape == y.shape else math.inf


def _unknown_modules(adapter: Adapter, base: Checkpoint, names: set[str]) -> str:
  known = {row.name.replace('{l}', '0').removesuffix('.weight') for row in base.rows.values()}
  first = sorted(names)[0]
  tied = (
    ' The base ties its head to its embedding, so it has no head of its own to change.'
    if base.config.tied and any(name.startswith('lm_head') for name in names)
    else ''
  )
  return (
    f"{adapter.folder} changes {len(names)} module(s) that the base '{base.source}' does not have, "
    f"or that cannot be changed so, '{first}' for one{did_you_mean(first, known)}; it was "
    f'made for another architecture.{tied}'
  )
