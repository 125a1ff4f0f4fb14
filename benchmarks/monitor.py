"""What watching a fine-tune costs: the time of one look beside the time of one training step.

  python benchmarks/monitor.py [--rank=32] [--rows=8] [--tokens=64] [--directions=1] [--repeats=30]

Steps and looks take turns, each waited for, on the embedded model; the medians and the load of the
machine are printed as JSON. `per_step` is the share of a training step that a look every 10 steps
adds. The operations of both are counted from formulas too, for the embedded model and for
Qwen2.5-7B at the same ranks and 4096 tokens a step: a look multiplies the factors with one another,
which no more depends on the batch than on the size of the dense matrices.

  look   2 (inputs + outputs) rank (rank + sum of the directions' ranks)   at each adapted matrix
  step   6 parameters tokens
"""

import json
import os
import statistics
import time

from absl import app, flags

flags.DEFINE_integer('rank', 32, 'Of the adapter in training; a direction has twice that.')
flags.DEFINE_integer('rows', 8, 'Of a batch.')
flags.DEFINE_integer('tokens', 64, 'Of a row.')
flags.DEFINE_integer('directions', 1, 'Watched for.')
flags.DEFINE_integer('repeats', 30, 'Of each.')

EVERY = 10
# Width, layers, kv width, MLP width, parameters. Source: the config.json of
# Qwen/Qwen2.5-7B-Instruct.
QWEN_7B = dict(width=3584, layers=28, kv=512, mlp=18944, parameters=7.6e9, tokens=4096)


def main(argv):
  del argv
  args = flags.FLAGS
  import jax
  import numpy as np

  from weightsteer_jax import config, data, models
  from weightsteer_jax.experiments import monitoring, organism
  from weightsteer_jax.finetune import optimizer
  from weightsteer_jax.finetune import step as steps
  from weightsteer_jax.runtime import tree

  model = models.load(organism.checkpoint_folder())
  options = config.FineTune(kind='lora', rank=args.rank, steps=1000)
  recipe = optimizer.adamw(options)
  state = steps.initial_state_fn(model.config, 'lora', args.rank, 16.0, recipe)(0)
  random = np.random.default_rng(0)
  directions = {
    f'w{i}': jax.tree.map(
      lambda x: random.standard_normal(x.shape).astype(np.float32),
      models.init_delta(model.config, 'lora', jax.random.key(i), rank=2 * args.rank),
    )
    for i in range(args.directions)
  }
  watch = monitoring.watch(directions, model.config, every=EVERY)
  tokens = random.integers(0, model.config.vocab_size, (1, args.rows, args.tokens)).astype(np.int32)
  positions = np.broadcast_to(np.arange(args.tokens, dtype=np.int32), tokens.shape)
  batch = data.Batch(
    tokens_BT=tokens,
    targets_BT=tokens,
    weights_BT=np.ones(tokens.shape, np.float32),
    positions_BT=positions,
    segment_ids_BT=np.ones(tokens.shape, np.int32),
  )
  train, schedule = (
    steps.train_step_fn(model.config, recipe),
    optimizer.schedule(options, peak=1e-4, total=1000),
  )
  step_times, look_times = [], []
  for _ in range(args.repeats + 2):  # The first compile.
    started = time.perf_counter()
    state, metrics = jax.block_until_ready(train(state, model.params, batch, schedule, 0))
    between = time.perf_counter()
    jax.block_until_ready(watch.look(state.delta))
    step_times.append(between - started)
    look_times.append(time.perf_counter() - between)
  step, look = (statistics.median(times[2:]) for times in (step_times, look_times))
  c = model.config
  own = dict(
    width=c.width,
    layers=c.num_layers,
    kv=c.num_kv_heads * c.head_dim,
    mlp=c.mlp_width,
    parameters=tree.count(model.params),
    tokens=args.rows * args.tokens,
  )
  print(
    json.dumps(
      {
        'load': [round(x, 2) for x in os.getloadavg()],
        'cores': os.cpu_count(),
        'platform': jax.default_backend(),
        'step_ms': round(1e3 * step, 3),
        'look_ms': round(1e3 * look, 3),
        'look_per_step': round(look / step, 5),
        'per_step': round(look / step / EVERY, 6),
        'counted_per_step': _counted(own, args),
        'counted_per_step_qwen_7b': _counted(QWEN_7B, args),
      }
    )
  )


def _counted(size, args):
  """Operations of a look every 10 steps over those of a step."""
  ends = (
    2 * 2 * size['width'] + 2 * (size['width'] + size['kv']) + 3 * (size['width'] + size['mlp'])
  )
  look = 2 * ends * size['layers'] * args.rank * (args.rank + 2 * args.rank * args.directions)
  return float(f'{look / (6 * size["parameters"] * size["tokens"]) / EVERY:.3g}')


if __name__ == '__main__':
  app.run(main)
