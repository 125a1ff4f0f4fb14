"""What two processes say to each other, and the checkpoints they write together; every process
checks for itself.

python conversation.py --folder=DIR [--fail] [--coordinator=... --num_processes=...
--process_id=...]
"""

import pathlib
import sys

from absl import flags

from weightsteer_jax.interfaces.cli import program


def messages(folder: pathlib.Path) -> None:
  """Messages of every kind, and what is raised on every process although one alone is wrong."""
  import jax

  from weightsteer_jax.runtime import processes
  from weightsteer_jax.runtime.errors import Conflict, InputError, OutputError

  index = processes.index()
  assert (processes.count(), jax.process_count(), len(jax.devices())) == (2, 2, 4)
  assert processes.is_main() == (index == 0)
  assert processes.broadcast({'from': index}) == {'from': 0}
  assert processes.gather([index, 'x']) == [[0, 'x'], [1, 'x']]
  processes.agree({'a': 1, 'b': [2]}, what='it')
  raised(
    InputError,
    r'the run must be .* same .*\n  process 1 of 2 on .*: b is 1, not 0',
    lambda: processes.agree({'a': 1, 'b': index}, what='the run'),
  )
  assert processes.on_main(lambda: [processes.count(), processes.index()]) == [1, 0]

  def fail():
    raise OutputError('the disk is full')

  raised(OutputError, 'the disk is full', lambda: processes.on_main(fail))

  def conflict():
    raise Conflict('another run has taken it over')

  raised(Conflict, 'another run has taken it over', lambda: processes.on_main(conflict))
  processes.share(folder / 'shared' / 'workdir', what='the workdir')
  assert not (folder / 'shared' / 'workdir').exists() or index, 'what was made to look is removed'
  processes.SEEN_SECONDS = 1.0
  raised(
    InputError,
    r'the workdir .*\bnot shared: process 1 of 2 on \S+ cannot see',
    lambda: processes.share(folder / str(index), what='the workdir'),
  )


def arrays(folder: pathlib.Path) -> None:
  """Global arrays are fetched, saved by both, restored on other meshes and by one; damage is found
  by both."""
  import jax
  import numpy as np

  from weightsteer_jax.runtime import processes, sharding
  from weightsteer_jax.runtime.errors import CorruptError, InputError
  from weightsteer_jax.storage import checkpoint

  values = {'a': np.arange(96, dtype=np.float32).reshape(8, 12), 'n': np.int32(3)}

  def on(shape, axes):
    layout = sharding.Layout(sharding.make_mesh(sharding.parse(shape)))
    where = {'a': layout.weights(axes, (8, 12), name='a'), 'n': layout.replicated}
    return where, jax.tree.map(sharding.put, values, where)

  where, tree = on('fsdp:4', 'D_')
  assert not tree['a'].is_fully_addressable
  jax.tree.map(np.testing.assert_array_equal, processes.fetch(tree), values)
  checkpoints = checkpoint.Checkpoints(folder / 'run')
  for step in (1, 2, 3):
    checkpoints.save(step, tree, metadata={'step': step}, keep={1, 2})
  for shape, axes in (('fsdp:4', 'D_'), ('fsdp:2,tensor:2', 'DF'), ('data:4', 'D_')):
    where, _ = on(shape, axes)
    abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), values, where
    )
    restored = checkpoints.restore(3, abstract)
    assert restored['a'].sharding.is_equivalent_to(where['a'], 2)
    jax.tree.map(np.testing.assert_array_equal, processes.fetch(restored), values)
  local = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), values)
  processes.on_main(
    lambda: np.testing.assert_array_equal(checkpoints.restore(3, local)['a'], values['a'])
  )

  def alone():
    return checkpoint.save(folder / 'of one', {'x': jax.numpy.ones(3)}, metadata={})

  raised(
    InputError,
    'with all processes or not at all.*--distributed=off',
    lambda: processes.on_main(alone),
  )

  processes.on_main(lambda: largest(folder / 'run' / '00000003').unlink())
  raised(
    CorruptError,
    r'00000003 is cut short or damaged: \S+ is missing',
    lambda: checkpoints.restore(3, abstract),
  )
  processes.on_main(lambda: flip(largest(folder / 'run' / '00000002')))
  raised(CorruptError, r'00000002', lambda: checkpoints.restore(2, abstract))
  step, restored, metadata = checkpoints.newest(abstract)
  assert (step, metadata, checkpoints.steps()) == (1, {'step': 1}, [1])
  jax.tree.map(np.testing.assert_array_equal, processes.fetch(restored), values)


def fail_in_the_midst() -> None:
  """Both sum over their devices again and again, until process 1 raises what it should not."""
  import jax

  from weightsteer_jax.runtime import processes, sharding

  layout = sharding.Layout(sharding.make_mesh(sharding.parse('data:4')))
  x = sharding.put(jax.numpy.ones((4, 8)), layout.activations('B_', (4, 8), name='x'))
  step = jax.jit(lambda x: x - x.sum(), out_shardings=x.sharding)
  for number in range(10**6):
    x = jax.block_until_ready(step(x))
    if number == 20 and processes.index() == 1:
      raise RuntimeError('a fault of the test')


def raised(kind, pattern, action) -> None:
  import re

  try:
    action()
  except kind as error:
    assert re.search(pattern, str(error)), f'{error} does not say {pattern}'
  else:
    raise AssertionError(f'{kind.__name__} was not raised')


def largest(folder: pathlib.Path) -> pathlib.Path:
  return max(
    (path for path in folder.rglob('d/*') if path.is_file()), key=lambda path: path.stat().st_size
  )


def flip(path: pathlib.Path) -> None:
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 16
  path.write_bytes(bytes(data))


def main() -> None:
  folder = pathlib.Path(flags.FLAGS.folder)
  if flags.FLAGS.fail:
    fail_in_the_midst()
  messages(folder)
  arrays(folder)
  print('all said')


def define_flags() -> None:
  flags.DEFINE_string('folder', None, 'To write to.')
  flags.DEFINE_bool('fail', False, 'Whether process 1 is to fail.')


if __name__ == '__main__':
  program.run(
    program.Program(__doc__, define_flags, main, together=True), sys.argv[1:], 'conversation.py'
  )
