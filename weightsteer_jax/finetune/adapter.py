"""The product of a fine-tune as a folder: the trained delta, and a JSON that says what it is and
where it comes from.

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
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax')  # What computes a fine-tune.
FORMAT = 1
_MANIFEST = sealed.Manifest(
  noun='adapter',
  name=MANIFEST,
  remedy='copy or train the adapter again',
  format=FORMAT,
  tensors=TENSORS,
  made_by='launch/finetune.py',
)


@jax.profiler.annotate_function
def save_adapter(folder: files.Path, delta: PyTree, meta: Mapping[str, Any]) -> None:
  """Writes a delta in float32 and `meta` (JSON values; see `describe_base`) as a new folder; every
  process calls it.

  Raises:
    InputError: the folder exists. OutputError: it could not be written; nothing is left behind.
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
  """The (delta, meta) of an adapter; with a `model`, only if it was trained on that model.

  Raises:
    InputError: no adapter there, or one for another architecture or another base. CorruptError: it
      is cut short or damaged.
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
  """What identifies the model a delta was trained on: architecture, source, and digests of its
  parameters.

  `base_digest` is of the parameters as loaded; `base_digest_bfloat16` of the same rounded to
  bfloat16, which is what an adapter trained on a float32 base and one trained on a bfloat16 base
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
  """Nothing, if `meta` (of an adapter, holding the keys of `describe_base`) belongs to the model.

  Raises:
    InputError: another architecture (names the fields that differ), or other parameters.
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
    theirs, ours = meta['base_digest'], tree.digest(model.params)
  else:
    theirs, ours = meta['base_digest_bfloat16'], _rounded_digest(model.params)
  if theirs != ours:
    raise InputError(
      f"{where} was trained on another base, '{meta['base']}' (digest {theirs}), than "
      f"'{model.source}' (digest {ours}): the architecture is the same, the parameters are not; "
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
