"""Checkpoints through orbax: whole or not there, never overwritten, and verified when read.

Orbax restores a flipped bit in silence, takes a half-copied folder for a finished one, and casts to whatever dtype is
asked for. So each folder carries our own marker beside orbax's files, written last: shape, dtype and fingerprint of
every leaf, and the caller's metadata. Leaves are stored under their paths as plain nested dicts, so that
`ocp.load(folder)` reads a checkpoint without this project.
"""
import contextlib
import gc
import hashlib
import json
import logging as standard_logging
import pathlib
import shutil
from typing import Any, Iterable, Iterator, Mapping
import warnings

from absl import logging
import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from weightsteer_jax import files, tree
from weightsteer_jax.errors import CorruptError, InputError, OutputError

PyTree = Any

MARKER = 'weightsteer_checkpoint.json'
FORMAT = 1


def save(folder: files.Path, tree_: PyTree, *, metadata: Mapping[str, Any]) -> None:
  """Writes the arrays of a tree, and `metadata` (JSON values), as a new folder.

  Raises:
    InputError: the folder exists, or a leaf is no array of a type that can be verified. OutputError: it could not be
      written (a full disk, no permission); nothing is left behind.
  """
  arrays = {path: _storable(path, leaf) for path, leaf in tree.flatten(tree_).items()}
  with files.new_folder(folder, what='a checkpoint') as partial:
    _save_arrays(partial, arrays, folder)
    prints = tree.fingerprint(arrays)
    leaves = {path: {'shape': list(x.shape), 'dtype': str(x.dtype), 'fingerprint': prints[path]}
              for path, x in arrays.items()}
    files.write_json(partial / MARKER, sealed({'format': FORMAT, 'leaves': leaves, 'metadata': dict(metadata)}))


def restore(folder: files.Path, abstract: PyTree) -> PyTree:
  """The tree of a checkpoint, in the structure of `abstract`, whose leaves give shapes, dtypes and maybe shardings.

  Raises:
    InputError: no such folder, or leaves, shapes or dtypes other than those asked for; lists them.
    CorruptError: the folder is cut short, or a leaf does not match its fingerprint.
  """
  folder = pathlib.Path(folder)
  leaves = _read_marker(folder)['leaves']
  wanted = {path: _with_sharding(leaf) for path, leaf in tree.flatten(abstract).items()}
  _compare(folder, leaves, wanted)
  arrays = _load_arrays(folder, wanted)
  changed = [path for path, value in tree.fingerprint(arrays).items() if value != leaves[path]['fingerprint']]
  if changed:
    raise CorruptError(f'the checkpoint {folder} does not match its fingerprints at {", ".join(changed)}: it was '
                       'changed or damaged after it was written; copy it again, or remove the folder')
  return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[path] for path in wanted])


def metadata(folder: files.Path) -> dict[str, Any]:
  """The metadata that `save` was given.

  Raises:
    InputError: no such folder. CorruptError: its marker is missing or damaged.
  """
  return _read_marker(pathlib.Path(folder))['metadata']


def verify(folder: files.Path) -> dict[str, jax.ShapeDtypeStruct]:
  """{path: shape and dtype} of what a checkpoint holds, every array restored and found to match its fingerprint.

  Raises:
    InputError: no such folder. CorruptError: as `restore`.
  """
  leaves = _read_marker(pathlib.Path(folder))['leaves']
  held = {path: jax.ShapeDtypeStruct(tuple(leaf['shape']), leaf['dtype']) for path, leaf in leaves.items()}
  restore(folder, tree.unflatten(held))
  return held


class Checkpoints:
  """The checkpoints of one training run: `<folder>/<step>`, each a checkpoint of its own."""

  def __init__(self, folder: files.Path):
    self.folder = pathlib.Path(folder)

  def path(self, step: int) -> pathlib.Path:
    """The folder of a step's checkpoint."""
    return self.folder / f'{step:08d}'

  def steps(self) -> list[int]:
    """Steps that have a folder, ascending; whether it is whole shows when it is restored."""
    if not self.folder.is_dir():
      return []
    return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit() and path.is_dir())

  def save(self, step: int, tree_: PyTree, *, metadata: Mapping[str, Any]) -> None:
    """Writes the checkpoint of a step; see `save`."""
    save(self.path(step), tree_, metadata=metadata)

  def restore(self, step: int, abstract: PyTree) -> PyTree:
    """The tree of a step; see `restore`."""
    return restore(self.path(step), abstract)

  def newest(self, abstract: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
    """(step, tree, metadata) of the newest checkpoint that is whole, None if there is none.

    A corrupt one is renamed to `<step>.corrupt` with a warning, and the one before it is taken.
    """
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
    aside = self.path(step).with_suffix('.corrupt')
    shutil.rmtree(aside, ignore_errors=True)
    self.path(step).rename(aside)

  def keep(self, steps: Iterable[int]) -> None:
    """Removes the checkpoints of all other steps."""
    for step in set(self.steps()) - set(steps):
      # Renamed first: a removal that is cut short must not leave half a checkpoint under its name.
      doomed = self.path(step).rename(self.folder / f'.{step:08d}.removed')
      shutil.rmtree(doomed, ignore_errors=True)


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
  """A JSON object with a hash of its own contents under 'seal', as it comes back from a file."""
  text = json.dumps(dict(value), sort_keys=True, allow_nan=False)
  return {**json.loads(text), 'seal': hashlib.sha256(text.encode()).hexdigest()}


def is_sealed(value: Any) -> bool:
  """Whether this is what `sealed` made, unchanged."""
  return isinstance(value, dict) and value == sealed({key: item for key, item in value.items() if key != 'seal'})


def _storable(path: str, leaf: Any) -> jax.Array:
  array = jnp.asarray(leaf)
  if not hasattr(leaf, 'dtype') or array.dtype != leaf.dtype or array.dtype.itemsize > 4:
    raise InputError(f"the leaf '{path}' is {getattr(leaf, 'dtype', type(leaf).__name__)}; checkpoints hold arrays of "
                     'at most 32 bits: cast it')
  return array


def _save_arrays(partial: pathlib.Path, arrays: Mapping[str, jax.Array], folder: files.Path) -> None:
  """Writes orbax's files into `partial`; orbax only fills a new folder, so they are moved up from one inside."""
  inner = partial / 'orbax'
  try:
    with _quiet():
      ocp.save(inner.absolute(), tree.unflatten(arrays))  # Orbax refuses relative paths.
  except Exception as error:  # Orbax and tensorstore report a full disk as ValueError, a bad path as several others.
    reason = 'no space left on device' if 'No space left' in str(error) else _first_line(error)
    raise OutputError(f'a checkpoint could not be written to {folder}: {reason}; nothing was left behind') from error
  for path in list(inner.iterdir()):
    path.rename(partial / path.name)
  inner.rmdir()


def _load_arrays(folder: pathlib.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
  try:
    with _quiet():
      loaded = ocp.load(folder.absolute(), tree.unflatten(wanted))
  except Exception as error:  # The marker agreed on every leaf, so whatever orbax cannot read is damage.
    raise CorruptError(f'the checkpoint {folder} is cut short or damaged: {_first_line(error)}; copy it again, or '
                       'remove the folder') from error
  flat = tree.flatten(loaded)
  return {path: flat[path] for path in wanted}


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
  sharding = getattr(leaf, 'sharding', None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _compare(folder: pathlib.Path, leaves: Mapping[str, Any], wanted: Mapping[str, jax.ShapeDtypeStruct]) -> None:
  tree.same_keys(wanted, leaves, what=f'the checkpoint {folder}')
  lines = []
  for path, leaf in wanted.items():
    found, asked = (tuple(leaves[path]['shape']), leaves[path]['dtype']), (tuple(leaf.shape), str(leaf.dtype))
    if found != asked:
      lines.append(f'  {path}: it has {found[1]} {found[0]}, asked for was {asked[1]} {asked[0]}')
  if lines:
    raise InputError('\n'.join([f'the checkpoint {folder} holds other arrays than were asked for:', *lines]))


def _read_marker(folder: pathlib.Path) -> dict[str, Any]:
  if not folder.is_dir():
    raise InputError(f'no checkpoint at {folder}{files.nearest(folder)}')
  if not (folder / MARKER).is_file():
    raise CorruptError(f'{folder} has no {MARKER}, which is written last: it is no checkpoint of ours, or was cut '
                       'short while it was written or copied')
  marker = files.read_json(folder / MARKER, what='the marker of a checkpoint')
  if not is_sealed(marker):
    raise CorruptError(f'{folder / MARKER} was changed or damaged after it was written; copy the checkpoint again')
  if marker['format'] != FORMAT:
    raise InputError(f'{folder} is a checkpoint of format {marker["format"]}; this version reads format {FORMAT}')
  return marker


def _first_line(error: Exception) -> str:
  line = (str(error).strip().splitlines() or [''])[0]
  return (line[:200] + ' ...' if len(line) > 200 else line) or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps orbax's reports of a failure, a traceback per thread and leaf, off the screen: the error we raise says it."""
  loggers = [standard_logging.getLogger(name) for name in ('absl', 'asyncio')]
  levels = [logger.level for logger in loggers]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    for logger in loggers:
      logger.setLevel(standard_logging.CRITICAL)
    try:
      yield
    except Exception:
      gc.collect()  # Unawaited tasks report when they are collected; let them do it now.
      raise
    finally:
      for logger, level in zip(loggers, levels):
        logger.setLevel(level)
