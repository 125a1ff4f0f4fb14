"""The growth of the cost of scoring with alphas, questions, prompt length, layers and devices.

  python benchmarks/growth.py

Takes a few minutes on two CPU cores; writes results/growth.json and growth.png. One size grows at a
time. Seconds are the median of three second runs of the same requests, so without compilation.
Devices are fake: for them the compiler's own count of operations and of memory on each device is
given, not a time. A slope is the slope of the logarithms, over the larger half of the sizes: 1 is
proportional.
"""

import os
import statistics
import sys
from typing import Any

import cases
import compare
from absl import app, flags

flags.DEFINE_integer('devices', 0, 'Of this process, which then tells what each has to do.')

SIZES = {
  'alphas': (1, 3, 9, 27),
  'questions': (4, 8, 16, 32),
  'prompt_length': (32, 64, 128, 256, 512),
  'layers': (2, 4, 8, 16),
}
USUAL = {'alphas': 3, 'questions': 8, 'prompt_length': 64, 'layers': 4}
DEVICES = (1, 2, 4, 8)
# What the slope ought to be, and why.
WHY = {
  'alphas': (
    'each alpha but 0 is one more set of rows through the same program; nothing is compiled or '
    'loaded again; more rows fill batches better'
  ),
  'questions': (
    'rows are filled with questions to the brim, and batches are alike; what the host does once is '
    'the constant'
  ),
  'prompt_length': (
    'products with weights grow with it, attention with its square: at 512 tokens half of the time '
    'of a model this narrow'
  ),
  'layers': "each layer costs the same; the head, and what the host does, are the constant",
  'devices': (
    "rows are cut over devices, weights are whole on each: operations fall as 1 / devices, the "
    "weights' memory stays"
  ),
}


def main(argv):
  del argv
  if flags.FLAGS.devices:
    return print('FOUND', *on_devices(flags.FLAGS.devices))
  found = {
    axis: {size: seconds(**USUAL | {axis: size}) for size in sizes} for axis, sizes in SIZES.items()
  }
  found['devices'] = {n: of_process(n) for n in DEVICES}
  result = {
    axis: {'cost': costs, 'slope': round(slope(costs), 2), 'why': WHY[axis]}
    for axis, costs in found.items()
  }
  compare.save('growth', {**compare.machine(), 'usual': USUAL, 'result': result})
  draw(result)


def model_of(layers: int) -> tuple[Any, Any, Any]:
  """(config, parameters, delta) of the 3M model with that many layers."""
  import jax

  from weightsteer_jax import models

  config = cases.config_of('3m', layers)
  return (
    config,
    models.init_params(config, jax.random.key(0)),
    models.init_delta(config, 'lora', jax.random.key(1), rank=cases.RANK),
  )


def seconds(*, alphas: int, questions: int, prompt_length: int, layers: int) -> float:
  """Of a second run of these requests."""
  import types

  import numpy as np

  from weightsteer_jax import inference

  config, params, delta = model_of(layers)
  engine = inference.Engine(
    types.SimpleNamespace(config=config, params=params), None, {'steered': [(delta, None)]}
  )
  asked = cases.questions(questions, vocabulary=config.vocab_size, prompt=prompt_length, choices=4)
  requests = [
    inference.ScoreRequest((alpha, i, j), question.prompt, choice, 'steered', float(alpha))
    for alpha in np.linspace(-2, 2, alphas + 1)[1:]
    for i, question in enumerate(asked)
    for j, choice in enumerate(question.choices)
  ]
  times = [compare.timed(lambda: list(engine.score(requests)))[0] for _ in range(4)]
  print(
    f'alphas {alphas}, questions {questions}, prompt {prompt_length}, layers {layers}: {times}',
    file=sys.stderr,
    flush=True,
  )
  return float(f'{statistics.median(times[1:]):.4g}')


def of_process(devices: int) -> dict[str, float]:
  """What a process with that many fake devices finds (they are made when jax starts)."""
  import subprocess

  env = os.environ | {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
  done = subprocess.run(
    [sys.executable, __file__, f'--devices={devices}'],
    env=env,
    check=True,
    capture_output=True,
    text=True,
  )
  flops, weights, temporaries = map(float, done.stdout.split('FOUND ')[1].split())
  return {'flops': flops, 'weight_bytes': weights, 'temporary_bytes': temporaries}


def on_devices(count: int) -> tuple[float, int, int]:
  """(operations, bytes of weights, bytes of temporaries) of one device.

  They are for one batch whose rows are cut over all devices.
  """
  import jax

  from weightsteer_jax import models
  from weightsteer_jax.inference import packing, scoring
  from weightsteer_jax.runtime import sharding

  config, params, delta = model_of(USUAL['layers'])
  layout = sharding.Layout(sharding.make_mesh({'data': count, 'fsdp': 1, 'tensor': 1}), fsdp=False)
  params = jax.device_put(params, models.param_shardings(config, layout))
  batch = packing.random_batch(
    config, prompts=64, prompt_tokens=64, completions=4, completion_tokens=8, groups=count
  )
  with layout.context():
    compiled = scoring.score_batch.lower(
      config, params, (delta,), layout.put_batch(batch)
    ).compile()
  return (
    compiled.cost_analysis()['flops'],
    sharding.bytes_on_device(params),
    compiled.memory_analysis().temp_size_in_bytes,
  )


def slope(costs: dict[int, Any]) -> float:
  """Of the logarithms, over the larger half of the sizes."""
  import numpy as np

  sizes = list(costs)[len(costs) // 2 - 1 :]
  values = [
    costs[size]['flops'] if isinstance(costs[size], dict) else costs[size] for size in sizes
  ]
  return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def draw(result: dict[str, Any]) -> None:
  """growth.png: a panel for each axis, beside a line of the slope that proportion has."""
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(1, len(result), figsize=(15, 3.2), layout='constrained')
  for axis, (name, found) in zip(axes, result.items()):
    sizes = list(found['cost'])
    values = [
      cost['flops'] / 1e9 if isinstance(cost, dict) else cost for cost in found['cost'].values()
    ]
    sign = -1 if name == 'devices' else 1
    axis.loglog(sizes, values, 'o-', label='counted' if name == 'devices' else 'measured')
    axis.loglog(
      sizes,
      [values[-1] * (size / sizes[-1]) ** sign for size in sizes],
      ':',
      color='grey',
      label='proportional',
    )
    axis.set(
      xlabel=name.replace('_', ' '),
      title=f'slope {found["slope"]}',
      xticks=sizes,
      xticklabels=sizes,
      ylabel='GFLOP of each device' if name == 'devices' else 'seconds',
    )
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8)
  figure.savefig(compare.RESULTS.parent / 'growth.png', dpi=110)


if __name__ == '__main__':
  app.run(main)
