"""The check of a steered checkpoint of any size: rows of every tensor computed again, in float64,
from the files.

It shares no code with what wrote them: another reader of the files, our own axes, numpy.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from weightsteer_jax.directions.streamed import on_disk
from weightsteer_jax.directions.streamed.on_disk import Part
from weightsteer_jax.export.hf import Steered
from weightsteer_jax.models import Dense, LowRank, stored
from weightsteer_jax.runtime.errors import OutputError

DTYPES = {'BF16': ml_dtypes.bfloat16, 'F16': np.float16, 'F32': np.float32, 'F64': np.float64}
ROWS = 4  # of every tensor
# Half a step of each dtype, as a share of the number: 8 and 24 bits of precision.
HALF_STEP = {'bfloat16': 2.0**-8, 'float32': 2.0**-24}
ARITHMETIC = 2.0**-21  # What a float32 sum and product may lose, as a share of the numbers added.
# What a float32 sum of R products may lose is at most R times this share of the products, all taken
# positive: they may be far larger than what they add up to, as where the two sides of a contrast
# nearly cancel. Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition,
# section 3.1.
PRODUCT = 2.0**-24
SUBNORMAL = 1e-37  # Below, numbers have fewer bits.


@dataclasses.dataclass(frozen=True)
class Rechecked:
  """What was computed again: rows and weights, and the largest error as a share of what is allowed
  (1 at most).
  """

  rows: int
  weights: int
  largest_error: float


def recheck(folder: pathlib.Path, steered: Steered) -> Rechecked:
  """How near the checkpoint in a folder comes to `base + alpha * change`.

  Raises:
    InputError: it has other tensors than its architecture. OutputError: a weight is further off
      than one rounding allows.
  """
  _header.cache_clear()  # Files of another time may have had the same names.
  random, rows, weights, largest = np.random.default_rng(0), 0, 0, 0.0
  with stored.open_tensors(folder) as tensors:
    stored.check(steered.config, steered.family, tensors, folder=folder)
  written, base = (
    {name: path for path in stored.weight_files(place) for name in _header(path)}
    for place in (folder, steered.base.folder)
  )
  for part in (
    part for parts in on_disk.parts_of(steered.config, steered.family).values() for part in parts
  ):
    first = stored.stored_rows(part.row, steered.config)
    count = first.stop - first.start
    for row in random.choice(count, min(ROWS, count), replace=False):
      error, size = _error(steered, part, written, base, first.start, int(row))
      rows, weights, largest = rows + 1, weights + size, max(largest, error)
  return Rechecked(rows, weights, largest)


def _error(
  steered: Steered,
  part: Part,
  written: Mapping[str, pathlib.Path],
  base: Mapping[str, pathlib.Path],
  first: int,
  row: int,
) -> tuple[float, int]:
  """The largest error in a row as a share of what is allowed, and the row's length."""
  got = _row(written[part.name], part.name, first + row)
  base = _row(base[part.name], part.name, first + row) if part.name in base else np.zeros_like(got)
  change, lost = _change(steered, part, first, row, len(got))
  change, lost = steered.alpha * change, abs(steered.alpha) * lost
  allowed = (
    HALF_STEP[steered.dtype] * np.abs(base + change)
    + ARITHMETIC * (np.abs(base) + np.abs(change))
    + lost
    + SUBNORMAL
  )
  error = float((np.abs(got - (base + change)) / allowed).max())
  if not error <= 1:  # Written so that NaN is refused.
    raise OutputError(
      f"the export was not written: row {row} of '{part.name}' differs from the base plus "
      f'{steered.alpha:g} times the change by {error:.3g} times what one rounding allows. Nothing '
      'was left behind'
    )
  return error, len(got)


def _change(
  steered: Steered, part: Part, first: int, row: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
  """A row of the change in float64, and what the sum that it is may have lost in float32."""
  leaf = steered.changes.get(part.path)
  if isinstance(leaf, LowRank):
    a, b = (
      np.asarray(factor, np.float32)[part.at].astype(np.float64) for factor in (leaf.a, leaf.b)
    )
    a_IR, b_R = a.reshape(-1, a.shape[-1]), leaf.scale * b.reshape(b.shape[0], -1)[:, row]
    return a_IR @ b_R, len(b_R) * PRODUCT * (np.abs(a_IR) @ np.abs(b_R))
  if isinstance(leaf, Dense) and not on_disk.is_on_disk(leaf):
    layer = stored.to_theirs(np.asarray(leaf.value)[part.at], part.row.pattern, steered.config)
    return layer[row].astype(np.float64).reshape(-1), np.zeros(size)
  values = leaf.value.values.get(part.at) if leaf is not None else None
  if values is None:
    return np.zeros(size), np.zeros(size)
  plus, *minus = [
    _row(raw.path, raw.name, first + row) for raw in (values.plus, values.minus) if raw is not None
  ]
  return plus - minus[0] if minus else plus, np.zeros(size)


def _row(path: pathlib.Path, name: str, row: int) -> np.ndarray:
  """A row of a tensor in float64."""
  entry, start = _header(path)[name]
  width = int(np.prod(entry['shape'][1:]))
  dtype = np.dtype(DTYPES[entry['dtype']])
  at = start + entry['data_offsets'][0] + row * width * dtype.itemsize
  return np.fromfile(path, dtype, width, offset=at).astype(np.float64)


@functools.lru_cache(maxsize=64)
def _header(path: pathlib.Path) -> dict[str, tuple[Any, int]]:
  """{tensor: (its entry in the header, where the data begins)}."""
  with open(path, 'rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    entries = json.loads(file.read(length))
  return {name: (entry, 8 + length) for name, entry in entries.items() if name != '__metadata__'}
