"""Refusals, losses and folds of exports: given in numbers, with nothing left behind."""

import json

import numpy as np
import pytest
import torch
import transformers
from directions import oracle
from safetensors.numpy import load_file

from weightsteer_jax import models
from weightsteer_jax.directions import Direction
from weightsteer_jax.directions.streamed import blocks
from weightsteer_jax.exports import FORMATS, export, merging, orbax, peft, recheck
from weightsteer_jax.models import Dense
from weightsteer_jax.runtime.errors import InputError, OutputError

ALPHA = -1.5


def test_rounding_is_measured_and_said(untied_model, caplog, tmp_path):
  """Against the same rounding by torch: a change below a bfloat16 step is partly lost."""
  tiny = oracle.random_direction(untied_model, 3, size=0.005)
  record = export(tiny, untied_model, 1.0, 'hf', tmp_path / 'out', dtype='bfloat16')
  lost = 0.0
  whole = 0.0
  weights = oracle.torch_weights(untied_model.folder)
  tensors = load_file(tmp_path / 'out' / 'model.safetensors')
  written = {name: x.astype(np.float32).astype(np.float64) for name, x in tensors.items()}
  for name, change in oracle.dense_in_torch_axes(tiny.delta).items():
    rounded = torch.tensor(weights[name] + change).float().bfloat16().double().numpy()
    np.testing.assert_array_equal(written[name], rounded)
    lost += np.square(rounded - weights[name] - change).sum()
    whole += np.square(change).sum()
  assert abs(record['realised_error'] - np.sqrt(lost / whole)) < 1e-3
  assert record['realised_error'] > 0.05
  assert 'lost to rounding' in caplog.text
  loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out', dtype='auto')
  assert loaded.dtype == torch.bfloat16


def test_a_bfloat16_base_keeps_its_dtype(untied, tmp_path):
  base = transformers.AutoModelForCausalLM.from_pretrained(untied)
  base.bfloat16().save_pretrained(tmp_path / 'base')
  for dtype in models.DTYPES:
    model = models.load(tmp_path / 'base', dtype=dtype)
    record = export(oracle.random_direction(model, 1), model, 1.0, 'hf', tmp_path / dtype)
    assert record['dtype'] == 'bfloat16' and 'bfloat16' in record['parity']['tolerance']
  first, second = (load_file(tmp_path / dtype / 'model.safetensors') for dtype in models.DTYPES)
  assert all(np.array_equal(first[name], second[name]) for name in first)


def test_nothing_is_written_when_parity_fails(untied_model, direction, tmp_path, monkeypatch):
  """Logits catch a writer with a wrong factor, whatever the format."""
  real_scale = peft.scale_delta
  real_merge = merging.merge
  real_matrices = orbax.to_matrices
  real_steer = blocks.steer

  def merge(base, delta, alpha, dtype):
    return real_merge(base, delta, 1.01 * alpha, dtype)

  def steer(base, plus, minus, alpha, dtype):
    return real_steer(base, plus, minus, 1.01 * alpha, dtype)

  def scale_delta(delta, alpha):
    return real_scale(delta, 1.01 * alpha)

  def to_matrices(config, delta):
    return real_matrices(config, real_scale(delta, 1.01))

  real_padded = peft.padded

  def padded(pair, rank):
    a, b = real_padded(pair, rank)
    return a, np.float32(1.01) * b

  # One for each format, in the order of hf, orbax, peft, orbax-unmerged and gguf.
  monkeypatch.setattr(blocks, 'steer', steer)
  monkeypatch.setattr(merging, 'merge', merge)
  monkeypatch.setattr(peft, 'scale_delta', scale_delta)
  monkeypatch.setattr(orbax, 'to_matrices', to_matrices)
  monkeypatch.setattr(peft, 'padded', padded)
  # The check of the weights would see the factor before the logits do.
  monkeypatch.setattr(recheck, 'recheck', lambda folder, steered: recheck.Rechecked(0, 0, 0.0))
  for format in FORMATS:
    with pytest.raises(OutputError, match='differ from the unmerged edit by up to .* allowed is'):
      # llama.cpp takes no whole embeddings, which are folded for it.
      rank = 8 if format == 'gguf' else 0
      export(direction, untied_model, ALPHA, format, tmp_path / 'out', rank=rank)
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
  with pytest.raises(InputError, match='is of a PEFT adapter'):
    export(direction, untied_model, 1.0, 'hf', tmp_path / 'out', target='vllm')
  with pytest.raises(InputError, match="did you mean 'llama.cpp'"):
    export(direction, untied_model, 1.0, 'peft', tmp_path / 'out', target='llama.cp')
  with pytest.raises(InputError, match="'gs://bucket/x' is no path of a file system"):
    export(direction, untied_model, 1.0, 'orbax', 'gs://bucket/x')
  with pytest.raises(InputError, match='rank to fold to is -1'):
    export(direction, untied_model, 1.0, 'hf', tmp_path / 'out', rank=-1)
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
  for steer in (residual, bias):
    with pytest.raises(InputError, match='biases, the residual stream'):
      export(steer, untied_model, 1.0, 'peft', tmp_path / 'out')
  with pytest.raises(InputError, match='norms only.* low-rank change: export merged weights'):
    export(norm, untied_model, 1.0, 'peft', tmp_path / 'out')
  with pytest.raises(InputError, match='give a rank to fold them to'):
    export(kernel, untied_model, 1.0, 'peft', tmp_path / 'out')
  record = export(kernel, untied_model, 1.0, 'peft', tmp_path / 'folded', rank=4)
  assert 0.1 < record['direction']['compression']['relative_errors']['layers/mlp/up/kernel'] < 0.9
  assert 'folded to rank 4' in (tmp_path / 'folded' / 'README.md').read_text()


@pytest.mark.parametrize(
  'path, other', [('layers/residual', 'orbax-unmerged'), ('layers/attn/o/bias', 'orbax')]
)
def test_biases_without_a_tensor_make_it_a_llama_with_biases(tied_model, tmp_path, path, other):
  """transformers and the unmerged edit agree on a Qwen2 written as a Llama with biases."""
  value = 0.3 * np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
  steer = one_change(oracle.random_direction(tied_model, 1), path, value)
  record = export(steer, tied_model, ALPHA, 'hf', tmp_path / 'out')
  loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  assert type(loaded).__name__ == 'LlamaForCausalLM'
  assert 'llama with biases' in record['notes'][0]
  np.testing.assert_allclose(
    oracle.torch_logits(loaded), oracle.unmerged_logits(tied_model, steer, ALPHA), atol=1e-4
  )
  unsteered = oracle.unmerged_logits(tied_model, steer, 0.0)
  assert np.abs(oracle.torch_logits(loaded) - unsteered).max() > 0.05
  export(steer, tied_model, ALPHA, other, tmp_path / other)
  assert json.loads((tmp_path / other / 'config.json').read_text())['model_type'] == 'llama'
