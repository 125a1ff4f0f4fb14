"""Arithmetic on blocks of elements, in the order and axes of their files, several blocks at once.

Every operation is elementwise, so that no axis is ever moved. Blocks have one size; the last of a
range is padded with zeros, which add nothing to any sum. XLA compiles each step once, for the host.
"""

import collections
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax.runtime import tree
from weightsteer_jax.storage.safetensors import STORED_AS, Raw

SIZE = 2**19  # elements
# Rows are summed in float32, so they are short.
SHAPE = (1024, SIZE // 1024)
# Source: malloc.h of glibc.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
# XLA takes host arrays as they are where they are aligned to this many bytes, and copies others.
ALIGNMENT = 64
_local = threading.local()
T = TypeVar('T')


def workers() -> int:
  """Number of blocks that are computed at once."""
  cores = os.cpu_count() or 2
  # Two at least: while one thread waits for the disk, another computes.
  return max(2, min(8, cores))


def in_order(tasks: Iterable[Callable[[], T]], *, threads: int | None = None) -> Iterator[T]:
  """Results of the tasks in their order, computed on threads.

  Args:
    threads: `workers()` by default. Tasks are begun a few ahead of the result that is waited for,
      so that no thread is idle.
  """
  threads = threads or workers()
  _keep_freed_memory()
  ahead: collections.deque[futures.Future[T]] = collections.deque()
  with futures.ThreadPoolExecutor(threads) as pool:
    try:
      for task in tasks:
        future = pool.submit(task)
        ahead.append(future)
        # Bounded, since each result that waits for its turn is a block in memory.
        if len(ahead) > threads + 1:
          oldest = ahead.popleft()
          yield oldest.result()
      while ahead:
        oldest = ahead.popleft()
        yield oldest.result()
    finally:
      # After an error, or where the caller stops early, no further task is begun.
      for future in ahead:
        future.cancel()


@functools.cache
def _keep_freed_memory() -> None:
  # glibc then hands out the memory of the last block for the next: fresh pages of the kernel for
  # each block took as long as the arithmetic. Other C libraries have no mallopt.
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return
  mallopt(M_MMAP_THRESHOLD, 2**25)
  mallopt(M_TRIM_THRESHOLD, 2**28)


def ranges(start: int, stop: int, step: int = 0) -> Iterator[tuple[int, int]]:
  """(start, stop) of the blocks of a range of elements.

  Args:
    step: elements of a block, SIZE if 0.
  """
  step = step or SIZE
  for at in range(start, stop, step):
    yield at, min(at + step, stop)


def read(raw: Raw | None, start: int, stop: int, key: str) -> np.ndarray:
  """The elements as a block: bfloat16 as bits (uint16), every other dtype as float32.

  Args:
    raw: the tensor; None gives zeros.
    key: names a buffer of this thread, which the next call with the key fills anew.
  """
  if raw is None:
    buffer = _buffer(key, np.float32)
    buffer[:] = 0
    return buffer.reshape(SHAPE)
  dtype = STORED_AS[raw.dtype]
  buffer = _buffer(key, dtype)
  count = stop - start
  raw.read(start, buffer[:count])
  # The buffer still holds the last block.
  buffer[count:] = 0
  # The programs below take the bits of bfloat16 and float32, and nothing else.
  if dtype in (np.float16, np.float64):
    converted = _buffer(f'{key} as float32', np.float32)
    converted[...] = buffer
    buffer = converted
  return buffer.reshape(SHAPE)


def put(values: np.ndarray, key: str) -> np.ndarray:
  """At most SIZE float32 values as a block."""
  buffer = _buffer(key, np.float32)
  count = values.size
  buffer[:count] = values.reshape(-1)
  buffer[count:] = 0
  return buffer.reshape(SHAPE)


def difference(plus: np.ndarray, minus: np.ndarray) -> np.ndarray:
  """plus - minus, float32."""
  return _on_host(_difference, plus, minus)


def steer(
  base: np.ndarray, plus: np.ndarray, minus: np.ndarray | None, alpha: float, dtype: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(steered block, loss of rounding, change).

  The steered block is base + alpha * change rounded to `dtype`, bfloat16 as bits. The loss is the
  rounded sum minus the exact one. The change is `plus - minus`, or plus alone. All sums are
  float32.
  """
  # A scalar zero is broadcast, so there is no third block to read.
  minus = np.zeros((), np.float32) if minus is None else minus
  return _on_host(_steer, base, plus, minus, np.float32(alpha), dtype=dtype)


def cast(base: np.ndarray, dtype: str) -> np.ndarray:
  """The block rounded to `dtype`, bfloat16 as bits."""
  stored = np.uint16 if dtype == 'bfloat16' else np.float32
  return base if base.dtype == stored else _on_host(_cast, base, dtype=dtype)


def wide(block: np.ndarray) -> np.ndarray:
  """The block as float32."""
  return block if block.dtype == np.float32 else cast(block, 'float32')


def squares(block: np.ndarray) -> float:
  """The sum of the squares of a float32 block: float32 within a row, float64 over rows."""
  # i rows and j columns of the block; no square is ever stored.
  rows = np.einsum('ij,ij->i', block, block)
  return float(rows.sum(dtype=np.float64))


def finite(block: np.ndarray) -> bool:
  """Whether no element, float32 or the bits of a bfloat16, is NaN or infinite."""
  if block.dtype == np.uint16:
    # All bits of the exponent are set in a bfloat16 that is not finite.
    return bool((block & 0x7F80 != 0x7F80).all())
  return bool(np.isfinite(block).all())


def words(block: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> int:
  """The block's part of the tensor's `tree.fingerprint`, modulo 2^32.

  Args:
    block: of any shape of two axes.
    rows, columns: uint32; element (i, j) of the block is number `rows[i] + columns[j]` of the
      tensor.
  """
  return int(_on_host(_words, block, rows, columns))


def words_from(block: np.ndarray, start: int) -> int:
  """The `words` of a block that holds the tensor's elements from number `start` on."""
  num_rows, num_columns = SHAPE
  # Numbers of elements are uint32 and wrap around, as in tree.fingerprint.
  first = np.uint32(start % 2**32)
  row_numbers = np.arange(num_rows, dtype=np.uint32)
  columns = np.arange(num_columns, dtype=np.uint32)
  # Element (i, j) has the number start + i * num_columns + j. Padding is zeros, whose words add 0.
  rows = first + row_numbers * np.uint32(num_columns)
  return words(block, rows, columns)


def fingerprint(total: int, shape: tuple[int, ...], dtype: str) -> str:
  """A tensor's fingerprint from the sum of the words of its blocks."""
  return tree.named_hash(total, shape, dtype)


def _buffer(key: str, dtype: Any) -> np.ndarray:
  """SIZE elements that belong to this thread, under a key."""
  buffers = _local.__dict__.setdefault('buffers', {})
  # The size is in the name: after a change of SIZE, buffers of the old size would not do.
  name = (key, np.dtype(dtype), SIZE)
  if name not in buffers:
    size = SIZE * np.dtype(dtype).itemsize
    # Large enough that an aligned range of the size lies inside.
    memory = np.empty(size + ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % ALIGNMENT
    aligned = memory[offset : offset + size]
    buffers[name] = aligned.view(dtype)
  return buffers[name]


def _on_host(function: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
  # Weights pass through once: moving them to an accelerator would cost more than the sums.
  host = jax.local_devices(backend='cpu')[0]
  with jax.default_device(host):
    results = function(*arrays, **options)
    return jax.tree.map(np.asarray, results)


def _wide(x: jax.Array) -> jax.Array:
  """float32 from the bits of bfloat16; float32 as it is."""
  if x.dtype != jnp.uint16:
    return x
  # A bfloat16 is the upper half of the float32 of the same value.
  bits = x.astype(jnp.uint32) << 16
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _rounded(x: jax.Array, dtype: str) -> jax.Array:
  """float32 rounded to the nearest, ties to even, bfloat16 as bits."""
  if dtype == 'float32':
    return x
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  # The carry of 0x7FFF, or of 0x8000 above an odd bit, rounds up; a NaN would become infinite.
  odd = (bits >> 16) & 1
  rounded = (bits + 0x7FFF + odd) >> 16
  # 0x7FC0 are the bits of the quiet NaN.
  return jnp.where(jnp.isnan(x), 0x7FC0, rounded).astype(jnp.uint16)


@jax.jit
def _difference(plus: jax.Array, minus: jax.Array) -> jax.Array:
  return _wide(plus) - _wide(minus)


@functools.partial(jax.jit, static_argnames='dtype')
def _steer(
  base: jax.Array, plus: jax.Array, minus: jax.Array, alpha: jax.Array, dtype: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
  base = _wide(base)
  change = _wide(plus) - _wide(minus)
  out = _rounded(base + alpha * change, dtype)
  lost = (_wide(out) - base) - alpha * change
  return out, lost, change


@functools.partial(jax.jit, static_argnames='dtype')
def _cast(base: jax.Array, dtype: str) -> jax.Array:
  return _rounded(_wide(base), dtype)


@jax.jit
def _words(block: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
  # One word an element, as in tree.fingerprint: 32 bits of a float32, 16 of a bfloat16.
  if block.dtype == jnp.float32:
    bits = jax.lax.bitcast_convert_type(block, jnp.uint32)
  else:
    bits = block.astype(jnp.uint32)
  numbers = rows[:, None] + columns[None, :]
  return tree.mixed(bits, numbers)
