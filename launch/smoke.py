"""Checks, in well under a minute, what a long run on many devices and hosts will lean on.

  python launch/smoke.py --workdir=DIR|URL [--devices=N]

All devices answer and add up; every process sees the workdir; an array that lies on all devices is
saved there and comes back the same, each process writing and reading its part. Of an address in a
bucket: a file is written there, read back and removed, and the folder is --staging. Start it
exactly as the long run will be started.
"""

import pathlib
import shutil
import time

import _main
from absl import flags

flags.DEFINE_string('workdir', None, 'Folder of the run to come, or its address in a bucket.')
flags.DEFINE_string('staging', 'runs', 'With an address as --workdir: the local folder to work in.')
flags.DEFINE_integer(
  'devices', 0, 'Devices there should be, over all processes (0: any number).', lower_bound=0
)
flags.mark_flag_as_required('workdir')


def main():
  started = time.monotonic()
  from weightsteer_jax.runtime import processes as distributed
  from weightsteer_jax.storage import checkpoint
  from weightsteer_jax.storage.remote import mirror

  args = flags.FLAGS
  url = args.workdir if mirror.is_url(args.workdir) else ''
  workdir = pathlib.Path(args.staging if url else args.workdir)
  array_D = _add_up(args.devices)
  distributed.share(workdir, what='the workdir')
  if url:
    distributed.on_main(lambda: mirror.probe(url))
  folder = workdir / distributed.broadcast(f'.smoke-{time.time_ns()}')
  try:
    checkpoint.save(folder, {'array': array_D}, metadata={})
    checkpoint.restore(folder, {'array': array_D})  # Compares it with what was saved.
    distributed.barrier('restored')
  finally:
    distributed.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))
  where = f'{workdir} and {url}' if url else workdir
  print(f'saved to {where} and read back; all is well after {time.monotonic() - started:.0f} s')


def _add_up(expected: int):
  """The numbers 1 to the number of devices, one on each, whose sum has gone through all of them.

  Raises:
    InputError: another number of devices than expected, or a wrong sum.
  """
  import jax
  from jax.sharding import NamedSharding, PartitionSpec

  from weightsteer_jax.runtime.errors import InputError

  count, processes = jax.device_count(), jax.process_count()
  print(f'{count} devices ({jax.devices()[0].device_kind}) in {processes} process(es)', flush=True)
  if expected not in (0, count):
    raise InputError(
      f'{count} devices in {processes} process(es), expected --devices={expected}: did every '
      'host start this program, with the jax of its accelerator, and see the others '
      '(--distributed)?'
    )
  mesh = jax.make_mesh((count,), ('all',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = PartitionSpec('all')
  array_D = jax.jit(
    lambda: jax.numpy.arange(1.0, count + 1), out_shardings=NamedSharding(mesh, spec)
  )()
  add = jax.shard_map(
    lambda x: jax.lax.psum(x[0], 'all'), mesh=mesh, in_specs=spec, out_specs=PartitionSpec()
  )
  total = float(jax.jit(add)(array_D))
  if total != count * (count + 1) / 2:
    raise InputError(
      f'the devices add 1 to {count} up to {total:g}, not {count * (count + 1) / 2:g}: something '
      'between them is broken'
    )
  return array_D


if __name__ == '__main__':
  _main.start(main)
