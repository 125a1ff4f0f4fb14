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
    hub_name: org/name or org/name@revision on the hub, where a local copy is known by it; '' if
      unknown.
  """

  folder: pathlib.Path
  config: models.ModelConfig
  family: str
  source: str
  revision: str
  dtype: str
  hub_name: str = ''

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
    if self.is_on_hub:
      return (self.hub_name or self.source).split('@')[0]
    return str(self.folder.resolve())

  @property
  def title(self) -> str:
    """Name for readers: the hub id, or the last part of a path, which is nobody's disk."""
    if self.is_on_hub:
      return self.loadable_name
    return self.source.rstrip('/').split('/')[-1]

  @property
  def loadable_revision(self) -> str:
    """The revision beside `loadable_name`; '' for none."""
    return self.hub_name.partition('@')[2] if self.hub_name else self.revision

  @property
  def is_on_hub(self) -> bool:
    """Whether the base is known by a name that others can load it by."""
    return bool(self.hub_name or self.revision)

  def on_hub(self, name: str) -> 'BaseFolder':
    """The base under its name on the hub.

    Args:
      name: org/name or org/name@revision; '' is the name of the cache that the folder lies in, if
        it lies in one.
    """
    if not name and not self.revision:
      name = _name_in_cache(self.folder)
    return dataclasses.replace(self, hub_name=name)


def _name_in_cache(folder: pathlib.Path) -> str:
  """org/name@commit of a folder models--org--name/snapshots/<commit>; '' of any other.

  Source: huggingface_hub, the layout of its cache.
  """
  snapshot = folder.absolute()
  kind, _, name = snapshot.parent.parent.name.partition('--')
  if snapshot.parent.name != 'snapshots' or kind != 'models':
    return ''
  return f'{name.replace("--", "/", 1)}@{snapshot.name}'


def stored_dtype(folder: pathlib.Path) -> str:
  """The dtype of a checkpoint's weights: 'bfloat16', or 'float32' for everything finer."""
  # A checkpoint may mix dtypes; bfloat16 for all would then round what is stored finer.
  with stored.open_tensors(folder) as tensors:
    dtypes = {tensors.dtype(name) for name in tensors.names()}
  return 'bfloat16' if dtypes == {'BF16'} else 'float32'
