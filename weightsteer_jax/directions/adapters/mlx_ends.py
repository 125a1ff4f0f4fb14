"""What mlx-lm leaves to its model: the head of a tied base, and which layers are adapted."""

import dataclasses
import re
from typing import Any

from weightsteer_jax.directions.adapters import mlx, tensors
from weightsteer_jax.directions.adapters.tensors import Adapter
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import listed


def tied(adapter: Adapter, base: Checkpoint) -> Adapter:
  """The adapter with the pair of a tied embedding at the head too; any other as it is.

  mlx-lm has one module for both ends.

  """
  if mlx.KEY not in adapter.config:
    return adapter
  by_module = adapter.tensors[tensors.EMBEDDING_PAIR]
  if not base.config.tied or mlx.EMBEDDING not in by_module:
    return adapter
  parts = by_module[mlx.EMBEDDING]
  head: dict[str, Any] = {'lm_head': {'A': parts['B'].T, 'B': parts['A'].T}}
  return dataclasses.replace(adapter, tensors={**adapter.tensors, tensors.HEAD_PAIR: head})


def check(adapter: Adapter, base: Checkpoint) -> None:
  """Raises InputError if a layer that the config names lacks a tensor.

  mlx-lm adapts the same modules in each of the last layers.

  Raises:
    InputError: if a layer lacks a tensor that another has, or is none of those that are named.
  """
  settings = adapter.config[mlx.KEY]
  names_by_layer: dict[int, set[str]] = {}
  for name in adapter.names():
    if found := re.fullmatch(r'model\.layers\.(\d+)\.(.+)', name):
      names_by_layer.setdefault(int(found[1]), set()).add(found[2])
  # A module that is named with its layer is adapted in that layer alone.
  if any('.layers.' in key for key in settings['keys'] or ()):
    return
  count = settings['num_layers']
  total = base.config.num_layers
  # Without a number by an older mlx-lm, the layers of the file are taken.
  wanted = sorted(names_by_layer)
  if count is not None and wanted:
    wanted = list(range(total - count if count > 0 else 0, total))
  if sorted(names_by_layer) != wanted:
    raise InputError(
      f'{adapter.folder}: its config says the last {len(wanted)} of {total} layers (num_layers), '
      f'and the file has the layers {sorted(names_by_layer)}: it is not whole, or of another base'
    )
  everything = set().union(*names_by_layer.values())
  for layer, names in sorted(names_by_layer.items()):
    missing = sorted(everything - names)
    if missing:
      raise InputError(
        f'{adapter.folder} is not whole: layer {layer} lacks {listed(missing, 3)}, which other '
        'layers have; mlx-lm adapts the same modules of each layer'
      )
