"""The part of a base that an adapter started from (see starts.py), and where two share it."""

import dataclasses
from typing import Any

import numpy as np
import scipy.linalg

from weightsteer_jax.directions.adapters import config as configs
from weightsteer_jax.directions.adapters import tensors
from weightsteer_jax.directions.adapters.starts import CONVERT, CORDA, OLORA, PISSA, start_of
from weightsteer_jax.directions.adapters.tensors import Adapter
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.models import stored
from weightsteer_jax.runtime.errors import InputError


def shared(x: Adapter, y: Adapter) -> frozenset[str]:
  """The modules that started alike in both adapters, so that the start cancels out.

  Raises:
    InputError: if that cannot be known: CorDA's samples are named only where they were cached.
  """
  start = start_of(x.config)
  if not start or start != start_of(y.config):
    return frozenset()
  if start == CORDA:
    settings_x, settings_y = (adapter.config.get('corda_config') or {} for adapter in (x, y))
    named = settings_x.get('cache_file') or settings_x.get('covariance_file')
    if not named or settings_x != settings_y:
      raise InputError(
        f'{x.folder} and {y.folder} are CorDA adapters (init_lora_weights), and nothing says that '
        'they started from the same sample inputs: their configs do not name one cache_file or '
        f'covariance_file in corda_config. {CONVERT}'
      )
  keys_x = _keys(x, start)
  keys_y = _keys(y, start)
  return frozenset(module for module, key in keys_x.items() if keys_y.get(module) == key)


def of_base(adapter: Adapter, base: Checkpoint, without: frozenset[str] = frozenset()) -> Adapter:
  """The pairs that the adapter started from, s B0 A0, computed in float64 from the base.

  Args:
    without: modules to leave out.

  Raises:
    InputError: if the start is CorDA's, whose samples are not in the files.
  """
  start = start_of(adapter.config)
  wanted = [module for module in _started(adapter) if module not in without]
  if start == CORDA and wanted:
    raise InputError(
      f"{adapter.folder}: init_lora_weights is 'corda'; its start comes from sample inputs, which "
      f"are not in the file, so '{wanted[0]}' is no change of the base by itself: pass two CorDA "
      f'adapters of the same modules and ranks that started from one cache_file. {CONVERT}'
    )
  if adapter.tensors[tensors.EXPERT_PAIR]:
    raise InputError(
      f"{adapter.folder}: init_lora_weights is '{start}', and experts are targets, for which "
      f'PEFT has no such start. {CONVERT}'
    )
  pairs: dict[str, dict[str, Any]] = {tensors.PAIR: {}, tensors.HEAD_PAIR: {}}
  for module in wanted:
    name = f'{module}.weight'
    if name == stored.HEAD and base.config.tied:
      raise InputError(
        f"{adapter.folder}: init_lora_weights is '{start}', and '{module}' is a target, "
        f"which the base '{base.source}' ties to its embedding: PEFT moved both. {CONVERT}"
      )
    if name not in base.tensors.names():
      # The pair itself is refused, with the modules that there are.
      continue
    rank, scale = configs.scaling(adapter.config, module)
    weight_OI = base.tensors.read(name).astype(np.float64)
    make = _largest if start == PISSA else _first_columns
    b_OR, a_RI = make(weight_OI, rank)
    # The adapter's own scale is applied to these pairs too, and PiSSA divides by it before.
    if start == PISSA:
      b_OR = b_OR / scale
    kind = tensors.HEAD_PAIR if name == stored.HEAD else tensors.PAIR
    pairs[kind][module] = {'A': a_RI.astype(np.float32), 'B': b_OR.astype(np.float32)}
  kinds: dict[str, Any] = {kind: {} for kind in adapter.tensors}
  return dataclasses.replace(adapter, tensors=kinds | pairs)


def _started(adapter: Adapter) -> list[str]:
  """The linear modules whose rest of the base is not in the file."""
  modules = list(adapter.tensors[tensors.PAIR])
  # PEFT saves the rest of a head beside its pair.
  modules += [
    name
    for name in adapter.tensors[tensors.HEAD_PAIR]
    if name not in adapter.tensors[tensors.TABLE]
  ]
  return modules


def _keys(adapter: Adapter, start: str) -> dict[str, Any]:
  """{module: what the start depends on beside the base} of the linear layers.

  PEFT starts embeddings from zero in any case.
  """
  keys = {}
  for module in _started(adapter):
    rank, scale = configs.scaling(adapter.config, module)
    # The scale cancels out of PiSSA's and CorDA's starts.
    keys[module] = (rank, scale) if start == OLORA else (rank,)
  return keys


def _largest(weight_OI: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
  """B [O, R] and A [R, I] whose product is the part with the largest singular values.

  >>> b, a = _largest(np.diag([3.0, 2.0, 1.0]), 2)
  >>> np.round(b @ a, 9).tolist()
  [[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
  """
  outputs, inputs = weight_OI.shape
  # Through the smaller Gram matrix, in float64: its top eigenvectors are exact far below float32,
  # and take a fraction of the time of all singular vectors.
  if inputs <= outputs:
    gram = weight_OI.T @ weight_OI
    vectors_IR = _top_vectors(gram, rank)
    return weight_OI @ vectors_IR, vectors_IR.T
  gram = weight_OI @ weight_OI.T
  vectors_OR = _top_vectors(gram, rank)
  return vectors_OR, vectors_OR.T @ weight_OI


def _top_vectors(gram: np.ndarray, rank: int) -> np.ndarray:
  size = len(gram)
  first = max(0, size - rank)
  _, vectors = scipy.linalg.eigh(gram, subset_by_index=(first, size - 1))
  return vectors


def _first_columns(weight_OI: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
  """B [O, R] and A [R, I], the first columns of Q and rows of R in a QR decomposition."""
  q_OR, _ = np.linalg.qr(weight_OI[:, :rank])
  return q_OR, q_OR.T @ weight_OI
