"""The mesh of a run, and how weights lie on the mesh in training and evaluation.

The module holds the rule, and the words that tell a user what the rule chose.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from weightsteer_jax import config as configs
from weightsteer_jax import models
from weightsteer_jax.runtime import processes, sharding, tree
from weightsteer_jax.runtime.messages import memory_size
from weightsteer_jax.runtime.sharding import AXES, WEIGHTS, Layout

# Share of a device's memory that weights and training state may fill; the rest is for activations.
WHOLE_SHARE = 0.6
# Of every trained parameter: its change, gradient and two moments, 4 bytes each in float32.
STATE_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Layouts:
  """How a run lies on its devices.

  Attributes:
    train: of the weights in fine-tuning.
    evaluate: of the weights in scoring and generation.
    words: lines that say what was chosen, and why.
  """

  train: Layout
  evaluate: Layout
  words: tuple[str, ...]


def choose(
  config: models.ModelConfig,
  choice: configs.Mesh,
  *,
  dtype: str,
  trained: int = 0,
  devices: Sequence[Any] = (),
  memory: float = 0.0,
) -> Layouts:
  """The layouts of a run.

  The rule: if a device holds the base and the training state whole, the mesh is `data` alone, and
  no weight is ever gathered. Otherwise `tensor` is the smallest number that divides heads, MLP and
  vocabulary and leaves each device a share of the weights that fits; `fsdp` is the rest. Training
  lies on fsdp and tensor. Evaluation lies on tensor alone, since fsdp would gather the weights at
  every token, unless a device cannot hold its share without fsdp.

  Args:
    choice: the mesh that the config asks for.
    dtype: of the weights.
    trained: number of parameters of the trained change; 0 if nothing is trained.
    devices: the devices of the mesh; all of jax's if empty.
    memory: bytes of one device; asked of the devices if 0.

  Raises:
    InputError: if the mesh does not fit the devices, or does not divide an axis of the model.
  """
  if not memory:
    memory = device_memory(devices[0]) if devices else least_memory()
  devices = list(devices) or jax.devices()
  # Bytes of the weights, and of weights and training state together.
  shapes = models.abstract_params(config)
  weights = tree.count(shapes) * jnp.dtype(dtype).itemsize
  whole = weights + STATE_BYTES * trained
  if choice.shape == 'auto':
    shape = _auto_shape(config, len(devices), weights, whole, memory)
  else:
    shape = sharding.parse(choice.shape)
  mesh = sharding.make_mesh(shape, devices)
  train = _train_layout(mesh, choice, fits=whole <= WHOLE_SHARE * memory)
  # Cut over tensor alone, do the weights still fill too much of a device?
  too_large = weights / shape['tensor'] > WHOLE_SHARE * memory
  gathered = shape['fsdp'] > 1 and too_large
  evaluate = Layout(mesh, fsdp=gathered, indivisible=choice.indivisible)
  for layout in (train, evaluate):
    # An axis that does not divide is an error now, not after the weights were read.
    models.param_shardings(config, layout)

  kind = getattr(devices[0], 'device_kind', devices[0].platform)
  automatic = ' (auto)' if choice.shape == 'auto' else ''
  chosen = (
    f'mesh: {sharding.describe(shape)}{automatic} on {len(devices)} device(s), {kind}, '
    f'{memory_size(memory)} each; weights {memory_size(weights)}'
  )
  words = [f'scoring and generation: {_say(config, evaluate, dtype)}']
  if trained:
    chosen += f', with training state {memory_size(whole)}'
    words.insert(0, f'training: {_say(config, train, dtype)}')
  return Layouts(train, evaluate, (chosen, *words))


def device_memory(device: Any) -> float:
  """Bytes of a device's memory; for a CPU device, its share of the machine's memory."""
  stats = device.memory_stats() if hasattr(device, 'memory_stats') else None
  if stats and stats.get('bytes_limit'):
    return float(stats['bytes_limit'])
  machine = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return machine / max(1, jax.local_device_count())


def least_memory() -> float:
  """Bytes of the smallest device of all processes, so that all processes choose alike.

  Every process calls this function.
  """
  return min(processes.gather(device_memory(jax.local_devices()[0])))


def bytes_per_device(config: models.ModelConfig, layout: Layout, dtype: str) -> int:
  """Bytes of the weights on one device."""
  shapes = models.abstract_params(config, dtype)
  shardings = models.param_shardings(config, layout)
  return sharding.bytes_on_device(sharding.placed(shapes, shardings))


def relay(model: models.Model, layout: Layout) -> models.Model:
  """The model with its parameters moved to another layout; the old arrays are given up."""
  shardings = models.param_shardings(model.config, layout)

  def is_there(x, where):
    return x.sharding.is_equivalent_to(where, x.ndim)

  def move(x, where):
    # Donated: two copies of the weights may not fit.
    return jax.device_put(x, where, donate=True)

  there = jax.tree.map(is_there, model.params, shardings)
  if jax.tree.all(there):
    return model
  params = jax.tree.map(move, model.params, shardings)
  return dataclasses.replace(model, params=params)


def _train_layout(mesh: jax.sharding.Mesh, choice: configs.Mesh, *, fits: bool) -> Layout:
  """The layout of fine-tuning: `data` alone if an automatic mesh fits, otherwise the mesh."""
  automatic = choice.base == 'auto' and choice.shape == 'auto'
  if choice.base != 'replicate' and not (automatic and fits):
    return Layout(mesh, fsdp=True, indivisible=choice.indivisible)
  # The same devices in the same order, so that the weights move between the two layouts without a
  # copy through hosts.
  devices = mesh.devices.reshape(-1, 1, 1)
  rows = jax.sharding.Mesh(devices, AXES, axis_types=mesh.axis_types)
  return Layout(rows, fsdp=False, indivisible=choice.indivisible)


def _auto_shape(
  config: models.ModelConfig, n: int, weights: float, whole: float, memory: float
) -> dict[str, int]:
  room = WHOLE_SHARE * memory
  if n == 1 or whole <= room:
    return {'data': n, 'fsdp': 1, 'tensor': 1}
  # The least `tensor` with which the weights fit, or the most there can be: each cut over tensor
  # costs a sum over devices in every layer.
  for tensor in _sizes_of('tensor', config, n):
    if weights / tensor <= room:
      break
  rest = n // tensor
  fsdp = _sizes_of('fsdp', config, rest)[-1]
  return {'data': rest // fsdp, 'fsdp': fsdp, 'tensor': tensor}


def _sizes_of(axis: str, config: models.ModelConfig, n: int) -> list[int]:
  """Sizes, ascending, that a mesh axis of n devices can have for this model."""
  # The size divides the devices and the length of every axis of a weight that is cut over it.
  lengths = [n]
  for letter, length in config.sizes().items():
    if WEIGHTS.get(letter) == (axis,):
      lengths.append(length)
  common = math.gcd(*lengths)
  return [size for size in range(1, n + 1) if common % size == 0]


def _say(config: models.ModelConfig, layout: Layout, dtype: str) -> str:
  axes = ('fsdp', 'tensor') if layout.fsdp else ('tensor',)
  cut = [axis for axis in axes if layout.mesh.shape[axis] > 1]
  how = 'weights whole on every device'
  if cut:
    how = f'weights cut over {" and ".join(cut)}'
  size = memory_size(bytes_per_device(config, layout, dtype))
  return f'{how}, {size} each; rows of a batch cut in {layout.rows}'
