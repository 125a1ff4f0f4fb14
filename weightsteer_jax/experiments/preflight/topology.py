"""Chips, pods by name, and devices that jax compiles for from afar."""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import jax

from weightsteer_jax.models import placement
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean, first_line

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """The speed and the memory of a chip.

  Attributes:
    memory: bytes that the compiler lets a program use; 0 where the device is asked.
    flops: dense bfloat16 operations per second, at the peak.
    bandwidth: bytes per second from and to the chip's memory.
    link: bytes per second out of the chip over all links to other chips together.
    bounds: chips of a host along each axis of a pod.
    most: chips of the largest pod.
    cores: units to a chip that the number in a pod's name counts.
    source: where the figures come from.
  """

  memory: float
  flops: float
  bandwidth: float
  link: float
  bounds: tuple[int, ...] = ()
  most: int = 0
  cores: int = 1
  source: str = ''


# Memory: "available HBM" in the compiler's own out-of-memory error (libtpu 0.0.42). Links: the
# documented bandwidth of both directions, halved.
CHIPS = {
  'v4': Chip(
    30.75 * GIB, 275e12, 1228e9, 150e9, (2, 2, 1), 4096, 2, 'cloud.google.com/tpu/docs/v4'
  ),
  'v5e': Chip(15.75 * GIB, 197e12, 819e9, 200e9, (2, 2), 256, 1, 'cloud.google.com/tpu/docs/v5e'),
  'v5p': Chip(
    95.74 * GIB, 459e12, 2765e9, 600e9, (2, 2, 1), 8960, 2, 'cloud.google.com/tpu/docs/v5p'
  ),
  'v6e': Chip(31.25 * GIB, 918e12, 1640e9, 400e9, (2, 2), 256, 1, 'cloud.google.com/tpu/docs/v6e'),
}
# By a part of jax's name for the device; the device is asked for the memory.
LOCAL_CHIPS = {
  'H200': Chip(0, 989e12, 4800e9, 450e9, source='nvidia.com/en-us/data-center/h200'),
  'H100': Chip(0, 989e12, 3350e9, 450e9, source='nvidia.com/en-us/data-center/h100'),
  'A100': Chip(0, 312e12, 2039e9, 300e9, source='nvidia.com/en-us/data-center/a100'),
}
# Other names of the generations, as pods are sold and libtpu has them.
ALIASES = {'v5litepod': 'v5e', 'v5lite': 'v5e', 'v5': 'v5p', 'trillium': 'v6e'}


@dataclasses.dataclass(frozen=True)
class Hardware:
  """Hardware to compile for.

  Attributes:
    name: jax's name of the topology ('v5e:4x4'), or 'local'.
    chip: None where nothing is known of the device's speed.
    devices: all devices.
    memory: bytes of one device that a program may use.
  """

  name: str
  chip: Chip | None
  devices: tuple[Any, ...]
  memory: float


def find_hardware(name: str) -> Hardware:
  """The hardware of a name.

  Args:
    name: 'local', chips along each axis as in 'v5e:4x4', or a pod as sold, as in 'v5litepod-16' or
      'v5p-32'.

  Raises:
    InputError: if the hardware is unknown, no pod is as large, or libtpu is missing.
  """
  if name == 'local':
    devices = tuple(jax.devices())
    # An unknown device has no estimate of time, but can be compiled for.
    kind = devices[0].device_kind
    chip = next((chip for part, chip in LOCAL_CHIPS.items() if part in kind), None)
    return Hardware('local', chip, devices, placement.device_memory(devices[0]))
  generation, sizes = parse(name)
  pod = CHIPS[generation]
  shape = 'x'.join(map(str, sizes))
  full_name = f'{generation}:{shape}'
  devices = _absent_devices(generation, full_name)
  return Hardware(full_name, pod, devices, pod.memory)


def parse(name: str) -> tuple[str, tuple[int, ...]]:
  """(generation, chips along each axis) of a TPU topology.

  >>> parse('v5e:4x4'), parse('v5litepod-16'), parse('v5p-32')
  (('v5e', (4, 4)), ('v5e', (4, 4)), ('v5p', (2, 2, 4)))

  Raises:
    InputError: if the generation, the shape or the size is unknown.
  """
  match = re.fullmatch(r'([a-z0-9]+?)(?::(\d+(?:x\d+){1,2})|-(\d+))', name.lower())
  generation = ALIASES.get(match[1], match[1]) if match else re.split('[:-]', name)[0]
  if not match or generation not in CHIPS:
    raise InputError(
      f"no topology '{name}'{did_you_mean(generation, CHIPS)}: expected 'local', a TPU "
      f"generation ({', '.join(CHIPS)}) with chips along each axis, as in 'v5e:4x4' or "
      "'v5p:2x2x4', or a name as it is sold, as in 'v5litepod-16' or 'v5p-32'"
    )
  chip = CHIPS[generation]
  if match[2]:
    sizes = tuple(map(int, match[2].split('x')))
  else:
    sizes = _shape(name, int(match[3]), chip)
  # Pods are made of whole hosts.
  whole = len(sizes) == len(chip.bounds)
  if whole:
    whole = all(size % bound == 0 for size, bound in zip(sizes, chip.bounds))
  if not whole or math.prod(sizes) > chip.most:
    raise InputError(
      f"no topology '{name}': {generation} has {len(chip.bounds)} axes, multiples of "
      f'{"x".join(map(str, chip.bounds))} (a host), and at most {chip.most} chips'
    )
  return generation, sizes


def _shape(name: str, number: int, chip: Chip) -> tuple[int, ...]:
  """The squarest pod with a pod name's number of chips."""
  chips = number // chip.cores
  if number % chip.cores or not chips or chips & (chips - 1):
    raise InputError(
      f"no topology '{name}': the number counts {chip.cores} to a chip, whose number must be a "
      "power of two; or give the chips along each axis, as in 'v5p:2x2x4'"
    )
  # The smallest axis is doubled until all chips have a place.
  sizes = [1] * len(chip.bounds)
  while math.prod(sizes) < chips:
    smallest = sizes.index(min(sizes))
    sizes[smallest] *= 2
  # As pods are named, smallest axis first; up to a host, as its chips lie.
  return tuple(sizes if chips <= math.prod(chip.bounds) else sorted(sizes))


def _absent_devices(generation: str, name: str) -> tuple[Any, ...]:
  """The devices of an absent topology, for the compiler."""
  from jax.experimental import topologies

  # Without these libtpu looks for the metadata server and for other hosts, and holds a lock.
  os.environ.update(
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_WORKER_ID='0',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
  )
  options = {'chip_config_name': 'megacore'} if generation == 'v4' else {}
  try:
    with _quiet():
      described = topologies.get_topology_desc(platform='tpu', topology_name=name, **options)
      return tuple(described.devices)
  # A plugin that is missing and a plugin that refuses raise errors of several classes.
  except Exception as error:
    raise InputError(
      f"cannot compile for '{name}' here: {first_line(error)}. It takes libtpu: pip install "
      "'weightsteer_jax[tpu]'"
    ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """A context without stderr."""
  # libtpu complains there of a TPU that is not attached, which is the point. The library writes to
  # the descriptor, so sys.stderr alone would not do.
  kept = os.dup(2)
  nothing = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nothing, 2)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nothing)
