"""Operations and bytes of a program by formula, and the time at the hardware's peaks.

The compiler's own count takes the body of a loop once, so that count is not used. Matrix products
count 2 operations per parameter and token. Per layer and row, attention counts 4 T S N H (scores
and weighted sum over all S keys: the masked half is computed too). A backward pass through a frozen
kernel counts as much as the forward pass (gradients of activations alone), through a trained one
twice as much; rematerialisation repeats the forward pass of the layers ('dots' that of their
attention and of low-rank changes alone), and a trained head computes the logits twice.

Bytes are the least possible: each pass reads the weights of all layers once (as gathered by fsdp),
a step of the optimizer reads and writes the optimizer's state, the residual stream goes out and
comes back once per layer in training, and a decoding step reads the cache once.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from weightsteer_jax import models
from weightsteer_jax.experiments.preflight.hlo import Moved
from weightsteer_jax.experiments.preflight.memory import Bytes
from weightsteer_jax.experiments.preflight.topology import Chip
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.sharding import Layout

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Work:
  """The work of a device.

  Attributes:
    flops: operations.
    moved: bytes from and to the device's memory.
    tokens: tokens of the whole batch, padding included.
  """

  flops: float
  moved: float
  tokens: int


@dataclasses.dataclass(frozen=True)
class Time:
  """Seconds that each resource is busy at the resource's peak."""

  compute: float
  memory: float
  links: float

  @property
  def estimate(self) -> float:
    """Seconds of the busiest resource, all else taken to overlap."""
    return max(self.compute, self.memory, self.links)

  @property
  def bound(self) -> str:
    """Name of the busiest resource."""
    # Fields are named as the table names resources.
    seconds = dataclasses.asdict(self)
    return max(seconds, key=lambda name: seconds[name])


def time(work: Work, collectives: dict[str, Moved], chip: Chip) -> Time:
  """The time of a program on a chip, half precision assumed throughout."""
  sent = sum(moved.sent for moved in collectives.values())
  return Time(work.flops / chip.flops, work.moved / chip.bandwidth, sent / chip.link)


def forward(
  config: models.ModelConfig,
  delta: PyTree,
  layout: Layout,
  args: Bytes,
  *,
  rows: Sequence[int],
  tokens: Sequence[int],
  keys: Sequence[int],
  heads: Sequence[int],
) -> Work:
  """The work of forward passes one after another.

  Args:
    rows, tokens: rows of each pass, and tokens of a row.
    keys: positions attended to by each token of a pass.
    heads: positions of each pass with logits.
  """
  body, head = matmul_parameters(config)
  kernels = body + _changed(config, delta)
  flops = 0
  count = 0
  for num_rows, num_tokens, num_keys, num_heads in zip(rows, tokens, keys, heads):
    flops += 2 * kernels * num_rows * num_tokens
    flops += attention(config, num_rows, num_tokens, num_keys)
    flops += 2 * head * num_heads
    count += num_rows * num_tokens
  # Each pass reads the weights once; the cache is read once in all.
  weights = _gathered(args.weights, layout)
  moved = len(rows) * (weights + args.deltas) + args.cache
  return Work(flops / layout.mesh.size, moved, count)


def train_step(
  config: models.ModelConfig,
  delta: PyTree,
  layout: Layout,
  args: Bytes,
  *,
  microbatches: int,
  rows: int,
  tokens: int,
  remat: str,
  trains_dense: bool,
) -> Work:
  """The work of one optimizer step."""
  body, head = matmul_parameters(config)
  count = microbatches * rows * tokens
  # Passes that compute again: 'dots' keeps only what projections give.
  kernels_again = remat == 'full'
  others_again = remat != 'none'
  # Forward, backward, and the gradients of dense changes.
  passes = 2 + trains_dense
  flops = (passes + kernels_again) * 2 * body * count
  scores = microbatches * attention(config, rows, tokens, tokens)
  flops += (passes + others_again) * scores
  # The changes of kernels: forward, backward, and the gradients of the changes themselves.
  changed = _changed(config, delta)
  flops += (3 + others_again) * 2 * changed * count
  # A trained head computes the logits again in the backward pass.
  head_passes = 2 + models.changes_head(config, delta)
  flops += head_passes * 2 * head * count
  # An activation in half precision has 2 bytes; written once and read once a layer.
  residual = 2 * config.num_layers * count * config.width * 2 / layout.rows
  weight_passes = microbatches * (2 + kernels_again)
  weights = weight_passes * _gathered(args.weights, layout)
  # State is read and written.
  state = args.deltas + args.optimizer
  moved = weights + 2 * state + residual
  return Work(flops / layout.mesh.size, moved, count)


def merge(config: models.ModelConfig, delta: PyTree, layout: Layout, args: Bytes) -> Work:
  """The work of adding a direction to the weights, read once and written once."""
  flops = 0.0
  for path, leaf in tree.flatten(delta, models.is_delta_leaf).items():
    if isinstance(leaf, models.LowRank):
      # a [stack..., I, R] times b [stack..., R, O]. Layers and experts (the stack) stand in both
      # factors and count once; all experts are merged, not only the experts of one token.
      first_output = len(models.stack_axes(path)) + 1
      outputs = math.prod(leaf.b.shape[first_output:])
      flops += 2 * math.prod(leaf.a.shape) * outputs
  return Work(flops / layout.mesh.size, 2 * args.weights + args.deltas, 0)


def matmul_parameters(config: models.ModelConfig) -> tuple[int, int]:
  """(parameters of the layers, parameters of the head) that multiply each token.

  Of all experts only the experts of one token count.
  """
  body = 0
  for path, site in models.sites(config).items():
    if site.inputs and path.startswith('layers/'):
      size = math.prod(site.shape)
      body += int(size * _share(config, site))
  return body, config.vocab_size * config.width


def attention(config: models.ModelConfig, rows: int, tokens: int, keys: int) -> int:
  """Operations of scores and weighted sums in all layers."""
  return 4 * config.num_layers * rows * tokens * keys * config.num_heads * config.head_dim


def _changed(config: models.ModelConfig, delta: PyTree) -> int:
  """Parameters of a delta that multiply each token."""
  sites = models.delta_sites(config)
  count = 0
  for path, array in tree.flatten(delta).items():
    # Paths are those of the sites, with the leaf's field at the end.
    if '/kernel/' in path:
      site_path, _, _ = path.rpartition('/')
      size = math.prod(array.shape)
      count += int(size * _share(config, sites[site_path]))
  return count


def _share(config: models.ModelConfig, site: models.Site) -> float:
  """The share of a parameter that a token goes through."""
  # Kernels of experts have an axis E after the layers.
  if site.axes.startswith('LE'):
    return config.experts_per_token / config.num_experts
  return 1.0


def _gathered(weights: int, layout: Layout) -> float:
  """Bytes of the weights on a device, after fsdp has gathered all shards."""
  shards = layout.mesh.shape['fsdp'] if layout.fsdp else 1
  return weights * shards
