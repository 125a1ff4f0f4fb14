"""The check of a steered checkpoint of any size: rows of every tensor computed again, in float64, from the files.

It shares no code with what wrote them: safetensors' own reader, our own axes, numpy.
"""
import contextlib
import dataclasses
import pathlib
from typing import Any, Callable

import numpy as np
from safetensors import safe_open

from weightsteer_jax.directions import on_disk
from weightsteer_jax.directions.hf_export import Steered
from weightsteer_jax.directions.on_disk import Part
from weightsteer_jax.errors import OutputError
from weightsteer_jax.models import Dense, LowRank, stored

ROWS = 4  # of every tensor
# Half a step of each dtype, as a share of the number: 8 and 24 bits of precision.
HALF_STEP = {'bfloat16': 2.0**-8, 'float32': 2.0**-24}
ARITHMETIC = 2.0**-21  # What float32 sums and products may lose, as a share of the numbers added.
SUBNORMAL = 1e-37  # Below, numbers have fewer bits.


@dataclasses.dataclass(frozen=True)
class Rechecked:
  """What was computed again: rows and weights, and the largest error as a share of what is allowed (1 at most)."""
  rows: int
  weights: int
  largest_error: float


def recheck(folder: pathlib.Path, steered: Steered) -> Rechecked:
  """How near the checkpoint in a folder comes to `base + alpha * change`.

  Raises:
    InputError: it has other tensors than its architecture. OutputError: a weight is further off than one rounding allows.
  """
  random, rows, weights, largest = np.random.default_rng(0), 0, 0, 0.0
  with contextlib.ExitStack() as stack:
    written = stack.enter_context(stored.open_tensors(folder))
    stored.check(steered.config, steered.family, written, folder=folder)
    slices = _reader(stack)
    for name, parts in on_disk.parts_of(steered.config, steered.family).items():
      for part in parts:
        first = stored.stored_rows(part.row, steered.config)
        count = first.stop - first.start
        for row in random.choice(count, min(ROWS, count), replace=False):
          error, size = _error(steered, part, written, slices, first.start, int(row))
          rows, weights, largest = rows + 1, weights + size, max(largest, error)
  return Rechecked(rows, weights, largest)


def _error(steered: Steered, part: Part, written: stored.Tensors, slices: Callable[..., np.ndarray], first: int,
           row: int) -> tuple[float, int]:
  """The largest error in a row as a share of what is allowed, and the row's length."""
  at = (slice(first + row, first + row + 1),)
  got = np.asarray(written.read(part.name, at), np.float64).reshape(-1)
  base = np.zeros_like(got)
  if part.name in steered.base.tensors.names():
    base = np.asarray(steered.base.tensors.read(part.name, at), np.float64).reshape(-1)
  change = steered.alpha * _change(steered, part, slices, first, row, len(got))
  allowed = HALF_STEP[steered.dtype] * np.abs(base + change) + ARITHMETIC * (np.abs(base) + np.abs(change)) + SUBNORMAL
  error = float((np.abs(got - (base + change)) / allowed).max())
  if not error <= 1:  # Written so that NaN is refused.
    raise OutputError(f"the export was not written: row {row} of '{part.name}' differs from the base plus {steered.alpha:g} "
                      f'times the change by {error:.3g} times what one rounding allows. Nothing was left behind')
  return error, len(got)


def _change(steered: Steered, part: Part, slices: Callable[..., np.ndarray], first: int, row: int, size: int) -> np.ndarray:
  """A row of the change in float64."""
  leaf = steered.changes.get(part.path)
  if isinstance(leaf, LowRank):
    a, b = (np.asarray(factor, np.float32)[part.at].astype(np.float64) for factor in (leaf.a, leaf.b))
    return a.reshape(-1, a.shape[-1]) @ (leaf.scale * b.reshape(b.shape[0], -1)[:, row])
  if isinstance(leaf, Dense) and not on_disk.is_on_disk(leaf):
    layer = stored.to_theirs(np.asarray(leaf.value)[part.at], part.row.pattern, steered.config)
    return layer[row].astype(np.float64).reshape(-1)
  values = leaf.value.values.get(part.at) if leaf is not None else None
  if values is None:
    return np.zeros(size)
  plus = slices(values.plus, first + row)
  return plus if values.minus is None else plus - slices(values.minus, first + row)


def _reader(stack: contextlib.ExitStack) -> Callable[..., np.ndarray]:
  """What reads a row of a tensor as safetensors does."""
  opened: dict[pathlib.Path, Any] = {}

  def read(raw, row):
    if raw.path not in opened:
      opened[raw.path] = stack.enter_context(safe_open(raw.path, framework='numpy'))
    return np.asarray(opened[raw.path].get_slice(raw.name)[row:row + 1], np.float64).reshape(-1)

  return read
