"""Checkpoints out: what transformers loads is what was saved, bit for bit, and a failure leaves
nothing."""

import json
import os
import stat

import jax
import jax.numpy as jnp
import pytest
import tiny
import torch
import transformers
from safetensors import safe_open

from weightsteer_jax import models
from weightsteer_jax.models import huggingface
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError, OutputError


def same_weights(left, right):
  """Whether two torch models have the same tensors of the same dtype, bit for bit."""
  left, right = left.state_dict(), right.state_dict()
  return left.keys() == right.keys() and all(
    left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
  )


def reload(folder):
  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype='auto', output_loading_info=True, attn_implementation='eager'
  )  # As the oracle.
  assert not report['missing_keys'] and not report['unexpected_keys']
  return model


ROUND_TRIPS = [(name, 'float32') for name in tiny.CASES] + [
  ('llama3', 'bfloat16'),
  ('qwen2_tied', 'bfloat16'),
]


@pytest.mark.parametrize('name, dtype', ROUND_TRIPS)
def test_transformers_loads_what_was_saved_bit_for_bit(checkpoint, tmp_path, name, dtype):
  """From transformers to us and back: with its own config carried over, and with one written by
  us."""
  case = checkpoint(name)
  model = models.load(case.folder, dtype=dtype)
  original = tiny.FAMILIES[case.family][1].from_pretrained(case.folder, dtype=getattr(torch, dtype))
  for target, like in ((tmp_path / 'like', case.folder), (tmp_path / 'own', None)):
    assert models.save(target, model.config, model.params, family=case.family, like=like) == target
    assert same_weights(reload(target), original)
    again = models.load(target, dtype=dtype)
    assert again.config == model.config and tree.digest(again.params) == tree.digest(model.params)


@pytest.mark.parametrize(
  'name',
  ['llama32_tied', 'qwen3', 'gemma2', 'gemma3', 'olmo2', 'phi3', 'phi3_long', 'smollm3', 'granite'],
)
def test_a_config_written_by_us_means_the_same_to_transformers(checkpoint, tmp_path, name):
  case = checkpoint(name)
  models.save(tmp_path / 'own', case.model.config, case.model.params, family=case.family)
  tokens = torch.as_tensor(tiny.tokens((1, 30)), dtype=torch.long)
  with torch.no_grad():
    assert torch.equal(reload(tmp_path / 'own')(tokens).logits, case.torch_model(tokens).logits)


def test_large_checkpoints_are_sharded_with_an_index(checkpoint, tmp_path, monkeypatch):
  monkeypatch.setattr(huggingface, 'SHARD_BYTES', 40_000)
  case = checkpoint('llama3')
  target = models.save(
    tmp_path / 'out', case.model.config, case.model.params, family='llama', like=case.folder
  )
  shards = sorted(path.name for path in target.glob('*.safetensors'))
  assert len(shards) > 2 and shards == [
    f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors' for i in range(len(shards))
  ]
  assert all((target / name).stat().st_size < 42_000 for name in shards)
  index = json.loads((target / 'model.safetensors.index.json').read_text())
  assert index['metadata']['total_size'] == tree.nbytes(case.model.params) and set(
    index['weight_map'].values()
  ) == set(shards)
  assert same_weights(reload(target), case.torch_model)
  assert tree.digest(models.load(target).params) == tree.digest(case.model.params)


def test_files_say_that_they_are_of_pytorch_and_hold_ordinary_permissions(checkpoint, tmp_path):
  case = checkpoint('llama3')
  previous = os.umask(0o027)
  try:
    target = models.save(
      tmp_path / 'out',
      case.model.config,
      case.model.params,
      family='llama',
      like=case.folder,
      extra={'a.json': {'b': 1}},
    )
  finally:
    os.umask(previous)
  with safe_open(target / 'model.safetensors', framework='numpy') as file:
    assert file.metadata() == {'format': 'pt'}
  assert {stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()} == {
    0o640
  } and stat.S_IMODE(target.stat().st_mode) == 0o750
  assert json.loads((target / 'a.json').read_text()) == {'b': 1}


def test_tokenizer_and_settings_are_carried_over_and_nothing_else(checkpoint, tmp_path):
  case, like = checkpoint('qwen2'), tmp_path / 'like'
  like.mkdir()
  for name in ('tokenizer.json', 'chat_template.jinja', 'generation_config.json', 'LICENSE'):
    (like / name).write_text(name)
  for name in ('modeling_evil.py', 'pytorch_model.bin', 'optimizer.pt', 'README.md'):
    (like / name).write_text(name)
  raw = json.loads((case.folder / 'config.json').read_text()) | {
    'torch_dtype': 'float32',
    'eos_token_id': 7,
  }
  (like / 'config.json').write_text(json.dumps(raw))
  target = models.save(
    tmp_path / 'out', case.model.config, case.model.params, family='qwen2', like=str(like)
  )
  assert {path.name for path in target.iterdir()} == {
    'config.json',
    'model.safetensors',
    'tokenizer.json',
    'chat_template.jinja',
    'generation_config.json',
    'LICENSE',
  }
  assert (target / 'tokenizer.json').read_text() == 'tokenizer.json'
  assert json.loads((target / 'config.json').read_text()) == raw


@pytest.mark.parametrize('key', ['dtype', 'torch_dtype', None])
def test_the_config_carried_over_names_the_dtype_that_was_saved(checkpoint, tmp_path, key):
  case, like = checkpoint('llama3'), tmp_path / 'like'
  like.mkdir()
  raw = json.loads((case.folder / 'config.json').read_text())
  del raw['dtype']
  (like / 'config.json').write_text(json.dumps(raw | ({key: 'float32'} if key else {})))
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), case.model.params)
  target = models.save(tmp_path / 'out', case.model.config, params, family='llama', like=like)
  assert reload(target).dtype == torch.bfloat16
  assert transformers.AutoConfig.from_pretrained(target).dtype == torch.bfloat16


def test_an_existing_folder_is_refused_and_kept(checkpoint, tmp_path):
  case = checkpoint('llama3')
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'note').write_text('mine')
  with pytest.raises(InputError, match='out exists already'):
    models.save(tmp_path / 'out', case.model.config, case.model.params, family='llama')
  assert [path.name for path in tmp_path.rglob('*')] == ['out', 'note']


def test_a_full_disk_leaves_nothing(checkpoint, tmp_path, file_size_limit):
  """A limit on the size of files stands for the disk: the weights do not fit under it."""
  case = checkpoint('llama3')
  with (
    file_size_limit(50_000),
    pytest.raises(OutputError, match='could not be written.*nothing was left behind'),
  ):
    models.save(
      tmp_path / 'out', case.model.config, case.model.params, family='llama', like=case.folder
    )
  assert list(tmp_path.iterdir()) == []


def change(params, path, value):
  return tree.unflatten(tree.flatten(params) | {path: value})


@pytest.mark.parametrize(
  'case_of, options, message',
  [
    (lambda p: p, dict(family='lama'), "did you mean 'llama'"),
    (lambda p: p, dict(family='qwen2'), 'qwen2 checkpoint cannot hold this model.*qkv_bias'),
    (
      lambda p: change(p, 'final_norm/scale', jnp.ones(47)),
      {},
      r"'final_norm/scale' to save has shape \(47,\)",
    ),
    (
      lambda p: change(p, 'final_norm/scales', jnp.ones(48)),
      {},
      'unexpected .1.: final_norm/scales',
    ),
    (lambda p: p | {'lm_head': {}}, {}, 'missing .1.: lm_head/kernel'),
    (
      lambda p: change(p, 'final_norm/scale', jnp.ones(48, jnp.bfloat16)),
      {},
      'bfloat16 and float32',
    ),
    (lambda p: jax.tree.map(lambda leaf: leaf.astype(jnp.float16), p), {}, 'float16'),
  ],
)
def test_parameters_that_do_not_fit_are_refused(checkpoint, tmp_path, case_of, options, message):
  model = checkpoint('llama3').model
  with pytest.raises(InputError, match=message):
    models.save(
      tmp_path / 'out', model.config, case_of(model.params), **({'family': 'llama'} | options)
    )
  assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_architecture_is_no_example(checkpoint, tmp_path):
  model = checkpoint('llama3').model
  with pytest.raises(InputError, match='describes another architecture'):
    models.save(
      tmp_path / 'out', model.config, model.params, family='llama', like=checkpoint('llama2').folder
    )
