"""Reading and writing `config.json`: real ones, dialects, transformers' defaults, and all that must
be refused."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tiny
import torch
import transformers

from weightsteer_jax import models
from weightsteer_jax.directions import base
from weightsteer_jax.models import families
from weightsteer_jax.models.config import ModelConfig, Rope
from weightsteer_jax.models.families import page
from weightsteer_jax.models.families.fields import INERT
from weightsteer_jax.models.rope import rope_frequencies
from weightsteer_jax.models.rope import tables as rope_tables
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

LLAMA = dict(
  architectures=['LlamaForCausalLM'],
  model_type='llama',
  hidden_act='silu',
  initializer_range=0.02,
  pretraining_tp=1,
  transformers_version='4.42.3',
  use_cache=True,
)
LLAMA3 = LLAMA | dict(
  attention_bias=False,
  attention_dropout=0.0,
  bos_token_id=128000,
  eos_token_id=[128001, 128008, 128009],
  mlp_bias=False,
  max_position_embeddings=131072,
  num_attention_heads=32,
  num_key_value_heads=8,
  rms_norm_eps=1e-05,
  rope_theta=500000.0,
  torch_dtype='bfloat16',
  vocab_size=128256,
)
QWEN = dict(
  architectures=['Qwen2ForCausalLM'],
  model_type='qwen2',
  attention_dropout=0.0,
  bos_token_id=151643,
  eos_token_id=151645,
  hidden_act='silu',
  initializer_range=0.02,
  rms_norm_eps=1e-06,
  rope_theta=1000000.0,
  torch_dtype='bfloat16',
  transformers_version='4.43.1',
  use_cache=True,
  use_sliding_window=False,
  max_position_embeddings=32768,
)
PHI3 = dict(
  architectures=['Phi3ForCausalLM'],
  attention_bias=False,
  attention_dropout=0.0,
  bos_token_id=1,
  embd_pdrop=0.0,
  auto_map={
    'AutoConfig': 'configuration_phi3.Phi3Config',
    'AutoModelForCausalLM': 'modeling_phi3.Phi3ForCausalLM',
  },
  eos_token_id=32000,
  hidden_act='silu',
  hidden_size=3072,
  initializer_range=0.02,
  intermediate_size=8192,
  model_type='phi3',
  num_attention_heads=32,
  num_hidden_layers=32,
  num_key_value_heads=32,
  original_max_position_embeddings=4096,
  pad_token_id=32000,
  resid_pdrop=0.0,
  rms_norm_eps=1e-05,
  rope_theta=10000.0,
  tie_word_embeddings=False,
  torch_dtype='bfloat16',
  transformers_version='4.40.2',
  use_cache=True,
  vocab_size=32064,
)
# Contents of the `config.json` on the hub.
REAL = {
  'Llama-2-7b-chat-hf': LLAMA
  | dict(
    _name_or_path='meta-llama/Llama-2-7b-chat-hf',
    bos_token_id=1,
    eos_token_id=2,
    hidden_size=4096,
    intermediate_size=11008,
    max_position_embeddings=4096,
    num_attention_heads=32,
    num_hidden_layers=32,
    num_key_value_heads=32,
    rms_norm_eps=1e-05,
    rope_scaling=None,
    tie_word_embeddings=False,
    torch_dtype='float16',
    vocab_size=32000,
  ),
  'Llama-3.1-8B-Instruct': LLAMA3
  | dict(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    tie_word_embeddings=False,
    rope_scaling=dict(
      factor=8.0,
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_max_position_embeddings=8192,
      rope_type='llama3',
    ),
  ),
  'Llama-3.2-1B-Instruct': LLAMA3
  | dict(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    tie_word_embeddings=True,
    head_dim=64,
    rope_scaling=dict(
      factor=32.0,
      high_freq_factor=4.0,
      low_freq_factor=1.0,
      original_max_position_embeddings=8192,
      rope_type='llama3',
    ),
  ),
  'Qwen2.5-7B-Instruct': QWEN
  | dict(
    hidden_size=3584,
    intermediate_size=18944,
    max_window_layers=28,
    num_attention_heads=28,
    num_hidden_layers=28,
    num_key_value_heads=4,
    sliding_window=131072,
    tie_word_embeddings=False,
    vocab_size=152064,
  ),
  'Qwen2.5-1.5B-Instruct': QWEN
  | dict(
    hidden_size=1536,
    intermediate_size=8960,
    max_window_layers=21,
    num_attention_heads=12,
    num_hidden_layers=28,
    num_key_value_heads=2,
    sliding_window=32768,
    tie_word_embeddings=True,
    vocab_size=151936,
  ),
  'Qwen2.5-0.5B-Instruct': QWEN
  | dict(
    hidden_size=896,
    intermediate_size=4864,
    max_window_layers=21,
    num_attention_heads=14,
    num_hidden_layers=24,
    num_key_value_heads=2,
    sliding_window=32768,
    tie_word_embeddings=True,
    vocab_size=151936,
  ),
  'SmolLM2-135M-Instruct': LLAMA
  | dict(
    attention_bias=False,
    attention_dropout=0.0,
    bos_token_id=1,
    eos_token_id=2,
    hidden_size=576,
    intermediate_size=1536,
    is_llama_config=True,
    max_position_embeddings=8192,
    mlp_bias=False,
    num_attention_heads=9,
    num_hidden_layers=30,
    num_key_value_heads=3,
    pad_token_id=2,
    rms_norm_eps=1e-05,
    rope_interleaved=False,
    rope_scaling=None,
    rope_theta=100000,
    tie_word_embeddings=True,
    torch_dtype='bfloat16',
    vocab_size=49152,
    **{'transformers.js_config': {'kv_cache_dtype': {'q4f16': 'float16', 'fp16': 'float16'}}},
  ),
}
REAL |= {
  'Qwen3-8B': dict(
    architectures=['Qwen3ForCausalLM'],
    attention_bias=False,
    attention_dropout=0.0,
    bos_token_id=151643,
    eos_token_id=151645,
    head_dim=128,
    hidden_act='silu',
    hidden_size=4096,
    initializer_range=0.02,
    intermediate_size=12288,
    max_position_embeddings=40960,
    max_window_layers=36,
    model_type='qwen3',
    num_attention_heads=32,
    num_hidden_layers=36,
    num_key_value_heads=8,
    rms_norm_eps=1e-06,
    rope_scaling=None,
    rope_theta=1000000,
    sliding_window=None,
    tie_word_embeddings=False,
    torch_dtype='bfloat16',
    transformers_version='4.51.0',
    use_cache=True,
    use_sliding_window=False,
    vocab_size=151936,
  ),
  'Mistral-7B-v0.1': dict(
    architectures=['MistralForCausalLM'],
    bos_token_id=1,
    eos_token_id=2,
    hidden_act='silu',
    hidden_size=4096,
    initializer_range=0.02,
    intermediate_size=14336,
    max_position_embeddings=32768,
    model_type='mistral',
    num_attention_heads=32,
    num_hidden_layers=32,
    num_key_value_heads=8,
    rms_norm_eps=1e-05,
    rope_theta=10000.0,
    sliding_window=4096,
    tie_word_embeddings=False,
    torch_dtype='bfloat16',
    transformers_version='4.34.0.dev0',
    use_cache=True,
    vocab_size=32000,
  ),
  'gemma-2-9b-it': dict(
    architectures=['Gemma2ForCausalLM'],
    attention_bias=False,
    attention_dropout=0.0,
    attn_logit_softcapping=50.0,
    bos_token_id=2,
    cache_implementation='hybrid',
    eos_token_id=1,
    final_logit_softcapping=30.0,
    head_dim=256,
    hidden_act='gelu_pytorch_tanh',
    hidden_activation='gelu_pytorch_tanh',
    hidden_size=3584,
    initializer_range=0.02,
    intermediate_size=14336,
    max_position_embeddings=8192,
    model_type='gemma2',
    num_attention_heads=16,
    num_hidden_layers=42,
    num_key_value_heads=8,
    pad_token_id=0,
    query_pre_attn_scalar=256,
    rms_norm_eps=1e-06,
    rope_theta=10000.0,
    sliding_window=4096,
    sliding_window_size=4096,
    torch_dtype='bfloat16',
    transformers_version='4.42.0.dev0',
    use_cache=True,
    vocab_size=256000,
  ),
  'gemma-3-1b-it': dict(
    architectures=['Gemma3ForCausalLM'],
    attention_bias=False,
    attention_dropout=0.0,
    attn_logit_softcapping=None,
    bos_token_id=2,
    cache_implementation='hybrid',
    eos_token_id=[1, 106],
    final_logit_softcapping=None,
    head_dim=256,
    hidden_activation='gelu_pytorch_tanh',
    hidden_size=1152,
    initializer_range=0.02,
    intermediate_size=6912,
    max_position_embeddings=32768,
    model_type='gemma3_text',
    num_attention_heads=4,
    num_hidden_layers=26,
    num_key_value_heads=1,
    pad_token_id=0,
    query_pre_attn_scalar=256,
    rms_norm_eps=1e-06,
    rope_local_base_freq=10000,
    rope_scaling=None,
    rope_theta=1000000,
    sliding_window=512,
    sliding_window_pattern=6,
    torch_dtype='bfloat16',
    transformers_version='4.50.0.dev0',
    use_cache=True,
    vocab_size=262144,
  ),
  'OLMo-2-1124-7B': dict(
    architectures=['Olmo2ForCausalLM'],
    attention_bias=False,
    attention_dropout=0.0,
    eos_token_id=100257,
    hidden_act='silu',
    hidden_size=4096,
    initializer_range=0.02,
    intermediate_size=11008,
    max_position_embeddings=4096,
    model_type='olmo2',
    num_attention_heads=32,
    num_hidden_layers=32,
    num_key_value_heads=32,
    pad_token_id=100277,
    rms_norm_eps=1e-06,
    rope_scaling=None,
    rope_theta=500000,
    tie_word_embeddings=False,
    torch_dtype='float32',
    transformers_version='4.47.0.dev0',
    use_cache=True,
    vocab_size=100352,
  ),
  'Phi-3-mini-4k-instruct': PHI3
  | dict(max_position_embeddings=4096, rope_scaling=None, sliding_window=2047),
  # The published 48 factors of each list are not typed here; these are as many, and of the same
  # form.
  'Phi-3-mini-128k-instruct': PHI3
  | dict(
    max_position_embeddings=131072,
    sliding_window=262144,
    rope_scaling=dict(
      type='longrope',
      short_factor=[1.0 + i / 20 for i in range(48)],
      long_factor=[1.0 + i * 1.3 for i in range(48)],
    ),
  ),
  'SmolLM3-3B': dict(
    architectures=['SmolLM3ForCausalLM'],
    attention_bias=False,
    attention_dropout=0.0,
    bos_token_id=None,
    eos_token_id=128012,
    hidden_act='silu',
    hidden_size=2048,
    initializer_range=0.02,
    intermediate_size=11008,
    layer_types=['full_attention'] * 36,
    max_position_embeddings=65536,
    max_window_layers=28,
    mlp_bias=False,
    model_type='smollm3',
    no_rope_layer_interval=4,
    no_rope_layers=[1, 1, 1, 0] * 9,
    num_attention_heads=16,
    num_hidden_layers=36,
    num_key_value_heads=4,
    pad_token_id=128004,
    pretraining_tp=2,
    rms_norm_eps=1e-06,
    rope_scaling=None,
    rope_theta=5000000.0,
    sliding_window=None,
    torch_dtype='bfloat16',
    transformers_version='4.54.0.dev0',
    use_cache=False,
    use_sliding_window=False,
    vocab_size=128256,
  ),
  'granite-3.0-8b-instruct': dict(
    architectures=['GraniteForCausalLM'],
    attention_bias=False,
    attention_dropout=0.1,
    attention_multiplier=0.0078125,
    bos_token_id=0,
    embedding_multiplier=12.0,
    eos_token_id=0,
    hidden_act='silu',
    hidden_size=4096,
    initializer_range=0.02,
    intermediate_size=12800,
    logits_scaling=16.0,
    max_position_embeddings=4096,
    mlp_bias=False,
    model_type='granite',
    num_attention_heads=32,
    num_hidden_layers=40,
    num_key_value_heads=8,
    pad_token_id=0,
    residual_multiplier=0.22,
    rms_norm_eps=1e-05,
    rope_scaling=None,
    rope_theta=10000,
    tie_word_embeddings=True,
    torch_dtype='bfloat16',
    transformers_version='4.46.0.dev0',
    use_cache=True,
    vocab_size=49155,
  ),
}
# As their model cards and safetensors indices count them.
PARAMETERS = {
  'Llama-2-7b-chat-hf': 6_738_415_616,
  'Llama-3.1-8B-Instruct': 8_030_261_248,
  'Llama-3.2-1B-Instruct': 1_235_814_400,
  'Qwen2.5-7B-Instruct': 7_615_616_512,
  'Qwen2.5-1.5B-Instruct': 1_543_714_304,
  'Qwen2.5-0.5B-Instruct': 494_032_768,
  'SmolLM2-135M-Instruct': 134_515_008,
  'Qwen3-8B': 8_190_735_360,
  'Mistral-7B-v0.1': 7_241_732_096,
  'gemma-2-9b-it': 9_241_705_984,
  'gemma-3-1b-it': 999_885_952,
  'OLMo-2-1124-7B': 7_298_617_344,
  'Phi-3-mini-4k-instruct': 3_821_079_552,
  'Phi-3-mini-128k-instruct': 3_821_079_552,
  'SmolLM3-3B': 3_075_098_624,
  'granite-3.0-8b-instruct': 8_170_848_256,
}
SMALL = dict(
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  vocab_size=50,
)
ONE_ROPE = [family for family in tiny.FAMILIES if family not in ('gemma3_text', 'phi3')]
LLAMA3_SCALING = dict(
  factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=256
)


def read(**fields) -> ModelConfig:
  return models.read_config({'model_type': 'llama'} | SMALL | fields, where='config.json')


@pytest.mark.parametrize('name', REAL)
def test_real_configs_give_the_published_number_of_parameters(name):
  """And transformers' models of them as many."""
  config = models.read_config(REAL[name], where=name)
  with torch.device('meta'):
    theirs = transformers.AutoModelForCausalLM.from_config(transformers_config(name))
  assert (
    tree.count(models.abstract_params(config))
    == PARAMETERS[name]
    == sum(x.numel() for x in theirs.parameters())
  )


def transformers_config(name: str) -> transformers.PreTrainedConfig:
  return transformers.AutoConfig.for_model(**json.loads(json.dumps(REAL[name])))


@pytest.mark.parametrize('name', REAL)
def test_real_configs_mean_what_transformers_makes_of_them(name):
  """Also when transformers has written them anew, defaults and all."""
  raw, theirs = REAL[name], transformers_config(name)
  ours = models.read_config(raw, where=name)
  heads, rope = theirs.num_attention_heads, theirs.rope_parameters
  rope = rope.get('full_attention', rope)
  assert (
    ours.vocab_size,
    ours.num_layers,
    ours.width,
    ours.num_heads,
    ours.num_kv_heads,
    ours.mlp_width,
  ) == (
    theirs.vocab_size,
    theirs.num_hidden_layers,
    theirs.hidden_size,
    heads,
    theirs.num_key_value_heads,
    theirs.intermediate_size,
  )
  assert ours.head_dim == (getattr(theirs, 'head_dim', None) or theirs.hidden_size // heads)
  assert (ours.norm_eps, ours.tied, ours.activation, ours.max_positions) == (
    theirs.rms_norm_eps,
    theirs.tie_word_embeddings,
    activation(theirs),
    theirs.max_position_embeddings,
  )
  assert ours.qkv_bias == (raw['model_type'] == 'qwen2') and not ours.o_bias and not ours.mlp_bias
  assert (ours.rope.theta, ours.rope.kind, ours.rope.factor) == (
    rope['rope_theta'],
    rope['rope_type'],
    rope.get('factor', 1.0),
  )
  assert models.read_config(plain(theirs), where=name) == ours


@pytest.mark.parametrize(
  'name, expected',
  [
    ('Mistral-7B-v0.1', dict(window=4096, local_layers=tuple(range(32)))),
    (
      'gemma-2-9b-it',
      dict(
        window=4096,
        local_layers=tuple(range(0, 42, 2)),
        score_scale=1 / 16,
        score_softcap=50.0,
        logit_softcap=30.0,
        norm_offset=1.0,
        embedding_scale=3584**0.5,
      ),
    ),
    (
      'gemma-3-1b-it',
      dict(
        window=512,
        local_layers=tuple(i for i in range(26) if i not in (5, 11, 17, 23)),
        score_softcap=None,
        logit_softcap=None,
        qk_norm='head',
      ),
    ),
    ('Phi-3-mini-128k-instruct', dict(window=262144, rotary_fraction=1.0)),
    ('SmolLM3-3B', dict(unrotated_layers=tuple(range(3, 36, 4)), local_layers=())),
    (
      'granite-3.0-8b-instruct',
      dict(score_scale=1 / 128, embedding_scale=12.0, residual_scale=0.22, logit_divisor=16.0),
    ),
    ('OLMo-2-1124-7B', dict(pre_norm=False, post_norm=True, qk_norm='projection')),
  ],
)
def test_what_is_particular_to_real_models_is_read(name, expected):
  config = models.read_config(REAL[name], where=name)
  assert {key: getattr(config, key) for key in expected} == expected
  if name == 'gemma-3-1b-it':
    assert (config.rope.theta, config.local_rope.theta) == (1e6, 1e4)
  if name == 'Phi-3-mini-128k-instruct':
    assert (
      config.rope.original_max_positions == 4096
      and config.rope.attention_factor == pytest.approx(1.1902380714)
    )


def plain(theirs: transformers.PreTrainedConfig) -> dict:
  """What transformers would write to `config.json`, its defaults included."""
  return json.loads(json.dumps(theirs.to_dict()))


@pytest.mark.parametrize('family', tiny.FAMILIES)
def test_defaults_are_those_of_transformers(family):
  """Only what cannot be left out is given; null means absent. transformers' own config says its
  defaults aloud."""
  theirs = tiny.FAMILIES[family][0]()
  required = (
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'vocab_size',
  )
  required += () if family in ('llama', 'olmo2', 'phi3', 'granite') else ('num_key_value_heads',)
  raw = {'model_type': family} | {key: getattr(theirs, key) for key in required}
  for config in (
    models.read_config(raw, where='x'),
    models.read_config(raw | {'head_dim': None, 'rope_scaling': None}, where='x'),
  ):
    assert config == models.read_config(plain(theirs), where='x')
    assert config.num_kv_heads == theirs.num_key_value_heads
    assert config.head_dim == (
      getattr(theirs, 'head_dim', None) or theirs.hidden_size // theirs.num_attention_heads
    )
    assert (config.norm_eps, config.tied, config.activation, config.max_positions) == (
      theirs.rms_norm_eps,
      theirs.tie_word_embeddings,
      activation(theirs),
      theirs.max_position_embeddings,
    )
    rope = theirs.rope_parameters
    assert (config.rope.theta, config.rope.kind) == pick(
      rope.get('full_attention', rope), 'rope_theta', 'rope_type'
    )
    if family == 'llama':
      assert (config.qkv_bias, config.mlp_bias) == (theirs.attention_bias, theirs.mlp_bias)


def activation(theirs: transformers.PreTrainedConfig) -> str:
  return getattr(theirs, 'hidden_activation', None) or theirs.hidden_act


def pick(mapping: dict, *keys: str) -> tuple:
  return tuple(mapping[key] for key in keys)


@pytest.mark.parametrize(
  'fields',
  [
    dict(),
    dict(rope_theta=5000.0),
    dict(rope_theta=5000),
    dict(rope_scaling=None, rope_theta=5000.0),
    dict(rope_parameters=dict(rope_type='default', rope_theta=5000.0)),
    dict(rope_parameters=dict(rope_theta=5000.0)),
    dict(rope_parameters=dict(rope_type='linear', factor=4.0, rope_theta=5000.0)),
    dict(rope_scaling=dict(type='linear', factor=4.0), rope_theta=5000.0),
    dict(rope_scaling=dict(type='linear', factor=2), rope_theta=5000.0),
    dict(rope_scaling=dict(rope_type='linear', factor=4.0)),
    dict(rope_scaling=dict(rope_type='llama3', **LLAMA3_SCALING), rope_theta=5000.0),
    dict(rope_scaling=dict(type='llama3', rope_type='llama3', **LLAMA3_SCALING), rope_theta=5000.0),
    dict(rope_scaling=dict(type='linear', rope_type='llama3', **LLAMA3_SCALING), rope_theta=5000.0),
    dict(rope_parameters=dict(rope_type='llama3', rope_theta=5000.0, **LLAMA3_SCALING)),
    dict(
      rope_parameters=dict(rope_type='llama3', rope_theta=5000.0, **LLAMA3_SCALING), rope_theta=7.0
    ),
    dict(
      rope_parameters=dict(
        rope_type='llama3', rope_theta=5000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0
      ),
      max_position_embeddings=512,
    ),
  ],
  ids=str,
)
@pytest.mark.parametrize('family', ONE_ROPE)
def test_rope_dialects_give_the_frequencies_of_transformers(family, fields):
  sizes = SMALL | dict(hidden_size=256, head_dim=64, max_position_embeddings=1024) | fields
  theirs = transformers.AutoConfig.for_model(
    **json.loads(json.dumps({'model_type': family} | sizes))
  )
  module = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs)
  ours = models.read_config({'model_type': family} | sizes, where='config.json')
  np.testing.assert_allclose(
    rope_frequencies(ours.rope, ours.head_dim), module.inv_freq.double().numpy(), rtol=1e-5
  )
  assert module.attention_scaling == 1.0


LINEAR = dict(rope_type='linear', factor=4.0)


@pytest.mark.parametrize(
  'fields',
  [
    dict(),
    dict(rope_theta=5000.0, rope_local_base_freq=300),
    dict(rope_scaling=LINEAR, rope_theta=5000.0),
    dict(
      rope_parameters=dict(
        full_attention=dict(rope_type='default', rope_theta=700.0), sliding_attention=None
      )
    ),
    dict(
      rope_parameters=dict(full_attention=LINEAR, sliding_attention=LINEAR | dict(rope_theta=80.0)),
      rope_theta=9.0,
    ),
    dict(rope_parameters=dict(full_attention=dict(rope_type='llama3', **LLAMA3_SCALING))),
  ],
  ids=str,
)
def test_both_ropes_of_gemma_3_are_those_of_transformers(fields):
  raw = (
    {'model_type': 'gemma3_text'}
    | SMALL
    | dict(head_dim=64, num_hidden_layers=6, max_position_embeddings=1024)
    | fields
  )
  theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(raw)))
  module = transformers.models.gemma3.modeling_gemma3.Gemma3RotaryEmbedding(theirs)
  ours = models.read_config(raw, where='config.json')
  for rope, expected in (
    (ours.rope, module.full_attention_inv_freq),
    (ours.local_rope, module.sliding_attention_inv_freq),
  ):
    np.testing.assert_allclose(rope_frequencies(rope, 64), expected.double().numpy(), rtol=1e-5)


FACTORS = dict(short_factor=[1.0, 1.1, 1.3, 1.7], long_factor=[1.0, 2.0, 4.0, 9.0])


@pytest.mark.parametrize(
  'fields',
  [
    dict(),
    dict(rope_theta=5000.0, partial_rotary_factor=0.5),
    dict(
      rope_parameters=dict(rope_type='default', rope_theta=700.0, partial_rotary_factor=0.75),
      partial_rotary_factor=0.5,
    ),
    dict(rope_scaling=dict(type='longrope', **FACTORS), original_max_position_embeddings=100),
    dict(
      rope_scaling=dict(type='su', original_max_position_embeddings=100, **FACTORS),
      original_max_position_embeddings=100,
    ),
    dict(rope_scaling=dict(type='longrope', original_max_position_embeddings=7, **FACTORS)),
    dict(
      rope_scaling=dict(type='longrope', factor=3.0, **FACTORS),
      original_max_position_embeddings=200,
    ),
    dict(
      rope_scaling=dict(type='longrope', attention_factor=1.7, **FACTORS),
      original_max_position_embeddings=200,
    ),
    dict(
      rope_parameters=dict(
        rope_type='longrope',
        rope_theta=300.0,
        partial_rotary_factor=0.5,
        short_factor=[1.0, 1.5],
        long_factor=[1, 4],
      ),
      original_max_position_embeddings=64,
    ),
  ],
  ids=str,
)
@pytest.mark.parametrize('length', [60, 64, 65, 100, 101, 900])
def test_the_rope_of_phi_3_is_that_of_transformers(fields, length):
  """Its frequencies and its factor, in a call that addresses so many positions."""
  raw = {'model_type': 'phi3', 'max_position_embeddings': 1024, 'pad_token_id': 0} | SMALL | fields
  theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(raw)))
  module = transformers.models.phi3.modeling_phi3.Phi3RotaryEmbedding(theirs)
  cos, sin = module(torch.zeros(1), torch.arange(length)[None])
  ours = models.read_config(raw, where='config.json')
  assert cos.shape[-1] == ours.rotary_dim
  turned = rope_tables(ours.rope, ours.rotary_dim, np.arange(length)[None], length=length)
  for table, expected in zip(turned, (cos, sin)):
    np.testing.assert_allclose(np.tile(table[0, :, 0], 2), expected[0].numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(logit_scale=0.5), 'logit_scale=0.5'),
    (dict(sliding_window=128), 'sliding_window'),
    (dict(attention_dropout=0.1), "'attention_dropout' is 0.1"),
    (dict(mlp_dropout=0.1), 'mlp_dropout'),
    (dict(rope_interleaved=True), 'rope_interleaved'),
    (dict(is_encoder_decoder=True), 'is_encoder_decoder'),
    (dict(hidden_act='silo'), "did you mean 'silu'"),
    (dict(hidden_act='gelu_new'), "'hidden_act' is 'gelu_new'"),
    (
      dict(rope_scaling=dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=32768)),
      "rope type 'yarn'",
    ),
    (dict(rope_scaling=dict(type='dynamic', factor=4.0)), "rope type 'dynamic'"),
    (dict(rope_parameters=dict(rope_type='longrope', factor=4.0)), "rope type 'longrope'"),
    (dict(rope_parameters=dict(type='su', factor=4.0)), "rope type 'longrope'"),
    (dict(rope_parameters=dict(rope_type='linear', factor=4.0, beta_fast=32)), 'beta_fast'),
    (dict(rope_parameters=dict(rope_type='linear')), "'factor' is missing"),
    (dict(rope_parameters=dict(rope_type='linear', factor='4')), "'factor' is '4'"),
    (dict(rope_parameters=dict(rope_type='linear', factor=0)), "'factor' is 0"),
    (
      dict(rope_parameters=dict(rope_type='default', partial_rotary_factor=0.5)),
      'partial_rotary_factor',
    ),
    (dict(partial_rotary_factor=0.5), 'partial_rotary_factor'),
    (
      dict(
        rope_parameters=dict(rope_type='llama3', **(LLAMA3_SCALING | dict(high_freq_factor=1.0)))
      ),
      'high_freq_factor',
    ),
    (
      dict(
        rope_parameters=dict(rope_type='default', rope_theta=1e4),
        rope_scaling=dict(type='linear', factor=2.0),
      ),
      'both there',
    ),
    (dict(rope_scaling='linear'), "'rope_scaling' is 'linear'"),
    (dict(rope_theta=-1.0), "'rope_theta' is -1"),
    (dict(hidden_size='32'), "'hidden_size' is '32'"),
    (dict(num_hidden_layers=0), "'num_hidden_layers' is 0"),
    (dict(num_hidden_layers=2.0), "'num_hidden_layers' is 2.0"),
    (dict(tie_word_embeddings='false'), "'tie_word_embeddings' is 'false'"),
    (dict(tie_word_embeddings=1), "'tie_word_embeddings' is 1"),
    (dict(rms_norm_eps=0), "'rms_norm_eps' is 0"),
    (dict(num_key_value_heads=3), '4 query heads cannot share 3'),
    (dict(head_dim=7), '7 are no even number'),
    (dict(hidden_size=None), "'hidden_size' is missing"),
    (dict(quantization_config=dict(quant_method='gptq', bits=4)), 'gptq'),
    (dict(architectures=['LlamaForSequenceClassification']), 'LlamaForSequenceClassification'),
    (dict(model_type='lama'), "did you mean 'llama'"),
    (
      dict(model_type='falcon'),
      "model_type 'falcon' is not supported; supported: gemma2, gemma3_text, granite, llama, ",
    ),
    (dict(model_type='gemma3'), "model_type 'gemma3' is not supported"),
    (dict(model_type=None), "model_type 'None'"),
    (dict(model_type=['llama']), 'model_type'),
    (dict(model_type='qwen2', use_sliding_window=1), "'use_sliding_window' is 1"),
    (
      dict(model_type='qwen2', layer_types=['full_attention', 'sliding_attention']),
      "there is no 'sliding_window' in use",
    ),
    (
      dict(model_type='qwen2', layer_types=['full_attention', 'chunked_attention']),
      'chunked_attention',
    ),
    (dict(model_type='qwen2', layer_types=['full_attention']), 'layer_types'),
    (dict(model_type='qwen3', attention_dropout=0.1), "'attention_dropout' is 0.1"),
    (dict(model_type='mistral', layer_types=['full_attention'] * 2), 'layer_types'),
    (dict(model_type='mistral', sliding_window=0), "'sliding_window' is 0"),
    (dict(model_type='gemma2', sliding_window=None), "there is no 'sliding_window' in use"),
    (dict(model_type='gemma2', sliding_window_size=7), "'sliding_window_size' is 7"),
    (
      dict(model_type='gemma2', use_bidirectional_attention=True),
      "'use_bidirectional_attention' is True",
    ),
    (
      dict(model_type='gemma2', hidden_act='silu'),
      "'hidden_act' is 'silu', which is not supported",
    ),
    (dict(model_type='gemma2', query_pre_attn_scalar=0), "'query_pre_attn_scalar' is 0"),
    (dict(model_type='gemma2', attn_logit_softcapping=0), "'attn_logit_softcapping' is 0"),
    (
      dict(model_type='gemma3_text', attn_logit_softcapping=50.0),
      "'attn_logit_softcapping' is 50.0",
    ),
    (
      dict(model_type='gemma3_text', rope_parameters=dict(rope_type='default', rope_theta=1e4)),
      'rope_theta=10000.0',
    ),
    (
      dict(model_type='gemma3_text', rope_scaling=dict(rope_type='yarn', factor=8.0)),
      "rope type 'yarn'",
    ),
    (
      dict(
        model_type='gemma3_text', rope_scaling=LINEAR, rope_parameters=dict(full_attention=LINEAR)
      ),
      'both there',
    ),
    (dict(model_type='olmo2', clip_qkv=8.0), 'clip_qkv=8.0'),
    (
      dict(model_type='phi3', rope_scaling=LINEAR),
      "'linear' is not supported; supported: default, longrope",
    ),
    (
      dict(model_type='phi3', rope_scaling=dict(type='longrope', short_factor=[1.0] * 4)),
      "'long_factor' is missing",
    ),
    (
      dict(
        model_type='phi3',
        rope_scaling=dict(type='longrope', short_factor=[1.0] * 3, long_factor=[1.0] * 4),
      ),
      '3 factors',
    ),
    (
      dict(
        model_type='phi3',
        rope_scaling=dict(type='longrope', short_factor=[0.0] * 4, long_factor=[1.0] * 4),
      ),
      'numbers above 0',
    ),
    (dict(model_type='phi3', partial_rotary_factor=0.4), 'no even number'),
    (dict(model_type='phi3', partial_rotary_factor=1.5), 'no even number'),
    (dict(model_type='phi3', resid_pdrop=0.1), "'resid_pdrop' is 0.1"),
    (dict(model_type='smollm3', no_rope_layers=[1]), "'no_rope_layers' is [1]"),
    (dict(model_type='smollm3', no_rope_layers=[1, 2]), "'no_rope_layers' is [1, 2]"),
    (
      dict(model_type='smollm3', use_sliding_window=True, layer_types=['sliding_attention'] * 2),
      "no 'sliding_window'",
    ),
    (dict(model_type='granite', residual_multiplier=0.0), "'residual_multiplier' is 0.0"),
    (dict(model_type='granite', shared_intermediate_size=64), 'shared_intermediate_size=64'),
    (dict(model_type='qwen2', attention_bias=True), 'attention_bias'),
    (dict(model_type='qwen2', num_key_value_heads=None), "'num_key_value_heads' is missing"),
  ],
  ids=str,
)
def test_what_the_decoder_does_not_honour_is_an_error_that_names_it(fields, message):
  with pytest.raises(InputError) as error:
    read(**fields)
  assert message in str(error.value) and 'config.json' in str(error.value)


@pytest.mark.parametrize('raw', [[], 'llama', None])
def test_a_config_that_is_no_object_is_an_error(raw):
  with pytest.raises(InputError, match='config of a model'):
    models.read_config(raw, where='config.json')


@pytest.mark.parametrize(
  'fields',
  [
    dict(quantization_config=None),
    dict(sliding_window=None),
    dict(new_idea=None),
    dict(attention_dropout=0),
    dict(pretraining_tp=2),
    dict(temperature=0.6, top_p=0.9, max_length=4096, do_sample=True),
    dict(is_decoder=True),
    dict(partial_rotary_factor=1.0),
    dict(
      model_type='qwen2',
      sliding_window=4096,
      max_window_layers=2,
      use_sliding_window=False,
      use_mrope=False,
    ),
    dict(model_type='qwen2', layer_types=['full_attention', 'full_attention']),
    dict(model_type='qwen3', sliding_window=4096, max_window_layers=0, use_sliding_window=False),
    dict(
      model_type='gemma2',
      cache_implementation='hybrid',
      sliding_window_size=4096,
      hidden_act='gelu_pytorch_tanh',
    ),
    dict(
      model_type='gemma2',
      layer_types=['sliding_attention', 'full_attention'],
      sliding_window_pattern=None,
    ),
    dict(
      model_type='gemma3_text',
      attn_logit_softcapping=None,
      sliding_window_pattern=6,
      _sliding_window_pattern=2,
    ),
    dict(model_type='phi3', sliding_window=None, rope_scaling=dict(type='default')),
    dict(model_type='smollm3', no_rope_layers=[1, 1], max_window_layers=28, pretraining_tp=2),
    dict(model_type='granite', attention_dropout=0.1),
  ],
  ids=str,
)
def test_fields_without_effect_change_nothing(fields):
  assert read(**fields) == read(model_type=fields.get('model_type', 'llama'))


@pytest.mark.parametrize(
  'family, key, field',
  [
    ('mistral', 'sliding_window', 'window'),
    ('gemma2', 'attn_logit_softcapping', 'score_softcap'),
    ('gemma2', 'final_logit_softcapping', 'logit_softcap'),
  ],
)
def test_null_is_not_absent_where_it_turns_something_off(family, key, field):
  """As in transformers, whose default is another."""
  raw = SMALL | {key: None}
  theirs = transformers.AutoConfig.for_model(family, **raw)
  assert getattr(theirs, key) is None and getattr(read(model_type=family, **raw), field) is None
  assert (
    getattr(read(model_type=family), field) == getattr(tiny.FAMILIES[family][0](), key) is not None
  )


@pytest.mark.parametrize('family', tiny.FAMILIES)
def test_no_field_of_transformers_is_passed_over(family):
  """Each field that transformers' class declares is either inert by name or refused when its value
  is absurd."""
  theirs = tiny.FAMILIES[family][0]
  passed = []
  for key in set(theirs().to_dict()) - {'model_type'}:
    try:
      read(model_type=family, **{key: {'absurd': 1}})
      passed.append(key)
    except InputError:
      pass
  router = {'output_router_logits', 'router_aux_loss_coef'}
  known = dict(
    llama={'pretraining_tp'},
    granite={'attention_dropout'},
    mixtral=router,
    qwen3_moe=router,
    gemma3_text={'_sliding_window_pattern'},
  )
  assert set(passed) - INERT == known.get(family, set())
  declared = {field.name for field in dataclasses.fields(theirs)} - {
    field.name for field in dataclasses.fields(transformers.PreTrainedConfig)
  }
  assert declared & INERT <= {
    'initializer_range',
    'use_cache',
    'bos_token_id',
    'eos_token_id',
    'pad_token_id',
  }


# A value for each inert field that is neither transformers' default nor the tiny models' own.
INERT_VALUES = (
  dict.fromkeys(INERT, 3)
  | dict(
    _attn_implementation_autoset=True,
    _commit_hash='0123abc',
    _model_name_or_path='Smollm2 135M',
    _name_or_path='org/other',
    architectures=['OtherForCausalLM'],
    auto_map={'AutoModelForCausalLM': 'modeling_other.Other'},
    bad_words_ids=[[5]],
    begin_suppress_tokens=[5],
    cache_implementation='static',
    do_sample=True,
    dtype='float16',
    early_stopping=True,
    exponential_decay_length_penalty=[2, 1.1],
    finetuning_task='other',
    id2label={'0': 'a', '1': 'b', '2': 'c'},
    initializer_range=0.5,
    is_llama_config=False,
    label2id={'a': 0},
    min_p=0.3,
    name_or_path='org/other',
    output_attentions=False,
    output_hidden_states=True,
    output_scores=True,
    prefix='other',
    problem_type='regression',
    remove_invalid_values=True,
    # With False, the models of transformers 5.24 stumble over tuples of their own parts.
    return_dict=True,
    return_dict_in_generate=True,
    suppress_tokens=[5],
    task_specific_params={'other': {'a': 1}},
    temperature=0.3,
    tf_legacy_loss=True,
    tokenizer_class='OtherTokenizer',
    top_p=0.3,
    torch_dtype='float16',
    torchscript=False,
    transformers_version='3.0.0',
    typical_p=0.3,
    unsloth_fixed=True,
    unsloth_version='2025.1',
    use_bfloat16=True,
    use_cache=False,
  )
  | {'transformers.js_config': {'dtype': 'q4'}}
)


@pytest.mark.parametrize(
  'name', [name for name in tiny.CASES if name in tiny.FAMILIES or name == 'gemma3']
)
def test_inert_fields_change_no_logit_of_transformers(name):
  """Each inert field is given another value, and the model of transformers is the same."""
  fields = json.loads(json.dumps(tiny.SIZES | tiny.CASES[name]))
  config_class, model_class = tiny.FAMILIES[fields.pop('family')]
  tokens = torch.arange(12)[None] + 3
  logits, state = [], None
  for inert in ({}, INERT_VALUES):
    torch.manual_seed(0)
    plain_fields = json.loads(json.dumps(fields))
    model = model_class(config_class(**plain_fields | inert)).eval().requires_grad_(False)
    state = state or model.state_dict()
    model.load_state_dict(state)
    # The first output, whatever else the fields ask for.
    logits.append(model(tokens)[0])
  assert torch.equal(*logits)
  family = tiny.CASES[name]['family']
  raw = plain(config_class(**json.loads(json.dumps(fields)))) | {'model_type': family}
  ours = models.read_config(raw, where=name)
  inert = INERT_VALUES | {'architectures': [model_class.__name__]}
  assert models.read_config(raw | inert, where=name) == ours


ROPES = [
  Rope(1e4, 'default', 1.0, 1.0, 1.0, 64),
  Rope(2e4, 'linear', 3.0, 1.0, 1.0, 64),
  Rope(3e4, 'llama3', 8.0, 1.5, 3.5, 32),
]


@pytest.mark.parametrize('name', tiny.CASES)
def test_a_config_read_and_written_is_the_same_to_transformers(name):
  """Field by field, but for those that we write out where transformers leaves a default to its
  models."""
  family, theirs = tiny.CASES[name]['family'], tiny_config(name)
  ours = models.read_config(plain(theirs), where=name)
  written = {'model_type': family} | families.FAMILIES[family].write(ours)
  assert models.read_config(written, where=name) == ours
  again = tiny.FAMILIES[family][0](**json.loads(json.dumps(written))).to_dict()
  unsaid = {
    'pad_token_id',
    'head_dim',
    'partial_rotary_factor',
  }  # The last stands among the rope's own fields too.
  unsaid |= (
    {'max_window_layers'} if 'layer_types' in again else set()
  )  # Which is what it would say.
  unsaid |= (
    {'intermediate_size'} if family == 'qwen3_moe' else set()
  )  # Of dense layers, which there are none of.
  differing = {
    key for key in again.keys() | theirs.to_dict() if again.get(key) != theirs.to_dict().get(key)
  }
  assert differing <= unsaid
  assert again.get('head_dim') in (None, ours.head_dim)


@pytest.mark.parametrize('name', tiny.CASES)
def test_a_direction_remembers_its_model_and_an_old_one_what_its_model_was(name):
  config = models.read_config(plain(tiny_config(name)), where=name)
  record = json.loads(json.dumps(models.config_to_record(config)))
  again = base.config_from_json(record, where='direction.json')
  assert again == config and hash(again) == hash(config)
  added = {
    field.name
    for field in dataclasses.fields(ModelConfig)
    if field.default is not dataclasses.MISSING
  }
  old = {key: value for key, value in record.items() if key not in added}
  old['rope'] = {
    key: old['rope'][key]
    for key in (
      'theta',
      'kind',
      'factor',
      'low_freq_factor',
      'high_freq_factor',
      'original_max_positions',
    )
  }
  if name.startswith(('llama', 'qwen2')):
    assert base.config_from_json(old, where='direction.json') == config
  with pytest.raises(
    InputError, match='direction.json describes a model with fields this version does not know'
  ):
    base.config_from_json(record | {'new_idea': 1}, where='direction.json')


def tiny_config(name: str) -> transformers.PreTrainedConfig:
  """transformers' config of a case of tiny.py."""
  fields = json.loads(json.dumps(tiny.SIZES | tiny.CASES[name]))
  return tiny.FAMILIES[fields.pop('family')][0](**fields)


@pytest.mark.parametrize('rope', ROPES, ids=lambda rope: rope.kind)
@pytest.mark.parametrize('family', ['llama', 'qwen2'])
def test_written_configs_read_back_the_same_here_and_in_transformers(family, rope):
  config = ModelConfig(
    vocab_size=50,
    num_layers=3,
    width=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=10,
    mlp_width=44,
    norm_eps=2e-4,
    rope=rope,
    tied=True,
    qkv_bias=True,
    o_bias=family == 'llama',
    mlp_bias=family == 'llama',
    activation='relu',
    max_positions=64,
  )
  raw = {'model_type': family} | families.FAMILIES[family].write(config)
  assert models.read_config(raw, where='x') == config
  theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(raw)))
  module = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs)
  np.testing.assert_allclose(
    rope_frequencies(rope, 10), module.inv_freq.double().numpy(), rtol=1e-5
  )
  assert theirs.rms_norm_eps == 2e-4 and theirs.tie_word_embeddings and theirs.hidden_act == 'relu'


@pytest.mark.parametrize(
  'family, change, message',
  [
    (
      'llama',
      dict(qkv_bias=True),
      r"llama checkpoint cannot hold this model.*o_bias False \(it would be True\)",
    ),
    ('qwen2', dict(), 'qkv_bias False'),
    ('qwen2', dict(qkv_bias=True, mlp_bias=True), 'mlp_bias True'),
    ('llama', dict(local_layers=(1,), window=7), r'local_layers \(1,\).*window 7'),
    ('mistral', dict(local_layers=(1,), window=7), r'local_layers \(1,\) .it would be \(0, 1\)'),
    ('llama', dict(qk_norm='head'), "qk_norm 'head'"),
    ('gemma2', dict(), 'post_norm False'),
    ('granite', dict(logit_softcap=3.0), 'logit_softcap 3.0'),
    ('llama', dict(rotary_fraction=0.5), 'rotary_fraction 0.5'),
  ],
)
def test_a_family_refuses_to_write_what_it_cannot_say(family, change, message):
  with pytest.raises(InputError, match=message):
    families.FAMILIES[family].write(dataclasses.replace(read(), **change))


def test_the_page_of_families_says_what_the_code_does():
  """Made by `python -m weightsteer_jax.models.families > docs/families.md`."""
  path = pathlib.Path(__file__).parents[2] / 'docs' / 'families.md'
  assert path.read_text() == page.page()
  for family in families.FAMILIES:
    assert f'## {family}\n' in page.page()


@pytest.mark.parametrize('family', families.FAMILIES)
def test_the_page_names_every_field_that_transformers_has(family):
  """A field that transformers' class declares is on the page, or known to say nothing about the
  forward pass."""
  declared = {field.name for field in dataclasses.fields(tiny.FAMILIES[family][0])}
  fields = page.fields_of(families.FAMILIES[family])
  base_class = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
  assert declared - base_class - INERT <= fields.keys()
