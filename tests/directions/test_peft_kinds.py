"""All that PEFT saves for a LoRA: changes and names against PEFT's own."""

import copy
import json
import re
import shutil
import warnings

import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from safetensors.numpy import load_file, save_file

from weightsteer_jax import directions, models
from weightsteer_jax.directions.adapters import completeness
from weightsteer_jax.directions.streamed import checkpoints
from weightsteer_jax.exports import parity
from weightsteer_jax.runtime.errors import InputError

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


# --- resized vocabularies and tied bases -----------------------------------------------------


def make_resized(folder, base, rows, *, seed, alike=False, **options):
  """An adapter trained on a base whose vocabulary was resized before.

  Args:
    alike: whether the new rows are zero.
  """
  torch.manual_seed(seed)
  options = {'target_modules': ['q_proj'], 'task_type': 'CAUSAL_LM'} | options
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    before = model.config.vocab_size
    model.resize_token_embeddings(rows)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, **options))
    with torch.no_grad():
      for parameter in model.parameters():
        if parameter.requires_grad:
          parameter.add_(0.1 * torch.randn_like(parameter))
        if alike and len(parameter) == rows:
          parameter[before:] = 0
    model.save_pretrained(folder)
  return folder


def run_command_of(error, folder, monkeypatch):
  """Runs the command that an error names, and returns the folder that it writes."""
  code = re.search(r'python -c "(.*)"', str(error.value))[1]
  monkeypatch.chdir(folder)
  exec(code, {})
  return folder / 'new-base'


def test_new_rows_need_the_resized_base_that_the_error_makes(untied, tmp_path, monkeypatch):
  options = dict(modules_to_save=['embed_tokens', 'lm_head'])
  sides = [
    make_resized(tmp_path / name, untied, 43, seed=i, **options) for i, name in enumerate('pn')
  ]
  with pytest.raises(InputError, match='resized to 43 tokens after the base.*with 40') as error:
    directions.between(*sides, base=untied)
  base = run_command_of(error, tmp_path, monkeypatch)
  direction = directions.between(*sides, base=base)
  saved = [load_file(side / TENSORS) for side in sides]
  name = 'base_model.model.model.embed_tokens.weight'
  expected = np.float64(saved[0][name]) - saved[1][name]
  assert expected[40:].any()
  got = direction.delta['embed']['embedding'].value
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_new_rows_that_both_have_alike_are_left_out(untied, tmp_path, capsys):
  options = dict(modules_to_save=['embed_tokens', 'lm_head'], alike=True)
  sides = [
    make_resized(tmp_path / name, untied, 42, seed=i, **options) for i, name in enumerate('pn')
  ]
  direction = directions.between(*sides, base=untied)
  assert 'have 2 tokens more than the base' in capsys.readouterr().out
  saved = [load_file(side / TENSORS) for side in sides]
  name = 'base_model.model.lm_head.weight'
  expected = (np.float64(saved[0][name]) - saved[1][name])[:40]
  np.testing.assert_allclose(direction.delta['lm_head']['kernel'].value, expected.T, atol=1e-6)
  with pytest.raises(InputError, match='resized to 42 tokens'):
    directions.task_vector(sides[0], untied)


def test_a_vocabulary_that_was_cut_changes_the_rows_it_has(untied, untied_model, tmp_path):
  options = dict(modules_to_save=['embed_tokens', 'lm_head'])
  adapter = make_resized(tmp_path / 'a', untied, 36, seed=1, **options)
  vector = directions.task_vector(adapter, untied)
  assert not vector.delta['embed']['embedding'].value[36:].any()
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    base = transformers.AutoModelForCausalLM.from_pretrained(untied)
    base.resize_token_embeddings(36)
    loaded = peft.PeftModel.from_pretrained(base, adapter)
  tokens = np.minimum(oracle.TOKENS, 35)
  with torch.no_grad():
    expected = loaded.eval()(torch.tensor(tokens)).logits.numpy()
  params = models.merge(untied_model.config, untied_model.params, vector.delta, 1.0)
  got = parity.logits(untied_model.config, params, tokens)
  np.testing.assert_allclose(got[..., :36], expected, atol=1e-4)


@pytest.mark.parametrize(
  'options',
  [
    dict(target_modules=['q_proj', 'embed_tokens']),
    dict(target_modules=['q_proj', 'lm_head']),
    dict(modules_to_save=['lm_head']),
    dict(trainable_token_indices={'embed_tokens': [3], 'lm_head': [4]}),
    # Both ends have the same pair, and the head twice the scale.
    dict(
      target_modules=['q_proj', 'embed_tokens'],
      ensure_weight_tying=True,
      alpha_pattern={'lm_head': 10},
    ),
  ],
)
def test_one_end_of_a_tied_base_needs_the_untied_base_that_the_error_makes(
  tied, tmp_path, monkeypatch, options
):
  adapter = oracle.make_adapter(tmp_path / 'a', tied, seed=3, size=0.2, **options)
  with pytest.raises(InputError, match='changes the two differently') as error:
    directions.task_vector(adapter, tied)
  base = run_command_of(error, tmp_path, monkeypatch)
  # PEFT's model of the tied base, whose ends it holds apart until it merges them.
  if options.get('ensure_weight_tying'):
    return
  vector = directions.task_vector(adapter, base)
  model = models.load(base)
  np.testing.assert_allclose(merged_logits(model, vector), peft_logits(tied, adapter), atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_tables_saved_in_the_dtype_of_training_are_no_change(untied, tmp_path, dtype):
  """The float32 base is loaded and saved rounded; a LoRA is all that was trained."""
  sides = []
  for index, name in enumerate('pn'):
    torch.manual_seed(index)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      model = transformers.AutoModelForCausalLM.from_pretrained(untied, dtype=dtype)
      model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=['q_proj']))
      with torch.no_grad():
        for parameter in model.parameters():
          if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter))
      model.save_pretrained(tmp_path / name, save_embedding_layers=True)
    sides.append(tmp_path / name)
  saved = load_file(sides[0] / TENSORS)['base_model.model.lm_head.weight']
  own = load_file(untied / 'model.safetensors')['lm_head.weight']
  assert (saved.astype(np.float32) != own).any()
  assert set(directions.task_vector(sides[0], untied).delta) == {'layers'}
  assert set(directions.between(*sides, base=untied).delta) == {'layers'}


def test_a_table_that_both_saved_alike_is_no_part_of_the_direction(untied, adapters, tmp_path):
  """Moved from the base, and by the same amount: zero, which no export has to hold."""
  other = tmp_path / 'other'
  shutil.copytree(adapters[0], other)
  tensors = load_file(other / TENSORS)
  name = 'base_model.model.model.layers.0.mlp.up_proj.lora_B.weight'
  tensors[name] = tensors[name] + 1
  save_file(tensors, other / TENSORS)
  direction = directions.between(other, adapters[0], base=untied)
  assert set(direction.delta) == {'layers'}


def test_two_adapters_of_nothing_have_no_direction(untied, tmp_path):
  """B is zero before the first step."""
  sides = [oracle.make_adapter(tmp_path / x, untied, seed=i, size=0) for i, x in enumerate('pn')]
  with pytest.raises(InputError, match='hold the same weights: there is no direction'):
    directions.between(*sides, base=untied)


# --- names -------------------------------------------------------------------------------------


def edit(folder, adapter, change):
  """A copy of an adapter with other tensors."""
  shutil.copytree(adapter, folder)
  tensors = load_file(folder / TENSORS)
  save_file(change(tensors), folder / TENSORS)
  return folder


def test_an_adapter_that_is_not_whole_is_refused(untied, adapters, tmp_path):
  def without(part):
    return lambda tensors: {name: x for name, x in tensors.items() if part not in name}

  for name, part, message in (
    ('layer', 'layers.1.', 'of the 30 tensors .* 14 are not in .*layers.1.mlp.down_proj.lora_A'),
    ('table', 'lm_head', '1 are not in .*: lm_head.weight'),
  ):
    adapter = edit(tmp_path / name, adapters[0], without(part))
    with pytest.raises(InputError, match=message):
      directions.between(adapter, adapters[1], base=untied)
  empty = edit(tmp_path / 'empty', adapters[0], lambda tensors: {})
  with pytest.raises(InputError, match='holds no tensors.*compiled or distributed'):
    directions.between(adapters[0], empty, base=untied)


def test_tensors_that_the_config_does_not_name_are_refused(untied, adapters, tmp_path):
  """PEFT loads the adapter without them."""
  adapter = edit(tmp_path / 'a', adapters[0], dict)
  config = json.loads((adapter / CONFIG).read_text())
  config['target_modules'] = ['q_proj']
  (adapter / CONFIG).write_text(json.dumps(config))
  with pytest.raises(InputError, match=r'has a LoRA at 12 module.* does not name'):
    directions.task_vector(adapter, untied)


@pytest.mark.parametrize(
  'rename',
  [
    lambda name: name.replace('base_model.model.', 'base_model.model._orig_mod.'),
    lambda name: f'_orig_mod.{name}',
    lambda name: f'module.{name}',
    lambda name: re.sub(r'(layers\.\d+)\.', r'\1._checkpoint_wrapped_module.', name),
    lambda name: name.replace(
      'base_model.model.model.', 'base_model.model._fsdp_wrapped_module.model.'
    ),
    lambda name: name.replace('.weight', '.default.weight') if 'lora_' in name else name,
  ],
  ids=['compiled', 'compiled outside', 'ddp', 'checkpointed layers', 'fsdp', 'adapter name'],
)
def test_names_of_wrappers_say_nothing(untied, adapters, tmp_path, rename):
  wrapped = edit(
    tmp_path / 'a', adapters[0], lambda tensors: {rename(name): x for name, x in tensors.items()}
  )
  expected = oracle.leaves_of(directions.task_vector(adapters[0], untied).delta)
  got = oracle.leaves_of(directions.task_vector(wrapped, untied).delta)
  assert got.keys() == expected.keys()
  for path, leaf in expected.items():
    for field in ('a', 'b', 'value'):
      if hasattr(leaf, field):
        np.testing.assert_array_equal(getattr(got[path], field), getattr(leaf, field))


def test_a_tensor_twice_with_two_values_is_refused(untied, adapters, tmp_path):
  name = 'base_model.model.lm_head.weight'
  double = edit(
    tmp_path / 'a',
    adapters[0],
    lambda tensors: tensors | {'base_model.model._orig_mod.lm_head.weight': tensors[name] + 1},
  )
  with pytest.raises(InputError, match="holds 'lm_head.weight' twice, with different values"):
    directions.task_vector(double, untied)


def test_patterns_that_disagree_are_told_with_their_values(untied, tmp_path, capsys):
  """PEFT trains with the first of the user's keys and reloads with the first of the sorted."""
  adapter = oracle.make_adapter(
    tmp_path / 'a', untied, seed=3, alpha_pattern={'v_proj': 2, 'self_attn.v_proj': 32}
  )
  vector = directions.task_vector(adapter, untied)
  said = capsys.readouterr().out
  assert "alpha_pattern says 'self_attn.v_proj': 32 and 'v_proj': 2 of 2 module(s)" in said
  plain, merged = oracle.torch_weights(untied), oracle.torch_weights(untied, adapter)
  name = 'model.layers.1.self_attn.v_proj.weight'
  got = oracle.dense_in_torch_axes(vector.delta)[name]
  np.testing.assert_allclose(got, merged[name] - plain[name], atol=1e-6)


def test_the_tensors_decide_between_ranks_that_disagree(untied, tmp_path, capsys):
  """PEFT refuses to load what it saved: the sorted keys say rank 4, the tensors have rank 2."""
  options = dict(target_modules=['v_proj'], rank_pattern={'v_proj': 2, 'self_attn.v_proj': 4})
  adapter = oracle.make_adapter(tmp_path / 'a', untied, seed=3, **options)
  with pytest.raises(RuntimeError, match='size mismatch'):
    peft_logits(untied, adapter)
  vector = directions.task_vector(adapter, untied)
  assert "rank_pattern says 'self_attn.v_proj': 4 and 'v_proj': 2" in capsys.readouterr().out
  saved = load_file(adapter / TENSORS)
  prefix = 'base_model.model.model.layers.0.self_attn.v_proj.lora_'
  product = np.float64(saved[f'{prefix}B.weight']) @ saved[f'{prefix}A.weight']
  got = oracle.dense_in_torch_axes(vector.delta)['model.layers.0.self_attn.v_proj.weight']
  np.testing.assert_allclose(got, 5 / 2 * product, atol=1e-6)


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
@pytest.mark.parametrize('tries', [20, pytest.param(300, marks=pytest.mark.slow)])
def test_the_tensors_that_a_config_asks_for_are_those_that_peft_saves(
  kind, tries, request, tmp_path
):
  """Many configs at random, each as PEFT saved it."""
  base = request.getfixturevalue(kind)
  count = 0
  with checkpoints.open_checkpoint(base) as opened:
    for seed in range(tries):
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
  assert count > tries / 3


OTHERS = {
  # A scaled embedding, tied by default, whose factors PEFT scales too.
  'gemma2': [
    dict(target_modules=['q_proj', 'embed_tokens'], ensure_weight_tying=True),
    dict(target_modules=['q_proj'], trainable_token_indices=[3, 5, 39]),
  ],
  # Modules that hold several parameters.
  'phi3': [
    dict(target_modules=['qkv_proj', 'gate_up_proj'], lora_bias=True),
    dict(target_modules=['o_proj'], modules_to_save=['qkv_proj', 'gate_up_proj']),
  ],
}


@pytest.mark.parametrize('family', OTHERS)
def test_other_families_are_what_peft_computes(tmp_path, family):
  config_class, model_class = tiny.FAMILIES[family]
  torch.manual_seed(0)
  config = config_class(**{**tiny.SIZES, 'vocab_size': 40, **tiny.CASES[family], 'family': None})
  base = model_class(config)
  with torch.no_grad():
    for parameter in base.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  base.save_pretrained(tmp_path / 'base')
  model = models.load(tmp_path / 'base')
  for index, options in enumerate(OTHERS[family]):
    folder = tmp_path / str(index)
    adapter = oracle.make_adapter(folder, tmp_path / 'base', seed=1, size=0.2, **options)
    expected = peft_logits(tmp_path / 'base', adapter)
    vector = directions.task_vector(adapter, tmp_path / 'base')
    # Only unmerged is there a place for biases that the base does not have.
    if options.get('lora_bias'):
      got = oracle.unmerged_logits(model, vector, 1.0)
    else:
      got = merged_logits(model, vector)
    np.testing.assert_allclose(got, expected, atol=1e-4, err_msg=str(options))


@pytest.mark.parametrize('targets', [['q_proj', 'up_proj'], r'layers\.1\..*(q|up)_proj'])
def test_an_adapter_of_a_decoder_without_head(untied, untied_model, tmp_path, targets):
  """AutoModel calls its layers 'layers.0', a language model 'model.layers.0'."""
  adapter = oracle.make_adapter(
    tmp_path / 'a',
    untied,
    seed=3,
    size=0.2,
    model_class=transformers.AutoModel,
    target_modules=targets,
    rank_pattern={r'^layers\.1\.self_attn\.q_proj': 2},
    task_type='FEATURE_EXTRACTION',
  )
  merged = peft.PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(untied), adapter)
  model = transformers.AutoModelForCausalLM.from_pretrained(untied)
  model.model.load_state_dict(merged.merge_and_unload().state_dict())
  vector = directions.task_vector(adapter, untied)
  got = merged_logits(untied_model, vector)
  np.testing.assert_allclose(got, oracle.torch_logits(model), atol=1e-4)
  assert np.abs(got - merged_logits_of_base(untied_model)).max() > 0.01


def test_a_head_of_another_task_is_named(untied, tmp_path):
  adapter = oracle.make_adapter(
    tmp_path / 'a',
    untied,
    seed=3,
    model_class=transformers.AutoModelForSequenceClassification,
    target_modules=['q_proj'],
    task_type='SEQ_CLS',
  )
  with pytest.raises(InputError, match=r"'score.weight' \(task_type SEQ_CLS\): to steer with"):
    directions.task_vector(adapter, untied)
