"""The direction: an exact change of a model's weights, where it comes from, and its folder on disk."""
import dataclasses
import math
import pathlib
from typing import Any, Mapping

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from weightsteer_jax import checkpoint, files, models, tree
from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions import gram
from weightsteer_jax.errors import CorruptError, InputError, NotFiniteError
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.versions import versions

PyTree = Any

TENSORS = 'direction.safetensors'
MANIFEST = 'direction.json'
FORMAT = 2
UNSEALED = 1  # The format before: the manifest has no seal of its own.


@dataclasses.dataclass(frozen=True)
class Direction:
  """A change of a model's weights and its provenance.

  Attributes:
    delta: the change, float32, at the sites of the base model (see models.delta).
    meta: JSON values: `kind` (how it was made), `base` (see base.Base), `sources` (what it was made from, each with its
      own record), and what the operations on the way added. Saving adds `format`, `norm`, `norms` per site,
      `fingerprints` and `versions`.
  """
  delta: PyTree
  meta: Mapping[str, Any]

  @property
  def base(self) -> bases.Base:
    """The model that the direction is a change of."""
    return bases.from_json(self.meta['base'], where='the direction')


def check_base(direction: Direction, model: models.Model, *, allow_other_base: bool = False) -> None:
  """Nothing, if the direction is one of this model's.

  Args:
    allow_other_base: take a model of the same architecture with other weights (a fine-tune of the base, say).
  Raises:
    InputError: another architecture, or other weights; names what differs.
  """
  what = f"the direction and the model '{model.source}'"
  bases.same_architecture(direction.base.config, model.config, what=what)
  models.check_delta(model.config, direction.delta)
  if direction.base.digest and not allow_other_base:
    bases.same_base(direction.base, bases.base_of(model), what=what)


def save(folder: files.Path, direction: Direction) -> None:
  """Writes a direction as a new folder: `direction.safetensors` and, last, `direction.json`.

  Raises:
    InputError: the folder exists. NotFiniteError: a tensor is not finite. OutputError: it could not be written; nothing
      is left.
  """
  tensors = _to_tensors(direction.delta)
  broken = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
  if broken:
    raise NotFiniteError(f'the direction is NaN or infinite at {", ".join(broken)}')
  squares = gram.squared_norms(direction.delta)
  manifest = {**direction.meta, 'format': FORMAT, 'norm': math.sqrt(math.fsum(squares.values())),
              'norms': {path: math.sqrt(value) for path, value in squares.items()},
              'versions': versions('jax', 'jaxlib', 'flax', 'numpy', 'safetensors'),
              'fingerprints': tree.fingerprint(tensors)}
  manifest.pop('seal', None)  # Of the direction that this one was made from.
  with files.new_folder(folder, what='a direction') as partial:
    files.save_safetensors(partial / TENSORS, tensors)
    files.write_json(partial / MANIFEST, checkpoint.sealed(manifest))


def load(folder: files.Path) -> Direction:
  """The direction in a folder, every tensor checked against its fingerprint.

  Raises:
    InputError: no direction there, or of another format. CorruptError: it is cut short, or was changed after it was
      written.
  """
  folder = pathlib.Path(folder)
  meta = _read_manifest(folder)
  tensors = _read_tensors(folder / TENSORS)
  prints = tree.fingerprint(tensors)
  expected = meta['fingerprints']
  changed = sorted(name for name in {*prints, *expected} if prints.get(name) != expected.get(name))
  if changed:
    raise CorruptError(f'the direction {folder} does not match its fingerprints at {", ".join(changed)}: it was '
                       'changed or damaged after it was written; copy or make it again')
  direction = Direction(_from_tensors(tensors), meta)
  models.check_delta(direction.base.config, direction.delta)
  return direction


def _to_tensors(delta: PyTree) -> dict[str, np.ndarray]:
  tensors = {}
  for path, leaf in gram.flatten(delta).items():
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
      raise CorruptError(f"the direction's tensor '{name}' is neither a dense change nor half of a whole pair; make it "
                         "again")
  return tree.unflatten(leaves)


def _read_manifest(folder: pathlib.Path) -> dict[str, Any]:
  if not folder.is_dir():
    raise InputError(f'no direction at {folder}{files.nearest(folder)}')
  if (folder / TENSORS).exists() and not (folder / MANIFEST).exists():
    raise CorruptError(f'{folder} has no {MANIFEST}, which is written last: the direction was cut short; copy or make '
                       'it again')
  if not (folder / MANIFEST).exists():
    raise InputError(f'{folder} holds no direction ({MANIFEST} and {TENSORS}); make one with launch/direction.py')
  meta = files.read_json(folder / MANIFEST, what='the manifest of a direction')
  if not isinstance(meta, dict) or meta.get('format') not in (UNSEALED, FORMAT):
    raise InputError(f'{folder / MANIFEST} is no manifest of a direction of format {FORMAT}, which this version reads')
  if meta['format'] != UNSEALED and not checkpoint.is_sealed(meta):
    raise CorruptError(f'{folder / MANIFEST} was changed or damaged after it was written; copy or make the direction '
                       'again')
  missing = [key for key in ('base', 'fingerprints', 'sources') if key not in meta]
  if missing:
    raise CorruptError(f'{folder / MANIFEST} lacks {", ".join(missing)}; copy or make the direction again')
  return meta


def _read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  if not path.exists():
    raise CorruptError(f'{path} is missing; copy or make the direction again')
  try:
    return load_file(path)
  except (SafetensorError, OSError) as error:
    raise CorruptError(f'{path} is no whole safetensors file ({error}); copy or make the direction again') from error
