"""The base model of a direction, known by its architecture and a digest of its weights."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.models import ModelConfig
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Base:
  """A base model as a direction remembers it.

  Attributes:
    config: the architecture.
    family: the architecture's name in transformers, `model_type`.
    source: the name or path that the user gave.
    revision: the commit on the hub, '' of a folder.
    digest: 16 hex digits that name the weights (see `digest`), or '' where they are not known: a
      difference of two checkpoints belongs to every base of the architecture.
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
  # 'tied_embeddings' is for readers of the file: the config says the same.
  return Base(
    config=config_from_json(record['config'], where=where),
    family=record['family'],
    source=record['source'],
    revision=record['revision'],
    digest=record['digest'],
  )


def config_from_json(record: Mapping[str, Any], *, where: str) -> ModelConfig:
  """The inverse of `models.config_to_record`.

  A field that an older version did not write has its default.

  Raises:
    InputError: if the record has fields that this version does not know, or lacks some.
  """
  # A dataclass says TypeError to unknown and to missing fields.
  try:
    return models.config_from_record(record)
  except (TypeError, KeyError) as error:
    raise InputError(
      f'{where} describes a model with fields this version does not know ({error}); make it again '
      'with this version'
    ) from error


def digest(params: PyTree) -> str:
  """16 hex digits that name the weights: `tree.digest` of the weights rounded to bfloat16.

  Rounded, a base has the same name whether loaded in float32 or in bfloat16.
  """
  return digest_leaves(tree.flatten(params).items())


def digest_leaves(leaves: Iterable[tuple[str, Any]]) -> str:
  """The digest of (path, leaf) pairs, taken one at a time, so that only one need be held."""
  prints = {}
  for path, leaf in leaves:
    # On the host where NumPy is done before a program would be compiled. Both round to the nearest,
    # ties to even, so the bits are the same.
    rounded: tree.Array
    if tree.at_hand(leaf):
      rounded = np.asarray(leaf).astype(jnp.bfloat16)
    else:
      rounded = jnp.asarray(leaf, jnp.bfloat16)
    fingerprint = tree.fingerprint({path: rounded})[path]
    # Only these few characters are kept of the leaf.
    prints[path] = (rounded.shape, fingerprint)
  return digest_prints(prints)


def digest_prints(prints: Mapping[str, tuple[tuple[int, ...], str]]) -> str:
  """The digest of weights with the given {path: (shape, fingerprint in bfloat16)}."""
  # The same lines as in tree.digest, so that both give the same digits.
  lines = []
  for path, (shape, fingerprint) in prints.items():
    lines.append(f'{path} {tuple(shape)} bfloat16 {fingerprint}')
  # Sorted, so that the order of the leaves does not count.
  text = '\n'.join(sorted(lines))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def same_architecture(expected: ModelConfig, got: ModelConfig, *, what: str) -> None:
  """Raises InputError if two models have different architectures.

  Raises:
    InputError: if any field of the configs differs; the text names each.
  """
  # As records: their values are plain, so that the text of the error can be read.
  expected_record = models.config_to_record(expected)
  got_record = models.config_to_record(got)
  differing = []
  for name, value in expected_record.items():
    if value != got_record[name]:
      differing.append(f'{name} {value} / {got_record[name]}')
  if differing:
    raise InputError(f'{what} are of different architectures: {"; ".join(differing)}')


def same_base(x: Base, y: Base, *, what: str, allow_other_base: bool = False) -> None:
  """Raises InputError if two records are of different bases.

  Args:
    allow_other_base: accept different weights of the same architecture.

  Raises:
    InputError: if the architectures differ, or the digests do where both are known.
  """
  same_architecture(x.config, y.config, what=what)
  # A digest may be unknown, and then says nothing.
  if x.digest and y.digest and x.digest != y.digest and not allow_other_base:
    raise InputError(
      f'{what} belong to different base models: {x.source or "unnamed"} (digest {x.digest}) and '
      f'{y.source or "unnamed"} (digest {y.digest}); use the same base, or allow it with '
      '--allow_other_base (in Python, allow_other_base=True)'
    )


def base_of(model: models.Model) -> Base:
  """The record of a loaded model; the digest is of the weights in memory."""
  return Base(model.config, model.family, model.source, model.revision, digest(model.params))
