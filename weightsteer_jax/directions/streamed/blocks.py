"""Arithmetic on blocks of elements, in the order and the axes of the files they come from, several
blocks at once.

All of it is elementwise, so that no axis is ever moved; blocks have one size, the last of a range
padded with zeros, which add nothing to any sum. XLA compiles each step once, for the host.
"""

import collections
import ctypes
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax.runtime import tree
from weightsteer_jax.storage.safetensors import STORED_AS, Raw

SIZE = 2**19  # elements
SHAPE = (1024, SIZE // 1024)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # Source: malloc.h of glibc.
_local = threading.local()


def workers() -> int:
  """Blocks that are worked on at once."""
  return max(2, min(8, os.cpu_count() or 2))


def in_order(tasks: Iterable[Callable[[], Any]], *, threads: int | None = None) -> Iterator[Any]:
  """What the tasks return, in their order; a few are ahead of the one that is waited for."""
  threads = threads or workers()
  _keep_freed_memory()
  tasks, ahead = iter(tasks), collections.deque()
  with futures.ThreadPoolExecutor(threads) as pool:
    try:
      for task in itertools.chain(tasks, [None] * (threads + 2)):
        if task is not None:
          ahead.append(pool.submit(task))
        if ahead and (task is None or len(ahead) > threads + 1):
          yield ahead.popleft().result()
    finally:
      for future in ahead:
        future.cancel()


@functools.cache
def _keep_freed_memory() -> None:
  """Has glibc hand out the memory of the last block for the next: fresh pages of the kernel for
  each block took as long as the arithmetic. Elsewhere nothing happens.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return
  mallopt(M_MMAP_THRESHOLD, 2**25)
  mallopt(M_TRIM_THRESHOLD, 2**28)


def ranges(start: int, stop: int, step: int = 0) -> Iterator[tuple[int, int]]:
  """(start, stop) of the blocks of a range of elements, of SIZE if no step is given."""
  step = step or SIZE
  for at in range(start, stop, step):
    yield at, min(at + step, stop)


def read(raw: Raw | None, start: int, stop: int, key: str) -> np.ndarray:
  """The elements as a block, in buffers of this thread that the next call with the key fills anew;
  zeros without a tensor. bfloat16 comes as its bits (uint16), everything else as float32.
  """
  stored = STORED_AS[raw.dtype] if raw is not None else np.float32
  buffer = _buffer(key, stored)
  if raw is not None:
    raw.read(start, buffer[: stop - start])
  buffer[stop - start if raw is not None else 0 :] = 0
  if stored in (np.float16, np.float64):
    wide = _buffer(f'{key} as float32', np.float32)
    wide[...] = buffer
    buffer = wide
  return buffer.reshape(SHAPE)


def put(values: np.ndarray, key: str) -> np.ndarray:
  """At most SIZE float32 values as a block."""
  buffer = _buffer(key, np.float32)
  buffer[: values.size] = values.reshape(-1)
  buffer[values.size :] = 0
  return buffer.reshape(SHAPE)


def difference(plus: np.ndarray, minus: np.ndarray) -> np.ndarray:
  """plus - minus, float32."""
  return _on_host(_difference, plus, minus)


def steer(
  base: np.ndarray, plus: np.ndarray, minus: np.ndarray | None, alpha: float, dtype: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(base + alpha * change rounded to `dtype`, bfloat16 as its bits; what the rounding lost of it;
  the change).

  The change is `plus - minus`, or plus alone; all is added in float32.
  """
  minus = np.zeros((), np.float32) if minus is None else minus
  return _on_host(_steer, base, plus, minus, np.float32(alpha), dtype=dtype)


def cast(base: np.ndarray, dtype: str) -> np.ndarray:
  """The block rounded to `dtype`, bfloat16 as its bits."""
  stored = np.uint16 if dtype == 'bfloat16' else np.float32
  return base if base.dtype == stored else _on_host(_cast, base, dtype=dtype)


def wide(block: np.ndarray) -> np.ndarray:
  """The block as float32."""
  return block if block.dtype == np.float32 else cast(block, 'float32')


def squares(block: np.ndarray) -> float:
  """The sum of the squares of a float32 block: float32 within a row, float64 over rows."""
  return float(np.einsum('ij,ij->i', block, block).sum(dtype=np.float64))


def finite(block: np.ndarray) -> bool:
  """Whether no element, float32 or the bits of a bfloat16, is NaN or infinite."""
  return bool(
    (block & 0x7F80 != 0x7F80).all() if block.dtype == np.uint16 else np.isfinite(block).all()
  )


def words(block: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> int:
  """Its part of the tensor's `tree.fingerprint`, modulo 2^32; element (i, j) of the block, in
  whatever shape, is number `rows[i] + columns[j]` of the tensor.
  """
  return int(_on_host(_words, block, rows, columns))


def words_from(block: np.ndarray, start: int) -> int:
  """As `words`, of a block that is the tensor's elements from number `start` on."""
  rows = np.uint32(start % 2**32) + np.arange(SHAPE[0], dtype=np.uint32) * np.uint32(SHAPE[1])
  return words(block, rows, np.arange(SHAPE[1], dtype=np.uint32))


def fingerprint(total: int, shape: tuple[int, ...], dtype: str) -> str:
  """A tensor's fingerprint from the sum of the words of its blocks."""
  return tree.named_hash(total, shape, dtype)


def _buffer(key: str, dtype: Any) -> np.ndarray:
  """SIZE elements, aligned so that XLA takes them as they lie."""
  held = _local.__dict__.setdefault('buffers', {})
  name = (key, np.dtype(dtype), SIZE)
  if name not in held:
    raw = np.empty(SIZE * np.dtype(dtype).itemsize + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    held[name] = raw[offset : offset + SIZE * np.dtype(dtype).itemsize].view(dtype)
  return held[name]


def _on_host(function: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
  with jax.default_device(jax.local_devices(backend='cpu')[0]):
    return jax.tree.map(np.asarray, function(*arrays, **options))


def _wide(x: jax.Array) -> jax.Array:
  """float32 of the bits of a bfloat16; what is wide already stays."""
  return (
    jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)
    if x.dtype == jnp.uint16
    else x
  )


def _rounded(x: jax.Array, dtype: str) -> jax.Array:
  """To the nearest, ties to even; a NaN stays one."""
  if dtype == 'float32':
    return x
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  return jnp.where(jnp.isnan(x), 0x7FC0, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(
    jnp.uint16
  )


@jax.jit
def _difference(plus, minus):
  return _wide(plus) - _wide(minus)


@functools.partial(jax.jit, static_argnames='dtype')
def _steer(base, plus, minus, alpha, dtype):
  base, change = _wide(base), _wide(plus) - _wide(minus)
  out = _rounded(base + alpha * change, dtype)
  return out, (_wide(out) - base) - alpha * change, change


@functools.partial(jax.jit, static_argnames='dtype')
def _cast(base, dtype):
  return _rounded(_wide(base), dtype)


@jax.jit
def _words(block, rows, columns):
  bits = (
    jax.lax.bitcast_convert_type(block, jnp.uint32)
    if block.dtype == jnp.float32
    else block.astype(jnp.uint32)
  )
  return tree.mixed(bits, rows[:, None] + columns[None, :])
