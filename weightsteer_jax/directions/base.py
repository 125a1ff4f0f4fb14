"""What a direction is a change of: a base model, told from others by its architecture and a digest
of its weights.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.models import ModelConfig
from weightsteer_jax.runtime import hashes, tree
from weightsteer_jax.runtime.errors import InputError

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Base:
  """A base model as a direction remembers it.

  Attributes:
    config, family: its architecture. source, revision: what the user called it, and its hub commit.
    digest: see `digest`; '' if it is not known (a difference of two checkpoints belongs to every
      base of its architecture).
  """

  config: ModelConfig
  family: str
  source: str
  revision: str
  digest: str

  def to_json(self) -> dict[str, Any]:
    """The record as plain values, with the tied embeddings said at the top."""
    return {
      'source': self.source,
      'revision': self.revision,
      'digest': self.digest,
      'family': self.family,
      'tied_embeddings': self.config.tied,
      'config': models.config_to_record(self.config),
    }


def from_json(record: Mapping[str, Any], *, where: str) -> Base:
  """The inverse of `Base.to_json`."""
  config = config_from_json(record['config'], where=where)
  return Base(config, record['family'], record['source'], record['revision'], record['digest'])


def config_from_json(record: Mapping[str, Any], *, where: str) -> ModelConfig:
  """The ModelConfig of `config_to_record(config)`; what an older version did not write is what it
  was by default.

  Raises:
    InputError: fields that this version of the library does not have, or lacks.
  """
  try:
    return models.config_from_record(record)
  except (TypeError, KeyError) as error:
    raise InputError(
      f'{where} describes a model with fields this version does not know ({error}); make it again '
      'with this version'
    ) from error


def digest(params: PyTree) -> str:
  """16 hex digits that name the weights: `tree.digest` of them rounded to bfloat16.

  Rounded, a base has one name whether it was loaded in float32 or in bfloat16.
  """
  return digest_leaves(tree.flatten(params).items())


def digest_leaves(leaves: Iterable[tuple[str, Any]]) -> str:
  """`tree.digest` of the leaves rounded to bfloat16, taken one at a time, so that only one needs to
  be held.
  """
  prints = {}
  for path, leaf in leaves:
    leaf = (
      np.asarray(leaf).astype(jnp.bfloat16)
      if tree.at_hand(leaf)
      else jnp.asarray(leaf, jnp.bfloat16)
    )
    prints[path] = (leaf.shape, tree.fingerprint({path: leaf})[path])
  return digest_prints(prints)


def digest_prints(prints: Mapping[str, tuple[tuple[int, ...], str]]) -> str:
  """The digest of weights whose {path: (shape, fingerprint in bfloat16)} are known."""
  lines = [f'{path} {tuple(shape)} bfloat16 {found}' for path, (shape, found) in prints.items()]
  return hashes.of_text('\n'.join(sorted(lines)), hashes.SHORT)


def same_architecture(expected: ModelConfig, got: ModelConfig, *, what: str) -> None:
  """Nothing, if the two are equal.

  Raises:
    InputError: names each field that differs.
  """
  theirs = models.config_to_record(got)
  pairs = [(name, value, theirs[name]) for name, value in models.config_to_record(expected).items()]
  differing = [f'{name} {x} / {y}' for name, x, y in pairs if x != y]
  if differing:
    raise InputError(f'{what} are of different architectures: {"; ".join(differing)}')


def same_base(x: Base, y: Base, *, what: str, allow_other_base: bool = False) -> None:
  """Nothing, if both are of one base: the same architecture and, where both are known, the same
  digest.

  Raises:
    InputError: they are not; names both. The digests may differ if `allow_other_base`.
  """
  same_architecture(x.config, y.config, what=what)
  if x.digest and y.digest and x.digest != y.digest and not allow_other_base:
    raise InputError(
      f'{what} belong to different base models: {x.source or "unnamed"} (digest {x.digest}) and '
      f'{y.source or "unnamed"} (digest {y.digest}); use the same base, or allow it with '
      '--allow_other_base'
    )


def base_of(model: models.Model) -> Base:
  """The record of a loaded model; its digest is that of the weights in memory."""
  return Base(model.config, model.family, model.source, model.revision, digest(model.params))
