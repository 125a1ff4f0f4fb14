"""A setting of a recipe: one number, or several by layer or by module.

As in mergekit: a list of numbers is a gradient over the layers, and a list of {value, filter} takes
the first entry whose filter is a part of the tensor's name.

Source: mergekit 0.1.4, mergekit/config.py, `evaluate_setting`.
"""

import math
from collections.abc import Mapping
from typing import Any

from weightsteer_jax.runtime.errors import InputError

# A number, a list of numbers, or a list of {value, filter}.
Setting = Any


def check(
  setting: Setting, where: str, *, least: float | None = None, most: float | None = None
) -> None:
  """Raises InputError if a setting is none, or a number of it is out of bounds."""
  if isinstance(setting, list) and setting:
    for entry in setting:
      if isinstance(entry, Mapping):
        _check_entry(entry, where)
        check(entry['value'], where, least=least, most=most)
      else:
        _check_number(entry, where, least, most)
    kinds = {isinstance(entry, Mapping) for entry in setting}
    if len(kinds) > 1:
      raise InputError(f'{where} mixes numbers and entries with filters: give one or the other')
  else:
    _check_number(setting, where, least, most)


def value_of(setting: Setting, tensor: str, depth: float) -> float | None:
  """The setting's number for a tensor; None where no filter names the tensor.

  Args:
    tensor: name in a checkpoint.
    depth: the place of its layer, 0 for the first to 1 for the last; 0 outside of the layers.

  >>> value_of([0.0, 1.0, 4.0], 'model.layers.3.mlp.up_proj.weight', 0.75)
  2.5
  >>> by_module = [{'filter': 'mlp', 'value': 0.5}, {'value': 1.0}]
  >>> value_of(by_module, 'model.layers.3.mlp.up_proj.weight', 0.75), value_of(by_module, 'x', 0)
  (0.5, 1.0)
  """
  if not isinstance(setting, list):
    return float(setting)
  if not isinstance(setting[0], Mapping):
    return _between(setting, depth)
  for entry in setting:
    named = entry.get('filter')
    if named in (None, '*') or named in tensor:
      return value_of(entry['value'], tensor, depth)
  return None


def _between(gradient: list[float], depth: float) -> float:
  """The number at a depth, on straight lines between the gradient's numbers."""
  place = depth * (len(gradient) - 1)
  below = int(place)
  above = min(len(gradient) - 1, below + 1)
  share = place - below
  return (1 - share) * gradient[below] + share * gradient[above]


def _check_entry(entry: Mapping[str, Any], where: str) -> None:
  if 'value' not in entry or not entry.keys() <= {'value', 'filter'}:
    raise InputError(f'{where} has an entry {dict(entry)!r:.80}, expected {{value, filter}}')
  if not isinstance(entry.get('filter') or '', str):
    raise InputError(f'{where}: a filter is a part of a tensor name, not {entry["filter"]!r:.40}')


def _check_number(value: Any, where: str, least: float | None, most: float | None) -> None:
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not is_number or not math.isfinite(value):
    raise InputError(f'{where} is {value!r:.60}, expected a finite number, or a list of these')
  if (least is not None and value < least) or (most is not None and value > most):
    raise InputError(f'{where} is {value:g}, expected {least:g} to {most:g}')
