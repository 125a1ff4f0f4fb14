"""Checkpoints through orbax: whole or not there, never overwritten, and verified when read.

Orbax restores a flipped bit in silence, takes a half-copied folder for a finished one, and casts to
whatever dtype is asked for. So each folder carries our own marker beside orbax's files, written
last: shape, dtype and fingerprint of every leaf, and the caller's metadata. Leaves are stored under
their paths as plain nested dicts, so that `ocp.load(folder)` reads a checkpoint without this
project.
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
NAMED = 3  # files that an error lists
LINE_LENGTH = 200  # characters of what orbax says


def save(folder: files.Path, tree_: PyTree, *, metadata: Mapping[str, Any]) -> None:
  """Writes the arrays of a tree, and `metadata` (JSON values), as a new folder; every process calls
  it.

  Raises:
    InputError: the folder exists, a leaf is no array of a type that can be verified, or one process
      of several saves by itself. OutputError: it could not be written (a full disk, no permission);
      nothing is left behind.
  """
  Saving(folder, tree_, metadata=metadata).wait()


class Saving:
  """A save that is under way: the arrays are copied when it begins, and written while other work
  goes on.
  """

  def __init__(
    self,
    folder: files.Path,
    tree_: PyTree,
    *,
    metadata: Mapping[str, Any],
    after: Callable[[], None] = lambda: None,
  ):
    """Begins it (arguments and errors as `save`); `after` is what the main process does when all is
    written.
    """
    if processes.count() < jax.process_count():
      raise InputError(
        f'{folder}: orbax writes with all processes or not at all; run this in one process, with '
        '--distributed=off'
      )
    self._folder, self._after = pathlib.Path(folder), after
    self._error: Exception | None = None
    arrays = {path: _storable(path, leaf) for path, leaf in tree.flatten(tree_).items()}
    prints = tree.fingerprint(arrays)
    leaves = {
      path: {'shape': list(x.shape), 'dtype': str(x.dtype), 'fingerprint': prints[path]}
      for path, x in arrays.items()
    }
    self._marker = {'leaves': leaves, 'metadata': dict(metadata)}
    self._stack = contextlib.ExitStack()
    self._partial = pathlib.Path(processes.on_main(self._make_partial))
    with self._reported(), self._cleaned():
      with _quiet():
        # Orbax only fills a new folder, and refuses relative paths.
        self._response = ocp.save_async(
          (self._partial / 'orbax').absolute(), tree.unflatten(arrays)
        )
    self._thread = threading.Thread(target=self._finish, daemon=True)
    self._thread.start()

  def wait(self) -> None:
    """Returns when the checkpoint is there, for every process to read.

    Raises:
      OutputError: it could not be written.
    """
    if error := self.join():
      raise error
    processes.barrier('checkpoint')

  def join(self) -> Exception | None:
    """Waits for this process's part alone; what went wrong with it."""
    self._thread.join()
    return self._error

  def _make_partial(self) -> str:
    return str(self._stack.enter_context(files.new_folder(self._folder, what='a checkpoint')))

  def _finish(self) -> None:
    """Waits for orbax, then writes what makes it a checkpoint. Errors are kept for `wait`."""
    try:
      with self._stack:
        with self._reported(), _quiet():
          self._response.result()
        if processes.is_main():
          inner = self._partial / 'orbax'
          for path in list(inner.iterdir()):
            path.rename(self._partial / path.name)
          inner.rmdir()
          written = sorted(path for path in self._partial.rglob('*') if path.is_file())
          sizes = {str(path.relative_to(self._partial)): path.stat().st_size for path in written}
          MANIFEST.write(self._partial, {**self._marker, 'files': sizes})
      if processes.is_main():
        self._after()
    except Exception as error:
      self._error = error

  @contextlib.contextmanager
  def _cleaned(self) -> Iterator[None]:
    try:
      yield
    except BaseException:
      self._stack.__exit__(*sys.exc_info())
      raise

  @contextlib.contextmanager
  def _reported(self) -> Iterator[None]:
    try:
      yield
    # Orbax and tensorstore report a full disk as ValueError, a bad path as several others.
    except Exception as error:
      reason = (
        'no space left on device'
        if 'No space left' in str(error)
        else first_line(error, LINE_LENGTH)
      )
      raise OutputError(
        f'a checkpoint could not be written to {self._folder}: {reason}; nothing was left behind'
      ) from error


def restore(folder: files.Path, abstract: PyTree, *, part: bool = False) -> PyTree:
  """The tree of a checkpoint, in the structure of `abstract`, whose leaves give shapes, dtypes and
  maybe shardings.

  Args:
    part: the checkpoint may hold other leaves too, which are neither read nor verified.

  Raises:
    InputError: no such folder, or leaves, shapes or dtypes other than those asked for; lists them.
    CorruptError: the folder is cut short, or a leaf does not match its fingerprint.
  """
  folder = pathlib.Path(folder)
  marker = processes.on_main(lambda: MANIFEST.read(folder))
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
  """The metadata that `save` was given.

  Raises:
    InputError: no such folder. CorruptError: its marker is missing or damaged.
  """
  return processes.on_main(lambda: MANIFEST.read(pathlib.Path(folder)))['metadata']


def verify(folder: files.Path) -> dict[str, jax.ShapeDtypeStruct]:
  """{path: shape and dtype} of what a checkpoint holds, every array restored and found to match its
  fingerprint.

  Raises:
    InputError: no such folder. CorruptError: as `restore`.
  """
  leaves = MANIFEST.read(pathlib.Path(folder))['leaves']
  held = {
    path: jax.ShapeDtypeStruct(tuple(leaf['shape']), leaf['dtype']) for path, leaf in leaves.items()
  }
  restore(folder, tree.unflatten(held))
  return held


class Checkpoints:
  """The checkpoints of one training run: `<folder>/<step>`, each one of its own. Every process
  calls all of it.

  A context manager: at its end the last save is on disk, or the error that went wrong is raised.
  """

  def __init__(self, folder: files.Path):
    self.folder = pathlib.Path(folder)
    self._saving: Saving | None = None

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, *_) -> None:
    if kind is None:
      self.wait()
    elif self._saving and (
      error := self._saving.join()
    ):  # What is raised now came first; the others may be gone.
      logging.warning('%s', error)

  def path(self, step: int) -> pathlib.Path:
    """The folder of a step's checkpoint."""
    return self.folder / f'{step:08d}'

  def steps(self) -> list[int]:
    """Steps that have a folder, ascending; whether it is whole shows when it is restored."""
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
    """Begins to write the checkpoint of a step; when it is whole, those of steps that are not in
    `keep` are removed.

    It goes on in the background, until the next `save`, or `wait`, which raise what went wrong (see
    `save`).
    """
    self.wait()
    kept = None if keep is None else {step, *keep}
    self._saving = Saving(
      self.path(step),
      tree_,
      metadata=metadata,
      after=lambda: None if kept is None else self._remove_others(kept),
    )

  @jax.profiler.annotate_function
  def wait(self) -> None:
    """Returns when the last save is on disk.

    Raises:
      OutputError: it could not be written.
    """
    saving, self._saving = self._saving, None
    if saving:
      saving.wait()

  @jax.profiler.annotate_function
  def restore(self, step: int, abstract: PyTree) -> PyTree:
    """The tree of a step; see `restore`."""
    self.wait()
    return restore(self.path(step), abstract)

  def newest(self, abstract: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
    """(step, tree, metadata) of the newest checkpoint that is whole, None if there is none.

    A corrupt one is renamed to `<step>.corrupt` with a warning, and the one before it is taken.
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
    """Whether a step's checkpoint is there and can be restored; a warning says why not."""
    try:
      self.restore(step, abstract)
      return True
    except (CorruptError, InputError) as error:
      logging.warning('%s', error)
      return False

  def set_aside(self, step: int) -> None:
    """Renames a step's folder to `<step>.corrupt`, so that it is neither read nor in the way."""
    processes.on_main(lambda: self._set_aside(step))

  def _steps(self) -> list[int]:
    if not self.folder.is_dir():
      return []
    return sorted(
      int(path.name) for path in self.folder.iterdir() if path.name.isdigit() and path.is_dir()
    )

  def _set_aside(self, step: int) -> None:
    aside = self.path(step).with_suffix('.corrupt')
    shutil.rmtree(aside, ignore_errors=True)
    self.path(step).rename(aside)

  def _remove_others(self, keep: set[int]) -> None:
    for step in set(self._steps()) - keep:
      # Renamed first: a removal that is cut short must not leave half a checkpoint under its name.
      doomed = self.path(step).rename(self.folder / f'.{step:08d}.removed')
      shutil.rmtree(doomed, ignore_errors=True)

  def _remove_leftovers(self) -> None:
    """Removes what a killed process was writing or removing."""
    for pattern in ('.*.partial', '.*.removed'):
      for path in self.folder.glob(pattern):
        shutil.rmtree(path, ignore_errors=True)


def _storable(path: str, leaf: Any) -> jax.Array:
  array = jnp.asarray(leaf)
  if not hasattr(leaf, 'dtype') or array.dtype != leaf.dtype or array.dtype.itemsize > 4:
    raise InputError(
      f"the leaf '{path}' is {getattr(leaf, 'dtype', type(leaf).__name__)}; checkpoints hold "
      'arrays of at most 32 bits: cast it'
    )
  return array


def _load_arrays(
  folder: pathlib.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
  loaded, problem = {}, ''
  try:
    with _quiet(), _by_itself():
      loaded = ocp.load(folder.absolute(), tree.unflatten(wanted))
  except (
    Exception
  ) as error:  # The marker agreed on every leaf, so whatever orbax cannot read is damage.
    problem = first_line(error, LINE_LENGTH)
  problems = [problem for problem in processes.gather(problem) if problem]
  if problems:
    raise CorruptError(
      f'the checkpoint {folder} is cut short or damaged: {problems[0]}; copy it again, or remove '
      'the folder'
    )
  flat = tree.flatten(loaded)
  return {path: flat[path] for path in wanted}


@contextlib.contextmanager
def _by_itself() -> Iterator[None]:
  """Orbax reading with this process only, which waits for no other: one may fail to read what the
  others can.
  """
  own = processes.index()
  options = ocp.options.MultiprocessingOptions(
    primary_host=own, active_processes={own}, barrier_sync_key_prefix=f'process{own}'
  )
  context = ocp.Context(multiprocessing_options=options)
  context.pytree.loading.partial_load = True  # What is wanted was compared with what is there.
  with context:
    yield


def _check_files(folder: pathlib.Path, sizes: Mapping[str, int]) -> None:
  """Raises CorruptError, on every process, where a file is missing or of another size; names it."""
  wrong = []
  for name, size in sizes.items():
    path = folder / name
    if not path.is_file():
      wrong.append(f'{name} is missing')
    elif path.stat().st_size != size:
      wrong.append(f'{name} has {path.stat().st_size} bytes instead of {size}')
  wrong = next(filter(None, processes.gather(wrong)), [])
  if wrong:
    raise CorruptError(
      f'the checkpoint {folder} is cut short or damaged: {listed(wrong, NAMED)}; copy it '
      'again, or remove the folder'
    )


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
  sharding = getattr(leaf, 'sharding', None) or jax.sharding.SingleDeviceSharding(
    jax.local_devices()[0]
  )
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _compare(
  folder: pathlib.Path, leaves: Mapping[str, Any], wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> None:
  tree.same_keys(wanted, leaves, what=f'the checkpoint {folder}')
  lines = []
  for path, leaf in wanted.items():
    found, asked = (
      (tuple(leaves[path]['shape']), leaves[path]['dtype']),
      (tuple(leaf.shape), str(leaf.dtype)),
    )
    if found != asked:
      lines.append(f'  {path}: it has {found[1]} {found[0]}, asked for was {asked[1]} {asked[0]}')
  if lines:
    raise InputError(
      '\n'.join([f'the checkpoint {folder} holds other arrays than were asked for:', *lines])
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps orbax's reports of a failure, a traceback per thread and leaf, off the screen: the error
  we raise says it.
  """
  for name in ('absl', 'asyncio'):
    standard_logging.getLogger(name).addFilter(
      _not_of_orbax
    )  # Once and for good: its threads go on after the block.
  if (
    threading.current_thread() is not threading.main_thread()
  ):  # Filters of warnings are of the whole process.
    yield
    return
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    try:
      yield
    except Exception:
      gc.collect()  # Unawaited tasks report when they are collected; let them do it now.
      raise


def _not_of_orbax(record: standard_logging.LogRecord) -> bool:
  return record.name != 'asyncio' and 'orbax' not in record.pathname
