"""Checkpoints through orbax: whole or absent, never overwritten, and verified when read.

Orbax restores a flipped bit in silence, takes a half-copied folder for a whole folder, and casts to
any dtype a caller names. So each folder carries our own marker beside orbax's files, written last:
shape, dtype and fingerprint of every leaf, the size of every file, and the caller's metadata.
Leaves are stored under their paths as plain nested dicts: `ocp.load(folder)` reads a checkpoint
without this project.
"""

import contextlib
import gc
import logging as standard_logging
import pathlib
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from orbax.checkpoint import v1 as ocp

from weightsteer_jax.runtime import processes, tree
from weightsteer_jax.runtime.errors import CorruptError, InputError, OutputError
from weightsteer_jax.runtime.messages import first_line, listed
from weightsteer_jax.storage import files, sealed

PyTree = Any

MARKER = 'weightsteer_checkpoint.json'
MANIFEST = sealed.Manifest(
  noun='checkpoint',
  name=MARKER,
  remedy='copy it again, or remove the folder',
  format=2,
  needs=('leaves', 'metadata', 'files'),
)
# Files that an error lists.
NAMED = 3
# Characters of orbax's errors that are shown: some of them dump the whole tree.
LINE_LENGTH = 200


def save(folder: files.Path, tree_: PyTree, *, metadata: Mapping[str, Any]) -> None:
  """Writes the arrays of a tree as a new folder; every process calls this.

  Args:
    metadata: JSON values to keep beside the arrays.

  Raises:
    InputError: if the folder exists, a leaf is no array of a verifiable type, or a process of
      several saves alone.
    OutputError: if the folder could not be written (a full disk, no permission); nothing is left
      behind.
  """
  Saving(folder, tree_, metadata=metadata).wait()


class Saving:
  """A save under way: arrays are copied at the start, and written while other work goes on."""

  def __init__(
    self,
    folder: files.Path,
    tree_: PyTree,
    *,
    metadata: Mapping[str, Any],
    after: Callable[[], None] = lambda: None,
  ):
    """Begins the save (arguments and errors as of `save`).

    Args:
      after: called on the main process when everything is written.
    """
    if processes.count() < jax.process_count():
      raise InputError(
        f'{folder}: orbax writes with all processes or not at all; run this in one process, with '
        '--distributed=off'
      )
    self._folder = pathlib.Path(folder)
    self._after = after
    self._error: Exception | None = None
    arrays = {path: _storable(path, leaf) for path, leaf in tree.flatten(tree_).items()}
    # Before orbax has the arrays: whatever it does to them shows when they are read.
    prints = tree.fingerprint(arrays)
    leaves = {}
    for path, x in arrays.items():
      leaves[path] = {'shape': list(x.shape), 'dtype': str(x.dtype), 'fingerprint': prints[path]}
    self._marker = {'leaves': leaves, 'metadata': dict(metadata)}
    self._stack = contextlib.ExitStack()
    self._partial = pathlib.Path(processes.on_main(self._make_partial))
    with self._reported(), self._cleaned():
      with _quiet():
        # Orbax only fills a new folder, and refuses relative paths.
        inner = (self._partial / 'orbax').absolute()
        self._response = ocp.save_async(inner, tree.unflatten(arrays))
    self._thread = threading.Thread(target=self._finish, daemon=True)
    self._thread.start()

  def wait(self) -> None:
    """Returns when every process can read the checkpoint.

    Raises:
      OutputError: if the checkpoint could not be written.
    """
    error = self.join()
    if error is not None:
      raise error
    processes.barrier('checkpoint')

  def join(self) -> Exception | None:
    """Waits for this process's part of the save; the part's error, or None."""
    self._thread.join()
    return self._error

  def _make_partial(self) -> str:
    return str(self._stack.enter_context(files.new_folder(self._folder, what='a checkpoint')))

  def _finish(self) -> None:
    """Waits for orbax, then writes the marker. Errors are kept for `wait`."""
    try:
      with self._stack:
        with self._reported(), _quiet():
          self._response.result()
        if processes.is_main():
          self._write_marker()
      # The folder has its name now.
      if processes.is_main():
        self._after()
    except Exception as error:
      self._error = error

  def _write_marker(self) -> None:
    # Orbax's files move up, so that orbax alone reads the folder as a checkpoint.
    inner = self._partial / 'orbax'
    for path in list(inner.iterdir()):
      path.rename(self._partial / path.name)
    inner.rmdir()
    sizes = {}
    for path in sorted(self._partial.rglob('*')):
      if path.is_file():
        sizes[str(path.relative_to(self._partial))] = path.stat().st_size
    MANIFEST.write(self._partial, {**self._marker, 'files': sizes})

  @contextlib.contextmanager
  def _cleaned(self) -> Iterator[None]:
    try:
      yield
    except BaseException:
      # The thread that would leave the folder's block is not started.
      self._stack.__exit__(*sys.exc_info())
      raise

  @contextlib.contextmanager
  def _reported(self) -> Iterator[None]:
    try:
      yield
    # Orbax and tensorstore report a full disk as ValueError, a bad path as several others.
    except Exception as error:
      reason = first_line(error, LINE_LENGTH)
      if 'No space left' in str(error):
        reason = 'no space left on device'
      raise OutputError(
        f'a checkpoint could not be written to {self._folder}: {reason}; nothing was left behind'
      ) from error


def restore(folder: files.Path, abstract: PyTree, *, part: bool = False) -> PyTree:
  """The tree of a checkpoint, each leaf checked against the fingerprint.

  Args:
    abstract: the structure of the tree, with the shape, dtype and (if any) sharding of each leaf.
    part: whether the checkpoint may hold further leaves, neither read nor verified.

  Raises:
    InputError: if the folder is missing, or the checkpoint has other leaves, shapes or dtypes than
      `abstract`; the error lists the differences.
    CorruptError: if the folder is cut short, or a leaf does not match the fingerprint.
  """
  folder = pathlib.Path(folder)
  # Read once: every process gets the same marker, or the same error.
  marker = processes.on_main(lambda: MANIFEST.read(folder))
  # The marker is written last: a process that sees it sees the arrays' files.
  processes.see(folder / MARKER)
  wanted = {path: _with_sharding(leaf) for path, leaf in tree.flatten(abstract).items()}
  held = {path: leaf for path, leaf in marker['leaves'].items() if not part or path in wanted}
  _compare(folder, held, wanted)
  _check_files(folder, marker['files'])
  arrays = _load_arrays(folder, wanted)
  expected = {path: held[path]['fingerprint'] for path in wanted}
  MANIFEST.check_fingerprints(folder, expected, tree.fingerprint(arrays))
  return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[path] for path in wanted])


def metadata(folder: files.Path) -> dict[str, Any]:
  """The metadata of a checkpoint, as given to `save`.

  Raises:
    InputError: if the folder is missing.
    CorruptError: if the marker is missing or damaged.
  """
  return processes.on_main(lambda: MANIFEST.read(pathlib.Path(folder)))['metadata']


def verify(folder: files.Path) -> dict[str, jax.ShapeDtypeStruct]:
  """{path: shape and dtype} of a checkpoint's arrays, each restored and found whole.

  Raises:
    InputError: if the folder is missing.
    CorruptError: if the folder is cut short, or an array does not match the fingerprint.
  """
  held = {}
  for path, leaf in MANIFEST.read(pathlib.Path(folder))['leaves'].items():
    held[path] = jax.ShapeDtypeStruct(tuple(leaf['shape']), leaf['dtype'])
  restore(folder, tree.unflatten(held))
  return held


class Checkpoints:
  """The checkpoints of a training run, in folders `<folder>/<step>`; a context manager.

  Every process calls every method. When the block ends, the last save is on disk, or the save's
  error is raised.
  """

  def __init__(self, folder: files.Path):
    self.folder = pathlib.Path(folder)
    self._saving: Saving | None = None

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    if kind is None:
      self.wait()
      return
    # The error of the block came first and is raised. The other processes may be gone: no barrier.
    error = self._saving.join() if self._saving else None
    if error is not None:
      logging.warning('%s', error)

  def path(self, step: int) -> pathlib.Path:
    """The folder of a step's checkpoint."""
    return self.folder / f'{step:08d}'

  def steps(self) -> list[int]:
    """The steps with a folder, ascending; only restoring shows whether a folder is whole."""
    return processes.on_main(self._steps)

  @jax.profiler.annotate_function
  def save(
    self,
    step: int,
    tree_: PyTree,
    *,
    metadata: Mapping[str, Any],
    keep: Iterable[int] | None = None,
  ) -> None:
    """Begins to write the checkpoint of a step, in the background.

    The next `save` or `wait` raises what went wrong.

    Args:
      metadata: JSON values to keep beside the arrays.
      keep: further steps to keep when this checkpoint is whole; None for all.
    """
    self.wait()
    # Now, not when everything is written: the caller may go on changing its list.
    kept = None if keep is None else {step, *keep}

    def remove_others() -> None:
      if kept is not None:
        self._remove_others(kept)

    self._saving = Saving(self.path(step), tree_, metadata=metadata, after=remove_others)

  @jax.profiler.annotate_function
  def wait(self) -> None:
    """Returns when the last save is on disk.

    Raises:
      OutputError: if the save could not be written.
    """
    # A save that failed is not waited for twice.
    saving = self._saving
    self._saving = None
    if saving:
      saving.wait()

  @jax.profiler.annotate_function
  def restore(self, step: int, abstract: PyTree) -> PyTree:
    """The tree of a step; see `restore`."""
    self.wait()
    return restore(self.path(step), abstract)

  def newest(self, abstract: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
    """(step, tree, metadata) of the newest whole checkpoint, or None.

    A corrupt checkpoint is renamed to `<step>.corrupt` with a warning, and the previous step's is
    taken.
    """
    self.wait()
    processes.on_main(self._remove_leftovers)
    for step in reversed(self.steps()):
      try:
        return step, self.restore(step, abstract), metadata(self.path(step))
      except CorruptError as error:
        logging.warning('%s. Falling back to an earlier checkpoint.', error)
        self.set_aside(step)
    return None

  def is_whole(self, step: int, abstract: PyTree) -> bool:
    """Whether a step's checkpoint can be restored; a warning gives the reason if not."""
    try:
      self.restore(step, abstract)
      return True
    except (CorruptError, InputError) as error:
      # The caller decides what to do without the checkpoint.
      logging.warning('%s', error)
      return False

  def set_aside(self, step: int) -> None:
    """Renames a step's folder to `<step>.corrupt`, out of the way."""
    processes.on_main(lambda: self._set_aside(step))

  def _steps(self) -> list[int]:
    if not self.folder.is_dir():
      return []
    folders = [path for path in self.folder.iterdir() if path.name.isdigit() and path.is_dir()]
    return sorted(int(path.name) for path in folders)

  def _set_aside(self, step: int) -> None:
    # One of an earlier time, of the same step, gives way.
    aside = self.path(step).with_suffix('.corrupt')
    shutil.rmtree(aside, ignore_errors=True)
    self.path(step).rename(aside)

  def _remove_others(self, keep: set[int]) -> None:
    for step in set(self._steps()) - keep:
      # Renamed first: a removal that is cut short must not leave half a checkpoint under its name.
      doomed = self.path(step).rename(self.folder / f'.{step:08d}.removed')
      shutil.rmtree(doomed, ignore_errors=True)

  def _remove_leftovers(self) -> None:
    # A killed process was writing or removing these.
    for pattern in ('.*.partial', '.*.removed'):
      for path in self.folder.glob(pattern):
        shutil.rmtree(path, ignore_errors=True)


def _storable(path: str, leaf: Any) -> jax.Array:
  array = jnp.asarray(leaf)
  # jax turns numbers of 64 bits into 32; what it would change is refused.
  if not hasattr(leaf, 'dtype') or array.dtype != leaf.dtype or array.dtype.itemsize > 4:
    raise InputError(
      f"the leaf '{path}' is {getattr(leaf, 'dtype', type(leaf).__name__)}; checkpoints hold "
      'arrays of at most 32 bits: cast it'
    )
  return array


def _load_arrays(
  folder: pathlib.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
  loaded: PyTree = {}
  problem = ''
  try:
    with _quiet(), _by_itself():
      loaded = ocp.load(folder.absolute(), tree.unflatten(wanted))
  # The marker agreed on every leaf, so that anything orbax cannot read is damage.
  except Exception as error:
    problem = first_line(error, LINE_LENGTH)
  # One process may fail to read what the others can; all raise.
  problems = [told for told in processes.gather(problem) if told]
  if problems:
    raise _damaged(folder, problems[0])
  flat = tree.flatten(loaded)
  # In the order of the caller's tree.
  return {path: flat[path] for path in wanted}


@contextlib.contextmanager
def _by_itself() -> Iterator[None]:
  """A block for orbax to read with this process only, without waiting for others."""
  process = processes.index()
  options = ocp.options.MultiprocessingOptions(
    primary_host=process, active_processes={process}, barrier_sync_key_prefix=f'process{process}'
  )
  context = ocp.Context(multiprocessing_options=options)
  # Which leaves are read was decided when they were compared with the marker.
  context.pytree.loading.partial_load = True
  with context:
    yield


def _check_files(folder: pathlib.Path, sizes: Mapping[str, int]) -> None:
  """Raises CorruptError, on every process, if a file is missing or of another size."""
  wrong = []
  for name, size in sizes.items():
    path = folder / name
    if not path.is_file():
      wrong.append(f'{name} is missing')
    elif path.stat().st_size != size:
      wrong.append(f'{name} has {path.stat().st_size} bytes instead of {size}')
  for told in processes.gather(wrong):
    if told:
      raise _damaged(folder, listed(told, NAMED))


def _damaged(folder: pathlib.Path, reason: str) -> CorruptError:
  return CorruptError(
    f'the checkpoint {folder} is cut short or damaged: {reason}; {MANIFEST.remedy}'
  )


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _compare(
  folder: pathlib.Path, leaves: Mapping[str, Any], wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> None:
  tree.same_keys(wanted, leaves, what=f'the checkpoint {folder}')
  lines = []
  for path, leaf in wanted.items():
    there = f'{leaves[path]["dtype"]} {tuple(leaves[path]["shape"])}'
    here = f'{leaf.dtype} {tuple(leaf.shape)}'
    if there != here:
      lines.append(f'  {path}: it has {there}, asked for was {here}')
  if lines:
    first = f'the checkpoint {folder} holds other arrays than were asked for:'
    raise InputError('\n'.join([first, *lines]))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """A block to keep orbax's reports of a failure off the screen.

  Orbax prints a traceback per thread and leaf; our own error says the same.
  """
  # Once and for good (a filter is added once): orbax's threads go on after the block.
  for name in ('absl', 'asyncio'):
    standard_logging.getLogger(name).addFilter(_not_of_orbax)
  # Filters of warnings belong to the whole process, and are not for other threads to change.
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    try:
      yield
    except Exception:
      # Tasks that were never awaited report when they are collected; let them report here.
      gc.collect()
      raise


def _not_of_orbax(record: standard_logging.LogRecord) -> bool:
  return record.name != 'asyncio' and 'orbax' not in record.pathname
