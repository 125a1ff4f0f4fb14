"""Directions from every kind of source, against the changes by torch and PEFT in float64."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from weightsteer_jax import directions, finetune, models
from weightsteer_jax.runtime.errors import CorruptError, InputError

from . import oracle


def expected_difference(base, positive, negative):
  """{tensor name: float64 change} of the tensors that differ."""
  plus = oracle.torch_weights(base, positive)
  minus = oracle.torch_weights(base, negative)
  changes = {name: plus[name] - minus[name] for name in plus}
  return {name: change for name, change in changes.items() if change.any()}


def assert_same_changes(delta, expected, tolerance=2e-7):
  got = oracle.dense_in_torch_axes(delta)
  assert set(got) == set(expected)
  for name in expected:
    np.testing.assert_allclose(got[name], expected[name], atol=tolerance, err_msg=name)


def test_two_peft_adapters_with_embeddings(untied, adapters):
  direction = directions.between(*adapters, base=untied)
  assert_same_changes(direction.delta, expected_difference(untied, *adapters))
  assert direction.delta['layers']['attn']['q']['kernel'].a.shape[-1] == 3 + 2


def test_the_base_that_the_adapters_name_is_found(untied, adapters):
  direction = directions.between(*adapters)
  assert direction.base.source == str(untied)
  assert direction.base.digest == directions.base_of(models.load(untied)).digest


@pytest.mark.parametrize(
  'options',
  [
    dict(),
    dict(use_rslora=True),
    dict(
      rank_pattern={'q_proj': 5, 'layers.1.mlp.up_proj': 1},
      alpha_pattern={r'layers\.0\..*v_proj': 11, 'o_proj': 2},
    ),
    dict(target_modules=['q_proj', 'down_proj', 'lm_head']),
    dict(layers_to_transform=[1], target_modules=['v_proj', 'o_proj']),
    dict(modules_to_save=['norm', 'input_layernorm']),
  ],
  ids=['plain', 'rslora', 'patterns', 'subset and head', 'one layer', 'norms'],
)
def test_lora_settings(untied, tmp_path, options):
  positive = oracle.make_adapter(tmp_path / 'p', untied, seed=3, **options)
  negative = oracle.make_adapter(tmp_path / 'n', untied, seed=4, r=4, lora_alpha=3)
  direction = directions.between(positive, negative, base=untied)
  assert_same_changes(direction.delta, expected_difference(untied, positive, negative))


def test_subtracting_factor_by_factor_is_wrong(untied, adapters, tmp_path):
  """The negative control: the factors' differences multiply to something else, and to the same
  thing for w and -w."""
  x = oracle.make_adapter(tmp_path / 'x', untied, seed=5)
  y = oracle.make_adapter(tmp_path / 'y', untied, seed=6)
  plus, minus = (
    load_file(x / 'adapter_model.safetensors'),
    load_file(y / 'adapter_model.safetensors'),
  )
  module = 'model.layers.0.self_attn.q_proj'
  a, b = f'base_model.model.{module}.lora_A.weight', f'base_model.model.{module}.lora_B.weight'
  wrong, wrong_reversed = ((p[b] - m[b]) @ (p[a] - m[a]) for p, m in ((plus, minus), (minus, plus)))
  exact = expected_difference(untied, x, y)[f'{module}.weight']
  ours, reversed_ = (
    oracle.dense_in_torch_axes(directions.between(*sides, base=untied).delta)[f'{module}.weight']
    for sides in ((x, y), (y, x))
  )
  np.testing.assert_allclose(wrong, wrong_reversed, atol=1e-7)
  assert np.linalg.norm(wrong - exact) > 0.5 * np.linalg.norm(exact)
  np.testing.assert_allclose(ours, exact, atol=1e-7)
  np.testing.assert_allclose(reversed_, -exact, atol=1e-7)


def test_saved_modules_under_wrapped_names_count_too(untied, adapters, tmp_path):
  """Some tools save `.modules_to_save.` in the name, and the untouched original beside it."""
  wrapped = tmp_path / 'wrapped'
  shutil.copytree(adapters[0], wrapped)
  tensors = load_file(wrapped / 'adapter_model.safetensors')
  for module in ('model.embed_tokens', 'lm_head'):
    tensor = tensors.pop(f'base_model.model.{module}.weight')
    tensors[f'base_model.model.{module}.modules_to_save.default.weight'] = tensor
    tensors[f'base_model.model.{module}.original_module.weight'] = np.zeros_like(tensor)
  save_file(tensors, wrapped / 'adapter_model.safetensors')
  direction = directions.between(wrapped, adapters[1], base=untied)
  assert_same_changes(direction.delta, expected_difference(untied, *adapters))


def test_equal_ends_of_a_tied_base_are_one_change(tied, tmp_path):
  options = dict(modules_to_save=['embed_tokens', 'lm_head'], ensure_weight_tying=True)
  positive = oracle.make_adapter(tmp_path / 'p', tied, seed=7, **options)
  negative = oracle.make_adapter(tmp_path / 'n', tied, seed=8)
  direction = directions.between(positive, negative, base=tied)
  saved = load_file(positive / 'adapter_model.safetensors')
  original = load_file(tied / 'model.safetensors')
  assert 'lm_head' not in direction.delta
  change = saved['base_model.model.lm_head.weight'] - original['model.embed_tokens.weight']
  np.testing.assert_allclose(
    np.asarray(direction.delta['embed']['embedding'].value), change, atol=1e-7
  )


@pytest.mark.parametrize('saved', [['embed_tokens', 'lm_head'], ['embed_tokens'], ['lm_head']])
def test_different_ends_of_a_tied_base_are_refused(tied, tmp_path, saved):
  positive = oracle.make_adapter(tmp_path / 'p', tied, seed=9, modules_to_save=saved)
  negative = oracle.make_adapter(tmp_path / 'n', tied, seed=10)
  with pytest.raises(InputError, match='ties its head to its embedding.*ensure_weight_tying'):
    directions.between(positive, negative, base=tied)


def test_two_checkpoints(untied, tmp_path):
  other = oracle.make_checkpoint(tmp_path / 'other', tied=False, seed=1)
  tensors, others = load_file(untied / 'model.safetensors'), load_file(other / 'model.safetensors')
  # One site is the same in both, and one differs in its second layer only.
  others |= {name: tensor for name, tensor in tensors.items() if 'post_attention_layernorm' in name}
  others['model.layers.0.mlp.up_proj.weight'] = tensors['model.layers.0.mlp.up_proj.weight']
  save_file(others, other / 'model.safetensors', metadata={'format': 'pt'})
  direction = directions.between(other, untied)
  assert 'mlp_norm' not in direction.delta['layers']
  model, steered = models.load(untied), models.load(other)
  merged = models.merge(model.config, model.params, direction.delta, 1.0)
  for got, expected in zip(jax.tree.leaves(merged), jax.tree.leaves(steered.params)):
    np.testing.assert_allclose(got, expected, atol=2e-7)
  up = np.asarray(direction.delta['layers']['mlp']['up']['kernel'].value)
  assert not up[0].any()
  name = 'model.layers.1.mlp.up_proj.weight'
  np.testing.assert_allclose(up[1].T, others[name] - tensors[name], atol=1e-7)
  assert direction.base.digest == ''
  assert (
    directions.between(other, untied, base=untied).base.digest == directions.base_of(model).digest
  )


def save_run(folder, model, seed, kind='lora_embeddings'):
  delta = oracle.random_direction(model, seed).delta
  meta = {**finetune.adapter.describe_base(model), 'kind': kind, 'validation_loss': 1.5}
  finetune.save_adapter(folder / 'adapter', delta, meta)
  return delta


def test_two_runs_of_ours(untied_model, tmp_path):
  plus, minus = save_run(tmp_path / 'p', untied_model, 1), save_run(tmp_path / 'n', untied_model, 2)
  direction = directions.between(tmp_path / 'p', tmp_path / 'n')
  plus, minus = oracle.dense_in_torch_axes(plus), oracle.dense_in_torch_axes(minus)
  assert_same_changes(
    direction.delta, {name: plus[name] - minus[name] for name in plus}, tolerance=1e-6
  )
  assert [source['role'] for source in direction.meta['sources']] == ['positive', 'negative']
  assert direction.meta['sources'][0]['meta']['validation_loss'] == 1.5
  directions.check_base(direction, untied_model)


def test_a_run_and_a_peft_adapter(untied, untied_model, adapters, tmp_path):
  ours = oracle.dense_in_torch_axes(save_run(tmp_path / 'p', untied_model, 1))
  direction = directions.between(tmp_path / 'p', adapters[1])
  base = oracle.torch_weights(untied)
  tuned = oracle.torch_weights(untied, adapters[1])
  expected = {name: change - (tuned[name] - base[name]) for name, change in ours.items()}
  assert_same_changes(direction.delta, expected, tolerance=1e-6)


def test_a_task_vector_is_one_side(untied, adapters, tmp_path):
  base, tuned = oracle.torch_weights(untied), oracle.torch_weights(untied, adapters[0])
  vector = directions.task_vector(adapters[0])
  changes = {name: tuned[name] - base[name] for name in tuned}
  assert_same_changes(
    vector.delta, {name: change for name, change in changes.items() if change.any()}
  )
  checkpoint = oracle.make_checkpoint(tmp_path / 'tuned', tied=False, seed=1)
  model, tuned = models.load(untied), models.load(checkpoint)
  merged = models.merge(
    model.config, model.params, directions.task_vector(checkpoint, untied).delta, 1.0
  )
  np.testing.assert_allclose(
    merged['lm_head']['kernel'], tuned.params['lm_head']['kernel'], atol=2e-7
  )
  with pytest.raises(InputError, match='pass base'):
    directions.task_vector(checkpoint)


def test_sources_that_do_not_go_together(untied, tied, untied_model, adapters, tmp_path):
  with pytest.raises(InputError, match='no folder.*did you mean'):
    directions.between(adapters[0], adapters[1].with_name('negativ'))
  other = oracle.make_checkpoint(tmp_path / 'other', tied=False, seed=4)
  message = 'is a PEFT adapter and .* is a full checkpoint, which is not the base'
  for sides in ((adapters[0], other), (other, adapters[0])):
    with pytest.raises(InputError, match=message):
      directions.between(*sides, base=untied)
  save_run(tmp_path / 'ours', untied_model, 1)
  with pytest.raises(InputError, match='belong to different base models'):
    directions.between(tmp_path / 'ours', other)
  with pytest.raises(InputError, match='a direction needs a fine-tune'):
    directions.between(None)
  with pytest.raises(InputError, match='is a full checkpoint: what it changed is only known with'):
    directions.between(None, other)
  with pytest.raises(InputError, match='both'):
    directions.between(adapters[0], adapters[0])
  with pytest.raises(InputError, match='no source of a direction.*it holds nothing'):
    (tmp_path / 'empty').mkdir()
    directions.between(adapters[0], tmp_path / 'empty')
  with pytest.raises(InputError, match='different architectures: tied False / True'):
    directions.between(untied, tied)
  save_run(tmp_path / 'run', untied_model, 1)
  with pytest.raises(InputError, match='different architectures'):
    directions.between(tmp_path / 'run', adapters[0], base=tied)


def test_two_bases_are_named(untied, adapters, untied_model, tmp_path):
  other = oracle.make_checkpoint(tmp_path / 'other', tied=False, seed=5)
  foreign = oracle.make_adapter(tmp_path / 'foreign', other, seed=1)
  with pytest.raises(InputError) as error:
    directions.between(adapters[0], foreign)
  assert str(untied) in str(error.value) and str(other) in str(error.value)
  save_run(tmp_path / 'p', untied_model, 1)
  save_run(tmp_path / 'n', models.load(other), 2)
  digests = directions.base_of(untied_model).digest, directions.base_of(models.load(other)).digest
  with pytest.raises(InputError) as error:
    directions.between(tmp_path / 'p', tmp_path / 'n')
  assert all(digest in str(error.value) for digest in digests)
  with pytest.raises(InputError, match='different base models'):
    directions.between(tmp_path / 'p', adapters[0], base=other)
  assert (
    directions.between(tmp_path / 'p', tmp_path / 'n', allow_other_base=True).base.digest
    == digests[0]
  )


def edit_config(folder, adapter, **changes):
  shutil.copytree(adapter, folder)
  path = folder / 'adapter_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  return folder


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      dict(peft_type='PREFIX_TUNING'),
      "peft_type is 'PREFIX_TUNING', which is no change of weights",
    ),
    (dict(use_dora=True), 'not whole.*lora_magnitude_vector'),
    (dict(fan_in_fan_out=True), 'fan_in_fan_out=true'),
    (dict(bias='all'), 'not whole.*6 are not in.*layers.0.self_attn.k_proj.bias'),
    (dict(bias='some'), "bias is 'some'"),
    (dict(init_lora_weights='pissa_niter_4'), 'pissa_niter_4.*randomised SVD'),
    (dict(trainable_token_indices=[1, 2]), 'not whole.*token_adapter.trainable_tokens_delta'),
    (dict(a_setting_of_tomorrow=3), 'a_setting_of_tomorrow=3'),
    (dict(r=7), 'its config says rank 7'),
    (dict(lora_alpha=None), 'lora_alpha must be there'),
    (dict(base_model_name_or_path=None), 'names no base model; pass it as base'),
    (dict(base_model_name_or_path='/nowhere'), 'needed and could not be opened; pass it as base'),
  ],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_unsupported_adapters_are_refused_by_name(adapters, tmp_path, changes, message):
  edited = edit_config(tmp_path / 'edited', adapters[0], **changes)
  with pytest.raises(InputError, match=message):
    directions.task_vector(edited)


def test_adapters_of_tied_embeddings_and_pickles_are_refused(tied, tmp_path):
  embedding = oracle.make_adapter(
    tmp_path / 'embedding', tied, seed=1, target_modules=['q_proj', 'embed_tokens']
  )
  with pytest.raises(InputError, match='ties its head'):
    directions.task_vector(embedding)
  (embedding / 'adapter_model.safetensors').rename(embedding / 'adapter_model.bin')
  with pytest.raises(InputError, match='pickle.*save_pretrained'):
    directions.task_vector(embedding)


def test_a_low_rank_change_of_an_embedding_is_what_peft_merges(untied, tmp_path):
  adapter = oracle.make_adapter(
    tmp_path / 'a', untied, seed=1, target_modules=['q_proj', 'embed_tokens', 'lm_head']
  )
  changes = oracle.dense_in_torch_axes(directions.task_vector(adapter).delta)
  plain, merged = oracle.torch_weights(untied), oracle.torch_weights(untied, adapter)
  assert {'model.embed_tokens.weight', 'lm_head.weight'} <= set(changes)
  for name, change in changes.items():
    np.testing.assert_allclose(change, merged[name] - plain[name], atol=1e-6)


def test_damaged_adapters_are_named(adapters, untied, tmp_path):
  short = tmp_path / 'short'
  shutil.copytree(adapters[0], short)
  data = (short / 'adapter_model.safetensors').read_bytes()
  (short / 'adapter_model.safetensors').write_bytes(data[: len(data) // 2])
  with pytest.raises(CorruptError, match='adapter_model.safetensors is no whole'):
    directions.task_vector(short)
  tensors = load_file(adapters[0] / 'adapter_model.safetensors')
  del tensors['base_model.model.model.layers.1.mlp.up_proj.lora_B.weight']
  save_file(tensors, short / 'adapter_model.safetensors')
  with pytest.raises(InputError, match='layers.1.mlp.up_proj have one of lora_A and lora_B'):
    directions.task_vector(short)


def test_an_adapter_for_another_architecture(adapters, tmp_path):
  wide = oracle.make_checkpoint(tmp_path / 'wide', tied=False, width=32)
  with pytest.raises(InputError, match='different architectures: width 16 / 32'):
    directions.task_vector(adapters[0], wide)
  # A base that is not on this machine says nothing.
  moved = edit_config(tmp_path / 'moved', adapters[0], base_model_name_or_path='someone/model')
  with pytest.raises(InputError, match='another architecture'):
    directions.task_vector(moved, wide)
