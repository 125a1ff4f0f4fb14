"""All that PEFT saves for a LoRA: changes and names against PEFT's own."""

import copy
import json
import re
import warnings

import numpy as np
import peft
import pytest
import transformers
from safetensors.numpy import load_file

from weightsteer_jax import directions, models
from weightsteer_jax.directions.adapters import completeness
from weightsteer_jax.directions.streamed import checkpoints
from weightsteer_jax.export import parity

from . import oracle

TENSORS = 'adapter_model.safetensors'
CONFIG = 'adapter_config.json'


def peft_logits(base, adapter, rows=0):
  """The logits of PEFT's model as it loads the adapter, never merged."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    if rows:
      model.resize_token_embeddings(rows)
    return oracle.torch_logits(peft.PeftModel.from_pretrained(model, adapter))


def merged_logits(model, direction):
  """Our logits of the model with the whole direction added."""
  params = models.merge(model.config, model.params, direction.delta, 1.0)
  return parity.logits(model.config, params, oracle.TOKENS)


def changed(model, direction):
  return np.abs(merged_logits(model, direction) - merged_logits_of_base(model)).max()


def merged_logits_of_base(model):
  return parity.logits(model.config, model.params, oracle.TOKENS)


TIED = {
  'lora on both ends': dict(target_modules=['q_proj', 'embed_tokens'], ensure_weight_tying=True),
  'lora by the head': dict(target_modules=['q_proj', 'lm_head'], ensure_weight_tying=True),
  'lora by a pattern': dict(target_modules=r'.*(q_proj|lm_head)', ensure_weight_tying=True),
  'lora with rslora': dict(
    target_modules=['q_proj', 'embed_tokens'], ensure_weight_tying=True, use_rslora=True
  ),
  'one end saved': dict(modules_to_save=['embed_tokens'], ensure_weight_tying=True),
  'tokens': dict(trainable_token_indices=[3, 5, 39]),
  'tokens of both ends': dict(trainable_token_indices={'embed_tokens': [7], 'lm_head': [7]}),
  'biases': dict(bias='all'),
}
UNTIED = {
  'embedding and head': dict(target_modules=['q_proj', 'embed_tokens', 'lm_head']),
  'all linear': dict(target_modules='all-linear'),
  'tokens': dict(trainable_token_indices=[3, 5, 39]),
  'tokens, unordered': dict(trainable_token_indices={'embed_tokens': [9, 1], 'lm_head': [20]}),
  'tokens beside a head': dict(
    target_modules=['q_proj', 'lm_head'], trainable_token_indices=[3, 5]
  ),
  'biases': dict(bias='all'),
  'biases of the targets': dict(bias='lora_only', target_modules=['q_proj', 'o_proj']),
  'biases of B': dict(lora_bias=True, target_modules=['q_proj', 'v_proj']),
  'biases of B and of the targets': dict(
    lora_bias=True, bias='lora_only', target_modules=['q_proj', 'k_proj']
  ),
  'a block saved whole': dict(target_modules=['q_proj'], modules_to_save=['mlp', 'norm']),
}


@pytest.mark.parametrize('name', TIED)
def test_adapters_of_a_tied_base_are_what_peft_computes(tied, tied_model, tmp_path, name):
  adapter = oracle.make_adapter(tmp_path / 'a', tied, seed=3, **TIED[name])
  vector = directions.task_vector(adapter, tied)
  expected = peft_logits(tied, adapter)
  np.testing.assert_allclose(merged_logits(tied_model, vector), expected, atol=1e-4)
  assert np.abs(expected - merged_logits_of_base(tied_model)).max() > 0.01


@pytest.mark.parametrize('name', UNTIED)
def test_adapters_of_an_untied_base_are_what_peft_computes(untied, untied_model, tmp_path, name):
  adapter = oracle.make_adapter(tmp_path / 'a', untied, seed=3, size=0.2, **UNTIED[name])
  vector = directions.task_vector(adapter, untied)
  expected = peft_logits(untied, adapter)
  np.testing.assert_allclose(merged_logits(untied_model, vector), expected, atol=1e-4)
  assert np.abs(expected - merged_logits_of_base(untied_model)).max() > 0.01


def test_a_bias_of_b_where_the_base_has_none(untied, untied_model, tmp_path):
  """PEFT cannot merge it; applied unmerged it is a bias times the scale."""
  options = dict(lora_bias=True, target_modules=['o_proj', 'up_proj'])
  adapter = oracle.make_adapter(tmp_path / 'a', untied, seed=3, size=0.2, **options)
  vector = directions.task_vector(adapter, untied)
  np.testing.assert_allclose(
    oracle.unmerged_logits(untied_model, vector, 1.0), peft_logits(untied, adapter), atol=1e-4
  )
  saved = load_file(adapter / TENSORS)['base_model.model.model.layers.1.mlp.up_proj.lora_B.bias']
  got = vector.delta['layers']['mlp']['up']['bias'].value[1]
  np.testing.assert_allclose(got, np.float32(5 / 3) * saved, rtol=1e-6)


def test_the_difference_of_two_tied_adapters_is_that_of_their_matrices(tied, tmp_path):
  """In float64: A^T B^T times the scale, positive minus negative."""
  options = TIED['lora on both ends']
  sides = [oracle.make_adapter(tmp_path / x, tied, seed=i, **options) for i, x in enumerate('pn')]
  direction = directions.between(*sides, base=tied)
  products = []
  for side in sides:
    saved = load_file(side / TENSORS)
    a, b = (
      np.float64(saved[f'base_model.model.model.embed_tokens.lora_embedding_{x}']) for x in 'AB'
    )
    products.append(5 / 3 * a.T @ b.T)
  got = direction.delta['embed']['embedding'].value
  np.testing.assert_allclose(got, products[0] - products[1], atol=1e-6)
  assert 'lm_head' not in direction.delta


# --- names -------------------------------------------------------------------------------------

CHOICES = {
  'target_modules': [
    ['q_proj', 'v_proj'],
    ['self_attn.q_proj', 'mlp.down_proj', 'model.layers.0.self_attn.k_proj'],
    ['q_proj', 'embed_tokens'],
    ['o_proj', 'lm_head'],
    ['q_proj', 'embed_tokens', 'lm_head'],
    ['gate_proj', 'model.embed_tokens'],
    'all-linear',
    r'model\.layers\.\d+\.mlp\.(up|down)_proj',
    r'.*(q_proj|embed_tokens)',
    r'.*\.1\..*_proj',
    r'(q_proj|lm_head)|.*k_proj',
  ],
  'exclude_modules': [None, None, ['k_proj', 'layers.0.mlp.up_proj'], r'.*layers\.1\..*'],
  'layers_to_transform': [None, None, 0, [1], [0, 1], []],
  'layers_pattern': [None, 'layers', ['h', 'layers']],
  'modules_to_save': [
    None,
    None,
    ['embed_tokens'],
    ['lm_head', 'embed_tokens'],
    ['norm'],
    ['input_layernorm'],
    ['mlp'],
    ['layers.1.self_attn.q_proj'],
  ],
  'bias': ['none', 'none', 'all', 'lora_only'],
  'lora_bias': [False, False, True],
  'trainable_token_indices': [
    None,
    None,
    [3],
    {'embed_tokens': [3, 4]},
    {'lm_head': [2]},
    {'embed_tokens': [3], 'lm_head': [3]},
    {'embed_tokens': [3], 'lm_head': [4, 5]},
  ],
  'ensure_weight_tying': [False, True],
}


def draw_options(seed):
  random = np.random.default_rng(seed)
  options = {key: values[random.integers(len(values))] for key, values in CHOICES.items()}
  if options['layers_to_transform'] is None or isinstance(options['target_modules'], str):
    options['layers_to_transform'] = None
    options['layers_pattern'] = None
  # PEFT completes lists in place.
  return copy.deepcopy(options)


def saved_by_peft(folder, base, options):
  """(config as saved, plain names in the file) by PEFT; None where PEFT refuses the options."""
  try:
    adapter = oracle.make_adapter(folder, base, seed=0, **options)
  except (ValueError, TypeError, KeyError, RuntimeError, AttributeError):
    return None
  names = set()
  for name in load_file(adapter / TENSORS):
    if '.original_module.' not in name:
      plain = re.sub(r'\.(base_layer|modules_to_save)\b', '', name)
      plain = plain.replace('token_adapter.weight', 'weight')
      names.add(plain.removeprefix('base_model.model.'))
  return json.loads((adapter / CONFIG).read_text()), names


@pytest.mark.parametrize('kind', ['tied', 'untied'])
def test_the_tensors_that_a_config_asks_for_are_those_that_peft_saves(kind, request, tmp_path):
  """Many configs at random, each as PEFT saved it."""
  base = request.getfixturevalue(kind)
  count = 0
  with checkpoints.open_checkpoint(base) as opened:
    for seed in range(70):
      options = draw_options(seed)
      saved = saved_by_peft(tmp_path / str(seed), base, options)
      if saved is None:
        continue
      config, names = saved
      expected = completeness.expected(config, opened)
      # Embedding and head may stand beside, asked for or not.
      assert expected <= names, options
      assert names - expected <= {'model.embed_tokens.weight', 'lm_head.weight'}, options
      count += 1
  assert count > 30
