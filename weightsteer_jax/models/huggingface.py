"""Hugging Face checkpoints in and out: safetensors only, tensor by tensor, key sets exactly equal both ways."""
import contextlib
import dataclasses
import json
import math
import pathlib
import re
import shutil
from typing import Any, Iterator

from einops import rearrange
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from weightsteer_jax import files, sharding, tree
from weightsteer_jax.errors import CorruptError, InputError, NotFiniteError
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families import FAMILIES, Family, TensorRow, family_of, read_config
from weightsteer_jax.models.sites import param_shardings, sites
from weightsteer_jax.sharding import Layout

PyTree = Any

DTYPES = ('float32', 'bfloat16')
SHARD_BYTES = 5 * 1000**3  # As transformers' default `max_shard_size`.
HUB_TIMEOUT_SECONDS = 10.0  # For the first answer of the hub, which its client would wait for without end.
# What a tokenizer, generation settings or a licence consist of; nothing else is copied or downloaded beside weights.
COMPANIONS = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'vocab.json',
              'vocab.txt', 'merges.txt', 'tokenizer.model', 'chat_template.jinja', 'generation_config.json', 'LICENSE',
              'LICENSE.txt', 'LICENSE.md', 'NOTICE', 'NOTICE.txt', 'USE_POLICY.md')
STORED_DTYPES = ('F64', 'F32', 'F16', 'BF16')  # safetensors' names; other dtypes are quantised weights.


@dataclasses.dataclass(frozen=True)
class Model:
  """A checkpoint in memory.

  Attributes:
    config: its architecture. params: its parameters (see forward.sites). folder: where its files lie. family: its
      `model_type`.
    source: what the user called it: a path or a hub id. revision: the hub commit, or '' for a local folder.
  """
  config: ModelConfig
  params: PyTree
  folder: pathlib.Path
  family: str
  source: str
  revision: str = ''


def load(source: str | pathlib.Path, *, dtype: str = 'float32', revision: str | None = None, layout: Layout | None = None) -> Model:
  """The model of a folder or a hub id, its parameters cast to `dtype` ('float32' or 'bfloat16') and laid out so, by
  default on one device.

  Raises:
    InputError: no such checkpoint, an unsupported one, or key sets or shapes that differ from the config's.
    CorruptError: a weights file that is cut short. NotFiniteError: a weight that is NaN or infinite.
  """
  if dtype not in DTYPES:
    raise InputError(
        f"dtype '{dtype}' is not supported{tree.did_you_mean(dtype, DTYPES)}; supported: {', '.join(DTYPES)}")
  folder, commit = resolve(source, revision=revision)
  config, family = load_config(folder)
  with open_tensors(folder) as tensors:
    try:
      params = _read_params(config, family, tensors, dtype, layout or sharding.single())
    except SafetensorError as error:
      raise CorruptError(f'the weights in {folder} cannot be read ({error}); copy or download them again') from error
  _check_finite(params, folder)
  return Model(config, params, folder, family.model_type, str(source), commit)


def load_config(folder: pathlib.Path) -> tuple[ModelConfig, Family]:
  """The architecture and the family of the checkpoint in a folder."""
  path = folder / 'config.json'
  raw = files.read_json(path, what='the config of a checkpoint')
  return read_config(raw, where=str(path)), family_of(raw, where=str(path))


def resolve(source: str | pathlib.Path, *, revision: str | None = None) -> tuple[pathlib.Path, str]:
  """The local folder of a path or a hub id, and the hub commit ('' for a path). 'org/name@revision' pins a hub id.

  Raises:
    InputError: neither a folder nor a repository that can be had, or a revision of a folder.
  """
  folder = pathlib.Path(source).expanduser()
  if folder.is_dir() and str(source):
    if revision:
      raise InputError(
          f"'{source}' is a folder, and the revision '{revision}' can only be asked of the hub: leave it out")
    return folder, ''
  match = re.fullmatch(r'([\w.-]+/[\w.-]+)(?:@([\w./-]+))?', str(source))
  if folder.is_file():
    raise InputError(f"'{source}' is a file; name the folder of the checkpoint: '{folder.parent}'")
  if not match or str(source).startswith(('.', '/', '~')):
    raise InputError(
        f"no checkpoint at '{source}': neither a folder nor a hub id of the form org/name{files.nearest(folder)}")
  if match[2] and revision and match[2] != revision:
    raise InputError(f"'{source}' names one revision and '{revision}' is another: give one of them")
  return _download(match[1], match[2] or revision or 'main')


def _download(repository: str, revision: str) -> tuple[pathlib.Path, str]:
  """The local copy of a hub repository and its commit; without the hub, the copy that is there from before."""
  import huggingface_hub
  weights = ('model.safetensors', 'model-*.safetensors', 'model.safetensors.index.json')
  wanted = dict(allow_patterns=[*weights, 'config.json', *COMPANIONS])
  try:
    commit = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT_SECONDS).sha
    folder = huggingface_hub.snapshot_download(repository, revision=commit, **wanted)
  except Exception as error:  # The hub's client raises many kinds; each means that the repository could not be had.
    try:
      folder = huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True, **wanted)
    except Exception:
      reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
      near = files.nearest(pathlib.Path(repository))
      raise InputError(f"'{repository}' is no folder here{near}, was not downloaded before, and could not be had from "
                       f"the hub (revision {revision}): {reason}") from error
  return pathlib.Path(folder), pathlib.Path(folder).name


class Tensors:
  """The tensors of a checkpoint's safetensors files by name, read one at a time."""

  def __init__(self, owners: dict[str, Any]):
    self._owners = owners

  def names(self) -> set[str]:
    """All names."""
    return set(self._owners)

  def shape(self, name: str) -> tuple[int, ...]:
    """The tensor's shape, without reading it."""
    return tuple(self._owners[name].get_slice(name).get_shape())

  def dtype(self, name: str) -> str:
    """The dtype it is stored in, as safetensors calls it ('F32', 'BF16', ...), without reading it."""
    return self._owners[name].get_slice(name).get_dtype()

  def read(self, name: str) -> np.ndarray:
    """The tensor, in the dtype it is stored in."""
    return self._owners[name].get_tensor(name)


@contextlib.contextmanager
def open_tensors(folder: pathlib.Path) -> Iterator[Tensors]:
  """The tensors of the checkpoint in a folder.

  Raises:
    InputError: no safetensors there (pickles are refused), or an index that points outside the folder or disagrees with
      the files.
    CorruptError: a file that is cut short or missing.
  """
  with contextlib.ExitStack() as stack:
    owners: dict[str, Any] = {}
    for path, expected in _weight_files(folder).items():
      try:
        handle = stack.enter_context(safe_open(path, framework='numpy'))
      except (SafetensorError, OSError) as error:
        raise CorruptError(f'{path} is no whole safetensors file ({error}); copy or download it again') from error
      if expected is not None:
        tree.same_keys(expected, handle.keys(), what=f'the tensors of {path}, by the index beside it')
      owners |= {name: handle for name in handle.keys()}
    yield Tensors(owners)


def _weight_files(folder: pathlib.Path) -> dict[pathlib.Path, list[str] | None]:
  """{file: names of its tensors, None if no index tells}; where there are both, transformers takes the single file, and
  so do we."""
  if (folder / 'model.safetensors').exists():
    return {folder / 'model.safetensors': None}
  index = folder / 'model.safetensors.index.json'
  if index.exists():
    return _indexed_files(index)
  pickles = sorted(path.name for pattern in ('*.bin', '*.pt', '*.pth') for path in folder.glob(pattern))
  if pickles:
    command = ('python -c "from transformers import AutoModelForCausalLM as M; '
               f"M.from_pretrained('{folder}').save_pretrained('converted')\"")
    raise InputError(f"{folder} holds its weights as pickles ({', '.join(pickles[:3])}), which can run code and are "
                     f'never loaded. Convert them where you trust them: {command}')
  raise InputError(
      f'{folder} holds no weights: expected model.safetensors, or model.safetensors.index.json and its files')


def _indexed_files(index: pathlib.Path) -> dict[pathlib.Path, list[str] | None]:
  content = files.read_json(index, what='the index of a checkpoint')
  weight_map = content.get('weight_map') if isinstance(content, dict) else None
  names = list(weight_map.values()) if isinstance(weight_map, dict) else []
  if not names or not all(isinstance(name, str) for name in names):
    raise CorruptError(f"{index} holds no 'weight_map' from tensors to files; copy or download it again")
  found: dict[pathlib.Path, list[str] | None] = {}
  for tensor, name in weight_map.items():
    if not re.fullmatch(r'[\w-][\w.-]*\.safetensors', name):
      raise InputError(f"{index} names '{name}': only plain names of safetensors files in the same folder are allowed")
    found.setdefault(index.parent / name, []).append(tensor)
  missing = [path.name for path in found if not path.exists()]
  if missing:
    raise CorruptError(f'{index} names files that are not there: {", ".join(missing)}; copy or download them again')
  return found


def tensor_rows(config: ModelConfig, family: Family) -> dict[str, TensorRow]:
  """{path: row} of the parameters this model has."""
  rows = {row.path: row for row in family.tensors}
  return {path: rows[path] for path in sites(config)}


def hf_names(config: ModelConfig, family: str) -> dict[str, str]:
  """{path: Hugging Face tensor name, with '{l}' for the layer}, also of tensors this model happens not to have."""
  return {row.path: row.name for row in FAMILIES[family].tensors}


def to_ours(tensor: np.ndarray, pattern: str, config: ModelConfig) -> np.ndarray:
  """A Hugging Face tensor with the axes of ours."""
  return rearrange(tensor, pattern, **_grouped_sizes(pattern, config))


def to_theirs(array: np.ndarray, pattern: str, config: ModelConfig) -> np.ndarray:
  """One of our arrays (a single layer's) with the axes of Hugging Face."""
  theirs, ours = pattern.split(' -> ')
  return np.ascontiguousarray(rearrange(array, f'{ours} -> {theirs}', **_grouped_sizes(pattern, config)))


def their_shape(pattern: str, config: ModelConfig) -> tuple[int, ...]:
  """The shape of the Hugging Face tensor that `pattern` turns into ours."""
  sizes = config.sizes()
  return tuple(
      math.prod(sizes[axis] for axis in group.strip('()').split()) for group in _groups(pattern.split(' -> ')[0]))


def _groups(axes: str) -> list[str]:
  """The axes of one side of a pattern, those that are merged together: '(N H) D' -> ['(N H)', 'D']."""
  return re.findall(r'\([^)]*\)|\w+', axes)


def _grouped_sizes(pattern: str, config: ModelConfig) -> dict[str, int]:
  sizes = config.sizes()
  return {
      axis: sizes[axis] for group in _groups(pattern) if group.startswith('(') for axis in group.strip('()').split()
  }


def _read_params(config: ModelConfig, family: Family, tensors: Tensors, dtype: str, layout: Layout) -> PyTree:
  table = tensor_rows(config, family)
  expected = {row.name.format(l=l) for row in table.values() for l in stored_layers(row, config)}
  names = tensors.names()
  if config.tied and 'lm_head.weight' in names and 'lm_head.weight' not in expected:
    _check_tied_head(tensors)
    names -= {'lm_head.weight'}
  # Rotary frequencies are a function of the config; old Llama checkpoints store them all the same.
  names = {name for name in names if not name.endswith('rotary_emb.inv_freq')}
  tree.same_keys(expected, names, what=f'the tensors of the {family.model_type} checkpoint')
  for row in table.values():
    for l in stored_layers(row, config):
      _check_tensor(row.name.format(l=l), tensors, their_shape(row.pattern, config))
  placed = tree.flatten(param_shardings(config, layout))
  return tree.unflatten({path: sharding.put(_read_param(config, row, tensors, dtype), placed[path]) for path, row in table.items()})


def _read_param(config: ModelConfig, row: TensorRow, tensors: Tensors, dtype: str) -> np.ndarray:
  whole = np.empty(sites(config)[row.path].shape, jnp.dtype(dtype))
  for l in stored_layers(row, config):
    target = whole[l] if '{l}' in row.name else whole
    target[...] = read_layer(config, row, tensors, l).astype(whole.dtype)
  return whole


def stored_layers(row: TensorRow, config: ModelConfig) -> range:
  """The layers that the parameter is stored as, one tensor each; range(1) outside the layer stack."""
  return range(config.num_layers if '{l}' in row.name else 1)


def read_layer(config: ModelConfig, row: TensorRow, tensors: Tensors, l: int) -> np.ndarray:
  """Layer l of a parameter, in our axes and in the dtype it is stored in."""
  return to_ours(tensors.read(row.name.format(l=l)), row.pattern, config)


def _check_tensor(name: str, tensors: Tensors, expected: tuple[int, ...]) -> None:
  if tensors.shape(name) != expected:
    raise InputError(f"'{name}' has shape {tensors.shape(name)}; the config asks for {expected}")
  if tensors.dtype(name) not in STORED_DTYPES:
    raise InputError(
        f"'{name}' is stored as {tensors.dtype(name)}; supported: {', '.join(STORED_DTYPES)} (unquantised weights)")


def _check_tied_head(tensors: Tensors) -> None:
  """A tied checkpoint may store its head too, if it is the embedding."""
  if not np.array_equal(tensors.read('lm_head.weight'), tensors.read('model.embed_tokens.weight')):
    raise InputError(
        "the config says tie_word_embeddings, but 'lm_head.weight' differs from 'model.embed_tokens.weight': set "
        'tie_word_embeddings to false in config.json to use both, or drop the head from the weights')


def _check_finite(params: PyTree, folder: pathlib.Path) -> None:
  finite = jax.jit(lambda params: jax.tree.map(lambda x: jnp.isfinite(x).all(), params))(params)
  bad = [path for path, ok in tree.flatten(finite).items() if not ok]
  if bad:
    raise NotFiniteError(f'{folder}: the weights {", ".join(bad)} hold NaN or infinite values')


def save(folder: str | pathlib.Path,
         config: ModelConfig,
         params: PyTree,
         *,
         family: str,
         like: str | pathlib.Path | None = None,
         extra: dict[str, Any] | None = None) -> pathlib.Path:
  """The folder of a new Hugging Face checkpoint, in the parameters' dtype.

  Args:
    like: folder whose config.json, tokenizer and generation settings are carried over.
    extra: more files, {name: JSON value or text}.
  Raises:
    InputError: the folder exists, or `like` describes another architecture. OutputError: it could not be written whole.
  """
  if family not in FAMILIES:
    raise InputError(
        f"unknown family '{family}'{tree.did_you_mean(family, FAMILIES)}; there are: {', '.join(sorted(FAMILIES))}")
  spec, like = FAMILIES[family], pathlib.Path(like) if like is not None else None
  raw = _config_json(config, params, spec, like)
  with files.new_folder(folder, what='the checkpoint') as target:
    _write_shards(target, _hf_tensors(config, spec, params))
    files.write_json(target / 'config.json', raw)
    for name in COMPANIONS:
      if like is not None and (like / name).exists():
        shutil.copyfile(like / name, target / name)
    for name, content in (extra or {}).items():
      files.write_text(target / name, content if isinstance(content, str) else json.dumps(content, indent=2))
  return pathlib.Path(folder)


def _config_json(config: ModelConfig, params: PyTree, family: Family, like: pathlib.Path | None) -> dict[str, Any]:
  dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)})
  if len(dtypes) != 1 or dtypes[0] not in DTYPES:
    raise InputError(
        f"the parameters to save are {' and '.join(dtypes)}; expected one of {', '.join(DTYPES)} throughout")
  if like is None or not (like / 'config.json').exists():
    raw = {'architectures': [family.architecture], 'model_type': family.model_type, **family.write(config)}
    return raw | {'dtype': dtypes[0], 'torch_dtype': dtypes[0]}
  raw = files.read_json(like / 'config.json', what='the config of a checkpoint')
  if read_config(raw, where=str(like)) != config or raw['model_type'] != family.model_type:
    raise InputError(f'{like} describes another architecture than the parameters to save')
  # transformers before 5 reads 'torch_dtype', later ones 'dtype' first.
  return raw | {key: dtypes[0] for key in ('dtype', 'torch_dtype') if key in raw or 'dtype' not in raw}


def _hf_tensors(config: ModelConfig, family: Family, params: PyTree) -> Iterator[tuple[str, np.ndarray]]:
  flat = tree.flatten(params)
  tree.same_keys(sites(config), flat, what='the parameters to save')
  for path, row in tensor_rows(config, family).items():
    shape, expected = flat[path].shape, sites(config)[path].shape
    if shape != expected:
      raise InputError(f"the parameter '{path}' to save has shape {shape}, the config asks for {expected}")
    array = np.asarray(jax.device_get(flat[path]))
    for l in stored_layers(row, config):
      yield row.name.format(l=l), to_theirs(array[l] if '{l}' in row.name else array, row.pattern, config)


def _write_shards(folder: pathlib.Path, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
  """Writes safetensors files of at most SHARD_BYTES, and an index if they are several."""
  shards: list[tuple[pathlib.Path, list[str]]] = []
  held: dict[str, np.ndarray] = {}
  total = 0

  def flush():
    path = folder / f'shard-{len(shards)}.safetensors'
    files.save_safetensors(path, held, metadata={'format': 'pt'})
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
  files.write_json(folder / 'model.safetensors.index.json',
                   {'metadata': {'total_size': total}, 'weight_map': weight_map})
