"""Other meshes, batches and rematerialisation: all estimated, the best compiled."""

import dataclasses
from collections.abc import Iterator

from weightsteer_jax import config as configs
from weightsteer_jax import models
from weightsteer_jax.experiments.preflight import roofline
from weightsteer_jax.experiments.preflight.programs import (
  Program,
  RunPlan,
  Sizes,
  plan,
  training_load,
)
from weightsteer_jax.experiments.preflight.run import Result, compile_one
from weightsteer_jax.experiments.preflight.topology import Hardware
from weightsteer_jax.finetune import memory
from weightsteer_jax.runtime import sharding
from weightsteer_jax.runtime.errors import InputError

# Rows of a microbatch on each shard that are tried.
ROWS_PER_SHARD = (1, 2, 4, 8, 16)
# Share of a device's memory that an estimate may fill: estimates leave out what the compiler keeps
# for itself.
SPARE = 0.9


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A way to run.

  Attributes:
    mesh, base, remat: as in the config.
    rows: rows of a microbatch.
    bytes: estimated bytes of the fullest program on a device.
    speed: estimated tokens of training per second; 0 where the device's speed is not known.
  """

  mesh: str
  base: str
  rows: int
  remat: str
  bytes: float
  speed: float

  def __str__(self) -> str:
    return (
      f'--config.mesh.shape={self.mesh} --config.mesh.base={self.base} '
      f'--config.finetune.remat={self.remat} --train_rows={self.rows}'
    )

  @property
  def pace(self) -> str:
    """The speed in words, as in ', about 12,000 tokens/s'; '' where not known."""
    return f', about {self.speed:,.0f} tokens/s' if self.speed else ''

  def plan(
    self, run: configs.Run, config: models.ModelConfig, hardware: Hardware, sizes: Sizes
  ) -> RunPlan:
    """The plan of a run done this way."""
    mesh = dataclasses.replace(run.mesh, shape=self.mesh, base=self.base)
    finetune = dataclasses.replace(run.finetune, remat=self.remat)
    run = dataclasses.replace(run, mesh=mesh, finetune=finetune)
    sizes = dataclasses.replace(sizes, train_rows=self.rows)
    return plan(run, config, hardware, sizes)


def candidates(
  run: configs.Run, config: models.ModelConfig, hardware: Hardware, sizes: Sizes
) -> list[Candidate]:
  """All ways to run that fit by estimate, the fastest by estimate first."""
  fitting: list[Candidate] = []
  for mesh in _meshes(len(hardware.devices)):
    fsdp = sharding.parse(mesh)['fsdp']
    # Replicated for training, the weights lie alike on every mesh: one without fsdp stands for all.
    bases = ('shard', 'replicate') if fsdp == 1 else ('shard',)
    for base in bases:
      # The smallest plan of the mesh, from which all others are estimated.
      smallest = Candidate(mesh, base, rows=1, remat='none', bytes=0, speed=0)
      try:
        one_row = smallest.plan(run, config, hardware, sizes)
      # An axis of the mesh that does not divide the model's.
      except InputError:
        continue
      fitting += _variants(run, config, hardware, sizes, one_row, mesh, base)
  # Of equal speeds, as where none is known, the most rows.
  return sorted(fitting, key=lambda candidate: (-candidate.speed, -candidate.rows))


def search(
  run: configs.Run, config: models.ModelConfig, hardware: Hardware, sizes: Sizes, *, tries: int = 3
) -> Iterator[tuple[Candidate, Result]]:
  """The best candidates with the results of compiling the training step.

  The search ends with the first candidate that fits.

  Args:
    tries: the most candidates to compile.
  """
  for candidate in candidates(run, config, hardware, sizes)[:tries]:
    run_plan = candidate.plan(run, config, hardware, sizes)
    # The training step alone: the others are compiled where the step fits.
    result = compile_one(run_plan.programs[0], hardware)
    yield candidate, result
    if result.fits:
      return


def _variants(
  run: configs.Run,
  config: models.ModelConfig,
  hardware: Hardware,
  sizes: Sizes,
  one_row: RunPlan,
  mesh: str,
  base: str,
) -> Iterator[Candidate]:
  """The candidates of one mesh that fit: rows to a shard, and rematerialisation.

  Args:
    one_row: the plan of the run on this mesh, a row a microbatch.
  """
  train = one_row.programs[0]
  options = run.finetune
  shape = train.layout.mesh.shape
  shards = train.layout.rows
  # Evaluation needs the same bytes whatever training does.
  evaluation = max(program.args.total for program in one_row.programs[1:])
  gathered = 0.0
  if train.layout.fsdp:
    # This layer's weights and the next layer's.
    gathered = 2 * train.args.weights * shape['fsdp'] / config.num_layers
  for per_shard in ROWS_PER_SHARD:
    for remat in memory.POLICIES:
      rows = per_shard * shards
      load = training_load(run, sizes, rows)
      kept = memory.activations(config, load, remat, shards=shards, tensor=shape['tensor'])
      needed = max(train.args.total + kept + gathered, evaluation)
      if needed > SPARE * hardware.memory:
        continue
      speed = 0.0
      if hardware.chip:
        work = roofline.train_step(
          config,
          one_row.delta,
          train.layout,
          train.args,
          microbatches=options.accumulation,
          rows=rows,
          tokens=sizes.row_tokens,
          remat=remat,
          trains_dense=options.kind in ('full', 'bias'),
        )
        sent = _sent(train, config, work.tokens, remat)
        seconds = (
          work.flops / hardware.chip.flops,
          work.moved / hardware.chip.bandwidth,
          sent / hardware.chip.link,
        )
        # The busiest resource sets the pace, all else overlapping.
        speed = work.tokens / max(seconds)
      yield Candidate(mesh, base, rows, remat, needed, speed)


def _sent(train: Program, config: models.ModelConfig, tokens: int, remat: str) -> float:
  """Estimated bytes sent by a device in a step."""
  shape = train.layout.mesh.shape
  rows = train.layout.rows
  # fsdp gathers the weights in each pass: forward, backward, and the forward pass done again.
  gathers = 0
  if train.layout.fsdp:
    weight_passes = 2 + (remat == 'full')
    gathers = weight_passes * train.args.weights * (shape['fsdp'] - 1)
  # tensor sums the residual stream twice a layer and pass, with 2 bytes an entry, and an all-reduce
  # sends twice its size.
  passes = 2 + (remat != 'none')
  sums = passes * 2 * config.num_layers
  tensor = shape['tensor']
  streams = sums * 2 * 2 * tokens / rows * config.width * (tensor - 1) / tensor
  # The gradients are summed over all rows.
  gradients = 2 * train.args.deltas * (rows - 1) / rows
  return gathers + streams + gradients


def _meshes(count: int) -> Iterator[str]:
  """All shapes of a mesh of `count` devices, as in '1x8x2'."""
  for data in range(1, count + 1):
    for fsdp in range(1, count // data + 1):
      if count % (data * fsdp) == 0:
        tensor = count // (data * fsdp)
        yield f'{data}x{fsdp}x{tensor}'
