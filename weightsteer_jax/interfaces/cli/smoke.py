"""Checks, in well under a minute, what a long run on many devices and hosts needs.

  weightsteer smoke --workdir=DIR|URL [--devices=N]

All devices answer and add up; every process sees the workdir; an array that lies on all devices is
saved in the workdir and comes back the same, each process writing and reading a part. With an
address in a bucket, a file is written to the bucket, read back and removed, and the array goes to
--staging. Start this program exactly as the long run will be started.
"""

import pathlib
import shutil
import time
from typing import Any

from absl import flags

from weightsteer_jax.interfaces.cli import arguments
from weightsteer_jax.interfaces.cli.program import Program


def _define_flags() -> None:
  flags.DEFINE_string('workdir', None, 'Folder of the run to come, or its address in a bucket.')
  flags.DEFINE_string(
    'staging', 'runs', 'With an address as --workdir: the local folder to work in.'
  )
  flags.DEFINE_integer(
    'devices', 0, 'Devices there should be, over all processes (0: any number).', lower_bound=0
  )
  arguments.require('workdir')


def _main() -> None:
  started = time.monotonic()
  from weightsteer_jax.runtime import processes
  from weightsteer_jax.storage import checkpoint
  from weightsteer_jax.storage.remote import mirror

  args = flags.FLAGS
  url = args.workdir if mirror.is_url(args.workdir) else ''
  workdir = pathlib.Path(args.staging if url else args.workdir)
  array_D = _add_up(args.devices)
  processes.share(workdir, what='the workdir')
  if url:
    processes.on_main(lambda: mirror.probe(url))
  folder = workdir / processes.broadcast(f'.smoke-{time.time_ns()}')
  try:
    checkpoint.save(folder, {'array': array_D}, metadata={})
    # Compares the array with the one that was saved.
    checkpoint.restore(folder, {'array': array_D})
    processes.barrier('restored')
  finally:
    processes.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))
  where = f'{workdir} and {url}' if url else workdir
  print(f'saved to {where} and read back; all is well after {time.monotonic() - started:.0f} s')


def _add_up(expected: int) -> Any:
  """The numbers 1 to the number of devices, one on each device, which all devices have added up.

  Raises:
    InputError: if there is another number of devices than expected (0: any), or the sum is wrong.
  """
  import jax
  from jax.sharding import NamedSharding, PartitionSpec

  from weightsteer_jax.runtime.errors import InputError

  count = jax.device_count()
  where = f'in {jax.process_count()} process(es)'
  print(f'{count} devices ({jax.devices()[0].device_kind}) {where}', flush=True)
  if expected not in (0, count):
    raise InputError(
      f'{count} devices {where}, expected --devices={expected}: did every '
      'host start this program, with the jax of its accelerator, and see the others '
      '(--distributed)?'
    )
  mesh = jax.make_mesh((count,), ('all',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = PartitionSpec('all')

  def numbers() -> jax.Array:
    return jax.numpy.arange(1.0, count + 1)

  def add(x_D: jax.Array) -> jax.Array:
    return jax.lax.psum(x_D[0], 'all')

  array_D = jax.jit(numbers, out_shardings=NamedSharding(mesh, spec))()
  added = jax.shard_map(add, mesh=mesh, in_specs=spec, out_specs=PartitionSpec())
  total = float(jax.jit(added)(array_D))
  expected_total = count * (count + 1) / 2
  if total != expected_total:
    raise InputError(
      f'the devices add 1 to {count} up to {total:g}, not {expected_total:g}: something between '
      'them is broken'
    )
  return array_D


PROGRAM = Program(__doc__, _define_flags, _main, together=True)
