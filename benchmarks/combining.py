"""Two directions of rank 64 in the shapes of a 7B model, combined and compared, beside torch.

  python benchmarks/combining.py [--folder=DIR] [--layers=32]

Ours goes from files to a file, or from files to a cosine, in a process of its own whose memory is
measured. torch's side has the same factors in memory and multiplies them out, module by module:
the difference of the two changes, and their inner product. Factors are random.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

RANK = 64
# Llama 2 7B.
SHAPES = {'width': 4096, 'mlp': 11008, 'heads': 32}


def config(layers: int):
  """A model's config, without weights."""
  from weightsteer_jax import models

  return models.ModelConfig(
    vocab_size=32000,
    num_layers=layers,
    width=SHAPES['width'],
    num_heads=SHAPES['heads'],
    num_kv_heads=SHAPES['heads'],
    head_dim=SHAPES['width'] // SHAPES['heads'],
    mlp_width=SHAPES['mlp'],
    norm_eps=1e-5,
    rope=models.Rope(10000.0, 'default', 1.0, 1.0, 1.0, 4096),
    tied=False,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    activation='silu',
    max_positions=4096,
  )


def make(folder: pathlib.Path, seed: int, layers: int) -> None:
  """Writes a direction with random factors."""
  import jax

  from weightsteer_jax import directions, models

  made = config(layers)
  delta = models.init_delta(made, 'lora', jax.random.key(seed), rank=RANK)
  draw = np.random.default_rng(seed)

  def random_like(leaf):
    return 0.02 * draw.standard_normal(leaf.shape, np.float32)

  base = directions.Base(made, 'llama', 'made up', '', '')
  meta = {'kind': 'random', 'base': base.to_json(), 'sources': []}
  directions.save(folder, directions.Direction(jax.tree.map(random_like, delta), meta), sync=False)


def ours(job: str, x: pathlib.Path, y: pathlib.Path, output: pathlib.Path) -> None:
  """Prints seconds and peak memory of one job of ours, imports left out."""
  import jax

  from weightsteer_jax import directions
  from weightsteer_jax.directions import combining

  del jax
  before = peak()
  started = time.perf_counter()
  told = {}
  if job == 'combine':
    terms = [directions.load(x, unread=True), directions.load(y, unread=True)]
    recipe = combining.from_terms('x:1,y:-1')
    directions.save(output, combining.combine(terms, recipe), sync=False)
  else:
    told['cosine'] = directions.cosine(directions.load(x), directions.load(y))
  told['seconds'] = time.perf_counter() - started
  told['gigabytes'] = peak()
  told['gigabytes_before'] = before
  print(json.dumps(told))


def peak() -> float:
  """The most memory that this process has held, GiB; rusage would count its parent's."""
  [line] = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]
  return int(line.split()[1]) / 2**20


def theirs(x: pathlib.Path, y: pathlib.Path) -> dict[str, float]:
  """Seconds of torch on dense changes, module by module, factors in memory before."""
  import torch
  from safetensors.torch import load_file

  factors = [load_file(folder / 'direction.safetensors') for folder in (x, y)]
  names = sorted({name.rpartition('.')[0] for name in factors[0]})
  seconds = {'difference': 0.0, 'cosine': 0.0}
  products = np.zeros(3)
  for name in names:
    for layer in range(factors[0][f'{name}.a'].shape[0]):
      dense = []
      started = time.perf_counter()
      for tensors in factors:
        a, b = tensors[f'{name}.a'][layer], tensors[f'{name}.b'][layer]
        dense.append(a.reshape(-1, RANK) @ b.reshape(RANK, -1))
      multiplied = time.perf_counter() - started
      started = time.perf_counter()
      difference = dense[0] - dense[1]
      seconds['difference'] += multiplied + time.perf_counter() - started
      del difference
      started = time.perf_counter()
      one, two = dense[0].reshape(-1), dense[1].reshape(-1)
      products += [float(torch.dot(u, v)) for u, v in ((one, two), (one, one), (two, two))]
      seconds['cosine'] += multiplied + time.perf_counter() - started
  seconds['value'] = float(products[0] / np.sqrt(products[1] * products[2]))
  return seconds


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--folder', default='')
  parser.add_argument('--layers', type=int, default=32)
  parser.add_argument('--job', default='')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(args.folder or temporary)
    x, y = folder / 'x', folder / 'y'
    if args.job:
      ours(args.job, x, y, folder / 'combined')
      return
    for seed, path in enumerate((x, y)):
      if not path.exists():
        make(path, seed, args.layers)
    command = [sys.executable, __file__, f'--folder={folder}', f'--layers={args.layers}']
    for job in ('combine', 'compare'):
      rounds = []
      for _ in range(3):
        done = subprocess.run(
          [*command, f'--job={job}'], capture_output=True, text=True, check=True
        )
        rounds.append(json.loads(done.stdout.splitlines()[-1]))
        subprocess.run(['rm', '-rf', folder / 'combined'], check=True)
      seconds = sorted(one['seconds'] for one in rounds)
      memory = max(one['gigabytes'] for one in rounds)
      imports = rounds[0]['gigabytes_before']
      value = f', cosine {rounds[0]["cosine"]:.6f}' if job == 'compare' else ''
      print(
        f'{job}: {seconds[1]:.2f} s ({seconds[0]:.2f} to {seconds[2]:.2f}), {memory:.2f} GiB at '
        f'most, {imports:.2f} of them imports{value}'
      )
    told = theirs(x, y)
    print(
      f'torch, dense: difference {told["difference"]:.1f} s, dot products {told["cosine"]:.1f} s, '
      f'cosine {told["value"]:.6f}'
    )


if __name__ == '__main__':
  main()
