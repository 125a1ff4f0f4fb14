"""Mixtures of experts: each token goes through the experts chosen by the router, none dropped.

Axes as in decoder.py: E experts, k choices of a token, Z tokens (B T), J choices (Z k), sorted by
expert so that each expert's choices are consecutive rows of one grouped matmul. No capacity is
set, so nothing is padded.

On a mesh every device routes its own rows (`shard_map`): tokens never travel. The experts' kernels
lie as all kernels do: E whole, D cut over fsdp (gathered for the layer that runs), F cut over
tensor. The outputs of the down projection are then partial sums, added up over tensor.

The router learns from the task's loss alone: no auxiliary loss balances the experts.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from weightsteer_jax.models import delta as deltas
from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.layers import ACTIVATION_FUNCTIONS, Projection
from weightsteer_jax.runtime import sharding

PyTree = Any

EINSUMS = {'gate': 'JD,EDF->JF', 'up': 'JD,EDF->JF', 'down': 'JF,EFD->JD'}
KERNEL_AXES = {name: einsum.split(',')[1].split('->')[0] for name, einsum in EINSUMS.items()}


class ExpertKernel(nnx.Module):
  """One projection's kernels of all experts."""

  def __init__(self, axes: str, sizes: dict[str, int], *, dtype: Any, rngs: nnx.Rngs):
    shape = tuple(sizes[axis] for axis in axes)
    kernel = 0.02 * jax.random.normal(rngs.params(), shape, dtype)
    self.kernel = nnx.Param(kernel, axes=axes, inputs=1)


class Experts(nnx.Module):
  """The gated feed-forward networks of all experts."""

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    for name, axes in KERNEL_AXES.items():
      setattr(self, name, ExpertKernel(axes, config.sizes(), dtype=dtype, rngs=rngs))


class MoE(nnx.Module):
  """The sum of the chosen experts' gated feed-forward networks, weighted by the router.

  The router's scores are float32 in any model.
  """

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    self.choices = config.experts_per_token
    self.normalise = config.normalise_choices
    self.activation = config.activation
    self.router = Projection('BTD,DE->BTE', config.sizes(), bias=False, dtype=dtype, rngs=rngs)
    self.experts = Experts(config, dtype=dtype, rngs=rngs)

  def __call__(self, x_BTD: jax.Array, edits: deltas.Edits) -> jax.Array:
    """What the experts add to the residual stream, [B, T, D]."""
    scores_BTE = self.router(x_BTD, deltas.at(edits, 'router'), wide=True)
    # Plain arrays, which shard_map can hand to each device.
    kernels = {name: getattr(self.experts, name).kernel[...] for name in EINSUMS}
    edits = [
      dataclasses.replace(edit, alpha=_per_token(edit.alpha, x_BTD))
      for edit in deltas.at(edits, 'experts')
    ]
    # A token's random draws come from its number, which is the same on every mesh.
    rows, length = x_BTD.shape[:2]
    token_BT = jnp.arange(rows * length, dtype=jnp.int32).reshape(rows, length)
    mix = functools.partial(
      mixture, choices=self.choices, normalise=self.normalise, activation=self.activation
    )
    return sharding.constrain(_by_device(mix, x_BTD, scores_BTE, token_BT, kernels, edits), 'BTD')


def mixture(
  x_BTD: jax.Array,
  scores_BTE: jax.Array,
  token_BT: jax.Array,
  kernels: dict[str, jax.Array],
  edits: deltas.Edits,
  *,
  choices: int,
  normalise: bool,
  activation: str,
  tensor: str | None = None,
) -> jax.Array:
  """What the chosen experts make of the tokens, [B, T, D].

  Args:
    scores_BTE: the router's, float32.
    token_BT: a number for each token (see MoE).
    kernels: {gate, up, down}.
    edits: of the site `experts`, with alphas [B, T].
    choices: experts for a token.
    normalise: whether the probabilities of a token's experts are made to sum to one.
    tensor: the mesh axis that F is cut over, if any; partial sums are then added up over the axis.

  Source: transformers `modeling_mixtral.py`, `modeling_qwen3_moe.py`.
  """
  width = x_BTD.shape[-1]
  num_experts = scores_BTE.shape[-1]
  weights_Zk, experts_Zk = route(scores_BTE.reshape(-1, num_experts), choices, normalise)

  # Choices are sorted by expert: each expert's rows are then consecutive.
  experts_J = experts_Zk.reshape(-1)
  order_J = jnp.argsort(experts_J)
  sizes_E = jnp.bincount(experts_J, length=num_experts).astype(jnp.int32)
  token_J = order_J // choices

  def follow(edit):
    """The edit with an alpha and a key for each choice, in sorted order."""
    alpha_J = edit.alpha.reshape(-1)[token_J]
    if edit.key is None:
      return dataclasses.replace(edit, alpha=alpha_J)
    draw_J = token_BT.reshape(-1)[token_J] * choices + order_J % choices
    key_J = jax.vmap(jax.random.fold_in, (None, 0))(edit.key, draw_J)
    return dataclasses.replace(edit, alpha=alpha_J, key=key_J)

  def project(name, x_JI, cut=None):
    below = deltas.at(edits, name)
    changes = {part: list(map(follow, deltas.at(below, part))) for part in ('kernel', 'bias')}
    expert_J = experts_J[order_J]
    return _project(x_JI, kernels[name], EINSUMS[name], changes, sizes_E, expert_J, cut)

  x_JD = x_BTD.reshape(-1, width)[token_J]
  hidden_JF = ACTIVATION_FUNCTIONS[activation](project('gate', x_JD)) * project('up', x_JD)
  y_JD = project('down', hidden_JF, cut=tensor)

  # Back to the order of the tokens, where the choices of a token are summed in float32.
  y_ZkD = y_JD[jnp.argsort(order_J)].reshape(-1, choices, width)
  y_ZD = jnp.einsum('ZkD,Zk->ZD', y_ZkD.astype(jnp.float32), weights_Zk)
  y_BTD = deltas.pin(y_ZD.astype(x_BTD.dtype).reshape(x_BTD.shape))
  return deltas.pin(jax.lax.psum(y_BTD, tensor)) if tensor else y_BTD


def route(scores_ZE: jax.Array, choices: int, normalise: bool) -> tuple[jax.Array, jax.Array]:
  """Weights [Z, k] float32 and indices [Z, k] of the most probable experts of each token."""
  weights_Zk, experts_Zk = jax.lax.top_k(jax.nn.softmax(scores_ZE, axis=-1), choices)
  if normalise:
    weights_Zk = weights_Zk / weights_Zk.sum(-1, keepdims=True)
  return weights_Zk, experts_Zk


def grouped(sizes_E: jax.Array) -> Callable[..., jax.Array]:
  """An einsum of rows [J, I] with kernels [E, I, O]; kernel e has the next sizes_E[e] rows."""

  def einsum(_: str, x_JI: jax.Array, kernel_EIO: jax.Array, dtype: Any = None) -> jax.Array:
    # A higher precision has no meaning for bfloat16, and the TPU's kernel would not compile.
    precision = None if x_JI.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.ragged_dot(x_JI, kernel_EIO, sizes_E, precision, dtype)

  return einsum


def _project(
  x_JI: jax.Array,
  kernel_EIO: jax.Array,
  einsum: str,
  edits: dict[str, deltas.Edits],
  sizes_E: jax.Array,
  expert_J: jax.Array,
  tensor: str | None,
) -> jax.Array:
  """Each row through its expert's kernel and the edits of it.

  Args:
    edits: of the kernel and of the bias, with an alpha and a key for each row.
    tensor: the mesh axis that the inputs are cut over, if any; the result is then a partial sum.
  """
  dot = grouped(sizes_E)
  y_JO = deltas.pin(dot(einsum, x_JI, kernel_EIO))
  for edit in edits['kernel']:
    # Inputs are dropped here, by rows; without a key they are not dropped again.
    dropped_JI = _drop(x_JI, edit, tensor)
    edit = dataclasses.replace(edit, key=None)
    y_JO = deltas.add_kernel_edits(y_JO, dropped_JI, einsum, [edit], dot=dot)
  for edit in edits['bias']:
    bias_JO = edit.delta.value[expert_J]
    if tensor:
      # The sum over devices takes the bias once, not once for each part.
      bias_JO = jnp.where(jax.lax.axis_index(tensor) == 0, bias_JO, 0)
    y_JO = y_JO + (edit.alpha[:, None] * bias_JO).astype(y_JO.dtype)
  return deltas.pin(y_JO)


def _drop(x_JI: jax.Array, edit: deltas.Edit, tensor: str | None) -> jax.Array:
  """The rows with some inputs dropped, the same inputs on every mesh."""
  if edit.key is None or not edit.dropout or not isinstance(edit.delta, deltas.LowRank):
    return x_JI
  inputs = x_JI.shape[1]
  first: jax.Array | int = 0
  if tensor:
    first = jax.lax.axis_index(tensor) * inputs
    inputs = inputs * jax.lax.axis_size(tensor)

  def kept(key):
    return jax.random.bernoulli(key, 1 - edit.dropout, (inputs,))

  # Each device draws for all inputs of a row, and takes the draws of the inputs that it holds.
  kept_JI = jax.lax.dynamic_slice_in_dim(jax.vmap(kept)(edit.key), first, x_JI.shape[1], axis=1)
  return jnp.where(kept_JI, x_JI / (1 - edit.dropout), 0).astype(x_JI.dtype)


def _per_token(alpha: jax.Array, x_BTD: jax.Array) -> jax.Array:
  """A strength (a number, [B] or [B, T]) as [B, T]."""
  alpha = jnp.asarray(alpha, jnp.float32)
  return jnp.broadcast_to(alpha.reshape(alpha.shape + (1,) * (2 - alpha.ndim)), x_BTD.shape[:2])


def _by_device(
  mix: Callable[..., jax.Array],
  x_BTD: jax.Array,
  scores_BTE: jax.Array,
  token_BT: jax.Array,
  kernels: dict[str, jax.Array],
  edits: list[deltas.Edit],
) -> jax.Array:
  """`mixture` run by each device of the context's mesh on its own rows and its own part of F."""
  # On one device nothing is cut.
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return mix(x_BTD, scores_BTE, token_BT, kernels, edits)
  rows = sharding.ACTIVATIONS['B']
  (tensor,) = sharding.WEIGHTS['F']
  # Rows, or a width, that the mesh does not divide are whole on every device.
  on: dict[str, tuple[str, ...] | str] = {}
  if x_BTD.shape[0] % math.prod(mesh.shape[axis] for axis in rows) == 0:
    on['B'] = rows
  if mesh.shape[tensor] > 1 and kernels['gate'].shape[-1] % mesh.shape[tensor] == 0:
    on['F'] = tensor
  axes = ('BTD', 'BTE', 'BT', KERNEL_AXES, [_edit_axes(edit) for edit in edits])
  specs = jax.tree.map(lambda letters: jax.P(*(on.get(letter) for letter in letters)), axes)
  mapped = jax.shard_map(
    functools.partial(mix, tensor=on.get('F')), in_specs=specs, out_specs=specs[0]
  )
  return mapped(x_BTD, scores_BTE, token_BT, kernels, edits)


def _edit_axes(edit: deltas.Edit) -> PyTree:
  """Axis letters of the edit's arrays, as a tree parallel to the edit."""

  def letters(path, _):
    field = path[-1].name
    if field in ('alpha', 'key'):
      return {'alpha': 'BT', 'key': ''}[field]
    # The path of a leaf in a delta: .delta['gate']['kernel'].a
    name = path[1].key
    part = path[2].key
    experts, inputs, outputs = KERNEL_AXES[name]
    if part == 'bias':
      return experts + outputs
    return {'value': KERNEL_AXES[name], 'a': f'{experts}{inputs}R', 'b': f'{experts}R{outputs}'}[
      field
    ]

  return jax.tree_util.tree_map_with_path(letters, edit)
