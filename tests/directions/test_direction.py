"""The folder of a direction: what it holds, and that damage and mismatches are found."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from weightsteer_jax import directions, models
from weightsteer_jax.directions import Direction
from weightsteer_jax.models import Dense
from weightsteer_jax.runtime.errors import CorruptError, InputError, NotFiniteError, OutputError

from . import oracle


@pytest.fixture
def saved(untied, adapters, tmp_path):
  """(folder, direction) of a saved direction."""
  direction = directions.between(*adapters, compare_bfloat16=True)
  directions.save(tmp_path / 'direction', direction)
  return tmp_path / 'direction', direction


def test_save_and_load_keep_every_bit(saved, untied_model):
  folder, direction = saved
  loaded = directions.load(folder)
  assert jax.tree.structure(loaded.delta) == jax.tree.structure(direction.delta)
  for before, after in zip(jax.tree.leaves(direction.delta), jax.tree.leaves(loaded.delta)):
    np.testing.assert_array_equal(before, after)
  directions.check_base(loaded, untied_model)
  assert sorted(path.name for path in folder.iterdir()) == [
    'direction.json',
    'direction.safetensors',
  ]


def test_the_folder_is_plain_safetensors_and_json(saved):
  folder, direction = saved
  tensors = load_file(folder / 'direction.safetensors')
  meta = json.loads((folder / 'direction.json').read_text())
  assert {'layers/attn/q/kernel.a', 'layers/attn/q/kernel.b', 'embed/embedding.dense'} <= set(
    tensors
  )
  assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
  assert meta['base']['config']['vocab_size'] == 40 and meta['base']['tied_embeddings'] is False
  assert [source['kind'] for source in meta['sources']] == ['peft', 'peft']
  assert (
    meta['sources'][0]['meta']['config']['lora_alpha'] == 5
    and len(meta['sources'][0]['meta']['sha256']) == 64
  )
  assert abs(meta['norm'] - directions.norm(direction)) < 1e-9
  assert set(meta['norms']) == set(directions.norm_per_site(direction))
  assert 'jax' in meta['versions'] and 0 < meta['bfloat16_route']['cosine'] <= 1


def test_a_scale_is_folded_into_the_factors(untied_model, tmp_path):
  direction = oracle.random_direction(untied_model, 1)
  assert direction.delta['layers']['mlp']['up']['kernel'].scale == 2.0
  directions.save(tmp_path / 'd', direction)
  difference = directions.subtract(directions.load(tmp_path / 'd'), direction)
  assert directions.norm(difference) < 1e-5 * directions.norm(direction)


def test_a_flipped_bit_is_named(saved):
  folder, _ = saved
  path = folder / 'direction.safetensors'
  tensors = load_file(path)
  tensors['layers/mlp/up/kernel.b'].view(np.uint32)[1, 0, 3] ^= 1
  save_file(tensors, path)
  with pytest.raises(CorruptError, match='fingerprints at layers/mlp/up/kernel.b:'):
    directions.load(folder)


def test_cut_short_folders_are_named(saved):
  folder, _ = saved
  tensors, manifest = folder / 'direction.safetensors', folder / 'direction.json'
  whole = tensors.read_bytes()
  tensors.write_bytes(whole[:-100])
  with pytest.raises(CorruptError, match='no whole safetensors'):
    directions.load(folder)
  tensors.unlink()
  with pytest.raises(CorruptError, match='is missing'):
    directions.load(folder)
  tensors.write_bytes(whole)
  manifest.write_text(manifest.read_text()[:100])
  with pytest.raises(CorruptError, match='not valid JSON'):
    directions.load(folder)
  manifest.unlink()
  with pytest.raises(CorruptError, match='written last'):
    directions.load(folder)


def test_a_missing_tensor_is_named(saved):
  folder, _ = saved
  tensors = load_file(folder / 'direction.safetensors')
  del tensors['lm_head/kernel.dense']
  save_file(tensors, folder / 'direction.safetensors')
  with pytest.raises(CorruptError, match='lm_head/kernel.dense'):
    directions.load(folder)


def test_a_changed_manifest_is_found(saved):
  folder, _ = saved
  manifest = folder / 'direction.json'
  manifest.write_text(manifest.read_text().replace('"kind": "contrast"', '"kind": "contrasT"'))
  with pytest.raises(CorruptError, match='direction.json was changed'):
    directions.load(folder)


def test_a_manifest_of_the_unsealed_format_is_read_and_what_it_lacks_is_named(saved):
  folder, direction = saved
  manifest, tensors = folder / 'direction.json', load_file(folder / 'direction.safetensors')
  meta = json.loads(manifest.read_text()) | {'format': 1}
  del meta['seal']
  manifest.write_text(json.dumps(meta))
  assert directions.norm(directions.load(folder)) == directions.norm(direction)
  manifest.write_text(
    json.dumps({key: value for key, value in meta.items() if key != 'fingerprints'})
  )
  with pytest.raises(CorruptError, match='lacks fingerprints'):
    directions.load(folder)
  del tensors['layers/mlp/up/kernel.a'], meta['fingerprints']['layers/mlp/up/kernel.a']
  save_file(tensors, folder / 'direction.safetensors')
  manifest.write_text(json.dumps(meta))
  with pytest.raises(CorruptError, match='layers/mlp/up/kernel.b'):
    directions.load(folder)


def test_no_direction_there(saved, untied, tmp_path):
  folder, direction = saved
  with pytest.raises(InputError, match="did you mean '.*direction'"):
    directions.load(folder.with_name('directio'))
  with pytest.raises(InputError, match='holds no direction'):
    directions.load(untied)
  with pytest.raises(InputError, match='exists already'):
    directions.save(folder, direction)
  meta = json.loads((folder / 'direction.json').read_text())
  (folder / 'direction.json').write_text(json.dumps(meta | {'format': 99}))
  with pytest.raises(InputError, match='of format 3'):
    directions.load(folder)


def test_nothing_is_left_when_saving_fails(untied_model, tmp_path, monkeypatch):
  direction = oracle.random_direction(untied_model, 1)
  broken = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(np.nan), direction.delta)
  with pytest.raises(NotFiniteError, match='embed/embedding.dense'):
    directions.save(tmp_path / 'd', Direction(broken, direction.meta))

  def full_disk(*_, **__):
    raise OutputError('no space left on device')

  monkeypatch.setattr('weightsteer_jax.storage.files.write_json', full_disk)
  with pytest.raises(OutputError):
    directions.save(tmp_path / 'd', direction)
  assert list(tmp_path.iterdir()) == []


def test_other_models_are_refused(saved, tied_model, untied_model, tmp_path):
  _, direction = saved
  with pytest.raises(InputError, match='different architectures: tied False / True'):
    directions.check_base(direction, tied_model)
  other = models.load(oracle.make_checkpoint(tmp_path / 'other', tied=False, seed=9))
  with pytest.raises(InputError) as error:
    directions.check_base(direction, other)
  assert direction.base.digest in str(error.value) and directions.base_of(other).digest in str(
    error.value
  )
  directions.check_base(direction, other, allow_other_base=True)
  misfit = Direction({'layers': {'residual': Dense(np.zeros((3, 16), np.float32))}}, direction.meta)
  with pytest.raises(InputError, match='layers/residual'):
    directions.check_base(misfit, untied_model)


def test_a_base_has_one_digest_in_either_dtype(untied, untied_model, tmp_path):
  rounded = models.load(untied, dtype='bfloat16')
  assert directions.base_of(untied_model).digest == directions.base_of(rounded).digest
  other = models.load(oracle.make_checkpoint(tmp_path / 'other', tied=False, seed=9))
  assert directions.base_of(untied_model).digest != directions.base_of(other).digest
