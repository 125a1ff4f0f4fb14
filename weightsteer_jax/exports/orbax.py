"""Orbax arrays for any mesh: the steered weights, or the base and the direction apart.

Plain orbax and jax restore the arrays.

params/            the parameters as nested dicts, stacked over layers
direction/         unmerged only: for each changed parameter, at the same path, the factors
                   {a [L, I, R], b [L, R, O]} of the change, inputs and outputs flattened (no L
                   outside the layer stack), or the dense {value}
axes.json          {path: letters of the parameter's axes}
model_config.json  the architecture as this library writes it; config.json is Hugging Face's
restore.py         the example that reads all of it without this library
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

# Names of folders, which the examples below have in them.
PARAMS = 'params'
DIRECTION = 'direction'
RESTORE = '''\
"""Restores this model with plain orbax and jax, onto a mesh of all devices: python restore.py"""
import pathlib

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

mesh = jax.make_mesh((jax.device_count(),), ('all',), axis_types=(AxisType.Auto,))


# Split along the longest axis that the devices divide; whole on each of them where there is none.
def placed(leaf):
  divisible = [i for i, size in enumerate(leaf.shape) if size % mesh.size == 0]
  longest = max(divisible[::-1], key=lambda i: leaf.shape[i], default=None)
  spec = PartitionSpec(*('all' if i == longest else None for i in range(len(leaf.shape))))
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))


folder = pathlib.Path(__file__).resolve().parent / 'params'
params = ocp.load(folder, jax.tree.map(placed, ocp.metadata(folder).metadata))
print(sum(leaf.size for leaf in jax.tree.leaves(params)), 'parameters on', mesh.size, 'device(s)')
'''
# The end of the example where base and direction are apart; `%r` is the alpha of the export.
STEER = '''
# Steer it: python restore.py ALPHA


# weights + alpha * A @ B, in float32; without the last cast nothing is rounded away.
@jax.jit
def steer(weights, change, alpha):
  if isinstance(weights, dict):
    steered = {key: steer(weights[key], change[key], alpha) for key in change}
    return weights | steered
  if 'value' in change:
    dense = change['value']
  else:
    dense = jax.numpy.matmul(change['a'], change['b'], precision='highest')
  steered = weights.astype('float32') + alpha * dense.reshape(weights.shape)
  return steered.astype(weights.dtype)


folder = folder.parent / 'direction'
direction = ocp.load(folder, jax.tree.map(placed, ocp.metadata(folder).metadata))
params = steer(params, direction, float(sys.argv[1]) if len(sys.argv) > 1 else %r)
'''


def write_steered(folder: pathlib.Path, config: models.ModelConfig, merged: PyTree) -> PyTree:
  """The merged parameters, written and read back in the same dtype."""
  # All leaves have the dtype of the export.
  first_leaf = jax.tree.leaves(merged)[0]
  dtype = str(first_leaf.dtype)
  metadata = {'model_config': models.config_to_record(config)}
  checkpoint.save(folder / PARAMS, merged, metadata=metadata)
  _write_around(folder, config, RESTORE)
  shapes = models.abstract_params(config, dtype)
  return checkpoint.restore(folder / PARAMS, shapes)


def write_unmerged(
  folder: pathlib.Path, model: models.Model, delta: PyTree, alpha: float, dtype: str
) -> tuple[PyTree, PyTree]:
  """The base's parameters and the delta, written side by side and read back.

  Args:
    alpha: the example's default strength.
    dtype: of the base's parameters; the delta is float32.
  """
  config = model.config
  # The base is stored in the dtype of the export, which may be coarser than it was loaded in.
  params = jax.tree.map(lambda x: jnp.asarray(x, dtype), model.params)
  matrices = to_matrices(config, delta)
  metadata = {'model_config': models.config_to_record(config)}
  params_folder = folder / PARAMS
  direction_folder = folder / DIRECTION
  checkpoint.save(params_folder, params, metadata=metadata)
  checkpoint.save(direction_folder, matrices, metadata=metadata | {'alpha': alpha})
  # Only this example reads an argument.
  restore = RESTORE.replace('import pathlib\n', 'import pathlib\nimport sys\n')
  example = restore + STEER % alpha
  _write_around(folder, config, example)
  # Read back, so that logits are those of the files.
  param_shapes = models.abstract_params(config, dtype)
  restored = checkpoint.restore(params_folder, param_shapes)
  matrix_shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), matrices)
  restored_matrices = checkpoint.restore(direction_folder, matrix_shapes)
  return restored, from_matrices(config, restored_matrices)


def to_matrices(config: models.ModelConfig, delta: PyTree) -> dict[str, Any]:
  """The delta as nested dicts of plain float32 arrays.

  A low-rank change is {a [L, I, R], b [L, R, O]} with the scale in b, so that the change is `a @
  b`; a dense one is {value}. Experts are a second leading axis.
  """
  arrays = {}
  for path, leaf in tree.flatten(delta, models.is_delta_leaf).items():
    # A dense change has the shape of the parameter already.
    if isinstance(leaf, Dense):
      arrays[f'{path}/value'] = jnp.asarray(leaf.value, jnp.float32)
      continue
    site = models.sites(config)[path]
    lead = _lead(site)
    # The scale goes into b: whoever reads the arrays need not know of a scale.
    scale = jnp.float32(leaf.scale)
    a = jnp.asarray(leaf.a, jnp.float32)
    b = scale * jnp.asarray(leaf.b, jnp.float32)
    stack = a.shape[:lead]
    rank = a.shape[-1]
    # Inputs and outputs flattened, so that a plain matmul gives the change.
    arrays[f'{path}/a'] = a.reshape(*stack, -1, rank)
    arrays[f'{path}/b'] = b.reshape(*stack, rank, -1)
  return tree.unflatten(arrays)


def from_matrices(config: models.ModelConfig, matrices: PyTree) -> PyTree:
  """The delta of matrices made by `to_matrices`."""
  arrays = tree.flatten(matrices)
  leaves: dict[str, LowRank | Dense] = {}
  for name, array in arrays.items():
    path, _, part = name.rpartition('/')
    if part == 'value':
      leaves[path] = Dense(array)
    elif part == 'a':
      # Inputs and outputs get their own axes again, by the shape of the kernel.
      site = models.sites(config)[path]
      first_input = _lead(site)
      first_output = first_input + site.inputs
      stack = site.shape[:first_input]
      inputs = site.shape[first_input:first_output]
      outputs = site.shape[first_output:]
      rank = array.shape[-1]
      a = array.reshape(*stack, *inputs, rank)
      b = arrays[f'{path}/b']
      b = b.reshape(*stack, rank, *outputs)
      leaves[path] = LowRank(a, b)
  return tree.unflatten(leaves)


def _lead(site: models.Site) -> int:
  """Number of a kernel's leading axes that are neither inputs nor outputs: layers, and experts."""
  own_axes = site.axes.lstrip('LE')
  return len(site.axes) - len(own_axes)


def _write_around(folder: pathlib.Path, config: models.ModelConfig, example: str) -> None:
  """Writes the description of the arrays, and the example `restore.py`."""
  files.write_json(folder / 'model_config.json', models.config_to_record(config))
  axes = {path: site.axes for path, site in models.sites(config).items()}
  files.write_json(folder / 'axes.json', axes)
  files.write_text(folder / 'restore.py', example)
