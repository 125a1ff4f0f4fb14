"""LoRA adapters of PEFT as saved: factors, scales, and modules that were saved whole.

A setting that would change the result and is not read is an error that names the setting.

PEFT saves whole modules (`modules_to_save`: embed_tokens and lm_head in the paper's recipe) under
plain names; state dicts written by hand keep `.modules_to_save.`.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from weightsteer_jax.runtime.errors import InputError, NotFiniteError
from weightsteer_jax.storage import files, safetensors

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'

# Fields that say nothing about what a saved adapter computes: bookkeeping, training, and how
# modules were chosen (the saved tensors say).
INERT = frozenset(
  (
    'auto_mapping',
    'base_model_name_or_path',
    'corda_config',
    'ensure_weight_tying',
    'eva_config',
    'exclude_modules',
    'inference_mode',
    'init_lora_weights',
    'layers_pattern',
    'layers_to_transform',
    'loftq_config',
    'lora_dropout',
    'lora_ga_config',
    'megatron_config',
    'megatron_core',
    'modules_to_save',
    'peft_version',
    'qalora_group_size',
    'revision',
    'runtime_config',
    'target_modules',
    'task_type',
  )
)
HONOURED = frozenset(
  ('peft_type', 'r', 'lora_alpha', 'use_rslora', 'rank_pattern', 'alpha_pattern', 'bias')
)
# Initialisations that leave the base weights as they are. The others (pissa, olora, loftq, corda,
# lora_ga) move part of them into the adapter, so that what is saved is a change of another model
# than the base.
PLAIN_INITS = (True, False, None, 'gaussian', 'eva', 'orthogonal')


@dataclasses.dataclass(frozen=True)
class Adapter:
  """A PEFT adapter as saved.

  Attributes:
    folder: where the files are.
    config: the contents of adapter_config.json.
    pairs: {Hugging Face module name: (A [R, inputs], B [outputs, R])}, float32; the pair of an
      embedding is (A [R, V], B [D, R]).
    wholes: {Hugging Face tensor name: tensor}, float32, of the modules that were saved whole.
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
    InputError: if the adapter is no plain LoRA, has a setting that is not read, or is a pickle.
    CorruptError: if a file was cut short.
    NotFiniteError: if a value is NaN or infinite.
  """
  config = read_config(folder)
  factors: dict[str, dict[str, np.ndarray]] = {}
  wholes = {}
  for name, tensor in _read_tensors(folder).items():
    module, part = _parse(name, folder)
    # Adapters may be saved in bfloat16 or float16; float32 holds every such value exactly.
    if part in ('A', 'B'):
      factors.setdefault(module, {})[part] = tensor.astype(np.float32)
    elif part == 'whole':
      wholes[module] = tensor.astype(np.float32)
  halves = sorted(module for module, parts in factors.items() if len(parts) < 2)
  if halves:
    raise InputError(
      f'{folder}: the modules {", ".join(halves[:4])} have one of lora_A and lora_B, not both'
    )
  pairs = {}
  broken = []
  for module, parts in factors.items():
    a = parts['A']
    b = parts['B']
    pairs[module] = (a, b)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
      broken.append(module)
  broken += [name for name, tensor in wholes.items() if not np.isfinite(tensor).all()]
  if broken:
    raise NotFiniteError(f'{folder}: NaN or infinite values in {", ".join(sorted(broken)[:4])}')
  return Adapter(folder, config, pairs, wholes)


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """The adapter's config, in which every field is honoured or known to be inert.

  Raises:
    InputError: if a field that could change the result is not honoured; the text names the field.
  """
  path = folder / CONFIG
  config = files.read_json(path, what='the config of a PEFT adapter')
  if not isinstance(config, dict):
    raise InputError(f'{path} is no config of an adapter: it holds a {type(config).__name__}')
  kind = config.get('peft_type')
  if kind != 'LORA':
    raise InputError(
      f'{path}: peft_type is {kind!r}; only LORA adapters are changes of the form A B. Merge it '
      "into its base with PEFT's merge_and_unload, save that, and pass the two checkpoints"
    )
  missing = [key for key in ('r', 'lora_alpha') if not config.get(key)]
  if missing:
    raise InputError(
      f'{path}: {" and ".join(missing)} must be there and not 0: the scale of the adapter '
      'depends on it'
    )
  init = config.get('init_lora_weights')
  if not any(init is plain or init == plain for plain in PLAIN_INITS):
    raise InputError(
      f"{path}: init_lora_weights is {init!r}, which moves part of the base's weights into the "
      "adapter; convert it with PEFT's save_pretrained(..., "
      'path_initial_model_for_weight_conversion=...) first'
    )
  if config.get('bias', 'none') != 'none':
    raise InputError(
      f"{path}: bias is {config['bias']!r}; biases trained by PEFT are not read: merge the adapter "
      'and pass checkpoints'
    )
  # PEFT writes every field it knows; the settings that are off are null, false or empty.
  read_fields = INERT | HONOURED
  refused = []
  for key, value in sorted(config.items()):
    if key not in read_fields and value:
      refused.append(f'{key}={json.dumps(value)}')
  if refused:
    fields = ', '.join(refused)
    raise InputError(
      f'{path}: these settings are not supported, and ignoring them could change the '
      f'result: {fields}'
    )
  return config


def scaling(config: Mapping[str, Any], module: str) -> tuple[int, float]:
  """(rank, scale) of a module, after the config's patterns.

  The scale is `lora_alpha / r`, or `lora_alpha / sqrt(r)` with rslora.

  Source: PEFT's `get_pattern_key` and `LoraLayer.update_layer`; rsLoRA is arXiv 2312.03732.
  """
  rank = _pattern_value(config.get('rank_pattern'), module, config['r'])
  lora_alpha = _pattern_value(config.get('alpha_pattern'), module, config['lora_alpha'])
  if config.get('use_rslora'):
    return rank, lora_alpha / math.sqrt(rank)
  return rank, lora_alpha / rank


def factor_patterns(pattern: str) -> tuple[str, str]:
  """The einops patterns of lora_A and lora_B, PEFT's axes to ours, from a kernel's pattern.

  >>> factor_patterns('(N H) D -> D N H')
  ('R D -> D R', '(N H) R -> R N H')
  """
  stored_axes = pattern.split(' -> ')[0]
  # A group in brackets is an axis of the stored tensor. torch stores a weight as outputs, inputs.
  outputs, inputs = re.findall(r'\([^)]*\)|\S+', stored_axes)
  our_inputs = inputs.strip('()')
  our_outputs = outputs.strip('()')
  # PEFT computes B A x, with A [R, inputs] and B [outputs, R]; we compute x A B, so both turn.
  a_pattern = f'R {inputs} -> {our_inputs} R'
  b_pattern = f'{outputs} R -> R {our_outputs}'
  return a_pattern, b_pattern


def _pattern_value(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
  # The first pattern that matches counts, as in PEFT.
  for key, value in (patterns or {}).items():
    # A key is the end of a module's name, from a dot on, and may be a regular expression.
    try:
      matches = re.match(rf'(.*\.)?({key})$', module)
    except re.error as error:
      raise InputError(
        f"the adapter's pattern '{key}' is no regular expression: {error}"
      ) from error
    if matches:
      return value
  return default


def _read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  path = folder / WEIGHTS
  if not path.exists() and (folder / 'adapter_model.bin').exists():
    raise InputError(
      f'{folder} holds its weights as a pickle (adapter_model.bin), which can run code and is '
      "never loaded. Convert it where you trust it: load it with PEFT's "
      "PeftModel.from_pretrained, then save_pretrained('converted')"
    )
  if not path.exists():
    raise InputError(f'{folder} has a {CONFIG} but no {WEIGHTS}{files.path_hint(path)}')
  return safetensors.read(path, remedy='copy or download it again')


def _parse(name: str, folder: pathlib.Path) -> tuple[str, str]:
  """(module, 'A' or 'B'), or (tensor name, 'whole'), or ('', 'original').

  An original is the untouched copy that a wrapper keeps of a module.

  >>> _parse('base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight', pathlib.Path('x'))
  ('model.layers.0.mlp.up_proj', 'A')
  >>> _parse('base_model.model.lm_head.modules_to_save.default.weight', pathlib.Path('x'))
  ('lm_head.weight', 'whole')
  """
  # PeftModel wraps a tuner, which wraps the model: two levels of attributes in every name.
  plain = name.removeprefix('base_model.model.')
  if 'lora_magnitude_vector' in plain:
    raise InputError(
      f"{folder}: '{name}' belongs to DoRA, whose change is no product A B: merge it and pass "
      'checkpoints'
    )
  # The adapter's name may stand in between. The factors of an embedding are no `.weight`.
  for pattern in (
    r'(.+)\.lora_([AB])(?:\.[\w-]+)?\.weight',
    r'(.+)\.lora_embedding_([AB])(?:\.[\w-]+)?',
  ):
    if pair := re.fullmatch(pattern, plain):
      return pair[1], pair[2]
  if '.original_module.' in plain:
    return '', 'original'
  # PEFT also saves the base's own tensor of an embedding or head that is a LoRA target.
  whole = re.fullmatch(
    r'(.+?)(?:\.base_layer|\.modules_to_save(?:\.[\w-]+)?)?\.(weight|bias)', plain
  )
  if not whole or 'lora_' in plain:
    raise InputError(f"{folder}: the tensor '{name}' is none that a plain LoRA adapter has")
  return f'{whole[1]}.{whole[2]}', 'whole'
