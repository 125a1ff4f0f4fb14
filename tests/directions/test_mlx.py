"""mlx-lm's folders: its formulas by hand in float64, and what is not whole.

By hand, logits were compared with those of mlx-lm 0.32.2 on mlx's CPU build: lora, dora and full,
tied and untied embeddings, Phi-3's fused modules, experts of Qwen3-MoE and Mixtral, within 2e-6.
"""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from weightsteer_jax import directions, models
from weightsteer_jax.runtime.errors import InputError

from .test_dora import assert_close, in_our_axes

RANK = 4
SCALE = 1.7


def write(folder, base, tensors, *, kind='lora', num_layers=1, **parameters):
  folder.mkdir()
  save_file(
    {name: np.ascontiguousarray(t) for name, t in tensors.items()}, folder / 'adapters.safetensors'
  )
  lora = {'rank': RANK, 'scale': SCALE, 'dropout': 0.0} | parameters
  config = {'model': str(base), 'fine_tune_type': kind, 'num_layers': num_layers}
  config['lora_parameters'] = None if kind == 'full' else lora
  (folder / 'adapter_config.json').write_text(json.dumps(config))
  return folder


def factors(random, module, inputs, outputs):
  return {
    f'{module}.lora_a': random.normal(size=(inputs, RANK)).astype(np.float32),
    f'{module}.lora_b': random.normal(size=(RANK, outputs)).astype(np.float32),
  }


def product(tensors, module):
  a, b = (tensors[f'{module}.lora_{letter}'].astype(np.float64) for letter in 'ab')
  return SCALE * (a @ b).T


def changes_of(model, changes):
  """{path: change in our axes} of {tensor: change}, zero elsewhere."""
  weights = load_file(model.folder / 'model.safetensors')
  return in_our_axes(
    model, {name: changes.get(name, np.zeros(w.shape)) for name, w in weights.items()}
  )


def test_the_scale_is_not_divided_by_the_rank(untied, untied_model, tmp_path):
  random = np.random.default_rng(1)
  q, down = 'model.layers.1.self_attn.q_proj', 'model.layers.1.mlp.down_proj'
  sides = []
  for name in ('plus', 'minus'):
    tensors = factors(random, q, 16, 16) | factors(random, down, 24, 16)
    sides.append((write(tmp_path / name, untied, tensors), tensors))
  (plus, x), (minus, y) = sides
  expected = {f'{m}.weight': product(x, m) - product(y, m) for m in (q, down)}
  # The base is the one that the folders name.
  direction = directions.between(plus, minus)
  assert_close(direction.delta, changes_of(untied_model, expected), atol=1e-5)
  assert direction.meta['sources'][0]['meta']['config']['mlx']['num_layers'] == 1


def test_dora_norms_rows_also_of_an_embedding(untied, untied_model, tmp_path):
  random = np.random.default_rng(2)
  weights = load_file(untied / 'model.safetensors')
  tensors, expected = {}, {}
  for module in ('model.embed_tokens', 'model.layers.1.mlp.up_proj'):
    weight = weights[f'{module}.weight'].astype(np.float64)
    rows, columns = weight.shape
    embedding = module == 'model.embed_tokens'
    tensors |= factors(random, module, *((rows, columns) if embedding else (columns, rows)))
    tensors[f'{module}.m'] = random.uniform(1, 2, rows).astype(np.float32)
    change = product(tensors, module)
    moved = weight + (change.T if embedding else change)
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    expected[f'{module}.weight'] = tensors[f'{module}.m'][:, None] / norms * moved - weight
  folder = write(tmp_path / 'a', untied, tensors, kind='dora')
  assert_close(directions.task_vector(folder).delta, changes_of(untied_model, expected), atol=1e-6)


def test_a_tied_embedding_changes_at_both_ends(tied, tied_model, tmp_path):
  random = np.random.default_rng(3)
  tensors = factors(random, 'model.embed_tokens', 40, 16)
  tensors |= factors(random, 'model.layers.1.mlp.up_proj', 16, 24)
  expected = {
    'model.embed_tokens.weight': product(tensors, 'model.embed_tokens').T,
    'model.layers.1.mlp.up_proj.weight': product(tensors, 'model.layers.1.mlp.up_proj'),
  }
  folder = write(tmp_path / 'a', tied, tensors, keys=['model.embed_tokens', 'mlp.up_proj'])
  assert_close(directions.task_vector(folder).delta, changes_of(tied_model, expected), atol=1e-5)


def test_a_full_fine_tune_is_the_saved_weights_minus_the_base(untied, untied_model, tmp_path):
  random = np.random.default_rng(4)
  weights = load_file(untied / 'model.safetensors')
  saved, expected = {}, {}
  for name, weight in weights.items():
    if '.layers.1.' in name:
      saved[name] = weight + random.normal(0, 0.1, weight.shape).astype(np.float32)
      expected[name] = saved[name].astype(np.float64) - weight
  folder = write(tmp_path / 'a', untied, saved, kind='full')
  direction = directions.between(folder, unread=True)
  directions.save(tmp_path / 'out', direction)
  got = directions.load(tmp_path / 'out').delta
  assert_close(got, changes_of(untied_model, expected), atol=1e-6)


@pytest.mark.parametrize('kind', ['lora', 'full'])
def test_stacks_of_experts_are_taken_apart(tmp_path, kind):
  """[E, R, inputs] and [E, outputs, R], under the names of Mixtral's checkpoints."""
  torch.manual_seed(0)
  config = transformers.MixtralConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=3,
  )
  transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / 'base')
  model = models.load(tmp_path / 'base')
  random = np.random.default_rng(5)
  stack = 'model.layers.0.block_sparse_moe.switch_mlp'
  tensors, expected = {}, {}
  weights = load_file(tmp_path / 'base' / 'model.safetensors')
  for theirs, name, inputs, outputs in (('up_proj', 'w3', 16, 24), ('down_proj', 'w2', 24, 16)):
    a = random.normal(size=(3, RANK, inputs)).astype(np.float32)
    b = random.normal(size=(3, outputs, RANK)).astype(np.float32)
    changes = SCALE * np.float64(b) @ np.float64(a)
    names = [f'model.layers.0.block_sparse_moe.experts.{e}.{name}.weight' for e in range(3)]
    expected |= dict(zip(names, changes))
    if kind == 'lora':
      tensors |= {f'{stack}.{theirs}.lora_a': a, f'{stack}.{theirs}.lora_b': b}
    else:
      whole = np.stack([weights[name] for name in names])
      tensors[f'{stack}.{theirs}.weight'] = (whole + changes).astype(np.float32)
  folder = write(tmp_path / 'a', tmp_path / 'base', tensors, kind=kind)
  assert_close(directions.task_vector(folder).delta, changes_of(model, expected), atol=1e-5)


def test_what_is_not_whole_is_refused(untied, tmp_path):
  random = np.random.default_rng(6)
  module = 'model.layers.1.self_attn.q_proj'
  pair = factors(random, module, 16, 16)
  other = factors(random, 'model.layers.0.mlp.up_proj', 16, 24)
  cases = {
    'a': (
      pair,
      dict(num_layers=2),
      r'the last 2 of 2 layers .num_layers., and the file has .* .1.',
    ),
    'b': (pair | other, dict(num_layers=2), 'layer 0 lacks self_attn.q_proj.lora_A.weight'),
    'c': ({f'{module}.lora_a': pair[f'{module}.lora_a']}, {}, 'one of lora_A and lora_B'),
    'd': (pair, dict(kind='lara'), "fine_tune_type is 'lara' .did you mean 'lora'"),
    'e': (pair, dict(scale=None), 'must hold rank and scale'),
    'f': (
      {'model.layers.1.self_attn.q_proj.weight': pair[f'{module}.lora_a']},
      {},
      'none that mlx',
    ),
    'g': (pair, dict(kind='dora'), ''),
  }
  for name, (tensors, options, message) in cases.items():
    folder = write(tmp_path / name, untied, tensors, **options)
    # A pair without a magnitude is a plain one to mlx-lm's loader too.
    if not message:
      directions.task_vector(folder)
      continue
    with pytest.raises(InputError, match=message):
      directions.task_vector(folder)
  (tmp_path / 'a' / 'adapters.safetensors').unlink()
  with pytest.raises(InputError, match='no adapters.safetensors'):
    directions.task_vector(tmp_path / 'a')
