"""Hugging Face checkpoints in and out: safetensors only, tensor by tensor, key sets exactly equal
both ways.

On a mesh a process reads only the slices that its own devices hold, and what is saved is gathered
one layer of one parameter at a time: the model is never whole in the memory of a host.
"""

import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError

from weightsteer_jax.models import attention as attentions
from weightsteer_jax.models import stored
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families import FAMILIES, Family, TensorRow, family_of, read_config
from weightsteer_jax.models.sites import param_shardings, sites
from weightsteer_jax.models.stored import Tensors, open_tensors, to_theirs
from weightsteer_jax.runtime import processes, sharding, tree
from weightsteer_jax.runtime.errors import CorruptError, InputError, NotFiniteError
from weightsteer_jax.runtime.messages import did_you_mean, first_line
from weightsteer_jax.runtime.sharding import Layout
from weightsteer_jax.storage import files, safetensors

PyTree = Any

DTYPES = ('float32', 'bfloat16')
SHARD_BYTES = 5 * 1000**3  # As transformers' default `max_shard_size`.
HUB_TIMEOUT_SECONDS = (
  10.0  # For the first answer of the hub, which its client would wait for without end.
)
# What a tokenizer, generation settings or a licence consist of; nothing else is copied or
# downloaded beside weights.
COMPANIONS = (
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'vocab.txt',
  'merges.txt',
  'tokenizer.model',
  'chat_template.jinja',
  'generation_config.json',
  'LICENSE',
  'LICENSE.txt',
  'LICENSE.md',
  'NOTICE',
  'NOTICE.txt',
  'USE_POLICY.md',
)


@dataclasses.dataclass(frozen=True)
class Model:
  """A checkpoint in memory.

  Attributes:
    config: its architecture. params: its parameters (see forward.sites). folder: where its files
      lie. family: its `model_type`.
    source: what the user called it: a path or a hub id. revision: the hub commit, or '' for a local
      folder.
  """

  config: ModelConfig
  params: PyTree
  folder: pathlib.Path
  family: str
  source: str
  revision: str = ''


def load(
  source: str | pathlib.Path,
  *,
  dtype: str = 'float32',
  revision: str | None = None,
  layout: Layout | None = None,
  attention: str = 'auto',
) -> Model:
  """The model of a folder or a hub id, its parameters cast to `dtype` ('float32' or 'bfloat16') and
  laid out so, by default on one device.

  Args:
    attention: the kernel (see attention.py); 'auto' is the fastest there is for this model on these
      devices.

  Raises:
    InputError: no such checkpoint, an unsupported one, a kernel that is not for it, or key sets or
      shapes that differ from the config's.
    CorruptError: a weights file that is cut short. NotFiniteError: a weight that is NaN or
      infinite.
  """
  if dtype not in DTYPES:
    raise InputError(
      f"dtype '{dtype}' is not supported{did_you_mean(dtype, DTYPES)}; supported: "
      f"{', '.join(DTYPES)}"
    )
  folder, commit = resolve(source, revision=revision)
  config, family = load_config(folder)
  layout = layout or sharding.single()
  config = attentions.with_kernel(
    config, attention, platform=layout.mesh.devices.flat[0].platform, dtype=dtype
  )
  with open_tensors(folder) as tensors:
    try:
      stored.check(config, family, tensors, folder=folder)
      params = _read_params(config, family, tensors, dtype, layout)
    except SafetensorError as error:
      raise CorruptError(
        f'the weights in {folder} cannot be read ({error}); copy or download them again'
      ) from error
  _check_finite(params, folder, layout)
  return Model(config, params, folder, family.model_type, str(source), commit)


def load_config(folder: pathlib.Path) -> tuple[ModelConfig, Family]:
  """The architecture and the family of the checkpoint in a folder."""
  path = folder / 'config.json'
  raw = files.read_json(path, what='the config of a checkpoint')
  return read_config(raw, where=str(path)), family_of(raw, where=str(path))


def resolve(
  source: str | pathlib.Path, *, revision: str | None = None, weights: bool = True
) -> tuple[pathlib.Path, str]:
  """The local folder of a path or a hub id, and the hub commit ('' for a path). 'org/name@revision'
  pins a hub id.

  Args:
    weights: whether to download them too; without, config.json alone.

  Raises:
    InputError: neither a folder nor a repository that can be had, or a revision of a folder.
  """
  folder = pathlib.Path(source).expanduser()
  if folder.is_dir() and str(source):
    if revision:
      raise InputError(
        f"'{source}' is a folder, and the revision '{revision}' can only be asked of the "
        "hub: leave it out"
      )
    return folder, ''
  if '://' in str(source):
    raise InputError(
      f"'{source}' is an address, and models are read from folders: copy it to one that every host "
      'sees (gcloud storage cp -r, aws s3 cp --recursive) or mount the bucket, and name the folder'
    )
  match = re.fullmatch(r'([\w.-]+/[\w.-]+)(?:@([\w./-]+))?', str(source))
  if folder.is_file():
    raise InputError(f"'{source}' is a file; name the folder of the checkpoint: '{folder.parent}'")
  if not match or str(source).startswith(('.', '/', '~')):
    raise InputError(
      f"no checkpoint at '{source}': neither a folder nor a hub id of the form "
      f"org/name{files.nearest(folder)}"
    )
  if match[2] and revision and match[2] != revision:
    raise InputError(f"'{source}' names one revision and '{revision}' is another: give one of them")
  return _download(match[1], match[2] or revision or 'main', weights)


def _download(repository: str, revision: str, weights: bool) -> tuple[pathlib.Path, str]:
  """The local copy of a hub repository and its commit; without the hub, the copy that is there from
  before.
  """
  import huggingface_hub

  tensors = ('model.safetensors', 'model-*.safetensors', 'model.safetensors.index.json')
  wanted = dict(
    allow_patterns=[*tensors, 'config.json', *COMPANIONS] if weights else ['config.json']
  )
  try:
    commit = (
      huggingface_hub.HfApi()
      .model_info(repository, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
      .sha
    )
    folder = huggingface_hub.snapshot_download(repository, revision=commit, **wanted)
  # The hub's client raises many kinds; each means that the repository could not be had.
  except Exception as error:
    try:
      folder = huggingface_hub.snapshot_download(
        repository, revision=revision, local_files_only=True, **wanted
      )
    except Exception:
      reason = first_line(error)
      near = files.nearest(pathlib.Path(repository))
      raise InputError(
        f"'{repository}' is no folder here{near}, was not downloaded before, and could not be had "
        f'from the hub (revision {revision}): {reason}'
      ) from error
  return pathlib.Path(folder), pathlib.Path(folder).name


def _read_params(
  config: ModelConfig, family: Family, tensors: Tensors, dtype: str, layout: Layout
) -> PyTree:
  shardings = tree.flatten(param_shardings(config, layout))
  return tree.unflatten(
    {
      path: _read_param(config, row, tensors, dtype, shardings[path])
      for path, row in stored.tensor_rows(config, family).items()
    }
  )


def _read_param(
  config: ModelConfig, row: TensorRow, tensors: Tensors, dtype: str, where: jax.sharding.Sharding
) -> jax.Array:
  shape = sites(config)[row.path].shape
  shards = read_shards(config, row, tensors, dtype, where.addressable_devices_indices_map(shape))
  return jax.make_array_from_single_device_arrays(shape, where, shards, dtype=jnp.dtype(dtype))


def read_shards(
  config: ModelConfig,
  row: TensorRow,
  tensors: Tensors,
  dtype: str,
  indices: Mapping[jax.Device, tuple[slice, ...]],
) -> list[jax.Array]:
  """The slices of a parameter, each on its device; what several devices hold is read once.

  One slice is in host memory at a time.
  """
  shape = sites(config)[row.path].shape
  holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
  for device, index in indices.items():
    holders.setdefault(
      tuple(part.indices(size)[:2] for part, size in zip(index, shape)), []
    ).append(device)
  shards = []
  for bounds, devices in holders.items():
    piece = stored.read_slice(config, row, tensors, bounds, jnp.dtype(dtype))
    shards += jax.block_until_ready([jax.device_put(piece, device) for device in devices])
  return shards


def _check_finite(params: PyTree, folder: pathlib.Path, layout: Layout) -> None:
  """Nothing, if all are; every process comes to the same answer."""
  flat = tree.flatten(params)
  finite = {path: np.isfinite(np.asarray(x)).all() for path, x in flat.items() if tree.at_hand(x)}
  large = {path: x for path, x in flat.items() if path not in finite}
  check = jax.jit(
    lambda large: jax.tree.map(lambda x: jnp.isfinite(x).all(), large),
    out_shardings=layout.replicated,
  )
  finite |= check(large) if large else {}
  bad = [path for path in flat if not finite[path]]
  if bad:
    raise NotFiniteError(f'{folder}: the weights {", ".join(bad)} hold NaN or infinite values')


def save(
  folder: str | pathlib.Path,
  config: ModelConfig,
  params: PyTree,
  *,
  family: str,
  like: str | pathlib.Path | None = None,
  extra: dict[str, Any] | None = None,
) -> pathlib.Path:
  """The folder of a new Hugging Face checkpoint, in the parameters' dtype.

  All processes take part in gathering the parameters, and the first one writes them.

  Args:
    like: folder whose config.json, tokenizer and generation settings are carried over.
    extra: more files, {name: JSON value or text}.

  Raises:
    InputError: the folder exists, or `like` describes another architecture. OutputError: it could
      not be written whole.
  """
  if family not in FAMILIES:
    raise InputError(
      f"unknown family '{family}'{did_you_mean(family, FAMILIES)}; there are: "
      f"{', '.join(sorted(FAMILIES))}"
    )
  spec, like = FAMILIES[family], pathlib.Path(like) if like is not None else None
  raw = _config_json(config, params, spec, like)
  _check_params(config, params)
  files.refuse_existing(folder, what='the checkpoint')
  tensors = _hf_tensors(config, spec, params)
  if processes.is_main():
    _write(pathlib.Path(folder), tensors, raw, like, extra or {})
  else:
    for _ in tensors:
      pass
  processes.barrier('checkpoint saved')
  return pathlib.Path(folder)


def _write(
  folder: pathlib.Path,
  tensors: Iterator[tuple[str, np.ndarray]],
  raw: dict[str, Any],
  like: pathlib.Path | None,
  extra: dict[str, Any],
) -> None:
  with files.new_folder(folder, what='the checkpoint') as target:
    _write_shards(target, tensors)
    files.write_json(target / 'config.json', raw)
    for name in COMPANIONS:
      if like is not None and (like / name).exists():
        shutil.copyfile(like / name, target / name)
    for name, content in extra.items():
      files.write_text(
        target / name, content if isinstance(content, str) else json.dumps(content, indent=2)
      )


def _config_json(
  config: ModelConfig, params: PyTree, family: Family, like: pathlib.Path | None
) -> dict[str, Any]:
  dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)})
  if len(dtypes) != 1 or dtypes[0] not in DTYPES:
    raise InputError(
      f"the parameters to save are {' and '.join(dtypes)}; expected one of {', '.join(DTYPES)} "
      'throughout'
    )
  if like is None or not (like / 'config.json').exists():
    raw = {
      'architectures': [family.architecture],
      'model_type': family.model_type,
      **family.write(config),
    }
    return raw | {'dtype': dtypes[0], 'torch_dtype': dtypes[0]}
  raw = files.read_json(like / 'config.json', what='the config of a checkpoint')
  if (
    read_config(raw, where=str(like)) != config.architecture
    or raw['model_type'] != family.model_type
  ):
    raise InputError(f'{like} describes another architecture than the parameters to save')
  # transformers before 5 reads 'torch_dtype', later ones 'dtype' first.
  return raw | {
    key: dtypes[0] for key in ('dtype', 'torch_dtype') if key in raw or 'dtype' not in raw
  }


def _check_params(config: ModelConfig, params: PyTree) -> None:
  flat = tree.flatten(params)
  tree.same_keys(sites(config), flat, what='the parameters to save')
  for path, site in sites(config).items():
    if flat[path].shape != site.shape:
      raise InputError(
        f"the parameter '{path}' to save has shape {flat[path].shape}, the config asks for "
        f"{site.shape}"
      )


def _hf_tensors(
  config: ModelConfig, family: Family, params: PyTree
) -> Iterator[tuple[str, np.ndarray]]:
  """(name, tensor), one at a time; a tensor that holds several parameters is put together from
  their blocks of rows.
  """
  flat = tree.flatten(params)
  sharing: dict[str, list[TensorRow]] = {}
  for row in stored.tensor_rows(config, family).values():
    sharing.setdefault(row.name, []).append(row)
  for rows in sharing.values():
    rows = sorted(rows, key=lambda row: len(row.before))
    layers: dict[tuple[int, ...], list[tuple[tuple[int, ...], str]]] = {}
    for at, name in stored.stored_names(rows[0], config).items():
      layers.setdefault(at[:1], []).append((at[1:], name))
    for layer, names in layers.items():
      whole = [(_gather(flat[row.path], layer), row.pattern) for row in rows]
      for expert, name in names:
        blocks = [to_theirs(array[expert], pattern, config) for array, pattern in whole]
        yield name, blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _gather(x: Any, at: tuple[int, ...]) -> np.ndarray:
  """The layer (or all, without an index) of a parameter in host memory, on every process."""
  if not isinstance(x, jax.Array) or x.is_fully_addressable:
    return np.asarray(x[at])
  whole = jax.sharding.NamedSharding(x.sharding.mesh, jax.P())
  return np.asarray(jax.jit(lambda x, at: x[at], out_shardings=whole)(x, at))


def _write_shards(folder: pathlib.Path, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
  """Writes safetensors files of at most SHARD_BYTES, and an index if they are several."""
  shards: list[tuple[pathlib.Path, list[str]]] = []
  held: dict[str, np.ndarray] = {}
  total = 0

  def flush():
    path = folder / f'shard-{len(shards)}.safetensors'
    safetensors.save(path, held, metadata={'format': 'pt'})
    shards.append((path, list(held)))
    held.clear()

  for name, tensor in tensors:
    if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > SHARD_BYTES:
      flush()
    held[name] = tensor
    total += tensor.nbytes
  flush()
  if len(shards) == 1:
    shards[0][0].rename(folder / 'model.safetensors')
    return
  weight_map = {}
  for i, (path, names) in enumerate(shards):
    final = folder / f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors'
    path.rename(final)
    weight_map |= {name: final.name for name in names}
  files.write_json(
    folder / 'model.safetensors.index.json',
    {'metadata': {'total_size': total}, 'weight_map': weight_map},
  )
