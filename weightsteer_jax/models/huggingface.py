"""Hugging Face checkpoints in and out: safetensors only, tensor by tensor, key sets exactly equal both ways."""
import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
from typing import Any, Iterator

from einops import rearrange
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from weightsteer_jax import files, tree
from weightsteer_jax.errors import CorruptError, InputError, NotFiniteError
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.families import FAMILIES, Family, family_of, read_config
from weightsteer_jax.models.forward import sites

PyTree = Any

DTYPES = ('float32', 'bfloat16')
SHARD_BYTES = 5 * 1000**3  # As transformers' default `max_shard_size`.
# What a tokenizer or a generation setting may consist of; nothing else is copied or downloaded beside the weights.
COMPANIONS = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'vocab.json', 'vocab.txt',
              'merges.txt', 'tokenizer.model', 'chat_template.jinja', 'generation_config.json')


@dataclasses.dataclass(frozen=True)
class Model:
  """A checkpoint in memory.

  Attributes:
    config: its architecture. params: its parameters (see forward.sites). folder: where its files lie. family: its `model_type`.
    source: what the user called it: a path or a hub id. revision: the hub commit, or '' for a local folder.
  """
  config: ModelConfig
  params: PyTree
  folder: pathlib.Path
  family: str
  source: str
  revision: str = ''


def load(source: str | pathlib.Path, *, dtype: str = 'float32', revision: str | None = None) -> Model:
  """The model of a folder or a hub id, its parameters cast to `dtype` ('float32' or 'bfloat16').

  Raises:
    InputError: no such checkpoint, an unsupported one, or key sets or shapes that differ from the config's.
    CorruptError: a weights file that is cut short. NotFiniteError: a weight that is NaN or infinite.
  """
  if dtype not in DTYPES:
    raise InputError(f"dtype '{dtype}' is not supported{tree.did_you_mean(dtype, DTYPES)}; supported: {', '.join(DTYPES)}")
  folder, commit = resolve(source, revision=revision)
  config, family = load_config(folder)
  with open_tensors(folder) as tensors:
    params = _read_params(config, family, tensors, dtype)
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
    InputError: neither a folder nor a repository that can be had.
  """
  folder = pathlib.Path(source).expanduser()
  if folder.is_dir():
    return folder, ''
  match = re.fullmatch(r'([\w.-]+/[\w.-]+)(?:@([\w./-]+))?', str(source))
  if not match or str(source).startswith(('.', '/', '~')):
    near = files.nearest(folder)
    raise InputError(f"no checkpoint at '{source}': neither a folder nor a hub id of the form org/name{near}")
  return _download(match[1], match[2] or revision)


def _download(repository: str, revision: str | None) -> tuple[pathlib.Path, str]:
  import huggingface_hub
  try:
    folder = huggingface_hub.snapshot_download(repository, revision=revision,
                                               allow_patterns=['*.safetensors', '*.safetensors.index.json', 'config.json', *COMPANIONS])
  except Exception as error:  # The hub's client raises many kinds; each means that the repository could not be had.
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise InputError(f"'{repository}' is no folder here and could not be had from the hub (revision {revision or 'main'}): {reason}") from error
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

  def read(self, name: str) -> np.ndarray:
    """The tensor, in the dtype it is stored in."""
    return self._owners[name].get_tensor(name)


@contextlib.contextmanager
def open_tensors(folder: pathlib.Path) -> Iterator[Tensors]:
  """The tensors of the checkpoint in a folder.

  Raises:
    InputError: no safetensors there (pickles are refused), or an index that points outside the folder or disagrees with the files.
    CorruptError: a file that is cut short.
  """
  with contextlib.ExitStack() as stack:
    owners: dict[str, Any] = {}
    for path in _weight_files(folder):
      try:
        handle = stack.enter_context(safe_open(path, framework='numpy'))
      except (SafetensorError, OSError) as error:
        raise CorruptError(f'{path} is no whole safetensors file ({error}); copy or download it again') from error
      owners |= {name: handle for name in handle.keys()}
    yield Tensors(owners)


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  index = folder / 'model.safetensors.index.json'
  if index.exists():
    names = sorted(set(files.read_json(index, what='the index of a checkpoint')['weight_map'].values()))
    for name in names:
      if pathlib.PurePath(name).name != name or not name.endswith('.safetensors'):
        raise InputError(f"{index} names '{name}': only plain names of safetensors files are allowed")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
      raise CorruptError(f'{index} names files that are not there: {", ".join(missing)}; copy or download them again')
    return [folder / name for name in names]
  single = folder / 'model.safetensors'
  if single.exists():
    return [single]
  pickles = sorted(path.name for pattern in ('*.bin', '*.pt', '*.pth') for path in folder.glob(pattern))
  if pickles:
    raise InputError(
        f"{folder} holds its weights as pickles ({', '.join(pickles[:3])}), which can run code and are never loaded. Convert them where you "
        f"trust them: python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{folder}').save_pretrained('converted')\"")
  raise InputError(f'{folder} holds no weights: expected model.safetensors, or model.safetensors.index.json and its files')


def _tensor_names(config: ModelConfig, family: Family) -> dict[str, tuple[str, str]]:
  """{path: (Hugging Face name with '{l}', einops pattern)} of the parameters this model has."""
  rows = {path: (name, pattern) for path, name, pattern in family.tensors}
  return {path: rows[path] for path in sites(config)}


def hf_names(config: ModelConfig, family: str) -> dict[str, str]:
  """{path: Hugging Face tensor name, with '{l}' for the layer}, also of tensors this model happens not to have."""
  return {path: name for path, name, _ in FAMILIES[family].tensors}


def to_ours(tensor: np.ndarray, pattern: str, config: ModelConfig) -> np.ndarray:
  """A Hugging Face tensor with the axes of ours."""
  return rearrange(tensor, pattern, **_grouped_sizes(pattern, config))


def to_theirs(array: np.ndarray, pattern: str, config: ModelConfig) -> np.ndarray:
  """One of our arrays (a single layer's) with the axes of Hugging Face."""
  theirs, ours = pattern.split(' -> ')
  return np.ascontiguousarray(rearrange(array, f'{ours} -> {theirs}', **_grouped_sizes(pattern, config)))


def _grouped_sizes(pattern: str, config: ModelConfig) -> dict[str, int]:
  sizes = config.sizes()
  grouped = re.findall(r'\(([^)]*)\)', pattern)
  return {axis: sizes[axis] for group in grouped for axis in group.split()}


def _read_params(config: ModelConfig, family: Family, tensors: Tensors, dtype: str) -> PyTree:
  table = _tensor_names(config, family)
  expected = {name.format(l=l) for path, (name, _) in table.items() for l in range(config.num_layers if '{l}' in name else 1)}
  names = tensors.names()
  if config.tied and 'lm_head.weight' in names and 'lm_head.weight' not in expected:
    _check_tied_head(tensors)
    names -= {'lm_head.weight'}
  # Rotary frequencies are a function of the config; old Llama checkpoints store them all the same.
  names = {name for name in names if not name.endswith('rotary_emb.inv_freq')}
  tree.same_keys(expected, names, what=f'the tensors of the {family.model_type} checkpoint')
  return tree.unflatten({path: _read_param(config, path, name, pattern, tensors, dtype) for path, (name, pattern) in table.items()})


def _read_param(config, path, name, pattern, tensors, dtype) -> jax.Array:
  site = sites(config)[path]
  stacked = '{l}' in name
  whole = np.empty(site.shape, jnp.dtype(dtype))
  for l in range(config.num_layers if stacked else 1):
    tensor = tensors.read(name.format(l=l))
    try:
      ours = to_ours(tensor, pattern, config)
    except Exception as error:  # einops raises its own kinds for sizes that do not divide.
      raise InputError(f"'{name.format(l=l)}' has shape {tensor.shape}, which does not fit '{pattern}' with {config.sizes()}") from error
    target = whole[l] if stacked else whole
    if ours.shape != target.shape:
      raise InputError(f"'{name.format(l=l)}' has shape {tensor.shape}; the config asks for {to_theirs(target, pattern, config).shape}")
    target[...] = ours.astype(whole.dtype)
  return jnp.asarray(whole)


def _check_tied_head(tensors: Tensors) -> None:
  """A tied checkpoint may store its head too, if it is the embedding."""
  if not np.array_equal(tensors.read('lm_head.weight'), tensors.read('model.embed_tokens.weight')):
    raise InputError("the config says tie_word_embeddings, but 'lm_head.weight' differs from 'model.embed_tokens.weight': "
                     'set tie_word_embeddings to false in config.json, or drop the head that transformers would drop silently')


def _check_finite(params: PyTree, folder: pathlib.Path) -> None:
  finite = jax.jit(lambda params: jax.tree.map(lambda x: jnp.isfinite(x).all(), params))(params)
  bad = [path for path, ok in tree.flatten(finite).items() if not ok]
  if bad:
    raise NotFiniteError(f'{folder}: the weights {", ".join(bad)} hold NaN or infinite values')


def save(folder: str | pathlib.Path, config: ModelConfig, params: PyTree, *, family: str, like: pathlib.Path | None = None,
         extra: dict[str, Any] | None = None) -> pathlib.Path:
  """The folder of a new Hugging Face checkpoint, in the parameters' dtype.

  Args:
    like: folder whose config.json, tokenizer and generation settings are carried over.
    extra: more files, {name: JSON value or text}.
  Raises:
    InputError: the folder exists, or `like` describes another architecture. OutputError: it could not be written whole.
  """
  spec = FAMILIES[family]
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
  dtype = str(jax.tree.leaves(params)[0].dtype)
  if like is None or not (like / 'config.json').exists():
    return {'architectures': [family.architecture], 'model_type': family.model_type, **family.write(config), 'dtype': dtype, 'torch_dtype': dtype}
  raw = files.read_json(like / 'config.json', what='the config of a checkpoint')
  if read_config(raw, where=str(like)) != config:
    raise InputError(f'{like} describes another architecture than the parameters to save')
  return raw | {key: dtype for key in ('dtype', 'torch_dtype') if key in raw}


def _hf_tensors(config: ModelConfig, family: Family, params: PyTree) -> Iterator[tuple[str, np.ndarray]]:
  flat = tree.flatten(params)
  tree.same_keys(sites(config), flat, what='the parameters to save')
  for path, (name, pattern) in _tensor_names(config, family).items():
    array = np.asarray(jax.device_get(flat[path]))
    for l in range(config.num_layers if '{l}' in name else 1):
      yield name.format(l=l), to_theirs(array[l] if '{l}' in name else array, pattern, config)


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
  files.write_json(folder / 'model.safetensors.index.json', {'metadata': {'total_size': total}, 'weight_map': weight_map})
