"""Attention in blocks beside the reference, on this CPU: forward, and forward and backward, of one
layer.

  python benchmarks/attention.py

Rows are packed with chats of mixed length, as in training (`packed`), or are one text each
(`whole`). The shapes are those of the 3M and 100M models of cases.py. Kernels take turns. Writes
results/attention_cpu.json.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import cases
import compare
import numpy as np
from absl import app, flags

flags.DEFINE_integer('repeats', 15, 'Rounds after the one that warms up.')

# (rows, positions, query heads, kv heads, head dim)
SHAPES = {
  '3m, 3 rows of 512': (3, 512, 6, 2, 32),
  '3m, 8 rows of 256': (8, 256, 6, 2, 32),
  '3m, 16 rows of 128': (16, 128, 6, 2, 32),
  '100m, 3 rows of 512': (3, 512, 10, 2, 64),
  '100m, 2 rows of 1,024': (2, 1024, 10, 2, 64),
}
BLOCKS = (64, 128, 256)


def main(argv):
  del argv
  found = {}
  for name, shape in SHAPES.items():
    for packed in (True, False):
      times = measure(*shape, packed=packed, repeats=flags.FLAGS.repeats)
      found[f'{name}, {"packed" if packed else "whole"}'] = times
      print(
        f'{name}, {"packed" if packed else "whole"}:',
        '; '.join(
          f'{kernel} {1e3 * one["forward"]:.1f}, {1e3 * one["both"]:.1f} ms'
          for kernel, one in times.items()
        ),
        flush=True,
      )
  compare.save('attention_cpu', {'result': found, **compare.machine()})


def measure(
  rows: int, length: int, heads: int, kv_heads: int, head_dim: int, *, packed: bool, repeats: int
) -> dict[str, Any]:
  """{kernel: {'forward', 'both': median seconds}}; it is checked that all give the same."""
  import jax
  import jax.numpy as jnp

  from weightsteer_jax.models import attention, blocked

  random = np.random.default_rng(0)
  q, k, v = (
    jnp.asarray(random.standard_normal((rows, length, n, head_dim)), jnp.float32)
    for n in (heads, kv_heads, kv_heads)
  )
  segments = jnp.asarray(
    segments_of(random, rows, length) if packed else np.ones((rows, length)), jnp.int32
  )
  seen = attention.Seen(jnp.broadcast_to(jnp.arange(length), (rows, length)), segments)
  real = (segments > 0)[..., None, None]

  def blocks(size: int) -> Callable[..., jax.Array]:
    return lambda q, k, v: blocked.attend(
      q, k, v, seen.slots_BT, segments, None, None, scale=head_dim**-0.5, block=size
    )

  kernels = {'reference': lambda q, k, v: attention.attend(q, k, v, seen)}
  kernels |= {f'blocks of {size}': blocks(size) for size in BLOCKS if size < length}
  forward = {name: jax.jit(kernel) for name, kernel in kernels.items()}
  both = {
    name: jax.jit(
      jax.value_and_grad(
        lambda *x, kernel=kernel: jnp.sum(jnp.where(real, jnp.sin(kernel(*x)), 0)), (0, 1, 2)
      )
    )
    for name, kernel in kernels.items()
  }
  for name in kernels:
    for ours, theirs in zip(
      jax.tree.leaves(both[name](q, k, v)), jax.tree.leaves(both['reference'](q, k, v))
    ):
      np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
  seconds = {name: {'forward': [], 'both': []} for name in kernels}
  for turn in range(repeats + 1):
    for name in kernels:
      for what, function in (('forward', forward[name]), ('both', both[name])):
        started = time.perf_counter()
        jax.block_until_ready(function(q, k, v))
        seconds[name][what] += [time.perf_counter() - started] if turn else []
  return {
    name: {what: statistics.median(times) for what, times in one.items()}
    for name, one in seconds.items()
  }


def segments_of(random: np.random.Generator, rows: int, length: int) -> np.ndarray:
  """Segments [rows, length] of chats with a median of a quarter of a row, the rest padding."""
  segments = np.zeros((rows, length), int)
  for row in segments:
    start, number = 0, 1
    for size in cases.lengths(random, 64, median=length // 4, factor=2.0, most=length):
      if start + size <= length:
        row[start : start + size] = number
        start, number = start + size, number + 1
  return segments


if __name__ == '__main__':
  app.run(main)
