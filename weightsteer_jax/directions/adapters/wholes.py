"""Tensors that an adapter saved whole: the change is the saved tensor minus the base's own."""

import functools

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions.adapters import modules, tensors
from weightsteer_jax.directions.adapters.tensors import Adapter
from weightsteer_jax.directions.streamed import computed, on_disk
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.models import Dense, stored
from weightsteer_jax.runtime.errors import InputError

# A base is trained in one of these, and what is saved beside the adapter is a copy in that dtype.
ROUNDED_DTYPES = (jnp.bfloat16, np.float16)


def saved(adapter: Adapter, base: Checkpoint) -> dict[str, Dense]:
  """{path: saved minus base} of the tensors that were saved whole and changed, except tables.

  Raises:
    InputError: if the base does not have such a tensor, or of another shape.
  """
  whole = {}
  for kind in (tensors.BASE_LAYER, tensors.WHOLE):
    for module, parts in adapter.tensors[kind].items():
      for part, tensor in parts.items():
        whole[f'{module}.{part}'] = tensor
  owners = modules.tensor_owners(base)
  changes: dict[str, np.ndarray] = {}
  for name, tensor in whole.items():
    if name not in owners and name in base.tensors.names():
      raise InputError(
        f"{adapter.folder}: '{name}' is an expert saved whole by itself (modules_to_save), which "
        "is not read: merge the adapter into its base with PEFT's merge_and_unload, save that, and "
        'pass it and the base as two checkpoints'
      )
    if name not in owners:
      raise modules.unknown(adapter, base, [name])
    first_path, _ = owners[name][0]
    expected = stored.stored_shape(base.rows[first_path], base.config)
    if tensor.shape != expected:
      raise InputError(
        f"{adapter.folder}: '{name}' was saved with shape {tensor.shape}, the base has {expected}"
      )
    # A fused tensor holds several parameters, each in rows of its own.
    for path, layer in owners[name]:
      row = base.rows[path]
      rows = stored.stored_rows(row, base.config)
      ours = stored.to_ours(tensor[rows], row.pattern, base.config)
      change = difference(ours, base.layer(path, layer))
      # PEFT also saves modules that were never trained; these are no part of the delta.
      if not change.any():
        continue
      # Layers that were not saved do not change.
      shape = models.sites(base.config)[path].shape
      whole_change = changes.setdefault(path, np.zeros(shape, np.float32))
      at = (layer,) if base.is_stacked(path) else ()
      whole_change[at] = change
  return {path: Dense(jnp.asarray(change)) for path, change in changes.items()}


def streamed(adapter: Adapter, base: Checkpoint) -> dict[str, Dense]:
  """The same of a full fine-tune's tensors, experts too, computed when read.

  Raises:
    InputError: if the base does not have such a tensor, or of another shape.
  """
  raw = base.raw()
  computes = {}
  for module, parts in adapter.tensors[tensors.WHOLE].items():
    for part, tensor in parts.items():
      name = f'{module}.{part}'
      if name not in raw:
        raise modules.unknown(adapter, base, [name])
      if tensor.shape != raw[name].shape:
        raise InputError(
          f"{adapter.folder}: '{name}' was saved with shape {tensor.shape}, the base has "
          f'{raw[name].shape}'
        )
      computes[name] = functools.partial(_minus, tensor, on_disk.Values(raw[name]))
  return computed.leaves(base.config, base.family, computes, adapter.file)


def _minus(saved: np.ndarray, own: on_disk.Values) -> np.ndarray:
  return saved - own.whole().reshape(saved.shape)


def difference(saved: np.ndarray, own: np.ndarray) -> np.ndarray:
  """saved - own, and zero where all that was saved is the base's own in a narrower dtype.

  PEFT saves embeddings and biases beside an adapter that never trained them, as they were in
  memory.
  """
  for dtype in ROUNDED_DTYPES:
    if np.array_equal(saved, own.astype(dtype).astype(np.float32)):
      return np.zeros_like(own)
  return saved - own
