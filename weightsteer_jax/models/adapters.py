"""Making, checking and merging deltas for a given model."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.delta import Dense, LowRank, is_delta_leaf
from weightsteer_jax.models.sites import Site, check_delta, delta_sites, low_rank_shapes, sites
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

PyTree = Any

KINDS = ('lora_embeddings', 'lora', 'bias', 'full')
# What 'bias' trains.
DOWN_BIASES = ('layers/mlp/down/bias', 'layers/mlp/experts/down/bias')


def init_delta(
  config: ModelConfig, kind: str, key: jax.Array, *, rank: int = 32, lora_alpha: float = 16.0
) -> PyTree:
  """A new float32 delta to train, which changes nothing yet.

  Args:
    kind: a kind of delta.
      'lora' has low-rank factors on all linear layers but the routers of experts.
      'lora_embeddings' adds dense changes of embedding and head (a shared table on tied models).
      'bias' has a bias on every MLP down projection, with experts on every expert's.
      'full' has a dense change of every parameter.
    rank: the rank R of the LoRA factors.
    lora_alpha: the numerator of their scale. A kernel changes by `lora_alpha / rank * A B`, where A
      starts uniform and B zero.

  Raises:
    InputError: if the kind is unknown, or the rank is below 1.

  Source: LoRA, arXiv 2106.09685; initialisation as PEFT's `LoraLayer.reset_lora_parameters`
    (Kaiming uniform with a = sqrt 5).
  """
  if kind not in KINDS:
    raise InputError(
      f"unknown kind of delta '{kind}'{did_you_mean(kind, KINDS)}; there are: {', '.join(KINDS)}"
    )
  if rank < 1:
    raise InputError(f'the rank of a LoRA must be 1 or more, not {rank}')
  parameters = sites(config)
  if kind == 'bias':
    # A delta may add biases that the model has no parameter for.
    changeable = delta_sites(config)
    biases = [path for path in changeable if path in DOWN_BIASES]
    return tree.unflatten({path: _zeros(changeable[path]) for path in biases})
  if kind == 'full':
    return tree.unflatten({path: _zeros(site) for path, site in parameters.items()})
  linear = {path: site for path, site in parameters.items() if _is_lora_target(path, site)}
  leaves: dict[str, LowRank | Dense] = {**_init_low_rank(linear, key, rank, lora_alpha / rank)}
  if kind == 'lora_embeddings':
    for path in ('embed/embedding', 'lm_head/kernel'):
      # A tied model has no head.
      if path in parameters:
        leaves[path] = _zeros(parameters[path])
  return tree.unflatten(leaves)


def kernel_change(site: Site, leaf: LowRank | Dense) -> jax.Array:
  """The dense change of a parameter by a leaf, float32, in the parameter's shape."""
  if isinstance(leaf, Dense):
    return leaf.value.astype(jnp.float32)
  # As matrices: input axes merged, output axes merged, layers and experts in front.
  lead = site.shape[: len(site.stack)]
  rank = leaf.a.shape[-1]
  a = leaf.a.astype(jnp.float32).reshape((*lead, -1, rank))
  b = leaf.b.astype(jnp.float32).reshape((*lead, rank, -1))
  # By default a GPU or TPU would multiply float32 in fewer bits.
  product = jnp.matmul(a, b, precision='highest')
  change = leaf.scale * product
  return change.reshape(site.shape)


def merge(config: ModelConfig, params: PyTree, delta: PyTree, alpha: float | jax.Array) -> PyTree:
  """Parameters with `alpha * delta` added in float32, in the dtypes of the parameters.

  Raises:
    InputError: if the delta does not fit the model, or changes the residual stream or a bias that
      the model has no parameter for.
  """
  check_delta(config, delta)
  flat = tree.flatten(params)
  parameters = sites(config)
  for path, leaf in tree.flatten(delta, is_delta_leaf).items():
    if path not in parameters:
      raise InputError(
        f"the delta changes '{path}', for which the model has no parameter: it cannot be merged, "
        'only applied unmerged'
      )
    parameter = flat[path]
    merged = parameter.astype(jnp.float32)
    merged += alpha * kernel_change(parameters[path], leaf)
    flat[path] = merged.astype(parameter.dtype)
  return tree.unflatten(flat)


def _is_lora_target(path: str, site: Site) -> bool:
  # A router chooses among experts that change in training, so LoRA leaves routers as they are.
  if path.startswith('layers/mlp/router/'):
    return False
  return site.inputs > 0 and path.startswith('layers/')


def _zeros(site: Site) -> Dense:
  return Dense(jnp.zeros(site.shape, jnp.float32))


def _init_low_rank(
  linear: dict[str, Site], key: jax.Array, rank: int, scale: float
) -> dict[str, LowRank]:
  """{path: new low-rank factors} for the sites, A uniform and B zero."""
  shapes = {path: low_rank_shapes(site, rank) for path, site in linear.items()}
  # A single draw is cut into pieces: on CPU each draw in a program takes a third of a second to
  # compile.
  sizes = [math.prod(a_shape) for a_shape, _ in shapes.values()]
  ends = list(itertools.accumulate(sizes))
  numbers = jax.random.uniform(key, (ends[-1],), jnp.float32, -1, 1)
  pieces = jnp.split(numbers, ends[:-1])
  leaves = {}
  for piece, (path, site) in zip(pieces, linear.items()):
    a_shape, b_shape = shapes[path]
    # Kaiming uniform with a = sqrt(5) has the gain sqrt(1/3), so the bound is
    # sqrt(3) sqrt(1/3) / sqrt(fan_in).
    fan_in = math.prod(a_shape[len(site.stack) : -1])
    bound = fan_in**-0.5
    a = bound * piece.reshape(a_shape)
    b = jnp.zeros(b_shape, jnp.float32)
    leaves[path] = LowRank(a, b, scale)
  return leaves
