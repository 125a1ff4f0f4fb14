"""LoRA pairs as changes of a base: factors of kernels, and biases beside them.

A module that holds several of our parameters (a fused qkv_proj) is taken apart by its rows.
"""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from einops import EinopsError

from weightsteer_jax import models
from weightsteer_jax.directions.adapters import modules, tensors
from weightsteer_jax.directions.adapters.config import scaling
from weightsteer_jax.directions.adapters.tensors import Adapter
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.models import Dense, LowRank, ModelConfig, stored
from weightsteer_jax.models.families import TensorRow
from weightsteer_jax.models.sites import low_rank_shapes
from weightsteer_jax.runtime.errors import InputError


def pairs(adapter: Adapter, base: Checkpoint) -> dict[str, LowRank]:
  """{path: factors} of the pairs at kernels.

  Raises:
    InputError: if a pair is at no kernel of the base, or its shape is not that of the kernel.
  """
  leaves: dict[str, LowRank] = {}
  # A pair without a parameter must never be dropped in silence.
  left = set(adapter.tensors[tensors.PAIR])
  for path, row in base.rows.items():
    # Experts are of a kind of their own; LoRA has no form for anything but a kernel.
    if '{e}' in row.name or not models.sites(base.config)[path].inputs:
      continue
    # Of a fused module, each parameter takes its own rows below.
    named = {}
    for layer in range(base.num_layers(path)):
      tensor_name = row.name.format(l=layer)
      for module in modules.names(base, tensor_name.removesuffix('.weight')):
        if module in adapter.tensors[tensors.PAIR]:
          named[layer] = module
    if named:
      leaf = _stack_pairs(adapter, base.config, row, named)
      if leaf is not None:
        leaves[path] = leaf
      left -= set(named.values())
  if left:
    raise modules.unknown(adapter, base, left)
  return leaves


def biases(adapter: Adapter, base: Checkpoint) -> dict[str, Dense]:
  """{path: change} of the biases of lora_B, which the scale multiplies as it does the product.

  Source: peft.tuners.lora.layer.Linear, `lora_bias`.

  Raises:
    InputError: if a bias is at no kernel of a layer, or of another shape.
  """
  by_module = adapter.tensors[tensors.LORA_BIAS]
  changes: dict[str, np.ndarray] = {}
  left = set(by_module)
  sites = models.delta_sites(base.config)
  for path, row in base.rows.items():
    bias_path = path.removesuffix('kernel') + 'bias'
    # The head has no place for a bias.
    if not path.endswith('/kernel') or '{e}' in row.name or bias_path not in sites:
      continue
    outputs, _ = stored.groups(row.pattern.split(' -> ')[0])
    pattern = f'{outputs} -> {outputs.strip("()")}'
    for layer in range(base.num_layers(path)):
      module = row.name.format(l=layer).removesuffix('.weight')
      if module not in by_module:
        continue
      left.discard(module)
      bias = by_module[module]['bias']
      expected = stored.stored_shape(row, base.config)[:1]
      if bias.shape != expected:
        raise InputError(
          f"{adapter.folder}: the bias of '{module}' has shape {bias.shape}; the base has outputs "
          f'of {expected}'
        )
      pair = adapter.tensors[tensors.PAIR][module]
      scale = checked_scale(adapter, module, pair['A'], pair['B'])
      rows = stored.stored_rows(row, base.config)
      change = changes.setdefault(bias_path, np.zeros(sites[bias_path].shape, np.float32))
      change[layer] = scale * stored.to_ours(bias[rows], pattern, base.config)
  if left:
    raise modules.unknown(adapter, base, left)
  return {path: Dense(jnp.asarray(change)) for path, change in changes.items() if change.any()}


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


def checked_scale(adapter: Adapter, module: str, a: np.ndarray, b: np.ndarray) -> np.float32:
  """The scale of a pair.

  Raises:
    InputError: if the factors are not of the rank that the config says.
  """
  rank, scale = scaling(adapter.config, module, saved_rank=len(a))
  # A wrong rank would give a wrong scale: the config is of another adapter, or was edited.
  if a.shape[:1] != (rank,) or b.shape[1:] != (rank,):
    raise InputError(
      f"{adapter.folder}: '{module}' has factors {a.shape} and {b.shape}, but its config says rank "
      f"{rank}"
    )
  return np.float32(scale)


def stack_layers(
  path: str, config: ModelConfig, pairs: Mapping[int, tuple[np.ndarray, np.ndarray]]
) -> LowRank | None:
  """One leaf from the factors of a parameter's layers, or None if all are of rank 0.

  Layers without factors, and ranks below the largest, are filled with zeros.

  Args:
    pairs: {layer: (a [inputs..., R], b [R, outputs...])}, of experts [E, ...] each.
  """
  site = models.sites(config)[path]
  # rank_pattern may give each layer a rank of its own.
  rank = max(a.shape[-1] for a, _ in pairs.values())
  if rank == 0:
    return None
  a_shape, b_shape = low_rank_shapes(site, rank)
  whole_a = np.zeros(a_shape, np.float32)
  whole_b = np.zeros(b_shape, np.float32)
  # A parameter outside the layer stack has no layer axis; both are views.
  a_layers = whole_a if site.stack else whole_a[None]
  b_layers = whole_b if site.stack else whole_b[None]
  experts = (slice(None),) if site.stack == 'LE' else ()
  for layer, (a, b) in pairs.items():
    # Zeros in the other ranks add nothing to A B.
    used = slice(a.shape[-1])
    a_layers[(layer, ..., used)] = a
    b_layers[(layer, *experts, used)] = b
  return LowRank(jnp.asarray(whole_a), jnp.asarray(whole_b))


def convert_pair(
  adapter: Adapter,
  config: ModelConfig,
  module: str,
  row: TensorRow,
  *,
  kind: str = tensors.PAIR,
) -> tuple[np.ndarray, np.ndarray]:
  """A module's factors in our axes, the scale in b; b is cut to the rows of this parameter.

  Raises:
    InputError: if the factors are not of the rank that the config says, or of another shape than
      the base's weight.
  """
  parts = adapter.tensors[kind][module]
  a = parts['A']
  b = parts['B']
  scale = checked_scale(adapter, module, a, b)
  a_pattern, b_pattern = factor_patterns(row.pattern)
  # The shape of the weight that B A is added to.
  shape = (b.shape[0], a.shape[1])
  expected = stored.stored_shape(row, config)
  if shape != expected:
    raise InputError(
      f"{adapter.folder}: '{module}' changes a weight of shape {shape}; the base's is {expected}: "
      'the adapter is for another architecture'
    )
  # The rows of B A are those of B, so a fused module's parameters share A.
  rows = stored.stored_rows(row, config)
  try:
    our_a = stored.to_ours(a, a_pattern, config)
    our_b = stored.to_ours(b[rows], b_pattern, config)
    return our_a, scale * our_b
  except EinopsError as error:
    raise InputError(
      f"{adapter.folder}: '{module}' does not fit the base's '{row.pattern}'"
    ) from error


def _stack_pairs(
  adapter: Adapter, config: ModelConfig, row: TensorRow, modules: Mapping[int, str]
) -> LowRank | None:
  """One leaf from the pairs of a parameter's layers, or None if the pairs do not change it.

  Args:
    modules: {layer: Hugging Face module name} of the layers with a pair.
  """
  is_fused = bool(row.before or row.after)
  pairs = {}
  for layer, module in modules.items():
    a, b = convert_pair(adapter, config, module, row)
    # A fused module's adapter may have ranks that change only the other parameters of the module.
    if is_fused:
      output_axes = tuple(range(1, b.ndim))
      used = np.flatnonzero(b.any(axis=output_axes))
      a = a[..., used]
      b = b[used]
    pairs[layer] = (a, b)
  return stack_layers(row.path, config, pairs)
