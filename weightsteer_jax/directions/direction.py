"""The direction: an exact change of a model's weights, where it comes from, and its folder on
disk.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
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
  made_by='launch/direction.py',
)


@dataclasses.dataclass(frozen=True)
class Direction:
  """A change of a model's weights and its provenance.

  Attributes:
    delta: the change, float32, at the sites of the base model (see models.delta).
    meta: JSON values: `kind` (how it was made), `base` (see base.Base), `sources` (what it was made
      from, each with its own record), and what the operations on the way added. Saving adds
      `format`, `norm`, `norms` per site, `fingerprints` and `versions`.
  """

  delta: PyTree
  meta: Mapping[str, Any]

  @property
  def base(self) -> bases.Base:
    """The model that the direction is a change of."""
    return bases.from_json(self.meta['base'], where='the direction')


def check_base(
  direction: Direction, model: models.Model, *, allow_other_base: bool = False
) -> None:
  """Nothing, if the direction is one of this model's.

  Args:
    allow_other_base: take a model of the same architecture with other weights (a fine-tune of the
      base, say).

  Raises:
    InputError: another architecture, or other weights; names what differs.
  """
  what = f"the direction and the model '{model.source}'"
  bases.same_architecture(direction.base.config, model.config, what=what)
  models.check_delta(model.config, direction.delta)
  if direction.base.digest and not allow_other_base:
    bases.same_base(direction.base, bases.base_of(model), what=what)


def save(folder: files.Path, direction: Direction, *, sync: bool = True) -> None:
  """Writes a direction as a new folder: `direction.safetensors` and, last, `direction.json`.

  Changes in memory are tensors in our axes, called by their path: `<path>.dense`, or the factors
  `<path>.a` and `<path>.b`. Changes that are on the disk are copied block by block, in the names
  and axes of a checkpoint of the base's family: what differs between two checkpoints is a
  checkpoint of differences.

  Args:
    sync: wait until it is on the disk.

  Raises:
    InputError: the folder exists. NotFiniteError: a tensor is not finite. OutputError: it could not
      be written; nothing is left.
  """
  flat = tree.flatten(direction.delta, models.is_delta_leaf)
  with files.new_folder(folder, what='a direction', sync=sync) as partial:
    if all(map(on_disk.is_on_disk, flat.values())):
      parts = on_disk.parts_of(direction.base.config, models.FAMILIES[direction.base.family])
      squares, prints = direction_file.write(partial / TENSORS, flat, parts, sync=sync)
    else:
      squares, prints = _save_tensors(partial / TENSORS, direction.delta)
    manifest = {
      **direction.meta,
      'norm': math.sqrt(math.fsum(squares.values())),
      'norms': {path: math.sqrt(value) for path, value in squares.items()},
      'versions': versions('jax', 'jaxlib', 'flax', 'numpy', 'safetensors'),
      'fingerprints': prints,
    }
    _MANIFEST.write(partial, manifest)


def load(folder: files.Path, *, unread: bool = False) -> Direction:
  """The direction in a folder, every tensor checked against its fingerprint.

  Args:
    unread: leave dense changes that are stored as in a checkpoint on the disk; they are checked
      when they are used.

  Raises:
    InputError: no direction there, or of another format. CorruptError: it is cut short, or was
      changed after it was written.
  """
  folder = pathlib.Path(folder)
  meta = _MANIFEST.read(folder)
  if not (folder / TENSORS).exists():
    raise CorruptError(f'{folder / TENSORS} is missing; copy or make the direction again')
  raw = raws.tensors_of(folder / TENSORS)
  named = {name: meta['fingerprints'].get(name) for name in raw}
  _MANIFEST.check_fingerprints(folder, meta['fingerprints'], named)
  base = bases.from_json(meta['base'], where='the direction')
  tensors = _read_tensors(folder, raw, meta['fingerprints'])
  leaves = _from_checkpoint(raw, meta, base, unread=unread) | _from_tensors(tensors)
  direction = Direction(tree.unflatten(dict(sorted(leaves.items()))), meta)
  models.check_delta(base.config, direction.delta)
  return direction


def _save_tensors(path: pathlib.Path, delta: PyTree) -> tuple[dict[str, float], dict[str, str]]:
  """Writes a delta in memory; {path: squared norm}, {tensor: fingerprint}."""
  tensors = _to_tensors(delta)
  broken = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
  if broken:
    raise NotFiniteError(f'the direction is NaN or infinite at {", ".join(broken)}')
  files.save_safetensors(path, tensors)
  return gram.squared_norms(delta), tree.fingerprint(tensors)


def _from_checkpoint(
  raw: Mapping[str, raws.Raw], meta: Mapping[str, Any], base: bases.Base, *, unread: bool
) -> dict[str, Dense]:
  """{path: change} of those that are stored as in a checkpoint."""
  values = {
    name: on_disk.Values(tensor, fingerprint=meta['fingerprints'][name])
    for name, tensor in raw.items()
    if '/' not in name
  }
  if not values:
    return {}
  parts = on_disk.parts_of(base.config, models.FAMILIES[base.family])
  for name, tensor in values.items():
    if name not in parts:
      raise CorruptError(
        f"the direction's tensor '{name}' is none of a {base.family} checkpoint; make it again"
      )
    shape = stored.stored_shape(parts[name][0].row, base.config)
    if (tensor.plus.shape, tensor.plus.dtype) != (shape, 'F32'):
      raise CorruptError(
        f"the direction's tensor '{name}' is {tensor.plus.dtype} {tensor.plus.shape}, expected F32 "
        f'{shape}; make it again'
      )
  leaves = on_disk.leaves(base.config, models.FAMILIES[base.family], values, meta['norms'])
  return (
    leaves
    if unread
    else {path: Dense(jnp.asarray(np.asarray(leaf.value))) for path, leaf in leaves.items()}
  )


def _to_tensors(delta: PyTree) -> dict[str, np.ndarray]:
  tensors = {}
  for path, leaf in tree.flatten(delta, models.is_delta_leaf).items():
    if isinstance(leaf, Dense):
      tensors[f'{path}.dense'] = np.asarray(leaf.value, np.float32)
    else:
      tensors[f'{path}.a'] = np.asarray(leaf.a, np.float32)
      tensors[f'{path}.b'] = np.float32(leaf.scale) * np.asarray(leaf.b, np.float32)
  return tensors


def _from_tensors(tensors: Mapping[str, np.ndarray]) -> PyTree:
  leaves = {}
  for name in sorted(tensors):
    path, _, part = name.rpartition('.')
    if part == 'dense':
      leaves[path] = Dense(jnp.asarray(tensors[name]))
    elif part == 'a' and f'{path}.b' in tensors:
      leaves[path] = LowRank(jnp.asarray(tensors[name]), jnp.asarray(tensors[f'{path}.b']))
    elif part != 'b' or f'{path}.a' not in tensors:
      raise CorruptError(
        f"the direction's tensor '{name}' is neither a dense change nor half of a whole pair; make "
        'it again'
      )
  return tree.unflatten(leaves)


def _read_tensors(
  folder: pathlib.Path, raw: Mapping[str, raws.Raw], prints: Mapping[str, str]
) -> dict[str, np.ndarray]:
  """The tensors in our axes, checked."""
  tensors = {}
  for name in (name for name in raw if '/' in name):
    tensors[name] = np.empty(raw[name].shape, raws.STORED_AS[raw[name].dtype])
    raw[name].read(0, tensors[name].reshape(-1))
  expected = {name: prints[name] for name in tensors}
  _MANIFEST.check_fingerprints(folder, expected, tree.fingerprint(tensors))
  return tensors
