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
DOWN_BIASES = ('layers/mlp/down/bias', 'layers/mlp/experts/down/bias')


def init_delta(
  config: ModelConfig, kind: str, key: jax.Array, *, rank: int = 32, lora_alpha: float = 16.0
) -> PyTree:
  """A delta to train, float32, that changes nothing yet.

  Args:
    kind: 'lora_embeddings' (LoRA on all linear layers but the routers of experts, embedding and
      head dense beside it; on tied models the one shared table), 'lora', 'bias' (a bias on every
      MLP down projection, every expert's) or 'full' (every parameter dense).
    rank, lora_alpha: of the LoRA factors; the change is `lora_alpha / rank * A B`, A uniform as in
    PEFT, B zero.

  Raises:
    InputError: an unknown kind, or a rank below 1.
  Source: LoRA, arXiv 2106.09685; initialisation as PEFT's `LoraLayer.reset_lora_parameters`
  (Kaiming uniform with
    a = sqrt 5).
  """
  if kind not in KINDS:
    raise InputError(
      f"unknown kind of delta '{kind}'{did_you_mean(kind, KINDS)}; there are: {', '.join(KINDS)}"
    )
  if rank < 1:
    raise InputError(f'the rank of a LoRA must be 1 or more, not {rank}')
  known = delta_sites(config)
  if kind == 'bias':
    return tree.unflatten(
      {path: _zeros(site) for path, site in known.items() if path in DOWN_BIASES}
    )
  if kind == 'full':
    return tree.unflatten({path: _zeros(site) for path, site in sites(config).items()})
  linear = {path: site for path, site in sites(config).items() if _is_lora_target(path, site)}
  leaves = _init_low_rank(linear, key, rank, lora_alpha / rank)
  if kind == 'lora_embeddings':
    leaves |= {
      path: _zeros(site)
      for path, site in sites(config).items()
      if path in ('embed/embedding', 'lm_head/kernel')
    }
  return tree.unflatten(leaves)


def kernel_change(site: Site, leaf: LowRank | Dense) -> jax.Array:
  """The leaf's dense change of its parameter, float32, in the parameter's shape."""
  if isinstance(leaf, Dense):
    return leaf.value.astype(jnp.float32)
  stack = len(site.stack)
  lead, outputs = site.shape[:stack], site.shape[stack + site.inputs :]
  a = leaf.a.astype(jnp.float32).reshape(lead + (-1, leaf.a.shape[-1]))
  b = leaf.b.astype(jnp.float32).reshape(lead + (leaf.a.shape[-1], -1))
  change = leaf.scale * jnp.matmul(a, b, precision='highest')
  return change.reshape(site.shape[: stack + site.inputs] + outputs)


def merge(config: ModelConfig, params: PyTree, delta: PyTree, alpha: float | jax.Array) -> PyTree:
  """Parameters with `alpha * delta` added in float32 and cast back to their dtype.

  Raises:
    InputError: the delta does not fit, or changes the residual stream or a bias the model has no
      parameter for.
  """
  check_delta(config, delta)
  flat, known = tree.flatten(params), sites(config)
  for path, leaf in tree.flatten(delta, is_delta_leaf).items():
    if path not in known:
      raise InputError(
        f"the delta changes '{path}', for which the model has no parameter: it cannot be merged, "
        'only applied unmerged'
      )
    merged = flat[path].astype(jnp.float32) + alpha * kernel_change(known[path], leaf)
    flat[path] = merged.astype(flat[path].dtype)
  return tree.unflatten(flat)


def _is_lora_target(path: str, site: Site) -> bool:
  """Routers are left alone: they choose among experts that would change under them."""
  return (
    bool(site.inputs) and path.startswith('layers/') and not path.startswith('layers/mlp/router/')
  )


def _zeros(site: Site) -> Dense:
  return Dense(jnp.zeros(site.shape, jnp.float32))


def _init_low_rank(
  linear: dict[str, Site], key: jax.Array, rank: int, scale: float
) -> dict[str, LowRank]:
  shapes = {path: low_rank_shapes(site, rank) for path, site in linear.items()}
  # One draw for all of them, cut into pieces: on CPU each draw in a program takes a third of a
  # second to compile.
  ends = list(itertools.accumulate(math.prod(a_shape) for a_shape, _ in shapes.values()))
  pieces = jnp.split(jax.random.uniform(key, (ends[-1],), jnp.float32, -1, 1), ends[:-1])
  leaves = {}
  for piece, (path, (a_shape, b_shape)) in zip(pieces, shapes.items()):
    # Kaiming uniform with a = sqrt(5): gain sqrt(1/3), so the bound is sqrt(3) sqrt(1/3) /
    # sqrt(fan_in).
    bound = math.prod(a_shape[len(linear[path].stack) : -1]) ** -0.5
    leaves[path] = LowRank(bound * piece.reshape(a_shape), jnp.zeros(b_shape, jnp.float32), scale)
  return leaves
