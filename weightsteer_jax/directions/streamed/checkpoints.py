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
    shape = models.sites(self.config)[path].shape
    bounds = [(0, size) for size in shape]
    # The layer axis is the first. A slice of one layer keeps it, so it is taken off at the end.
    if self.is_stacked(path):
      bounds[0] = (layer, layer + 1)
    ours = stored.read_slice(self.config, row, self.tensors, bounds, np.float32)
    # A single NaN would make the norm and every cosine of the change NaN.
    if not np.isfinite(ours).all():
      # Of experts, the first tensor of the layer is named.
      names = stored.stored_names(row, self.config)
      # An index is (), (layer,) or (layer, expert).
      in_layer = [name for at, name in names.items() if at[:1] in ((), (layer,))]
      raise NotFiniteError(f"{self.folder}: '{in_layer[0]}' ({path}) holds NaN or infinite values")
    return ours[0] if self.is_stacked(path) else ours

  def num_layers(self, path: str) -> int:
    """Number of layers of a parameter; 1 outside the layer stack."""
    return self.config.num_layers if self.is_stacked(path) else 1

  def is_stacked(self, path: str) -> bool:
    """Whether a parameter has a layer axis."""
    return models.stack_axes(path).startswith('L')

  def raw(self) -> dict[str, raws.Raw]:
    """{tensor: range of bytes in a file}, file after file."""
    tensors = {}
    for path in stored.weight_files(self.folder):
      tensors.update(raws.tensors_of(path))
    return tensors

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
    shape = models.sites(self.config)[path].shape
    whole = np.empty(shape, jnp.bfloat16)
    # Views of the whole, one a layer: what is assigned to a view is in the whole.
    layers = whole if self.is_stacked(path) else whole[None]
    for layer, target in enumerate(layers):
      values = self.layer(path, layer)
      target[...] = values.astype(jnp.bfloat16)
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
  # Exports of ours say what their files hash to; checkpoints of others are taken as they are.
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
  differences = {}
  for path, leaf in unread_difference(x, y).items():
    # As an array, the change is read from both files.
    values = np.asarray(leaf.value)
    differences[path] = Dense(jnp.asarray(values))
  return differences


def unread_difference(x: Checkpoint, y: Checkpoint) -> dict[str, Dense]:
  """The same as `difference`, with the values left in the checkpoints (see on_disk).

  Of each tensor, only as much is read as shows a difference. The checkpoints need not stay open,
  but their files must stay.
  """
  bases.same_architecture(x.config, y.config, what=f"the checkpoints '{x.source}' and '{y.source}'")
  raw_x = x.raw()
  raw_y = y.raw()
  # By part and not by tensor, as only some parameters of a fused tensor may differ.
  parts = []
  for parts_of_tensor in on_disk.parts_of(x.config, x.family).values():
    parts += parts_of_tensor
  tasks = (functools.partial(_differ, raw_x[part.name], raw_y[part.name], part) for part in parts)
  names = set()
  paths = set()
  for part, differs in zip(parts, blocks.in_order(tasks)):
    if differs:
      names.add(part.name)
      paths.add(part.path)
  # A fused tensor is one change of several parameters, even where only one of them differs.
  values = {}
  for name, raw in raw_x.items():
    if name in names:
      values[name] = on_disk.Values(raw, raw_y[name])
  return on_disk.leaves(x.config, x.family, values, paths)


def _differ(raw_x: raws.Raw, raw_y: raws.Raw, part: on_disk.Part) -> bool:
  """Whether any element of the part differs; stops at the first block with a difference."""
  for start, stop in blocks.ranges(part.start, part.stop):
    x = blocks.read(raw_x, start, stop, 'plus')
    y = blocks.read(raw_y, start, stop, 'minus')
    # Equal bits are the usual case, and much faster to see.
    if np.array_equal(x, y):
      continue
    # Other bits may be equal numbers: 0 and -0.
    if blocks.difference(x, y).any():
      return True
  return False
