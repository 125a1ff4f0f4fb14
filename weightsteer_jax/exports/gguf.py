"""A direction as a LoRA adapter of llama.cpp: a GGUF file, whose scale when loaded is alpha.

Source: llama.cpp b6155, convert_lora_to_gguf.py (names, order of rows and metadata, which are the
same here), src/llama-adapter.cpp (what is loaded) and src/llama-adapter.h `get_scale` (the scale of
the command line times alpha of the file over the rank).
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import adapters
from weightsteer_jax.directions.adapters import tensors
from weightsteer_jax.directions.algebra import scale_delta
from weightsteer_jax.directions.streamed import checkpoints
from weightsteer_jax.exports import peft
from weightsteer_jax.exports.base_folder import BaseFolder
from weightsteer_jax.exports.experts import Pair
from weightsteer_jax.models import Dense, gguf, stored
from weightsteer_jax.models.families import FAMILIES
from weightsteer_jax.models.stored import EMBEDDING
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

PyTree = Any

NAME = 'adapter.gguf'
# The library whose limits hold, a key of targets.TARGETS.
TARGET = 'llama.cpp'


def write(
  folder: pathlib.Path, delta: PyTree, base: BaseFolder, *, table_rank: int = 0
) -> dict[str, Any]:
  """Entries of the provenance of a delta, written as an adapter of scale 1.

  Args:
    folder: gets adapter.gguf.
    delta: the delta of a folded direction, passed by targets.check.
    table_rank: rank of the folded change of an embedding or head.

  Raises:
    InputError: if llama.cpp has no architecture for the base.
  """
  names = gguf.Names.of(base.family, base.config)
  # The scale of a leaf goes into its factors.
  changes = tree.flatten(scale_delta(delta, 1.0), models.is_delta_leaf)
  dense = {path: leaf for path, leaf in changes.items() if isinstance(leaf, Dense)}
  pairs = peft.module_pairs(changes, base, stacked=False) | peft.table_pairs(dense, table_rank)
  rank = max(a.shape[0] for a, _ in pairs.values())
  by_tensor = {}
  for module, pair in pairs.items():
    # One rank for all: the file has one alpha, which llama.cpp divides by the rank of each tensor.
    name = module.removeprefix(peft.PREFIX) + '.weight'
    by_tensor[name] = peft.padded(pair, rank)
  made = {}
  for name, (a, b) in _as_in_file(by_tensor, names):
    made[f'{name}.lora_a'] = a
    made[f'{name}.lora_b'] = b
  metadata: dict[str, str | int | float] = {
    'general.type': 'adapter',
    'adapter.type': 'lora',
    'general.base_model.count': 1,
    'general.base_model.0.name': base.title,
    'adapter.lora.alpha': float(rank),
  }
  gguf.write(folder / NAME, names.architecture, metadata, made)
  note = (
    'llama.cpp adds it to a GGUF file of the base, at the strength of --lora-scaled; to a '
    'quantised file the change is added as it is, beside weights that are not those it was '
    'measured on.'
  )
  return {'rank': rank, 'target': TARGET, 'architecture': names.architecture, 'notes': [note]}


def _as_in_file(pairs: Mapping[str, Pair], names: gguf.Names) -> Iterator[tuple[str, Pair]]:
  """(name in the file, factors as in the file) of every tensor, experts stacked in their order.

  Args:
    pairs: {Hugging Face tensor: pair}.
  """
  stacks: dict[str, list[np.ndarray]] = {}
  for theirs, (a, b) in pairs.items():
    ours = names.tensor(theirs)
    heads = names.interleaved_heads(theirs)
    if '.experts.' in theirs:
      stacks.setdefault(f'{ours} a', []).append(a)
      stacks.setdefault(f'{ours} b', []).append(b)
      continue
    if heads:
      b = gguf.interleaved(b, heads)
    # An embedding is looked up by token: a row of A is a token.
    yield ours, (a.T if theirs == EMBEDDING else a, b)
  for key in stacks:
    if key.endswith(' a'):
      ours = key.removesuffix(' a')
      yield ours, (np.stack(stacks[key]), np.stack(stacks[f'{ours} b']))


def read(path: pathlib.Path, base: BaseFolder) -> PyTree:
  """The delta of the adapter in a file, as llama.cpp adds it at scale 1.

  Raises:
    InputError: if the file is no adapter of the base's architecture, or changes what the base does
      not have.
    CorruptError: if the file cannot be read.
  """
  names = gguf.Names.of(base.family, base.config)
  file = gguf.GgufFile(path, kind='adapter')
  if file.architecture != names.architecture:
    raise InputError(
      f"{path} is an adapter of the architecture '{file.architecture}', and the base "
      f"'{base.source}' is of '{names.architecture}'"
    )
  left = file.names()
  found: dict[str, dict[str, dict[str, np.ndarray]]] = {row.kind: {} for row in tensors.KINDS}
  rank = 0
  for row in stored.tensor_rows(base.config, FAMILIES[base.family]).values():
    for at, theirs in stored.stored_names(row, base.config).items():
      ours = names.tensor(theirs)
      if f'{ours}.lora_a' not in file.names():
        continue
      left -= {f'{ours}.lora_a', f'{ours}.lora_b'}
      a, b = (file.rows(f'{ours}.lora_{part}', slice(None)) for part in 'ab')
      if '{e}' in row.name:
        a, b = a[at[1]], b[at[1]]
      if heads := names.interleaved_heads(theirs):
        b = gguf.in_halves(b, heads)
      rank = b.shape[1]
      is_table = theirs == EMBEDDING
      end = 'lora_embedding_{}' if is_table else 'lora_{}.weight'
      for part, factor in (('A', a.T if is_table else a), ('B', b)):
        name = f'{theirs.removesuffix(".weight")}.{end.format(part)}'
        kind, module, _ = tensors.recognise(name, path)
        found[kind].setdefault(module, {})[part] = factor
  if left:
    raise InputError(f"{path} changes '{sorted(left)[0]}', which '{base.source}' does not have")
  config = {'peft_type': 'LORA', 'r': rank, 'lora_alpha': file.metadata['adapter.lora.alpha']}
  adapter = adapters.Adapter(path, config, found)
  with checkpoints.open_checkpoint(base.folder) as opened:
    return adapters.to_delta(adapter, opened)
