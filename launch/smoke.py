"""Checks, in well under a minute, what a long run on many devices and hosts will lean on.

  python launch/smoke.py --workdir=DIR [--devices=N]

All devices answer and add up; every process sees in the workdir what another one wrote there; an array that lies on all devices is
saved there by all processes and comes back the same. Start it exactly as the long run will be started.
"""
import pathlib
import shutil
import time

from absl import flags
from absl import logging

import _main

flags.DEFINE_string('workdir', None, 'Folder of the run to come.')
flags.DEFINE_integer('devices', 0, 'Devices there should be, over all processes (0: as many as there are).', lower_bound=0)
flags.mark_flag_as_required('workdir')


def main():
  logging.set_verbosity(logging.ERROR)  # Orbax tells of each step it takes.
  started = time.monotonic()
  import jax
  from jax.experimental import multihost_utils
  folder = pathlib.Path(flags.FLAGS.workdir).absolute() / '.smoke'
  array_D = _add_up(flags.FLAGS.devices)
  if jax.process_index() == 0:
    shutil.rmtree(folder, ignore_errors=True)
  multihost_utils.sync_global_devices('cleared')
  try:
    _write_and_see(folder)
    _save_and_restore(folder / 'checkpoint', array_D)
    multihost_utils.sync_global_devices('done')
  finally:
    if jax.process_index() == 0:
      shutil.rmtree(folder, ignore_errors=True)
  print(f'process {jax.process_index()}: ok, {time.monotonic() - started:.0f} s', flush=True)


def _add_up(expected: int):
  """The numbers 1 to the number of devices, one on each; their sum goes through every device.

  Raises:
    InputError: other than the expected number of devices, or a sum that is wrong.
  """
  import jax
  from weightsteer_jax.errors import InputError
  count = jax.device_count()
  print(f'process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of {count} devices, '
        f'{jax.devices()[0].device_kind}', flush=True)
  if expected not in (0, count):
    raise InputError(f'{count} devices in {jax.process_count()} processes, expected --devices={expected}: does every host run this '
                     'program, with the jax of its accelerator, and without --distributed=off?')
  mesh = jax.make_mesh((count,), ('all',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.P('all')
  array_D = jax.jit(lambda: jax.numpy.arange(1., count + 1), out_shardings=jax.NamedSharding(mesh, spec))()
  add = jax.shard_map(lambda x: jax.lax.psum(x[0], 'all'), mesh=mesh, in_specs=spec, out_specs=jax.P())
  total = float(jax.jit(add)(array_D))
  if total != count * (count + 1) / 2:
    raise InputError(f'the devices add up 1 to {count} to {total}, not {count * (count + 1) / 2}: a link between them is broken')
  return array_D


def _write_and_see(folder: pathlib.Path) -> None:
  """Each process writes a file, and waits until it sees those of all others.

  Raises:
    InputError: the workdir is another one on another host.
  """
  import jax
  from jax.experimental import multihost_utils
  from weightsteer_jax import files
  from weightsteer_jax.errors import InputError
  files.write_text(folder / f'process-{jax.process_index()}', 'here')
  multihost_utils.sync_global_devices('written')
  wanted = [folder / f'process-{i}' for i in range(jax.process_count())]
  deadline = time.monotonic() + 30  # Network file systems and mounted buckets cache what is not there.
  while missing := [path.name for path in wanted if not path.is_file()]:
    if time.monotonic() > deadline:
      raise InputError(f'{folder.parent} on process {jax.process_index()} does not have what {", ".join(missing)} wrote there: '
                       'the workdir must be one folder that all hosts see, such as a mounted bucket')
    time.sleep(0.5)


def _save_and_restore(folder: pathlib.Path, array_D) -> None:
  """Saves a sharded array and reads it back, each process its part.

  Raises:
    OutputError: it could not be saved. CorruptError: it came back changed.
  """
  import jax
  import numpy as np
  from orbax.checkpoint import v1 as ocp
  from weightsteer_jax.errors import CorruptError, OutputError
  try:
    ocp.save(folder, {'array': array_D})
  except Exception as error:  # Orbax and tensorstore report what a file system refuses as several types.
    raise OutputError(f'a checkpoint could not be written to {folder.parent}: {str(error).splitlines()[0]}') from error
  back_D = ocp.load(folder, {'array': jax.ShapeDtypeStruct(array_D.shape, array_D.dtype, sharding=array_D.sharding)})['array']
  for there, here in zip(back_D.addressable_shards, array_D.addressable_shards):
    if not np.array_equal(there.data, here.data):
      raise CorruptError(f'{folder.parent} gave back {np.asarray(there.data)} where {np.asarray(here.data)} was saved')


if __name__ == '__main__':
  _main.start(main)
