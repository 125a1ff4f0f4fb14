"""The base of an export, known from the files alone."""

import dataclasses
import math
import pathlib

from weightsteer_jax import models
from weightsteer_jax.models import stored
from weightsteer_jax.storage import files


@dataclasses.dataclass(frozen=True)
class BaseFolder:
  """A base model on disk, whose parameters were not read.

  Attributes:
    folder: where the files lie.
    config: the architecture.
    family: the `model_type`.
    source: the name the user gave: a path or a hub id.
    revision: the hub commit, or '' for a local folder.
    dtype: 'bfloat16' if all weights are stored in bfloat16, else 'float32'.
  """

  folder: pathlib.Path
  config: models.ModelConfig
  family: str
  source: str
  revision: str
  dtype: str

  @classmethod
  def find(cls, source: files.Path, *, name: str = '') -> 'BaseFolder':
    """The base at a path or a hub id.

    Args:
      source: a path or a hub id.
      name: the name to record as the source; '' is `source` itself.

    Raises:
      InputError: if there is no checkpoint, or the architecture is not supported.
    """
    folder, revision = models.resolve(source)
    config, family = models.load_config(folder)
    return cls(
      folder=folder,
      config=config,
      family=family.model_type,
      source=name or str(source),
      revision=revision,
      dtype=stored_dtype(folder),
    )

  @classmethod
  def of(cls, model: models.Model) -> 'BaseFolder':
    """The folder that a model in memory was loaded from."""
    return cls(
      folder=model.folder,
      config=model.config,
      family=model.family,
      source=model.source,
      revision=model.revision,
      dtype=stored_dtype(model.folder),
    )

  def load(self) -> models.Model:
    """The base in memory, in float32 and under the same name."""
    # The folder holds the commit that was resolved before; loaded from there, a hub model would be
    # named by its place in the cache.
    model = models.load(self.folder)
    return dataclasses.replace(model, source=self.source, revision=self.revision)

  @property
  def float32_bytes(self) -> int:
    """Bytes of the parameters once they are loaded in float32."""
    # From the shapes, because files in bfloat16 are half as large.
    sizes = [math.prod(site.shape) for site in models.sites(self.config).values()]
    return 4 * sum(sizes)

  @property
  def loadable_name(self) -> str:
    """Name that other libraries load the base by: hub id, or absolute path of the folder."""
    # Other libraries take the revision apart from the id.
    if self.revision:
      return self.source.split('@')[0]
    return str(self.folder.resolve())


def stored_dtype(folder: pathlib.Path) -> str:
  """The dtype of a checkpoint's weights: 'bfloat16', or 'float32' for everything finer."""
  # A checkpoint may mix dtypes; bfloat16 for all would then round what is stored finer.
  with stored.open_tensors(folder) as tensors:
    dtypes = {tensors.dtype(name) for name in tensors.names()}
  return 'bfloat16' if dtypes == {'BF16'} else 'float32'
