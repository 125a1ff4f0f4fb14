"""LoRA pairs of experts: a pair for each projection of each expert, or one for a stack of all.

transformers 4 has a module for each projection of each expert, and PEFT saves a pair for each:
`mlp.experts.3.gate_proj`. transformers 5 holds the experts of a layer in two parameters of one
module, `gate_up_proj [E, 2 F, D]` and `down_proj [E, D, F]`, and PEFT wraps the module once for
each parameter that it changes (`target_parameters`): the last wrapper is `mlp.experts`, the wrapper
inside is `mlp.experts.base_layer`. The pair of a wrapper has the factors of all experts:

  lora_A [E R, inputs]    row after row, expert by expert
  lora_B [outputs, R E]   column after column, rank by rank

Source: `ParamWrapper` in peft.tuners.lora.layer, PEFT 0.21.2.
"""

import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from weightsteer_jax import models
from weightsteer_jax.directions.adapters import low_rank, modules, tensors
from weightsteer_jax.directions.adapters.config import scaling
from weightsteer_jax.directions.adapters.tensors import Adapter
from weightsteer_jax.directions.adapters.wholes import difference
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.models import Dense, LowRank, stored
from weightsteer_jax.models.families import TensorRow
from weightsteer_jax.runtime.errors import InputError

# The parameters of transformers 5, and the projections that each holds, one below the other.
STACKS = {'gate_up_proj': ('gate', 'up'), 'down_proj': ('down',)}
# PEFT before this version took the axes of a stack for [E, inputs, outputs]: A is then of the
# outputs, and B of the inputs.
UNTURNED_SINCE = (0, 19, 1)


class Stack(NamedTuple):
  """What a pair of all experts changes.

  Attributes:
    parameter: a key of STACKS.
    turned: whether A is of the outputs and B of the inputs.
  """

  parameter: str
  turned: bool


def pairs(adapter: Adapter, base: Checkpoint) -> dict[str, LowRank]:
  """{path: factors} of the pairs at experts, whichever way they were saved.

  Raises:
    InputError: if a pair is of no expert of the base, or of another rank or shape than the config
      and the base say.
  """
  # A pair without a parameter must never be dropped in silence.
  left = set(adapter.tensors[tensors.EXPERT_PAIR])
  leaves: dict[str, LowRank] = {}
  for path, row in base.rows.items():
    if '{e}' not in row.name:
      continue
    by_layer = {}
    for layer in range(base.num_layers(path)):
      stacks = _stacks(adapter, base, row, layer)
      each = _each(adapter, base, row, layer)
      # At most one is there: the names of the other are left over.
      if stacks:
        (module,) = stacks
        by_layer[layer] = _from_stack(adapter, base, row, module, stacks[module])
        left -= {module}
      elif each:
        by_layer[layer] = _from_each(adapter, base, row, each)
        left -= set(each.values())
    leaf = low_rank.stack_layers(path, base.config, by_layer) if by_layer else None
    if leaf is not None:
      leaves[path] = leaf
  if left:
    raise modules.unknown(adapter, base, left)
  return leaves


def wholes(adapter: Adapter, base: Checkpoint) -> dict[str, Dense]:
  """{path: saved minus base} of the stacks that were saved whole and changed.

  Raises:
    InputError: if the base has no such experts, or of another shape.
  """
  named = adapter.tensors[tensors.EXPERT_WHOLE]
  left = set(named)
  changes: dict[str, np.ndarray] = {}
  for path, row in base.rows.items():
    if '{e}' not in row.name:
      continue
    container, _ = row.name.split('.{e}.')
    for layer in range(base.num_layers(path)):
      for module in modules.names(base, container.format(l=layer)):
        if module not in named:
          continue
        left -= {module}
        ours = _block_of_whole(adapter, base, row, module)
        if ours is None:
          continue
        change = difference(ours, base.layer(path, layer))
        # PEFT also saves modules that were never trained; these are no part of the delta.
        if change.any():
          shape = models.sites(base.config)[path].shape
          changes.setdefault(path, np.zeros(shape, np.float32))[layer] = change
  if left:
    raise modules.unknown(adapter, base, left)
  return {path: Dense(jnp.asarray(change)) for path, change in changes.items()}


def by_expert(pattern: str) -> str:
  """The pattern of a stack of experts from the pattern of one.

  >>> by_expert('F D -> D F')
  'E F D -> E D F'
  """
  return ' -> '.join(f'E {axes}' for axes in pattern.split(' -> '))


def _block_of_whole(
  adapter: Adapter, base: Checkpoint, row: TensorRow, module: str
) -> np.ndarray | None:
  """A projection of all experts of a stack that was saved whole, in our axes; None without it."""
  for parameter, projections in STACKS.items():
    whole = adapter.tensors[tensors.EXPERT_WHOLE][module].get(parameter)
    if _projection(row) not in projections or whole is None:
      continue
    outputs, inputs = stored.their_shape(row.pattern, base.config)
    expected = (base.config.num_experts, len(projections) * outputs, inputs)
    if whole.shape != expected:
      raise InputError(
        f"{adapter.folder}: '{module}.{parameter}' was saved with shape {whole.shape}, the base's "
        f'experts have {expected}'
      )
    blocks = np.split(whole, len(projections), axis=1)
    block = blocks[projections.index(_projection(row))]
    return stored.to_ours(block, by_expert(row.pattern), base.config)
  return None


def _stacks(adapter: Adapter, base: Checkpoint, row: TensorRow, layer: int) -> dict[str, Stack]:
  """{module: stack} of the pair of a layer's stack that holds the parameter, if there is one."""
  container, _ = row.name.split('.{e}.')
  stacks = {}
  for name in modules.names(base, container.format(l=layer)):
    for module in (name, f'{name}.base_layer'):
      if module not in adapter.tensors[tensors.EXPERT_PAIR]:
        continue
      stack = _recognise(adapter, base, module)
      if _projection(row) in STACKS[stack.parameter]:
        stacks[module] = stack
  if len(stacks) > 1:
    raise InputError(
      f'{adapter.folder}: {" and ".join(stacks)} have the shapes of one parameter, of which only '
      'one pair can be the change'
    )
  return stacks


def _each(adapter: Adapter, base: Checkpoint, row: TensorRow, layer: int) -> dict[int, str]:
  """{expert: module} of the pairs of a layer's single experts."""
  each = {}
  for expert in range(base.config.num_experts):
    tensor_name = row.name.format(l=layer, e=expert)
    for module in modules.names(base, tensor_name.removesuffix('.weight')):
      if module in adapter.tensors[tensors.EXPERT_PAIR]:
        each[expert] = module
  return each


def _recognise(adapter: Adapter, base: Checkpoint, module: str) -> Stack:
  """The stack that a pair changes, by the shapes of its factors.

  The names do not say which: `experts` is the only wrapper, or the last of two.
  """
  parts = adapter.tensors[tensors.EXPERT_PAIR][module]
  shape = (parts['A'].shape[1], parts['B'].shape[0])
  width = base.config.width
  mlp_width = base.config.mlp_width
  fitting = []
  # In order of preference: A and B of a square change fit both ways.
  for turned in sorted((False, True), reverse=_is_turned(adapter)):
    for parameter, inputs, outputs in (
      ('gate_up_proj', width, 2 * mlp_width),
      ('down_proj', mlp_width, width),
    ):
      if shape == ((outputs, inputs) if turned else (inputs, outputs)):
        fitting.append(Stack(parameter, turned))
  if not fitting:
    raise InputError(
      f"{adapter.folder}: '{module}' has factors of {shape[0]} inputs and {shape[1]} outputs; the "
      f"base's experts have {width} and {2 * mlp_width} (gate_up_proj), or {mlp_width} and {width} "
      '(down_proj): the adapter is for another architecture'
    )
  return fitting[0]


def _is_turned(adapter: Adapter) -> bool:
  """Whether the adapter's version of PEFT took outputs for inputs; False without a version."""
  version = re.match(r'(\d+)\.(\d+)\.(\d+)', str(adapter.config.get('peft_version')))
  return version is not None and tuple(map(int, version.groups())) < UNTURNED_SINCE


def _from_stack(
  adapter: Adapter, base: Checkpoint, row: TensorRow, module: str, stack: Stack
) -> tuple[np.ndarray, np.ndarray]:
  """The factors a [E, inputs, R] and b [E, R, outputs] of a parameter, the scale in b."""
  parts = adapter.tensors[tensors.EXPERT_PAIR][module]
  num_experts = base.config.num_experts
  # PEFT's patterns are of the parameter's name, whichever wrapper it is in.
  name = f'{module.removesuffix(".base_layer")}.{stack.parameter}'
  rank, scale = scaling(adapter.config, name)
  expected = rank * num_experts
  a_rows = parts['A'].shape[0]
  b_columns = parts['B'].shape[1]
  if (a_rows, b_columns) != (expected, expected):
    raise InputError(
      f"{adapter.folder}: '{module}' has factors {parts['A'].shape} and {parts['B'].shape}, but "
      f'its config says rank {rank} ({name}), and the base has {num_experts} experts'
    )
  if stack.turned:
    a_EIR = rearrange(parts['B'], 'I (R E) -> E I R', E=num_experts)
    b_ERO = rearrange(parts['A'], '(E R) O -> E R O', E=num_experts)
  else:
    a_EIR = rearrange(parts['A'], '(E R) I -> E I R', E=num_experts)
    b_ERO = rearrange(parts['B'], 'O (R E) -> E R O', E=num_experts)
  # Of a stack's outputs, each projection has a block, in their order.
  projections = STACKS[stack.parameter]
  blocks = np.split(b_ERO, len(projections), axis=-1)
  b_ERO = blocks[projections.index(_projection(row))]
  # Ranks that change only the other projection are left out: half of them, where the adapter was
  # made of a pair for each projection.
  used = np.flatnonzero(b_ERO.any(axis=(0, 2)))
  return a_EIR[..., used], np.float32(scale) * b_ERO[:, used]


def _from_each(
  adapter: Adapter, base: Checkpoint, row: TensorRow, each: dict[int, str]
) -> tuple[np.ndarray, np.ndarray]:
  """The same from pairs of single experts; experts without a pair do not change."""
  converted = {}
  for expert, module in each.items():
    converted[expert] = low_rank.convert_pair(
      adapter, base.config, module, row, kind=tensors.EXPERT_PAIR
    )
  # rank_pattern may give each expert a rank of its own.
  rank = max(a.shape[-1] for a, _ in converted.values())
  num_experts = base.config.num_experts
  a, b = converted[next(iter(converted))]
  a_EIR = np.zeros((num_experts, a.shape[0], rank), np.float32)
  b_ERO = np.zeros((num_experts, rank, b.shape[1]), np.float32)
  for expert, (a, b) in converted.items():
    a_EIR[expert, :, : a.shape[-1]] = a
    b_ERO[expert, : len(b)] = b
  return a_EIR, b_ERO


def _projection(row: TensorRow) -> str:
  """'gate', 'up' or 'down' of a row of experts."""
  return row.path.split('/')[-2]
