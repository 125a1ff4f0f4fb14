"""DoRA against PEFT's merge in float64 and PEFT's logits, in memory and streamed."""

import json
import pathlib

import numpy as np
import peft
import pytest
import torch
import transformers

from weightsteer_jax import directions, models
from weightsteer_jax.directions.streamed import on_disk
from weightsteer_jax.experiments import standalone
from weightsteer_jax.exports import parity
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.runtime.errors import InputError

from . import oracle

DORA = dict(use_dora=True, size=0.3)
CASES = {
  'plain': dict(),
  'rslora': dict(use_rslora=True, r=4),
  'patterns': dict(rank_pattern={'q_proj': 2}, alpha_pattern={'layers.1.mlp.up_proj': 9}),
  'head': dict(target_modules=['lm_head', 'q_proj']),
  'saved': dict(modules_to_save=['embed_tokens', 'input_layernorm']),
}


def assert_peft_logits(base: pathlib.Path, adapter: pathlib.Path, delta, alpha=1.0):
  model = transformers.AutoModelForCausalLM.from_pretrained(base)
  expected = oracle.torch_logits(peft.PeftModel.from_pretrained(model, adapter))
  ours = models.load(base)
  got = parity.logits(ours.config, ours.params, oracle.TOKENS, delta=delta, alpha=alpha)
  np.testing.assert_allclose(got, expected, atol=1e-4)


def expected(base, *adapters) -> dict[str, np.ndarray]:
  """{path: change in our axes} of one adapter, or of the first minus the second, by PEFT."""
  weights = oracle.torch_weights(base)
  changes = [oracle.torch_weights(base, adapter) for adapter in adapters]
  minus = changes[1] if len(changes) > 1 else weights
  difference = {name: changes[0][name] - minus[name] for name in weights}
  model = models.load(base)
  return in_our_axes(model, difference)


def in_our_axes(model, by_name) -> dict[str, np.ndarray]:
  rows = models.stored.tensor_rows(model.config, models.FAMILIES[model.family])
  out = {}
  for path, row in rows.items():
    layers = []
    for name in models.stored.stored_names(row, model.config).values():
      values = by_name[name][models.stored.stored_rows(row, model.config)]
      layers.append(models.stored.to_ours(values, row.pattern, model.config))
    shape = models.sites(model.config)[path].shape
    out[path] = np.stack(layers).reshape(shape)
  return out


def assert_close(delta, changes, atol=3e-7):
  leaves = oracle.leaves_of(delta)
  assert set(leaves) == {path for path, change in changes.items() if np.abs(change).max() > 1e-9}
  for path, leaf in leaves.items():
    value = directions.algebra.dense_change(path, leaf)
    np.testing.assert_allclose(value, changes[path], atol=atol, err_msg=path)


@pytest.mark.parametrize('options', CASES.values(), ids=CASES)
def test_one_dora_is_the_change_that_peft_merges(untied, tmp_path, options):
  adapter = oracle.make_adapter(tmp_path / 'a', untied, seed=1, **DORA | options)
  delta = directions.task_vector(adapter).delta
  assert_close(delta, expected(untied, adapter), atol=1e-6)
  assert_peft_logits(untied, adapter, delta)


def test_a_dora_of_the_embedding_norms_columns_as_peft_does(untied, tmp_path):
  adapter = oracle.make_adapter(
    tmp_path / 'a', untied, seed=1, target_modules=['embed_tokens', 'q_proj'], **DORA
  )
  delta = directions.task_vector(adapter).delta
  assert_close(delta, expected(untied, adapter), atol=1e-6)
  assert_peft_logits(untied, adapter, delta)


@pytest.mark.parametrize('other', [dict(use_dora=True), dict(), dict(modules_to_save=['lm_head'])])
def test_the_difference_of_two_in_memory_and_streamed(untied, tmp_path, other):
  """A DoRA minus a DoRA or a LoRA: in memory, and from files to a file."""
  plus = oracle.make_adapter(tmp_path / 'p', untied, seed=1, r=2, **DORA)
  minus = oracle.make_adapter(tmp_path / 'n', untied, seed=2, size=0.3, **other)
  changes = expected(untied, plus, minus)
  assert_close(directions.between(plus, minus).delta, changes, atol=1e-6)
  standalone.direction_from(str(plus), str(minus), tmp_path / 'out', sync=False)
  saved = directions.load(tmp_path / 'out')
  assert_close(saved.delta, changes, atol=1e-6)
  norm = np.sqrt(sum(np.square(change).sum() for change in changes.values()))
  assert abs(saved.meta['norm'] - norm) < 1e-5 * norm
  reverse = directions.between(minus, plus, unread=True)
  directions.save(tmp_path / 'reverse', reverse)
  assert abs(directions.cosine(directions.load(tmp_path / 'reverse'), saved) + 1) < 1e-6


def test_a_streamed_direction_holds_no_kernel_in_memory(untied, tmp_path):
  plus = oracle.make_adapter(tmp_path / 'p', untied, seed=1, r=2, **DORA)
  minus = oracle.make_adapter(
    tmp_path / 'n', untied, seed=2, use_dora=True, modules_to_save=['lm_head']
  )
  direction = directions.between(plus, minus, unread=True)
  leaves = oracle.leaves_of(direction.delta)
  kernels = {path for path in leaves if path.endswith('/kernel') and path.startswith('layers/')}
  assert len(kernels) == 7
  assert all(on_disk.is_on_disk(leaves[path]) for path in kernels)
  # A head in memory lies beside them in one file.
  assert isinstance(leaves['lm_head/kernel'], Dense)
  directions.save(tmp_path / 'out', direction)
  again = directions.load(tmp_path / 'out', unread=True)
  assert set(oracle.leaves_of(again.delta)) == set(leaves)
  directions.save(tmp_path / 'copy', again)
  assert directions.load(tmp_path / 'copy').meta['fingerprints'] == again.meta['fingerprints']


def test_layers_without_dora_do_not_change(untied, tmp_path):
  adapter = oracle.make_adapter(
    tmp_path / 'a', untied, seed=1, target_modules=['q_proj'], layers_to_transform=[1], **DORA
  )
  delta = directions.task_vector(adapter).delta
  assert_close(delta, expected(untied, adapter), atol=1e-6)
  (leaf,) = oracle.leaves_of(delta).values()
  assert not np.asarray(leaf.value)[0].any()


def test_a_fused_module_and_a_bfloat16_base(tmp_path):
  """Phi-3's qkv_proj holds three of our kernels; the base is taken as it is stored."""
  torch.manual_seed(0)
  config = transformers.Phi3Config(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
  )
  base = tmp_path / 'base'
  transformers.Phi3ForCausalLM(config).to(torch.bfloat16).save_pretrained(base)
  targets = ['qkv_proj', 'down_proj']
  plus = oracle.make_adapter(tmp_path / 'p', base, seed=1, target_modules=targets, **DORA)
  # A LoRA of one part of what a DoRA fuses.
  minus = oracle.make_adapter(tmp_path / 'n', base, seed=2, size=0.3, target_modules=['qkv_proj'])
  changes = expected(base, plus, minus)
  assert_close(directions.between(plus, minus).delta, changes, atol=1e-6)
  directions.save(tmp_path / 'out', directions.between(plus, minus, unread=True))
  assert_close(directions.load(tmp_path / 'out').delta, changes, atol=1e-6)


def test_what_no_base_can_hold_is_refused(untied, tied, tmp_path):
  ends = oracle.make_adapter(
    tmp_path / 'tied', tied, seed=1, target_modules=['embed_tokens', 'q_proj'], **DORA
  )
  with pytest.raises(InputError, match="'model.embed_tokens' has a DoRA, .*ties its head"):
    directions.task_vector(ends)
  started = oracle.make_adapter(tmp_path / 'plain', untied, seed=1, **DORA)
  config = json.loads((started / 'adapter_config.json').read_text())
  (started / 'adapter_config.json').write_text(json.dumps(config | {'init_lora_weights': 'pissa'}))
  with pytest.raises(InputError, match='together with use_dora'):
    directions.task_vector(started)


def test_a_dora_alone_is_merged_from_files_to_files(untied, tmp_path):
  """The export of one adapter, made without a direction in between, against PEFT's merge."""
  adapter = oracle.make_adapter(tmp_path / 'a', untied, seed=1, **DORA)
  standalone.export(
    '', untied, 1.0, 'hf', tmp_path / 'out', positive=adapter, logits='always', sync=False
  )
  got = oracle.torch_weights(tmp_path / 'out')
  for name, expected_weight in oracle.torch_weights(untied, adapter).items():
    np.testing.assert_allclose(got[name], expected_weight, atol=1e-6, err_msg=name)


def test_a_plain_lora_stays_factors_beside(untied, tmp_path):
  adapter = oracle.make_adapter(tmp_path / 'a', untied, seed=1)
  leaves = oracle.leaves_of(directions.between(adapter, unread=True).delta)
  assert all(isinstance(leaf, LowRank) for leaf in leaves.values())
