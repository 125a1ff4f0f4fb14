"""Tensors that an adapter saved whole: the change is the saved tensor minus the base's own."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions.adapters import modules, tensors
from weightsteer_jax.directions.adapters.tensors import Adapter
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.models import Dense, stored
from weightsteer_jax.models.stored import EMBEDDING, HEAD
from weightsteer_jax.runtime.errors import InputError


def saved(adapter: Adapter, base: Checkpoint) -> dict[str, Dense]:
  """{path: saved minus base} of the modules that were saved whole and changed.

  Raises:
    InputError: if the base does not have such a tensor, or the two ends of tied embeddings are
      changed differently.
  """
  whole = _tensors_of(adapter, tensors.WHOLE)
  if base.config.tied:
    whole = _untie(adapter, base, whole)
  return _changes(adapter, base, whole)


def base_layers(adapter: Adapter, base: Checkpoint) -> dict[str, Dense]:
  """{path: saved minus base} of the base's own tensors that lie below a LoRA and changed."""
  whole = _tensors_of(adapter, tensors.BASE_LAYER)
  if base.config.tied:
    whole = _untie(adapter, base, whole)
  return _changes(adapter, base, whole)


def _tensors_of(adapter: Adapter, kind: str) -> dict[str, np.ndarray]:
  """{Hugging Face tensor name: tensor} of a kind."""
  by_name = {}
  for module, parts in adapter.tensors[kind].items():
    for part, tensor in parts.items():
      by_name[f'{module}.{part}'] = tensor
  return by_name


def _changes(
  adapter: Adapter, base: Checkpoint, whole: Mapping[str, np.ndarray]
) -> dict[str, Dense]:
  owners = modules.tensor_owners(base)
  changes: dict[str, np.ndarray] = {}
  for name, tensor in whole.items():
    if name not in owners:
      raise modules.unknown(adapter, base, [name])
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


def _untie(
  adapter: Adapter, base: Checkpoint, whole: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """The saved modules for a tied base, as changes of the embedding alone.

  Raises:
    InputError: if the two ends were changed differently, which a tied model cannot hold.
  """
  rest = dict(whole)
  head = rest.pop(HEAD, None)
  embedding = rest.get(EMBEDDING)
  if head is None and embedding is None:
    return rest
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
  return rest | {EMBEDDING: embedding}
