"""The programs of a run, with shapes in place of arrays."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from weightsteer_jax import config as configs
from weightsteer_jax import models
from weightsteer_jax.data import Batch
from weightsteer_jax.experiments.preflight import roofline
from weightsteer_jax.experiments.preflight.memory import Bytes
from weightsteer_jax.experiments.preflight.topology import Hardware
from weightsteer_jax.finetune import memory as memories
from weightsteer_jax.finetune import optimizer
from weightsteer_jax.finetune import step as steps
from weightsteer_jax.inference import decoding, generation, packing, scoring
from weightsteer_jax.models import placement as layouts
from weightsteer_jax.models.placement import Layouts
from weightsteer_jax.runtime import sharding, tree
from weightsteer_jax.runtime.messages import memory_size
from weightsteer_jax.runtime.sharding import Layout, bytes_on_device, placed

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes that a config leaves to the data.

  Attributes:
    row_tokens: tokens of the longest training row.
    prompt_tokens: tokens of a prompt in evaluation.
    completion_tokens: tokens of a scored completion.
    answer_tokens: tokens of a generated answer.
    train_rows: rows of a microbatch; 0 for the config's.
    rows: rows of an evaluation batch; 0 for the config's.
  """

  row_tokens: int = 1024
  prompt_tokens: int = 256
  completion_tokens: int = 32
  answer_tokens: int = 128
  train_rows: int = 0
  rows: int = 0

  def within(self, positions: int) -> 'Sizes':
    """The sizes, cut to a model's positions."""
    # Half for the prompt, a quarter for the answer: what is generated fits with room to spare.
    return dataclasses.replace(
      self,
      row_tokens=min(self.row_tokens, positions),
      prompt_tokens=min(self.prompt_tokens, positions // 2),
      completion_tokens=min(self.completion_tokens, positions // 4),
      answer_tokens=min(self.answer_tokens, positions // 4),
    )


DEFAULT_SIZES = Sizes()


@dataclasses.dataclass(frozen=True)
class Program:
  """A program to compile.

  Attributes:
    layout: layout to compile the program for.
    args: bytes of the arguments on a device, by kind.
    work: operations and bytes by formula (see roofline.py).
    lower: returns the program as jax lowers it.
  """

  name: str
  layout: Layout
  args: Bytes
  work: roofline.Work
  lower: Callable[[], jax.stages.Lowered]


@dataclasses.dataclass(frozen=True)
class RunPlan:
  """A run on some hardware.

  Attributes:
    delta: shapes of the trained delta.
    rows: (rows of a microbatch, rows of an evaluation batch), padding included.
    remat: what the backward pass computes again, as the config or the memory says (see
      config.FineTune).
    relaid: bytes of weights that a device receives between training and evaluation; 0 where both
      lay the weights out alike.
  """

  config: models.ModelConfig
  delta: PyTree
  hardware: Hardware
  layouts: Layouts
  programs: tuple[Program, ...]
  rows: tuple[int, int]
  remat: str
  relaid: int

  def words(self, sizes: Sizes) -> tuple[str, ...]:
    """Lines with the sizes that the programs were compiled for."""
    lines = [
      f'a microbatch: {self.rows[0]} rows of {sizes.row_tokens} tokens; an evaluation batch: '
      f'{self.rows[1]} rows, prompts of {sizes.prompt_tokens}, scored completions of '
      f'{sizes.completion_tokens}, answers of {sizes.answer_tokens} tokens',
      f'rematerialisation in training: {self.remat}',
    ]
    if self.relaid:
      lines.append(
        f'between training and evaluation each device receives up to {memory_size(self.relaid, 2)} '
        'of weights, once'
      )
    return tuple(lines)

  def as_json(self, sizes: Sizes) -> dict[str, Any]:
    """The mesh, layouts, rows and sizes of the programs, as JSON values."""
    return {
      'mesh': sharding.describe(dict(self.layouts.evaluate.mesh.shape)),
      'train': _cut(self.layouts.train),
      'evaluate': _cut(self.layouts.evaluate),
      'rows': list(self.rows),
      'sizes': dataclasses.asdict(sizes),
      'remat': self.remat,
      'relaid': self.relaid,
    }


def plan(
  run: configs.Run, config: models.ModelConfig, hardware: Hardware, sizes: Sizes = DEFAULT_SIZES
) -> RunPlan:
  """The programs of a run of a model.

  The programs are a training step, scoring, prefill, a decoding step, and a merge for export.

  Raises:
    InputError: if the mesh does not fit the devices or the model.
  """
  options = run.finetune
  delta = jax.eval_shape(lambda: _delta(config, options, options.rank))
  chosen = layouts.choose(
    config,
    run.mesh,
    dtype=run.model.dtype,
    trained=tree.count(delta),
    devices=hardware.devices,
    memory=hardware.memory,
  )
  # Training and evaluation may lay the weights out in two ways.
  params = models.abstract_params(config, run.model.dtype)
  weights = {}
  for layout in (chosen.train, chosen.evaluate):
    weights[layout] = placed(params, models.param_shardings(config, layout))
  # Batches are padded to whole rows on each shard.
  train_rows = sizes.train_rows or options.batch_size // options.accumulation
  train_rows = _multiple(train_rows, chosen.train.rows)
  rows = _multiple(sizes.rows or run.sweep.batch_size, chosen.evaluate.rows)
  evaluate = _Evaluation(run, config, chosen.evaluate, weights[chosen.evaluate], sizes, rows)
  load = training_load(run, sizes, train_rows)
  remat = memories.choose_remat(config, options, load, chosen.train, memory=hardware.memory)
  programs = (
    _train_step(run, config, chosen.train, weights[chosen.train], load, remat),
    evaluate.score(),
    evaluate.prefill(),
    evaluate.decode(),
    evaluate.export(),
  )
  # At most all of the weights arrive anew.
  relaid = 0
  if chosen.train != chosen.evaluate:
    relaid = bytes_on_device(weights[chosen.evaluate])
  return RunPlan(config, delta, hardware, chosen, programs, (train_rows, rows), remat, relaid)


def training_load(run: configs.Run, sizes: Sizes, rows: int) -> memories.Load:
  """The load of a fine-tune of the run, on microbatches of `rows` rows."""
  return memories.Load(
    run.finetune.kind, run.finetune.rank, run.model.dtype, rows, sizes.row_tokens
  )


def _train_step(
  run: configs.Run,
  config: models.ModelConfig,
  layout: Layout,
  weights: PyTree,
  load: memories.Load,
  remat: str,
) -> Program:
  options = run.finetune
  recipe = optimizer.adamw(options)
  state = memories.state_shapes(config, options, layout)
  # A microbatches, B rows, T tokens.
  shape = (options.accumulation, load.rows, load.tokens)

  # Any: shapes stand in for arrays, and jax lowers with either.
  def array(dtype: Any) -> Any:
    return _array(layout, 'ABT', shape, dtype)

  batch = Batch(
    array(jnp.int32), array(jnp.int32), array(jnp.float32), array(jnp.int32), array(jnp.int32)
  )
  number: Any = jax.ShapeDtypeStruct((), jnp.float32, sharding=layout.replicated)
  # The schedule is an argument, so that one program serves all rates and lengths.
  schedule = optimizer.Schedule(number, number, number)
  function = steps.train_step_fn(config, recipe, layout, remat=remat, dropout=options.dropout)
  args = Bytes(
    weights=bytes_on_device(weights),
    deltas=bytes_on_device(state.delta),
    optimizer=bytes_on_device(state.opt_state),
    batch=bytes_on_device(batch),
  )
  work = roofline.train_step(
    config,
    state.delta,
    layout,
    args,
    microbatches=options.accumulation,
    rows=load.rows,
    tokens=load.tokens,
    remat=remat,
    trains_dense=options.kind in ('full', 'bias'),
  )

  def lower() -> jax.stages.Lowered:
    # The step is jitted; its annotation tells only how to call the step.
    return function.lower(state, weights, batch, schedule, 0)  # type: ignore[attr-defined]

  return Program('training step', layout, args, work, lower)


@dataclasses.dataclass(frozen=True)
class _Evaluation:
  """The programs of evaluation, for one layout and batch.

  Attributes:
    weights: shapes of the model's parameters, with shardings.
    rows: rows of a batch, a multiple of the layout's.
  """

  run: configs.Run
  config: models.ModelConfig
  layout: Layout
  weights: PyTree
  sizes: Sizes
  rows: int

  @property
  def direction(self) -> PyTree:
    """Shapes of a direction of the run."""
    options = self.run.finetune
    # The factors of both fine-tunes stand side by side.
    shapes = jax.eval_shape(lambda: _delta(self.config, options, 2 * options.rank))
    shardings = models.delta_shardings(self.config, shapes, self.layout)
    return placed(shapes, shardings)

  def score(self) -> Program:
    """Scoring of two completions for each prompt."""
    # Two completions share a prompt, as where a right and a wrong answer are compared.
    batch = packing.random_batch(
      self.config,
      prompts=math.ceil(self.rows / 2),
      prompt_tokens=self.sizes.prompt_tokens,
      completions=2,
      completion_tokens=self.sizes.completion_tokens,
      groups=self.layout.rows,
    )
    rows, length = batch.tokens_BT.shape

    # Arrays without rows and tokens have axes that no mesh axis cuts.
    def place(array: Any) -> jax.ShapeDtypeStruct:
      return _array(self.layout, 'BT'.ljust(array.ndim, '_'), array.shape, array.dtype)

    batch = jax.tree.map(place, batch)
    args = self._args(batch)
    work = roofline.forward(
      self.config,
      self.direction,
      self.layout,
      args,
      rows=(rows,),
      tokens=(length,),
      keys=(length,),
      heads=(batch.targets_UM.size,),
    )
    return Program(
      'scoring',
      self.layout,
      args,
      work,
      lambda: scoring.score_batch.lower(self.config, self.weights, (self.direction,), batch),
    )

  def prefill(self) -> Program:
    """Prefill of the prompts that enter a running batch together."""
    state = self._state()
    prompts = _multiple(self.rows // generation.REFILL_SHARE, self.layout.rows)

    def array(axes: str, shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
      return _array(self.layout, axes, shape, dtype)

    # What each of the batch's rows holds, for as many rows as enter.
    def entering(held: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
      axes = 'B'.ljust(len(held.shape), '_')
      return array(axes, (prompts, *held.shape[1:]), held.dtype)

    rows = jax.tree.map(entering, state.rows)
    entry = decoding.Entry(
      array('BT', (prompts, self.sizes.prompt_tokens)),
      array('B', (prompts,)),
      rows,
      array('B_', (prompts, 3), jnp.uint32),
    )
    args = self._args(entry, state)
    work = roofline.forward(
      self.config,
      self.direction,
      self.layout,
      args,
      rows=(prompts,),
      tokens=(self.sizes.prompt_tokens,),
      keys=(self.sizes.prompt_tokens,),
      heads=(0,),
    )
    return Program(
      'prefill',
      self.layout,
      args,
      work,
      lambda: decoding.admit.lower(self.config, self.weights, (self.direction,), state, entry),
    )

  def decode(self) -> Program:
    """One decoding step of a full batch."""
    state = self._state()
    replicated = self.layout.replicated
    # Two stop tokens are usual.
    stops = jax.ShapeDtypeStruct((2,), jnp.int32, sharding=replicated)
    keep = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    args = self._args((stops, keep, keep), state)
    # The cache at its fullest.
    keys = self.sizes.prompt_tokens + self.sizes.answer_tokens
    work = roofline.forward(
      self.config,
      self.direction,
      self.layout,
      args,
      rows=(self.rows,),
      tokens=(1,),
      keys=(keys,),
      heads=(self.rows,),
    )
    return Program(
      'decoding step',
      self.layout,
      args,
      work,
      lambda: decoding.decode.lower(
        self.config, 'greedy', self.weights, (self.direction,), stops, state, keep, keep
      ),
    )

  def export(self) -> Program:
    """The merge base + alpha * direction, in float32 and rounded, laid out as in evaluation."""
    # In the place of the base weights, which are given up.
    shardings = jax.tree.map(lambda x: x.sharding, self.weights)
    merge = jax.jit(
      lambda params, delta, alpha: models.merge(self.config, params, delta, alpha),
      out_shardings=shardings,
      donate_argnums=0,
    )
    alpha = jax.ShapeDtypeStruct((), jnp.float32, sharding=self.layout.replicated)
    args = Bytes(bytes_on_device(self.weights), bytes_on_device(self.direction))
    return Program(
      'export',
      self.layout,
      args,
      roofline.merge(self.config, self.direction, self.layout, args),
      lambda: merge.lower(self.weights, self.direction, alpha),
    )

  def _args(self, batch: PyTree, state: decoding.DecodeState | None = None) -> Bytes:
    """Bytes of a program's arguments; all of the state but the cache counts as batch."""
    cache = 0
    rest = 0
    if state:
      cache = bytes_on_device(state.cache)
      rest = bytes_on_device(dataclasses.replace(state, cache=None))
    return Bytes(
      weights=bytes_on_device(self.weights),
      deltas=bytes_on_device(self.direction),
      cache=cache,
      batch=bytes_on_device(batch) + rest,
    )

  def _state(self) -> decoding.DecodeState:
    """As `decoding.empty_state` places it."""
    answer = _multiple(self.sizes.answer_tokens, generation.ANSWER_MULTIPLE)
    length = _multiple(
      self.sizes.prompt_tokens + self.sizes.answer_tokens, generation.TOTAL_MULTIPLE
    )
    shapes = jax.eval_shape(
      lambda: decoding.empty_state(self.config, self.rows, length, answer, 1, self.run.model.dtype)
    )

    def place(axes):
      return lambda x: _array(self.layout, axes.ljust(len(x.shape), '_'), x.shape, x.dtype)

    rest = jax.tree.map(place('B'), dataclasses.replace(shapes, cache=None))
    return dataclasses.replace(rest, cache=jax.tree.map(place('LBKSH'), shapes.cache))


def _cut(layout: Layout) -> str:
  """How weights are cut, as in 'fsdp:8,tensor:2'."""
  fsdp = layout.mesh.shape['fsdp'] if layout.fsdp else 1
  return f'fsdp:{fsdp},tensor:{layout.mesh.shape["tensor"]}'


def _delta(config: models.ModelConfig, options: configs.FineTune, rank: int) -> PyTree:
  return models.init_delta(
    config,
    options.kind,
    jax.random.key(0),
    rank=rank,
    lora_alpha=options.lora_alpha,
    targets=options.targets,
  )


def _array(layout: Layout, axes: str, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.activations(axes, shape, name='batch'))


def _multiple(count: int, of: int) -> int:
  return max(1, math.ceil(count / of)) * of
