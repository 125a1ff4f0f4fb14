"""Adapters on disk: what comes back, and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from weightsteer_jax import finetune, models
from weightsteer_jax.finetune import adapter
from weightsteer_jax.runtime.errors import CorruptError, InputError


@pytest.fixture
def saved(checkpoint, tmp_path):
  """(folder, delta, model) of an adapter of every kind of leaf."""
  model = checkpoint('qwen2').model
  delta = tiny.randomised(
    models.init_delta(model.config, 'lora_embeddings', jax.random.key(0), rank=2, lora_alpha=3.0)
  )
  delta['layers']['residual'] = models.Dense(
    jnp.ones((model.config.num_layers, model.config.width))
  )
  finetune.save_adapter(
    tmp_path / 'adapter', delta, {**finetune.describe_base(model), 'kind': 'lora_embeddings'}
  )
  return tmp_path / 'adapter', delta, model


def test_an_adapter_comes_back_bit_for_bit(saved):
  folder, delta, model = saved
  loaded, meta = finetune.load_adapter(folder, model=model)
  assert jax.tree.structure(loaded) == jax.tree.structure(delta)
  jax.tree.map(np.testing.assert_array_equal, loaded, delta)
  assert loaded['layers']['attn']['q']['kernel'].scale == 1.5
  assert meta['kind'] == 'lora_embeddings' and meta['model_config']['width'] == model.config.width
  with pytest.raises(InputError, match='exists already'):
    finetune.save_adapter(folder, delta, meta)


def test_damage_is_found_and_named(saved, tmp_path):
  folder, _, _ = saved
  data = bytearray((folder / adapter.TENSORS).read_bytes())
  data[-3] ^= 8
  broken = shutil.copytree(folder, tmp_path / 'flipped')
  (broken / adapter.TENSORS).write_bytes(bytes(data))
  with pytest.raises(CorruptError, match='does not match its fingerprints at [a-z_]+/'):
    finetune.load_adapter(broken)
  (broken / adapter.TENSORS).write_bytes(bytes(data[: len(data) // 2]))
  with pytest.raises(CorruptError, match='no whole safetensors file'):
    finetune.load_adapter(broken)
  manifest = (folder / adapter.MANIFEST).read_text()
  (broken / adapter.MANIFEST).write_text(manifest.replace('"scale": 1.5', '"scale": 2.5'))
  with pytest.raises(CorruptError, match='changed or damaged'):
    finetune.load_adapter(broken)
  changed = json.loads(manifest)
  changed['base'] = 'another'
  (broken / adapter.MANIFEST).write_text(json.dumps(changed))
  with pytest.raises(CorruptError, match='changed or damaged'):
    finetune.load_adapter(broken)
  (broken / adapter.MANIFEST).unlink()
  with pytest.raises(CorruptError, match='cut short'):
    finetune.load_adapter(broken)
  with pytest.raises(InputError, match=r"no adapter at .*did you mean .*flipped'"):
    finetune.load_adapter(tmp_path / 'fliped')


def test_another_architecture_is_refused_by_its_fields(saved, checkpoint):
  folder, _, _ = saved
  with pytest.raises(
    InputError, match=r'another architecture .*num_kv_heads is 3 there and 2 here'
  ):
    finetune.load_adapter(folder, model=checkpoint('llama3').model)


def test_another_base_of_the_same_architecture_is_refused(saved):
  folder, _, model = saved
  params = dict(
    model.params, final_norm={'scale': model.params['final_norm']['scale'].at[0].add(1e-6)}
  )
  with pytest.raises(InputError, match='trained on another base'):
    finetune.load_adapter(folder, model=dataclasses.replace(model, params=params))


def test_the_same_base_is_recognised_in_bfloat16(saved):
  folder, _, model = saved
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
  finetune.load_adapter(folder, model=dataclasses.replace(model, params=rounded))
  rounded['final_norm'] = {'scale': rounded['final_norm']['scale'] * 1.1}
  with pytest.raises(InputError, match='trained on another base'):
    finetune.load_adapter(folder, model=dataclasses.replace(model, params=rounded))
