"""Exports as the other side's own library reads them: transformers, plain orbax, PEFT."""
import importlib
import json
import os
import subprocess
import sys

import numpy as np
import peft
import pytest
from safetensors.numpy import load_file, save_file
import torch
import transformers

from weightsteer_jax import directions, models
from weightsteer_jax.directions import Direction, export, parity, peft_export
from weightsteer_jax.errors import InputError, OutputError
from weightsteer_jax.models import Dense

from . import oracle

export_module = importlib.import_module('weightsteer_jax.directions.export')  # The package's `export` is the function.
ALPHA = -1.5
TOKENS = np.random.default_rng(7).integers(0, 40, (3, 20))


def unmerged_logits(model, direction, alpha=ALPHA):
  return parity.logits(model.config, model.params, TOKENS, delta=direction.delta, alpha=alpha)


def torch_logits(model):
  with torch.no_grad():
    return model.eval()(torch.tensor(TOKENS)).logits.float().numpy()


def steered_by_torch(base, adapters, alpha=ALPHA):
  """Logits in float64 of `base + alpha * (positive - negative)`, the two sides merged by PEFT."""
  plus, minus, weights = (oracle.torch_weights(base, adapter) for adapter in (*adapters, None))
  model = transformers.AutoModelForCausalLM.from_pretrained(base).double()
  model.load_state_dict({name: torch.tensor(weights[name] + alpha * (plus[name] - minus[name])) for name in weights})
  return torch_logits(model)


@pytest.fixture(scope='module')
def direction(adapters):
  return directions.contrast(*adapters)


@pytest.fixture(scope='module', params=['untied', 'tied'])
def model_and_direction(request, untied_model, tied_model):
  model = {'untied': untied_model, 'tied': tied_model}[request.param]
  return model, oracle.random_direction(model, 3, size=0.05)


def test_hf_loads_in_transformers(model_and_direction, tmp_path):
  model, direction = model_and_direction
  record = export(direction, model, ALPHA, 'hf', tmp_path / 'out')
  loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  np.testing.assert_allclose(torch_logits(loaded), unmerged_logits(model, direction), atol=1e-4)
  assert record['parity']['largest_difference'] < 1e-4
  assert record['realised_error'] < 1e-4 and record['dtype'] == 'float32'


def test_hf_of_a_contrast_is_what_torch_computes(untied, untied_model, adapters, direction, tmp_path):
  export(direction, untied_model, ALPHA, 'hf', tmp_path / 'out')
  loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  np.testing.assert_allclose(torch_logits(loaded), steered_by_torch(untied, adapters), atol=1e-4)


def test_peft_loads_in_peft(model_and_direction, tmp_path):
  model, direction = model_and_direction
  record = export(direction, model, ALPHA, 'peft', tmp_path / 'out')
  base = transformers.AutoModelForCausalLM.from_pretrained(model.folder)
  loaded = peft.PeftModel.from_pretrained(base, tmp_path / 'out')
  np.testing.assert_allclose(torch_logits(loaded), unmerged_logits(model, direction), atol=1e-4)
  assert record['rank'] == 3
  assert any('vLLM refuses' in note for note in record['notes'])


def test_peft_of_a_contrast_has_rank_2r(untied, untied_model, tmp_path):
  sides = [oracle.make_adapter(tmp_path / name, untied, seed=seed, r=4) for name, seed in (('p', 1), ('n', 2))]
  direction = directions.contrast(*sides)
  record = export(direction, untied_model, 2.0, 'peft', tmp_path / 'out')
  config = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  assert record['rank'] == config['r'] == config['lora_alpha'] == 8 and config['modules_to_save'] is None
  loaded = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(untied), tmp_path / 'out')
  np.testing.assert_allclose(torch_logits(loaded), steered_by_torch(untied, sides, 2.0), atol=1e-4)
  again = directions.task_vector(tmp_path / 'out')
  assert directions.norm(directions.subtract(again, directions.scale(direction, 2.0))) < 1e-6 * directions.norm(again)


def test_orbax_restores_without_this_package(model_and_direction, tmp_path):
  """The example beside the weights runs in a process that cannot import us; the arrays are the steered model's."""
  model, direction = model_and_direction
  export(direction, model, ALPHA, 'orbax', tmp_path / 'out')
  program = '''
import runpy, sys
sys.modules["weightsteer_jax"] = None
restored = runpy.run_path(sys.argv[1])
import numpy as np
params = restored["params"]
np.savez(sys.argv[2], q=params["layers"]["attn"]["q"]["kernel"], embed=params["embed"]["embedding"])
'''
  arguments = str(tmp_path / 'out' / 'restore.py'), str(tmp_path / 'read.npz')
  done = subprocess.run([sys.executable, '-c', program, *arguments], cwd=tmp_path,
                        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': ''}, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert '2 layers of width 16' in done.stdout
  read = np.load(tmp_path / 'read.npz')
  q, q_change = model.params['layers']['attn']['q']['kernel'], direction.delta['layers']['attn']['q']['kernel']
  change = np.einsum('ldr,lrnh->ldnh', np.float64(q_change.a), q_change.scale * np.float64(q_change.b))
  np.testing.assert_allclose(read['q'], q + ALPHA * change, atol=1e-6)
  embed_change = np.asarray(direction.delta['embed']['embedding'].value)
  np.testing.assert_allclose(read['embed'], model.params['embed']['embedding'] + ALPHA * embed_change, atol=1e-6)


def test_what_lies_beside_every_export(untied_model, direction, tmp_path):
  (untied_model.folder / 'tokenizer_config.json').write_text('{}')
  try:
    for format in ('hf', 'orbax', 'peft'):
      record = export(direction, untied_model, ALPHA, format, tmp_path / format)
      assert record == json.loads((tmp_path / format / 'provenance.json').read_text())
      assert record['direction']['base']['digest'] == directions.base_of(untied_model).digest
      assert record['alpha'] == ALPHA
      assert 'README.md' in record['files']
      card = (tmp_path / format / 'README.md').read_text()
      assert f'alpha {ALPHA}' in card and untied_model.source in card and 'logits differ' in card
      assert (tmp_path / format / 'tokenizer_config.json').exists() == (format != 'peft')
  finally:
    (untied_model.folder / 'tokenizer_config.json').unlink()


def test_rounding_is_measured_and_said(untied_model, caplog, tmp_path):
  """Against the same rounding done by torch: a change far below a bfloat16 step is partly lost, and this is said."""
  tiny = oracle.random_direction(untied_model, 3, size=0.005)
  record = export(tiny, untied_model, 1.0, 'hf', tmp_path / 'out', dtype='bfloat16')
  lost = wanted = 0.0
  weights = oracle.torch_weights(untied_model.folder)
  written = {name: torch.tensor(x.astype(np.float32)).double().numpy() for name, x in
             load_file(tmp_path / 'out' / 'model.safetensors').items()}
  for name, change in oracle.dense_in_torch_axes(tiny.delta).items():
    rounded = torch.tensor(weights[name] + change).float().bfloat16().double().numpy()
    np.testing.assert_array_equal(written[name], rounded)
    lost, wanted = lost + np.square(rounded - weights[name] - change).sum(), wanted + np.square(change).sum()
  assert abs(record['realised_error'] - np.sqrt(lost / wanted)) < 1e-3
  assert record['realised_error'] > 0.05 and 'lost to rounding' in caplog.text
  assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out', dtype='auto').dtype == torch.bfloat16


def test_a_bfloat16_base_keeps_its_dtype(untied, tmp_path):
  transformers.AutoModelForCausalLM.from_pretrained(untied).bfloat16().save_pretrained(tmp_path / 'base')
  for dtype in models.DTYPES:
    model = models.load(tmp_path / 'base', dtype=dtype)
    record = export(oracle.random_direction(model, 1), model, 1.0, 'hf', tmp_path / dtype)
    assert record['dtype'] == 'bfloat16' and 'bfloat16' in record['parity']['tolerance']
  first, second = (load_file(tmp_path / dtype / 'model.safetensors') for dtype in models.DTYPES)
  assert all(np.array_equal(first[name], second[name]) for name in first)


def test_nothing_is_written_when_parity_fails(untied_model, direction, tmp_path, monkeypatch):
  """A writer that gets a factor wrong is caught by the logits, whatever the format, and leaves nothing."""
  real_scale = peft_export.scale_delta
  real_merge = export_module.merge
  monkeypatch.setattr(export_module, 'merge', lambda base, delta, alpha, dtype: real_merge(base, delta, 1.01 * alpha,
                                                                                           dtype))
  monkeypatch.setattr(peft_export, 'scale_delta', lambda delta, alpha: real_scale(delta, 1.01 * alpha))
  for format in ('hf', 'orbax', 'peft'):
    with pytest.raises(OutputError, match='differ from the unmerged edit by up to .* allowed is'):
      export(direction, untied_model, ALPHA, format, tmp_path / 'out')
  assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_when_the_file_is_not_what_was_merged(untied_model, direction, tmp_path, monkeypatch):
  real_save = models.save
  def save_damaged(folder, *args, **kwargs):
    real_save(folder, *args, **kwargs)
    tensors = load_file(folder / 'model.safetensors')
    tensors['model.norm.weight'][0] += 1e-6
    save_file(tensors, folder / 'model.safetensors')
  monkeypatch.setattr(models, 'save', save_damaged)
  with pytest.raises(OutputError, match='differs at final_norm/scale'):
    export(direction, untied_model, ALPHA, 'hf', tmp_path / 'out')
  assert list(tmp_path.iterdir()) == []


def test_requests_that_cannot_be_met(untied_model, tied_model, direction, tmp_path):
  (tmp_path / 'there').mkdir()
  (tmp_path / 'there' / 'file').touch()
  requests = {
      'exists already': (untied_model, 1.0, 'hf', tmp_path / 'there'),
      "did you mean 'peft'": (untied_model, 1.0, 'pefd', tmp_path / 'out'),
      'alpha is nan': (untied_model, float('nan'), 'hf', tmp_path / 'out'),
      'tied False / True': (tied_model, 1.0, 'hf', tmp_path / 'out'),
  }
  for message, arguments in requests.items():
    with pytest.raises(InputError, match=message):
      export(direction, *arguments)
  with pytest.raises(InputError, match='always written in float32'):
    export(direction, untied_model, 1.0, 'peft', tmp_path / 'out', dtype='bfloat16')
  with pytest.raises(InputError, match='outside the vocabulary of 40'):
    export(direction, untied_model, 1.0, 'hf', tmp_path / 'out', prompts=[[1, 40]])
  coarse = models.load(untied_model.folder, dtype='bfloat16')
  with pytest.raises(InputError, match='load it in float32'):
    export(direction, coarse, 1.0, 'hf', tmp_path / 'out')
  other = models.load(oracle.make_checkpoint(tmp_path / 'other', tied=False, seed=4))
  with pytest.raises(InputError, match='different base models'):
    export(direction, other, 1.0, 'hf', tmp_path / 'out')
  export(direction, other, 1.0, 'hf', tmp_path / 'out', allow_other_base=True)


def one_change(direction, path, value):
  node = Dense(value)
  for name in reversed(path.split('/')):
    node = {name: node}
  return Direction(node, direction.meta)


def test_what_a_format_cannot_hold_is_refused_or_folded(untied_model, direction, tmp_path):
  residual = one_change(direction, 'layers/residual', np.ones((2, 16), np.float32))
  bias = one_change(direction, 'layers/mlp/down/bias', np.ones((2, 16), np.float32))
  norm = one_change(direction, 'final_norm/scale', np.ones(16, np.float32))
  dense = np.random.default_rng(0).standard_normal((2, 16, 24)).astype(np.float32)
  kernel = one_change(direction, 'layers/mlp/up/kernel', dense)
  for steer in (residual, bias, norm):
    with pytest.raises(InputError, match='norms, biases, the residual stream'):
      export(steer, untied_model, 1.0, 'peft', tmp_path / 'out')
  with pytest.raises(InputError, match='give a rank to fold them to'):
    export(kernel, untied_model, 1.0, 'peft', tmp_path / 'out')
  record = export(kernel, untied_model, 1.0, 'peft', tmp_path / 'folded', rank=4)
  assert 0.1 < record['direction']['compression']['relative_errors']['layers/mlp/up/kernel'] < 0.9
  assert 'folded to rank 4' in (tmp_path / 'folded' / 'README.md').read_text()


@pytest.mark.parametrize('path', ['layers/residual', 'layers/attn/o/bias'])
def test_biases_without_a_tensor_make_it_a_llama_with_biases(tied_model, tmp_path, path):
  """Qwen2 has no biases there; in the Llama with zeros elsewhere, transformers agrees with the unmerged edit."""
  value = 0.3 * np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
  steer = one_change(oracle.random_direction(tied_model, 1), path, value)
  record = export(steer, tied_model, ALPHA, 'hf', tmp_path / 'out')
  loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  assert type(loaded).__name__ == 'LlamaForCausalLM' and 'llama with biases' in record['notes'][0]
  np.testing.assert_allclose(torch_logits(loaded), unmerged_logits(tied_model, steer), atol=1e-4)
  assert np.abs(torch_logits(loaded) - unmerged_logits(tied_model, steer, 0.0)).max() > 0.05
  export(steer, tied_model, ALPHA, 'orbax', tmp_path / 'orbax')
  assert json.loads((tmp_path / 'orbax' / 'config.json').read_text())['model_type'] == 'llama'
