"""Training, scoring and generation of a tiny model on meshes of eight CPU devices.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/meshes.py OUTPUT.json 'LAYOUT'...

writes {layout: numbers and compiled programs}. A layout is 'single' (one device), or a mesh and the
placement of the weights, as in '1x4x2 fsdp' or '1x4x2 tensor'. This is a program of its own because
jax fixes the number of devices when it starts.
"""

import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import optax

from weightsteer_jax import config as configs
from weightsteer_jax import models
from weightsteer_jax.data import Batch, Example, batches
from weightsteer_jax.finetune import optimizer
from weightsteer_jax.finetune import step as steps
from weightsteer_jax.inference import Engine, GenerateRequest, ScoreRequest, decoding, live, scoring
from weightsteer_jax.models import placement
from weightsteer_jax.runtime import sharding, tree
from weightsteer_jax.runtime.sharding import Layout

# Every axis that is ever cut divides by eight, and no two of them are equal.
CONFIG = models.ModelConfig(
  vocab_size=96,
  num_layers=2,
  width=32,
  num_heads=16,
  num_kv_heads=8,
  head_dim=4,
  mlp_width=40,
  norm_eps=1e-5,
  rope=models.Rope(1000.0, 'default', 1.0, 1.0, 1.0, 64),
  tied=False,
  qkv_bias=True,
  o_bias=False,
  mlp_bias=False,
  activation='silu',
  max_positions=64,
)
OPTIONS = configs.FineTune(
  kind='lora_embeddings', rank=3, lora_alpha=6.0, learning_rates=(1e-2,), steps=3, warmup_steps=1
)


# {name of a program: its compiled text}, of the layout at hand.
HLO: dict[str, str] = {}


def recorded(name: str, function: Any) -> Any:
  """The function, which on its first call also records its compiled program in HLO."""

  def call(*args):
    if name not in HLO:
      HLO[name] = function.lower(*args).compile().as_text()
    return function(*args)

  return call


def main(output: str, *names: str) -> None:
  results = {}
  for module, name in ((scoring, 'score_batch'), (decoding, 'admit'), (decoding, 'decode')):
    setattr(module, name, recorded(name, getattr(module, name)))
  for name in names:
    layout = layout_of(name)
    model = models.Model(CONFIG, random_params(), pathlib.Path(), 'llama', 'made up')
    model = placement.relay(model, layout)
    HLO.clear()
    results[name] = {**train(model, layout), **evaluate(model, layout), 'hlo': dict(HLO)}
  pathlib.Path(output).write_text(json.dumps(results))


def layout_of(name: str) -> Layout:
  if name == 'single':
    return sharding.single()
  shape, kind = name.split()
  return Layout(sharding.make_mesh(sharding.parse(shape)), fsdp=kind == 'fsdp')


def random_params() -> Any:
  # Larger than initial weights are, so that every one of them matters to the logits.
  return jax.tree.map(lambda x: 4 * x, models.init_params(CONFIG, jax.random.key(0)))


def delta_of(*kinds: str) -> Any:
  """A change of these kinds, in which nothing is zero."""
  leaves = {}
  for kind in kinds:
    delta = models.init_delta(
      CONFIG, kind, jax.random.key(0), rank=OPTIONS.rank, lora_alpha=OPTIONS.lora_alpha
    )
    leaves |= tree.flatten(delta, models.is_delta_leaf)
  draw = np.random.default_rng(len(kinds))

  def random_like(x):
    return 0.1 * draw.normal(size=x.shape).astype(np.float32)

  return jax.tree.map(random_like, tree.unflatten(leaves))


def train(model: models.Model, layout: Layout) -> dict[str, Any]:
  recipe = optimizer.adamw(OPTIONS)
  delta = delta_of(OPTIONS.kind)
  draw = np.random.default_rng(3)
  examples = [
    Example(draw.integers(0, 96, n).astype(np.int32), draw.random(n) < 0.5, str(n))
    for n in range(5, 21)
  ]
  batch = batches.fill(examples, [[i] for i in range(16)], num_rows=16, row_length=24)
  parts = layout.put_batch(batches.microbatches(batch, 2), 'ABT')
  state = steps.TrainState(delta, optimizer.transformation(recipe).init(delta), np.int32(0))
  state = jax.device_put(state, steps.state_shardings(CONFIG, recipe, layout, state))
  schedule = optimizer.schedule(OPTIONS, peak=1e-2, total=OPTIONS.steps)
  metrics = []
  with layout.context():
    step = recorded('train_step', steps.train_step_fn(CONFIG, recipe, layout, remat='full'))
    for number in range(OPTIONS.steps):
      state, measured = step(state, model.params, parts, schedule, 0)
      metrics.append([float(measured['train_loss']), float(measured['grad_norm'])])
      # After the first step Adam's first moment is the gradient, up to a factor.
      if number == 0:
        gradients = lists(optax.tree.get(state.opt_state, 'mu'))
  return {
    'metrics': metrics,
    'gradients': gradients,
    'delta': lists(state.delta),
    'together': train_together(model, layout, batch, schedule),
  }


def train_together(
  model: models.Model, layout: Layout, batch: Batch, schedule: optimizer.Schedule
) -> dict[str, Any]:
  """Metrics of a step of two changes trained as one program, and the second change afterwards."""
  recipe = optimizer.adamw(OPTIONS)
  states = []
  for factor in (1.0, 0.5):
    delta = jax.tree.map(lambda x, factor=factor: factor * x, delta_of(OPTIONS.kind))
    state = steps.TrainState(delta, optimizer.transformation(recipe).init(delta), np.int32(1))
    states.append(jax.device_put(state, steps.state_shardings(CONFIG, recipe, layout, state)))
  parts = layout.put_batch(batches.side_by_side([batches.microbatches(batch, 2)] * 2), '_ABT')
  with layout.context():
    stacked = steps.stack_fn(CONFIG, recipe, layout)(states)
    step = recorded(
      'train_together', steps.train_step_fn(CONFIG, recipe, layout, remat='dots', together=True)
    )
    schedules = jax.tree.map(lambda x: np.stack([x, x]), schedule)
    stacked, measured = step(stacked, model.params, parts, schedules, np.zeros(2, np.int32))
    delta = steps.unstack_fn(CONFIG, recipe, layout)(stacked)[1].delta
  return {
    'metrics': [np.asarray(measured[name]).tolist() for name in ('train_loss', 'grad_norm')],
    'delta': lists(delta),
  }


def evaluate(model: models.Model, layout: Layout) -> dict[str, Any]:
  arms = {
    'one': [(delta_of(OPTIONS.kind), None)],
    'both': [(delta_of(OPTIONS.kind, 'bias'), None), (delta_of(OPTIONS.kind), 0.5)],
  }
  engine = Engine(model, None, arms, batch_size=16, stop_ids=(5,), layout=layout)
  draw = np.random.default_rng(4)
  prompts = [tuple(draw.integers(0, 96, n).tolist()) for n in range(2, 14)]
  grid = [('base', 0.0), ('one', -1.0), ('one', 2.0), ('both', 0.7)]
  score_requests = []
  greedy_requests = []
  for i, prompt in enumerate(prompts):
    for arm, alpha in grid:
      greedy_requests.append(GenerateRequest((i, arm, alpha), prompt, 3 + i, arm, alpha))
      for n in (1, 2):
        key = (i, arm, alpha, n)
        score_requests.append(ScoreRequest(key, prompt, prompt[:n], arm, alpha))
  scores = engine.score(score_requests)
  answers = list(engine.generate(greedy_requests))
  # Rows of one padded length, admitted as slots become free.
  slots = live.Live(engine, slots=8, max_length=64)
  came = {}
  line = [one for one in greedy_requests if 8 < len(one.prompt) <= 16]
  while line or slots.free < slots.slots:
    entering = [line.pop() for _ in range(min(slots.free, len(line)))]
    slots.admit([(one, engine.arms.coefficients(one.arm, one.alpha)) for one in entering])
    came |= {str(row.key): [row.finish, *row.tokens] for row in slots.step(4) if row.finish}
  return {
    'live': came,
    'scores': {str(result.key): result.logprob for result in scores},
    'answers': {str(result.key): [result.finish, *result.tokens] for result in answers},
  }


def lists(values: Any) -> dict[str, Any]:
  """{path: elements in order}, for JSON."""
  return {path: np.asarray(x).ravel().tolist() for path, x in tree.flatten(values).items()}


if __name__ == '__main__':
  main(*sys.argv[1:])
