"""Other meshes, batches and rematerialisation: an estimate of each, and the best of them
compiled.
"""

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

ROWS_PER_SHARD = (1, 2, 4, 8, 16)
SPARE = 0.9  # Share of a device's memory that an estimate may fill.


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A way to run.

  Attributes:
    mesh, base, remat: as in the config. rows: of a microbatch.
    bytes: estimated, of the fullest program on a device. speed: tokens of training per second,
      estimated; 0 where the device's speed is not known.
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
    """As in ', about 12,000 tokens/s'."""
    return f', about {self.speed:,.0f} tokens/s' if self.speed else ''

  def plan(
    self, run: configs.Run, config: models.ModelConfig, hardware: Hardware, sizes: Sizes
  ) -> RunPlan:
    """The run, done so."""
    mesh = dataclasses.replace(run.mesh, shape=self.mesh, base=self.base)
    finetune = dataclasses.replace(run.finetune, remat=self.remat)
    return plan(
      dataclasses.replace(run, mesh=mesh, finetune=finetune),
      config,
      hardware,
      dataclasses.replace(sizes, train_rows=self.rows),
    )


def candidates(
  run: configs.Run, config: models.ModelConfig, hardware: Hardware, sizes: Sizes
) -> list[Candidate]:
  """All ways to run that fit by estimate, the fastest by estimate first."""
  found = []
  for mesh in _meshes(len(hardware.devices)):
    fsdp = sharding.parse(mesh)['fsdp']
    # Replicated for training, the weights lie alike on every mesh: one without fsdp stands for all.
    for base in ('shard', 'replicate') if fsdp == 1 else ('shard',):
      try:
        made = Candidate(mesh, base, 1, 'none', 0, 0).plan(run, config, hardware, sizes)
      except InputError:  # An axis that does not divide.
        continue
      found += _variants(run, config, hardware, sizes, made, mesh, base)
  return sorted(found, key=lambda candidate: (-candidate.speed, -candidate.rows))


def search(
  run: configs.Run, config: models.ModelConfig, hardware: Hardware, sizes: Sizes, *, tries: int = 3
) -> Iterator[tuple[Candidate, Result]]:
  """The best candidates and what compiling their training step tells; ends with the first that
  fits.
  """
  for candidate in candidates(run, config, hardware, sizes)[:tries]:
    result = compile_one(candidate.plan(run, config, hardware, sizes).programs[0], hardware)
    yield candidate, result
    if result.fits:
      return


def _variants(
  run, config, hardware, sizes, made: RunPlan, mesh: str, base: str
) -> Iterator[Candidate]:
  """The candidates of one mesh: rows to a shard, and what is computed again."""
  train, options = made.programs[0], run.finetune
  shape, shards = train.layout.mesh.shape, train.layout.rows
  gathered = (
    2 * train.args.weights * shape['fsdp'] / config.num_layers if train.layout.fsdp else 0
  )  # this layer's and the next one's
  for per_shard in ROWS_PER_SHARD:
    for remat in memory.POLICIES:
      load = training_load(run, sizes, per_shard * shards)
      kept = memory.activations(config, load, remat, shards=shards, tensor=shape['tensor'])
      needed = max(
        train.args.total + kept + gathered, *(program.args.total for program in made.programs[1:])
      )
      if needed > SPARE * hardware.memory:
        continue
      rows, speed = per_shard * shards, 0.0
      if hardware.chip:
        work = roofline.train_step(
          config,
          made.delta,
          train.layout,
          train.args,
          microbatches=options.accumulation,
          rows=rows,
          tokens=sizes.row_tokens,
          remat=remat,
          trains_dense=options.kind in ('full', 'bias'),
        )
        seconds = (
          work.flops / hardware.chip.flops,
          work.moved / hardware.chip.bandwidth,
          _sent(train, config, work.tokens, remat) / hardware.chip.link,
        )
        speed = work.tokens / max(seconds)
      yield Candidate(mesh, base, rows, remat, needed, speed)


def _sent(train: Program, config: models.ModelConfig, tokens: int, remat: str) -> float:
  """Estimated bytes that a device sends in a step: fsdp's gathers in each pass through the weights,
  tensor's sums of the residual stream (two to a layer and pass), and the sum of the gradients.
  """
  shape, rows, args = train.layout.mesh.shape, train.layout.rows, train.args
  gathers = (2 + (remat == 'full')) * args.weights * (shape['fsdp'] - 1) if train.layout.fsdp else 0
  streams = (
    (2 + (remat != 'none'))
    * 2
    * config.num_layers
    * 2
    * 2
    * tokens
    / rows
    * config.width
    * (shape['tensor'] - 1)
    / shape['tensor']
  )
  return gathers + streams + 2 * args.deltas * (rows - 1) / rows


def _meshes(count: int) -> Iterator[str]:
  """All shapes of so many devices, as in '1x8x2'."""
  for data in range(1, count + 1):
    for fsdp in range(1, count // data + 1):
      if count % (data * fsdp) == 0:
        yield f'{data}x{fsdp}x{count // data // fsdp}'
