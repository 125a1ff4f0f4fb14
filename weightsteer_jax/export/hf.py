"""A steered Hugging Face checkpoint, written block by block beside its base: neither model is ever
in memory.

Every weight is read, changed in float32, rounded once, written, and read back; the files are those
of the base, with the same tensors in them. On the way come the digest of the base, the fingerprints
of the direction, what rounding lost, the SHA-256 of each file, and whether all is finite.
"""

import dataclasses
import functools
import math
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any

import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions import peft_adapter
from weightsteer_jax.directions.streamed import blocks, on_disk
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.directions.streamed.on_disk import Part, Values
from weightsteer_jax.export import merging
from weightsteer_jax.models import Dense, LowRank, ModelConfig, stored
from weightsteer_jax.models.families import Family
from weightsteer_jax.runtime.errors import NotFiniteError
from weightsteer_jax.storage import files
from weightsteer_jax.storage import safetensors as raws

FILES_AT_ONCE = 4
CORES_PER_FILE = 4
INDEX = 'model.safetensors.index.json'


@dataclasses.dataclass(frozen=True)
class Steered:
  """What is to be written.

  Attributes:
    base: from whose files. config, family: what it is written as, with biases that it did not have.
    changes: by path. alpha, dtype: see export.Request, '' resolved. digest: whether the base's is
      wanted.
  """

  base: Checkpoint
  config: ModelConfig
  family: Family
  changes: Mapping[str, LowRank | Dense]
  alpha: float
  dtype: str
  digest: bool


@dataclasses.dataclass(frozen=True)
class Block:
  """A block of the output, of `count` elements, and what was found on the way (see blocks)."""

  part: Part
  count: int
  out: np.ndarray
  lost: float = 0.0
  change: float = 0.0
  base_words: int = 0
  change_words: int = 0


class Sums:
  """What the blocks add up to, by path or tensor."""

  def __init__(self):
    self._lock = threading.Lock()
    self.lost: dict[str, list[float]] = {}
    self.change: dict[str, list[float]] = {}
    self.base_words: dict[str, int] = {}
    self.change_words: dict[str, int] = {}

  def add(self, block: Block) -> None:
    """Adds a block's."""
    path, name = block.part.path, block.part.name
    with self._lock:
      self.lost.setdefault(path, []).append(block.lost)
      self.change.setdefault(path, []).append(block.change)
      self.base_words[path] = self.base_words.get(path, 0) + block.base_words
      self.change_words[name] = self.change_words.get(name, 0) + block.change_words

  def facts(self, steered: Steered) -> dict[str, Any]:
    """As `merging.merge` tells them, and the norm of the change at alpha 1."""
    square = steered.alpha**2
    pairs = {
      path: (math.fsum(self.lost[path]), square * math.fsum(self.change[path]))
      for path in steered.changes
    }
    errors = {path: merging.relative([pair]) for path, pair in pairs.items()}
    return {
      'dtype': steered.dtype,
      'realised_error': merging.relative(list(pairs.values())),
      'realised_errors': errors,
      'norm': math.sqrt(
        math.fsum(value for path in steered.changes for value in self.change[path])
      ),
    }


def write(
  folder: pathlib.Path, steered: Steered, *, sync: bool = True
) -> tuple[dict[str, Any], dict[str, str], str]:
  """Writes the weights of the steered checkpoint; (facts, {file: SHA-256}, digest of the base or
  '').

  Raises:
    NotFiniteError: a weight of the base, of the change or of their sum is NaN or infinite.
      CorruptError: a file that is cut short, or a direction that does not match its fingerprints.
      OutputError: what is read back is not what was written.
  """
  parts = on_disk.parts_of(steered.config, steered.family)
  plan = _files(steered.base, parts)
  sums, cores = Sums(), os.cpu_count() or 1
  at_once = max(1, min(len(plan), cores // CORES_PER_FILE, FILES_AT_ONCE))
  with futures.ThreadPoolExecutor(at_once) as pool:

    def write_one(item):
      return _write_file(
        folder / item[0],
        item[1],
        steered,
        parts,
        sums,
        sync=sync,
        threads=max(2, blocks.workers() // at_once),
      )

    hashes = dict(zip(plan, pool.map(write_one, plan.items())))
  if list(plan) != ['model.safetensors']:
    _write_index(folder, plan, parts, steered)
  for name, values in on_disk.tensors_of(steered.changes).items():
    values.check(sums.change_words[name])
  return sums.facts(steered), hashes, _digest(steered, sums) if steered.digest else ''


def _files(base: Checkpoint, parts: Mapping[str, list[Part]]) -> dict[str, list[str]]:
  """{file: its tensors}, as the base has them; what it does not have goes into the last."""
  paths = stored.weight_files(base.folder)
  plan = {path.name: [name for name in raws.tensors_of(path) if name in parts] for path in paths}
  plan = {file: names for file, names in plan.items() if names}
  there = {name for names in plan.values() for name in names}
  plan[list(plan)[-1]] += [name for name in parts if name not in there]
  return plan


def _write_index(
  folder: pathlib.Path,
  plan: Mapping[str, list[str]],
  parts: Mapping[str, list[Part]],
  steered: Steered,
) -> None:
  width = np.dtype(raws.STORED_AS[raws.DTYPES[steered.dtype]]).itemsize
  total = width * sum(held[-1].stop for held in parts.values())
  files.write_json(
    folder / INDEX,
    {
      'metadata': {'total_size': total},
      'weight_map': {name: file for file, names in plan.items() for name in names},
    },
  )


def _write_file(
  path: pathlib.Path,
  names: list[str],
  steered: Steered,
  parts: Mapping[str, list[Part]],
  sums: Sums,
  *,
  sync: bool,
  threads: int,
) -> str:
  """The SHA-256 of the file."""
  dtype = raws.DTYPES[steered.dtype]
  tensors = {
    name: (dtype, stored.stored_shape(parts[name][0].row, steered.config)) for name in names
  }
  with raws.Writer(path, tensors, {'format': 'pt'}, sync=sync) as file:
    for block in blocks.in_order(_tasks(names, steered, parts), threads=threads):
      sums.add(block)
      file.write(block.out.reshape(-1)[: block.count])
  return file.sha256


def _tasks(
  names: list[str], steered: Steered, parts: Mapping[str, list[Part]]
) -> Iterator[Callable[[], Block]]:
  raw = steered.base.raw()
  for name in names:
    for part in parts[name]:
      columns = int(np.prod(stored.stored_shape(part.row, steered.config)[1:]))
      change = _change(part, steered.changes.get(part.path), steered.config)
      index = (
        our_indices(part, steered.config)
        if steered.digest and part.path in steered.base.rows
        else None
      )
      for start, stop in blocks.ranges(part.start, part.stop, blocks.SIZE // columns * columns):
        yield functools.partial(_block, steered, part, raw.get(name), change, index, start, stop)


def _block(
  steered: Steered, part: Part, raw: raws.Raw | None, change: Any, index: Any, start: int, stop: int
) -> Block:
  base, words = blocks.read(raw, start, stop, 'base'), 0
  if index is not None:
    words = _base_words(base, index, start - part.start, stop - part.start)
  if change is None:
    out = blocks.cast(base, steered.dtype)
    block = Block(part, stop - start, out.copy() if out is base else out, base_words=words)
  else:
    block = _steered_block(steered, part, base, change, words, start, stop)
  if not np.isfinite(block.lost + block.change) or change is None:
    if not blocks.finite(block.out):
      raise _not_finite(steered, part, raw, change)
  return block


def _steered_block(
  steered: Steered, part: Part, base: np.ndarray, change: Any, words: int, start: int, stop: int
) -> Block:
  minus, seen = None, 0
  if isinstance(change, Values):
    plus = blocks.read(change.plus, start, stop, 'plus')
    minus = None if change.minus is None else blocks.read(change.minus, start, stop, 'minus')
    seen = blocks.words_from(plus, start) if change.fingerprint else 0
  else:
    plus = blocks.put(change(start - part.start, stop - part.start), 'plus')
  out, lost, added = blocks.steer(base, plus, minus, steered.alpha, steered.dtype)
  return Block(part, stop - start, out, blocks.squares(lost), blocks.squares(added), words, seen)


def _not_finite(steered: Steered, part: Part, raw: raws.Raw | None, change: Any) -> NotFiniteError:
  """The error that says where it comes from."""
  if raw is not None and not all(
    blocks.finite(blocks.read(raw, *one, 'base')) for one in blocks.ranges(0, raw.size)
  ):
    return NotFiniteError(
      f"{steered.base.folder}: '{part.name}' ({part.path}) holds NaN or infinite values"
    )
  if isinstance(change, Values) and not change.finite():
    return change.not_finite()
  return NotFiniteError(
    f"steered at alpha {steered.alpha:g}, '{part.name}' holds NaN or infinite values in "
    f'{steered.dtype}'
  )


def _change(
  part: Part, leaf: LowRank | Dense | None, config: ModelConfig
) -> Values | Callable[[int, int], np.ndarray] | None:
  """The change of a part: on the disk, or a function from a range of whole rows of it to the
  values; None without.
  """
  if leaf is None:
    return None
  if on_disk.is_on_disk(leaf):
    return leaf.value.values.get(part.at)
  if isinstance(leaf, Dense):
    flat = stored.to_theirs(
      np.asarray(leaf.value, np.float32)[part.at], part.row.pattern, config
    ).reshape(-1)
    return lambda start, stop: flat[start:stop]
  a_pattern, b_pattern = peft_adapter.factor_patterns(part.row.pattern)
  a_RI = stored.to_theirs(np.asarray(leaf.a, np.float32)[part.at], a_pattern, config)
  b_OR = stored.to_theirs(
    np.float32(leaf.scale) * np.asarray(leaf.b, np.float32)[part.at], b_pattern, config
  )
  width = a_RI.shape[1]
  return lambda start, stop: b_OR[start // width : stop // width] @ a_RI


def our_indices(part: Part, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
  """(of its rows, of its columns): what adds up to the number that an element has in our array,
  modulo 2^32.
  """
  shape, sizes = models.sites(config)[part.path].shape, config.sizes()
  strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
  theirs, ours = part.row.pattern.split(' -> ')
  stride = dict(zip(ours.split(), strides[len(part.at) :]))
  groups = []
  for group in stored.groups(theirs):
    index = np.zeros(1, np.int64)
    for axis in group.strip('()').split():
      index = (index[:, None] + stride[axis] * np.arange(sizes[axis])).reshape(-1)
    groups.append(index)
  rows, columns = groups[0], np.zeros(1, np.int64)
  for index in groups[1:]:
    columns = (columns[:, None] + index).reshape(-1)
  rows = rows + sum(i * step for i, step in zip(part.at, strides))
  return (rows % 2**32).astype(np.uint32), (columns % 2**32).astype(np.uint32)


def _base_words(
  base: np.ndarray, index: tuple[np.ndarray, np.ndarray], start: int, stop: int
) -> int:
  """The part of `bases.digest`'s fingerprint of whole rows, rounded to bfloat16."""
  rows, columns = index
  held = blocks.SIZE // len(columns)
  padded = np.zeros(held, np.uint32)
  wanted = rows[start // len(columns) : stop // len(columns)]
  padded[: len(wanted)] = wanted
  rounded = (
    blocks.cast(base, 'bfloat16').reshape(-1)[: held * len(columns)].reshape(held, len(columns))
  )
  return blocks.words(rounded, padded, columns)


def _digest(steered: Steered, sums: Sums) -> str:
  shapes = {path: models.sites(steered.base.config)[path].shape for path in steered.base.rows}
  return bases.digest_prints(
    {
      path: (shape, blocks.fingerprint(sums.base_words[path], shape, 'bfloat16'))
      for path, shape in shapes.items()
    }
  )
