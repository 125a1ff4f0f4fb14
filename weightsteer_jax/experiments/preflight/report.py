"""The table of a preflight, and the verdict in words."""

import math
from collections.abc import Sequence

from weightsteer_jax import config as configs
from weightsteer_jax import models
from weightsteer_jax.experiments.preflight.hlo import Moved
from weightsteer_jax.experiments.preflight.programs import RunPlan, Sizes
from weightsteer_jax.experiments.preflight.run import Result
from weightsteer_jax.experiments.preflight.search import candidates
from weightsteer_jax.experiments.preflight.topology import Hardware
from weightsteer_jax.runtime import sharding
from weightsteer_jax.runtime.messages import file_size, memory_size

# The unit of the table.
GIB = 2**30
HEAD = (
  'program',
  'weights',
  'deltas',
  'optimizer',
  'batch',
  'cache',
  'activations',
  'peak',
  'of memory',
  'TFLOP',
  'GB moved',
  'collectives, sent',
  'estimate',
  'compiled',
)
# Columns of words, aligned left.
LEFT = ('program', 'collectives, sent')
ASSUMPTIONS = (
  "GiB and operations are of one device. Peak is the compiler's.",
  'TFLOP and GB moved are by formula, since the compiler counts a loop once.',
  'The estimate is the longest of operations, memory and links, each at its documented peak '
  'and all overlapping: a bound.',
)


def lines(plan: RunPlan, results: Sequence[Result]) -> list[str]:
  """The table, aligned, with the assumptions under it."""
  memory = plan.hardware.memory
  rows = [HEAD, *(_row(result, memory) for result in results)]
  widths = []
  for column in zip(*rows):
    widths.append(max(len(cell) for cell in column))
  table = []
  for row in rows:
    cells = []
    for name, cell, width in zip(HEAD, row, widths):
      # Words are aligned left, numbers right.
      cells.append(cell.ljust(width) if name in LEFT else cell.rjust(width))
    table.append('  '.join(cells).rstrip())
  # Without a known speed there are no estimates to explain.
  assumptions = ASSUMPTIONS if plan.hardware.chip else ASSUMPTIONS[:2]
  head, *body = table
  return [head, '-' * len(head), *body, '', *assumptions]


def first_change(run: configs.Run) -> list[str]:
  """A line about the size of a fine-tune's first change, where the run is in bfloat16.

  AdamW's first step moves every entry of LoRA's second factor by the learning rate. Entries of the
  first factor, drawn as in PEFT from +-1 / sqrt(inputs), bring inputs of size 1 to 1 / sqrt(3).
  """
  options = run.finetune
  if run.model.dtype != 'bfloat16' or not options.kind.startswith('lora'):
    return []
  rate = min(options.learning_rates)
  share = options.lora_alpha / options.rank * rate * math.sqrt(options.rank / 3)
  return [
    f'bfloat16: the first step at learning rate {rate:g} changes outputs by about {share:.1g} of '
    'their size, and a step of bfloat16 is 0.004 to 0.008 of it; none of the change is lost on '
    'average, see docs/bfloat16.md'
  ]


def _row(result: Result, memory: float) -> tuple[str, ...]:
  """The cells of a program, under HEAD."""
  # Where the compiler gave up there are no collectives to read.
  nothing = '?' if result.error else '-'
  estimate = '?'
  if result.time:
    estimate = f'{result.time.estimate * 1e3:.3g} ms ({result.time.bound})'
  kinds = (
    result.bytes.weights,
    result.bytes.deltas,
    result.bytes.optimizer,
    result.bytes.batch,
    result.bytes.cache,
    result.bytes.activations,
  )
  return (
    result.name,
    *map(_gib, kinds),
    _gib(result.peak),
    f'{result.peak / memory:.0%}',
    f'{result.work.flops / 1e12:.3g}',
    f'{result.work.moved / 1e9:.3g}',
    words(result.collectives) or nothing,
    estimate,
    f'{result.seconds:.0f} s',
  )


def words(collectives: dict[str, Moved]) -> str:
  """Collectives in words, as in 'all-gather 12 GB in 793, all-reduce 3 GB in 248'."""
  # The largest first.
  texts = []
  for kind, moved in sorted(collectives.items(), key=lambda item: -item[1].sent):
    texts.append(f'{kind} {file_size(moved.sent, 3)} in {moved.count}')
  return ', '.join(texts)


def verdict(plan: RunPlan, results: Sequence[Result]) -> str:
  """A line: all programs fit and by how much, or the names of failing programs."""
  mesh = sharding.describe(dict(plan.layouts.train.mesh.shape))
  fullest = max(results, key=lambda result: result.peak)
  if all(result.fits for result in results):
    left = plan.hardware.memory - fullest.peak
    return (
      f'FITS: {plan.hardware.name} with {mesh} leaves {memory_size(left, 2)} of '
      f'{memory_size(plan.hardware.memory, 2)} free at the fullest ({fullest.name})'
    )
  failing = []
  for result in results:
    if not result.fits:
      failing.append(f'{result.name} needs {memory_size(result.peak, 2)}')
  return (
    f'DOES NOT FIT: {plan.hardware.name} with {mesh} has {memory_size(plan.hardware.memory, 2)} a '
    f'device; {", ".join(failing)}'
  )


def advice(
  run: configs.Run, config: models.ModelConfig, hardware: Hardware, sizes: Sizes
) -> list[str]:
  """Lines with ways to run, fitting by estimate, the fastest first."""
  fitting = candidates(run, config, hardware, sizes)
  if not fitting:
    return [
      'By estimate nothing fits here with this model and these rows: take more devices, '
      'shorter rows or a smaller rank.'
    ]
  lines = ['By estimate (not compiled; --search compiles the best) these fit:']
  for candidate in fitting[:3]:
    lines.append(f'  {memory_size(candidate.bytes, 2)}{candidate.pace}: {candidate}')
  return lines


def _gib(count: float) -> str:
  if not count:
    return '-'
  # Less would round to 0.00, as if there were nothing.
  return f'{count / GIB:.2f}' if count >= 0.005 * GIB else '<0.01'
