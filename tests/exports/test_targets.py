"""Directions for PEFT, vLLM and llama.cpp: written, folded, or refused with a remedy."""

import dataclasses
import json

import numpy as np
import peft
import pytest
import transformers
from directions import oracle
from safetensors.numpy import load_file

from weightsteer_jax import directions, models
from weightsteer_jax.directions import Direction
from weightsteer_jax.exports import export, targets
from weightsteer_jax.models import Dense, LowRank, families
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError


def make_base(folder, family='Llama', *, tied=False) -> models.Model:
  """A saved model of two layers."""
  import torch

  torch.manual_seed(0)
  config = getattr(transformers, f'{family}Config')(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=tied,
    pad_token_id=0,
  )
  model = transformers.AutoModelForCausalLM.from_config(config)
  # Norms are 1 in a new model, as no trained norm is.
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  return models.load(folder)


@pytest.fixture(scope='module')
def llama(tmp_path_factory) -> models.Model:
  """A Llama with a head: vLLM takes low-rank changes of embedding and head."""
  return make_base(tmp_path_factory.mktemp('llama') / 'base')


def one_change(model, leaves):
  meta = {'kind': 'test', 'base': directions.base_of(model).to_json(), 'sources': []}
  return Direction(tree.unflatten(leaves), meta)


def loads_in_vllm(folder, served_rank):
  """The checks of vLLM's adapter loader, from its documentation (see targets.py)."""
  config = json.loads((folder / 'adapter_config.json').read_text())
  assert config['modules_to_save'] is None and not config['use_dora'] and config['bias'] == 'none'
  assert config['r'] <= served_rank and served_rank in (1, 8, 16, 32, 64, 128, 256, 320, 512)
  for name, tensor in load_file(folder / 'adapter_model.safetensors').items():
    part = name.removeprefix('base_model.model.').split('.')
    pair = part[-2:] in (['lora_A', 'weight'], ['lora_B', 'weight'])
    assert pair or part[-1] in ('lora_embedding_A', 'lora_embedding_B'), name
    assert config['r'] in tensor.shape, name


@pytest.mark.parametrize('target', ['vllm', 'llama.cpp'])
def test_dense_embeddings_are_folded_and_the_error_is_told(llama, tmp_path, target):
  """Against PEFT, and the errors against the singular values of numpy."""
  direction = oracle.random_direction(llama, 1, size=0.05)
  record = export(direction, llama, 0.5, 'peft', tmp_path / 'out', rank=4, target=target)
  loads_in_vllm(tmp_path / 'out', record['max_lora_rank'])
  errors = record['direction']['compression']['relative_errors']
  for path in ('embed/embedding', 'lm_head/kernel'):
    values = np.linalg.svd(
      np.float64(direction.delta[path.split('/')[0]][path.split('/')[1]].value), compute_uv=False
    )
    assert abs(errors[path] - np.sqrt(np.square(values[4:]).sum() / np.square(values).sum())) < 1e-6
  card = (tmp_path / 'out' / 'README.md').read_text()
  worst = max(errors.values())
  assert f'folded to rank 4 by SVD; largest relative error of a site: {worst:.2%}' in card
  assert ('--max-lora-rank 8' if target == 'vllm' else 'convert_lora_to_gguf.py') in card

  base = transformers.AutoModelForCausalLM.from_pretrained(llama.folder)
  loaded = peft.PeftModel.from_pretrained(base, tmp_path / 'out')
  folded, _ = directions.compress(direction, 4, tables=True)
  np.testing.assert_allclose(
    oracle.torch_logits(loaded), oracle.unmerged_logits(llama, folded, 0.5), atol=1e-4
  )
  again = directions.task_vector(tmp_path / 'out')
  assert directions.norm(
    directions.subtract(again, directions.scale(folded, 0.5))
  ) < 1e-5 * directions.norm(again)


def test_a_tied_embedding_changes_at_both_ends_for_vllm(tmp_path):
  """vLLM and PEFT hold the head beside the embedding, so each has a pair."""
  base = make_base(tmp_path / 'base', tied=True)
  direction = oracle.random_direction(base, 1, size=0.05)
  record = export(direction, base, 0.5, 'peft', tmp_path / 'out', rank=4, target='vllm')
  loads_in_vllm(tmp_path / 'out', record['max_lora_rank'])
  config = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  assert {'embed_tokens', 'lm_head'} <= {*config['target_modules']}

  torch_base = transformers.AutoModelForCausalLM.from_pretrained(base.folder)
  loaded = peft.PeftModel.from_pretrained(torch_base, tmp_path / 'out')
  folded, _ = directions.compress(direction, 4, tables=True)
  np.testing.assert_allclose(
    oracle.torch_logits(loaded), oracle.unmerged_logits(base, folded, 0.5), atol=1e-4
  )


@pytest.mark.parametrize('family', ['Llama', 'Qwen3', 'Olmo2', 'Gemma2'])
def test_norms_are_saved_whole_as_peft_loads_them(tmp_path, family):
  """Against PEFT's logits, and read back as the same direction."""
  base = make_base(tmp_path / 'base', family, tied=family == 'Gemma2')
  arrays = tree.flatten(base.params)
  random = np.random.default_rng(3)
  leaves = {}
  for path, array in arrays.items():
    if path.endswith('/scale'):
      leaves[path] = Dense(random.normal(0, 0.3, array.shape).astype(np.float32))
  assert len(leaves) >= 3
  a = random.normal(0, 0.3, (2, 16, 3)).astype(np.float32)
  b = random.normal(0, 0.3, (2, 3, 24)).astype(np.float32)
  leaves['layers/mlp/up/kernel'] = LowRank(a, b)
  direction = one_change(base, leaves)
  export(direction, base, 0.5, 'peft', tmp_path / 'out')

  torch_base = transformers.AutoModelForCausalLM.from_pretrained(base.folder)
  loaded = peft.PeftModel.from_pretrained(torch_base, tmp_path / 'out')
  # Each norm of a saved kind is trained, and no other module.
  wrappers = []
  for name, module in loaded.named_modules():
    if isinstance(module, peft.utils.ModulesToSaveWrapper):
      wrappers.append(name)
  tensors = load_file(base.folder / 'model.safetensors')
  assert len(wrappers) == sum(name.endswith('norm.weight') for name in tensors)
  np.testing.assert_allclose(
    oracle.torch_logits(loaded), oracle.unmerged_logits(base, direction, 0.5), atol=1e-4
  )
  again = directions.task_vector(tmp_path / 'out')
  expected = directions.scale(direction, 0.5)
  assert directions.norm(directions.subtract(again, expected)) < 1e-6 * directions.norm(expected)


# The classes of vLLM 0.33.0 by their `embedding_modules` (vllm/model_executor/models). Olmo2 and
# SmolLM3 run as TransformersForCausalLM.
VLLM = {
  'llama': ('embed_tokens', 'lm_head'),
  'granite': ('embed_tokens', 'lm_head'),
  'phi3': ('embed_tokens', 'lm_head'),
  'qwen3': ('embed_tokens', 'lm_head'),
  'qwen3_moe': ('embed_tokens', 'lm_head'),
  'mixtral': ('embed_tokens', 'lm_head'),
  'olmo2': ('embed_tokens',),
  'smollm3': ('embed_tokens',),
  'qwen2': (),
  'mistral': (),
  'gemma2': (),
  'gemma3_text': (),
}


@pytest.mark.parametrize('family', families.FAMILIES)
@pytest.mark.parametrize('tied', [False, True])
def test_tables_are_taken_by_the_families_of_vllm_that_name_them(llama, family, tied):
  config = dataclasses.replace(llama.config, tied=tied)
  base = dataclasses.replace(directions.base_of(llama), family=family, config=config)
  for path, module in (('embed/embedding', 'embed_tokens'), ('lm_head/kernel', 'lm_head')):
    if tied and module == 'lm_head':
      continue
    shape = (40, 16) if module == 'embed_tokens' else (16, 40)
    direction = Direction(
      tree.unflatten({path: Dense(np.ones(shape, np.float32))}),
      {'kind': 'test', 'base': base.to_json(), 'sources': []},
    )
    needed = {'embed_tokens', 'lm_head'} if tied else {module}
    if needed <= {*VLLM[family]}:
      targets.check(direction, 'vllm', 4)
    else:
      with pytest.raises(InputError, match=f'of a {family} model'):
        targets.check(direction, 'vllm', 4)


def test_a_head_beyond_the_vocabulary_of_vllm_is_refused(llama):
  for size, message in ((258048, ''), (258049, 'of more than 258048 tokens; this one has 258049')):
    config = dataclasses.replace(llama.config, vocab_size=size)
    changes = {'lm_head/kernel': Dense(np.zeros((16, 40), np.float32))}
    got = ''
    try:
      targets._check_tables(changes, config, 'llama', 'vllm', targets.target_of('vllm'))
    except InputError as error:
      got = str(error)
    assert message in got and bool(message) == bool(got)


def test_what_a_target_does_not_take_is_named_with_the_remedy(
  llama, untied_model, tied_model, tmp_path
):
  whole = np.ones((40, 16), np.float32)
  pair = LowRank(np.ones((2, 16, 3), np.float32), np.ones((2, 3, 24), np.float32))
  up = {'layers/mlp/up/kernel': pair}
  embedding = up | {'embed/embedding': Dense(whole)}
  bias = up | {'layers/mlp/up/bias': Dense(np.ones((2, 24), np.float32))}
  norm = up | {'final_norm/scale': Dense(np.ones(16, np.float32))}
  cases = [
    (llama, embedding, 'vllm', 0, 'dense changes of embed/embedding: give a rank to fold them'),
    (
      llama,
      embedding,
      'llama.cpp',
      0,
      'dense changes of embed/embedding: give a rank to fold them',
    ),
    (tied_model, embedding, 'llama.cpp', 4, 'ties its head.*export merged weights'),
    (tied_model, embedding, 'vllm', 4, 'of a qwen2 model that ties the two, only of llama'),
    (
      untied_model,
      embedding,
      'vllm',
      4,
      'embedding .embed/embedding. of a qwen2 model, only of llama, granite, phi3, qwen3',
    ),
    (llama, norm, 'vllm', 4, 'changes of final_norm/scale .norms, biases'),
    (llama, norm, 'llama.cpp', 4, 'changes of final_norm/scale .norms, biases'),
    (llama, bias, '', 0, 'peft cannot hold the changes of layers/mlp/up/bias .biases'),
    (llama, {'embed/embedding': Dense(whole)}, '', 0, 'changes embeddings or norms only'),
    (llama, embedding, 'vllm', 513, "rank would be 513 .at 'model.embed_tokens.weight'"),
  ]
  for model, leaves, target, rank, message in cases:
    with pytest.raises(InputError, match=message):
      export(
        one_change(model, leaves), model, 1.0, 'peft', tmp_path / 'out', target=target, rank=rank
      )
  assert list(tmp_path.iterdir()) == []


def test_ranks_beyond_what_vllm_serves_are_refused_with_the_sum_of_a_fused_module():
  ranks = {
    'model.layers.{l}.self_attn.qkv_proj.weight': 600,
    'model.layers.{l}.mlp.down_proj.weight': 200,
  }
  target = targets.target_of('vllm')
  with pytest.raises(
    InputError, match="rank would be 600 .at '.*self_attn.qkv_proj.weight'.* at most 512"
  ):
    targets._check_rank(ranks, 'vllm', target)
  targets._check_rank({'x': 512}, 'vllm', target)
  targets._check_rank(ranks, 'llama.cpp', targets.target_of('llama.cpp'))
  assert [targets.max_lora_rank(rank) for rank in (1, 2, 9, 257, 512, 513)] == [
    1,
    8,
    16,
    320,
    512,
    None,
  ]


def test_a_revision_of_the_hub_is_no_part_of_the_name_that_peft_loads(llama, tmp_path):
  hub = dataclasses.replace(llama, source='org/name@abc', revision='abc')
  direction = oracle.random_direction(llama, 1, kinds='lora')
  export(direction, hub, 1.0, 'peft', tmp_path / 'out')
  config = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  assert (config['base_model_name_or_path'], config['revision']) == ('org/name', 'abc')
