"""Hugging Face checkpoints in and out: safetensors only, with exactly equal sets of keys.

On a mesh a process reads only the slices that its own devices hold. Parameters to save are gathered
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
from weightsteer_jax.models import gguf, stored
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families import FAMILIES, Family, TensorRow, family_of, read_config
from weightsteer_jax.models.sites import param_shardings, sites
from weightsteer_jax.models.stored import Tensors, open_tensors, to_theirs
from weightsteer_jax.runtime import processes, sharding, signals, tree
from weightsteer_jax.runtime.errors import CorruptError, InputError, NotFiniteError
from weightsteer_jax.runtime.messages import did_you_mean, first_line
from weightsteer_jax.runtime.sharding import Layout
from weightsteer_jax.storage import files, safetensors

PyTree = Any

DTYPES = ('float32', 'bfloat16')
# Most bytes of a file of weights: transformers' default `max_shard_size` of 5 GB.
SHARD_BYTES = 5 * 1000**3
# For the hub's first answer: its client would wait without end.
HUB_TIMEOUT_SECONDS = 10.0
# Files of tokenizers, generation settings and licences: the only ones copied or downloaded beside
# config and weights.
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
    config: the architecture.
    params: the parameters (see sites.sites).
    folder: the local folder of the checkpoint's files.
    family: the `model_type` in `config.json`.
    source: the path or hub id that the user gave.
    revision: the hub commit, or '' for a local folder.
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
  """The model of a folder or a hub id, on the devices of a layout.

  Args:
    source: a folder, a GGUF file, or a hub id (see `resolve`).
    dtype: of the parameters: 'float32' or 'bfloat16'.
    revision: branch, tag or commit on the hub; 'main' if None.
    layout: how the parameters lie on devices; whole on one device if None.
    attention: the kernel (see attention.py); 'auto' is the fastest for this model on these devices.

  Raises:
    InputError: if the checkpoint is missing or unsupported, the kernel is not for the model, or
      names or shapes of tensors differ from those that the config asks for.
    CorruptError: if a file of weights is cut short.
    NotFiniteError: if a weight is NaN or infinite.
  """
  if dtype not in DTYPES:
    raise InputError(
      f"dtype '{dtype}' is not supported{did_you_mean(dtype, DTYPES)}; supported: "
      f"{', '.join(DTYPES)}"
    )
  folder, commit = resolve(source, revision=revision)
  config, family = load_config(folder)
  layout = layout or sharding.single()
  platform = layout.mesh.devices.flat[0].platform
  config = attentions.with_kernel(config, attention, platform=platform, dtype=dtype)
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
  """The local folder of a path or a hub id, and the hub commit ('' for a path).

  'org/name@revision' pins a hub id. A GGUF file is unpacked once into the user's cache.

  Args:
    weights: whether to download weights and tokenizer too; otherwise config.json alone.

  Raises:
    InputError: if the source is neither a folder, nor a GGUF file that can be read, nor a
      repository that can be downloaded, or a revision is asked of a folder or file.
  """
  folder = pathlib.Path(source).expanduser()
  is_packed = gguf.is_gguf(folder)
  if (folder.is_dir() and str(source)) or is_packed:
    if revision:
      kind = 'file' if is_packed else 'folder'
      raise InputError(
        f"'{source}' is a {kind}, and the revision '{revision}' can only be asked of the "
        "hub: leave it out"
      )
    if is_packed:
      return gguf.unpacked(folder, weights=weights), ''
    packed = sorted(folder.glob('*.gguf'))
    if packed and not (folder / 'config.json').exists():
      raise InputError(f"'{source}' holds GGUF files: name the file, as in '{packed[0]}'")
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
      f"org/name{files.path_hint(folder)}"
    )
  if match[2] and revision and match[2] != revision:
    raise InputError(f"'{source}' names one revision and '{revision}' is another: give one of them")
  return _download(match[1], match[2] or revision or 'main', weights)


def _download(repository: str, revision: str, weights: bool) -> tuple[pathlib.Path, str]:
  """The local copy of a hub repository and its commit; an earlier copy if the hub is away."""
  # Imported here: a folder on this machine needs no hub.
  import huggingface_hub

  patterns = ['config.json']
  if weights:
    patterns += ['model.safetensors', 'model-*.safetensors', 'model.safetensors.index.json']
    patterns += COMPANIONS
  hub = huggingface_hub.HfApi()
  try:
    info = hub.model_info(repository, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
    # The commit, not the branch, so that a push between the two calls changes nothing.
    folder = huggingface_hub.snapshot_download(
      repository, revision=info.sha, allow_patterns=patterns
    )
  # The hub's client raises many kinds; each means that the repository could not be had.
  except Exception as error:
    try:
      folder = huggingface_hub.snapshot_download(
        repository, revision=revision, local_files_only=True, allow_patterns=patterns
      )
    except Exception:
      reason = first_line(error)
      near = files.path_hint(pathlib.Path(repository))
      raise InputError(
        f"'{repository}' is no folder here{near}, was not downloaded before, and could not be had "
        f'from the hub (revision {revision}): {reason}'
      ) from error
  # The hub's cache names the folder of a snapshot by its commit.
  local = pathlib.Path(folder)
  return local, local.name


def _read_params(
  config: ModelConfig, family: Family, tensors: Tensors, dtype: str, layout: Layout
) -> PyTree:
  shardings = tree.flatten(param_shardings(config, layout))
  params = {}
  for path, row in stored.tensor_rows(config, family).items():
    signals.check()
    shape = sites(config)[path].shape
    indices = shardings[path].addressable_devices_indices_map(shape)
    shards = read_shards(config, row, tensors, dtype, indices)
    params[path] = jax.make_array_from_single_device_arrays(
      shape, shardings[path], shards, dtype=jnp.dtype(dtype)
    )
  return tree.unflatten(params)


def read_shards(
  config: ModelConfig,
  row: TensorRow,
  tensors: Tensors,
  dtype: str,
  indices: Mapping[jax.Device, tuple[slice, ...]],
) -> list[jax.Array]:
  """The slices of a parameter, each on its device.

  A slice that several devices hold is read once. One slice is in host memory at a time.
  """
  shape = sites(config)[row.path].shape
  holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
  for device, index in indices.items():
    # Slices are not hashable in every supported Python: (first, last + 1) stand for them.
    ranges = []
    for part, size in zip(index, shape, strict=True):
      first, end, _ = part.indices(size)
      ranges.append((first, end))
    holders.setdefault(tuple(ranges), []).append(device)
  shards: list[jax.Array] = []
  for bounds, devices in holders.items():
    piece = stored.read_slice(config, row, tensors, bounds, jnp.dtype(dtype))
    # Transfers end before the next slice is read, so that host memory holds one.
    copies = [jax.device_put(piece, device) for device in devices]
    shards += jax.block_until_ready(copies)
  return shards


def _check_finite(params: PyTree, folder: pathlib.Path, layout: Layout) -> None:
  """Raises NotFiniteError, in every process alike, if a weight is NaN or infinite."""
  flat = tree.flatten(params)
  finite = {}
  for path, x in flat.items():
    if tree.at_hand(x):
      finite[path] = np.isfinite(np.asarray(x)).all()
  # Parameters that no host holds whole are checked on the devices.
  large = {path: x for path, x in flat.items() if path not in finite}

  def all_finite(large):
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), large)

  if large:
    finite |= jax.jit(all_finite, out_shardings=layout.replicated)(large)
  # In the order of the parameters, whichever side checked them.
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
    family: the `model_type` to save as.
    like: folder whose config.json, tokenizer and generation settings are carried over.
    extra: more files, {name: JSON value or text}.

  Raises:
    InputError: if the folder exists, or `like` describes another architecture.
    OutputError: if the folder could not be written whole.
  """
  if family not in FAMILIES:
    raise InputError(
      f"unknown family '{family}'{did_you_mean(family, FAMILIES)}; there are: "
      f"{', '.join(sorted(FAMILIES))}"
    )
  spec = FAMILIES[family]
  like = None if like is None else pathlib.Path(like)
  # All that can be refused is refused before anything is gathered or written.
  raw = _config_json(config, params, spec, like)
  _check_params(config, params)
  files.refuse_existing(folder, what='the checkpoint')
  tensors = _hf_tensors(config, spec, params)
  if processes.is_main():
    _write(pathlib.Path(folder), tensors, raw, like, extra or {})
  else:
    # Gathering is collective: every process walks through all tensors.
    for _ in tensors:
      pass
  processes.barrier('checkpoint saved')
  return pathlib.Path(folder)


def copy_companions(folder: pathlib.Path, target: pathlib.Path) -> None:
  """Copies the companions of a folder, but for those that are there already; see `companions`."""
  for source in companions(folder):
    if not (target / source.name).exists():
      shutil.copyfile(source, target / source.name)


def companions(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files in COMPANIONS that a folder has.

  Raises:
    InputError: if a file is a link to outside of the folder: whoever made the folder must not
      choose which files of this machine an export publishes.
  """
  # In the hub's cache the files of a snapshot are links to the repository's blobs.
  is_cached = folder.parent.name == 'snapshots'
  root = (folder.parent.parent if is_cached else folder).resolve()
  found = [folder / name for name in COMPANIONS if (folder / name).exists()]
  for path in found:
    if not path.resolve().is_relative_to(root):
      raise InputError(
        f'{path} is a link to {path.resolve()}, outside of its folder, and is not copied: put the '
        'file itself there, or remove the link'
      )
  return found


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
    if like is not None:
      copy_companions(like, target)
    for name, content in extra.items():
      text = content if isinstance(content, str) else json.dumps(content, indent=2)
      files.write_text(target / name, text)


def _config_json(
  config: ModelConfig, params: PyTree, family: Family, like: pathlib.Path | None
) -> dict[str, Any]:
  # A checkpoint's config names one dtype for all weights.
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
  described = read_config(raw, where=str(like))
  if described != config.architecture or raw['model_type'] != family.model_type:
    raise InputError(f'{like} describes another architecture than the parameters to save')
  # transformers before 5 reads 'torch_dtype', later ones 'dtype' first.
  keys = [key for key in ('dtype', 'torch_dtype') if key in raw or 'dtype' not in raw]
  return raw | dict.fromkeys(keys, dtypes[0])


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
  """(name, tensor), one at a time."""
  flat = tree.flatten(params)
  # Parameters that share a tensor are blocks of its rows.
  sharing: dict[str, list[TensorRow]] = {}
  for row in stored.tensor_rows(config, family).values():
    sharing.setdefault(row.name, []).append(row)
  for rows in sharing.values():
    # The more blocks stand before a parameter, the later its own comes.
    rows = sorted(rows, key=lambda row: len(row.before))
    # The experts of a layer are gathered together, and then written one by one.
    layers: dict[tuple[int, ...], list[tuple[tuple[int, ...], str]]] = {}
    for index, name in stored.stored_names(rows[0], config).items():
      layers.setdefault(index[:1], []).append((index[1:], name))
    for layer, names in layers.items():
      arrays = [_gather(flat[row.path], layer) for row in rows]
      for expert, name in names:
        blocks = []
        for array, row in zip(arrays, rows, strict=True):
          blocks.append(to_theirs(array[expert], row.pattern, config))
        # A single block is not copied.
        yield name, blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _gather(x: Any, index: tuple[int, ...]) -> np.ndarray:
  """One layer of a parameter in host memory, on every process; all of it for the index ()."""
  if not isinstance(x, jax.Array) or x.is_fully_addressable:
    return np.asarray(x[index])
  assert isinstance(x.sharding, jax.sharding.NamedSharding)
  whole = jax.sharding.NamedSharding(x.sharding.mesh, jax.P())

  def layer_of(x, index):
    return x[index]

  # The index is an argument, so that one program gathers every layer.
  gather = jax.jit(layer_of, out_shardings=whole)
  return np.asarray(gather(x, index))


def _write_shards(folder: pathlib.Path, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
  """Writes safetensors files of at most SHARD_BYTES, and an index beside several files."""
  # Files get names of their own until their number is known.
  shards: list[tuple[pathlib.Path, list[str]]] = []
  held: dict[str, np.ndarray] = {}
  total = 0

  def flush():
    path = folder / f'shard-{len(shards)}.safetensors'
    # transformers reads the format of a file of weights from its metadata.
    safetensors.save(path, held, metadata={'format': 'pt'})
    shards.append((path, list(held)))
    held.clear()

  for name, tensor in tensors:
    held_bytes = sum(held_tensor.nbytes for held_tensor in held.values())
    if held and held_bytes + tensor.nbytes > SHARD_BYTES:
      flush()
    held[name] = tensor
    total += tensor.nbytes
  flush()
  # Hugging Face's names: one file is model.safetensors, without an index.
  if len(shards) == 1:
    shards[0][0].rename(folder / 'model.safetensors')
    return
  # The names of several hold the number of files, which is known only now.
  weight_map: dict[str, str] = {}
  for number, (path, names) in enumerate(shards, start=1):
    final = folder / f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    path.rename(final)
    weight_map |= dict.fromkeys(names, final.name)
  index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
  files.write_json(folder / 'model.safetensors.index.json', index)
