"""GGUF files as models: weights and logits of the checkpoint that the file was made of, and of
transformers' own reading."""

import collections
import dataclasses
import json
import pathlib
import shutil

import gguf as library
import gguf_files
import numpy as np
import pytest
import tiny
import torch
import transformers
from transformers.integrations.gguf import dequant

from weightsteer_jax import directions, models
from weightsteer_jax.models import gguf, stored
from weightsteer_jax.models.gguf import folder as folder_of_gguf
from weightsteer_jax.models.gguf import tensors
from weightsteer_jax.models.gguf.file import GgufFile
from weightsteer_jax.models.gguf.rope import llama3_scaling
from weightsteer_jax.models.rope import rope_frequencies
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import CorruptError, InputError, OutputError

TYPES = library.GGMLQuantizationType
# What a file has no key for: the windows of these families, other activations than the usual one,
# biases of some layers, and the like.
REPLACED = dict(
  llama2={},
  llama3={},
  llama32_tied={},
  llama_biases=dict(hidden_act='silu'),
  qwen2=dict(hidden_act='silu', rope_parameters=dict(rope_type='default', rope_theta=600.0)),
  qwen2_tied=dict(hidden_act='silu'),
  qwen3=dict(use_sliding_window=False),
  gemma2=dict(attention_bias=False, query_pre_attn_scalar=8),
  gemma3=dict(query_pre_attn_scalar=12),
  olmo2=dict(attention_bias=False),
  phi3={},
  phi3_short={},
  phi3_long={},
  smollm3=dict(use_sliding_window=False, num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0]),
  granite=dict(attention_bias=False, mlp_bias=False),
  qwen3_moe=dict(use_sliding_window=False, attention_bias=False),
  mixtral=dict(sliding_window=None),
)


@pytest.mark.parametrize('name', REPLACED)
def test_a_file_is_the_checkpoint_it_was_made_of(name, tmp_path):
  """Weights bit by bit, but for norms that the file holds with 1 added."""
  checkpoint = tiny.make(tmp_path / 'hf', **tiny.CASES[name] | REPLACED[name])
  path = gguf_files.write(checkpoint.folder, tmp_path / 'model.gguf')
  model = models.load(gguf.write_folder(path, tmp_path / 'folder'))
  theirs = tree.flatten(checkpoint.model.params)
  for key, ours in tree.flatten(model.params).items():
    rounding = 3e-7 * (model.config.norm_offset != 0 and key.endswith('scale'))
    np.testing.assert_allclose(ours, theirs[key], rtol=0, atol=rounding)
  config = checkpoint.model.config
  # The file holds the factors of the frequencies, which other numbers give too.
  got = rope_frequencies(model.config.rope, config.rotary_dim)
  np.testing.assert_allclose(got, rope_frequencies(config.rope, config.rotary_dim), rtol=1e-5)
  if config.rope.kind == 'llama3':
    config = dataclasses.replace(config, rope=model.config.rope)
  assert model.config == config


@pytest.mark.parametrize('name', ['llama3', 'gemma3', 'phi3_long'])
def test_logits_are_those_of_the_checkpoint(name, tmp_path):
  checkpoint = tiny.make(tmp_path / 'hf', **tiny.CASES[name] | REPLACED[name])
  path = gguf_files.write(checkpoint.folder, tmp_path / 'model.gguf')
  model = models.load(gguf.write_folder(path, tmp_path / 'folder'))
  tokens = tiny.tokens((2, 30))
  logits = np.asarray(tiny.forward(model.config, model.params, tokens))
  np.testing.assert_allclose(logits, checkpoint.torch_logits(tokens), atol=1e-4)


# What transformers 5.24 reads as llama.cpp does; docs/gguf.md has the rest.
SIZES = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
ROPE = dict(rope_parameters=dict(rope_type='default', rope_theta=900.0))
KINDS = ('Q4_1', 'Q8_0', 'F16', 'BF16', 'Q4_0')
READ_BY_TRANSFORMERS = dict(
  llama=SIZES | ROPE | dict(tie_word_embeddings=True),
  qwen2=SIZES | ROPE,
  qwen3=SIZES | ROPE | dict(head_dim=128),
  gemma2=SIZES | dict(head_dim=256),
  gemma3_text=SIZES | dict(head_dim=256),
)


@pytest.mark.parametrize('family, kind', zip(READ_BY_TRANSFORMERS, KINDS))
def test_a_file_is_read_as_transformers_reads_it(family, kind, tmp_path):
  checkpoint = tiny.make(tmp_path / 'hf', family=family, **READ_BY_TRANSFORMERS[family])
  path = gguf_files.write(checkpoint.folder, tmp_path / 'model.gguf', kind=kind)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file=path.name, dtype=torch.float32, attn_implementation='eager'
  ).eval()
  folder = gguf.write_folder(path, tmp_path / 'folder')
  ours = stored_tensors(folder)
  # One rounding between subtracting 1 here and there.
  for name, tensor in ours.items():
    np.testing.assert_allclose(tensor, theirs.state_dict()[name].numpy(), rtol=0, atol=1e-6)
  model = models.load(folder)
  tokens = tiny.tokens((2, 20))
  with torch.no_grad():
    expected = theirs(torch.as_tensor(tokens).long()).logits.numpy()
  logits = np.asarray(tiny.forward(model.config, model.params, tokens))
  np.testing.assert_allclose(logits, expected, atol=1e-4)


def stored_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of a folder in float32."""
  with stored.open_tensors(folder) as tensors:
    return {name: tensors.read(name).astype(np.float32) for name in tensors.names()}


def random_blocks(kind: str, rows: int, blocks: int) -> np.ndarray:
  """Random bytes of a type, whose scales (float16) are small numbers."""
  random = np.random.default_rng(0)
  _, size = library.GGML_QUANT_SIZES[TYPES[kind]]
  data = random.integers(0, 256, (rows * blocks, size), dtype=np.uint8)
  for start in SCALES[kind]:
    scales = random.normal(size=rows * blocks).astype(np.float16)
    data[:, start : start + 2] = scales.view(np.uint8).reshape(-1, 2)
  return data.reshape(rows, blocks * size)


# Where the float16 scales of a block lie, in bytes.
# Source: ggml-common.h of llama.cpp, the structs block_*.
SCALES = {
  'Q8_0': (0,),
  'Q4_0': (0,),
  'Q4_1': (0, 2),
  'Q2_K': (80, 82),
  'Q3_K': (108,),
  'Q4_K': (0, 2),
  'Q5_K': (0, 2),
  'Q6_K': (208,),
  'IQ4_NL': (0,),
  'IQ4_XS': (0,),
}


@pytest.mark.parametrize('kind', SCALES)
def test_blocks_are_dequantised_as_by_transformers_in_torch(kind, tmp_path):
  blocks = random_blocks(kind, rows=6, blocks=3)
  path = a_file_with(tmp_path, blocks, kind)
  file = GgufFile(path)
  expected = dequant.dequantize(torch.from_numpy(blocks), TYPES[kind].value).reshape(6, -1)
  np.testing.assert_allclose(file.rows('x', slice(1, 4)), expected[1:4].numpy(), rtol=1e-6)
  np.testing.assert_allclose(file.rows('x', [5, 0]), expected[[5, 0]].numpy(), rtol=1e-6)


@pytest.mark.parametrize('kind', ['Q5_0', 'Q5_1'])
def test_five_bits_are_dequantised_as_by_hand(kind, tmp_path):
  """A block: scale d (and minimum m), 32 fifth bits, 32 times four bits, low halves first."""
  random = np.random.default_rng(0)
  numbers = random.integers(0, 32, 32)
  d, m = np.float16(0.37), np.float16(-1.25)
  fifth = sum(int(number >> 4) << i for i, number in enumerate(numbers)).to_bytes(4, 'little')
  low = numbers & 15
  nibbles = (low[:16] | low[16:] << 4).astype(np.uint8).tobytes()
  minimum = m.tobytes() if kind == 'Q5_1' else b''
  block = np.frombuffer(d.tobytes() + minimum + fifth + nibbles, np.uint8)[None]
  expected = numbers * np.float32(d) + np.float32(m)
  if kind == 'Q5_0':
    expected = (numbers - 16) * np.float32(d)
  file = GgufFile(a_file_with(tmp_path, block, kind))
  np.testing.assert_allclose(file.rows('x', slice(None))[0], expected, rtol=1e-6)


def a_file_with(folder: pathlib.Path, blocks: np.ndarray, kind: str) -> pathlib.Path:
  """A file with one tensor 'x' of blocks as stored."""
  path = folder / f'{kind}.gguf'
  writer = library.GGUFWriter(path, 'llama')
  writer.add_tensor('x', blocks, raw_dtype=TYPES[kind])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture
def llama(tmp_path) -> tiny.Checkpoint:
  fields = tiny.CASES['llama32_tied'] | dict(hidden_size=64, head_dim=16)
  return tiny.make(tmp_path / 'hf', **fields)


def test_memory_holds_blocks_and_blocks_change_nothing(llama, tmp_path, monkeypatch):
  path = gguf_files.write(llama.folder, tmp_path / 'model.gguf', kind='Q8_0')
  whole = gguf.write_folder(path, tmp_path / 'whole')
  monkeypatch.setattr(tensors, 'BLOCK', 70)
  cut = gguf.write_folder(path, tmp_path / 'cut')
  name = 'model.safetensors'
  assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_dtypes_of_a_folder(llama, tmp_path):
  """Nothing is lost by default: float16 and bfloat16 stay, and a file of bfloat16 is all of it."""
  for kind, default in (('F16', 'F16'), ('BF16', 'BF16'), ('Q8_0', 'F32')):
    path = gguf_files.write(llama.folder, tmp_path / f'{kind}.gguf', kind=kind)
    exact = gguf.write_folder(path, tmp_path / f'exact_{kind}')
    wide = gguf.write_folder(path, tmp_path / f'wide_{kind}', dtype='float32')
    short = gguf.write_folder(path, tmp_path / f'short_{kind}', dtype='bfloat16')
    with stored.open_tensors(exact) as opened:
      assert opened.dtype('model.embed_tokens.weight') == default
    for name, tensor in stored_tensors(wide).items():
      np.testing.assert_array_equal(stored_tensors(exact)[name], tensor)
      rounded = tensor.astype('bfloat16').astype(np.float32)
      np.testing.assert_array_equal(stored_tensors(short)[name], rounded)
    assert json.loads((short / 'config.json').read_text())['dtype'] == 'bfloat16'
  with pytest.raises(InputError, match="dtype 'float16'"):
    gguf.write_folder(path, tmp_path / 'other', dtype='float16')


def test_a_folder_that_was_written_wrong_is_refused_and_leaves_nothing(
  llama, tmp_path, monkeypatch
):
  path = gguf_files.write(llama.folder, tmp_path / 'model.gguf')
  # Rows of queries and keys in the wrong order.
  monkeypatch.setattr(tensors.Source, 'order', lambda source: np.arange(source.shape[0]))
  with pytest.raises(OutputError, match="_proj.weight' was not written as 'blk.0.attn_"):
    gguf.write_folder(path, tmp_path / 'folder')
  assert [child.name for child in tmp_path.iterdir() if 'folder' in child.name] == []


def test_a_file_is_a_model_wherever_a_folder_is(llama, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  path = gguf_files.write(llama.folder, tmp_path / 'model.gguf', kind='Q8_0')
  folder, revision = models.resolve(path)
  assert revision == '' and folder.is_relative_to(tmp_path / 'cache' / 'weightsteer_jax' / 'gguf')
  made = (folder / 'model.safetensors').stat().st_ino
  model = models.load(path)
  assert (model.folder, model.source, model.family) == (folder, str(path), 'llama')
  # Made once.
  assert (folder / 'model.safetensors').stat().st_ino == made
  with pytest.raises(InputError, match="is a file, and the revision 'main'"):
    models.resolve(path, revision='main')
  # Another model under the same name is another folder; for the config alone, no weights are read.
  other = tiny.make(tmp_path / 'other', **tiny.CASES['qwen2_tied'] | REPLACED['qwen2_tied'])
  gguf_files.write(other.folder, path)
  config_only, _ = models.resolve(path, weights=False)
  assert [child.name for child in config_only.iterdir()] == ['config.json']
  assert models.load_config(config_only)[1].model_type == 'qwen2'
  assert models.load(path).family == 'qwen2'
  with pytest.raises(InputError, match="holds GGUF files: name the file, as in '.*model.gguf'"):
    models.resolve(tmp_path)


def test_a_direction_between_a_file_and_a_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  before = tiny.make(tmp_path / 'hf', family='llama', **SIZES | ROPE)
  path = gguf_files.write(before.folder, tmp_path / 'model.gguf', kind='Q8_0')
  direction = directions.between(before.folder, path)
  changes = tree.flatten(direction.delta, models.is_delta_leaf)
  after = tree.flatten(models.load(path).params)
  assert len(changes) > 5
  for key, weight in tree.flatten(before.model.params).items():
    expected = np.asarray(weight) - np.asarray(after[key])
    got = changes[key].value if key in changes else 0.0
    np.testing.assert_array_equal(got, expected)


def test_a_file_without_room_is_refused(llama, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  path = gguf_files.write(llama.folder, tmp_path / 'model.gguf')
  usage = collections.namedtuple('usage', 'free')(free=1000)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
  with pytest.raises(InputError, match='has 0.0 MB left: name another folder.*XDG_CACHE_HOME'):
    models.resolve(path)


def test_files_of_a_split_are_read_as_one(llama, tmp_path):
  whole = gguf_files.write(llama.folder, tmp_path / 'model.gguf')
  first, second = (tmp_path / f'model-{i:05d}-of-00002.gguf' for i in (1, 2))
  gguf_files.split(whole, first, second)
  one = gguf.write_folder(whole, tmp_path / 'one')
  two = gguf.write_folder(first, tmp_path / 'two')
  for name, tensor in stored_tensors(one).items():
    np.testing.assert_array_equal(stored_tensors(two)[name], tensor)
  with pytest.raises(InputError, match='one of 2 files of a model: name the first, .*00001'):
    gguf.write_folder(second, tmp_path / 'three')
  second.unlink()
  with pytest.raises(CorruptError, match='files of the model are missing: model-00002'):
    gguf.write_folder(first, tmp_path / 'three')


HEADS_OF_4 = dict.fromkeys(
  ('attention.key_length', 'attention.value_length', 'rope.dimension_count'), 4
)
REFUSED = {
  "architecture 'mamba' is not supported": dict(general={'architecture': 'mamba'}),
  "of the type 'adapter', expected 'model'": dict(general={'type': 'adapter'}),
  "rope type 'yarn'": {'rope.scaling.type': 'yarn', 'rope.scaling.factor': 4.0},
  "not supported.*attention.new_idea=7": {'attention.new_idea': 7},
  "'attention.value_length' is 5": {'attention.value_length': 5},
  "'blk.0.attn_.*' has shape .*; the metadata ask for": HEADS_OF_4,
  "rope.dimension_count' is 4": {'rope.dimension_count': 4},
  "missing .9.*blk.3.attn_k": {'block_count': 4},
  "'context_length' is missing": {'context_length': None},
  "tokenizer is of the kind 'bert'": dict(
    tokenizer={'model': 'bert', 'tokens': ['a'], 'token_type': [1]}
  ),
  "'tokenizer.ggml.pre' is 'smolm' .did you mean 'smollm'": dict(
    tokenizer={'model': 'gpt2', 'pre': 'smolm', 'tokens': ['a']}
  ),
  "'tokenizer.ggml.pre' is 'default'": dict(tokenizer={'model': 'gpt2', 'tokens': ['a']}),
}


@pytest.mark.parametrize('message', REFUSED)
def test_what_is_not_supported_is_refused_by_name_before_a_weight_is_read(
  message, tmp_path, monkeypatch
):
  checkpoint = tiny.make(
    tmp_path / 'hf', family='llama', **SIZES | ROPE | dict(tie_word_embeddings=True)
  )
  path = gguf_files.write(checkpoint.folder, tmp_path / 'model.gguf', **REFUSED[message])
  monkeypatch.setattr(folder_of_gguf, '_write_weights', None)
  with pytest.raises(InputError, match=message) as error:
    gguf.write_folder(path, tmp_path / 'folder')
  assert str(path) in str(error.value)


def test_a_type_that_is_not_read_is_named(llama, tmp_path):
  fields = dict(SIZES, hidden_size=256, intermediate_size=256)
  checkpoint = tiny.make(tmp_path / 'ternary', family='llama', **fields | ROPE)
  path = gguf_files.write(checkpoint.folder, tmp_path / 'model.gguf', kind='TQ1_0')
  with pytest.raises(InputError, match='tensors are of the type TQ1_0, which is not read'):
    gguf.write_folder(path, tmp_path / 'folder')


@pytest.mark.parametrize('length', [10, 300, -40])
def test_a_file_cut_short_is_corrupt(length, llama, tmp_path):
  path = gguf_files.write(llama.folder, tmp_path / 'model.gguf')
  path.write_bytes(path.read_bytes()[:length])
  with pytest.raises(CorruptError, match='is no whole GGUF file'):
    gguf.write_folder(path, tmp_path / 'folder')


# Llama 3.1, 3.2, and numbers of no model.
BANDS = [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (8.0, 1.5, 3.5, 4096), (5.0, 2.0, 9.0, 512)]


@pytest.mark.parametrize('head_dim', [8, 64, 128])
@pytest.mark.parametrize('factor, low, high, original', BANDS)
def test_factors_of_frequencies_give_the_scaling_back(factor, low, high, original, head_dim):
  rope = models.Rope(5e5, 'llama3', factor, low, high, original)
  frequencies = rope_frequencies(rope, head_dim)
  unscaled = rope_frequencies(models.Rope(5e5, 'default', 1.0, 1.0, 1.0, 1), head_dim)
  factors = np.asarray(unscaled / frequencies, np.float32)
  found = llama3_scaling(factors, 5e5)
  again = models.Rope(
    5e5,
    'llama3',
    found['factor'],
    found['low_freq_factor'],
    found['high_freq_factor'],
    found['original_max_position_embeddings'],
  )
  np.testing.assert_allclose(rope_frequencies(again, head_dim), frequencies, rtol=1e-5)
  if original == 8192:
    assert again == rope


def test_factors_of_no_known_scaling_are_refused(llama):
  assert llama3_scaling(np.array([1.0, 3.0, 2.0, 8.0], np.float32), 5e5) is None
  assert llama3_scaling(np.ones(4, np.float32), 5e5) == {'rope_type': 'default'}
