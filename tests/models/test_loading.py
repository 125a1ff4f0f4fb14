"""Checkpoints in: files whole and broken, shards and indices, names and shapes, and the hub when it
is away."""

import json
import shutil
import socket
import time

import fused
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from weightsteer_jax import models
from weightsteer_jax.directions.streamed import checkpoints
from weightsteer_jax.models import families, huggingface
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import CorruptError, InputError, NotFiniteError

WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'


@pytest.fixture
def folder(checkpoint, tmp_path):
  """A copy of a tied checkpoint, to be damaged."""
  return pathlib_copy(checkpoint('qwen2_tied').folder, tmp_path / 'model')


def pathlib_copy(source, target):
  shutil.copytree(source, target)
  return target


def rewrite(folder, change):
  """Applies `change` to the {name: tensor} of a single-file checkpoint."""
  tensors = load_file(folder / WEIGHTS)
  change(tensors)
  save_file(tensors, folder / WEIGHTS, metadata={'format': 'pt'})


def rewrite_config(folder, **fields):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def shard(folder):
  """Splits a single file into two, with an index; the weight map."""
  tensors = load_file(folder / WEIGHTS)
  (folder / WEIGHTS).unlink()
  names = sorted(tensors)
  parts = {
    'model-00001-of-00002.safetensors': names[::2],
    'model-00002-of-00002.safetensors': names[1::2],
  }
  for file, part in parts.items():
    save_file({name: tensors[name] for name in part}, folder / file, metadata={'format': 'pt'})
  weight_map = {name: file for file, part in parts.items() for name in part}
  (folder / INDEX).write_text(json.dumps({'metadata': {}, 'weight_map': weight_map}))
  return weight_map


def same(left, right):
  left, right = tree.flatten(left), tree.flatten(right)
  return left.keys() == right.keys() and all(
    np.array_equal(left[path], right[path]) for path in left
  )


def test_shards_of_transformers_give_the_parameters_of_a_single_file(checkpoint, tmp_path):
  case = checkpoint('llama_biases')
  case.torch_model.save_pretrained(tmp_path, max_shard_size='20KB')
  assert len(list(tmp_path.glob('model-*.safetensors'))) > 2
  assert same(models.load(tmp_path).params, case.model.params)


def test_the_model_says_where_it_comes_from(checkpoint):
  case = checkpoint('llama3')
  model = models.load(str(case.folder))
  assert (model.folder, model.family, model.source, model.revision) == (
    case.folder,
    'llama',
    str(case.folder),
    '',
  )


@pytest.mark.parametrize(
  'stored, dtype',
  [
    ('float32', 'bfloat16'),
    ('bfloat16', 'float32'),
    ('bfloat16', 'bfloat16'),
    ('float16', 'float32'),
    ('float64', 'float32'),
  ],
)
def test_weights_are_cast_to_the_dtype_asked_for(folder, stored, dtype):
  stored, dtype = (
    np.dtype(getattr(ml_dtypes, stored, stored)),
    np.dtype(getattr(ml_dtypes, dtype, dtype)),
  )
  rewrite(
    folder,
    lambda tensors: tensors.update(
      {name: tensor.astype(stored) for name, tensor in tensors.items()}
    ),
  )
  expected = load_file(folder / WEIGHTS)['model.embed_tokens.weight'].astype(dtype)
  params = models.load(folder, dtype=dtype.name).params
  assert {leaf.dtype for leaf in tree.flatten(params).values()} == {dtype}
  assert np.array_equal(np.asarray(params['embed']['embedding']), expected)


def test_an_unknown_dtype_is_refused(folder):
  with pytest.raises(InputError, match="did you mean 'bfloat16'"):
    models.load(folder, dtype='bfloat')


def test_missing_and_extra_tensors_are_listed(folder):
  def change(tensors):
    tensors['model.layers.0.mlp.gate_proj.weights'] = tensors.pop(
      'model.layers.0.mlp.gate_proj.weight'
    )
    tensors['score.weight'] = np.zeros((2, 48), np.float32)

  rewrite(folder, change)
  with pytest.raises(InputError) as error:
    models.load(folder)
  message = str(error.value)
  assert 'missing (1): model.layers.0.mlp.gate_proj.weight\n' in message
  assert 'unexpected (2):' in message and 'score.weight' in message
  assert "did you mean 'model.layers.0.mlp.gate_proj.weight'" in message


def test_the_tensors_of_a_layer_too_many_are_unexpected(folder):
  rewrite_config(folder, num_hidden_layers=2, layer_types=None)
  with pytest.raises(InputError, match='unexpected.*model.layers.2'):
    models.load(folder)


@pytest.mark.parametrize(
  'name, shape',
  [
    ('model.embed_tokens.weight', (90, 48)),
    ('model.layers.1.self_attn.q_proj.weight', (24, 96)),
    ('model.layers.2.self_attn.k_proj.bias', (25,)),
    ('model.norm.weight', (48, 1)),
  ],
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder, name, shape):
  expected = load_file(folder / WEIGHTS)[name].shape
  rewrite(folder, lambda tensors: tensors.update({name: np.zeros(shape, np.float32)}))
  with pytest.raises(InputError) as error:
    models.load(folder)
  assert f"'{name}' has shape {shape}; the config asks for {expected}" in str(error.value)


def test_integer_weights_are_refused(folder):
  rewrite(folder, lambda tensors: tensors.update({'model.norm.weight': np.ones(48, np.int8)}))
  with pytest.raises(InputError, match="'model.norm.weight' is stored as I8"):
    models.load(folder)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(folder, value):
  def change(tensors):
    tensors['model.layers.1.mlp.up_proj.weight'][3, 5] = value

  rewrite(folder, change)
  with pytest.raises(NotFiniteError, match='layers/mlp/up/kernel'):
    models.load(folder)


def test_old_rotary_buffers_are_passed_over(folder, checkpoint):
  rewrite(
    folder,
    lambda tensors: tensors.update(
      {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(6, np.float32)}
    ),
  )
  assert same(models.load(folder).params, checkpoint('qwen2_tied').model.params)


def test_a_tied_checkpoint_may_store_its_head_if_it_is_the_embedding(folder, checkpoint):
  rewrite(
    folder,
    lambda tensors: tensors.update({'lm_head.weight': tensors['model.embed_tokens.weight'].copy()}),
  )
  assert same(models.load(folder).params, checkpoint('qwen2_tied').model.params)
  rewrite(folder, lambda tensors: tensors.update({'lm_head.weight': tensors['lm_head.weight'] + 1}))
  with pytest.raises(InputError, match='tie_word_embeddings'):
    models.load(folder)


def test_an_untied_checkpoint_needs_its_head(folder):
  rewrite_config(folder, tie_word_embeddings=False)
  with pytest.raises(InputError, match=r'missing \(1\): lm_head.weight'):
    models.load(folder)


@pytest.mark.parametrize('keep', [0, 5, 200, -1])
def test_a_file_cut_short_is_corrupt(folder, keep):
  content = (folder / WEIGHTS).read_bytes()
  (folder / WEIGHTS).write_bytes(content[:keep])
  with pytest.raises(CorruptError, match=f'{WEIGHTS} is no whole safetensors file'):
    models.load(folder)


def test_a_pointer_in_place_of_a_file_is_corrupt(folder):
  (folder / WEIGHTS).write_text(
    'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n'
  )
  with pytest.raises(CorruptError, match='no whole safetensors file'):
    models.load(folder)


def test_a_shard_cut_short_or_gone_is_corrupt(folder):
  shard(folder)
  path = folder / 'model-00002-of-00002.safetensors'
  path.write_bytes(path.read_bytes()[:-8])
  with pytest.raises(CorruptError, match='model-00002-of-00002'):
    models.load(folder)
  path.unlink()
  with pytest.raises(CorruptError, match='not there: model-00002-of-00002'):
    models.load(folder)


@pytest.mark.parametrize(
  'name',
  [
    '../model.safetensors',
    '/etc/passwd',
    'sub/model.safetensors',
    'model.bin',
    '.hidden.safetensors',
    '',
    'model.safetensors\n',
    '..\\model.safetensors',
  ],
)
def test_an_index_cannot_point_elsewhere(folder, name):
  weight_map = shard(folder)
  weight_map['model.norm.weight'] = name
  (folder / INDEX).write_text(json.dumps({'weight_map': weight_map}))
  with pytest.raises(InputError, match='only plain names'):
    models.load(folder)


@pytest.mark.parametrize(
  'content',
  [
    '{}',
    '[]',
    '{"weight_map": {}}',
    '{"weight_map": [1]}',
    '{"weight_map": {"a": 3}}',
    '{"weight_map": ',
  ],
)
def test_a_broken_index_is_corrupt(folder, content):
  shard(folder)
  (folder / INDEX).write_text(content)
  with pytest.raises(CorruptError, match='index'):
    models.load(folder)


def test_an_index_that_disagrees_with_its_files_is_refused(folder):
  weight_map = shard(folder)
  weight_map['model.norm.weight'] = (
    {*weight_map.values()} - {weight_map['model.norm.weight']}
  ).pop()
  (folder / INDEX).write_text(json.dumps({'weight_map': weight_map}))
  with pytest.raises(InputError, match='by the index beside it'):
    models.load(folder)


def test_a_single_file_goes_before_an_index_as_in_transformers(folder, checkpoint):
  whole = (folder / WEIGHTS).read_bytes()
  shard(folder)
  (folder / WEIGHTS).write_bytes(whole)
  (folder / 'model-00001-of-00002.safetensors').write_bytes(b'stale')
  assert same(models.load(folder).params, checkpoint('qwen2_tied').model.params)


def test_pickles_are_refused_with_the_command_that_converts(folder):
  (folder / WEIGHTS).rename(folder / 'pytorch_model.bin')
  with pytest.raises(InputError) as error:
    models.load(folder)
  assert 'pytorch_model.bin' in str(
    error.value
  ) and f"from_pretrained('{folder}').save_pretrained('converted')" in str(error.value)


def test_a_folder_without_weights_or_config_is_refused(folder):
  (folder / WEIGHTS).unlink()
  with pytest.raises(InputError, match='holds no weights'):
    models.load(folder)
  (folder / 'config.json').write_text('{"model_type": ')
  with pytest.raises(CorruptError, match='not valid JSON'):
    models.load(folder)
  (folder / 'config.json').unlink()
  with pytest.raises(InputError, match='config.json'):
    models.load(folder)


def test_a_path_that_is_not_there_names_the_nearest(folder):
  with pytest.raises(InputError, match=f"did you mean '{folder}'"):
    models.load(folder.parent / 'modle')


@pytest.mark.parametrize(
  'source', ['', 'no-such-model', './no/model', '~nobody/x', 'a/b/c', 'org/na me', 'org/name@']
)
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused_at_once(source):
  with pytest.raises(InputError, match='neither a folder nor a hub id'):
    models.load(source)


def test_a_file_is_no_checkpoint(folder):
  with pytest.raises(InputError, match='is a file; name the folder'):
    models.load(folder / WEIGHTS)


def test_revisions_are_of_the_hub_and_one_at_a_time(folder):
  with pytest.raises(InputError, match='is a folder'):
    models.load(folder, revision='main')
  with pytest.raises(InputError, match='give one of them'):
    models.load('org/name@v1', revision='v2')


def test_a_hub_that_cannot_be_reached_is_an_error_at_once(monkeypatch, tmp_path):
  import huggingface_hub

  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
  started = time.monotonic()
  with pytest.raises(
    InputError, match="'org/name' is no folder here.*not be had from the hub.*revision v1"
  ):
    models.load('org/name@v1')
  assert time.monotonic() - started < 5


def test_a_hub_that_never_answers_is_given_up(monkeypatch, tmp_path):
  """A socket that takes connections and is silent, as a proxy that swallows everything."""
  import huggingface_hub

  with socket.create_server(('127.0.0.1', 0)) as server:
    monkeypatch.setattr(
      huggingface_hub.constants, 'ENDPOINT', f'http://127.0.0.1:{server.getsockname()[1]}'
    )
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(huggingface, 'HUB_TIMEOUT_SECONDS', 0.3)
    started = time.monotonic()
    with pytest.raises(InputError, match='not be had from the hub'):
      models.load('org/name')
    assert time.monotonic() - started < 20


def test_without_the_hub_an_earlier_download_is_used_with_its_commit(
  monkeypatch, tmp_path, checkpoint
):
  import huggingface_hub

  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
  commit = 'a' * 40
  repository = tmp_path / 'models--org--name'
  (repository / 'refs').mkdir(parents=True)
  (repository / 'refs' / 'main').write_text(commit)
  pathlib_copy(checkpoint('llama3').folder, repository / 'snapshots' / commit)
  model = models.load('org/name')
  assert (model.source, model.revision) == ('org/name', commit)
  assert same(model.params, checkpoint('llama3').model.params)
  assert models.load(f'org/name@{commit}').revision == commit


@pytest.fixture
def fused_folder(checkpoint, tmp_path, monkeypatch):
  """The checkpoint 'llama_biases' with several parameters in one tensor, of a family that stores
  them so."""
  case = checkpoint('llama_biases')
  assert case.model  # Read as a plain Llama, before the name means another.
  monkeypatch.setitem(families.FAMILIES, 'llama', fused.family())
  target = pathlib_copy(case.folder, tmp_path / 'fused')
  save_file(fused.tensors(load_file(target / WEIGHTS)), target / WEIGHTS, metadata={'format': 'pt'})
  return target


def test_parameters_that_share_a_tensor_are_read_and_saved_as_if_apart(
  checkpoint, fused_folder, tmp_path
):
  expected, model = checkpoint('llama_biases').model, models.load(fused_folder)
  assert same(model.params, expected.params)
  target = models.save(
    tmp_path / 'out', model.config, model.params, family='llama', like=fused_folder
  )
  saved, original = load_file(target / WEIGHTS), load_file(fused_folder / WEIGHTS)
  assert len(original) == 3 * 10 + 3 and same(saved, original)


@pytest.mark.parametrize(
  'name, shape',
  [
    ('model.layers.1.self_attn.qkv_proj.weight', (95, 48)),
    ('model.layers.0.mlp.gate_up_proj.weight', (112, 47)),
    ('model.layers.2.self_attn.qkv_proj.bias', (48,)),
  ],
)
def test_a_shared_tensor_of_another_shape_is_named_with_both_shapes(fused_folder, name, shape):
  expected = load_file(fused_folder / WEIGHTS)[name].shape
  rewrite(fused_folder, lambda tensors: tensors.update({name: np.zeros(shape, np.float32)}))
  with pytest.raises(InputError) as error:
    models.load(fused_folder)
  assert f"'{name}' has shape {shape}; the config asks for {expected}" in str(error.value)


def test_the_difference_of_two_checkpoints_tells_the_parameters_of_a_shared_tensor_apart(
  fused_folder, tmp_path
):
  other = pathlib_copy(fused_folder, tmp_path / 'other')
  name, kv_rows = 'model.layers.1.self_attn.qkv_proj.weight', 2 * 12
  change = np.random.default_rng(0).normal(size=(kv_rows, 48)).astype(np.float32)
  rewrite(other, lambda tensors: tensors[name].__setitem__(slice(48, 48 + kv_rows), change))
  rewrite(fused_folder, lambda tensors: tensors[name].__setitem__(slice(48, 48 + kv_rows), 0))
  with checkpoints.open_checkpoint(other) as x, checkpoints.open_checkpoint(fused_folder) as y:
    difference = checkpoints.difference(x, y)
    assert x.digest() == checkpoints.bases.digest(models.load(other).params)
  assert list(difference) == ['layers/attn/k/kernel']
  got = np.asarray(difference['layers/attn/k/kernel'].value)
  assert not got[[0, 2]].any() and np.array_equal(
    got[1], change.reshape(2, 12, 48).transpose(2, 0, 1)
  )
