"""Embedding and head, the tables of a row per token, by all that an adapter says of them.

A table may have been saved whole (`modules_to_save`, a vocabulary that was resized, or the base's
own below a LoRA), the rows of single tokens may have been replaced, and a LoRA pair may lie on top.
On a tied base both modules are one matrix: a change that is not the same at both ends is refused.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from weightsteer_jax.directions.adapters import low_rank, modules, tensors, wholes
from weightsteer_jax.directions.adapters.tensors import Adapter
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.models.stored import EMBEDDING, HEAD
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.progress import say

ENDS = (EMBEDDING, HEAD)


def changes(adapter: Adapter, base: Checkpoint) -> dict[str, LowRank | Dense]:
  """{path: change} of the embedding and the head; a head with a pair alone stays factors.

  Raises:
    InputError: if a shape is not that of the base, the vocabulary has grown, or the ends of a tied
      base are changed differently.
  """
  for kind in (tensors.EMBEDDING_PAIR, tensors.TOKEN_ROWS):
    others = {module for module in adapter.tensors[kind] if f'{module}.weight' not in ENDS}
    if others:
      raise modules.unknown(adapter, base, others)
  whole = {name: _within_vocabulary(adapter, base, _change(adapter, base, name)) for name in ENDS}
  if base.config.tied:
    return _tied(adapter, base, whole)
  paths = {row.name: path for path, row in base.rows.items()}
  leaves: dict[str, LowRank | Dense] = {}
  if whole[EMBEDDING].any():
    leaves[paths[EMBEDDING]] = Dense(jnp.asarray(whole[EMBEDDING]))
  replaced = _replaced(adapter, base, HEAD)
  # The factors of a pair say the same as their product in less space, and export as they are.
  if adapter.tensors[tensors.HEAD_PAIR] and (replaced is None or not replaced.any()):
    row = base.rows[paths[HEAD]]
    a_DR, b_RV = low_rank.convert_pair(adapter, base.config, 'lm_head', row, kind=tensors.HEAD_PAIR)
    leaves[paths[HEAD]] = LowRank(jnp.asarray(a_DR), jnp.asarray(b_RV))
  elif whole[HEAD].any():
    leaves[paths[HEAD]] = Dense(jnp.asarray(whole[HEAD].T))
  return leaves


def without_new_rows(x: Adapter, y: Adapter, base: Checkpoint) -> tuple[Adapter, Adapter]:
  """Two adapters without the rows of tokens that the base does not have, where those are equal.

  Equal rows are no part of the difference of the two.

  Raises:
    InputError: if the new rows differ.
  """
  vocabulary = base.config.vocab_size
  if max(_num_rows(x), _num_rows(y)) <= vocabulary:
    return x, y
  for name in ENDS:
    new_x = _change(x, base, name)[vocabulary:]
    new_y = _change(y, base, name)[vocabulary:]
    if not np.array_equal(new_x, new_y):
      raise _grown(y if len(new_y) > len(new_x) else x, base)
  say(
    f'{x.folder} and {y.folder} have {_num_rows(x) - vocabulary} tokens more than the base '
    f"'{base.source}', with the same rows: the direction leaves them out"
  )
  return _cut(x, vocabulary), _cut(y, vocabulary)


def token_indices(config: Mapping[str, Any], module: str) -> list[int]:
  """The tokens of a module whose rows are in the file, in the order of the rows.

  A list is of the embedding. A tied head follows its embedding.

  Source: peft.utils.other.set_additional_trainable_modules.
  """
  named = config.get('trainable_token_indices') or {}
  if isinstance(named, list):
    named = {'model.embed_tokens': named}
  for end in (module, 'model.embed_tokens'):
    for key, indices in named.items():
      # PEFT compares the ends of names, without a dot before.
      if end.endswith(key):
        return list(indices)
  return []


def _change(adapter: Adapter, base: Checkpoint, name: str) -> np.ndarray:
  """The change of an end, [rows, D] float32, in which tokens new to the base change from zero."""
  replaced = _replaced(adapter, base, name)
  product = _product(adapter, base, name)
  if replaced is None:
    rows = base.config.vocab_size if product is None else len(product)
    # Beside the pair of a resized table, PEFT saves the table; without, the new rows are unknown.
    if rows > base.config.vocab_size:
      raise _grown(adapter, base)
    replaced = np.zeros((rows, base.config.width), np.float32)
  if product is None:
    return replaced
  if product.shape != replaced.shape:
    raise InputError(
      f"{adapter.folder}: the pair at '{name}' is of shape {product.shape}, and the table that was "
      f'saved with it of {replaced.shape}'
    )
  return replaced + product


def _replaced(adapter: Adapter, base: Checkpoint, name: str) -> np.ndarray | None:
  """The change [rows, D] of a table saved whole and of single rows; None if there are none."""
  module = name.removesuffix('.weight')
  saved = adapter.tensors[tensors.TABLE].get(module, {}).get('weight')
  rows = _token_rows(adapter, base, module)
  if saved is None and rows is None:
    return None
  # A tied base stores one matrix for both ends.
  own = base.tensors.read(EMBEDDING if base.config.tied else name).astype(np.float32)
  if saved is None:
    saved = own
  if saved.ndim != 2 or saved.shape[1] != own.shape[1]:
    raise InputError(
      f"{adapter.folder}: '{name}' was saved with shape {saved.shape}, the base has {own.shape}"
    )
  both = min(len(saved), len(own))
  change = saved.copy()
  change[:both] = wholes.difference(saved[:both], own[:both])
  if rows is not None:
    indices = token_indices(adapter.config, module)
    if rows.shape != (len(indices), own.shape[1]) or not set(indices) <= set(range(len(change))):
      raise InputError(
        f"{adapter.folder}: the rows of single tokens at '{module}' are of shape {rows.shape}, but "
        f'its config names {len(indices)} tokens, the largest {max(indices, default=None)}, of a '
        f'table of {len(change)} rows'
      )
    before = np.zeros_like(change)
    before[:both] = own[:both]
    change[indices] = rows - before[indices]
  return change


def _token_rows(adapter: Adapter, base: Checkpoint, module: str) -> np.ndarray | None:
  """New values of single rows, or None."""
  by_module = adapter.tensors[tensors.TOKEN_ROWS]
  # PEFT saves the rows once where a tied head follows its embedding.
  if module not in by_module and base.config.tied and module == 'lm_head':
    module = 'model.embed_tokens'
  return by_module.get(module, {}).get('delta')


def _product(adapter: Adapter, base: Checkpoint, name: str) -> np.ndarray | None:
  """The change [rows, D] of a pair, or None; tied pairs give the same bits at both ends.

  Source: peft.tuners.lora.layer.Embedding, whose factors are those of the head turned around.
  """
  module = name.removesuffix('.weight')
  kind = tensors.EMBEDDING_PAIR if name == EMBEDDING else tensors.HEAD_PAIR
  parts = adapter.tensors[kind].get(module)
  if parts is None:
    return None
  scale = low_rank.checked_scale(adapter, module, parts['A'], parts['B'])
  if name == EMBEDDING:
    up_VR = parts['A'].T
    down_RD = parts['B'].T
  else:
    up_VR = parts['B']
    down_RD = parts['A']
  if down_RD.shape[1] != base.config.width:
    raise InputError(
      f"{adapter.folder}: the pair at '{module}' changes rows of {down_RD.shape[1]} numbers; the "
      f"base's have {base.config.width}"
    )
  # In one order of memory, so that the product is the same at both ends.
  return scale * (np.ascontiguousarray(up_VR) @ np.ascontiguousarray(down_RD))


def _within_vocabulary(adapter: Adapter, base: Checkpoint, change_VD: np.ndarray) -> np.ndarray:
  """A change for every token of the base.

  Raises:
    InputError: if there are more rows than the base has tokens.
  """
  missing = base.config.vocab_size - len(change_VD)
  if missing < 0:
    raise _grown(adapter, base)
  return np.pad(change_VD, [(0, missing), (0, 0)])


def _tied(
  adapter: Adapter, base: Checkpoint, change: Mapping[str, np.ndarray]
) -> dict[str, LowRank | Dense]:
  """The change of the one matrix of a tied base.

  Raises:
    InputError: if the two ends were changed differently, which a tied model cannot hold.
  """
  embedding = change[EMBEDDING]
  head = change[HEAD]
  if not np.array_equal(embedding, head):
    largest = float(np.abs(embedding - head).max())
    raise InputError(
      f"{adapter.folder}: the base '{base.source}' ties its head to its embedding, but the adapter "
      f'changes the two differently (largest difference {largest:.3g}). Merged and loaded again, '
      "transformers would keep one of them and drop the other. Either train again with PEFT's "
      'ensure_weight_tying=True, or give the base separate matrices and pass that as the base: '
      f'{_command(base, _num_rows(adapter), untie=True)}'
    )
  if not embedding.any():
    return {}
  (path,) = [path for path, row in base.rows.items() if row.name == EMBEDDING]
  return {path: Dense(jnp.asarray(embedding))}


def _num_rows(adapter: Adapter) -> int:
  """The rows of the adapter's largest table, 0 without tables."""
  saved = adapter.tensors
  rows = [0]
  for parts in saved[tensors.TABLE].values():
    rows.append(len(parts['weight']))
  for parts in saved[tensors.HEAD_PAIR].values():
    rows.append(len(parts['B']))
  # The factors of an embedding lie the other way round.
  for parts in saved[tensors.EMBEDDING_PAIR].values():
    rows.append(parts['A'].shape[1])
  return max(rows)


def _grown(adapter: Adapter, base: Checkpoint) -> InputError:
  rows = _num_rows(adapter)
  vocabulary = base.config.vocab_size
  return InputError(
    f"{adapter.folder}: the vocabulary was resized to {rows} tokens after the base '{base.source}' "
    f'was saved with {vocabulary}, and a change of the base has no place for the new rows. Resize '
    f'the base alike and pass that as the base: {_command(base, rows, untie=False)}'
  )


def _command(base: Checkpoint, rows: int, *, untie: bool) -> str:
  """The command that makes the base an adapter needs."""
  steps = ['from transformers import AutoModelForCausalLM as M', 'import torch']
  steps.append(f"m = M.from_pretrained('{base.folder}', dtype='auto')")
  if rows > base.config.vocab_size:
    steps.append(f'm.resize_token_embeddings({rows})')
  if untie:
    steps.append('m.config.tie_word_embeddings = False')
    steps.append('m.lm_head.weight = torch.nn.Parameter(m.lm_head.weight.detach().clone())')
  steps.append("m.save_pretrained('new-base')")
  return f'python -c "{"; ".join(steps)}"'


def _cut(adapter: Adapter, rows: int) -> Adapter:
  """The adapter without the rows from number `rows` on."""
  tables = {}
  for module, parts in adapter.tensors[tensors.TABLE].items():
    tables[module] = {'weight': parts['weight'][:rows]}
  heads = {}
  for module, parts in adapter.tensors[tensors.HEAD_PAIR].items():
    heads[module] = {'A': parts['A'], 'B': parts['B'][:rows]}
  embeddings = {}
  for module, parts in adapter.tensors[tensors.EMBEDDING_PAIR].items():
    embeddings[module] = {'A': parts['A'][:, :rows], 'B': parts['B']}
  token_rows = {}
  indices = {}
  for module, parts in adapter.tensors[tensors.TOKEN_ROWS].items():
    named = np.array(token_indices(adapter.config, module), int)
    kept = named < rows
    token_rows[module] = {'delta': parts['delta'][kept]}
    # The config names a token for each row.
    indices[module] = named[kept].tolist()
  cut = {
    **adapter.tensors,
    tensors.TABLE: tables,
    tensors.HEAD_PAIR: heads,
    tensors.EMBEDDING_PAIR: embeddings,
    tensors.TOKEN_ROWS: token_rows,
  }
  config = {**adapter.config, 'trainable_token_indices': indices}
  return dataclasses.replace(adapter, config=config, tensors=cut)
