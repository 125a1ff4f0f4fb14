"""Checkpoints on meshes: what each process reads, what it holds while reading, and what is saved
from there.

The devices are fake ones of the CPU, in processes of their own (run as a script, this file is what
they execute).
"""

import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tracemalloc

import fused
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

MESHES = ('1x4x2', '2x2x2', '4x1x2', '8x1x1')
WEIGHTS = 'model.safetensors'
KINDS = ('plain', 'experts', 'fused')
SIZES = dict(
  vocab_size=512,
  hidden_size=128,
  intermediate_size=256,
  num_hidden_layers=6,
  num_attention_heads=4,
  num_key_value_heads=2,
)

EXPERTS = SIZES | dict(
  intermediate_size=64, num_hidden_layers=2, num_local_experts=3, num_experts_per_tok=2
)


# What the test processes run: facts, as JSON, on the last line of what they print.


def digest_of(path):
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


class Counting:
  """Counts the bytes that are read of stored tensors."""

  def __init__(self):
    from weightsteer_jax.models import stored

    self.bytes, read = 0, stored.Tensors.read

    def counted(tensors, name, part=None):
      array = read(tensors, name, part)
      self.bytes += array.nbytes
      return array

    stored.Tensors.read = counted


def on_meshes(folder: pathlib.Path) -> dict:
  """One process with 8 devices: what is loaded, read and saved on each mesh."""
  import jax

  from weightsteer_jax import models
  from weightsteer_jax.models import families
  from weightsteer_jax.runtime import sharding, tree

  counting, facts = Counting(), {'devices': jax.device_count()}
  for kind in KINDS:
    if kind == 'fused':
      families.FAMILIES['llama'] = fused.family()
    source = folder / kind
    for dtype in ('float32', 'bfloat16'):
      whole = models.load(source, dtype=dtype)
      expected = tree.flatten(jax.tree.map(np.asarray, whole.params))
      for text in MESHES:
        layout = sharding.Layout(sharding.make_mesh(sharding.parse(text)))
        counting.bytes = 0
        got = models.load(source, dtype=dtype, layout=layout)
        placed = tree.flatten(models.param_shardings(got.config, layout))
        facts[f'{kind} {dtype} {text}'] = {
          'read': counting.bytes,
          'cut': sum(not sharding_.is_fully_replicated for sharding_ in placed.values()),
          'differ': [
            path
            for path, x in tree.flatten(got.params).items()
            if np.asarray(x).tobytes() != expected[path].tobytes() or x.sharding != placed[path]
          ],
        }
      for where, model in (('', whole), (' mesh', got)):
        target = folder / f'saved {kind} {dtype}{where}'
        models.save(target, model.config, model.params, family=model.family, like=source)
  return facts


def one_half(folder: pathlib.Path) -> dict:
  """One process with 8 devices, asked for the shards of the first 4 only: bytes read and the most
  memory held."""
  import jax

  from weightsteer_jax import models
  from weightsteer_jax.models import huggingface, stored
  from weightsteer_jax.runtime import sharding

  counting = Counting()
  config, family = models.load_config(folder / 'plain')
  layout = sharding.Layout(sharding.make_mesh(sharding.parse('1x4x2')))
  largest = peak = 0
  with stored.open_tensors(folder / 'plain') as tensors:
    rows = stored.tensor_rows(config, family)
    for path, site in models.sites(config).items():
      placed = layout.weights(site.axes, site.shape, name=path)
      indices = {
        device: index
        for device, index in placed.devices_indices_map(site.shape).items()
        if device in jax.devices()[:4]
      }
      # Beside the count below, what one slice takes while it is read.
      for index in indices.values():
        bounds = [part.indices(size)[:2] for part, size in zip(index, site.shape)]
        before = counting.bytes
        tracemalloc.start()
        piece = stored.read_slice(config, rows[path], tensors, bounds, np.dtype('float32'))
        largest, peak = max(largest, piece.nbytes), max(peak, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        counting.bytes = before
      shards = huggingface.read_shards(config, rows[path], tensors, 'float32', indices)
      assert len(shards) == 4
  return {'read': counting.bytes, 'largest': largest, 'peak': peak}


def one_of_two(folder: pathlib.Path, process: int, port: int) -> dict:
  """One of two processes with 4 devices each, that load and save together."""
  import jax

  jax.distributed.initialize(
    f'127.0.0.1:{port}',
    num_processes=2,
    process_id=process,
    initialization_timeout=60,
    heartbeat_timeout_seconds=20,
    shutdown_timeout_seconds=20,
  )
  from weightsteer_jax import models
  from weightsteer_jax.runtime import sharding
  from weightsteer_jax.runtime.errors import NotFiniteError

  counting = Counting()
  layout = sharding.Layout(sharding.make_mesh(sharding.parse('1x4x2')))
  model = models.load(folder / 'plain', layout=layout)
  facts = {'read': counting.bytes, 'devices': jax.device_count(), 'local': jax.local_device_count()}
  models.save(
    folder / 'saved by two', model.config, model.params, family='llama', like=folder / 'plain'
  )
  facts['saved'] = digest_of(folder / 'saved by two' / WEIGHTS)
  try:
    models.load(folder / 'damaged', layout=layout)
  except NotFiniteError as error:
    facts['refused'] = str(error)
  return facts


# The tests.


def start(devices: int, *arguments) -> subprocess.Popen:
  root = pathlib.Path(__file__).parents[2]
  env = os.environ | {
    'XLA_FLAGS': f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': os.pathsep.join(
      [str(root), str(root / 'tests'), os.environ.get('PYTHONPATH', '')]
    ),
  }
  return subprocess.Popen(
    [sys.executable, __file__, *map(str, arguments)],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def facts_of(*processes: subprocess.Popen) -> list[dict]:
  try:
    outputs = [process.communicate(timeout=120)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert all(process.returncode == 0 for process in processes), '\n'.join(outputs)
  return [json.loads(output.strip().splitlines()[-1]) for output in outputs]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with a checkpoint, 'plain', the same one 'fused' and 'damaged', and one with
  'experts'."""
  import tiny

  folder = tmp_path_factory.mktemp('sharded')
  tiny.make(folder / 'plain', family='llama', attention_bias=True, **SIZES)
  tiny.make(folder / 'experts', family='mixtral', **EXPERTS)
  config, tensors = (
    (folder / 'plain' / 'config.json').read_text(),
    load_file(folder / 'plain' / WEIGHTS),
  )
  damaged = {name: tensor.copy() for name, tensor in tensors.items()}
  damaged['model.layers.2.mlp.up_proj.weight'][-1, -1] = (
    np.nan
  )  # On one device of the second process.
  for name, content in (('fused', fused.tensors(tensors)), ('damaged', damaged)):
    (folder / name).mkdir()
    (folder / name / 'config.json').write_text(config)
    save_file(content, folder / name / WEIGHTS, metadata={'format': 'pt'})
  return folder


@pytest.fixture(scope='module')
def meshes(folder):
  return facts_of(start(8, 'on_meshes', folder))[0]


def weights_bytes(folder, kind='plain'):
  return sum(tensor.nbytes for tensor in load_file(folder / kind / WEIGHTS).values())


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('kind', KINDS)
def test_every_mesh_holds_what_one_device_holds_bit_for_bit(folder, meshes, kind, dtype):
  assert meshes['devices'] == 8
  for text in MESHES:
    facts = meshes[f'{kind} {dtype} {text}']
    assert facts['differ'] == [] and (facts['cut'] > 0) == (text != '8x1x1')
    assert facts['read'] == weights_bytes(folder, kind), (
      'each slice is read once, on however many devices it lies'
    )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_mesh_saves_the_file_that_one_device_saves(folder, meshes, kind, dtype):
  saved = digest_of(folder / f'saved {kind} {dtype}' / WEIGHTS)
  assert digest_of(folder / f'saved {kind} {dtype} mesh' / WEIGHTS) == saved
  if dtype == 'float32':
    original, ours = (
      load_file(folder / kind / WEIGHTS),
      load_file(folder / f'saved {kind} {dtype}' / WEIGHTS),
    )
    assert original.keys() == ours.keys() and all(
      np.array_equal(original[name], ours[name]) for name in ours
    )


def test_half_of_the_devices_read_half_of_the_file_and_hold_little_of_it(folder):
  """On 4 (fsdp) x 2 (tensor) devices, the first four hold half of every parameter that is cut along
  the width.

  What is held beside a slice is a layer of it as stored, once more on its way through safetensors,
  and bookkeeping.
  """
  facts, total = facts_of(start(8, 'one_half', folder))[0], weights_bytes(folder)
  print(facts)
  assert 0.5 * total <= facts['read'] < 0.51 * total
  assert facts['largest'] < total / 16 and facts['peak'] < 1.6 * facts['largest'] + 50_000


def test_two_processes_read_a_half_each_and_save_together(folder):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  total, original = weights_bytes(folder), load_file(folder / 'plain' / WEIGHTS)
  for fact in facts_of(*(start(4, 'one_of_two', folder, process, port) for process in range(2))):
    assert (fact['devices'], fact['local']) == (8, 4)
    assert 0.5 * total <= fact['read'] < 0.51 * total
    assert fact['saved'] == digest_of(folder / 'saved by two' / WEIGHTS), (
      'each returns when the file is whole'
    )
    assert 'layers/mlp/up/kernel' in fact['refused']
  saved = load_file(folder / 'saved by two' / WEIGHTS)
  assert saved.keys() == original.keys() and all(
    np.array_equal(saved[name], original[name]) for name in saved
  )


if __name__ == '__main__':
  run, *arguments = sys.argv[1:]
  arguments = [
    int(argument) if argument.isdigit() else pathlib.Path(argument) for argument in arguments
  ]
  print(
    json.dumps(
      {'on_meshes': on_meshes, 'one_half': one_half, 'one_of_two': one_of_two}[run](*arguments)
    )
  )
