"""Where arrays lie: a mesh, and two tables from axis letters to mesh axes.

The mesh has the axes `data` (rows of a batch), `fsdp` (rows of a batch too, and slices of the
weights, gathered layer by layer when used) and `tensor` (heads, MLP width and vocabulary). An
array's axes are named by the letters of models/decoder.py. The tables below give the mesh axes of
each letter. A letter in neither table is whole on every device.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.mesh_shape import AXES, describe

# Whoever has a mesh to make finds its text's reader here.
from weightsteer_jax.runtime.mesh_shape import parse as parse

PyTree = Any

# The whole policy. Weights: q kernel D N H, o kernel N H D, gate D F, down F D, embedding V D.
WEIGHTS = {'D': ('fsdp',), 'N': ('tensor',), 'K': ('tensor',), 'F': ('tensor',), 'V': ('tensor',)}
# Activations: hidden B T D, queries B T N H, cache L B K S H, logits B T V. The width D is whole,
# so that norms and residual sums need no communication.
ACTIVATIONS = {
  'B': ('data', 'fsdp'),
  'N': ('tensor',),
  'K': ('tensor',),
  'F': ('tensor',),
  'V': ('tensor',),
}
# How errors call the axes.
MEANING = {
  'D': 'the width',
  'N': 'query heads',
  'K': 'kv heads',
  'F': 'the MLP width',
  'V': 'the vocabulary',
  'B': 'rows of the batch',
}


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh, and how weights lie on the mesh.

  Attributes:
    mesh: with the axes AXES.
    fsdp: whether weights are cut along `fsdp` as well as `tensor`, and gathered when used.
    indivisible: 'error' or 'replicate', for an axis of a size not divided by the mesh axes.
  """

  mesh: jax.sharding.Mesh
  fsdp: bool = True
  indivisible: str = 'error'

  def weights(self, axes: str, shape: tuple[int, ...], *, name: str) -> jax.sharding.NamedSharding:
    """The sharding of a parameter, or of a change of a parameter, by axis letters.

    Raises:
      InputError: if an axis does not divide (see `indivisible`), or the array has more or fewer
        axes than letters.
    """
    table = dict(WEIGHTS)
    if not self.fsdp:
      table = {letter: on for letter, on in WEIGHTS.items() if on != ('fsdp',)}
    return self._sharding(axes, shape, table, name)

  def activations(
    self, axes: str, shape: tuple[int, ...], *, name: str
  ) -> jax.sharding.NamedSharding:
    """The sharding of a batch, a cache or an activation (arguments and errors as `weights`)."""
    return self._sharding(axes, shape, ACTIVATIONS, name)

  def context(self) -> contextlib.AbstractContextManager[Any]:
    """The context to call the model's functions in, for `constrain` to see the mesh."""
    return jax.set_mesh(self.mesh)

  def put_batch(self, batch: PyTree, axes: str = 'BT') -> PyTree:
    """The arrays of a batch, placed on the devices.

    Args:
      axes: the letters of an array's first axes. An array of fewer axes uses the first letters, and
        further axes of an array are whole.

    Raises:
      InputError: if the rows do not divide.
    """
    arrays = []
    for path, x in tree.flatten(batch).items():
      rank = np.ndim(x)
      # '_' is in no table.
      letters = axes[:rank].ljust(rank, '_')
      arrays.append(put(x, self.activations(letters, np.shape(x), name=path)))
    return jax.tree.unflatten(jax.tree.structure(batch), arrays)

  @property
  def replicated(self) -> jax.sharding.NamedSharding:
    """The sharding of an array kept whole on every device."""
    return jax.sharding.NamedSharding(self.mesh, jax.P())

  @property
  def rows(self) -> int:
    """The number of shards of a batch's rows, a divisor of the number of rows."""
    return math.prod(self.mesh.shape[axis] for axis in ACTIVATIONS['B'])

  def _sharding(
    self, axes: str, shape: tuple[int, ...], table: Mapping[str, tuple[str, ...]], name: str
  ) -> jax.sharding.NamedSharding:
    if len(axes) != len(shape):
      raise InputError(f"'{name}' has shape {shape}, but axes {axes}: they must be as many")
    parts: list[tuple[str, ...] | None] = []
    for letter, size in zip(axes, shape):
      # A letter in neither table is whole.
      mesh_axes = table.get(letter, ())
      shards = math.prod(self.mesh.shape[axis] for axis in mesh_axes)
      divides = size % shards == 0
      if not divides and self.indivisible == 'error':
        # The sizes that would do, for the error to name.
        product = ' x '.join(mesh_axes)
        fitting = ', '.join(str(n) for n in range(1, shards) if size % n == 0)
        raise InputError(
          f"'{name}' of shape {shape} (axes {axes}): {MEANING.get(letter, letter)} ({letter} = "
          f'{size}) cannot be cut over {product} = {shards}. Take {product} of {fitting}, as in '
          '--config.mesh.shape=data:1,fsdp:1,tensor:1, or keep such axes whole with '
          '--config.mesh.indivisible=replicate'
        )
      # A single shard is a whole axis, written as such, so that equal shardings compare equal.
      parts.append(mesh_axes if divides and shards > 1 else None)
    return jax.sharding.NamedSharding(self.mesh, jax.P(*parts))


def make_mesh(shape: dict[str, int], devices: Iterable[Any] | None = None) -> jax.sharding.Mesh:
  """The mesh of a shape over all the devices, with neighbours on the fastest links.

  Slices of a pod, with slow links in between, are joined along `data`.

  Raises:
    InputError: if the sizes do not multiply to the number of devices, or `data` is no multiple of
      the number of slices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = tuple(shape[axis] for axis in AXES)
  if math.prod(sizes) != len(devices):
    raise InputError(
      f'a mesh of {describe(shape)} needs {math.prod(sizes)} devices, there are {len(devices)}: '
      'the sizes must multiply to the number of devices'
    )
  # Devices of a single slice have no slice_index, or None.
  slices = len({getattr(device, 'slice_index', 0) or 0 for device in devices})
  if sizes[0] % slices:
    raise InputError(
      f'the devices are {slices} slices, which are joined along data: data must be a multiple of '
      f'{slices}, not {sizes[0]}'
    )
  # Splitting physical axes lets tensor:8 on a pod of 4 x 4 chips take one axis and half of the
  # other, where jax would refuse.
  if slices > 1:
    grid = mesh_utils.create_hybrid_device_mesh(
      (sizes[0] // slices, *sizes[1:]),
      (slices, 1, 1),
      devices=devices,
      allow_split_physical_axes=True,
    )
  else:
    grid = mesh_utils.create_device_mesh(sizes, devices=devices, allow_split_physical_axes=True)
  # Auto: between our constraints the compiler chooses how activations lie.
  return jax.sharding.Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


@functools.cache
def single() -> Layout:
  """The layout on this process's first device, for callers that name no mesh."""
  # Local: a process can only read what lies on its own devices.
  return Layout(make_mesh(dict.fromkeys(AXES, 1), jax.local_devices()[:1]))


def constrain(x: jax.Array, axes: str) -> jax.Array:
  """The activation, constrained to lie as ACTIVATIONS says on the mesh of the context.

  Without a mesh in the context (see `Layout.context`) the activation is returned unchanged. An axis
  of a size not divided by the mesh axes is left whole: `Layout` refuses such weights and batches
  where needed.

  Raises:
    ValueError: if the number of letters is not the number of axes.
  """
  if len(axes) != x.ndim:
    raise ValueError(f'axes {axes} for an array of shape {x.shape}')
  if not is_cut():
    return x
  parts = [axes_of(letter, size) or None for letter, size in zip(axes, x.shape)]
  return jax.lax.with_sharding_constraint(x, jax.P(*parts))


def is_cut() -> bool:
  """Whether the mesh of the context has several devices."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.size > 1


def axes_of(letter: str, size: int) -> tuple[str, ...]:
  """The context's mesh axes for an activation's axis of a letter and a size.

  Empty without a mesh, and if the mesh axes do not divide the size.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return ()
  # Mesh axes of size 1 cut nothing.
  mesh_axes = tuple(axis for axis in ACTIVATIONS.get(letter, ()) if mesh.shape[axis] > 1)
  divides = size % math.prod(mesh.shape[axis] for axis in mesh_axes) == 0
  return mesh_axes if divides else ()


def replicate(tree_: PyTree) -> PyTree:
  """The arrays, made whole on every device of the context's mesh, for each host to read."""
  if not is_cut():
    return tree_
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, jax.P()), tree_)


def row_shards(rows: int) -> int:
  """The number of shards of a batch's rows on the mesh of the context.

  The number is 1 without a mesh, and where the mesh axes do not divide the rows.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1
  shards = math.prod(mesh.shape[axis] for axis in ACTIVATIONS['B'])
  return shards if rows % shards == 0 else 1


def by_shard(
  function: Callable[..., PyTree], shards: int, in_axes: Sequence[int], out_axis: int
) -> Callable[..., PyTree]:
  """The function, applied to each of `shards` groups of rows, the results joined again.

  A device holds whole groups. Indices from row to row stay within a group, and move nothing between
  devices.

  Args:
    in_axes: the axis of the rows in each argument, the same in all arrays of an argument.
    out_axis: the axis of the rows in the arrays of the result.
  """
  if shards == 1:
    return function

  def cut(x: jax.Array, axis: int) -> jax.Array:
    rows = x.shape[axis]
    # The size is written out: reshape cannot infer a -1 where another axis is empty.
    return x.reshape(*x.shape[:axis], shards, rows // shards, *x.shape[axis + 1 :])

  def join(x: jax.Array) -> jax.Array:
    rows = shards * x.shape[out_axis + 1]
    return x.reshape(*x.shape[:out_axis], rows, *x.shape[out_axis + 2 :])

  def grouped(*args: PyTree) -> PyTree:
    parts = []
    for arg, axis in zip(args, in_axes):
      parts.append(jax.tree.map(functools.partial(cut, axis=axis), arg))
    results = jax.vmap(function, in_axes=tuple(in_axes), out_axes=out_axis)(*parts)
    return jax.tree.map(join, results)

  return grouped


def placed(shapes: PyTree, shardings: PyTree) -> PyTree:
  """Shapes and dtypes with shardings, to compile a program from or to restore a checkpoint to."""

  def with_sharding(x: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map(with_sharding, shapes, shardings)


def bytes_on_device(shapes: PyTree) -> int:
  """The bytes on one device of arrays with given shapes and shardings."""
  total = 0
  for x in jax.tree.leaves(shapes):
    total += math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  return total


def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
  """The array, placed on the devices of a sharding.

  Each process holds the whole array in host memory, and fills its own devices.
  """
  if isinstance(x, jax.Array) or sharding.is_fully_addressable:
    return jax.device_put(x, sharding)
  # device_put would first compare the whole array between all processes.
  array = np.asarray(x)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
