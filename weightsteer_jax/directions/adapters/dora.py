"""DoRA: a LoRA pair and a magnitude for each output, as a dense change of the base's kernels.

  W' = m / |W + s B A| * (W + s B A)      |.| of each output over the inputs; of each column of an
                                          embedding over the tokens in PEFT, of each row in mlx-lm

The change W' - W has full rank, because it scales W itself. It is computed in float64 from the base
as stored, and rounded once to float32.

Source: arXiv 2402.09353, equation 5; peft 0.21.2, peft/tuners/lora/{dora,variants}.py; mlx-lm
0.32.2, mlx_lm/tuner/dora.py.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from weightsteer_jax.directions.adapters import low_rank, modules, tensors
from weightsteer_jax.directions.adapters.tensors import Adapter
from weightsteer_jax.directions.streamed import blocks, computed, on_disk
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.models import Dense, stored
from weightsteer_jax.runtime.errors import InputError

# Rows of a weight that are in float64 at a time.
ROWS = 1024
PAIRS = (tensors.PAIR, tensors.EXPERT_PAIR, tensors.HEAD_PAIR, tensors.EMBEDDING_PAIR)


def split(adapter: Adapter) -> tuple[Adapter, Adapter]:
  """The adapter's modules without a magnitude, and those with one."""
  scaled = set(adapter.tensors[tensors.MAGNITUDE])
  plain: dict[str, Any] = {**adapter.tensors, tensors.MAGNITUDE: {}}
  dora: dict[str, Any] = {kind: {} for kind in adapter.tensors}
  dora[tensors.MAGNITUDE] = adapter.tensors[tensors.MAGNITUDE]
  for kind in PAIRS:
    by_module = adapter.tensors[kind]
    plain[kind] = {module: parts for module, parts in by_module.items() if module not in scaled}
    dora[kind] = {module: parts for module, parts in by_module.items() if module in scaled}
  return dataclasses.replace(adapter, tensors=plain), dataclasses.replace(adapter, tensors=dora)


def changes(adapter: Adapter, base: Checkpoint) -> dict[str, Dense]:
  """{path: change} of the modules with magnitudes, computed when read (see streamed/computed.py).

  Raises:
    InputError: if a module is not in the base, has no pair, is tied to another, or a shape is not
      that of the base.
  """
  computes = {}
  raw = base.raw()
  for module, parts in adapter.tensors[tensors.MAGNITUDE].items():
    name = f'{module}.weight'
    if name in (stored.EMBEDDING, stored.HEAD) and base.config.tied:
      raise InputError(
        f"{adapter.folder}: '{module}' has a DoRA, and the base '{base.source}' ties its head to "
        'its embedding; PEFT changes the one and not the other, which a tied model cannot hold. '
        'Give the base separate matrices (tie_word_embeddings false, and lm_head.weight saved as a '
        'copy of the embedding) and pass that as the base'
      )
    if name not in raw:
      raise modules.unknown(adapter, base, [module])
    computes[name] = _change_of(adapter, base, module, next(iter(parts.values())))
  return computed.leaves(base.config, base.family, computes, adapter.file)


def _change_of(
  adapter: Adapter, base: Checkpoint, module: str, magnitude: np.ndarray
) -> Callable[[], np.ndarray]:
  """Computes the change of a module; its tensors are checked now."""
  kinds = [kind for kind in PAIRS if module in adapter.tensors[kind]]
  if not kinds:
    raise InputError(
      f"{adapter.folder}: '{module}' has a magnitude vector of DoRA without its pair, lora_A and "
      'lora_B'
    )
  (kind,) = kinds
  a = adapter.tensors[kind][module]['A']
  b = adapter.tensors[kind][module]['B']
  scale = low_rank.checked_scale(adapter, module, a, b)
  # The factors of an embedding lie the other way around than its rows.
  up, down = (a.T, b.T) if kind == tensors.EMBEDDING_PAIR else (b, a)
  # PEFT norms the columns of an embedding, mlx-lm its rows.
  by_column = kind == tensors.EMBEDDING_PAIR and 'mlx' not in adapter.config
  axis = 0 if by_column else 1
  shape = base.tensors.shape(f'{module}.weight')
  # One number for each row, or each column, in any shape with axes of length 1.
  if (up.shape[0], down.shape[1]) != shape or magnitude.size != shape[1 - axis]:
    raise InputError(
      f"{adapter.folder}: '{module}' has a DoRA of {(up.shape[0], down.shape[1])} with "
      f"{magnitude.size} magnitudes; the base's weight is {shape}: the adapter is for another "
      'architecture'
    )
  weight = on_disk.Values(base.raw()[f'{module}.weight'])
  factors = up.astype(np.float64) * float(scale), down
  return functools.partial(_change, weight, shape, factors, magnitude.reshape(-1), axis)


def _change(
  weight: on_disk.Values,
  shape: tuple[int, ...],
  factors: tuple[np.ndarray, np.ndarray],
  magnitude: np.ndarray,
  axis: int,
) -> np.ndarray:
  """The change of a weight of the shape, float32.

  Args:
    factors: of s B A, [rows, R] and [R, columns].
    axis: the axis that the norms run over.
  """
  before = weight.whole().reshape(shape)
  up, down = (factor.astype(np.float64) for factor in factors)
  ranges = list(blocks.ranges(0, shape[0], ROWS))
  # Norms of columns need all rows, those of rows only their own.
  squares = np.zeros(shape[1]) if axis == 0 else np.zeros(shape[0])
  for start, stop in ranges:
    sums = before[start:stop] + up[start:stop] @ down
    if axis == 0:
      squares += np.square(sums).sum(axis=0)
    else:
      squares[start:stop] = np.square(sums).sum(axis=1)
  ratio = magnitude.astype(np.float64) / np.sqrt(squares)
  out = np.empty(shape, np.float32)
  for start, stop in ranges:
    rows = before[start:stop].astype(np.float64)
    sums = rows + up[start:stop] @ down
    factor = ratio if axis == 0 else ratio[start:stop, None]
    out[start:stop] = factor * sums - rows
  return out
