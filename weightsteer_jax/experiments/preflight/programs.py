"""The programs of a run, as it calls them, with shapes in place of arrays."""

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
  """What a config leaves to the data: tokens of the longest training row, and of a prompt, a scored
  completion and an answer in evaluation; `train_rows` and `rows` of a batch, 0 for what the config
  says.
  """

  row_tokens: int = 1024
  prompt_tokens: int = 256
  completion_tokens: int = 32
  answer_tokens: int = 128
  train_rows: int = 0
  rows: int = 0

  def within(self, positions: int) -> 'Sizes':
    """The same, but no longer than a model has positions."""
    answer = min(self.answer_tokens, positions // 4)
    completion = min(self.completion_tokens, positions // 4)
    return dataclasses.replace(
      self,
      row_tokens=min(self.row_tokens, positions),
      prompt_tokens=min(self.prompt_tokens, positions // 2),
      completion_tokens=completion,
      answer_tokens=answer,
    )


@dataclasses.dataclass(frozen=True)
class Program:
  """A program to compile.

  Attributes:
    name: of it. layout: whose context it is compiled in. args: its arguments' bytes on a device, by
      kind.
    work: operations and bytes by formula (see roofline.py). lower: gives what jax lowers.
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
    delta: shapes of what is trained. rows: of a microbatch and of an evaluation batch, padding
      included.
    remat: what the backward pass computes again, as the config or the memory says (see
      config.FineTune).
    relaid: bytes of weights that a device receives between training and evaluation, where they lie
      in two ways.
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
    """Lines that say what the programs were compiled for."""
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
    """What the programs were compiled for, as JSON values."""
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
  run: configs.Run, config: models.ModelConfig, hardware: Hardware, sizes: Sizes = Sizes()
) -> RunPlan:
  """The programs of a run of that model: a training step, scoring, prefill, a decoding step, and a
  merge for export.

  Raises:
    InputError: a mesh that does not fit the devices or the model.
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
  weights = {
    layout: placed(
      models.abstract_params(config, run.model.dtype), models.param_shardings(config, layout)
    )
    for layout in (chosen.train, chosen.evaluate)
  }
  train_rows = _multiple(
    sizes.train_rows or options.batch_size // options.accumulation, chosen.train.rows
  )
  rows = _multiple(sizes.rows or run.sweep.batch_size, chosen.evaluate.rows)
  evaluate = _Evaluation(run, config, chosen.evaluate, weights[chosen.evaluate], sizes, rows)
  options, load = run.finetune, training_load(run, sizes, train_rows)
  remat = memories.choose_remat(config, options, load, chosen.train, memory=hardware.memory)
  programs = (
    _train_step(run, config, chosen.train, weights[chosen.train], load, remat),
    evaluate.score(),
    evaluate.prefill(),
    evaluate.decode(),
    evaluate.export(),
  )
  moved = bytes_on_device(weights[chosen.evaluate]) if chosen.train != chosen.evaluate else 0
  return RunPlan(config, delta, hardware, chosen, programs, (train_rows, rows), remat, moved)


def training_load(run: configs.Run, sizes: Sizes, rows: int) -> memories.Load:
  """What a fine-tune of the run trains, on so many rows a microbatch."""
  return memories.Load(
    run.finetune.kind, run.finetune.rank, run.model.dtype, rows, sizes.row_tokens
  )


def _train_step(run, config, layout, weights, load, remat) -> Program:
  options, recipe = run.finetune, optimizer.adamw(run.finetune)
  make = steps.initial_state_fn(
    config, options.kind, options.rank, options.lora_alpha, recipe, layout
  )
  shapes = jax.eval_shape(make, 0)
  state = placed(shapes, steps.state_shardings(config, recipe, layout, shapes))
  shape = options.accumulation, load.rows, load.tokens

  def array(dtype):
    return _array(layout, 'ABT', shape, dtype)

  batch = Batch(
    array(jnp.int32), array(jnp.int32), array(jnp.float32), array(jnp.int32), array(jnp.int32)
  )
  number = jax.ShapeDtypeStruct((), jnp.float32, sharding=layout.replicated)
  function = steps.train_step_fn(config, recipe, layout, remat=remat, dropout=options.dropout)
  arguments = state, weights, batch, optimizer.Schedule(number, number, number), 0
  args = Bytes(
    bytes_on_device(weights),
    bytes_on_device(state.delta),
    bytes_on_device(state.opt_state),
    0,
    bytes_on_device(batch),
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
  return Program('training step', layout, args, work, lambda: function.lower(*arguments))


@dataclasses.dataclass(frozen=True)
class _Evaluation:
  run: configs.Run
  config: models.ModelConfig
  layout: Layout
  weights: PyTree
  sizes: Sizes
  rows: int

  @property
  def direction(self) -> PyTree:
    """A direction of the run: its factors have twice the rank of a fine-tune's."""
    shapes = jax.eval_shape(
      lambda: _delta(self.config, self.run.finetune, 2 * self.run.finetune.rank)
    )
    return placed(shapes, models.delta_shardings(self.config, shapes, self.layout))

  def score(self) -> Program:
    batch = packing.alike(
      self.config,
      prompts=math.ceil(self.rows / 2),
      prompt_tokens=self.sizes.prompt_tokens,
      completions=2,
      completion_tokens=self.sizes.completion_tokens,
      groups=self.layout.rows,
    )
    rows, length = batch.tokens_BT.shape
    batch = jax.tree.map(
      lambda x: _array(self.layout, 'BT'.ljust(x.ndim, '_'), x.shape, x.dtype), batch
    )
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
    state = self._state()
    prompts = _multiple(self.rows // generation.REFILL_SHARE, self.layout.rows)

    def array(axes, shape, dtype=jnp.int32):
      return _array(self.layout, axes, shape, dtype)

    rows = jax.tree.map(
      lambda x: array('B' + '_' * (len(x.shape) - 1), (prompts, *x.shape[1:]), x.dtype), state.rows
    )
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
    state = self._state()
    stops, keep = (
      jax.ShapeDtypeStruct(shape, jnp.int32, sharding=self.layout.replicated)
      for shape in ((2,), ())
    )
    args = self._args((stops, keep), state)
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
        self.config, 'greedy', self.weights, (self.direction,), stops, state, keep
      ),
    )

  def export(self) -> Program:
    """base + alpha * direction, in float32 and rounded, cut as in evaluation."""
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
    cache = bytes_on_device(state.cache) if state else 0
    rest = bytes_on_device(dataclasses.replace(state, cache=None)) if state else 0
    return Bytes(
      bytes_on_device(self.weights),
      bytes_on_device(self.direction),
      0,
      cache,
      bytes_on_device(batch) + rest,
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
  """How weights lie, as in 'fsdp:8,tensor:2'."""
  return (
    f'fsdp:{layout.mesh.shape["fsdp"] if layout.fsdp else 1},tensor:{layout.mesh.shape["tensor"]}'
  )


def _delta(config: models.ModelConfig, options: configs.FineTune, rank: int) -> PyTree:
  return models.init_delta(
    config, options.kind, jax.random.key(0), rank=rank, lora_alpha=options.lora_alpha
  )


def _array(layout: Layout, axes: str, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.activations(axes, shape, name='batch'))


def _multiple(count: int, of: int) -> int:
  return max(1, math.ceil(count / of)) * of
