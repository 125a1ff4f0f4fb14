"""Reading and writing `config.json`: real ones, dialects, transformers' defaults, and all that must be refused."""
import dataclasses
import json

import numpy as np
import pytest
import transformers

import tiny
from weightsteer_jax import models, tree
from weightsteer_jax.errors import InputError
from weightsteer_jax.models import families
from weightsteer_jax.models.config import ModelConfig, Rope
from weightsteer_jax.models.rope import rope_frequencies
from weightsteer_jax.models.families.family import INERT

LLAMA = dict(architectures=['LlamaForCausalLM'],
             model_type='llama',
             hidden_act='silu',
             initializer_range=0.02,
             pretraining_tp=1,
             transformers_version='4.42.3',
             use_cache=True)
LLAMA3 = LLAMA | dict(attention_bias=False,
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
                      vocab_size=128256)
QWEN = dict(architectures=['Qwen2ForCausalLM'],
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
            max_position_embeddings=32768)
# Contents of the `config.json` on the hub.
REAL = {
    'Llama-2-7b-chat-hf': LLAMA | dict(_name_or_path='meta-llama/Llama-2-7b-chat-hf',
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
                                       vocab_size=32000),
    'Llama-3.1-8B-Instruct': LLAMA3 | dict(hidden_size=4096,
                                           intermediate_size=14336,
                                           num_hidden_layers=32,
                                           tie_word_embeddings=False,
                                           rope_scaling=dict(factor=8.0,
                                                             low_freq_factor=1.0,
                                                             high_freq_factor=4.0,
                                                             original_max_position_embeddings=8192,
                                                             rope_type='llama3')),
    'Llama-3.2-1B-Instruct': LLAMA3 | dict(hidden_size=2048,
                                           intermediate_size=8192,
                                           num_hidden_layers=16,
                                           tie_word_embeddings=True,
                                           head_dim=64,
                                           rope_scaling=dict(factor=32.0,
                                                             high_freq_factor=4.0,
                                                             low_freq_factor=1.0,
                                                             original_max_position_embeddings=8192,
                                                             rope_type='llama3')),
    'Qwen2.5-7B-Instruct': QWEN | dict(hidden_size=3584,
                                       intermediate_size=18944,
                                       max_window_layers=28,
                                       num_attention_heads=28,
                                       num_hidden_layers=28,
                                       num_key_value_heads=4,
                                       sliding_window=131072,
                                       tie_word_embeddings=False,
                                       vocab_size=152064),
    'Qwen2.5-1.5B-Instruct': QWEN | dict(hidden_size=1536,
                                         intermediate_size=8960,
                                         max_window_layers=21,
                                         num_attention_heads=12,
                                         num_hidden_layers=28,
                                         num_key_value_heads=2,
                                         sliding_window=32768,
                                         tie_word_embeddings=True,
                                         vocab_size=151936),
    'Qwen2.5-0.5B-Instruct': QWEN | dict(hidden_size=896,
                                         intermediate_size=4864,
                                         max_window_layers=21,
                                         num_attention_heads=14,
                                         num_hidden_layers=24,
                                         num_key_value_heads=2,
                                         sliding_window=32768,
                                         tie_word_embeddings=True,
                                         vocab_size=151936),
    'SmolLM2-135M-Instruct': LLAMA |
    dict(attention_bias=False,
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
         **{'transformers.js_config': {'kv_cache_dtype': {'q4f16': 'float16', 'fp16': 'float16'}}}),
}
# As their model cards and safetensors indices count them.
PARAMETERS = {
    'Llama-2-7b-chat-hf': 6_738_415_616, 'Llama-3.1-8B-Instruct': 8_030_261_248, 'Llama-3.2-1B-Instruct': 1_235_814_400,
    'Qwen2.5-7B-Instruct': 7_615_616_512, 'Qwen2.5-1.5B-Instruct': 1_543_714_304, 'Qwen2.5-0.5B-Instruct': 494_032_768,
    'SmolLM2-135M-Instruct': 134_515_008,
}
SMALL = dict(hidden_size=32,
             intermediate_size=48,
             num_hidden_layers=2,
             num_attention_heads=4,
             num_key_value_heads=2,
             vocab_size=50)
LLAMA3_SCALING = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=256)


def read(**fields) -> ModelConfig:
  return models.read_config({'model_type': 'llama'} | SMALL | fields, where='config.json')


@pytest.mark.parametrize('name', REAL)
def test_real_configs_give_the_published_number_of_parameters(name):
  config = models.read_config(REAL[name], where=name)
  assert tree.count(models.abstract_params(config)) == PARAMETERS[name]


@pytest.mark.parametrize('name', REAL)
def test_real_configs_mean_what_transformers_makes_of_them(name):
  raw = REAL[name]
  theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(raw)))
  ours = models.read_config(raw, where=name)
  heads = theirs.num_attention_heads
  rope = theirs.rope_parameters
  assert (ours.vocab_size, ours.num_layers, ours.width, ours.num_heads, ours.num_kv_heads,
          ours.mlp_width) == (theirs.vocab_size, theirs.num_hidden_layers, theirs.hidden_size, heads,
                              theirs.num_key_value_heads, theirs.intermediate_size)
  assert ours.head_dim == (getattr(theirs, 'head_dim', None) or theirs.hidden_size // heads)
  assert (ours.norm_eps, ours.tied, ours.activation, ours.max_positions) == (
      theirs.rms_norm_eps, theirs.tie_word_embeddings, theirs.hidden_act, theirs.max_position_embeddings)
  assert ours.qkv_bias == (raw['model_type'] == 'qwen2') and not ours.o_bias and not ours.mlp_bias
  assert (ours.rope.theta, ours.rope.kind, ours.rope.factor) == (rope['rope_theta'], rope['rope_type'],
                                                                 rope.get('factor', 1.0))


@pytest.mark.parametrize('family', tiny.FAMILIES)
def test_defaults_are_those_of_transformers(family):
  """Only what cannot be left out is given; null means absent."""
  theirs = tiny.FAMILIES[family][0]()
  required = ('hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads', 'vocab_size')
  required += ('num_key_value_heads',) if family == 'qwen2' else ()
  raw = {'model_type': family} | {key: getattr(theirs, key) for key in required}
  for config in (models.read_config(raw, where='x'),
                 models.read_config(raw | {'head_dim': None, 'rope_scaling': None}, where='x')):
    assert config.num_kv_heads == theirs.num_key_value_heads
    assert config.head_dim == theirs.hidden_size // theirs.num_attention_heads
    assert (config.norm_eps, config.tied, config.activation, config.max_positions) == (
        theirs.rms_norm_eps, theirs.tie_word_embeddings, theirs.hidden_act, theirs.max_position_embeddings)
    assert (config.rope.theta, config.rope.kind) == (theirs.rope_parameters['rope_theta'],
                                                     theirs.rope_parameters['rope_type'])
    if family == 'llama':
      assert (config.qkv_bias, config.mlp_bias) == (theirs.attention_bias, theirs.mlp_bias)


@pytest.mark.parametrize('fields', [
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
    dict(rope_parameters=dict(rope_type='llama3', rope_theta=5000.0, **LLAMA3_SCALING), rope_theta=7.0),
    dict(rope_parameters=dict(
        rope_type='llama3', rope_theta=5000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
         max_position_embeddings=512),
],
                         ids=str)
@pytest.mark.parametrize('family', tiny.FAMILIES)
def test_rope_dialects_give_the_frequencies_of_transformers(family, fields):
  sizes = SMALL | dict(hidden_size=256, max_position_embeddings=1024) | fields
  theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps({'model_type': family} | sizes)))
  module = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs)
  ours = models.read_config({'model_type': family} | sizes, where='config.json')
  np.testing.assert_allclose(rope_frequencies(ours.rope, ours.head_dim), module.inv_freq.double().numpy(), rtol=1e-5)
  assert module.attention_scaling == 1.0


@pytest.mark.parametrize('fields, message', [
    (dict(logit_scale=0.5), 'logit_scale=0.5'),
    (dict(sliding_window=128), 'sliding_window'),
    (dict(attention_dropout=0.1), "'attention_dropout' is 0.1"),
    (dict(mlp_dropout=0.1), 'mlp_dropout'),
    (dict(rope_interleaved=True), 'rope_interleaved'),
    (dict(is_encoder_decoder=True), 'is_encoder_decoder'),
    (dict(hidden_act='silo'), "did you mean 'silu'"),
    (dict(hidden_act='gelu_new'), "'hidden_act' is 'gelu_new'"),
    (dict(rope_scaling=dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=32768)), "rope type 'yarn'"),
    (dict(rope_scaling=dict(type='dynamic', factor=4.0)), "rope type 'dynamic'"),
    (dict(rope_parameters=dict(rope_type='longrope', factor=4.0)), "rope type 'longrope'"),
    (dict(rope_parameters=dict(rope_type='linear', factor=4.0, beta_fast=32)), 'beta_fast'),
    (dict(rope_parameters=dict(rope_type='linear')), "'factor' is missing"),
    (dict(rope_parameters=dict(rope_type='linear', factor='4')), "'factor' is '4'"),
    (dict(rope_parameters=dict(rope_type='linear', factor=0)), "'factor' is 0"),
    (dict(rope_parameters=dict(rope_type='default', partial_rotary_factor=0.5)), 'partial_rotary_factor'),
    (dict(partial_rotary_factor=0.5), 'partial_rotary_factor'),
    (dict(rope_parameters=dict(rope_type='llama3', **(LLAMA3_SCALING | dict(high_freq_factor=1.0)))),
     'high_freq_factor'),
    (dict(rope_parameters=dict(rope_type='default', rope_theta=1e4), rope_scaling=dict(type='linear',
                                                                                       factor=2.0)), 'both there'),
    (dict(rope_scaling='linear'), "'rope_scaling' is 'linear'"),
    (dict(rope_theta=-1.0), "'rope_theta' is -1"),
    (dict(hidden_size='32'), "'hidden_size' is '32'"),
    (dict(num_hidden_layers=0), "'num_hidden_layers' is 0"),
    (dict(num_hidden_layers=2.0), "'num_hidden_layers' is 2.0"),
    (dict(tie_word_embeddings='false'), "'tie_word_embeddings' is 'false'"),
    (dict(tie_word_embeddings=1), "'tie_word_embeddings' is 1"),
    (dict(rms_norm_eps=0), "'rms_norm_eps' is 0"),
    (dict(num_key_value_heads=3), '4 query heads cannot share 3'),
    (dict(head_dim=7), '7 dimensions'),
    (dict(hidden_size=None), "'hidden_size' is missing"),
    (dict(quantization_config=dict(quant_method='gptq', bits=4)), 'gptq'),
    (dict(architectures=['LlamaForSequenceClassification']), 'LlamaForSequenceClassification'),
    (dict(model_type='lama'), "did you mean 'llama'"),
    (dict(model_type='mistral'), "model_type 'mistral' is not supported"),
    (dict(model_type=None), "model_type 'None'"),
    (dict(model_type=['llama']), 'model_type'),
    (dict(model_type='qwen2', use_sliding_window=True), 'use_sliding_window'),
    (dict(model_type='qwen2', layer_types=['full_attention', 'sliding_attention']), 'sliding_attention'),
    (dict(model_type='qwen2', layer_types=['full_attention']), 'layer_types'),
    (dict(model_type='qwen2', attention_bias=True), 'attention_bias'),
    (dict(model_type='qwen2', num_key_value_heads=None), "'num_key_value_heads' is missing"),
],
                         ids=str)
def test_what_the_decoder_does_not_honour_is_an_error_that_names_it(fields, message):
  with pytest.raises(InputError) as error:
    read(**fields)
  assert message in str(error.value) and 'config.json' in str(error.value)


@pytest.mark.parametrize('raw', [[], 'llama', None])
def test_a_config_that_is_no_object_is_an_error(raw):
  with pytest.raises(InputError, match='config of a model'):
    models.read_config(raw, where='config.json')


@pytest.mark.parametrize('fields', [
    dict(quantization_config=None),
    dict(sliding_window=None),
    dict(new_idea=None),
    dict(attention_dropout=0),
    dict(pretraining_tp=2),
    dict(temperature=0.6, top_p=0.9, max_length=4096, do_sample=True),
    dict(is_decoder=True),
    dict(partial_rotary_factor=1.0),
    dict(model_type='qwen2', sliding_window=4096, max_window_layers=2, use_sliding_window=False, use_mrope=False),
    dict(model_type='qwen2', layer_types=['full_attention', 'full_attention']),
],
                         ids=str)
def test_fields_without_effect_change_nothing(fields):
  assert read(**fields) == read(model_type=fields.get('model_type', 'llama'))


@pytest.mark.parametrize('family', tiny.FAMILIES)
def test_no_field_of_transformers_is_passed_over(family):
  """Each field that transformers' class declares is either inert by name or refused when its value is absurd."""
  theirs = tiny.FAMILIES[family][0]
  passed = []
  for key in set(theirs().to_dict()) - {'model_type'}:
    try:
      read(model_type=family, **{key: {'absurd': 1}})
      passed.append(key)
    except InputError:
      pass
  assert set(passed) - INERT == ({'sliding_window', 'max_window_layers'} if family == 'qwen2' else {'pretraining_tp'})
  declared = {field.name for field in dataclasses.fields(theirs)
             } - {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
  assert declared & INERT <= {'initializer_range', 'use_cache', 'bos_token_id', 'eos_token_id', 'pad_token_id'}


ROPES = [
    Rope(1e4, 'default', 1.0, 1.0, 1.0, 64),
    Rope(2e4, 'linear', 3.0, 1.0, 1.0, 64),
    Rope(3e4, 'llama3', 8.0, 1.5, 3.5, 32)
]


@pytest.mark.parametrize('rope', ROPES, ids=lambda rope: rope.kind)
@pytest.mark.parametrize('family', tiny.FAMILIES)
def test_written_configs_read_back_the_same_here_and_in_transformers(family, rope):
  config = ModelConfig(vocab_size=50,
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
                       max_positions=64)
  raw = {'model_type': family} | families.FAMILIES[family].write(config)
  assert models.read_config(raw, where='x') == config
  theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(raw)))
  module = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs)
  np.testing.assert_allclose(rope_frequencies(rope, 10), module.inv_freq.double().numpy(), rtol=1e-5)
  assert theirs.rms_norm_eps == 2e-4 and theirs.tie_word_embeddings and theirs.hidden_act == 'relu'


@pytest.mark.parametrize('family, biases', [('llama', dict(qkv_bias=True, o_bias=False, mlp_bias=False)),
                                            ('qwen2', dict(qkv_bias=False, o_bias=False, mlp_bias=False)),
                                            ('qwen2', dict(qkv_bias=True, o_bias=False, mlp_bias=True))])
def test_a_family_refuses_to_write_what_it_cannot_say(family, biases):
  config = dataclasses.replace(read(), **biases)
  with pytest.raises(InputError, match='biases'):
    families.FAMILIES[family].write(config)
