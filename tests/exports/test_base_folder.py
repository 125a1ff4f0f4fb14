"""A base known from its files alone, and what each format needs of a base."""

import dataclasses

import numpy as np
import pytest
import transformers
from directions import oracle
from safetensors.numpy import load_file

from weightsteer_jax import models
from weightsteer_jax.exports import FORMATS, BaseFolder, export, writer_of
from weightsteer_jax.runtime.errors import InputError


def test_a_model_and_its_folder_tell_the_same(untied, untied_model):
  found = BaseFolder.find(untied)
  # Only a model that is loaded has a kernel of attention.
  assert models.config_to_record(untied_model.config) == models.config_to_record(found.config)
  assert dataclasses.replace(BaseFolder.of(untied_model), config=found.config) == found
  named = BaseFolder.find(untied, name='the base')
  assert named == dataclasses.replace(found, source='the base')
  loaded = named.load()
  assert loaded.source == 'the base'
  assert loaded.config == untied_model.config
  sizes = [leaf.size for leaf in untied_model.params['embed'].values()]
  assert named.float32_bytes > 4 * sum(sizes)


def test_the_dtype_is_that_of_the_files(untied, tmp_path):
  assert BaseFolder.find(untied).dtype == 'float32'
  base = transformers.AutoModelForCausalLM.from_pretrained(untied)
  base.bfloat16().save_pretrained(tmp_path / 'base')
  # However the model is loaded.
  assert BaseFolder.of(models.load(tmp_path / 'base', dtype='float32')).dtype == 'bfloat16'


@pytest.mark.parametrize(
  'source, revision, name', [('org/name@abc', 'abc', 'org/name'), ('organism', '', None)]
)
def test_other_libraries_load_a_hub_id_or_a_folder(untied, source, revision, name):
  base = dataclasses.replace(BaseFolder.find(untied), source=source, revision=revision)
  assert base.loadable_name == (name or str(untied.resolve()))


def test_only_hf_is_written_from_files_alone(untied, untied_model, direction, tmp_path):
  assert [format for format in FORMATS if not writer_of(format).needs_model] == ['hf']
  with pytest.raises(InputError, match="did you mean 'orbax'"):
    writer_of('orbxa')
  base = BaseFolder.find(untied)
  for format in FORMATS:
    if writer_of(format).needs_model:
      with pytest.raises(InputError, match='needs the base in memory'):
        rank = 8 if format == 'gguf' else 0
        export(direction, base, 1.0, format, tmp_path / format, rank=rank)
  assert list(tmp_path.iterdir()) == []


def test_a_folder_and_a_model_give_the_same_weights(untied, untied_model, tmp_path):
  direction = oracle.random_direction(untied_model, 3, size=0.05)
  records = {}
  for name, base in (('folder', BaseFolder.find(untied)), ('model', untied_model)):
    records[name] = export(direction, base, 0.5, 'hf', tmp_path / name)
  first, second = (load_file(tmp_path / name / 'model.safetensors') for name in records)
  assert first.keys() == second.keys()
  for name, tensor in first.items():
    np.testing.assert_array_equal(tensor, second[name])
  # So small a base is loaded to compare logits, whoever gave it.
  assert records['folder']['parity'] == records['model']['parity']
  assert records['folder']['norm'] == records['model']['norm']
