"""The memory that a training step needs on a device, by formula, and two choices by it.

The choices: what the backward pass computes again, and how many fine-tunes go through one program.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from weightsteer_jax import config as configs
from weightsteer_jax import models
from weightsteer_jax.finetune import optimizer
from weightsteer_jax.finetune import step as steps
from weightsteer_jax.models import placement
from weightsteer_jax.models.attention import BLOCKED, REFERENCE
from weightsteer_jax.runtime import sharding
from weightsteer_jax.runtime.sharding import Layout

# Policies of rematerialisation, from the fastest, which keeps most, to the slowest.
POLICIES = ('none', 'dots', 'full')
# Share of a device's memory that an estimate may fill.
SHARE = 0.85

# Tokens of a microbatch on a device from which on no further fine-tune is joined to it.
#
# On a CPU none is: matmuls are as good with the rows of one fine-tune. A step of the embedded model
# (LoRA and embeddings, 2 rows of 256 tokens, 2 cores) costs 299 ms of the cores' time alone, 296 ms
# for each of two together and 282 ms for each of four, and the larger program takes half as long
# again to compile. 'on' joins them all the same.
#
# Accelerators are not measured; the bound is an estimate. To read a weight takes as long as to
# multiply it with some 200 to 300 tokens on a chip of 1e15 operations and 3 to 5e12 bytes a second;
# and launching the kernels of a layer, some hundreds with LoRA and its backward pass, takes about
# as long as their work until there are some thousands of tokens.
ENOUGH = {'cpu': 0, 'gpu': 8192, 'tpu': 8192}


@dataclasses.dataclass(frozen=True)
class Load:
  """What is to be trained, for an estimate.

  Attributes:
    kind: of the delta, as in config.FineTune.
    rank: of the delta.
    dtype: of the base.
    rows: of a microbatch, over all devices.
    tokens: of a row.
  """

  kind: str
  rank: int
  dtype: str
  rows: int
  tokens: int


def activations(
  config: models.ModelConfig, load: Load, remat: str, *, shards: int = 1, tensor: int = 1
) -> float:
  """Peak bytes of activations on a device in a step of a fine-tune, by estimate.

  The sum of the residuals of all layers, twice the working set of one layer, and three times the
  float32 logits of a chunk (see models.token_logprobs).

  Args:
    remat: one of POLICIES.
    shards: parts of the rows.
    tensor: parts of heads, MLP and vocabulary.
  """
  rows = math.ceil(load.rows / shards)
  tokens = rows * load.tokens
  kept = _kept(config, load, remat, tensor)
  layers = config.num_layers * tokens * kept
  # While the backward pass is in a layer, that layer is there in full.
  kept_by_none = _kept(config, load, 'none', tensor)
  scores = _scores(config, load, tensor)
  one_layer = tokens * kept_by_none + tokens * scores
  chunk = models.chunk_length(config.vocab_size // tensor, rows, load.tokens)
  logits = chunk * rows * config.vocab_size / tensor
  return layers + 2 * one_layer + 3 * 4 * logits


@dataclasses.dataclass(frozen=True)
class Plan:
  """How the fine-tunes of a model are trained.

  Attributes:
    together: how many at once, at most.
    remat: what the backward pass computes again, one of POLICIES.
  """

  together: int
  remat: str


def plan(
  config: models.ModelConfig,
  options: configs.FineTune,
  load: Load,
  layout: Layout,
  *,
  count: int,
  memory: float,
) -> Plan:
  """How to train several fine-tunes of one load.

  By 'auto' as many go together as fit without more rematerialisation than one alone needs, and up
  to ENOUGH tokens.

  Args:
    count: fine-tunes to train.
    memory: bytes of a device.
  """

  def choose(together):
    return choose_remat(config, options, load, layout, together=together, memory=memory)

  # jax has no grouped product (`jax.lax.ragged_dot`) of several sets of rows.
  one_by_one = options.together == 'off' or config.num_experts
  if options.together == 'on' and not one_by_one:
    return Plan(count, choose(count))
  remat = choose(1)
  if one_by_one:
    return Plan(1, remat)
  together = 1
  enough = ENOUGH.get(layout.mesh.devices.flat[0].platform, ENOUGH['gpu'])
  tokens = math.ceil(load.rows / layout.rows) * load.tokens
  while (
    together < count
    and together * tokens < enough
    and fits(config, options, load, layout, remat, together=together + 1, memory=memory)
  ):
    together += 1
  return Plan(together, remat)


def fits(
  config: models.ModelConfig,
  options: configs.FineTune,
  load: Load,
  layout: Layout,
  remat: str,
  *,
  together: int = 1,
  memory: float,
) -> bool:
  """Whether a step of several fine-tunes fits a device, by estimate.

  Args:
    remat: one of POLICIES.
    together: fine-tunes of a step.
    memory: bytes of the device.
  """
  # Each fine-tune has its float32 change and two moments (the state), its gradient, and the sum of
  # the gradients of its microbatches.
  state = state_shapes(config, options, layout)
  gradients = 2 * sharding.bytes_on_device(state.delta)
  trained = sharding.bytes_on_device(state) + gradients
  tensor = layout.mesh.shape['tensor']
  each = trained + activations(config, load, remat, shards=layout.rows, tensor=tensor)
  base = placement.bytes_per_device(config, layout, load.dtype)
  return base + together * each <= SHARE * memory


def choose_remat(
  config: models.ModelConfig,
  options: configs.FineTune,
  load: Load,
  layout: Layout,
  *,
  together: int = 1,
  memory: float = 0.0,
) -> str:
  """The policy of the options, or for 'auto' the fastest that fits.

  Args:
    together: fine-tunes of a step.
    memory: bytes of a device; 0 asks the device.
  """
  if options.remat != 'auto':
    return options.remat
  memory = memory or placement.least_memory()
  for policy in POLICIES:
    if fits(config, options, load, layout, policy, together=together, memory=memory):
      return policy
  # None fits by estimate: the policy that needs least is left.
  return POLICIES[-1]


def state_shapes(
  config: models.ModelConfig, options: configs.FineTune, layout: Layout
) -> steps.TrainState:
  """Shapes and shardings of the arrays that a fine-tune changes."""
  recipe = optimizer.adamw(options)
  make = steps.initial_state_fn(
    config,
    options.kind,
    options.rank,
    options.lora_alpha,
    recipe,
    layout,
    targets=options.targets,
  )
  shapes = jax.eval_shape(make, 0)
  return sharding.placed(shapes, steps.state_shardings(config, recipe, layout, shapes))


def _kept(config: models.ModelConfig, load: Load, remat: str, tensor: int) -> float:
  """Bytes of a token's residuals in a layer.

  Counted off the residuals of the traced step (`jax.vjp` of the loss), for a delta on all
  projections. The parts of norms, of the gate of the MLP and of low-rank changes, and attention's
  scores, are computed again by all policies:
    none  the stream before attention and before the MLP; queries, keys, values; the MLP's gate and
          the factor beside the gate. Where kernels change, the inputs of all projections too, and
          the output of the first factor of each change
    dots  the layer's input, and the results of its projections
    full  the layer's input
  """
  item = jnp.dtype(load.dtype).itemsize
  queries = config.num_heads * config.head_dim / tensor
  keys = config.num_kv_heads * config.head_dim / tensor
  hidden = max(1, config.experts_per_token) * config.mlp_width / tensor
  if remat == 'full':
    return item * config.width
  results = queries + 2 * keys + 2 * hidden
  if remat == 'dots':
    return item * (2 * config.width + results)
  if load.kind == 'bias':
    return item * (2 * config.width + results)
  # Seven projections have a change of low rank each, three of them in every expert of a token.
  projections = 4 + 3 * max(1, config.experts_per_token)
  factors = projections * load.rank if load.kind.startswith('lora') else 0
  return item * (4 * config.width + results + queries + hidden + factors)


def _scores(config: models.ModelConfig, load: Load, tensor: int) -> float:
  """Bytes of a token's attention scores in a layer; 0 for a kernel that keeps no scores."""
  # Where some layers see a window, most kernels are not used (see attention.attend).
  scored = config.attention == REFERENCE or config.local_layers and config.attention != BLOCKED
  if not scored:
    return 0
  # In float32, and rounded to the dtype of the base.
  item = 4 + jnp.dtype(load.dtype).itemsize
  return config.num_heads / tensor * load.tokens * item
