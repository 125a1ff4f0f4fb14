"""A check of a steered checkpoint of any size: rows of every tensor computed again.

The rows are read from the files and computed in float64. The check shares no code with the writer:
the module has a reader of its own, and works in our axes with numpy alone.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from weightsteer_jax.directions.streamed import on_disk
from weightsteer_jax.directions.streamed.computed import Computed
from weightsteer_jax.directions.streamed.on_disk import Part
from weightsteer_jax.exports.hf import Steered
from weightsteer_jax.models import LowRank, stored
from weightsteer_jax.runtime import json_text
from weightsteer_jax.runtime.errors import OutputError

DTYPES = {'BF16': ml_dtypes.bfloat16, 'F16': np.float16, 'F32': np.float32, 'F64': np.float64}
# Rows checked of every part of a tensor: a wrong layout, layer or file shows in any row.
ROWS = 4
# Half a step of each dtype, as a share of the number: 8 and 24 bits of precision.
HALF_STEP = {'bfloat16': 2.0**-8, 'float32': 2.0**-24}
# What a float32 sum and product may lose, as a share of the numbers added.
ARITHMETIC = 2.0**-21
# What a float32 sum of R products may lose is at most R times this share of the products, all taken
# positive: they may be far larger than what they add up to, as where the two sides of a direction
# nearly cancel. Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition,
# section 3.1.
PRODUCT = 2.0**-24
# Numbers below have fewer bits.
SUBNORMAL = 1e-37


@dataclasses.dataclass(frozen=True)
class Rechecked:
  """The extent and the result of a check.

  Attributes:
    rows: number of rows.
    weights: number of weights in the rows.
    largest_error: the largest error, as a share of the error allowed: 1 at most.
  """

  rows: int
  weights: int
  largest_error: float


def recheck(folder: pathlib.Path, steered: Steered) -> Rechecked:
  """The agreement of the checkpoint in a folder with `base + alpha * change`.

  Raises:
    InputError: if the architecture has other tensors.
    OutputError: if a weight is further off than one rounding allows.
  """
  # Files of an earlier export may have had the same names.
  _header.cache_clear()
  with stored.open_tensors(folder) as tensors:
    stored.check(steered.config, steered.family, tensors, folder=folder)
  written = _files_by_tensor(folder)
  base = _files_by_tensor(steered.base.folder)
  random = np.random.default_rng(0)
  rows = 0
  weights = 0
  largest = 0.0
  parts_by_tensor = on_disk.parts_of(steered.config, steered.family)
  for parts in parts_by_tensor.values():
    for part in parts:
      span = stored.stored_rows(part.row, steered.config)
      count = span.stop - span.start
      chosen_rows = random.choice(count, min(ROWS, count), replace=False)
      for row in chosen_rows:
        error, size = _error(steered, part, written, base, first=span.start, row=int(row))
        rows += 1
        weights += size
        largest = max(largest, error)
  return Rechecked(rows, weights, largest)


def _files_by_tensor(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  file_of: dict[str, pathlib.Path] = {}
  for path in stored.weight_files(folder):
    file_of |= dict.fromkeys(_header(path), path)
  return file_of


def _error(
  steered: Steered,
  part: Part,
  written: Mapping[str, pathlib.Path],
  base: Mapping[str, pathlib.Path],
  first: int,
  row: int,
) -> tuple[float, int]:
  """A row's largest error as a share of the error allowed, and the row's length.

  Args:
    first: the row of the tensor where the part begins.
    row: the row, counted from `first`.
  """
  actual = _row(written[part.name], part.name, first + row)
  before = np.zeros_like(actual)
  # A bias that was added has no tensor in the base.
  if part.name in base:
    before = _row(base[part.name], part.name, first + row)
  change, lost = _change(steered, part, first, row, len(actual))
  change = steered.alpha * change
  lost = abs(steered.alpha) * lost
  expected = before + change
  # What one rounding, the float32 sum and the float32 products may each have cost.
  rounding = HALF_STEP[steered.dtype] * np.abs(expected)
  addends = np.abs(before) + np.abs(change)
  arithmetic = ARITHMETIC * addends
  allowed = rounding + arithmetic + lost + SUBNORMAL
  errors = np.abs(actual - expected) / allowed
  error = float(errors.max())
  size = len(actual)
  # Written so that NaN, which compares false, is refused.
  if not error <= 1:
    raise OutputError(
      f"the export was not written: row {row} of '{part.name}' differs from the base plus "
      f'{steered.alpha:g} times the change by {error:.3g} times what one rounding allows. Nothing '
      'was left behind'
    )
  return error, size


def _change(
  steered: Steered, part: Part, first: int, row: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
  """A row of the change at alpha 1, and the largest possible loss by float32 arithmetic."""
  # Nothing changed, and nothing lost.
  unchanged = np.zeros(size)
  exact = np.zeros(size)
  leaf = steered.changes.get(part.path)
  if leaf is None:
    return unchanged, exact
  if isinstance(leaf, LowRank):
    # Rounded to float32 as the writer takes them, then exact.
    a = np.asarray(leaf.a, np.float32)[part.at]
    b = np.asarray(leaf.b, np.float32)[part.at]
    a = a.astype(np.float64)
    b = b.astype(np.float64)
    rank = a.shape[-1]
    # A row of the stored tensor is one output, over all inputs.
    a_IR = a.reshape(-1, rank)
    b_RO = b.reshape(rank, -1)
    b_R = leaf.scale * b_RO[:, row]
    # Every product taken positive, see PRODUCT.
    absolute_I = np.abs(a_IR) @ np.abs(b_R)
    lost = rank * PRODUCT * absolute_I
    return a_IR @ b_R, lost
  if not isinstance(leaf.value, on_disk.OnDisk):
    ours = np.asarray(leaf.value)[part.at]
    layer = stored.to_theirs(ours, part.row.pattern, steered.config)
    values_of_row = layer[row].astype(np.float64)
    return values_of_row.reshape(-1), exact
  # On the disk, a layer that the direction leaves alone has no values.
  values = leaf.value.values.get(part.at)
  if values is None:
    return unchanged, exact
  # A direction between two checkpoints: one minus the other, at the same row of the tensor.
  at = first + row
  plus = values.plus
  # A computed change lies in no file that other code could read: it is taken as it was computed.
  if isinstance(plus, Computed):
    width = math.prod(plus.shape[1:])
    computed_row = np.empty(width, np.float32)
    plus.read(at * width, computed_row)
    return computed_row.astype(np.float64), exact
  change = _row(plus.path, plus.name, at)
  minus = values.minus
  if minus is not None:
    change = change - _row(minus.path, minus.name, at)
  return change, exact


def _row(path: pathlib.Path, name: str, row: int) -> np.ndarray:
  """A row of a tensor in float64."""
  entry, data_start = _header(path)[name]
  # A vector has rows of one number.
  width = math.prod(entry['shape'][1:])
  numpy_type = DTYPES[entry['dtype']]
  dtype = np.dtype(numpy_type)
  # The first of the two offsets is where the tensor begins.
  tensor_start = data_start + entry['data_offsets'][0]
  row_bytes = width * dtype.itemsize
  row_start = tensor_start + row * row_bytes
  values = np.fromfile(path, dtype, width, offset=row_start)
  return values.astype(np.float64)


@functools.lru_cache(maxsize=64)
def _header(path: pathlib.Path) -> dict[str, tuple[Any, int]]:
  """{tensor: (entry of the header, offset of the data)}."""
  # Format of safetensors: eight bytes with the length of the header, the header as JSON, the data.
  with open(path, 'rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    entries = json_text.parse(file.read(length), unique=True)
  # The one entry that is no tensor.
  entries.pop('__metadata__', None)
  data_start = 8 + length
  return {name: (entry, data_start) for name, entry in entries.items()}
