"""How near the compiled programs come to what the device can do: a decoding step, a batch of
scores, a training step.

  python benchmarks/device.py --size=7b --dtype=bfloat16 [--layers=4] [--kernels=10]

First the ceilings are measured: a large matrix product, and a copy, which reads and writes. Then
each program runs on random weights and tokens without padding, and its time is set against what it
must at least multiply (counted from formulas; what a backward pass computes again is counted too)
and at least read. `--kernels` names where the time goes, from a trace of one run.
"""

import collections
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import cases
import compare
from absl import app, flags

flags.DEFINE_enum('size', '3m', list(cases.SIZES), 'Of the model; see cases.py.')
flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of weights and activations.')
flags.DEFINE_integer('layers', 0, 'Layers of the model; 0 is all.')
flags.DEFINE_list('programs', ['decode', 'score', 'train'], 'Which to run.')
flags.DEFINE_list('attention', ['auto'], 'Kernels to try; see models/attention.py.')
flags.DEFINE_list('rows', ['72', '288'], 'Decoded together.')
flags.DEFINE_integer('cache', 384, 'Keys of each when decoding begins; 64 more are decoded.')
flags.DEFINE_integer('prompts', 64, 'Of a batch of scores, with four answers of 8 tokens each.')
flags.DEFINE_integer('prompt_length', 256, 'Of those prompts, tokens.')
flags.DEFINE_integer('train_rows', 8, 'Of a training batch.')
flags.DEFINE_integer('train_length', 1024, 'Tokens of such a row.')
flags.DEFINE_list('remat', ['none'], 'What its backward pass computes again; see config.FineTune.')
flags.DEFINE_integer('repeats', 5, 'Of each.')
flags.DEFINE_integer('kernels', 0, 'How many of the kernels that take most time to name.')

DECODED, ANSWERS, ANSWER = 64, 4, 8


@dataclasses.dataclass(frozen=True)
class Work:
  """What a program must at least do: floating-point operations of matrix products, and bytes read
  once."""

  flops: float
  bytes: float


def main(argv):
  del argv
  args = flags.FLAGS
  import jax

  from weightsteer_jax import models

  config = cases.config_of(args.size, args.layers)
  params = models.init_params(config, jax.random.key(0), args.dtype)
  delta = models.init_delta(
    config, 'lora', jax.random.key(1), rank=cases.RANK, lora_alpha=cases.RANK
  )
  ceilings = measure_ceilings(args.dtype)
  print('ceilings', ceilings, flush=True)
  record = {
    **compare.machine(),
    'size': args.size,
    'dtype': args.dtype,
    'layers': config.num_layers,
    'ceilings': ceilings,
    'result': {},
  }
  for program in args.programs:
    for asked in args.attention:
      chosen = models.with_kernel(config, asked, platform=jax.default_backend(), dtype=args.dtype)
      kernel = chosen.attention
      for variant in {'decode': args.rows, 'train': args.remat}.get(program, ['']):
        run, work, about = PROGRAMS[program](chosen, params, delta, args, variant)
        found = {**about, 'attention': kernel, **measured(run, work, ceilings, args)}
        record['result'][', '.join(filter(None, (program, kernel, variant)))] = found
        print(
          program,
          variant,
          {key: value for key, value in found.items() if key != 'kernels'},
          flush=True,
        )
        for line in found.get('kernels', ()):
          print('  kernel', *line, flush=True)
  compare.save(f'device_{args.size}_{jax.devices()[0].device_kind.split()[-1].lower()}', record)


def measure_ceilings(dtype: str) -> dict[str, float]:
  """FLOP/s of a matrix product of random numbers, bytes per second of a copy."""
  import jax
  import jax.numpy as jnp

  large = jax.default_backend() != 'cpu'
  n = 8192 if large else 2048
  x, y = (jax.random.normal(jax.random.key(i), (n, n), dtype) for i in range(2))
  multiply, copy = jax.jit(lambda x, y: x @ y), jax.jit(jnp.copy)
  product = (
    seconds(lambda: [multiply(x, y) for _ in range(10)], 3) / 10
  )  # One after the other, so that none waits for the host.
  z = jax.random.normal(jax.random.key(2), (2**29 if large else 2**24,), jnp.float32)
  copied = seconds(lambda: [copy(z) for _ in range(10)], 3) / 10
  return {'flops_per_second': 2 * n**3 / product, 'bytes_per_second': 2 * z.nbytes / copied}


def seconds(run: Callable[[], Any], repeats: int = 10) -> float:
  """Median time of a run after a first one."""
  import jax

  times = []
  for _ in range(repeats + 1):
    started = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - started)
  return statistics.median(times[1:])


def measured(
  run: Callable[[], Any], work: Work, ceilings: dict[str, float], args: Any
) -> dict[str, Any]:
  """The time of a run, and its share of the ceilings; with --kernels, where it goes."""
  import jax

  started = time.perf_counter()
  jax.block_until_ready(run())
  first = time.perf_counter() - started
  took = seconds(run, args.repeats)
  found = {
    'compile_seconds': round(first - took, 2),
    'milliseconds': round(1e3 * took, 3),
    'share_of_matmul_peak': round(work.flops / took / ceilings['flops_per_second'], 4),
    'times_the_time_to_read_once': round(took / (work.bytes / ceilings['bytes_per_second']), 3),
    'flops': work.flops,
    'bytes': work.bytes,
  }
  return found | ({'kernels': kernels(run, args.kernels)} if args.kernels else {})


def kernels(run: Callable[[], Any], count: int) -> list[tuple[str, float, int]]:
  """(kernel, milliseconds, calls) of what takes most time on the device."""
  import pathlib

  import jax

  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      jax.block_until_ready(run())
    [path] = pathlib.Path(folder).rglob('*.xplane.pb')
    profile = jax.profiler.ProfileData.from_file(str(path))
  total, calls = collections.Counter(), collections.Counter()
  for plane in profile.planes:
    for line in plane.lines:
      if (
        plane.name.startswith('/device:GPU') and line.name.startswith('Stream')
      ) or line.name.startswith('tf_XLAEigen'):
        for event in line.events:
          total[event.name[:90]] += event.duration_ns / 1e6
          calls[event.name[:90]] += 1
  return [(name, round(spent, 3), calls[name]) for name, spent in total.most_common(count)]


def decode(config, params, delta, args, rows) -> tuple[Callable, Work, dict]:
  """One decoding step of many rows, from the time of 64 steps."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from weightsteer_jax.inference import decoding, generation
  from weightsteer_jax.runtime import sharding, tree

  rows, length = int(rows), args.cache + DECODED
  stops = np.zeros(0, np.int32)
  apart = generation.takes_apart(config, params, sharding.single())

  def start():
    state = decoding.empty_state(
      config, rows, length, DECODED, 1, params['embed']['embedding'].dtype, apart
    )
    ones = jnp.ones(rows, jnp.int32)
    held = dataclasses.replace(
      state.rows,
      positions_B=args.cache * ones,
      limits_B=DECODED * ones,
      coefficients_BC=jnp.ones((rows, 1)),
    )
    return dataclasses.replace(state, rows=held, active_B=ones > 0, finite_B=ones > 0)

  def run():
    return decoding.decode(
      config,
      'greedy',
      params,
      (delta,),
      stops,
      jax.jit(start)(),
      np.int32(0),
      generation.UNLIMITED,
    )[1]

  matmul, body = matmul_parameters(config, params)
  keys = args.cache + DECODED / 2
  cache = (
    2
    * config.num_layers
    * config.num_kv_heads
    * config.head_dim
    * rows
    * keys
    * params['embed']['embedding'].dtype.itemsize
  )
  weights = (matmul + body) * params['embed']['embedding'].dtype.itemsize
  flops = rows * (2 * (matmul + body) + 2 * tree.count(delta) + attention_flops(config, keys))
  return (
    run,
    Work(DECODED * flops, DECODED * (weights + cache)),
    {'rows': rows, 'steps': DECODED, 'keys': keys},
  )


def score(config, params, delta, args, _) -> tuple[Callable, Work, dict]:
  """One batch of prompts with four answers each."""
  import jax

  from weightsteer_jax.inference import packing, scoring
  from weightsteer_jax.runtime import tree

  prompts, length, answers = args.prompts, args.prompt_length, args.prompts * ANSWERS
  batch = jax.device_put(
    packing.random_batch(
      config, prompts=prompts, prompt_tokens=length, completions=ANSWERS, completion_tokens=ANSWER
    )
  )
  matmul, body = matmul_parameters(config, params)
  tokens = prompts * length + answers * (ANSWER - 1)
  flops = (
    tokens * (2 * body + 2 * tree.count(delta))
    + answers * ANSWER * 2 * matmul
    + prompts * length * attention_flops(config, length / 2)
    + answers * (ANSWER - 1) * attention_flops(config, length)
  )

  def run():
    return scoring.score_batch(config, params, (delta,), batch)

  return (
    run,
    Work(flops, (matmul + body) * params['embed']['embedding'].dtype.itemsize),
    {'tokens': tokens},
  )


def train(config, params, delta, args, remat) -> tuple[Callable, Work, dict]:
  """One optimizer step of LoRA on packed rows of four examples each."""
  import jax
  import numpy as np

  from weightsteer_jax import config as configs
  from weightsteer_jax import data
  from weightsteer_jax.finetune import optimizer
  from weightsteer_jax.finetune import step as steps
  from weightsteer_jax.runtime import tree

  options = configs.FineTune(kind='lora', rank=cases.RANK // 2, steps=1000)
  recipe = optimizer.adamw(options)
  rows, length = args.train_rows, args.train_length
  tokens = (
    np.random.default_rng(0).integers(10, config.vocab_size, (1, rows, length)).astype(np.int32)
  )
  segments = np.broadcast_to(1 + 4 * np.arange(length) // length, tokens.shape).astype(np.int32)
  positions = np.broadcast_to(np.arange(length) % (length // 4), tokens.shape).astype(np.int32)
  batch = jax.device_put(
    data.Batch(tokens, tokens, np.ones(tokens.shape, np.float32), positions, segments)
  )
  train_step, schedule = (
    steps.train_step_fn(config, recipe, remat=remat),
    optimizer.schedule(options, peak=1e-4, total=1000),
  )
  make = steps.initial_state_fn(config, 'lora', options.rank, 16.0, recipe)
  held = [make(0)]

  def run():
    held[0], metrics = train_step(held[0], params, batch, schedule, 0)
    return metrics

  matmul, body = matmul_parameters(config, params)
  count = rows * length
  # Forward and the gradients of activations; of the factors their own gradients too.
  flops = count * (
    4 * (body + matmul) + 6 * tree.count(held[0].delta) + 3 * attention_flops(config, length / 8)
  )
  return (
    run,
    Work(flops, 2 * (matmul + body) * params['embed']['embedding'].dtype.itemsize),
    {'tokens': count},
  )


PROGRAMS = {'decode': decode, 'score': score, 'train': train}


def matmul_parameters(config, params) -> tuple[int, int]:
  """(of the head, of all layers): what each token is multiplied with."""
  from weightsteer_jax.runtime import tree

  flat = tree.flatten(params)
  return config.vocab_size * config.width, sum(
    leaf.size
    for path, leaf in flat.items()
    if path.startswith('layers/') and path.endswith('kernel')
  )


def attention_flops(config, keys: float) -> float:
  """Of one query, over so many keys."""
  return 4 * config.num_layers * config.num_heads * config.head_dim * keys


if __name__ == '__main__':
  app.run(main)
