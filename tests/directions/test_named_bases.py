"""The base that adapters name against the base that they are read with; a Trainer's folders."""

import json
import shutil
import warnings

import numpy as np
import peft
import pytest
import transformers

from weightsteer_jax import directions, models
from weightsteer_jax.exports import export
from weightsteer_jax.runtime.errors import InputError

from . import oracle


@pytest.fixture(scope='module')
def adapter(untied, tmp_path_factory):
  return oracle.make_adapter(tmp_path_factory.mktemp('named') / 'a', untied, seed=1)


def naming(folder, adapter, name):
  """A copy of an adapter that names a base."""
  shutil.copytree(adapter, folder)
  path = folder / 'adapter_config.json'
  config = json.loads(path.read_text()) | {'base_model_name_or_path': name}
  path.write_text(json.dumps(config))
  return folder


def said(capsys):
  return [line for line in capsys.readouterr().out.splitlines() if line.startswith('warning')]


def test_a_name_that_is_not_that_of_the_base_is_told(untied, adapter, tmp_path, capsys):
  sides = [naming(tmp_path / x, adapter, 'Qwen/Qwen2-7B-Instruct') for x in 'pn']
  for side in sides:
    directions.task_vector(side, untied)
    (line,) = said(capsys)
    assert "'Qwen/Qwen2-7B-Instruct' as their base" in line and str(untied) in line
    assert directions.base_of(models.load(untied)).digest in line


@pytest.mark.parametrize('name', ['some-org/Untied', '/gone/since/untied', 'untied@main', ''])
def test_a_copy_under_the_same_name_is_not_told(untied, adapter, tmp_path, capsys, name):
  side = naming(tmp_path / 'a', adapter, name)
  directions.task_vector(side, untied)
  assert not said(capsys)


def test_a_base_in_the_cache_of_the_hub_is_known_by_its_id(untied, adapter, tmp_path, capsys):
  base = tmp_path / 'models--some-org--model' / 'snapshots' / '0123abc'
  shutil.copytree(untied, base)
  directions.task_vector(naming(tmp_path / 'a', adapter, 'some-org/model'), base)
  assert not said(capsys)
  directions.task_vector(naming(tmp_path / 'b', adapter, 'some-org/another'), base)
  assert len(said(capsys)) == 1


def test_a_named_folder_is_compared_by_its_weights(untied, adapter, tmp_path, capsys):
  copy = tmp_path / 'renamed'
  shutil.copytree(untied, copy)
  side = naming(tmp_path / 'a', adapter, str(copy))
  directions.task_vector(side, untied)
  assert not said(capsys)
  other = oracle.make_checkpoint(tmp_path / 'other', tied=False, seed=5)
  side = naming(tmp_path / 'b', adapter, str(other))
  with pytest.raises(InputError, match='belong to different base models.*--allow_other_base'):
    directions.task_vector(side, untied)
  directions.task_vector(side, untied, allow_other_base=True)


def test_an_export_of_ours_is_compared_by_its_digest(untied, untied_model, tmp_path, capsys):
  direction = oracle.random_direction(untied_model, 1, kinds='lora')
  export(direction, untied_model, 1.0, 'peft', tmp_path / 'out')
  directions.task_vector(tmp_path / 'out', untied)
  other = oracle.make_checkpoint(tmp_path / 'untied', tied=False, seed=5)
  path = tmp_path / 'out' / 'adapter_config.json'
  config = json.loads(path.read_text()) | {'base_model_name_or_path': 'somewhere/untied'}
  path.write_text(json.dumps(config))
  with pytest.raises(InputError, match='belong to different base models'):
    directions.task_vector(tmp_path / 'out', other)
  assert not said(capsys)


def test_the_embedding_of_tied_checkpoints_that_moved_is_told(tied, tmp_path, capsys):
  """PEFT merges a LoRA on both tied ends twice; its own model before merging is the oracle."""
  options = dict(target_modules=['q_proj', 'embed_tokens'], ensure_weight_tying=True)
  adapter = oracle.make_adapter(tmp_path / 'a', tied, seed=1, **options)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    base = transformers.AutoModelForCausalLM.from_pretrained(tied)
    merged = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload()
    merged.save_pretrained(tmp_path / 'merged')
  direction = directions.between(tmp_path / 'merged', tied)
  (line,) = said(capsys)
  assert 'twice' in line and str(tmp_path / 'merged') in line
  right = directions.task_vector(adapter, tied).delta['embed']['embedding'].value
  np.testing.assert_allclose(direction.delta['embed']['embedding'].value, 2 * right, atol=1e-5)
  plain = oracle.make_adapter(tmp_path / 'plain', tied, seed=1)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    base = transformers.AutoModelForCausalLM.from_pretrained(tied)
    peft.PeftModel.from_pretrained(base, plain).merge_and_unload().save_pretrained(tmp_path / 'm')
  directions.between(tmp_path / 'm', tied)
  assert not said(capsys)


def test_the_folder_of_a_trainer_names_its_last_checkpoint(adapter, tmp_path):
  for step in (20, 100, 3):
    shutil.copytree(adapter, tmp_path / 'out' / f'checkpoint-{step}')
  (tmp_path / 'out' / 'runs').mkdir()
  with pytest.raises(InputError, match="did you mean '.*out/checkpoint-100'"):
    directions.task_vector(tmp_path / 'out')
