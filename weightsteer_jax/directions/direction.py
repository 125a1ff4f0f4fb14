"""The direction: an exact change of a model's weights, its provenance, and its folder on disk."""

import dataclasses
import math
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions import gram
from weightsteer_jax.directions.streamed import direction_file, on_disk
from weightsteer_jax.models import Dense, LowRank, stored
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import CorruptError, NotFiniteError
from weightsteer_jax.storage import files, sealed
from weightsteer_jax.storage import safetensors as raws
from weightsteer_jax.storage.versions import versions

PyTree = Any

TENSORS = 'direction.safetensors'
MANIFEST = 'direction.json'
# Since format 3 a dense change may be stored as tensors of a checkpoint (see `save`).
FORMAT = 3
_MANIFEST = sealed.Manifest(
  noun='direction',
  name=MANIFEST,
  remedy='copy or make the direction again',
  format=FORMAT,
  earlier_formats=(1, 2),
  unsealed_formats=(1,),
  needs=('base', 'fingerprints', 'sources'),
  tensors=TENSORS,
  made_by='weightsteer direction',
)


@dataclasses.dataclass(frozen=True)
class Direction:
  """A change of a model's weights and its provenance.

  Attributes:
    delta: the change, float32, at the sites of the base model (see models.delta).
    meta: JSON values: `kind` (how the direction was made), `base` (see base.Base), `sources` (a
      record of each source), and records of further operations. Saving adds `format`, `norm`,
      `norms` per site, `fingerprints` and `versions`.
  """

  delta: PyTree
  meta: Mapping[str, Any]

  @property
  def base(self) -> bases.Base:
    """The model that the direction is a change of."""
    return bases.from_json(self.meta['base'], where='the direction')


def check_base(
  direction: Direction,
  model: models.Model,
  *,
  allow_other_base: bool = False,
  known: bases.Base | None = None,
) -> None:
  """Raises InputError if the direction is not a change of this model.

  Args:
    allow_other_base: accept a model of the same architecture with other weights, such as a
      fine-tune of the base.
    known: the model's record, where it was taken before: its digest takes a pass over all weights.

  Raises:
    InputError: if the architectures or the weights differ; the text names the difference.
  """
  what = f"the direction and the model '{model.source}'"
  bases.same_architecture(direction.base.config, model.config, what=what)
  models.check_delta(model.config, direction.delta)
  # The digest goes through all of the model's weights, so it is taken only where it decides.
  if direction.base.digest and not allow_other_base:
    bases.same_base(direction.base, known or bases.base_of(model), what=what)


def save(folder: files.Path, direction: Direction, *, sync: bool = True) -> None:
  """Writes a direction as a new folder: `direction.safetensors` and, last, `direction.json`.

  Changes in memory are written as tensors in our axes, named by path: `<path>.dense`, or the
  factors `<path>.a` and `<path>.b`. Changes on disk, or computed when read, are written block by
  block, in the names and axes of a checkpoint of the base's family: the difference of two
  checkpoints is itself a checkpoint.

  Args:
    sync: wait until the folder is on the disk.

  Raises:
    InputError: if the folder exists.
    NotFiniteError: if a value is NaN or infinite.
    OutputError: if the folder could not be written; nothing is left of it.
  """
  flat = tree.flatten(direction.delta, models.is_delta_leaf)
  with files.new_folder(folder, what='a direction', sync=sync) as partial:
    base = direction.base
    parts = on_disk.parts_of(base.config, models.FAMILIES[base.family])
    streamed = _streamed(flat, parts)
    held = {path: leaf for path, leaf in flat.items() if path not in streamed}
    tensors = _tensors(held)
    squares: dict[str, float] = {}
    prints: dict[str, str] = {}
    if streamed:
      squares, prints = direction_file.write(
        partial / TENSORS, streamed, parts, beside=tensors, sync=sync
      )
    else:
      raws.save(partial / TENSORS, tensors)
    # Norms come from the factors (see gram.py), fingerprints from the tensors as they were written.
    squares |= gram.squared_norms(tree.unflatten(held))
    prints |= tree.fingerprint(tensors)
    norms = {path: math.sqrt(square) for path, square in squares.items()}
    # Sites share no element, so their squared norms add up.
    norm = math.sqrt(math.fsum(squares.values()))
    # These entries come after `meta`, to win over it: a direction that was loaded has those of its
    # old folder there.
    manifest = {
      **direction.meta,
      'norm': norm,
      'norms': norms,
      'versions': versions('jax', 'jaxlib', 'flax', 'numpy', 'safetensors'),
      'fingerprints': prints,
    }
    _MANIFEST.write(partial, manifest)


def load(folder: files.Path, *, unread: bool = False) -> Direction:
  """The direction in a folder, every tensor checked against its fingerprint.

  Args:
    unread: leave dense changes that are stored in a checkpoint's axes on the disk; each is then
      checked when it is used.

  Raises:
    InputError: if the folder holds no direction, or one of another format.
    CorruptError: if the direction was cut short, or changed after it was written.
  """
  folder = pathlib.Path(folder)
  meta = _MANIFEST.read(folder)
  if not (folder / TENSORS).exists():
    raise CorruptError(f'{folder / TENSORS} is missing; copy or make the direction again')
  raw = raws.tensors_of(folder / TENSORS)
  prints = meta['fingerprints']
  # Names first: a missing or an unknown tensor is found before any tensor is read.
  prints_by_name = {name: prints.get(name) for name in raw}
  _MANIFEST.check_fingerprints(folder, prints, prints_by_name)
  base = bases.from_json(meta['base'], where='the direction')
  # A tensor in our axes is named by a path with '/', one of a checkpoint by a name with '.'.
  ours = {name: tensor for name, tensor in raw.items() if '/' in name}
  theirs = {name: tensor for name, tensor in raw.items() if '/' not in name}
  tensors = _read_tensors(ours)
  expected = {name: prints[name] for name in tensors}
  got = tree.fingerprint(tensors)
  _MANIFEST.check_fingerprints(folder, expected, got)
  leaves = _from_tensors(tensors)
  values = {}
  for name, tensor in theirs.items():
    values[name] = on_disk.Values(tensor, fingerprint=prints[name])
  if values:
    # A fused tensor may hold parameters that do not change: the sites with a norm are the delta's.
    changes = _from_checkpoint(values, base, paths=meta['norms'])
    for path, leaf in changes.items():
      if not unread:
        # As an array, each change is read and checked against its fingerprint.
        whole = np.asarray(leaf.value)
        leaf = Dense(jnp.asarray(whole))
      leaves[path] = leaf
  # By path, so that the order of a delta does not depend on how its file is laid out.
  in_order = dict(sorted(leaves.items()))
  direction = Direction(tree.unflatten(in_order), meta)
  models.check_delta(base.config, direction.delta)
  return direction


def _streamed(
  flat: Mapping[str, LowRank | Dense], parts: Mapping[str, list[on_disk.Part]]
) -> dict[str, LowRank | Dense]:
  """{path: change} of the changes that are written block by block."""
  streamed = {path: leaf for path, leaf in flat.items() if on_disk.is_on_disk(leaf)}
  # A fused tensor must not be there in part, and its other parameters under names of their own.
  for name in on_disk.tensors_of(streamed):
    if any(part.path in flat and part.path not in streamed for part in parts[name]):
      return {}
  return streamed


def _tensors(held: Mapping[str, LowRank | Dense]) -> dict[str, np.ndarray]:
  """{name: float32 tensor} of changes in memory, by their names in a file.

  Raises:
    NotFiniteError: if a value is NaN or infinite.
  """
  tensors = {}
  for site, leaf in held.items():
    if isinstance(leaf, Dense):
      tensors[f'{site}.dense'] = np.asarray(leaf.value, np.float32)
    else:
      tensors[f'{site}.a'] = np.asarray(leaf.a, np.float32)
      # The file has no place for the scale: B takes it.
      b = np.asarray(leaf.b, np.float32)
      tensors[f'{site}.b'] = np.float32(leaf.scale) * b
  # No manifest can hold a norm that is NaN, and steering with one would give nothing but NaN.
  broken = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
  if broken:
    raise NotFiniteError(f'the direction is NaN or infinite at {", ".join(broken)}')
  return tensors


def _from_checkpoint(
  values: Mapping[str, on_disk.Values], base: bases.Base, paths: Collection[str]
) -> dict[str, Dense]:
  """{path: change on disk} at the paths, from tensors that are stored as in a checkpoint."""
  family = models.FAMILIES[base.family]
  parts = on_disk.parts_of(base.config, family)
  for name, tensor in values.items():
    if name not in parts:
      raise CorruptError(
        f"the direction's tensor '{name}' is none of a {base.family} checkpoint; make it again"
      )
    # Parameters that share a tensor know its whole shape, so the first of them will do.
    shape = stored.stored_shape(parts[name][0].row, base.config)
    if (tensor.plus.shape, tensor.plus.dtype) != (shape, 'F32'):
      raise CorruptError(
        f"the direction's tensor '{name}' is {tensor.plus.dtype} {tensor.plus.shape}, expected F32 "
        f'{shape}; make it again'
      )
  return on_disk.leaves(base.config, family, values, paths)


def _read_tensors(raw: Mapping[str, raws.Raw]) -> dict[str, np.ndarray]:
  tensors = {}
  for name, tensor in raw.items():
    tensors[name] = np.empty(tensor.shape, raws.STORED_AS[tensor.dtype])
    # Of a new array, the flat reshape is a view, so the bytes arrive in place.
    flat = tensors[name].reshape(-1)
    tensor.read(0, flat)
  return tensors


def _from_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, LowRank | Dense]:
  """{path: leaf} from tensors in our axes."""
  leaves: dict[str, LowRank | Dense] = {}
  for name in sorted(tensors):
    path, _, part = name.rpartition('.')
    if part == 'dense':
      leaves[path] = Dense(jnp.asarray(tensors[name]))
    elif part == 'a' and f'{path}.b' in tensors:
      a = jnp.asarray(tensors[name])
      b = jnp.asarray(tensors[f'{path}.b'])
      # The leaf's scale stays 1: saving folded the scale into B.
      leaves[path] = LowRank(a, b)
    # A 'b' beside an 'a' was taken with the 'a'; anything else is damage.
    elif part != 'b' or f'{path}.a' not in tensors:
      raise CorruptError(
        f"the direction's tensor '{name}' is neither a dense change nor half of a whole pair; make "
        'it again'
      )
  return leaves
