"""Orbax arrays that plain orbax and jax restore onto any mesh: the steered weights, or base and
direction apart.

params/            the parameters as nested dicts, stacked over layers
direction/         unmerged only: for each changed parameter, at its path, the factors {a [L, I, R],
                   b [L, R, O]} of its change, inputs and outputs flattened (no L outside the layer
                   stack), or its dense {value}
axes.json          {path: letters of the parameter's axes}
model_config.json  the architecture as this library writes it; config.json is Hugging Face's
restore.py         the example that reads it all without this library
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from weightsteer_jax import models
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.runtime import tree
from weightsteer_jax.storage import checkpoint, files

PyTree = Any

PARAMS, DIRECTION = 'params', 'direction'
RESTORE = '''"""Restores this model with plain orbax and jax, onto a mesh of all devices: python restore.py"""
import pathlib

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

mesh = jax.make_mesh((jax.device_count(),), ('all',), axis_types=(AxisType.Auto,))


def placed(leaf):  # split along the longest axis that the devices divide; whole on each of them where there is none
  axes = sorted((i for i, size in enumerate(leaf.shape) if size % mesh.size == 0), key=lambda i: leaf.shape[i])
  spec = PartitionSpec(*('all' if i in axes[-1:] else None for i in range(len(leaf.shape))))
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))


folder = pathlib.Path(__file__).resolve().parent / 'params'
params = ocp.load(folder, jax.tree.map(placed, ocp.metadata(folder).metadata))
print(sum(leaf.size for leaf in jax.tree.leaves(params)), 'parameters on', mesh.size, 'device(s)')
'''
# What follows where the base and the direction are apart; `%r` is the alpha they were exported at.
STEER = '''
# Steer it: python restore.py ALPHA


@jax.jit
def steer(weights, change, alpha):  # weights + alpha * A @ B, in float32; without the last cast nothing is rounded away
  if isinstance(weights, dict):
    return {key: steer(part, change[key], alpha) if key in change else part for key, part in weights.items()}
  dense = change['value'] if 'value' in change else jax.numpy.matmul(change['a'], change['b'], precision='highest')
  return (weights.astype('float32') + alpha * dense.reshape(weights.shape)).astype(weights.dtype)


folder = folder.parent / 'direction'
direction = ocp.load(folder, jax.tree.map(placed, ocp.metadata(folder).metadata))
params = steer(params, direction, float(sys.argv[1]) if len(sys.argv) > 1 else %r)
'''


def write_steered(folder: pathlib.Path, config: models.ModelConfig, merged: PyTree) -> PyTree:
  """Writes the merged parameters; what was read back, in the dtype they are in."""
  dtype = str(jax.tree.leaves(merged)[0].dtype)
  checkpoint.save(
    folder / PARAMS, merged, metadata={'model_config': models.config_to_record(config)}
  )
  _write_around(folder, config, RESTORE)
  return checkpoint.restore(folder / PARAMS, models.abstract_params(config, dtype))


def write_unmerged(
  folder: pathlib.Path, model: models.Model, delta: PyTree, alpha: float, dtype: str
) -> tuple[PyTree, PyTree]:
  """Writes the base's parameters in `dtype` and the delta beside them; (parameters, delta) as read
  back.
  """
  params = jax.tree.map(lambda x: jnp.asarray(x, dtype), model.params)
  matrices = to_matrices(model.config, delta)
  described = {'model_config': models.config_to_record(model.config)}
  checkpoint.save(folder / PARAMS, params, metadata=described)
  checkpoint.save(folder / DIRECTION, matrices, metadata=described | {'alpha': alpha})
  _write_around(
    folder,
    model.config,
    RESTORE.replace('import pathlib\n', 'import pathlib\nimport sys\n') + STEER % alpha,
  )
  restored = checkpoint.restore(folder / PARAMS, models.abstract_params(model.config, dtype))
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), matrices)
  return restored, from_matrices(model.config, checkpoint.restore(folder / DIRECTION, shapes))


def to_matrices(config: models.ModelConfig, delta: PyTree) -> dict[str, Any]:
  """The delta as nested dicts: {a [L, I, R], b [L, R, O]} with the scale in b, the change being `a
  @ b`; or {value}.

  Experts are a second leading axis.
  """
  found = {}
  for path, leaf in tree.flatten(delta, models.is_delta_leaf).items():
    if isinstance(leaf, Dense):
      found[f'{path}/value'] = jnp.asarray(leaf.value, jnp.float32)
      continue
    lead = _lead(models.sites(config)[path])
    a, b = (
      jnp.asarray(leaf.a, jnp.float32),
      jnp.float32(leaf.scale) * jnp.asarray(leaf.b, jnp.float32),
    )
    rank = a.shape[-1]
    found[f'{path}/a'] = a.reshape(*a.shape[:lead], -1, rank)
    found[f'{path}/b'] = b.reshape(*b.shape[:lead], rank, -1)
  return tree.unflatten(found)


def from_matrices(config: models.ModelConfig, matrices: PyTree) -> PyTree:
  """The inverse of `to_matrices`."""
  flat, leaves = tree.flatten(matrices), {}
  for name, array in flat.items():
    path, _, part = name.rpartition('/')
    if part == 'value':
      leaves[path] = Dense(array)
    elif part == 'a':
      site = models.sites(config)[path]
      lead, b = _lead(site), flat[f'{path}/b']
      middle = lead + site.inputs
      leaves[path] = LowRank(
        array.reshape(*site.shape[:middle], array.shape[-1]),
        b.reshape(*site.shape[:lead], b.shape[-2], *site.shape[middle:]),
      )
  return tree.unflatten(leaves)


def _lead(site: models.Site) -> int:
  """Number of a kernel's leading axes that are neither inputs nor outputs: layers, and experts."""
  return len(site.axes) - len(site.axes.lstrip('LE'))


def _write_around(folder: pathlib.Path, config: models.ModelConfig, example: str) -> None:
  files.write_json(folder / 'model_config.json', models.config_to_record(config))
  files.write_json(
    folder / 'axes.json', {path: site.axes for path, site in models.sites(config).items()}
  )
  files.write_text(folder / 'restore.py', example)
