"""The types of an adapter's settings, as PEFT's own classes have them.

A setting of another type would be read as another setting, or fail far from its name.

Source: PEFT 0.21.2, `LoraConfig`.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from weightsteer_jax.runtime.errors import InputError

# (words for an error, whether a value is of the type)
Type = tuple[str, Callable[[Any], bool]]


def _is_whole(value: Any, least: int = 0) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_list(value: Any, is_item: Callable[[Any], bool]) -> bool:
  return isinstance(value, list) and all(map(is_item, value))


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _is_names(value: Any) -> bool:
  return _is_text(value) or _is_list(value, _is_text)


def _is_layers(value: Any) -> bool:
  return _is_whole(value) or _is_list(value, _is_whole)


def _is_pattern(value: Any, is_value: Callable[[Any], bool]) -> bool:
  if not isinstance(value, dict) or not all(map(is_value, value.values())):
    return False
  try:
    for key in value:
      re.compile(key)
  except re.error:
    return False
  return True


def _is_ranks(value: Any) -> bool:
  return _is_pattern(value, lambda rank: _is_whole(rank, 1))


def _is_alphas(value: Any) -> bool:
  return _is_pattern(value, _is_number)


def _is_token_lists(value: Any) -> bool:
  lists = list(value.values()) if isinstance(value, dict) else [value]
  return all(_is_list(tokens, _is_whole) for tokens in lists)


NAMES: Type = ('a text, or a list of names', _is_names)
LIST: Type = ('a list of names', lambda value: _is_list(value, _is_text))
FLAG: Type = ('true or false', lambda value: isinstance(value, bool))
TYPES: Mapping[str, Type] = {
  'alpha_pattern': ('{pattern of names: number}', _is_alphas),
  'exclude_modules': NAMES,
  'layers_pattern': NAMES,
  'layers_to_transform': ('a number of a layer, or a list of these', _is_layers),
  'lora_alpha': ('a finite number', _is_number),
  'lora_bias': FLAG,
  'modules_to_save': LIST,
  'r': ('a whole number of 1 or more', lambda value: _is_whole(value, 1)),
  'rank_pattern': ('{pattern of names: rank}', _is_ranks),
  'target_modules': NAMES,
  'target_parameters': LIST,
  'trainable_token_indices': ('a list of ids, or {name: list of ids}', _is_token_lists),
  'use_dora': FLAG,
  'use_rslora': FLAG,
}


def check(config: Mapping[str, Any], where: object) -> None:
  """Raises InputError if a setting that is there is of another type than PEFT gives it."""
  for key, (words, is_right) in TYPES.items():
    value = config.get(key)
    # Null is how PEFT writes what is not set.
    if value is not None and not is_right(value):
      raise InputError(f"{where}: '{key}' is {value!r:.60}, expected {words}")
