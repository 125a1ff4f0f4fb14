"""A steered Hugging Face checkpoint, written block by block from the files of its base.

Neither the base nor the steered model is ever whole in memory. Every weight is read, changed in
float32, rounded once, written, and read back. The files are named as the base's, and hold the same
tensors. The same pass yields the digest of the base, the fingerprints of the direction, the loss by
rounding and the SHA-256 of each file, and refuses NaN and infinite values.
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
from weightsteer_jax.directions import adapters
from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions.streamed import blocks, on_disk
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.directions.streamed.on_disk import Part, Values
from weightsteer_jax.exports import merging
from weightsteer_jax.models import Dense, LowRank, ModelConfig, stored
from weightsteer_jax.models.families import Family
from weightsteer_jax.runtime.errors import NotFiniteError
from weightsteer_jax.storage import files
from weightsteer_jax.storage import safetensors as raws

# A file is written in order and hashed on the way, so more cores are only of use to more files.
FILES_AT_ONCE = 4
CORES_PER_FILE = 4
SINGLE_FILE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'

# The change of a part: a tensor on the disk, or a function from a range of its elements (whole
# rows) to their values.
Change = Values | Callable[[int, int], np.ndarray]
# For the rows and for the columns of a part: uint32 numbers whose sum is an element's position in
# our array.
Indices = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Steered:
  """A steered checkpoint, before it is written.

  Attributes:
    base: the checkpoint whose files are read.
    config: the architecture to write, which may have more biases than the base.
    family: the family to write.
    changes: {path: change}.
    alpha: the steering strength.
    dtype: 'float32' or 'bfloat16', of every tensor.
    digest: whether the digest of the base is wanted.
  """

  base: Checkpoint
  config: ModelConfig
  family: Family
  changes: Mapping[str, LowRank | Dense]
  alpha: float
  dtype: str
  digest: bool


@dataclasses.dataclass(frozen=True)
class SteeredBlock:
  """A block of the output.

  Attributes:
    part: the part that holds the block.
    count: number of elements; the rest of `out` is padding.
    out: the steered values, in the dtype to write (bfloat16 as bits).
    lost: squared norm of the loss of `alpha * change` by rounding.
    change: squared norm of the change.
    base_words: the block's share of the base's fingerprint.
    change_words: the block's share of the fingerprint of a change on the disk.
  """

  part: Part
  count: int
  out: np.ndarray
  lost: float = 0.0
  change: float = 0.0
  base_words: int = 0
  change_words: int = 0


class Sums:
  """Sums over the blocks of all files.

  Attributes:
    lost: {path: squared norms of the blocks' losses}.
    change: {path: squared norms of the blocks' changes}.
    base_words: {path: sum of the blocks' words}.
    change_words: {tensor: sum of the blocks' words}.
  """

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self.lost: dict[str, list[float]] = {}
    self.change: dict[str, list[float]] = {}
    self.base_words: dict[str, int] = {}
    self.change_words: dict[str, int] = {}

  def add(self, block: SteeredBlock) -> None:
    """Adds the numbers of a block."""
    path = block.part.path
    name = block.part.name
    # Files are written on threads of their own.
    with self._lock:
      self.lost.setdefault(path, []).append(block.lost)
      self.change.setdefault(path, []).append(block.change)
      base_words = self.base_words.get(path, 0)
      change_words = self.change_words.get(name, 0)
      self.base_words[path] = base_words + block.base_words
      self.change_words[name] = change_words + block.change_words

  def facts(self, steered: Steered) -> dict[str, Any]:
    """The facts of `merging.merge`, and the norm of the change at alpha 1."""
    pairs = []
    errors = {}
    squares: list[float] = []
    for path in steered.changes:
      # fsum, because the order of blocks depends on the threads.
      lost = math.fsum(self.lost[path])
      change = steered.alpha**2 * math.fsum(self.change[path])
      pairs.append((lost, change))
      errors[path] = merging.relative([(lost, change)])
      squares += self.change[path]
    return {
      'dtype': steered.dtype,
      'realised_error': merging.relative(pairs),
      'realised_errors': errors,
      'norm': math.sqrt(math.fsum(squares)),
    }


def write(
  folder: pathlib.Path, steered: Steered, *, sync: bool = True
) -> tuple[dict[str, Any], dict[str, str], str]:
  """Facts, SHA-256 sums and base digest of the weights, written into a folder.

  Returns:
    The entries of the provenance, {file: SHA-256}, and the digest of the base ('' if not wanted).

  Raises:
    NotFiniteError: if a weight of the base, of the change or of the sum is NaN or infinite.
    CorruptError: if a file is cut short, or the direction does not match the fingerprints.
    OutputError: if a file reads back other than it was written.
  """
  # Several files are written at once, each in order; the threads are shared out among them.
  parts = on_disk.parts_of(steered.config, steered.family)
  plan = _tensors_by_file(steered.base, parts)
  sums = Sums()
  cores = os.cpu_count() or 1
  at_once = min(len(plan), cores // CORES_PER_FILE, FILES_AT_ONCE)
  at_once = max(1, at_once)
  # Two at least, so that one thread reads while another computes.
  threads = max(2, blocks.workers() // at_once)

  def write_file(file: str) -> str:
    path = folder / file
    return _write_file(path, plan[file], steered, parts, sums, sync=sync, threads=threads)

  with futures.ThreadPoolExecutor(at_once) as pool:
    # As a dict, the results are waited for, and an error of any file is raised here.
    hashes = dict(zip(plan, pool.map(write_file, plan)))
  # transformers reads a single file of this name without an index.
  if list(plan) != [SINGLE_FILE]:
    _write_index(folder, plan, parts, steered)
  # Only now has all of the direction been read once.
  read_tensors = on_disk.tensors_of(steered.changes)
  for name, values in read_tensors.items():
    values.check(sums.change_words[name])
  digest = _digest(steered, sums) if steered.digest else ''
  return sums.facts(steered), hashes, digest


def _tensors_by_file(base: Checkpoint, parts: Mapping[str, list[Part]]) -> dict[str, list[str]]:
  """{file: names of tensors}, as in the base; tensors the base lacks go into the last file."""
  plan = {}
  planned: set[str] = set()
  for path in stored.weight_files(base.folder):
    # Tensors of no parameter, such as rotary frequencies, are left out; so is a file of only such.
    names = [name for name in raws.tensors_of(path) if name in parts]
    if names:
      plan[path.name] = names
      planned.update(names)
  last_file = list(plan)[-1]
  plan[last_file] += [name for name in parts if name not in planned]
  return plan


def _write_index(
  folder: pathlib.Path,
  plan: Mapping[str, list[str]],
  parts: Mapping[str, list[Part]],
  steered: Steered,
) -> None:
  """Writes the index by which transformers finds the file of a tensor."""
  dtype = raws.DTYPES[steered.dtype]
  itemsize = np.dtype(raws.STORED_AS[dtype]).itemsize
  size = 0
  for tensor_parts in parts.values():
    # The last part of a tensor ends where the tensor ends.
    size += tensor_parts[-1].stop
  weight_map: dict[str, str] = {}
  for file, names in plan.items():
    weight_map |= dict.fromkeys(names, file)
  # Bytes of the tensors, without the headers of the files.
  metadata = {'total_size': size * itemsize}
  files.write_json(folder / INDEX, {'metadata': metadata, 'weight_map': weight_map})


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
  """The SHA-256 of a file, written with the named tensors."""
  dtype = raws.DTYPES[steered.dtype]
  tensors = {}
  for name in names:
    row = parts[name][0].row
    tensors[name] = (dtype, stored.stored_shape(row, steered.config))
  tasks = _tasks(names, steered, parts)
  # Versions of transformers before 5 refuse a file whose metadata names no format.
  with raws.FileWriter(path, tensors, {'format': 'pt'}, sync=sync) as file:
    # Computed on several threads, and written in order by this one.
    for block in blocks.in_order(tasks, threads=threads):
      sums.add(block)
      flat = block.out.reshape(-1)
      file.write(flat[: block.count])
  return file.sha256


def _tasks(
  names: list[str], steered: Steered, parts: Mapping[str, list[Part]]
) -> Iterator[Callable[[], SteeredBlock]]:
  """For each block of the named tensors, in order, the function that computes it."""
  raws_by_name = steered.base.raw()
  config = steered.config
  for name in names:
    raw = raws_by_name.get(name)
    for part in parts[name]:
      shape = stored.stored_shape(part.row, config)
      columns = math.prod(shape[1:])
      leaf = steered.changes.get(part.path)
      change = _change(part, leaf, config)
      # Added biases are no part of the base, and do not enter the digest.
      indices = None
      if steered.digest and part.path in steered.base.rows:
        indices = our_indices(part, config)
      # Blocks of whole rows: low-rank changes are computed so, and fingerprints indexed so.
      step = blocks.SIZE // columns * columns
      block_of = functools.partial(_block, steered, part, raw, change, indices)
      for start, stop in blocks.ranges(part.start, part.stop, step):
        yield functools.partial(block_of, start, stop)


def _block(
  steered: Steered,
  part: Part,
  raw: raws.Raw | None,
  change: Change | None,
  indices: Indices | None,
  start: int,
  stop: int,
) -> SteeredBlock:
  """The steered elements from `start` to `stop` of the part's tensor."""
  # A bias that was added has no tensor to read: the block is zeros.
  base = blocks.read(raw, start, stop, 'base')
  base_words = 0
  if indices is not None:
    # Counted from the part's first row, as the indices are.
    base_words = _base_words(base, indices, start - part.start, stop - part.start)
  if change is None:
    out = blocks.cast(base, steered.dtype)
    # Without a cast, `out` is the buffer that this thread's next read fills anew.
    if out is base:
      out = out.copy()
    block = SteeredBlock(part, stop - start, out, base_words=base_words)
  else:
    block = _steered_block(steered, part, base, change, base_words, start, stop)
  # Where there is a change, its norms show that all is finite, and spare another pass.
  norms = block.lost + block.change
  is_checked = change is not None and np.isfinite(norms)
  if not is_checked and not blocks.finite(block.out):
    raise _not_finite(steered, part, raw, change)
  return block


def _steered_block(
  steered: Steered,
  part: Part,
  base: np.ndarray,
  change: Change,
  base_words: int,
  start: int,
  stop: int,
) -> SteeredBlock:
  minus = None
  change_words = 0
  # A direction between two checkpoints is their difference, subtracted block by block.
  if isinstance(change, Values):
    plus = blocks.read(change.plus, start, stop, 'plus')
    if change.minus is not None:
      minus = blocks.read(change.minus, start, stop, 'minus')
    if change.fingerprint:
      change_words = blocks.words_from(plus, start)
  else:
    values = change(start - part.start, stop - part.start)
    plus = blocks.put(values, 'plus')
  # `added` is the change at alpha 1; `lost` is of alpha times the change.
  out, lost, added = blocks.steer(base, plus, minus, steered.alpha, steered.dtype)
  return SteeredBlock(
    part=part,
    count=stop - start,
    out=out,
    lost=blocks.squares(lost),
    change=blocks.squares(added),
    base_words=base_words,
    change_words=change_words,
  )


def _not_finite(
  steered: Steered, part: Part, raw: raws.Raw | None, change: Change | None
) -> NotFiniteError:
  """The error for values that are not finite: of the base, the change or the sum."""
  # Reading the base again costs time, which no longer matters: the export has failed.
  if raw is not None:
    for start, stop in blocks.ranges(0, raw.size):
      values = blocks.read(raw, start, stop, 'base')
      if not blocks.finite(values):
        return NotFiniteError(
          f"{steered.base.folder}: '{part.name}' ({part.path}) holds NaN or infinite values"
        )
  if isinstance(change, Values) and not change.finite():
    return change.not_finite()
  return NotFiniteError(
    f"steered at alpha {steered.alpha:g}, '{part.name}' holds NaN or infinite values in "
    f'{steered.dtype}'
  )


def _change(part: Part, leaf: LowRank | Dense | None, config: ModelConfig) -> Change | None:
  """The change of a part; None if there is none."""
  if leaf is None:
    return None
  pattern = part.row.pattern
  if isinstance(leaf, Dense):
    # Values on the disk are in the checkpoint's order already.
    if isinstance(leaf.value, on_disk.OnDisk):
      return leaf.value.values.get(part.at)
    value = np.asarray(leaf.value, np.float32)
    theirs = stored.to_theirs(value[part.at], pattern, config)
    flat = theirs.reshape(-1)

    def dense_values(start: int, stop: int) -> np.ndarray:
      return flat[start:stop]

    return dense_values
  # Only the factors are in memory: the product is formed block by block.
  a_pattern, b_pattern = adapters.factor_patterns(pattern)
  a = np.asarray(leaf.a, np.float32)[part.at]
  b = np.asarray(leaf.b, np.float32)[part.at]
  b = np.float32(leaf.scale) * b
  a_RI = stored.to_theirs(a, a_pattern, config)
  b_OR = stored.to_theirs(b, b_pattern, config)
  width = a_RI.shape[1]

  def low_rank_values(start: int, stop: int) -> np.ndarray:
    return b_OR[start // width : stop // width] @ a_RI

  return low_rank_values


def our_indices(part: Part, config: ModelConfig) -> Indices:
  """Numbers of a part's rows and columns, with positions in our array as sums modulo 2^32.

  The digest counts elements in the order of our array; the file has the order of the checkpoint.
  """
  shape = models.sites(config)[part.path].shape
  sizes = config.sizes()
  strides = []
  for place in range(len(shape)):
    strides.append(math.prod(shape[place + 1 :]))
  theirs, ours = part.row.pattern.split(' -> ')
  # The pattern leaves out the leading axes of layers and experts.
  inner_strides = strides[len(part.at) :]
  stride = dict(zip(ours.split(), inner_strides))
  # One array per axis of the stored tensor, over which several of our axes may run.
  groups = []
  for group in stored.groups(theirs):
    index = np.zeros(1, np.int64)
    axes = group.strip('()').split()
    for axis in axes:
      steps = stride[axis] * np.arange(sizes[axis])
      index = (index[:, None] + steps).reshape(-1)
    groups.append(index)
  # Where this part's layer and expert begin in our array.
  offset = 0
  for index_at, stride_at in zip(part.at, strides):
    offset += index_at * stride_at
  rows = groups[0] + offset
  columns = np.zeros(1, np.int64)
  for index in groups[1:]:
    columns = (columns[:, None] + index).reshape(-1)
  # Fingerprints hash positions modulo 2^32, so the sums may wrap around.
  rows = rows % 2**32
  columns = columns % 2**32
  return rows.astype(np.uint32), columns.astype(np.uint32)


def _base_words(base: np.ndarray, indices: Indices, start: int, stop: int) -> int:
  """The share of whole rows of the base in the fingerprint of `bases.digest`."""
  row_indices, columns = indices
  # Every block is hashed at its full size, so that one compiled program does for all; padding is
  # zeros, which add nothing.
  num_columns = len(columns)
  num_rows = blocks.SIZE // num_columns
  rows = np.zeros(num_rows, np.uint32)
  block_rows = row_indices[start // num_columns : stop // num_columns]
  rows[: len(block_rows)] = block_rows
  # Digests are of values rounded to bfloat16, so that a base has one in any dtype.
  flat = blocks.cast(base, 'bfloat16').reshape(-1)
  whole_rows = flat[: num_rows * num_columns]
  rounded = whole_rows.reshape(num_rows, num_columns)
  return blocks.words(rounded, rows, columns)


def _digest(steered: Steered, sums: Sums) -> str:
  """The digest of the base (see bases.digest)."""
  sites = models.sites(steered.base.config)
  prints = {}
  for path in steered.base.rows:
    shape = sites[path].shape
    fingerprint = blocks.fingerprint(sums.base_words[path], shape, 'bfloat16')
    prints[path] = (shape, fingerprint)
  return bases.digest_prints(prints)
