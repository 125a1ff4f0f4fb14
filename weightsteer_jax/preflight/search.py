"""Other meshes, batches and rematerialisation: an estimate of each, and the best of them compiled."""
import dataclasses
from typing import Iterator

from weightsteer_jax import config as configs
from weightsteer_jax import models, sharding
from weightsteer_jax.errors import InputError
from weightsteer_jax.preflight import roofline
from weightsteer_jax.preflight.programs import Plan, Program, Sizes, plan
from weightsteer_jax.preflight.run import Result, compile_one
from weightsteer_jax.preflight.topology import Target

ROWS_PER_SHARD = (1, 2, 4, 8, 16)
SPARE = 0.9  # Share of a device's memory that an estimate may fill.


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A way to run.

  Attributes:
    mesh, base, remat: as in the config. rows: of a microbatch.
    bytes: estimated, of the fullest program on a device. speed: tokens of training per second, estimated; 0 where the
      device's speed is not known.
  """
  mesh: str
  base: str
  rows: int
  remat: bool
  bytes: float
  speed: float

  def __str__(self) -> str:
    return (f'--config.mesh.shape={self.mesh} --config.mesh.base={self.base} --config.finetune.remat={self.remat} '
            f'--train_rows={self.rows}')

  @property
  def pace(self) -> str:
    """As in ', about 12,000 tokens/s'."""
    return f', about {self.speed:,.0f} tokens/s' if self.speed else ''

  def plan(self, run: configs.Run, config: models.ModelConfig, target: Target, sizes: Sizes) -> Plan:
    """The run, done so."""
    mesh = dataclasses.replace(run.mesh, shape=self.mesh, base=self.base)
    finetune = dataclasses.replace(run.finetune, remat=self.remat)
    return plan(dataclasses.replace(run, mesh=mesh, finetune=finetune), config, target,
                dataclasses.replace(sizes, train_rows=self.rows))


def candidates(run: configs.Run, config: models.ModelConfig, target: Target, sizes: Sizes) -> list[Candidate]:
  """All ways to run that fit by estimate, the fastest by estimate first."""
  found = []
  for mesh in _meshes(len(target.devices)):
    fsdp = sharding.parse(mesh)['fsdp']
    # Replicated for training, the weights lie alike on every mesh: one without fsdp stands for all.
    for base in ('shard', 'replicate') if fsdp == 1 else ('shard',):
      try:
        made = Candidate(mesh, base, 1, False, 0, 0).plan(run, config, target, sizes)
      except InputError:  # An axis that does not divide.
        continue
      found += _variants(run, config, target, sizes, made, mesh, base)
  return sorted(found, key=lambda candidate: (-candidate.speed, -candidate.rows))


def search(run: configs.Run,
           config: models.ModelConfig,
           target: Target,
           sizes: Sizes,
           *,
           tries: int = 3) -> Iterator[tuple[Candidate, Result]]:
  """The best candidates and what compiling their training step tells; ends with the first that fits."""
  for candidate in candidates(run, config, target, sizes)[:tries]:
    result = compile_one(candidate.plan(run, config, target, sizes).programs[0], target)
    yield candidate, result
    if result.fits:
      return


def activations(config: models.ModelConfig, rows: int, tokens: int, *, remat: bool, tensor: int) -> float:
  """Estimated bytes that a training step keeps on a device that has so many rows.

  The residual streams of all layers, and what one layer (with rematerialisation) or every layer keeps between its
  forward and backward pass: inputs and outputs of its norms (4 D), queries, keys and values, hidden values of the MLP
  (3 F), in half precision; attention's scores in float32 and its weights in half precision. Beside it the logits of a
  chunk of 256 tokens, twice in float32.
  """
  heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim / tensor
  experts = max(1, config.experts_per_token) if hasattr(config, 'experts_per_token') else 1
  per_token = 2 * (4 * config.width + heads +
                   3 * experts * config.mlp_width / tensor) + 6 * config.num_heads / tensor * tokens
  layers = 1 if remat else config.num_layers
  logits = 2 * 4 * min(256, tokens) * config.vocab_size / tensor
  return rows * (tokens * (2 * config.width * config.num_layers + layers * per_token) + logits)


def _variants(run, config, target, sizes, made: Plan, mesh: str, base: str) -> Iterator[Candidate]:
  """The candidates of one mesh: rows to a shard, with and without rematerialisation."""
  train, options = made.programs[0], run.finetune
  shape, shards = train.layout.mesh.shape, train.layout.rows
  gathered = 2 * train.args.weights * shape[
      'fsdp'] / config.num_layers if train.layout.fsdp else 0  # this layer's and the next one's
  for per_shard in ROWS_PER_SHARD:
    for remat in (False, True):
      kept = activations(config, per_shard, sizes.row_tokens, remat=remat, tensor=shape['tensor'])
      needed = max(train.args.total + kept + gathered, *(program.args.total for program in made.programs[1:]))
      if needed > SPARE * target.memory:
        continue
      rows, speed = per_shard * shards, 0.0
      if target.chip:
        work = roofline.train_step(config,
                                   made.delta,
                                   train.layout,
                                   train.args,
                                   microbatches=options.accumulation,
                                   rows=rows,
                                   tokens=sizes.row_tokens,
                                   remat=remat,
                                   trains_dense=options.kind in ('full', 'bias'))
        seconds = work.flops / target.chip.flops, work.moved / target.chip.bandwidth, _sent(
            train, config, work.tokens, remat) / target.chip.link
        speed = work.tokens / max(seconds)
      yield Candidate(mesh, base, rows, remat, needed, speed)


def _sent(train: Program, config: models.ModelConfig, tokens: int, remat: bool) -> float:
  """Estimated bytes that a device sends in a step: fsdp's gathers in each pass, tensor's sums of the residual stream
  (two to a layer and pass), and the sum of the gradients."""
  shape, rows, args = train.layout.mesh.shape, train.layout.rows, train.args
  gathers = (2 + remat) * args.weights * (shape['fsdp'] - 1) if train.layout.fsdp else 0
  streams = (2 + remat) * 2 * config.num_layers * 2 * 2 * tokens / rows * config.width * (shape['tensor'] -
                                                                                          1) / shape['tensor']
  return gathers + streams + 2 * args.deltas * (rows - 1) / rows


def _meshes(count: int) -> Iterator[str]:
  """All shapes of so many devices, as in '1x8x2'."""
  for data in range(1, count + 1):
    for fsdp in range(1, count // data + 1):
      if count % (data * fsdp) == 0:
        yield f'{data}x{fsdp}x{count // data // fsdp}'
