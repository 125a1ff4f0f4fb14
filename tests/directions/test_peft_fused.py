"""Adapters on modules that hold several of our parameters, as Phi-3's qkv_proj and gate_up_proj;
PEFT is the oracle."""

import json

import numpy as np
import peft
import pytest
import torch
import transformers

from weightsteer_jax import directions, models
from weightsteer_jax.exports import export, targets
from weightsteer_jax.exports import peft as peft_export
from weightsteer_jax.models import families

from . import oracle

SIZES = dict(
  vocab_size=40,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
  pad_token_id=0,
  original_max_position_embeddings=64,
)


@pytest.fixture(scope='module')
def fused_models(tmp_path_factory):
  """(ours, the folder of the Phi-3 that transformers saved), with every weight random."""
  folder = tmp_path_factory.mktemp('fused') / 'phi'
  torch.manual_seed(0)
  phi = transformers.Phi3ForCausalLM(transformers.Phi3Config(**SIZES))
  with torch.no_grad():
    for parameter in phi.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  phi.save_pretrained(folder)
  return models.load(folder), folder


@pytest.mark.parametrize('changed', ['all', 'some'])
def test_one_adapter_on_the_fused_module_is_what_phi3_computes(fused_models, tmp_path, changed):
  model, phi = fused_models
  direction = oracle.random_direction(model, 1, kinds='lora', size=0.3)
  if changed == 'some':
    layers = direction.delta['layers']
    del layers['attn']['q'], layers['attn']['v'], layers['mlp']['gate']
  record = export(direction, model, -0.5, 'peft', tmp_path / 'out', target='vllm')
  assert record['rank'] == (9 if changed == 'all' else 3)
  config = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  assert config['target_modules'] == ['down_proj', 'gate_up_proj', 'o_proj', 'qkv_proj']
  base = transformers.AutoModelForCausalLM.from_pretrained(phi)
  np.testing.assert_allclose(
    oracle.torch_logits(base), oracle.unmerged_logits(model, direction, 0.0), atol=1e-4
  )
  loaded = peft.PeftModel.from_pretrained(base, tmp_path / 'out')
  expected = oracle.unmerged_logits(model, direction, -0.5)
  np.testing.assert_allclose(oracle.torch_logits(loaded), expected, atol=1e-4)
  assert np.abs(expected - oracle.unmerged_logits(model, direction, 0.0)).max() > 0.01


def test_read_back_each_parameter_has_its_own_rank(fused_models, tmp_path):
  model, _ = fused_models
  direction = oracle.random_direction(model, 1, kinds='lora', size=0.3)
  del direction.delta['layers']['attn']['v']
  export(direction, model, 1.0, 'peft', tmp_path / 'out')
  again = directions.task_vector(tmp_path / 'out', base=model.folder)
  assert directions.norm(directions.subtract(again, direction)) < 1e-6 * directions.norm(direction)
  assert set(again.delta['layers']['attn']) == {'q', 'k', 'o'}
  assert again.delta['layers']['attn']['k']['kernel'].a.shape[-1] == 3


def test_an_adapter_that_peft_trained_on_a_fused_module_is_read(fused_models, tmp_path):
  """Its factor A is shared by q, k and v; each gets its rows of B. Against what PEFT merges."""
  model, phi = fused_models
  adapter = oracle.make_adapter(
    tmp_path / 'a', phi, seed=1, target_modules=['qkv_proj', 'gate_up_proj', 'o_proj']
  )
  found = directions.task_vector(adapter, base=model.folder)
  plain, merged = oracle.torch_weights(phi), oracle.torch_weights(phi, adapter)
  change = {name: merged[name] - plain[name] for name in plain}
  dense = oracle.leaves_of(found.delta)
  for layer in range(2):
    blocks = [
      np.float64(leaf.a[layer]) @ np.float64(leaf.b[layer]).reshape(3, -1) * leaf.scale
      for leaf in (dense[f'layers/attn/{x}/kernel'] for x in 'qkv')
    ]
    np.testing.assert_allclose(
      np.concatenate(blocks, axis=1).T,
      change[f'model.layers.{layer}.self_attn.qkv_proj.weight'],
      atol=1e-6,
    )
    blocks = [
      np.float64(leaf.a[layer]) @ np.float64(leaf.b[layer]) * leaf.scale
      for leaf in (dense[f'layers/mlp/{x}/kernel'] for x in ('gate', 'up'))
    ]
    np.testing.assert_allclose(
      np.concatenate(blocks, axis=1).T,
      change[f'model.layers.{layer}.mlp.gate_up_proj.weight'],
      atol=1e-6,
    )


def test_ranks_add_up_in_a_fused_module(fused_models):
  model, _ = fused_models
  direction = oracle.random_direction(model, 1, kinds='lora', rank=5)
  flat = oracle.leaves_of(direction.delta)
  ranks = targets.module_ranks(flat, model.config, families.FAMILIES['phi3'].tensors)
  assert ranks['model.layers.{l}.self_attn.qkv_proj.weight'] == 15
  assert ranks['model.layers.{l}.mlp.gate_up_proj.weight'] == 10
  assert ranks['model.layers.{l}.self_attn.o_proj.weight'] == 5
  assert (
    targets.module_ranks(flat, model.config, families.FAMILIES['phi3'].tensors, rank=2)[
      'model.layers.{l}.self_attn.qkv_proj.weight'
    ]
    == 6
  )


def test_fused_factors_against_the_dense_product():
  random = np.random.default_rng(0)
  pairs = [
    (random.standard_normal((r, 7)), random.standard_normal((o, r)))
    for r, o in ((2, 5), (0, 3), (4, 6))
  ]
  a, b = peft_export.fuse(pairs)
  assert a.shape == (6, 7) and b.shape == (14, 6)
  np.testing.assert_allclose(b @ a, np.concatenate([b @ a for a, b in pairs]), atol=1e-6)
