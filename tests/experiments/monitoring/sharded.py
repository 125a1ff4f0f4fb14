"""A look at a made-up delta on one mesh of eight CPU devices after another: prints {layout:
numbers} as JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/experiments/monitoring/sharded.py
"""

import json

import jax
import meshes
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.experiments import monitoring
from weightsteer_jax.runtime import sharding
from weightsteer_jax.runtime.sharding import Layout


def made_up(seed, rank):
  random = np.random.default_rng(seed)
  delta = models.init_delta(
    meshes.CONFIG, 'lora_embeddings', jax.random.key(0), rank=rank, lora_alpha=6.0
  )
  return jax.tree.map(lambda x: np.asarray(random.standard_normal(x.shape), np.float32), delta)


def main():
  update, directions, found = made_up(1, 3), {'v': made_up(2, 4), 'w': made_up(3, 2)}, {}
  for name in ('single', '1x8x1', '2x2x2', '1x1x8'):
    layout = (
      sharding.single() if name == 'single' else Layout(sharding.make_mesh(sharding.parse(name)))
    )
    placed = jax.tree.map(
      sharding.put, update, models.delta_shardings(meshes.CONFIG, update, layout)
    )
    look = monitoring.watch(directions, meshes.CONFIG, every=1, layout=layout).look(placed)
    assert all(value.is_fully_replicated for value in look.values())
    found[name] = {key: float(value) for key, value in look.items()}
  print(json.dumps(found))


if __name__ == '__main__':
  main()
