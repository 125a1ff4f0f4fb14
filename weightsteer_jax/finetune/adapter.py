"""The product of a fine-tune as a folder: the trained delta, and a JSON with its provenance.

`adapter.json` is written last and carries a fingerprint of every tensor, so an adapter that was cut
short or damaged is never used.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.runtime import processes, tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import files, safetensors, sealed

PyTree = Any

TENSORS = 'adapter.safetensors'
MANIFEST = 'adapter.json'
# What computes a fine-tune, and is recorded with its version.
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax')
# Of the folder; other numbers are refused.
FORMAT = 1
_MANIFEST = sealed.Manifest(
  noun='adapter',
  name=MANIFEST,
  remedy='copy or train the adapter again',
  format=FORMAT,
  tensors=TENSORS,
  made_by='weightsteer finetune',
)


@jax.profiler.annotate_function
def save_adapter(folder: files.Path, delta: PyTree, meta: Mapping[str, Any]) -> None:
  """Writes a delta in float32 as a new folder; every process calls this.

  Args:
    meta: JSON values that say what the delta is, with the keys of `describe_base`.

  Raises:
    InputError: if the folder exists.
    OutputError: if the folder could not be written; nothing is left behind.
  """
  leaves = tree.flatten(delta, models.is_delta_leaf)
  tensors = {
    path: np.asarray(processes.fetch(array), np.float32)
    for path, array in tree.flatten(delta).items()
  }
  manifest = {
    **meta,
    'leaves': {path: _describe_leaf(leaf) for path, leaf in leaves.items()},
    'fingerprints': tree.fingerprint(tensors),
  }

  def write():
    with files.new_folder(folder, what='an adapter') as partial:
      safetensors.save(partial / TENSORS, tensors)
      _MANIFEST.write(partial, manifest)

  processes.on_main(write)


def load_adapter(
  folder: files.Path, *, model: models.Model | None = None
) -> tuple[PyTree, dict[str, Any]]:
  """The (delta, meta) of an adapter.

  Args:
    model: the base that the adapter must have been trained on; None takes any.

  Raises:
    InputError: if there is no adapter, or one for another architecture or another base.
    CorruptError: if the adapter is cut short or damaged.
  """
  folder = pathlib.Path(folder)
  meta = _MANIFEST.read(folder)
  if model is not None:
    check_base(meta, model, where=str(folder))
  tensors = safetensors.read(folder / TENSORS, remedy=_MANIFEST.remedy)
  _MANIFEST.check_fingerprints(folder, meta['fingerprints'], tree.fingerprint(tensors))
  delta = tree.unflatten(
    {path: _build_leaf(path, leaf, tensors) for path, leaf in meta['leaves'].items()}
  )
  if model is not None:
    models.check_delta(model.config, delta)
  return delta, meta


def describe_base(model: models.Model) -> dict[str, Any]:
  """What identifies a base: architecture, source, and digests of the parameters.

  `base_digest` is of the parameters as loaded; `base_digest_bfloat16` of the parameters rounded to
  bfloat16, which an adapter trained on a float32 base and an adapter trained on a bfloat16 base
  have in common.
  """
  return {
    'base': model.source,
    'base_revision': model.revision,
    'base_family': model.family,
    'base_dtype': _dtype(model),
    'base_digest': tree.digest(model.params),
    'base_digest_bfloat16': _rounded_digest(model.params),
    'model_config': _as_json(models.config_to_record(model.config)),
  }


def check_base(meta: Mapping[str, Any], model: models.Model, *, where: str) -> None:
  """Raises InputError if an adapter's `meta` does not belong to the model.

  Args:
    meta: with the keys of `describe_base`.
    where: names the adapter in errors.

  Raises:
    InputError: if the architecture differs (names the fields), or if the parameters do.
  """
  here = _as_json(models.config_to_record(model.config))
  differing = [
    f'{key} is {meta["model_config"].get(key)} there and {value} here'
    for key, value in here.items()
    if meta['model_config'].get(key) != value
  ]
  if differing:
    raise InputError(
      f"{where} was made for another architecture than that of '{model.source}': "
      f"{'; '.join(differing)}"
    )
  if _dtype(model) == meta['base_dtype']:
    trained_on = meta['base_digest']
    given = tree.digest(model.params)
  else:
    trained_on = meta['base_digest_bfloat16']
    given = _rounded_digest(model.params)
  if trained_on != given:
    raise InputError(
      f"{where} was trained on another base, '{meta['base']}' (digest {trained_on}), than "
      f"'{model.source}' (digest {given}): the architecture is the same, the parameters are not; "
      'load the base it was trained on'
    )


def _as_json(value: Any) -> Any:
  """The value as it comes back from a file: tuples as lists."""
  return json.loads(json.dumps(value))


def _dtype(model: models.Model) -> str:
  return str(jax.tree.leaves(model.params)[0].dtype)


@tree.per_arrays
def _rounded_digest(params: PyTree) -> str:
  return tree.digest(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))


def _describe_leaf(leaf: models.LowRank | models.Dense) -> dict[str, Any]:
  if isinstance(leaf, models.LowRank):
    return {'kind': 'low_rank', 'rank': leaf.a.shape[-1], 'scale': leaf.scale}
  return {'kind': 'dense'}


def _build_leaf(
  path: str, leaf: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> models.LowRank | models.Dense:
  if leaf['kind'] == 'low_rank':
    return models.LowRank(
      jnp.asarray(tensors[f'{path}/a']), jnp.asarray(tensors[f'{path}/b']), leaf['scale']
    )
  return models.Dense(jnp.asarray(tensors[f'{path}/value']))
