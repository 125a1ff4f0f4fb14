"""Operations and bytes of a program by formula, and the time they take at the hardware's peaks.

The compiler's own count takes the body of a loop once, so it is not used. Matrix products count 2
operations per parameter and token. Per layer and row, attention counts 4 T S N H (scores and
weighted sum over all S keys: the masked half is computed too). A backward pass through a frozen
kernel counts as much as the forward pass (gradients of activations alone), through a trained one
twice as much; rematerialisation repeats the forward pass of the layers ('dots' that of their
attention and of low-rank changes alone), and a head that is trained computes its logits twice.

Bytes are those that cannot be avoided: each pass reads the weights of its layers once (as they lie
after fsdp has gathered them), a step of the optimizer reads and writes its state, the residual
stream goes out and comes back once per layer in training, and a decoding step reads the cache once.
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
  """Of one device: operations, and bytes from and to its memory. `tokens`: of the whole batch,
  padding included.
  """

  flops: float
  moved: float
  tokens: int


@dataclasses.dataclass(frozen=True)
class Time:
  """Seconds that each resource is busy at its peak; the longest is the estimate, which takes all
  else to overlap.
  """

  compute: float
  memory: float
  links: float

  @property
  def estimate(self) -> float:
    return max(self.compute, self.memory, self.links)

  @property
  def bound(self) -> str:
    return max(('compute', 'memory', 'links'), key=lambda name: getattr(self, name))


def time(work: Work, collectives: dict[str, Moved], chip: Chip) -> Time:
  """The time of a program on that chip. Half precision is assumed throughout."""
  return Time(
    work.flops / chip.flops,
    work.moved / chip.bandwidth,
    sum(kind.sent for kind in collectives.values()) / chip.link,
  )


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
  """The work of forward passes one after another: rows and tokens of each, keys a row sees, places
  with logits.
  """
  body, head = matmul_parameters(config)
  flops = sum(
    2 * (body + _changed(config, delta)) * r * t + attention(config, r, t, s) + 2 * head * h
    for r, t, s, h in zip(rows, tokens, keys, heads)
  )
  moved = len(rows) * (_gathered(args.weights, layout) + args.deltas) + args.cache
  return Work(flops / layout.mesh.size, moved, sum(r * t for r, t in zip(rows, tokens)))


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
  again, some = (
    remat == 'full',
    remat != 'none',
  )  # 'dots' keeps the products with weights of the base alone.
  passes = 2 + trains_dense  # forward, backward, gradients of dense changes
  layers = (passes + again) * 2 * body * count + (passes + some) * microbatches * attention(
    config, rows, tokens, tokens
  )
  changed = (3 + some) * 2 * _changed(config, delta) * count
  flops = layers + changed + (2 + models.changes_head(config, delta)) * 2 * head * count
  item = 2  # bytes of an activation in half precision
  residual = 2 * config.num_layers * count * config.width * item / layout.rows
  moved = (
    microbatches * (2 + again) * _gathered(args.weights, layout)
    + 2 * (args.deltas + args.optimizer)
    + residual
  )
  return Work(flops / layout.mesh.size, moved, count)


def merge(config: models.ModelConfig, delta: PyTree, layout: Layout, args: Bytes) -> Work:
  """The work of adding a direction to the weights: they are read and written once."""
  pairs = [
    (leaf.a.shape, leaf.b.shape)
    for leaf in tree.flatten(delta, models.is_delta_leaf).values()
    if isinstance(leaf, models.LowRank)
  ]
  flops = sum(2 * math.prod(a) * math.prod(b) / a[-1] / math.prod(b[:1]) for a, b in pairs)
  return Work(flops / layout.mesh.size, 2 * args.weights + args.deltas, 0)


def matmul_parameters(config: models.ModelConfig) -> tuple[int, int]:
  """(of the layers, of the head) that multiply each token; of experts, those that a token goes
  through.
  """
  body = sum(
    int(math.prod(site.shape) * _share(config, site))
    for path, site in models.sites(config).items()
    if site.inputs and path.startswith('layers/')
  )
  return body, config.vocab_size * config.width


def attention(config: models.ModelConfig, rows: int, tokens: int, keys: int) -> int:
  """Operations of scores and weighted sums in all layers."""
  return 4 * config.num_layers * rows * tokens * keys * config.num_heads * config.head_dim


def _changed(config: models.ModelConfig, delta: PyTree) -> int:
  """Parameters of a delta that multiply each token."""
  known = models.delta_sites(config)
  return sum(
    int(math.prod(x.shape) * _share(config, known[path.rpartition('/')[0]]))
    for path, x in tree.flatten(delta).items()
    if '/kernel/' in path
  )


def _share(config: models.ModelConfig, site: models.Site) -> float:
  """Of a parameter, what one token goes through."""
  return config.experts_per_token / config.num_experts if site.axes.startswith('LE') else 1.0


def _gathered(weights: int, layout: Layout) -> float:
  """Bytes of the weights that a device computes with: what fsdp cuts is gathered first."""
  return weights * (layout.mesh.shape['fsdp'] if layout.fsdp else 1)
