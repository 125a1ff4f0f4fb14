"""Which mesh a run takes, and how the weights lie on it in training and in evaluation: the rule,
and its words.
"""

import dataclasses
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
# Float32 change, its gradient and two moments, of every trained parameter.
STATE_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Layouts:
  """How a run lies on its devices.

  Attributes:
    train, evaluate: of the weights in fine-tuning, and in scoring and generation.
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

  The rule. Where a device holds the base and the training state whole, the mesh is `data` alone: no
  weight is ever gathered. Otherwise `tensor` is the smallest number with which a device holds its
  share of the weights (and that divides heads, MLP and vocabulary), and `fsdp` the rest. Training
  lies on fsdp and tensor. Evaluation lies on tensor alone, since fsdp would gather the weights at
  every token, unless a device cannot hold that.

  Args:
    dtype: of the weights. trained: parameters of the change that is trained; 0 if nothing is.
    devices: all of them; those that are there if empty. memory: bytes of one; asked of the device
      if 0.

  Raises:
    InputError: a mesh that does not fit the devices, or an axis of the model that it does not
      divide.
  """
  memory = memory or (device_memory(devices[0]) if devices else least_memory())
  devices = list(devices) or jax.devices()
  weights = tree.count(models.abstract_params(config)) * jnp.dtype(dtype).itemsize
  whole = weights + STATE_BYTES * trained
  if choice.shape == 'auto':
    shape = _auto_shape(config, len(devices), weights, whole, memory)
  else:
    shape = sharding.parse(choice.shape)
  mesh = sharding.make_mesh(shape, devices)
  train = _train_layout(mesh, choice, fits=whole <= WHOLE_SHARE * memory)
  by_tensor = weights / shape['tensor']
  evaluate = Layout(
    mesh,
    fsdp=shape['fsdp'] > 1 and by_tensor > WHOLE_SHARE * memory,
    indivisible=choice.indivisible,
  )
  for layout in (train, evaluate):
    models.param_shardings(config, layout)  # What does not divide is told now.
  kind = getattr(devices[0], 'device_kind', devices[0].platform)
  words = (
    f'mesh: {sharding.describe(shape)}{" (auto)" if choice.shape == "auto" else ""} on '
    f'{len(devices)} device(s), {kind}, {memory_size(memory)} each; weights {memory_size(weights)}'
    + (f', with training state {memory_size(whole)}' if trained else ''),
    *([f'training: {_say(config, train, dtype)}'] if trained else []),
    f'scoring and generation: {_say(config, evaluate, dtype)}',
  )
  return Layouts(train, evaluate, words)


def device_memory(device: Any) -> float:
  """Bytes of a device's memory; of a CPU's, its share of what the machine has."""
  stats = device.memory_stats() if hasattr(device, 'memory_stats') else None
  if stats and stats.get('bytes_limit'):
    return float(stats['bytes_limit'])
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / max(1, jax.local_device_count())


def least_memory() -> float:
  """Bytes of the smallest device of all processes, so that all choose alike; every process calls
  it.
  """
  return min(processes.gather(device_memory(jax.local_devices()[0])))


def bytes_per_device(config: models.ModelConfig, layout: Layout, dtype: str) -> int:
  """Of the weights."""
  return sharding.bytes_on_device(
    sharding.placed(models.abstract_params(config, dtype), models.param_shardings(config, layout))
  )


def relay(model: models.Model, layout: Layout) -> models.Model:
  """The model with its parameters moved to another layout (those of the old one are given up)."""
  shardings = models.param_shardings(model.config, layout)
  if jax.tree.all(
    jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), model.params, shardings)
  ):
    return model
  params = jax.tree.map(lambda x, s: jax.device_put(x, s, donate=True), model.params, shardings)
  return dataclasses.replace(model, params=params)


def _train_layout(mesh: jax.sharding.Mesh, choice: configs.Mesh, *, fits: bool) -> Layout:
  """Fine-tuning's: of an automatic mesh, `data` alone where the base fits; of a mesh that was asked
  for, that mesh.
  """
  replicate = choice.base == 'replicate' or (
    choice.base == 'auto' and choice.shape == 'auto' and fits
  )
  if not replicate:
    return Layout(mesh, fsdp=True, indivisible=choice.indivisible)
  # The same devices in the same order, so that the weights move between the two layouts without a
  # copy through hosts.
  rows = jax.sharding.Mesh(mesh.devices.reshape(-1, 1, 1), AXES, axis_types=mesh.axis_types)
  return Layout(rows, fsdp=False, indivisible=choice.indivisible)


def _auto_shape(
  config: models.ModelConfig, n: int, weights: float, whole: float, memory: float
) -> dict[str, int]:
  if n == 1 or whole <= WHOLE_SHARE * memory:
    return {'data': n, 'fsdp': 1, 'tensor': 1}
  sizes = config.sizes()
  tensors = [t for t in range(1, n + 1) if n % t == 0 and _divides(sizes, 'tensor', t)]
  tensor = next((t for t in tensors if weights / t <= WHOLE_SHARE * memory), tensors[-1])
  fsdp = max(
    f for f in range(1, n // tensor + 1) if (n // tensor) % f == 0 and _divides(sizes, 'fsdp', f)
  )
  return {'data': n // tensor // fsdp, 'fsdp': fsdp, 'tensor': tensor}


def _divides(sizes: dict[str, int], axis: str, n: int) -> bool:
  return all(size % n == 0 for letter, size in sizes.items() if WEIGHTS.get(letter) == (axis,))


def _say(config: models.ModelConfig, layout: Layout, dtype: str) -> str:
  cut = [
    axis
    for axis in ('fsdp', 'tensor')
    if layout.mesh.shape[axis] > 1 and (axis != 'fsdp' or layout.fsdp)
  ]
  how = f'weights cut over {" and ".join(cut)}' if cut else 'weights whole on every device'
  return (
    f'{how}, {memory_size(bytes_per_device(config, layout, dtype))} each; rows of a batch cut in '
    f'{layout.rows}'
  )
