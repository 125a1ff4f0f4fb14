"""Making, checking and merging deltas for a given model."""

import itertools
import math
from collections.abc import Iterable, Sequence
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
ROUTER = 'mlp/router'
_GATE = ('mlp/gate', 'mlp/experts/gate')
_UP = ('mlp/up', 'mlp/experts/up')
_DOWN = ('mlp/down', 'mlp/experts/down')
# {name in checkpoints, or in PEFT's configs: modules of a layer}. A model has some of the modules.
TARGETS = {
  'q_proj': ('attn/q',),
  'k_proj': ('attn/k',),
  'v_proj': ('attn/v',),
  'o_proj': ('attn/o',),
  'qkv_proj': ('attn/q', 'attn/k', 'attn/v'),
  'gate_proj': _GATE,
  'up_proj': _UP,
  'down_proj': _DOWN,
  'gate_up_proj': (*_GATE, *_UP),
  # Mixtral's names of an expert's projections.
  'w1': _GATE,
  'w3': _UP,
  'w2': _DOWN,
  'experts': ('mlp/experts/gate', 'mlp/experts/up', 'mlp/experts/down'),
  # Checkpoints call the router the gate of the experts.
  'gate': (ROUTER,),
  'router': (ROUTER,),
}
# As in PEFT, every linear layer of the blocks, routers too.
ALL_LINEAR = 'all-linear'


def init_delta(
  config: ModelConfig,
  kind: str,
  key: jax.Array,
  *,
  rank: int = 32,
  lora_alpha: float = 16.0,
  targets: Sequence[str] = (),
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
    targets: names of the linear layers with factors (see TARGETS); () is what `kind` says.

  Raises:
    InputError: if the kind is unknown, the rank is below 1, the model has no layer of a target's
      name, or the kind has no factors for targets.

  Source: LoRA, arXiv 2106.09685; initialisation as PEFT's `LoraLayer.reset_lora_parameters`
    (Kaiming uniform with a = sqrt 5).
  """
  if kind not in KINDS:
    raise InputError(
      f"unknown kind of delta '{kind}'{did_you_mean(kind, KINDS)}; there are: {', '.join(KINDS)}"
    )
  if rank < 1:
    raise InputError(f'the rank of a LoRA must be 1 or more, not {rank}')
  if targets and not kind.startswith('lora'):
    raise InputError(
      f"targets name the layers of a LoRA ({', '.join(targets)}), and the kind of delta is '{kind}'"
    )
  parameters = sites(config)
  if kind == 'bias':
    # A delta may add biases that the model has no parameter for.
    changeable = delta_sites(config)
    biases = [path for path in changeable if path in DOWN_BIASES]
    return tree.unflatten({path: _zeros(changeable[path]) for path in biases})
  if kind == 'full':
    return tree.unflatten({path: _zeros(site) for path, site in parameters.items()})
  paths = lora_paths(config, targets)
  linear = {path: parameters[path] for path in paths}
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


def lora_paths(config: ModelConfig, targets: Iterable[str] = ()) -> list[str]:
  """Paths of the kernels that a LoRA changes, in the order of the model's parameters.

  Args:
    targets: keys of TARGETS, or 'all-linear', perhaps behind the names of modules around them
      ('mlp.experts.down_proj') and before '.weight'. () is every linear layer of the blocks but
      routers.

  Raises:
    InputError: if the model has no layer of a target's name; lists the names it has.
  """
  sites_of = sites(config).items()
  linear = [path for path, site in sites_of if site.inputs and path.startswith('layers/')]
  modules = {path.removeprefix('layers/').removesuffix('/kernel'): path for path in linear}
  if not targets:
    # A router chooses among experts that change in training, so LoRA leaves routers as they are.
    return [path for module, path in modules.items() if module != ROUTER]
  named: set[str] = set()
  for target in targets:
    _, _, name = target.removesuffix('.weight').rpartition('.')
    chosen = modules if name == ALL_LINEAR else {*TARGETS.get(name, ())} & {*modules}
    if not chosen:
      known = [name for name, parts in TARGETS.items() if {*parts} & {*modules}]
      raise InputError(
        f"the model has no linear layer '{target}' for a LoRA{did_you_mean(name, known)}; there "
        f'are: {", ".join([*known, ALL_LINEAR])}'
      )
    named.update(chosen)
  return [path for module, path in modules.items() if module in named]


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
