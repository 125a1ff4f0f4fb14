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
from weightsteer_jax.models.products import grouped_product
from weightsteer_jax.runtime import sharding

PyTree = Any

# The experts' axis E is in the kernel alone: the groups of rows say which expert multiplies a row.
EINSUMS = {'gate': 'JD,EDF->JF', 'up': 'JD,EDF->JF', 'down': 'JF,EFD->JD'}
KERNEL_AXES = {name: einsum.split(',')[1].split('->')[0] for name, einsum in EINSUMS.items()}


class ExpertKernel(nnx.Module):
  """One projection's kernels of all experts."""

  def __init__(self, axes: str, sizes: dict[str, int], *, dtype: Any, rngs: nnx.Rngs):
    shape = tuple(sizes[axis] for axis in axes)
    # 0.02 as in layers.Projection.
    kernel = 0.02 * jax.random.normal(rngs.params(), shape, dtype)
    # One axis is contracted: D of gate and up, F of down.
    self.kernel = nnx.Param(kernel, axes=axes, inputs=1)


class Experts(nnx.Module):
  """The gated feed-forward networks of all experts."""

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    sizes = config.sizes()
    for name, axes in KERNEL_AXES.items():
      kernel = ExpertKernel(axes, sizes, dtype=dtype, rngs=rngs)
      setattr(self, name, kernel)


class MoE(nnx.Module):
  """The sum of the chosen experts' gated feed-forward networks, weighted by the router.

  The router's scores are float32 in any model.
  """

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    self.choices = config.experts_per_token
    self.normalise = config.normalise_choices
    self.activation = config.activation
    sizes = config.sizes()
    self.router = Projection('BTD,DE->BTE', sizes, bias=False, dtype=dtype, rngs=rngs)
    self.experts = Experts(config, dtype=dtype, rngs=rngs)

  def __call__(self, x_BTD: jax.Array, edits: deltas.Edits) -> jax.Array:
    """What the experts add to the residual stream, [B, T, D]."""
    # transformers also computes the router's softmax in float32, from scores in the model's dtype.
    scores_BTE = self.router(x_BTD, deltas.at(edits, 'router'), wide=True)
    # Plain arrays, which shard_map can hand to each device.
    kernels = {}
    for name in EINSUMS:
      expert_kernel = getattr(self.experts, name)
      kernels[name] = expert_kernel.kernel[...]
    # Tokens leave their rows when choices are sorted, so each token takes its row's alpha along.
    token_edits = []
    for edit in deltas.at(edits, 'experts'):
      alpha_BT = _per_token(edit.alpha, x_BTD)
      token_edits.append(dataclasses.replace(edit, alpha=alpha_BT))
    # A token's random draws come from its number, which is the same on every mesh.
    rows, length = x_BTD.shape[:2]
    token_Z = jnp.arange(rows * length, dtype=jnp.int32)
    token_BT = token_Z.reshape(rows, length)
    mix = functools.partial(
      mixture, choices=self.choices, normalise=self.normalise, activation=self.activation
    )
    y_BTD = _by_device(mix, x_BTD, scores_BTE, token_BT, kernels, token_edits)
    return sharding.constrain(y_BTD, 'BTD')


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
  num_experts = scores_BTE.shape[-1]
  scores_ZE = scores_BTE.reshape(-1, num_experts)
  weights_Zk, experts_Zk = route(scores_ZE, choices, normalise)

  # Choices are sorted by expert: each expert's rows are then consecutive.
  experts_J = experts_Zk.reshape(-1)
  order_J = jnp.argsort(experts_J)
  # The length makes the shape static: otherwise the number of counts would depend on the values.
  sizes_E = jnp.bincount(experts_J, length=num_experts).astype(jnp.int32)
  # Choice c of token z is number z k + c before sorting.
  token_J = order_J // choices

  def project(name, x_JI, cut=None):
    below = deltas.at(edits, name)
    changes = {}
    for part in ('kernel', 'bias'):
      part_edits = deltas.at(below, part)
      changes[part] = [_by_choice(edit, token_BT, order_J, token_J) for edit in part_edits]
    expert_J = experts_J[order_J]
    return _project(x_JI, kernels[name], EINSUMS[name], changes, sizes_E, expert_J, cut)

  # Each choice's token goes through the gated feed-forward network of the expert.
  activate = ACTIVATION_FUNCTIONS[activation]
  x_ZD = x_BTD.reshape(-1, x_BTD.shape[-1])
  x_JD = x_ZD[token_J]
  hidden_JF = activate(project('gate', x_JD)) * project('up', x_JD)
  # Only the inputs of `down` are cut over tensor: gate and up contract D, which is whole here.
  y_JD = project('down', hidden_JF, cut=tensor)

  y_ZD = _joined(y_JD, order_J, weights_Zk)
  y_BTD = deltas.pin(y_ZD.astype(x_BTD.dtype).reshape(x_BTD.shape))
  if not tensor:
    return y_BTD
  # Partial sums travel in the dtype of the model: half the bytes of float32 in bfloat16.
  return deltas.pin(jax.lax.psum(y_BTD, tensor))


def route(scores_ZE: jax.Array, choices: int, normalise: bool) -> tuple[jax.Array, jax.Array]:
  """Weights [Z, k] float32 and indices [Z, k] of the most probable experts of each token."""
  # The softmax comes first, over all experts, as in transformers' Mixtral and Qwen3-MoE. Without
  # normalisation, the weights of a token's experts sum to at most one.
  probabilities_ZE = jax.nn.softmax(scores_ZE, axis=-1)
  weights_Zk, experts_Zk = jax.lax.top_k(probabilities_ZE, choices)
  if normalise:
    total_Z1 = weights_Zk.sum(-1, keepdims=True)
    weights_Zk = weights_Zk / total_Z1
  return weights_Zk, experts_Zk


def _by_choice(
  edit: deltas.Edit, token_BT: jax.Array, order_J: jax.Array, token_J: jax.Array
) -> deltas.Edit:
  """The edit with an alpha and a key for each choice, in sorted order."""
  alpha_Z = edit.alpha.reshape(-1)
  alpha_J = alpha_Z[token_J]
  if edit.key is None:
    return dataclasses.replace(edit, alpha=alpha_J)
  # The number of a choice over the whole batch, not over the rows of this device: a choice then
  # drops the same inputs on every mesh.
  choices = order_J.size // token_BT.size
  token_Z = token_BT.reshape(-1)
  draw_J = token_Z[token_J] * choices + order_J % choices
  fold_each = jax.vmap(jax.random.fold_in, (None, 0))
  key_J = fold_each(edit.key, draw_J)
  return dataclasses.replace(edit, alpha=alpha_J, key=key_J)


def _joined(y_JD: jax.Array, order_J: jax.Array, weights_Zk: jax.Array) -> jax.Array:
  """The weighted sums [Z, D] of the tokens' choices, from sorted choices."""
  # Back to the order of the tokens: the argsort of an order is its inverse.
  unsorted_J = jnp.argsort(order_J)
  y_ZkD = y_JD[unsorted_J].reshape(*weights_Zk.shape, y_JD.shape[-1])
  # A token's choices are summed in float32, and rounded once.
  y32_ZkD = y_ZkD.astype(jnp.float32)
  return jnp.einsum('ZkD,Zk->ZD', y32_ZkD, weights_Zk)


def grouped(sizes_E: jax.Array) -> Callable[..., jax.Array]:
  """An einsum of rows [J, I] with kernels [E, I, O]; kernel e has the next sizes_E[e] rows."""

  def einsum(_: str, x_JI: jax.Array, kernel_EIO: jax.Array, dtype: Any = None) -> jax.Array:
    return grouped_product(x_JI, kernel_EIO, sizes_E, dtype)

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
  # Edits add to the float32 sums, which are rounded once, as in layers.Projection.
  y_JO = dot(einsum, x_JI, kernel_EIO, jnp.float32)
  for edit in edits['kernel']:
    # Inputs are dropped here, by rows; without a key they are not dropped again.
    dropped_JI = _drop(x_JI, edit, tensor)
    edit = dataclasses.replace(edit, key=None)
    y_JO = deltas.add_kernel_edits(y_JO, dropped_JI, einsum, [edit], dot=dot)
  for edit in edits['bias']:
    bias_EO = edit.delta.value
    bias_JO = bias_EO[expert_J]
    if tensor:
      # The sum over devices takes the bias once, not once for each part.
      is_first = jax.lax.axis_index(tensor) == 0
      bias_JO = jnp.where(is_first, bias_JO, 0)
    alpha_J1 = edit.alpha[:, None]
    change_JO = alpha_J1 * bias_JO
    y_JO = y_JO + change_JO
  return deltas.pin(y_JO.astype(x_JI.dtype))


def _drop(x_JI: jax.Array, edit: deltas.Edit, tensor: str | None) -> jax.Array:
  """The rows with some inputs dropped, the same inputs on every mesh."""
  # Dropout is LoRA's: the inputs of a dense change are never dropped.
  if edit.key is None or not edit.dropout or not isinstance(edit.delta, deltas.LowRank):
    return x_JI
  kept_share = 1 - edit.dropout
  inputs = x_JI.shape[1]
  first: jax.Array | int = 0
  if tensor:
    first = jax.lax.axis_index(tensor) * inputs
    inputs = inputs * jax.lax.axis_size(tensor)

  def kept(key):
    return jax.random.bernoulli(key, kept_share, (inputs,))

  # Each device draws for all inputs of a row, and takes the draws of the inputs that it holds.
  all_kept = jax.vmap(kept)(edit.key)
  kept_JI = jax.lax.dynamic_slice_in_dim(all_kept, first, x_JI.shape[1], axis=1)
  # Divided by the share that is kept, so that the mean of the inputs stays.
  scaled_JI = x_JI / kept_share
  dropped_JI = jnp.where(kept_JI, scaled_JI, 0)
  return dropped_JI.astype(x_JI.dtype)


def _per_token(alpha: jax.Array, x_BTD: jax.Array) -> jax.Array:
  """A strength (a number, [B] or [B, T]) as [B, T]."""
  alpha = jnp.asarray(alpha, jnp.float32)
  missing_axes = (1,) * (2 - alpha.ndim)
  alpha = alpha.reshape(alpha.shape + missing_axes)
  return jnp.broadcast_to(alpha, x_BTD.shape[:2])


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
  # {axis letter: mesh axes that the letter is cut over}. Without an entry, D is whole: kernels are
  # gathered over fsdp on the way in, and activations are whole along D everywhere.
  on: dict[str, tuple[str, ...] | str] = {}
  # Rows, or a width, that the mesh does not divide are whole on every device.
  row_shards = math.prod(mesh.shape[axis] for axis in rows)
  if x_BTD.shape[0] % row_shards == 0:
    on['B'] = rows
  width_shards = mesh.shape[tensor]
  mlp_width = kernels['gate'].shape[-1]
  if width_shards > 1 and mlp_width % width_shards == 0:
    on['F'] = tensor

  def spec(letters):
    return jax.P(*(on.get(letter) for letter in letters))

  edit_axes = [_edit_axes(edit) for edit in edits]
  axes = ('BTD', 'BTE', 'BT', KERNEL_AXES, edit_axes)
  specs = jax.tree.map(spec, axes)
  partial_mix = functools.partial(mix, tensor=on.get('F'))
  mapped = jax.shard_map(partial_mix, in_specs=specs, out_specs=specs[0])
  return mapped(x_BTD, scores_BTE, token_BT, kernels, edits)


def _edit_axes(edit: deltas.Edit) -> PyTree:
  """Axis letters of the edit's arrays, as a tree parallel to the edit."""

  def letters(path, _):
    field = path[-1].name
    if field == 'alpha':
      return 'BT'
    # Every device holds the key; draws differ by the numbers of tokens.
    if field == 'key':
      return ''
    # The path of a leaf in a delta: .delta['gate']['kernel'].a
    name = path[1].key
    part = path[2].key
    experts, inputs, outputs = KERNEL_AXES[name]
    if part == 'bias':
      return experts + outputs
    # A factor is cut as the kernel is, along the axes that both have; the rank is whole.
    if field == 'a':
      return f'{experts}{inputs}R'
    if field == 'b':
      return f'{experts}R{outputs}'
    return KERNEL_AXES[name]

  return jax.tree_util.tree_map_with_path(letters, edit)
