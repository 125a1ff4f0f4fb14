"""Mixtures of experts: each token goes through the experts that its router chooses, and none is
ever dropped.

Axes as in decoder.py: E experts, k choices of a token, Z tokens (B T), J choices (Z k), sorted by
expert so that each expert's are consecutive rows of one grouped matmul. There is no capacity, so
nothing is padded to it.

On a mesh every device routes its own rows (`shard_map`): tokens never travel. The experts' kernels
lie as all kernels do, E whole, D cut over fsdp (gathered for the layer that runs) and F over
tensor, where the parts of what comes out of the down projection are summed.

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

EINSUMS = {'gate': 'JD,EDF->JF', 'up': 'JD,EDF->JF', 'down': 'JF,EFD->JD'}


class ExpertKernel(nnx.Module):
  """One kernel an expert."""

  def __init__(self, einsum: str, sizes: dict[str, int], *, dtype: Any, rngs: nnx.Rngs):
    axes = einsum.split(',')[1].split('->')[0]
    shape = tuple(sizes[axis] for axis in axes)
    self.kernel = nnx.Param(
      0.02 * jax.random.normal(rngs.params(), shape, dtype), axes=axes, inputs=1
    )


class Experts(nnx.Module):
  """The gated feed-forward networks of all experts."""

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    for name, einsum in EINSUMS.items():
      setattr(self, name, ExpertKernel(einsum, config.sizes(), dtype=dtype, rngs=rngs))


class MoE(nnx.Module):
  """The sum of the chosen experts' gated feed-forward, weighted by the router; its scores are
  float32 in any model.
  """

  def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
    self.choices, self.normalise = config.experts_per_token, config.normalise_choices
    self.activation = config.activation
    self.router = Projection('BTD,DE->BTE', config.sizes(), bias=False, dtype=dtype, rngs=rngs)
    self.experts = Experts(config, dtype=dtype, rngs=rngs)

  def __call__(self, x_BTD: jax.Array, edits: deltas.Edits) -> jax.Array:
    scores_BTE = self.router(x_BTD, deltas.at(edits, 'router'), wide=True)
    kernels = {name: getattr(self.experts, name).kernel[...] for name in EINSUMS}
    edits = [
      dataclasses.replace(edit, alpha=_per_token(edit.alpha, x_BTD))
      for edit in deltas.at(edits, 'experts')
    ]
    # A number for each token, the same on every mesh, that its random draws come from.
    token_BT = jnp.arange(math.prod(x_BTD.shape[:2]), dtype=jnp.int32).reshape(x_BTD.shape[:2])
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
    scores_BTE: of the router, float32. token_BT: a number for each token (see MoE). kernels: {gate,
      up, down}.
    edits: below `experts`, their alphas [B, T].
    choices: experts for a token. normalise: whether the probabilities of those chosen are made to
      sum to one.
    tensor: the mesh axis that F is cut over, if it is: the parts of the sum are then added up over
      it.
  Source: transformers `modeling_mixtral.py`, `modeling_qwen3_moe.py`.
  """
  width = x_BTD.shape[-1]
  weights_Zk, experts_Zk = route(scores_BTE.reshape(-1, scores_BTE.shape[-1]), choices, normalise)
  experts_J = experts_Zk.reshape(-1)
  order_J = jnp.argsort(experts_J)
  sizes_E = jnp.bincount(experts_J, length=scores_BTE.shape[-1]).astype(jnp.int32)
  token_J = order_J // choices

  def follow(edit):
    alpha_J = edit.alpha.reshape(-1)[token_J]
    if edit.key is None:
      return dataclasses.replace(edit, alpha=alpha_J)
    draw_J = token_BT.reshape(-1)[token_J] * choices + order_J % choices
    return dataclasses.replace(
      edit, alpha=alpha_J, key=jax.vmap(jax.random.fold_in, (None, 0))(edit.key, draw_J)
    )

  def project(name, x_JI, cut=None):
    here = deltas.at(edits, name)
    changes = {
      part: [follow(edit) for edit in deltas.at(here, part)] for part in ('kernel', 'bias')
    }
    return _project(x_JI, kernels[name], EINSUMS[name], changes, sizes_E, experts_J[order_J], cut)

  x_JD = x_BTD.reshape(-1, width)[token_J]
  hidden_JF = ACTIVATION_FUNCTIONS[activation](project('gate', x_JD)) * project('up', x_JD)
  y_JD = project('down', hidden_JF, cut=tensor)
  y_ZkD = y_JD[jnp.argsort(order_J)].reshape(-1, choices, width)
  y_ZD = jnp.einsum('ZkD,Zk->ZD', y_ZkD.astype(jnp.float32), weights_Zk).astype(x_BTD.dtype)
  y_BTD = deltas.pin(y_ZD.reshape(x_BTD.shape))
  return deltas.pin(jax.lax.psum(y_BTD, tensor)) if tensor else y_BTD


def route(scores_ZE: jax.Array, choices: int, normalise: bool) -> tuple[jax.Array, jax.Array]:
  """(weights [Z, k] float32, experts [Z, k]) of the `choices` experts with the highest
  probability.
  """
  weights_Zk, experts_Zk = jax.lax.top_k(jax.nn.softmax(scores_ZE, axis=-1), choices)
  return weights_Zk / weights_Zk.sum(-1, keepdims=True) if normalise else weights_Zk, experts_Zk


def grouped(sizes_E: jax.Array) -> Callable[..., jax.Array]:
  """An einsum of rows [J, I] with kernels [E, I, O] of which each has the next so many of the
  rows.
  """

  def einsum(_: str, x_JI: jax.Array, kernel_EIO: jax.Array, dtype: Any = None) -> jax.Array:
    # A higher precision has no meaning for bfloat16, and the TPU's kernel does not compile where
    # one is asked for.
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
    tensor: the mesh axis that the inputs are cut over, if they are: what comes out is then a part
      of a sum.
  """
  dot = grouped(sizes_E)
  y_JO = deltas.pin(dot(einsum, x_JI, kernel_EIO))
  for edit in edits['kernel']:
    dropped = dataclasses.replace(edit, key=None)
    y_JO = deltas.add_kernel_edits(y_JO, _drop(x_JI, edit, tensor), einsum, [dropped], dot=dot)
  for edit in edits['bias']:
    bias_JO = edit.delta.value[expert_J]
    if tensor:  # Once, not once for each part.
      bias_JO = jnp.where(jax.lax.axis_index(tensor) == 0, bias_JO, 0)
    y_JO = y_JO + (edit.alpha[:, None] * bias_JO).astype(y_JO.dtype)
  return deltas.pin(y_JO)


def _drop(x_JI: jax.Array, edit: deltas.Edit, tensor: str | None) -> jax.Array:
  """The rows with some inputs dropped: drawn for a row, all of its inputs, whichever device holds
  which.
  """
  if edit.key is None or not edit.dropout or not isinstance(edit.delta, deltas.LowRank):
    return x_JI
  inputs, first = x_JI.shape[1], 0
  if tensor:
    first, inputs = jax.lax.axis_index(tensor) * inputs, inputs * jax.lax.axis_size(tensor)
  kept_JI = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - edit.dropout, (inputs,)))(edit.key)
  kept_JI = jax.lax.dynamic_slice_in_dim(kept_JI, first, x_JI.shape[1], axis=1)
  return jnp.where(kept_JI, x_JI / (1 - edit.dropout), 0).astype(x_JI.dtype)


def _per_token(alpha: jax.Array, x_BTD: jax.Array) -> jax.Array:
  """alpha (one, [B] or [B, T]) as [B, T]."""
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
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return mix(x_BTD, scores_BTE, token_BT, kernels, edits)
  rows, (tensor,) = sharding.ACTIVATIONS['B'], sharding.WEIGHTS['F']
  on = {}
  if x_BTD.shape[0] % math.prod(mesh.shape[axis] for axis in rows) == 0:
    on['B'] = rows
  if mesh.shape[tensor] > 1 and kernels['gate'].shape[-1] % mesh.shape[tensor] == 0:
    on['F'] = tensor
  kernel_axes = {name: einsum.split(',')[1].split('->')[0] for name, einsum in EINSUMS.items()}
  axes = ('BTD', 'BTE', 'BT', kernel_axes, [_edit_axes(edit, kernel_axes) for edit in edits])
  specs = jax.tree.map(lambda letters: jax.P(*(on.get(letter) for letter in letters)), axes)
  return jax.shard_map(
    functools.partial(mix, tensor=on.get('F')), in_specs=specs, out_specs=specs[0]
  )(x_BTD, scores_BTE, token_BT, kernels, edits)


def _edit_axes(edit: deltas.Edit, kernel_axes: dict[str, str]) -> deltas.Edit:
  """The edit with axis letters in place of its arrays."""

  def leaf_axes(name, part, leaf):
    experts, inputs, outputs = kernel_axes[name]
    if part == 'bias':
      return dataclasses.replace(leaf, value=experts + outputs)
    if isinstance(leaf, deltas.Dense):
      return dataclasses.replace(leaf, value=kernel_axes[name])
    return dataclasses.replace(leaf, a=experts + inputs + 'R', b=experts + 'R' + outputs)

  delta = {
    name: {part: leaf_axes(name, part, leaf) for part, leaf in parts.items()}
    for name, parts in edit.delta.items()
  }
  return dataclasses.replace(edit, delta=delta, alpha='BT', key=None if edit.key is None else '')
