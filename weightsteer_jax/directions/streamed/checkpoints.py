"""Hugging Face checkpoints read layer by layer in float32, never held whole."""

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
    folder: where the files are.
    source: the path or hub id that the user gave.
    revision: the commit on the hub, '' of a folder.
    config, family: the architecture.
    tensors: the stored tensors, each read when used.
    rows: {path: how the parameter is stored}.
  """

  folder: pathlib.Path
  source: str
  revision: str
  config: ModelConfig
  family: Family
  tensors: stored.Tensors
  rows: dict[str, TensorRow]

  def layer(self, path: str, layer: int) -> np.ndarray:
    """One layer of a parameter with all its experts, float32, in our axes.

    Args:
      layer: 0 for a parameter outside the layer stack.

    Raises:
      NotFiniteError: if a value is NaN or infinite.
    """
    row = self.rows[path]
    bounds = [(0, size) for size in models.sites(self.config)[path].shape]
    if self.is_stacked(path):
      bounds[0] = (layer, layer + 1)
    ours = stored.read_slice(self.config, row, self.tensors, bounds, np.float32)
    if not np.isfinite(ours).all():
      # Of experts, the first tensor of the layer is named.
      names = stored.stored_names(row, self.config)
      name = next(name for at, name in names.items() if not at or at[0] == layer)
      raise NotFiniteError(f"{self.folder}: '{name}' ({path}) holds NaN or infinite values")
    return ours[0] if self.is_stacked(path) else ours

  def num_layers(self, path: str) -> int:
    """Number of layers of a parameter; 1 outside the layer stack."""
    return self.config.num_layers if self.is_stacked(path) else 1

  def is_stacked(self, path: str) -> bool:
    """Whether a parameter has a layer axis."""
    return models.stack_axes(path).startswith('L')

  def raw(self) -> dict[str, raws.Raw]:
    """{tensor: range of bytes in a file}, file after file."""
    return {
      name: raw
      for path in stored.weight_files(self.folder)
      for name, raw in raws.tensors_of(path).items()
    }

  def digest(self) -> str:
    """The digest of the weights (see base.digest), one parameter in memory at a time."""
    return bases.digest_leaves((path, self._whole(path)) for path in self.rows)

  def base(self) -> bases.Base:
    """The record of this checkpoint as a base model."""
    return bases.Base(
      config=self.config,
      family=self.family.model_type,
      source=self.source,
      revision=self.revision,
      digest=self.digest(),
    )

  def _whole(self, path: str) -> np.ndarray:
    # In bfloat16, as digests are taken, so that only a layer is ever held in float32.
    whole = np.empty(models.sites(self.config)[path].shape, jnp.bfloat16)
    layers = whole if self.is_stacked(path) else whole[None]
    for layer, target in enumerate(layers):
      target[...] = self.layer(path, layer).astype(jnp.bfloat16)
    return whole


@contextlib.contextmanager
def open_checkpoint(source: str | pathlib.Path) -> Iterator[Checkpoint]:
  """Opens the checkpoint of a folder or a hub id.

  The names, shapes and dtypes of its tensors are checked against its config.

  Raises:
    InputError: if no supported checkpoint is there, or its tensors do not fit its config.
    CorruptError: if a file was cut short, or an export of ours is not as it was written.
  """
  folder, revision = models.resolve(source)
  sealed.check_if_export(folder)
  config, family = models.load_config(folder)
  with stored.open_tensors(folder) as tensors:
    stored.check(config, family, tensors, folder=folder)
    yield Checkpoint(
      folder=folder,
      source=str(source),
      revision=revision,
      config=config,
      family=family,
      tensors=tensors,
      rows=stored.tensor_rows(config, family),
    )


def difference(x: Checkpoint, y: Checkpoint) -> dict[str, Dense]:
  """{path: x - y} in float32, of the parameters that differ at all.

  Beyond the differences, one tensor is in memory at a time.

  Raises:
    InputError: if the architectures differ.
    NotFiniteError: if a value is NaN or infinite.
  """
  return {
    path: Dense(jnp.asarray(np.asarray(leaf.value)))
    for path, leaf in unread_difference(x, y).items()
  }


def unread_difference(x: Checkpoint, y: Checkpoint) -> dict[str, Dense]:
  """The same as `difference`, with the values left in the checkpoints (see on_disk).

  Of each tensor, only as much is read as shows a difference. The checkpoints need not stay open,
  but their files must stay.
  """
  bases.same_architecture(x.config, y.config, what=f"the checkpoints '{x.source}' and '{y.source}'")
  raw_x = x.raw()
  raw_y = y.raw()
  parts = [part for parts in on_disk.parts_of(x.config, x.family).values() for part in parts]
  tasks = (functools.partial(_differ, raw_x[part.name], raw_y[part.name], part) for part in parts)
  names = set()
  paths = set()
  for part, differs in zip(parts, blocks.in_order(tasks)):
    if differs:
      names.add(part.name)
      paths.add(part.path)
  # A fused tensor is one change of several parameters, even where only one of them differs.
  values = {name: on_disk.Values(raw, raw_y[name]) for name, raw in raw_x.items() if name in names}
  return on_disk.leaves(x.config, x.family, values, paths)


def _differ(raw_x: raws.Raw, raw_y: raws.Raw, part: on_disk.Part) -> bool:
  """Whether any element of the part differs; stops at the first block with a difference."""
  for start, stop in blocks.ranges(part.start, part.stop):
    x = blocks.read(raw_x, start, stop, 'plus')
    y = blocks.read(raw_y, start, stop, 'minus')
    # Equal bits are the usual case, and much faster to see. Other bits may be equal numbers: 0, -0.
    if not np.array_equal(x, y) and blocks.difference(x, y).any():
      return True
  return False
