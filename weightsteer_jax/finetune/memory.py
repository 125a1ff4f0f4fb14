"""What a training step needs of a device's memory, by formula; and what follows from it: what the
backward pass computes again, and how many fine-tunes go through one program.
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

POLICIES = ('none', 'dots', 'full')  # From the fastest, which keeps most, to the slowest.
SHARE = 0.85  # Of a device's memory, that an estimate may fill.

# Tokens of a microbatch on a device from which on no further fine-tune is joined to it.
#
# On a CPU none is. Its matmuls are as good with the rows of one: of the embedded model (LoRA and
# embeddings, 2 rows of 256 tokens, 2 cores) a step costs 299 ms of the cores' time alone, 296 ms
# for each of two together and 282 ms for each of four, and the larger program takes half as long
# again to compile. 'on' does it all the same.
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
    kind, rank: of the delta. dtype: of the base. rows, tokens: of a microbatch, over all devices.
  """

  kind: str
  rank: int
  dtype: str
  rows: int
  tokens: int


def activations(
  config: models.ModelConfig, load: Load, remat: str, *, shards: int = 1, tensor: int = 1
) -> float:
  """Bytes of activations that a training step of one fine-tune holds on a device at most, by
  estimate.

  What the backward pass finds of each layer; of one layer, all that it works with, twice; and three
  times the float32 logits of a chunk (see models.token_logprobs).

  Args:
    shards: that the rows are cut into. tensor: that heads, MLP and vocabulary are.
  """
  rows = math.ceil(load.rows / shards)
  kept = {policy: rows * load.tokens * _kept(config, load, policy, tensor) for policy in POLICIES}
  scores = rows * load.tokens * _scores(config, load, tensor)
  logits = (
    models.chunk_length(config.vocab_size // tensor, rows, load.tokens)
    * rows
    * config.vocab_size
    / tensor
  )
  return config.num_layers * kept[remat] + 2 * (kept['none'] + scores) + 3 * 4 * logits


@dataclasses.dataclass(frozen=True)
class Plan:
  """How the fine-tunes of a model are trained: how many at once, at most, and what is computed
  again (config.FineTune).
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
  """How to train `count` fine-tunes of that load, on devices of that many bytes.

  By 'auto' as many go together as fit without computing more again than one alone, and as are worth
  it (see ENOUGH). Models with experts are trained one by one: jax has no grouped product
  (`jax.lax.ragged_dot`) of several sets of rows.
  """

  def choose(together):
    return choose_remat(config, options, load, layout, together=together, memory=memory)

  if options.together == 'on' and not config.num_experts:
    return Plan(count, choose(count))
  remat, together = choose(1), 1
  if options.together == 'off' or config.num_experts:
    return Plan(1, remat)
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
  """Whether a step of so many fine-tunes fits a device of that many bytes, by estimate.

  Beside the base weights and the activations, each has its float32 change, two moments, gradient
  and the sum of the gradients of its microbatches.
  """
  state = state_shapes(config, options, layout)
  each = sharding.bytes_on_device(state) + 2 * sharding.bytes_on_device(state.delta)
  each += activations(config, load, remat, shards=layout.rows, tensor=layout.mesh.shape['tensor'])
  return placement.bytes_per_device(config, layout, load.dtype) + together * each <= SHARE * memory


def choose_remat(
  config: models.ModelConfig,
  options: configs.FineTune,
  load: Load,
  layout: Layout,
  *,
  together: int = 1,
  memory: float = 0.0,
) -> str:
  """The policy of the options, where they name one; else the fastest that fits, or 'full' if none
  does.
  """
  if options.remat != 'auto':
    return options.remat
  memory = memory or placement.least_memory()
  return next(
    (
      policy
      for policy in POLICIES
      if fits(config, options, load, layout, policy, together=together, memory=memory)
    ),
    POLICIES[-1],
  )


def state_shapes(
  config: models.ModelConfig, options: configs.FineTune, layout: Layout
) -> steps.TrainState:
  """Shapes, and where they lie, of what one fine-tune changes."""
  recipe = optimizer.adamw(options)
  make = steps.initial_state_fn(
    config, options.kind, options.rank, options.lora_alpha, recipe, layout
  )
  shapes = jax.eval_shape(make, 0)
  return sharding.placed(shapes, steps.state_shardings(config, recipe, layout, shapes))


def _kept(config: models.ModelConfig, load: Load, remat: str, tensor: int) -> float:
  """Bytes that the backward pass finds of one token in one layer.

  Counted off the residuals of the traced step (what `jax.vjp` of the loss holds), for a delta on
  all projections. What norms, the gate of the MLP and low-rank changes are made of, and attention's
  scores, is computed again by all policies:
    none  the stream before attention and before the MLP; queries, keys, values; the MLP's gate and
          what it multiplies. Where kernels change, the inputs of all projections too, and what
          comes out of the first factor of each change
    dots  the layer's input, and the results of its projections (and of whole changes of these)
    full  the layer's input
  """
  item, low_rank = jnp.dtype(load.dtype).itemsize, load.kind.startswith('lora')
  queries, keys = (
    count * config.head_dim / tensor for count in (config.num_heads, config.num_kv_heads)
  )
  hidden = max(1, config.experts_per_token) * config.mlp_width / tensor
  if remat == 'full':
    return item * config.width
  results = queries + 2 * keys + 2 * hidden
  if remat == 'dots':
    return item * (config.width + (2 if load.kind == 'full' else 1) * (config.width + results))
  if load.kind == 'bias':
    return item * (2 * config.width + results)
  return item * (4 * config.width + results + queries + hidden + 7 * load.rank * low_rank)


def _scores(config: models.ModelConfig, load: Load, tensor: int) -> float:
  """Bytes of attention's scores of one token in one layer, before and after rounding, where no
  kernel goes without them.

  Where some layers see a window, most kernels are not used (see attention.attend).
  """
  scored = config.attention == REFERENCE or config.local_layers and config.attention != BLOCKED
  return (
    config.num_heads / tensor * load.tokens * (4 + jnp.dtype(load.dtype).itemsize) if scored else 0
  )
