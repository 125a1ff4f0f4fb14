"""Hugging Face checkpoints read layer by layer in float32, never held whole: for what is to be
compared with them.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions.streamed import blocks, on_disk
from weightsteer_jax.models import Dense, ModelConfig, stored
from weightsteer_jax.models.families import Family, TensorRow
from weightsteer_jax.runtime.errors import NotFiniteError
from weightsteer_jax.storage import safetensors as raws
from weightsteer_jax.storage import sealed


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """An open checkpoint.

  Attributes:
    folder, source, revision: where it lies, what the user called it, its hub commit ('' for a
    folder).
    config, family: its architecture. tensors: its tensors, read when asked for.
    rows: {path: how it is stored} of its parameters.
  """

  folder: pathlib.Path
  source: str
  revision: str
  config: ModelConfig
  family: Family
  tensors: stored.Tensors
  rows: dict[str, TensorRow]

  def layer(self, path: str, l: int) -> np.ndarray:
    """The parameter's layer l (0 outside the layer stack), with all its experts, float32, in our
    axes.

    Raises:
      NotFiniteError: a value that is NaN or infinite.
    """
    shape = models.sites(self.config)[path].shape
    bounds = [(0, size) for size in shape]
    if self.is_stacked(path):
      bounds[0] = (l, l + 1)
    ours = stored.read_slice(self.config, self.rows[path], self.tensors, bounds, np.float32)
    if not np.isfinite(ours).all():
      names = stored.stored_names(self.rows[path], self.config)
      name = next(name for at, name in names.items() if not at or at[0] == l)
      raise NotFiniteError(f"{self.folder}: '{name}' ({path}) holds NaN or infinite values")
    return ours[0] if self.is_stacked(path) else ours

  def num_layers(self, path: str) -> int:
    """Number of layers of the parameter; 1 outside the layer stack."""
    return self.config.num_layers if self.is_stacked(path) else 1

  def is_stacked(self, path: str) -> bool:
    """Whether the parameter has a layer axis."""
    return models.stack_axes(path).startswith('L')

  def raw(self) -> dict[str, raws.Raw]:
    """{name: where it lies} of its tensors, file after file."""
    return {
      name: raw
      for path in stored.weight_files(self.folder)
      for name, raw in raws.tensors_of(path).items()
    }

  def digest(self) -> str:
    """The digest of its weights (see base.digest), one parameter in memory at a time."""
    return bases.digest_leaves((path, self._whole(path)) for path in self.rows)

  def base(self) -> bases.Base:
    """The record of this checkpoint as a base model."""
    return bases.Base(
      self.config, self.family.model_type, self.source, self.revision, self.digest()
    )

  def _whole(self, path: str) -> np.ndarray:
    whole = np.empty(models.sites(self.config)[path].shape, jnp.bfloat16)
    for l, target in enumerate(whole if self.is_stacked(path) else whole[None]):
      target[...] = self.layer(path, l).astype(jnp.bfloat16)
    return whole


@contextlib.contextmanager
def open_checkpoint(source: str | pathlib.Path) -> Iterator[Checkpoint]:
  """The checkpoint of a folder or a hub id, its tensors' names, shapes and dtypes checked against
  its config.

  Raises:
    InputError: no such checkpoint, an unsupported one, or other tensors than its config asks for.
      CorruptError: a file cut short, or an export of ours that is not as it was written.
  """
  folder, revision = models.resolve(source)
  sealed.check_if_export(folder)
  config, family = models.load_config(folder)
  with stored.open_tensors(folder) as tensors:
    stored.check(config, family, tensors, folder=folder)
    yield Checkpoint(
      folder, str(source), revision, config, family, tensors, stored.tensor_rows(config, family)
    )


def difference(x: Checkpoint, y: Checkpoint) -> dict[str, Dense]:
  """{path: x - y} in float32, of the parameters that differ at all.

  Beyond the differences, a tensor is in memory at a time.

  Raises:
    InputError: they are of different architectures. NotFiniteError: a value that is NaN or
      infinite.
  """
  return {
    path: Dense(jnp.asarray(np.asarray(leaf.value)))
    for path, leaf in unread_difference(x, y).items()
  }


def unread_difference(x: Checkpoint, y: Checkpoint) -> dict[str, Dense]:
  """As `difference`, its values left where they are (see on_disk): only as much is read as tells
  that tensors differ.

  The checkpoints need not stay open, but must stay there.
  """
  bases.same_architecture(x.config, y.config, what=f"the checkpoints '{x.source}' and '{y.source}'")
  ours, theirs = x.raw(), y.raw()
  parts = [part for parts in on_disk.parts_of(x.config, x.family).values() for part in parts]
  differ = blocks.in_order(
    functools.partial(_differ, ours[part.name], theirs[part.name], part) for part in parts
  )
  changed = [part for part, different in zip(parts, differ) if different]
  names, paths = {part.name for part in changed}, {part.path for part in changed}
  values = {name: on_disk.Values(ours[name], theirs[name]) for name in ours if name in names}
  return on_disk.leaves(x.config, x.family, values, paths)


def _differ(x: raws.Raw, y: raws.Raw, part: on_disk.Part) -> bool:
  """Whether any element of the part does; reads no further than the first block that tells."""
  for start, stop in blocks.ranges(part.start, part.stop):
    ours, theirs = blocks.read(x, start, stop, 'plus'), blocks.read(y, start, stop, 'minus')
    if not np.array_equal(ours, theirs) and blocks.difference(ours, theirs).any():
      return True
  return False
