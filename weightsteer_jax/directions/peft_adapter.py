"""LoRA adapters of PEFT as deltas, exactly: each factor as saved, `lora_alpha / r` folded into the second in float32.

Beside the factors an adapter may carry whole modules (`modules_to_save`: embed_tokens and lm_head in the paper's
recipe). Their change is what was saved minus the base's own tensor. PEFT saves them under plain names; state dicts
written by hand keep `.modules_to_save.`.
"""
import dataclasses
import json
import math
import pathlib
import re
from typing import Any, Mapping

from einops import EinopsError
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from weightsteer_jax import files, models, tree
from weightsteer_jax.directions.checkpoints import EMBEDDING, HEAD, Checkpoint
from weightsteer_jax.errors import CorruptError, InputError, NotFiniteError
from weightsteer_jax.models import Dense, LowRank, ModelConfig, huggingface

PyTree = Any

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'

# Fields that say nothing about what a saved adapter computes: bookkeeping, training, and how modules were chosen (the
# saved tensors say).
INERT = frozenset((
    'auto_mapping', 'base_model_name_or_path', 'corda_config', 'ensure_weight_tying', 'eva_config', 'exclude_modules',
    'inference_mode', 'init_lora_weights', 'layers_pattern', 'layers_to_transform', 'loftq_config', 'lora_dropout',
    'lora_ga_config', 'megatron_config', 'megatron_core', 'modules_to_save', 'peft_version', 'qalora_group_size',
    'revision', 'runtime_config', 'target_modules', 'task_type',
))
HONOURED = frozenset(('peft_type', 'r', 'lora_alpha', 'use_rslora', 'rank_pattern', 'alpha_pattern', 'bias'))
# Initialisations that leave the base weights as they are. The others (pissa, olora, loftq, corda, lora_ga) move part of
# them into the adapter, so that what is saved is a change of another model than the base.
PLAIN_INITS = (True, False, None, 'gaussian', 'eva', 'orthogonal')


@dataclasses.dataclass(frozen=True)
class Adapter:
  """A PEFT adapter as saved.

  Attributes:
    folder: where it lies. config: its adapter_config.json.
    pairs: {Hugging Face module name: (A [R, inputs], B [outputs, R])}. wholes: {Hugging Face tensor name: tensor} of
      saved modules.
  """
  folder: pathlib.Path
  config: Mapping[str, Any]
  pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]
  wholes: Mapping[str, np.ndarray]


def is_adapter(folder: pathlib.Path) -> bool:
  """Whether the folder holds a PEFT adapter."""
  return (folder / CONFIG).exists()


def read(folder: pathlib.Path) -> Adapter:
  """The adapter in a folder.

  Raises:
    InputError: a kind of adapter, or a setting, that is not a plain LoRA; a pickle. CorruptError: a file that is cut
      short.
  """
  config = read_config(folder)
  pairs: dict[str, dict[str, np.ndarray]] = {}
  wholes = {}
  for name, tensor in _read_tensors(folder).items():
    module, part = _parse(name, folder)
    if part in ('A', 'B'):
      pairs.setdefault(module, {})[part] = tensor.astype(np.float32)
    elif part == 'whole':
      wholes[module] = tensor.astype(np.float32)
  halves = [module for module, pair in pairs.items() if len(pair) < 2]
  if halves:
    raise InputError(f'{folder}: the modules {", ".join(sorted(halves)[:4])} have one of lora_A and lora_B, not both')
  broken = [name for name, tensors in pairs.items() if not all(np.isfinite(t).all() for t in tensors.values())]
  broken += [name for name, tensor in wholes.items() if not np.isfinite(tensor).all()]
  if broken:
    raise NotFiniteError(f'{folder}: NaN or infinite values in {", ".join(sorted(broken)[:4])}')
  return Adapter(folder, config, {module: (pair['A'], pair['B']) for module, pair in pairs.items()}, wholes)


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """The adapter's config, every field honoured or known to say nothing.

  Raises:
    InputError: a field or value that would change the result and is not honoured; names it.
  """
  path = folder / CONFIG
  config = files.read_json(path, what='the config of a PEFT adapter')
  if not isinstance(config, dict):
    raise InputError(f'{path} is no config of an adapter: it holds a {type(config).__name__}')
  kind = config.get('peft_type')
  if kind != 'LORA':
    raise InputError(f"{path}: peft_type is {kind!r}; only LORA adapters are changes of the form A B. Merge it into "
                     "its base with PEFT's merge_and_unload, save that, and pass the two checkpoints")
  missing = [key for key in ('r', 'lora_alpha') if not config.get(key)]
  if missing:
    raise InputError(f'{path}: {" and ".join(missing)} must be there and not 0: the scale of the adapter depends on it')
  init = config.get('init_lora_weights')
  if not any(init is plain or init == plain for plain in PLAIN_INITS):
    raise InputError(f"{path}: init_lora_weights is {init!r}, which moves part of the base's weights into the adapter; "
                     "convert it with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...) first")
  if config.get('bias', 'none') != 'none':
    raise InputError(f"{path}: bias is {config['bias']!r}; biases trained by PEFT are not read: merge the adapter and "
                     'pass checkpoints')
  refused = {key: value for key, value in config.items() if key not in INERT | HONOURED and value}
  if refused:
    fields = ', '.join(f'{key}={json.dumps(value)}' for key, value in sorted(refused.items()))
    raise InputError(f'{path}: these settings are not supported, and ignoring them could change the result: {fields}')
  return config


def to_delta(adapter: Adapter, base: Checkpoint) -> PyTree:
  """The adapter as a delta of the base.

  Raises:
    InputError: it changes modules the base does not have, has other shapes or ranks than its config and the base, or
      changes the two ends of tied embeddings differently.
  """
  leaves: dict[str, Any] = {}
  left = set(adapter.pairs)
  for path, row in base.rows.items():
    modules = {l: row.name.format(l=l).removesuffix('.weight') for l in range(base.num_layers(path))}
    present = {l: module for l, module in modules.items() if module in adapter.pairs}
    if present and models.sites(base.config)[path].inputs:
      leaves[path] = _stack_pairs(adapter, base.config, path, row.pattern, present)
      left -= set(present.values())
  if left:
    raise InputError(_unknown_modules(adapter, base, left))
  for path, change in _whole_changes(adapter, base).items():
    if path in leaves:
      raise InputError(f"{adapter.folder}: '{path}' is both a LoRA target and saved whole; one of them must go")
    leaves[path] = change
  return tree.unflatten(leaves)


def scaling(config: Mapping[str, Any], module: str) -> tuple[int, float]:
  """(rank, scale) of a module: `lora_alpha / r`, or `lora_alpha / sqrt(r)` with rslora, after the patterns.

  Source: PEFT's `get_pattern_key` and `LoraLayer.update_layer`; rsLoRA is arXiv 2312.03732.
  """
  rank = _pattern_value(config.get('rank_pattern'), module, config['r'])
  alpha = _pattern_value(config.get('alpha_pattern'), module, config['lora_alpha'])
  return rank, alpha / (math.sqrt(rank) if config.get('use_rslora') else rank)


def factor_patterns(pattern: str) -> tuple[str, str]:
  """The einops patterns of lora_A and lora_B from a kernel's, theirs to ours.

  >>> factor_patterns('(N H) D -> D N H')
  ('R D -> D R', '(N H) R -> R N H')
  """
  outputs, inputs = re.findall(r'\([^)]*\)|\S+', pattern.split(' -> ')[0])
  return f'R {inputs} -> {inputs.strip("()")} R', f'{outputs} R -> R {outputs.strip("()")}'


def _pattern_value(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
  for key, value in (patterns or {}).items():
    try:
      matches = re.match(rf'(.*\.)?({key})$', module)
    except re.error as error:
      raise InputError(f"the adapter's pattern '{key}' is no regular expression: {error}") from error
    if matches:
      return value
  return default


def _read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  path = folder / WEIGHTS
  if not path.exists() and (folder / 'adapter_model.bin').exists():
    raise InputError(f'{folder} holds its weights as a pickle (adapter_model.bin), which can run code and is never '
                     "loaded. Convert it where you trust it: load it with PEFT's PeftModel.from_pretrained, then "
                     "save_pretrained('converted')")
  if not path.exists():
    raise InputError(f'{folder} has a {CONFIG} but no {WEIGHTS}{files.nearest(path)}')
  try:
    return load_file(path)
  except (SafetensorError, OSError) as error:
    raise CorruptError(f'{path} is no whole safetensors file ({error}); copy or download it again') from error


def _parse(name: str, folder: pathlib.Path) -> tuple[str, str]:
  """(module, 'A' or 'B'), (tensor name, 'whole'), or ('', 'original') for the untouched copy that a wrapper keeps.

  >>> _parse('base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight', pathlib.Path('x'))
  ('model.layers.0.mlp.up_proj', 'A')
  >>> _parse('base_model.model.lm_head.modules_to_save.default.weight', pathlib.Path('x'))
  ('lm_head.weight', 'whole')
  """
  plain = name.removeprefix('base_model.model.')
  if 'lora_embedding_' in plain:
    raise InputError(f"{folder}: '{name}' is a LoRA on an embedding, which is not supported: save the embedding whole "
                     '(modules_to_save) instead')
  if 'lora_magnitude_vector' in plain:
    raise InputError(f"{folder}: '{name}' belongs to DoRA, whose change is no product A B: merge it and pass "
                     'checkpoints')
  pair = re.fullmatch(r'(.+)\.lora_([AB])(?:\.[\w-]+)?\.weight', plain)
  if pair:
    return pair[1], pair[2]
  if '.original_module.' in plain:
    return '', 'original'
  # PEFT also saves the base's own tensor of an embedding or head that is a LoRA target.
  whole = re.fullmatch(r'(.+?)(?:\.base_layer|\.modules_to_save(?:\.[\w-]+)?)?\.(weight|bias)', plain)
  if not whole or 'lora_' in plain:
    raise InputError(f"{folder}: the tensor '{name}' is none that a plain LoRA adapter has")
  return f'{whole[1]}.{whole[2]}', 'whole'


def _stack_pairs(adapter: Adapter, config: ModelConfig, path: str, pattern: str, present: Mapping[int, str]) -> LowRank:
  """One leaf from the pairs of its layers; layers without one, and ranks below the largest, are filled with zeros."""
  site = models.sites(config)[path]
  stack = site.axes.startswith('L')
  rank = max(adapter.pairs[module][0].shape[0] for module in present.values())
  lead, inner = (site.shape[:1], site.shape[1:]) if stack else ((), site.shape)
  a = np.zeros(lead + inner[:site.inputs] + (rank,), np.float32)
  b = np.zeros(lead + (rank,) + inner[site.inputs:], np.float32)
  for l, module in present.items():
    a_layer, b_layer = _convert_pair(adapter, config, module, pattern)
    own = a_layer.shape[-1]
    (a[l] if stack else a)[..., :own] = a_layer
    (b[l] if stack else b)[:own] = b_layer
  return LowRank(jnp.asarray(a), jnp.asarray(b))


def _convert_pair(adapter: Adapter, config: ModelConfig, module: str, pattern: str) -> tuple[np.ndarray, np.ndarray]:
  a, b = adapter.pairs[module]
  rank, scale = scaling(adapter.config, module)
  if a.shape[:1] != (rank,) or b.shape[1:] != (rank,):
    raise InputError(f"{adapter.folder}: '{module}' has factors {a.shape} and {b.shape}, but its config says rank "
                     f"{rank}")
  a_pattern, b_pattern = factor_patterns(pattern)
  theirs = huggingface.their_shape(pattern, config)
  if (b.shape[0], a.shape[1]) != theirs:
    raise InputError(f"{adapter.folder}: '{module}' changes a weight of shape {(b.shape[0], a.shape[1])}; the base's "
                     f'is {theirs}: the adapter is for another architecture')
  try:
    return huggingface.to_ours(a, a_pattern, config), np.float32(scale) * huggingface.to_ours(b, b_pattern, config)
  except EinopsError as error:
    raise InputError(f"{adapter.folder}: '{module}' does not fit the base's '{pattern}'") from error


def _whole_changes(adapter: Adapter, base: Checkpoint) -> dict[str, Dense]:
  """{path: saved minus base} of the modules saved whole, without those that are the base's own."""
  wholes = _untie(adapter, base) if base.config.tied else dict(adapter.wholes)
  owners = {row.name.format(l=l): (path, l) for path, row in base.rows.items() for l in range(base.num_layers(path))}
  tree_changes: dict[str, np.ndarray] = {}
  for name, tensor in wholes.items():
    if name not in owners:
      raise InputError(_unknown_modules(adapter, base, {name}))
    path, l = owners[name]
    change = _as_base_layer(adapter, base, name, path, tensor) - base.layer(path, l)
    if change.any():
      whole = tree_changes.setdefault(path, np.zeros(models.sites(base.config)[path].shape, np.float32))
      (whole[l] if '{l}' in base.rows[path].name else whole)[...] = change
  return {path: Dense(jnp.asarray(change)) for path, change in tree_changes.items()}


def _as_base_layer(adapter: Adapter, base: Checkpoint, name: str, path: str, tensor: np.ndarray) -> np.ndarray:
  expected = base.tensors.shape(name)
  if tensor.shape != expected:
    hint = '; the vocabulary was resized after the base was saved' if name in (HEAD, EMBEDDING) else ''
    raise InputError(f"{adapter.folder}: '{name}' was saved with shape {tensor.shape}, the base has {expected}{hint}")
  return huggingface.to_ours(tensor, base.rows[path].pattern, base.config)


def _untie(adapter: Adapter, base: Checkpoint) -> dict[str, np.ndarray]:
  """The saved modules, the head dropped where it equals the embedding: on a tied base the two are one matrix.

  Raises:
    InputError: the two ends were changed differently, which a tied model cannot hold.
  """
  wholes = dict(adapter.wholes)
  head, embedding = wholes.pop(HEAD, None), wholes.get(EMBEDDING)
  if head is None and embedding is None:
    return wholes
  own = base.tensors.read(EMBEDDING).astype(np.float32)
  head = own if head is None else head
  embedding = own if embedding is None else embedding
  if not np.array_equal(head, embedding):
    raise InputError(
        f"{adapter.folder}: the base '{base.source}' ties its head to its embedding, but the adapter changes the two "
        f'differently (largest difference {_largest_difference(head, embedding):.3g}). Merged and loaded again, '
        "transformers would keep one of them and drop the other in silence. Either train again with PEFT's "
        'ensure_weight_tying=True, or give the base separate matrices (tie_word_embeddings false and lm_head.weight '
        'saved as a copy of the embedding) and pass that as the base')
  return wholes | {EMBEDDING: embedding}


def _largest_difference(x: np.ndarray, y: np.ndarray) -> float:
  return float(np.abs(x - y).max()) if x.shape == y.shape else math.inf


def _unknown_modules(adapter: Adapter, base: Checkpoint, names: set[str]) -> str:
  known = {row.name.replace('{l}', '0').removesuffix('.weight') for row in base.rows.values()}
  first = sorted(names)[0]
  tied = (' The base ties its head to its embedding, so it has no head of its own to change.'
          if base.config.tied and any(name.startswith('lm_head') for name in names) else '')
  return (f"{adapter.folder} changes {len(names)} module(s) that the base '{base.source}' does not have, or that "
          f"cannot be changed so, '{first}' for one{tree.did_you_mean(first, known)}; it was made for another "
          f"architecture.{tied}")
