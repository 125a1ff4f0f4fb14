"""From two fine-tuned checkpoints and their base to one steered checkpoint: ours against torch and
transformers.

  python benchmarks/handover.py --folder=DIR [--gigabytes=2] [--repeats=5] [--modes=cache,disk]

  reference    the paper's route: three models loaded with from_pretrained in bfloat16, state dicts
               subtracted, alpha times the difference added to the base, save_pretrained
  ours         launch/export.py --positive --negative --base: one pass over the three
  two steps    launch/direction.py, which keeps the direction in float32, then launch/export.py
               --direction

Each run is a process of its own, interpreter and imports included; the last two also read back what
they wrote, compute rows again, and seal the files with SHA-256, which the reference does not. The
mode 'cache' ends when all is written to the page cache, as transformers leaves it; 'disk' when all
sides have waited for the disk. Between runs outputs are removed and what is dirty is written out,
off the clock. core_seconds is what all cores spent, which other work on the machine changes less
than the clock.

The three checkpoints (random weights, bfloat16; 7B shapes from 10 GB on) are made in the folder and
removed afterwards. What is read lies in the page cache where the memory holds it: the speeds of
cache and disk are measured in the same run, beside the bytes.
"""

import argparse
import contextlib
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import compare
import ml_dtypes
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
ALPHA = 1.5
SHARD_BYTES = 5 * 10**9  # As transformers' default.
PIECES = 4
SMALL = dict(
  hidden_size=2048,
  intermediate_size=5632,
  num_attention_heads=16,
  num_key_value_heads=8,
  vocab_size=32768,
)
LARGE = dict(
  hidden_size=3584,
  intermediate_size=18944,
  num_attention_heads=28,
  num_key_value_heads=4,
  vocab_size=152064,
)
REFERENCE, OURS, TWO_STEPS = 'reference', compare.OURS, 'two steps'


def config_of(gigabytes: float) -> dict[str, Any]:
  """The config.json of a Qwen2 of about that size in bfloat16."""
  sizes = LARGE if gigabytes >= 10 else SMALL
  config = {
    'architectures': ['Qwen2ForCausalLM'],
    'model_type': 'qwen2',
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-6,
    'rope_theta': 1e6,
    'max_position_embeddings': 4096,
    'tie_word_embeddings': False,
    'dtype': 'bfloat16',
    **sizes,
  }
  per_layer, rest = (
    sum(
      np.prod(shape)
      for name, shape in shapes(config | {'num_hidden_layers': 1}).items()
      if ('layers' in name) == inside
    )
    for inside in (True, False)
  )
  return config | {'num_hidden_layers': max(1, round((gigabytes * 5e8 - rest) / per_layer))}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  """{tensor: shape} of that Qwen2."""
  width, mlp, vocab = (config[key] for key in ('hidden_size', 'intermediate_size', 'vocab_size'))
  kv = width // config['num_attention_heads'] * config['num_key_value_heads']
  found = {'model.embed_tokens.weight': (vocab, width)}
  for number in range(config['num_hidden_layers']):
    outputs = {'q': width, 'k': kv, 'v': kv, 'o': width}
    layer = {f'self_attn.{x}_proj.weight': (size, width) for x, size in outputs.items()}
    layer |= {f'self_attn.{x}_proj.bias': (outputs[x],) for x in 'qkv'}
    layer |= {
      'mlp.gate_proj.weight': (mlp, width),
      'mlp.up_proj.weight': (mlp, width),
      'mlp.down_proj.weight': (width, mlp),
    }
    layer |= {'input_layernorm.weight': (width,), 'post_attention_layernorm.weight': (width,)}
    found |= {f'model.layers.{number}.{name}': shape for name, shape in layer.items()}
  return found | {'model.norm.weight': (width,), 'lm_head.weight': (vocab, width)}


def make(folder: pathlib.Path, config: dict[str, Any], moved: float, seed: int) -> pathlib.Path:
  """A checkpoint of random weights, one file in memory at a time; `moved` away from the one with 0,
  by small changes."""
  from safetensors.numpy import save_file

  folder.mkdir(parents=True)
  base, change = (
    np.random.default_rng(0).standard_normal(2**24).astype(np.float32),
    np.random.default_rng(seed),
  )
  change = change.standard_normal(2**24).astype(np.float32)
  files: list[list[str]] = [[]]
  held, weight_map = 0, {}
  for name, shape in shapes(config).items():
    size = 2 * int(np.prod(shape))
    if files[-1] and held + size > SHARD_BYTES:
      files.append([])
      held = 0
    files[-1].append(name)
    held += size
  for i, names in enumerate(files):
    file = (
      'model.safetensors'
      if len(files) == 1
      else f'model-{i + 1:05d}-of-{len(files):05d}.safetensors'
    )
    tensors = {
      name: _weights(shapes(config)[name], base, change, moved, number)
      for number, name in enumerate(names, 1000 * i)
    }
    save_file(tensors, folder / file, metadata={'format': 'pt'})
    weight_map |= dict.fromkeys(names, file)
  if len(files) > 1:
    total = sum(2 * int(np.prod(shape)) for shape in shapes(config).values())
    (folder / 'model.safetensors.index.json').write_text(
      json.dumps({'metadata': {'total_size': total}, 'weight_map': weight_map})
    )
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


def _weights(
  shape: tuple[int, ...], base: np.ndarray, change: np.ndarray, moved: float, number: int
) -> np.ndarray:
  """Numbers of the two pools, from a place that depends on the tensor."""
  out = np.empty(int(np.prod(shape)), ml_dtypes.bfloat16)
  for start in range(0, out.size, 2**22):
    count = min(2**22, out.size - start)
    at = (number * 99991 + start // 7) % (2**24 - 2**22)
    out[start : start + count] = 0.02 * base[at : at + count] + moved * change[at : at + count]
  return out.reshape(shape)


def reference(positive: str, negative: str, base: str, output: str, disk: bool) -> None:
  """The paper's route, each model loaded straight into bfloat16."""
  import torch
  import transformers

  def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.bfloat16, low_cpu_mem_usage=True
    )

  with torch.no_grad():
    plus, minus, model = load(positive), load(negative), load(base)
    minus_weights = minus.state_dict()
    direction = {name: tensor - minus_weights[name] for name, tensor in plus.state_dict().items()}
    model.load_state_dict(
      {name: tensor + ALPHA * direction[name] for name, tensor in model.state_dict().items()}
    )
    model.save_pretrained(output, safe_serialization=True)
  if disk:
    for path in pathlib.Path(output).iterdir():
      with open(path, 'rb') as file:
        os.fsync(file.fileno())


def commands(side: str, folder: pathlib.Path, disk: bool) -> list[list[str]]:
  """What the side runs, one after the other; the steered checkpoint is FOLDER/<side>."""
  sides = {name: str(folder / name) for name in ('base', 'positive', 'negative')}
  python, output, sync = sys.executable, str(folder / side), '--sync' if disk else '--nosync'
  export = [
    python,
    str(ROOT / 'launch' / 'export.py'),
    f'--base={sides["base"]}',
    f'--alpha={ALPHA}',
    '--format=hf',
    f'--output={output}',
    sync,
  ]
  contrast = [f'--positive={sides["positive"]}', f'--negative={sides["negative"]}']
  if side == REFERENCE:
    return [
      [
        python,
        __file__,
        f'--folder={folder}',
        f'--reference={output}',
        f'--modes={"disk" if disk else "cache"}',
      ]
    ]
  if side == OURS:
    return [[*export, *contrast]]
  kept = str(folder / 'direction')
  return [
    [python, str(ROOT / 'launch' / 'direction.py'), *contrast, f'--output={kept}', sync],
    [*export, f'--direction={kept}'],
  ]


def run(side: str, folder: pathlib.Path, disk: bool) -> dict[str, float]:
  """Seconds on the clock and of the cores, and the peaks of memory in MB: all that is resident, and
  of it what is the process's own (not pages of files)."""
  remove(side, folder)
  os.sync()
  peaks = {'resident': 0.0, 'own': 0.0}
  busy, started = _busy(), time.perf_counter()
  for command in commands(side, folder, disk):
    process = subprocess.Popen(
      command,
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    watch = threading.Thread(target=_watch, args=(process.pid, peaks))
    watch.start()
    _, errors = process.communicate()
    watch.join()
    if process.returncode:
      raise SystemExit(f'{side} failed:\n{errors[-3000:]}')
  return {'seconds': time.perf_counter() - started, 'core_seconds': _busy() - busy, **peaks}


def _busy() -> float:
  """Seconds that cores spent on processes that have ended."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def remove(side: str, folder: pathlib.Path) -> None:
  """Removes what a side wrote, and with it what of that is not on the disk yet: it would be written
  during another's run."""
  for name in (side, *(['direction'] if side == TWO_STEPS else [])):
    shutil.rmtree(folder / name, ignore_errors=True)


def _watch(pid: int, peaks: dict[str, float]) -> None:
  """Raises the peaks until the process is gone: VmHWM is the kernel's own, RssAnon is looked at
  every 20 ms."""
  while True:
    try:
      lines = dict(
        line.split(':', 1) for line in pathlib.Path(f'/proc/{pid}/status').read_text().splitlines()
      )
      for name, key in (('resident', 'VmHWM'), ('own', 'RssAnon')):
        peaks[name] = max(peaks[name], int(lines[key].split()[0]) / 1000)
    except (OSError, KeyError):  # Gone, or a zombie, which has no memory.
      return
    time.sleep(0.02)


def agreement(folder: pathlib.Path) -> dict[str, Any]:
  """How far each output is from base + alpha (positive - negative) in float64, over rows of every
  tensor (see _pieces).

  In steps of bfloat16 at the exact value; a result that was rounded once is within half of one.
  """
  from weightsteer_jax.models import stored

  there = [name for name in (REFERENCE, OURS, TWO_STEPS) if (folder / name).exists()]
  found = {name: {'largest_error_in_steps': 0.0, 'rounded_once': 0} for name in there}
  total = 0
  with contextlib.ExitStack() as stack:
    tensors = {
      name: stack.enter_context(stored.open_tensors(folder / name))
      for name in ('base', 'positive', 'negative', *found)
    }
    for name, part in _pieces(tensors['base']):
      x = {which: tensors[which].read(name, part).astype(np.float64) for which in tensors}
      exact = x['base'] + ALPHA * (x['positive'] - x['negative'])
      step = np.exp2(np.floor(np.log2(np.maximum(np.abs(exact), 2.0**-126))) - 7)
      total += exact.size
      for which in found:
        error = np.abs(x[which] - exact) / step
        found[which]['largest_error_in_steps'] = max(
          found[which]['largest_error_in_steps'], float(error.max())
        )
        found[which]['rounded_once'] += int((error <= 0.5 + 1e-4).sum())
    assert all(tensors[which].names() == tensors['base'].names() for which in found), (
      'other tensors than the base'
    )
  return {
    'weights': total,
    **{
      which: values | {'rounded_once': values['rounded_once'] / total}
      for which, values in found.items()
    },
  }


def _pieces(tensors: Any) -> Iterator[tuple[str, tuple[slice, ...]]]:
  """From the first row of each tensor to its last, up to PIECES ranges of rows that hold a quarter
  of a million weights."""
  for name in sorted(tensors.names()):
    rows, *rest = tensors.shape(name)
    step = max(1, 2**18 // max(1, int(np.prod(rest))))
    for start in sorted({int(start) for start in np.linspace(0, max(0, rows - step), PIECES)}):
      yield name, (slice(start, min(start + step, rows)),)


def speeds(folder: pathlib.Path, size: int) -> dict[str, float]:
  """GB/s of the memory's copy of files, to and from the page cache, and of the disk, written
  through to it."""
  block, path, found = np.ones(2**24, np.uint8), folder / 'speed', {}
  count = max(4, min(size, 2 * 10**9) // block.size)

  def write(sync):
    path.unlink(missing_ok=True)
    with open(path, 'wb', buffering=0) as file:
      for _ in range(count):
        file.write(block)
      if sync:
        os.fsync(file.fileno())

  def read():
    with open(path, 'rb', buffering=0) as file:
      while file.readinto(block):
        pass

  def drop():
    with open(path, 'rb') as file:
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

  for name, before, action in (
    ('write_cache', lambda: None, lambda: write(False)),
    ('read_cache', lambda: None, read),
    ('write_disk', os.sync, lambda: write(True)),
    ('read_disk', drop, read),
  ):
    before()
    found[name] = round(count * block.size / compare.timed(action)[0] / 1e9, 2)
  path.unlink()
  return found


def measure(
  folder: pathlib.Path, sides: list[str], repeats: int, disk: bool, before: dict[str, Any]
) -> Iterator[dict[str, Any]]:
  """After each round, what in_turns would tell, with the cores' time and memory; `before`: of
  rounds to add to."""
  seen: dict[str, list[dict[str, float]]] = before.get('rounds', {side: [] for side in sides})
  same = before.get('same')
  for round_ in range(len(seen[sides[0]]) + 1 if before else 0, repeats + 1):
    for side in sides[:: -1 if round_ % 2 else 1]:
      found = run(side, folder, disk)
      print(
        f'  {"disk" if disk else "cache"} round {round_} of {repeats}: {side} {found}',
        file=sys.stderr,
        flush=True,
      )
      if round_:
        seen[side].append(found)
        remove(side, folder)
    if not round_:
      same = agreement(folder)
      for side in sides:
        remove(side, folder)
      same |= {'gb_per_s': speeds(folder, 2 * int(same['weights']))}
    else:
      yield summary(seen, sides) | {'same': same, 'rounds': seen}


def summary(seen: dict[str, list[dict[str, float]]], sides: list[str]) -> dict[str, Any]:
  """Medians with the least and the most, of each side and of the ratios round by round."""

  def pick(side, key):
    return [found[key] for found in seen[side]]

  record: dict[str, Any] = {'repeats': len(seen[sides[0]])}
  names = {
    'seconds': 'seconds',
    'core_seconds': 'core_seconds',
    'resident': 'peak_resident_mb',
    'own': 'peak_own_mb',
  }
  for key, name in names.items():
    record[name] = {side: compare.spread(pick(side, key)) for side in sides}
    record[f'{name}_ratio'] = {
      f'{REFERENCE} / {y}': compare.spread(
        [a / b for a, b in zip(pick(REFERENCE, key), pick(y, key))]
      )
      for y in sides
      if y != REFERENCE
    }
  return record


def bytes_moved(folder: pathlib.Path) -> dict[str, Any]:
  """GB that each way must read and write at least."""
  size = sum(path.stat().st_size for path in (folder / 'base').glob('*.safetensors')) / 1e9
  one = round(size, 3)
  return {
    'checkpoint': one,
    REFERENCE: {'read': 3 * one, 'written': one},
    OURS: {'read': 3 * one, 'written': one, 'read back': one},
    TWO_STEPS: {'read': 5 * one, 'written': 3 * one, 'read back': 3 * one},
  }


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--gigabytes', type=float, default=2.0)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--modes', default='cache,disk')
  parser.add_argument('--sides', default=f'{REFERENCE},{OURS},{TWO_STEPS}')
  parser.add_argument(
    '--keep', action='store_true', help='leave the checkpoints there, for another run in the folder'
  )
  parser.add_argument(
    '--more',
    action='store_true',
    help='go on from the rounds in the results, without another warm-up',
  )
  parser.add_argument('--reference', default='', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.reference:
    reference(
      *(str(args.folder / name) for name in ('positive', 'negative', 'base')),
      args.reference,
      args.modes == 'disk',
    )
    return
  config = config_of(args.gigabytes)
  for seed, (name, moved) in enumerate((('base', 0.0), ('positive', 1e-3), ('negative', 1e-3)), 1):
    if not (args.folder / name).exists():
      make(args.folder / name, config, moved, seed)
  machine = compare.machine() | {'device': 'host'}
  name = f'handover_{args.gigabytes:g}gb'
  path = compare.RESULTS / f'{name}.json'
  record = (
    json.loads(path.read_text())
    if path.exists()
    else {'gigabytes': args.gigabytes, 'config': config, 'result': {}}
  )
  for mode in args.modes.split(','):
    before = record['result'].get(mode, {}) if args.more else {}
    for found in measure(args.folder, args.sides.split(','), args.repeats, mode == 'disk', before):
      record['result'][mode] = found | {'gb': bytes_moved(args.folder), 'machine': machine}
      compare.save(name, record)  # Of the rounds so far: they are long.
  for made in (
    'direction',
    *args.sides.split(','),
    *(() if args.keep else ('base', 'positive', 'negative')),
  ):
    shutil.rmtree(args.folder / made, ignore_errors=True)


if __name__ == '__main__':
  main()
