"""Where arrays lie: one mesh, two tables from axis letters to mesh axes, and nothing else.

The mesh has the axes `data` (rows of a batch), `fsdp` (rows of a batch too, and slices of the
weights, gathered layer by layer as they are used) and `tensor` (heads, MLP width and vocabulary).
An array's axes are named by the letters of models/decoder.py; the tables below say which mesh axes
a letter is cut over. A letter in neither table is whole on every device.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

PyTree = Any

AXES = ('data', 'fsdp', 'tensor')

# The whole policy.                                    q kernel D N H, o kernel N H D, gate D F,
# down F D, embedding V D
WEIGHTS = {'D': ('fsdp',), 'N': ('tensor',), 'K': ('tensor',), 'F': ('tensor',), 'V': ('tensor',)}
#                                                      hidden B T D, queries B T N H, cache L B K S
# H, logits B T V
ACTIVATIONS = {
  'B': ('data', 'fsdp'),
  'N': ('tensor',),
  'K': ('tensor',),
  'F': ('tensor',),
  'V': ('tensor',),
}
MEANING = {
  'D': 'the width',
  'N': 'query heads',
  'K': 'kv heads',
  'F': 'the MLP width',
  'V': 'the vocabulary',
  'B': 'rows of the batch',
}
INDIVISIBLE = ('error', 'replicate')


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh, and how weights lie on it.

  Attributes:
    mesh: with the axes AXES.
    fsdp: whether weights are cut along `fsdp` too; otherwise along `tensor` alone, whole along the
      other axes.
    indivisible: what to do with an axis that its mesh axes do not divide: 'error' or 'replicate'.
  """

  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
  fsdp: bool = True
  indivisible: str = 'error'

  def weights(self, axes: str, shape: tuple[int, ...], *, name: str) -> jax.sharding.NamedSharding:
    """The sharding of a parameter, or of a change of one, with these axes.

    Raises:
      InputError: an axis does not divide (see `indivisible`), or there are more or fewer axes than
        letters.
    """
    table = {letter: on for letter, on in WEIGHTS.items() if self.fsdp or on != ('fsdp',)}
    return self._sharding(axes, shape, table, name)

  def activations(
    self, axes: str, shape: tuple[int, ...], *, name: str
  ) -> jax.sharding.NamedSharding:
    """The sharding of a batch, a cache or an activation with these axes (errors as `weights`)."""
    return self._sharding(axes, shape, ACTIVATIONS, name)

  def context(self) -> Any:
    """The mesh as the context in which the model's functions are to be called (see `constrain`)."""
    return jax.set_mesh(self.mesh)

  def put_batch(self, batch: PyTree, axes: str = 'BT') -> PyTree:
    """The arrays of a batch on the devices, each with the first of these axes that it has; the
    others are whole.

    Raises:
      InputError: the rows do not divide.
    """

    def place(path, x):
      return put(
        x, self.activations(axes[: np.ndim(x)].ljust(np.ndim(x), '_'), np.shape(x), name=path)
      )

    placed = {path: place(path, x) for path, x in tree.flatten(batch).items()}
    return jax.tree.unflatten(jax.tree.structure(batch), placed.values())

  @property
  def replicated(self) -> jax.sharding.NamedSharding:
    """Whole on every device."""
    return jax.sharding.NamedSharding(self.mesh, jax.P())

  @property
  def rows(self) -> int:
    """Shards that the rows of a batch are cut into; a batch has a multiple of it."""
    return math.prod(self.mesh.shape[axis] for axis in ACTIVATIONS['B'])

  def _sharding(self, axes, shape, table, name) -> jax.sharding.NamedSharding:
    if len(axes) != len(shape):
      raise InputError(f"'{name}' has shape {shape}, but axes {axes}: they must be as many")
    parts = []
    for letter, size in zip(axes, shape):
      on = table.get(letter, ())
      shards = math.prod(self.mesh.shape[axis] for axis in on)
      if size % shards and self.indivisible == 'error':
        raise InputError(_indivisible(name, axes, shape, letter, size, on, shards))
      parts.append(None if size % shards or shards == 1 else on if len(on) > 1 else on[0])
    return jax.sharding.NamedSharding(self.mesh, jax.P(*parts))


def _indivisible(name, axes, shape, letter, size, on, shards) -> str:
  fitting = [str(n) for n in range(1, shards) if size % n == 0]
  return (
    f"'{name}' of shape {shape} (axes {axes}): {MEANING.get(letter, letter)} ({letter} = {size}) "
    f"cannot be cut over {' x '.join(on)} = {shards}. Take {' x '.join(on)} of "
    f"{', '.join(fitting)}, as in --config.mesh.shape=data:1,fsdp:1,tensor:1, or keep such axes "
    'whole with --config.mesh.indivisible=replicate'
  )


def make_mesh(shape: dict[str, int], devices: Iterable[Any] | None = None) -> jax.sharding.Mesh:
  """The mesh of that shape over all the devices, neighbours on the fastest links; slices of a pod
  along `data`.

  Raises:
    InputError: the sizes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = tuple(shape[axis] for axis in AXES)
  if math.prod(sizes) != len(devices):
    raise InputError(
      f'a mesh of {describe(shape)} needs {math.prod(sizes)} devices, there are {len(devices)}: '
      'the sizes must multiply to the number of devices'
    )
  slices = len({getattr(device, 'slice_index', 0) or 0 for device in devices})
  if sizes[0] % slices:
    raise InputError(
      f'the devices are {slices} slices, which are joined along data: data must be a multiple of '
      f'{slices}, not {sizes[0]}'
    )
  # Of tensor:8 on a pod of 4 x 4 chips, one physical axis and half of the other: better than none.
  split = dict(devices=devices, allow_split_physical_axes=True)
  if slices > 1:
    grid = mesh_utils.create_hybrid_device_mesh(
      (sizes[0] // slices, *sizes[1:]), (slices, 1, 1), **split
    )
  else:
    grid = mesh_utils.create_device_mesh(sizes, **split)
  return jax.sharding.Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


@functools.cache
def single() -> Layout:
  """One device, this process's first: what everything runs on where no mesh is asked for."""
  return Layout(make_mesh(dict.fromkeys(AXES, 1), jax.local_devices()[:1]))


def parse(text: str) -> dict[str, int]:
  """{axis: size} of a mesh as text, absent axes being 1.

  >>> parse('fsdp:4,tensor:2'), parse('1x4x2')
  ({'data': 1, 'fsdp': 4, 'tensor': 2}, {'data': 1, 'fsdp': 4, 'tensor': 2})

  Raises:
    InputError: it does not read so.
  """
  shape = dict.fromkeys(AXES, 1)
  if re.fullmatch(r'\d+x\d+x\d+', text):
    text = ','.join(f'{axis}:{size}' for axis, size in zip(AXES, text.split('x')))
  for part in text.split(','):
    match = re.fullmatch(r'\s*([a-z]+)\s*[:=]\s*(\d+)\s*', part)
    if not match or match[1] not in AXES or int(match[2]) < 1:
      near = did_you_mean(match[1], AXES) if match else ''
      raise InputError(
        f"the mesh '{text}' is not understood at '{part}'{near}: expected 'auto', sizes of data, "
        "fsdp and tensor as in 'data:1,fsdp:4,tensor:2', or all three as in '1x4x2'"
      )
    shape[match[1]] = int(match[2])
  return shape


def describe(shape: dict[str, int]) -> str:
  """The mesh's shape as `parse` reads it."""
  return ','.join(f'{axis}:{shape[axis]}' for axis in AXES)


def constrain(x: jax.Array, axes: str) -> jax.Array:
  """The activation, told to lie as ACTIVATIONS says on the mesh of the context (`jax.set_mesh`); as
  it is without one.

  An axis that does not divide is left whole here: whether it may be is checked where weights and
  batches are placed.

  Raises:
    ValueError: more or fewer letters than the array has axes.
  """
  if len(axes) != x.ndim:
    raise ValueError(f'axes {axes} for an array of shape {x.shape}')
  if not is_cut():
    return x
  return jax.lax.with_sharding_constraint(
    x, jax.P(*(axes_of(letter, size) or None for letter, size in zip(axes, x.shape)))
  )


def is_cut() -> bool:
  """Whether the mesh of the context has several devices, over which arrays are cut."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.size > 1


def axes_of(letter: str, size: int) -> tuple[str, ...]:
  """The axes of the context's mesh that an activation's axis of that size is cut over; none where
  it is whole.
  """
  mesh = jax.sharding.get_abstract_mesh()
  on = (
    ()
    if mesh.empty
    else tuple(axis for axis in ACTIVATIONS.get(letter, ()) if mesh.shape[axis] > 1)
  )
  return on if on and size % math.prod(mesh.shape[axis] for axis in on) == 0 else ()


def replicate(tree_: PyTree) -> PyTree:
  """The arrays whole on every device of the context's mesh: what each host may then read."""
  if not is_cut():
    return tree_
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, jax.P()), tree_)


def row_shards(rows: int) -> int:
  """In how many shards the mesh of the context cuts that many rows: 1 without a mesh, or where they
  do not divide.
  """
  mesh = jax.sharding.get_abstract_mesh()
  shards = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in ACTIVATIONS['B'])
  return shards if rows % shards == 0 else 1


def by_shard(
  function: Callable[..., PyTree], shards: int, in_axes: Sequence[int], out_axis: int
) -> Callable[..., PyTree]:
  """The function applied to each of `shards` groups of rows by itself, the results joined again.

  What a device holds is a group, so that indices from row to row, which are then within a group,
  move nothing between devices.

  Args:
    in_axes: the axis of the rows in each argument (in each array of it). out_axis: and in the
      result.
  """
  if shards == 1:
    return function

  def cut(x, axis):
    return x.reshape(
      *x.shape[:axis], shards, x.shape[axis] // shards, *x.shape[axis + 1 :]
    )  # No -1: an axis may be empty.

  def join(x, axis):
    return x.reshape(*x.shape[:axis], shards * x.shape[axis + 1], *x.shape[axis + 2 :])

  def grouped(*args):
    parts = [
      jax.tree.map(lambda x, axis=axis: cut(x, axis), arg) for arg, axis in zip(args, in_axes)
    ]
    joined = jax.vmap(function, in_axes=tuple(in_axes), out_axes=out_axis)(*parts)
    return jax.tree.map(lambda x: join(x, out_axis), joined)

  return grouped


def placed(shapes: PyTree, shardings: PyTree) -> PyTree:
  """The shapes, each with its sharding: what a program is compiled from, or a checkpoint restored
  to.
  """
  return jax.tree.map(
    lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings
  )


def bytes_on_device(shapes: PyTree) -> int:
  """Bytes that one device holds of arrays with these shapes and shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(shapes)
  )


def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
  """The array, placed so; from host memory each process gives only what its own devices hold."""
  if isinstance(x, jax.Array) or sharding.is_fully_addressable:
    return jax.device_put(x, sharding)
  array = np.asarray(x)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
