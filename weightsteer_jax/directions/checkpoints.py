"""Hugging Face checkpoints read layer by layer in float32, never held whole: for what is to be compared with them."""
import contextlib
import dataclasses
import pathlib
from typing import Iterator

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models, tree
from weightsteer_jax.directions import base as bases
from weightsteer_jax.errors import InputError, NotFiniteError
from weightsteer_jax.models import Dense, ModelConfig, huggingface
from weightsteer_jax.models.families import Family, TensorRow

HEAD, EMBEDDING = 'lm_head.weight', 'model.embed_tokens.weight'


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """An open checkpoint.

  Attributes:
    folder, source, revision: where it lies, what the user called it, its hub commit ('' for a folder).
    config, family: its architecture. tensors: its tensors, read when asked for.
    rows: {path: how it is stored} of its parameters.
  """
  folder: pathlib.Path
  source: str
  revision: str
  config: ModelConfig
  family: Family
  tensors: huggingface.Tensors
  rows: dict[str, TensorRow]

  def layer(self, path: str, l: int) -> np.ndarray:
    """The parameter's layer l (0 outside the layer stack), float32, in our axes.

    Raises:
      InputError: a shape that is not the config's. NotFiniteError: a value that is NaN or infinite.
    """
    row = self.rows[path]
    name, theirs = row.name.format(l=l), huggingface.their_shape(row.pattern, self.config)
    if self.tensors.shape(name) != theirs:
      raise InputError(f"{self.folder}: '{name}' has shape {self.tensors.shape(name)}; its config asks for {theirs}")
    ours = huggingface.read_layer(self.config, row, self.tensors, l).astype(np.float32)
    if not np.isfinite(ours).all():
      raise NotFiniteError(f"{self.folder}: '{name}' holds NaN or infinite values")
    return ours

  def num_layers(self, path: str) -> int:
    """Number of tensors the parameter is stored as."""
    return len(huggingface.stored_layers(self.rows[path], self.config))

  def digest(self) -> str:
    """The digest of its weights (see base.digest), one parameter in memory at a time."""
    return bases.digest_leaves((path, self._whole(path)) for path in self.rows)

  def base(self) -> bases.Base:
    """The record of this checkpoint as a base model."""
    return bases.Base(self.config, self.family.model_type, self.source, self.revision, self.digest())

  def _whole(self, path: str) -> np.ndarray:
    whole = np.empty(models.sites(self.config)[path].shape, jnp.bfloat16)
    layers = whole if '{l}' in self.rows[path].name else whole[None]
    for l, target in enumerate(layers):
      target[...] = self.layer(path, l).astype(jnp.bfloat16)
    return whole


@contextlib.contextmanager
def open_checkpoint(source: str | pathlib.Path) -> Iterator[Checkpoint]:
  """The checkpoint of a folder or a hub id, its tensor names checked against its config.

  Raises:
    InputError: no such checkpoint, an unsupported one, or other tensors than its config asks for. CorruptError: a file
      cut short.
  """
  folder, revision = models.resolve(source)
  config, family = models.load_config(folder)
  rows = huggingface.tensor_rows(config, family)
  with huggingface.open_tensors(folder) as tensors:
    checkpoint = Checkpoint(folder, str(source), revision, config, family, tensors, rows)
    _check_names(checkpoint)
    yield checkpoint


def difference(x: Checkpoint, y: Checkpoint) -> dict[str, Dense]:
  """{path: x - y} in float32, of the parameters that differ at all.

  Beyond the differences, two tensors are in memory at a time.

  Raises:
    InputError: they are of different architectures.
  """
  bases.same_architecture(x.config, y.config, what=f"the checkpoints '{x.source}' and '{y.source}'")
  changes = {path: _difference_at(path, x, y) for path in x.rows}
  return {path: change for path, change in changes.items() if change is not None}


def _difference_at(path: str, x: Checkpoint, y: Checkpoint) -> Dense | None:
  change = None
  for l in range(x.num_layers(path)):
    layer = x.layer(path, l) - y.layer(path, l)
    if change is None and layer.any():
      change = np.zeros(models.sites(x.config)[path].shape, np.float32)
    if change is not None:
      (change[l] if '{l}' in x.rows[path].name else change)[...] = layer
  return None if change is None else Dense(jnp.asarray(change))


def _check_names(checkpoint: Checkpoint) -> None:
  expected = {row.name.format(l=l) for path, row in checkpoint.rows.items() for l in range(checkpoint.num_layers(path))}
  # Rotary frequencies are a function of the config; old Llama checkpoints store them all the same.
  found = {name for name in checkpoint.tensors.names() if not name.endswith('rotary_emb.inv_freq')}
  if checkpoint.config.tied and HEAD in found:
    if not np.array_equal(checkpoint.tensors.read(HEAD), checkpoint.tensors.read(EMBEDDING)):
      raise InputError(f"{checkpoint.folder}: the config says tie_word_embeddings, but '{HEAD}' differs from "
                       f"'{EMBEDDING}': transformers would drop that head; set tie_word_embeddings to false in "
                       'config.json, or remove the head')
    found -= {HEAD}
  tree.same_keys(expected, found, what=f'the tensors of {checkpoint.folder}')
