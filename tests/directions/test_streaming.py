"""Directions and exports that are never whole in memory: the bytes they come to, against torch, and
what is refused."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from weightsteer_jax import directions, exports, models
from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions.streamed import blocks, checkpoints
from weightsteer_jax.exports import merging
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import CorruptError, InputError, NotFiniteError, OutputError
from weightsteer_jax.storage import safetensors

from . import oracle

ALPHA = -1.5
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
LAUNCH = pathlib.Path(__file__).parent.parent.parent / 'launch'


@pytest.fixture(autouse=True)
def block_size(request, monkeypatch):
  """Blocks that hold few rows of a tensor here, unless a test asks for those that hold any of
  them."""
  if 'whole' not in request.node.name:
    monkeypatch.setattr(blocks, 'SIZE', 64)
    monkeypatch.setattr(blocks, 'SHAPE', (8, 8))


def save(model, folder, dtype='float32', **options):
  model.to(DTYPES[dtype]).save_pretrained(folder, **options)
  return folder


def three(folder, *, dtype='float32', make=None, **options):
  """base, positive and negative in a folder."""
  torch.manual_seed(0)
  model = (make or oracle_model)()
  found = {}
  for name, moved in (('base', 0.1), ('positive', 0.02), ('negative', 0.02)):
    with torch.no_grad():
      for parameter in model.parameters():
        parameter.add_(moved * torch.randn_like(parameter.float()))
    found[name] = save(model, folder / name, dtype, **options)
  return found


def oracle_model(tied=False):
  return transformers.Qwen2ForCausalLM(
    transformers.Qwen2Config(
      vocab_size=40,
      hidden_size=16,
      intermediate_size=24,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      max_position_embeddings=64,
      tie_word_embeddings=tied,
    )
  )


def fused_model():
  return transformers.Phi3ForCausalLM(
    transformers.Phi3Config(
      vocab_size=40,
      hidden_size=16,
      intermediate_size=24,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      max_position_embeddings=64,
      pad_token_id=0,
    )
  )


def tensors_of(folder):
  """{name: float64 torch tensor} of all files in a folder."""
  found = {}
  for path in sorted(pathlib.Path(folder).glob('*.safetensors')):
    found |= {
      name: torch.tensor(np.asarray(value, np.float32)).double()
      for name, value in load_file(path).items()
    }
  return found


def steered_by_torch(sides, dtype, alpha=ALPHA):
  base, plus, minus = (tensors_of(sides[name]) for name in ('base', 'positive', 'negative'))
  return {
    name: (base[name] + alpha * (plus[name] - minus[name])).to(DTYPES[dtype]).double()
    for name in base
  }


def assert_nothing_left(folder, *names):
  assert sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize(
  'dtype, make',
  [
    ('float32', oracle_model),
    ('bfloat16', oracle_model),
    ('bfloat16', fused_model),
    ('float32', lambda: oracle_model(tied=True)),
    ('bfloat16', oracle_model),
  ],
  ids=['f32', 'bf16', 'fused', 'tied', 'bf16 in whole blocks'],
)
def test_one_pass_and_two_steps_write_what_torch_computes(tmp_path, dtype, make):
  sides = three(tmp_path, dtype=dtype, make=make, max_shard_size='4KB')
  direction = directions.between(sides['positive'], sides['negative'], unread=True)
  directions.save(tmp_path / 'direction', direction)
  base = exports.BaseFolder.find(sides['base'])
  compared = make is fused_model  # The others' logits are compared in test_handover.py.
  one = exports.export(
    direction, base, ALPHA, 'hf', tmp_path / 'one', logits='always' if compared else 'never'
  )
  saved = directions.load(tmp_path / 'direction', unread=True)
  two = exports.export(saved, base, ALPHA, 'hf', tmp_path / 'two', logits='never')
  expected, got = steered_by_torch(sides, dtype), tensors_of(tmp_path / 'one')
  assert set(got) == set(expected) and one['rechecked']['weights'] > 100
  for name, value in expected.items():
    np.testing.assert_allclose(
      got[name], value, rtol=2e-7 if dtype == 'float32' else 0, atol=1e-8, err_msg=name
    )
  names = sorted(path.name for path in sides['base'].glob('*.safetensors*'))
  assert (
    len(names) > 2
    and sorted(path.name for path in (tmp_path / 'one').glob('*.safetensors*')) == names
  )
  for name in names:
    assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes()
  assert one['dtype'] == dtype and (
    one['parity']['relative_difference'] < 0.05 if compared else one['parity'] is None
  )
  plus, minus = tensors_of(sides['positive']), tensors_of(sides['negative'])
  norm = torch.sqrt(sum(((plus[name] - minus[name]) ** 2).sum() for name in plus))
  assert abs(one['norm'] - norm) < 1e-6 * norm and abs(two['norm'] - norm) < 1e-6 * norm
  assert exports.verify(tmp_path / 'one').unlisted == ()
  assert exports.verify(tmp_path / 'direction').kind == 'direction'
  transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'one')


def test_a_direction_between_checkpoints_is_a_checkpoint_of_differences(tmp_path):
  sides = three(tmp_path, dtype='bfloat16', make=fused_model)
  held, changed = tensors_of(sides['positive']), tensors_of(sides['negative'])
  # One site is the same, one differs in its second layer only; of what lies in one tensor, one
  # parameter differs.
  changed |= {
    name: held[name]
    for name in held
    if 'post_attention_layernorm' in name or '0.mlp.down_proj' in name
  }
  for name in (name for name in held if 'qkv_proj' in name):
    changed[name][16:24] = held[name][16:24]
  save_file(
    {name: value.float().numpy() for name, value in changed.items()},
    sides['negative'] / 'model.safetensors',
  )
  directions.save(
    tmp_path / 'direction', directions.between(sides['positive'], sides['negative'], unread=True)
  )
  stored = load_file(tmp_path / 'direction' / 'direction.safetensors')
  expected = {
    name: held[name] - changed[name] for name in held if (held[name] != changed[name]).any()
  }
  assert set(stored) == set(expected) and 'model.layers.0.mlp.down_proj.weight' not in stored
  for name, value in expected.items():
    np.testing.assert_array_equal(stored[name], value.float())
  meta = json.loads((tmp_path / 'direction' / 'direction.json').read_text())
  assert meta['fingerprints'] == tree.fingerprint(stored)
  loaded = directions.load(tmp_path / 'direction')
  assert {'layers/attn/k/kernel', 'layers/mlp_norm/scale'}.isdisjoint(meta['norms'])
  assert 'k' not in loaded.delta['layers']['attn']
  with (
    checkpoints.open_checkpoint(sides['positive']) as x,
    checkpoints.open_checkpoint(sides['negative']) as y,
  ):
    dense = checkpoints.difference(x, y)
    layers = {
      path: np.stack([x.layer(path, i) - y.layer(path, i) for i in range(x.num_layers(path))])
      for path in dense
    }
  flat = tree.flatten(loaded.delta, models.is_delta_leaf)
  assert flat.keys() == dense.keys()
  for path, leaf in flat.items():
    np.testing.assert_array_equal(leaf.value, layers[path].reshape(leaf.value.shape))
    np.testing.assert_array_equal(leaf.value, dense[path].value)
  assert abs(meta['norm'] - directions.norm(loaded)) < 1e-6 * meta['norm']


@pytest.mark.parametrize('dtype', DTYPES)
def test_zeros_of_either_sign_are_no_difference(tmp_path, dtype):
  sides = three(tmp_path, dtype=dtype)
  changed = load_file(sides['positive'] / 'model.safetensors')
  changed['model.norm.weight'][:] = 0.0
  save_file(changed, sides['positive'] / 'model.safetensors')
  changed['model.norm.weight'][:] = -0.0
  changed['model.layers.0.mlp.up_proj.weight'][3, 2] += 1
  save_file(changed, sides['negative'] / 'model.safetensors')
  direction = directions.between(sides['positive'], sides['negative'], unread=True)
  assert list(tree.flatten(direction.delta, models.is_delta_leaf)) == ['layers/mlp/up/kernel']


def test_the_base_is_told_by_its_digest_on_the_way(tmp_path):
  for dtype, make in (('float32', oracle_model), ('bfloat16', fused_model)):
    folder = tmp_path / dtype
    sides = three(folder, dtype=dtype, make=make)
    model = models.load(sides['base'])
    direction = directions.between(
      sides['positive'], sides['negative'], base=sides['base'], unread=True
    )
    assert direction.base.digest == directions.base_of(model).digest
    exports.export(
      direction, exports.BaseFolder.find(sides['base']), ALPHA, 'hf', folder / 'out', logits='never'
    )
    other = exports.BaseFolder.find(sides['positive'])
    with pytest.raises(InputError, match='different base models'):
      exports.export(direction, other, ALPHA, 'hf', folder / 'out2', logits='never')
    assert_nothing_left(folder, *sides, 'out')
    exports.export(
      direction, other, ALPHA, 'hf', folder / 'out2', allow_other_base=True, logits='never'
    )


def test_a_bit_of_the_direction_that_changed_is_found_when_it_is_exported(tmp_path):
  sides = three(tmp_path)
  directions.save(
    tmp_path / 'direction', directions.between(sides['positive'], sides['negative'], unread=True)
  )
  path = tmp_path / 'direction' / 'direction.safetensors'
  tensors = load_file(path)
  tensors['model.layers.1.mlp.up_proj.weight'].view(np.uint32)[20, 9] ^= 1
  save_file(tensors, path)
  direction = directions.load(tmp_path / 'direction', unread=True)
  with pytest.raises(CorruptError, match='fingerprints at model.layers.1.mlp.up_proj.weight'):
    exports.export(
      direction,
      exports.BaseFolder.find(sides['base']),
      ALPHA,
      'hf',
      tmp_path / 'out',
      logits='never',
    )
  assert_nothing_left(tmp_path, *sides, 'direction')
  up = direction.delta['layers']['mlp']['up']['kernel'].value
  for use in (lambda: directions.load(tmp_path / 'direction'), lambda: np.asarray(up)):
    with pytest.raises(CorruptError, match='fingerprints at model.layers.1.mlp.up_proj.weight'):
      use()


@pytest.mark.parametrize('side', ['base', 'positive', 'negative'])
@pytest.mark.parametrize('name', ['model.norm.weight', 'model.layers.1.mlp.down_proj.weight'])
def test_what_is_not_finite_is_named(tmp_path, side, name):
  sides = three(tmp_path)
  tensors = load_file(sides[side] / 'model.safetensors')
  tensors[name].reshape(-1)[-1] = np.inf if side == 'base' else np.nan
  save_file(tensors, sides[side] / 'model.safetensors')
  direction = directions.between(sides['positive'], sides['negative'], unread=True)
  with pytest.raises(NotFiniteError, match=f"{side}: '{name}'"):
    exports.export(
      direction,
      exports.BaseFolder.find(sides['base']),
      ALPHA,
      'hf',
      tmp_path / 'out',
      logits='never',
    )
  if side != 'base':
    with pytest.raises(NotFiniteError, match=f"{side}: '{name}'"):
      directions.save(tmp_path / 'direction', direction)
  assert_nothing_left(tmp_path, *sides)


def test_rows_computed_again_and_bytes_read_back_find_a_wrong_export(tmp_path, monkeypatch):
  sides = three(tmp_path, dtype='bfloat16')
  direction = directions.between(sides['positive'], sides['negative'], unread=True)
  base = exports.BaseFolder.find(sides['base'])

  def steered():
    return exports.export(direction, base, ALPHA, 'hf', tmp_path / 'out', logits='never')

  steer, pwrite = blocks.steer, os.pwrite
  monkeypatch.setattr(blocks, 'steer', lambda *args: steer(*args[:3], 1.2 * args[3], args[4]))
  with pytest.raises(OutputError, match='times what one rounding allows'):
    steered()
  monkeypatch.setattr(blocks, 'steer', steer)

  def damaged(file, view, at):
    return pwrite(file, bytes(view)[:-1] + bytes([view[-1] ^ 1]) if at > 4000 else view, at)

  monkeypatch.setattr(safetensors.os, 'pwrite', damaged)
  with pytest.raises(OutputError, match='read back, it differs near byte'):
    steered()
  monkeypatch.setattr(safetensors.os, 'pwrite', pwrite)
  record = steered()
  assert record['parity'] is None and 0 < record['rechecked']['largest_error'] <= 1
  assert 'logits were not compared' in (tmp_path / 'out' / 'README.md').read_text()
  assert_nothing_left(tmp_path, *sides, 'out')


def test_low_rank_and_dense_changes_in_memory_stream_too(tmp_path):
  """Against merging in memory, which shares nothing with the way block by block but the base."""
  sides = three(tmp_path)
  model = models.load(sides['base'])
  direction = oracle.random_direction(model, 3, size=0.05)
  exports.export(
    direction, exports.BaseFolder.find(sides['base']), ALPHA, 'hf', tmp_path / 'out', logits='never'
  )
  merged, _ = merging.merge(model, direction.delta, ALPHA, 'float32')
  for got, expected in zip(
    jax.tree.leaves(models.load(tmp_path / 'out').params), jax.tree.leaves(merged)
  ):
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_two_sides_that_nearly_cancel_are_within_what_float32_may_lose(
  untied, untied_model, tmp_path
):
  """Factors whose products are a thousand times what they add up to; the result is still held
  against float64."""
  random = np.random.default_rng(0)
  shape = models.sites(untied_model.config)['layers/mlp/gate/kernel'].shape
  a = random.standard_normal((shape[0], shape[1], 32)).astype(np.float32)
  b = random.standard_normal((shape[0], 32, shape[2])).astype(np.float32)
  nearly = (b * (1 + 1e-3 * random.standard_normal(b.shape))).astype(np.float32)
  leaf = models.LowRank(np.concatenate([a, a], 2), np.concatenate([b, -nearly], 1))
  base = bases.base_of(untied_model)
  direction = directions.Direction(
    {'layers': {'mlp': {'gate': {'kernel': leaf}}}},
    {'kind': 'contrast', 'base': base.to_json(), 'sources': []},
  )
  record = exports.export(
    direction, exports.BaseFolder.find(untied), ALPHA, 'hf', tmp_path / 'steered', logits='never'
  )
  assert record['rechecked']['largest_error'] < 1
  name, before, after = (
    'model.layers.0.mlp.gate_proj.weight',
    tensors_of(untied),
    tensors_of(tmp_path / 'steered'),
  )
  change = leaf.a[0].astype(np.float64) @ leaf.b[0].astype(np.float64)
  np.testing.assert_allclose(after[name], before[name].numpy() + ALPHA * change.T, atol=1e-4)


def test_the_launcher_makes_a_direction_and_exports_in_one_go(tmp_path):
  sides = three(tmp_path)
  flags = [f'--{name}={folder}' for name, folder in sides.items()]
  flags += ['--alpha=-1.5', '--format=hf', f'--output={tmp_path / "out"}', '--compare_logits=never']
  done = subprocess.run(
    [sys.executable, str(LAUNCH / 'export.py'), *flags],
    capture_output=True,
    text=True,
    timeout=200,
  )
  assert done.returncode == 0, done.stderr
  got = tensors_of(tmp_path / 'out')
  for name, value in steered_by_torch(sides, 'float32').items():
    np.testing.assert_allclose(got[name], value, rtol=2e-7, atol=1e-8)


def test_other_formats_need_the_base_in_memory(tmp_path):
  sides = three(tmp_path)
  direction = directions.between(sides['positive'], sides['negative'])
  with pytest.raises(InputError, match="'orbax' needs the base in memory"):
    exports.export(
      direction, exports.BaseFolder.find(sides['base']), 1.0, 'orbax', tmp_path / 'out'
    )
  with pytest.raises(InputError, match="did you mean 'always'"):
    exports.export(
      direction, exports.BaseFolder.find(sides['base']), 1.0, 'hf', tmp_path / 'out', logits='alway'
    )


PEAK = '''
import sys
from weightsteer_jax import directions, exports
folder = sys.argv[1]
w = directions.between(folder + '/positive', folder + '/negative', unread=True)
directions.save(folder + '/direction', w)
saved = directions.load(folder + '/direction', unread=True)
base = exports.BaseFolder.find(folder + '/base')
exports.export(saved, base, 1.5, 'hf', folder + '/out', logits='never')
print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
'''


@pytest.mark.slow
def test_the_peak_of_memory_does_not_grow_with_the_model(tmp_path):
  """15 MB of weights a file, and 150 MB: what differs is a few buffers."""
  peaks = []
  for layers in (4, 40):

    def model():
      return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
          vocab_size=64,
          hidden_size=256,
          intermediate_size=896,
          num_hidden_layers=layers,
          num_attention_heads=4,
          num_key_value_heads=4,
        )
      )

    folder = tmp_path / str(layers)
    three(folder, make=model)
    done = subprocess.run(
      [sys.executable, '-c', PEAK, str(folder)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    peaks.append(int(done.stdout))
  assert peaks[1] - peaks[0] < 60_000, peaks
