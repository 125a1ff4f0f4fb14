"""The settings of an adapter, `adapter_config.json` of PEFT.

A setting that would change the result and is not read is an error that names the setting.
"""

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from weightsteer_jax.directions.adapters import mlx, starts, types
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import files

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'

# Fields that say nothing about what a saved adapter computes: bookkeeping and training.
INERT = frozenset(
  (
    'auto_mapping',
    'base_model_name_or_path',
    'corda_config',
    'eva_config',
    'inference_mode',
    'init_lora_weights',
    'loftq_config',
    'lora_dropout',
    'lora_ga_config',
    'megatron_config',
    'megatron_core',
    'peft_version',
    'qalora_group_size',
    'revision',
    'runtime_config',
    'task_type',
  )
)
HONOURED = frozenset(
  (
    'alpha_pattern',
    'bias',
    'ensure_weight_tying',
    'exclude_modules',
    'layers_pattern',
    'layers_to_transform',
    'lora_alpha',
    'lora_bias',
    'modules_to_save',
    'peft_type',
    'r',
    'rank_pattern',
    'target_modules',
    'target_parameters',
    'trainable_token_indices',
    'use_dora',
    'use_rslora',
  )
)
LORA = 'LORA'
# Kinds that PEFT 0.21.2 merges into weights, which its own code reads (see library.py). LILY, POLY,
# XLORA, prompts and prefixes are no changes of weights.
MERGED_BY_PEFT = (
  'ADALORA',
  'ADAMSS',
  'BEFT',
  'BOFT',
  'C3A',
  'DEFT',
  'DELORA',
  'FOURIERFT',
  'FROD',
  'GLORA',
  'GRALORA',
  'HIRA',
  'HRA',
  'IA3',
  'LN_TUNING',
  'LOHA',
  'LOKR',
  'MISS',
  'OFT',
  'OSF',
  'PEANUT',
  'PSOFT',
  'PVERA',
  'RANDLORA',
  'ROAD',
  'SHIRA',
  'SUPERTUNING',
  'TINYLORA',
  'TRAINABLE_TOKENS',
  'UNILORA',
  'VBLORA',
  'VERA',
  'WAVEFT',
)
BIASES = ('none', 'all', 'lora_only', None)


def is_adapter(folder: pathlib.Path) -> bool:
  """Whether the folder holds a PEFT adapter."""
  return (folder / CONFIG).exists()


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """The adapter's config, in which every field is honoured or known to be inert.

  Raises:
    InputError: if a field that could change the result is not honoured; the text names the field.
  """
  path = folder / CONFIG
  config = files.read_json(path, what='the config of a PEFT adapter')
  if not isinstance(config, dict):
    raise InputError(f'{path} is no config of an adapter: it holds a {type(config).__name__}')
  if mlx.is_config(config):
    return mlx.peft_config(config, path)
  kind = config.get('peft_type')
  if kind in MERGED_BY_PEFT:
    return config
  if kind != LORA:
    raise InputError(
      f'{path}: peft_type is {kind!r}, which is no change of weights that PEFT can merge (virtual '
      'tokens, or a module of its own beside the model), so there is no direction of it. Kinds '
      f'that are read: {LORA}, {", ".join(MERGED_BY_PEFT)}'
    )
  missing = [key for key in ('r', 'lora_alpha') if not config.get(key)]
  if missing:
    raise InputError(
      f'{path}: {" and ".join(missing)} must be there and not 0: the scale of the adapter '
      'depends on it'
    )
  types.check(config, path)
  starts.check(config, path)
  if config.get('bias', 'none') not in BIASES:
    raise InputError(
      f"{path}: bias is {config['bias']!r}; PEFT writes one of {', '.join(map(repr, BIASES))}"
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


def below(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
  """The config of an adapter whose modules stand below another module.

  Expressions that match a name from its start are of the names without the module's.
  """
  moved = dict(config)
  for key in ('target_modules', 'exclude_modules'):
    if isinstance(moved.get(key), str) and moved[key].lower() != 'all-linear':
      moved[key] = rf'{name}\.(?:{moved[key]})'
  for key in ('rank_pattern', 'alpha_pattern'):
    patterns = moved.get(key) or {}
    moved[key] = {re.sub(r'^\^', rf'^{name}\.', text): value for text, value in patterns.items()}
  return moved


def scaling(
  config: Mapping[str, Any], module: str, saved_rank: int | None = None
) -> tuple[int, float]:
  """(rank, scale) of a module, after the config's patterns.

  The scale is `lora_alpha / r`, or `lora_alpha / sqrt(r)` with rslora.

  Args:
    saved_rank: the rank of the module's tensors, which decides between overlapping patterns.

  Source: PEFT's `get_pattern_key` and `LoraLayer.update_layer`; rsLoRA is arXiv 2312.03732.
  """
  # Where a parameter is the target, the patterns are of its name, not of its module's.
  parameter = f'{module}.weight'
  targets = config.get('target_parameters') or ()
  if any(f'.{parameter}'.endswith(f'.{target}') for target in targets):
    module = parameter
  ranks = matching(config.get('rank_pattern'), module)
  # The first pattern that matches counts, as in PEFT.
  first_rank = next(iter(ranks.values()), config['r'])
  # Where several match, the tensors tell which of them the adapter was trained with.
  rank = first_rank
  if saved_rank is not None and saved_rank in ranks.values():
    rank = saved_rank
  alphas = matching(config.get('alpha_pattern'), module)
  lora_alpha = next(iter(alphas.values()), config['lora_alpha'])
  if config.get('use_rslora'):
    return rank, lora_alpha / math.sqrt(rank)
  return rank, lora_alpha / rank


def matching(patterns: Mapping[str, Any] | None, module: str) -> dict[str, Any]:
  """{key: value} of the patterns that match a module, in their order.

  A key is the end of a module's name, from a dot on, and may be a regular expression.
  """
  found = {}
  for key, value in (patterns or {}).items():
    if matches(rf'(.*\.)?({key})$', module):
      found[key] = value
  return found


def matches(pattern: str, module: str, *, whole: bool = False) -> re.Match[str] | None:
  """The match of an adapter's regular expression at the start of a module's name.

  Args:
    whole: whether the expression must match the whole name.

  Raises:
    InputError: if the pattern is no regular expression.
  """
  try:
    return re.fullmatch(pattern, module) if whole else re.match(pattern, module)
  except re.error as error:
    raise InputError(
      f"the adapter's pattern '{pattern}' is no regular expression: {error}"
    ) from error
