"""Exports as the other side's own library reads them: transformers, plain orbax, PEFT."""

import dataclasses
import json
import re

import numpy as np
import peft
import pytest
import torch
import transformers
from directions import oracle

from weightsteer_jax import directions
from weightsteer_jax.exports import FORMATS, export, verify

ALPHA = -1.5


def steered_by_torch(base, adapters, alpha=ALPHA):
  """Logits in float64 of `base + alpha * (positive - negative)`, the two sides merged by PEFT."""
  plus, minus, weights = (oracle.torch_weights(base, adapter) for adapter in (*adapters, None))
  model = transformers.AutoModelForCausalLM.from_pretrained(base).double()
  model.load_state_dict(
    {name: torch.tensor(weights[name] + alpha * (plus[name] - minus[name])) for name in weights}
  )
  return oracle.torch_logits(model)


@pytest.fixture(scope='module', params=['untied', 'tied'])
def model_and_direction(request, untied_model, tied_model):
  model = {'untied': untied_model, 'tied': tied_model}[request.param]
  return model, oracle.random_direction(model, 3, size=0.05)


def test_hf_loads_in_transformers(model_and_direction, tmp_path):
  model, direction = model_and_direction
  record = export(direction, model, ALPHA, 'hf', tmp_path / 'out')
  loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  np.testing.assert_allclose(
    oracle.torch_logits(loaded), oracle.unmerged_logits(model, direction, ALPHA), atol=1e-4
  )
  assert record['parity']['largest_difference'] < 1e-4
  assert record['realised_error'] < 1e-4 and record['dtype'] == 'float32'


def test_hf_of_a_direction_is_what_torch_computes(
  untied, untied_model, adapters, direction, tmp_path
):
  export(direction, untied_model, ALPHA, 'hf', tmp_path / 'out')
  loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  np.testing.assert_allclose(
    oracle.torch_logits(loaded), steered_by_torch(untied, adapters), atol=1e-4
  )


def test_peft_loads_in_peft(model_and_direction, tmp_path):
  model, direction = model_and_direction
  record = export(direction, model, ALPHA, 'peft', tmp_path / 'out')
  base = transformers.AutoModelForCausalLM.from_pretrained(model.folder)
  loaded = peft.PeftModel.from_pretrained(base, tmp_path / 'out')
  np.testing.assert_allclose(
    oracle.torch_logits(loaded), oracle.unmerged_logits(model, direction, ALPHA), atol=1e-4
  )
  assert record['rank'] == 3
  assert any('vLLM and llama.cpp refuse it' in note for note in record['notes'])


def test_peft_of_a_direction_has_rank_2r(untied, untied_model, tmp_path):
  sides = [
    oracle.make_adapter(tmp_path / name, untied, seed=seed, r=4)
    for name, seed in (('p', 1), ('n', 2))
  ]
  direction = directions.between(*sides)
  # The name a user gave the base need not mean anything to PEFT: the adapter must name what it can
  # load.
  renamed = dataclasses.replace(untied_model, source='organism')
  record = export(direction, renamed, 2.0, 'peft', tmp_path / 'out')
  config = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  assert (
    record['rank'] == config['r'] == config['lora_alpha'] == 8 and config['modules_to_save'] is None
  )
  loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / 'out')
  np.testing.assert_allclose(
    oracle.torch_logits(loaded), steered_by_torch(untied, sides, 2.0), atol=1e-4
  )
  again = directions.task_vector(tmp_path / 'out')
  assert directions.norm(
    directions.subtract(again, directions.scale(direction, 2.0))
  ) < 1e-6 * directions.norm(again)


def test_what_lies_beside_every_export(untied_model, direction, tmp_path):
  (untied_model.folder / 'tokenizer_config.json').write_text('{}')
  try:
    for format in FORMATS:
      # llama.cpp takes no whole embeddings, which are folded for it.
      rank = 8 if format == 'gguf' else 0
      record = export(direction, untied_model, ALPHA, format, tmp_path / format, rank=rank)
      assert record == json.loads((tmp_path / format / 'provenance.json').read_text())
      assert record['direction']['base']['digest'] == directions.base_of(untied_model).digest
      assert record['alpha'] == ALPHA
      assert 'README.md' in record['files']
      card = (tmp_path / format / 'README.md').read_text()
      assert f'alpha {ALPHA}' in card and 'logits differ' in card
      assert f'# {untied_model.folder.name}, steered' in card
      # No reader elsewhere has the folders of this disk, but for the commands that load the base.
      prose = re.sub(r'```.*?```', '', card, flags=re.S)
      assert str(untied_model.folder.parent) not in prose
      assert verify(tmp_path / format).unlisted == ()
      assert (tmp_path / format / 'tokenizer_config.json').exists() == (
        format not in ('peft', 'gguf')
      )
  finally:
    (untied_model.folder / 'tokenizer_config.json').unlink()
