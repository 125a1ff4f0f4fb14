"""Small programs on eight CPU devices, and what preflight reads off them.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
    python tests/experiments/preflight/eight.py OUTPUT.json

A program, since the number of devices is fixed when jax starts.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from weightsteer_jax.experiments.preflight import hlo

OUTER, INNER, SIZE = 5, 3, 64


def loops():
  """{kind: [count, bytes sent]}: a sum in a loop in a loop, a permutation in the outer one, one
  gather after both."""
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))

  def inner(x, _):
    return jnp.sin(jax.lax.psum(x, 'x')), None

  def outer(x, _):
    x, _ = jax.lax.scan(inner, x, None, length=INNER)
    return jax.lax.ppermute(x, 'x', [(i, (i + 1) % 8) for i in range(8)]) * 2, None

  def program(x):
    return jax.lax.all_gather(jax.lax.scan(outer, x, None, length=OUTER)[0], 'x', tiled=True)

  mapped = jax.jit(
    jax.shard_map(program, mesh=mesh, in_specs=P('x'), out_specs=P(), check_vma=False)
  )
  text = mapped.lower(jax.ShapeDtypeStruct((8 * SIZE,), jnp.float32)).compile().as_text()
  return {kind: [moved.count, moved.sent] for kind, moved in hlo.collectives(text).items()}


if __name__ == '__main__':
  pathlib.Path(sys.argv[1]).write_text(json.dumps({'loops': loops()}))
