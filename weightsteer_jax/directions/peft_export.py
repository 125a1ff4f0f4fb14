"""A direction at a fixed alpha as a PEFT LoRA adapter, exact in float32: rank 2r for a contrast of two of rank r."""
import pathlib
from typing import Any, Mapping

import jax.numpy as jnp
import numpy as np

from weightsteer_jax import files, models
from weightsteer_jax.directions import gram
from weightsteer_jax.directions.algebra import scale_delta
from weightsteer_jax.directions.checkpoints import EMBEDDING, HEAD
from weightsteer_jax.directions.peft_adapter import CONFIG, WEIGHTS, factor_patterns
from weightsteer_jax.errors import InputError
from weightsteer_jax.models import Dense, LowRank, huggingface
from weightsteer_jax.models.families import FAMILIES

PyTree = Any

PREFIX = 'base_model.model.'
WHOLE = {'embed/embedding': EMBEDDING, 'lm_head/kernel': HEAD}
# What --max-lora-rank may be. Source: docs.vllm.ai, vllm.config.lora.MaxLoRARanks (0.14 and later).
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def write(folder: pathlib.Path, delta: PyTree, base: models.Model, alpha: float) -> dict[str, Any]:
  """Writes `alpha * delta` as adapter_config.json and adapter_model.safetensors; {'rank', 'notes'}.

  All factors get the largest rank, filled with zeros, and lora_alpha equals it: the scaling is 1, and alpha lies in B.

  Raises:
    InputError: a change that a LoRA adapter cannot hold; names it and what to do.
  """
  flat = gram.flatten(scale_delta(delta, alpha))
  _check_expressible(flat, base)
  low_rank = {path: leaf for path, leaf in flat.items() if isinstance(leaf, LowRank)}
  wholes = [path for path, leaf in flat.items() if isinstance(leaf, Dense)]
  rank = max(leaf.a.shape[-1] for leaf in low_rank.values())
  rows = {row.path: row for row in FAMILIES[base.family].tensors}
  tensors: dict[str, np.ndarray] = {}
  for path, leaf in low_rank.items():
    tensors |= _pairs(path, leaf, rows[path].name, rows[path].pattern, rank, base)
  for path in wholes:
    tensors |= _whole(path, flat[path], rows[path].pattern, base)
  files.save_safetensors(folder / WEIGHTS, tensors, metadata={'format': 'pt'})
  targets = sorted({rows[path].name.removesuffix('.weight').rsplit('.', 1)[-1] for path in low_rank})
  files.write_json(folder / CONFIG, _config(base, rank, targets, wholes))
  return {'rank': rank, 'notes': _notes(rank, wholes)}


def loadable_name(base: models.Model) -> str:
  """What other libraries can load the base by: its hub id, or the absolute path of its folder."""
  return base.source if base.revision else str(base.folder.resolve())


def _check_expressible(flat: Mapping[str, LowRank | Dense], base: models.Model) -> None:
  known = models.sites(base.config)
  dense = sorted(path for path, leaf in flat.items() if isinstance(leaf, Dense) and path not in WHOLE)
  kernels = [path for path in dense if path in known and known[path].inputs]
  if kernels:
    raise InputError(f'a LoRA adapter cannot hold the dense changes of {", ".join(kernels)}: give a rank to fold them '
                     'to by SVD (the error is told), or export as hf or orbax')
  if dense:
    raise InputError(f'a LoRA adapter cannot hold the changes of {", ".join(dense)} (norms, biases, the residual '
                     'stream): export as hf or orbax, or apply the direction unmerged')
  if not any(isinstance(leaf, LowRank) for leaf in flat.values()):
    raise InputError('the direction changes embeddings only, and a LoRA adapter needs a low-rank change: export as hf '
                     'or orbax')


def _pairs(path: str, leaf: LowRank, name: str, pattern: str, rank: int, base: models.Model) -> dict[str, np.ndarray]:
  """{tensor name: factor} of every layer, in PEFT's axes."""
  stack = gram.stack_axes(path)
  a = np.asarray(leaf.a) if stack else np.asarray(leaf.a)[None]
  b = np.asarray(leaf.b) if stack else np.asarray(leaf.b)[None]
  missing = rank - a.shape[-1]
  a = np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, missing)])
  b = np.pad(b, [(0, 0), (0, missing)] + [(0, 0)] * (b.ndim - 2))
  a_pattern, b_pattern = factor_patterns(pattern)
  tensors = {}
  for l in range(a.shape[0]):
    module = PREFIX + name.format(l=l).removesuffix('.weight')
    tensors[f'{module}.lora_A.weight'] = huggingface.to_theirs(a[l], a_pattern, base.config)
    tensors[f'{module}.lora_B.weight'] = huggingface.to_theirs(b[l], b_pattern, base.config)
  return tensors


def _whole(path: str, leaf: Dense, pattern: str, base: models.Model) -> dict[str, np.ndarray]:
  """The changed embedding or head in float32; on a tied base both names hold the one matrix."""
  node = base.params
  for key in path.split('/'):
    node = node[key]
  value = huggingface.to_theirs(np.asarray(jnp.asarray(node, jnp.float32) + leaf.value), pattern, base.config)
  names = (EMBEDDING, HEAD) if base.config.tied else (WHOLE[path],)
  return {PREFIX + name: value.copy() for name in names}


def _config(base: models.Model, rank: int, targets: list[str], wholes: list[str]) -> dict[str, Any]:
  saved = sorted({WHOLE[path].removesuffix('.weight').rsplit('.', 1)[-1] for path in wholes})
  tied = bool(saved) and base.config.tied
  return {
      'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': loadable_name(base),
      'revision': base.revision or None, 'r': rank, 'lora_alpha': rank, 'lora_dropout': 0.0, 'bias': 'none',
      'use_rslora': False, 'use_dora': False, 'fan_in_fan_out': False, 'rank_pattern': {}, 'alpha_pattern': {},
      'target_modules': targets, 'modules_to_save': saved or None, 'init_lora_weights': True, 'inference_mode': True,
      **({'ensure_weight_tying': True} if tied else {}),
  }


def _notes(rank: int, wholes: list[str]) -> list[str]:
  notes = []
  limit = next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)
  if limit is None:
    notes.append(f'The rank, {rank}, is above the largest vLLM serves ({VLLM_RANKS[-1]}): export again with a lower '
                 'rank.')
  else:
    notes.append(f'vLLM serves this rank with --max-lora-rank {limit}.')
  if wholes:
    notes.append('The adapter saves changed embeddings (modules_to_save), which PEFT loads and vLLM refuses: for vLLM '
                 'export as hf.')
  return notes
