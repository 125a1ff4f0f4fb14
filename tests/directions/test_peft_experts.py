"""Adapters on experts and routers, as PEFT saves them with transformers 5 (one pair for a stack of
all experts) and with transformers 4 (a pair for each). What PEFT merges is the oracle, and products
in float64 where PEFT reads files of transformers 4 otherwise than they were trained."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from weightsteer_jax import directions, models
from weightsteer_jax.runtime.errors import InputError

from . import oracle

ATTENTION = ['q_proj', 'k_proj', 'v_proj', 'o_proj']
# {family: (modules of transformers 4 that are gate, up and down, the block around them)}
EACH = {
  'qwen3_moe': (('gate_proj', 'up_proj', 'down_proj'), 'mlp'),
  'mixtral': (('w1', 'w3', 'w2'), 'block_sparse_moe'),
}
STACKED = {
  'all': dict(target_modules=[*ATTENTION, 'gate_proj', 'up_proj', 'down_proj', 'gate']),
  'gate and up': dict(target_modules=['q_proj', 'gate_proj', 'up_proj']),
  'down alone': dict(target_modules=['down_proj']),
  'router alone': dict(target_modules=['gate'], rank_pattern={'gate.weight': 2, 'gate': 7}),
  'parameters': dict(
    target_modules=['o_proj'],
    target_parameters=['mlp.experts.gate_up_proj', 'mlp.experts.down_proj', 'mlp.gate.weight'],
    rank_pattern={r'.*\.1\.mlp\.experts\.gate_up_proj': 5, 'down_proj': 2},
    alpha_pattern={'mlp.gate.weight': 11},
    use_rslora=True,
  ),
}


def options_of(family, case):
  """The options of a case, in the names of the family."""
  options = dict(STACKED[case])
  if family == 'mixtral':
    names = dict(zip(('gate_proj', 'up_proj', 'down_proj'), EACH['mixtral'][0]))
    options['target_modules'] = [names.get(name, name) for name in options['target_modules']]
  return options


def ours_in_torch_axes(delta):
  """{tensor name of transformers 5, without prefix: float64 change by layer} of our delta."""
  leaves = oracle.leaves_of(delta)
  found = {}
  dense = {}
  for path, leaf in leaves.items():
    a = np.asarray(leaf.a, np.float64)
    b = np.asarray(leaf.b, np.float64) * leaf.scale
    if '/experts/' in path:
      dense[path.split('/')[3]] = np.einsum('LEIR,LERO->LEOI', a, b)
    elif '/router/' in path:
      found['mlp.gate.weight'] = np.einsum('LDR,LRE->LED', a, b)
  if 'gate' in dense:
    found['mlp.experts.gate_up_proj'] = np.concatenate([dense['gate'], dense['up']], axis=2)
  if 'down' in dense:
    found['mlp.experts.down_proj'] = dense['down']
  return found


def peft_changes(base, adapter):
  """The same by PEFT in float64; only what changes."""
  plain = oracle.torch_weights(base)
  merged = oracle.torch_weights(base, adapter)
  changes = {}
  for name in ('mlp.gate.weight', 'mlp.experts.gate_up_proj', 'mlp.experts.down_proj'):
    layers = [
      merged[f'model.layers.{layer}.{name}'] - plain[f'model.layers.{layer}.{name}']
      for layer in range(3)
    ]
    if np.any(layers):
      changes[name] = np.stack(layers)
  return changes


def write_each(folder, case, projections, *, seed, r=3, lora_alpha=5, rank_pattern=None, **config):
  """A file of transformers 4 of random pairs; {projection: float64 changes [L, E, O, I]}.

  Args:
    projections: of 'gate', 'up', 'down' and 'router'.
    rank_pattern: {projection: rank}.
  """
  random = np.random.default_rng(seed)
  names, block = EACH[case.family]
  names = dict(zip(('gate', 'up', 'down'), names)) | {'router': 'gate'}
  width, mlp_width = case.model.config.width, case.model.config.mlp_width
  num_experts = case.model.config.num_experts
  shapes = {
    'gate': (mlp_width, width),
    'up': (mlp_width, width),
    'down': (width, mlp_width),
    'router': (num_experts, width),
  }
  ranks = {name: (rank_pattern or {}).get(name, r) for name in projections}
  tensors = {}
  products = {}
  for name in projections:
    outputs, inputs = shapes[name]
    experts = [None] if name == 'router' else range(num_experts)
    products[name] = np.zeros((3, len(experts), outputs, inputs))
    for layer in range(3):
      for index, expert in enumerate(experts):
        inside = f'experts.{expert}.{names[name]}' if expert is not None else names[name]
        module = f'base_model.model.model.layers.{layer}.{block}.{inside}'
        a = random.normal(size=(ranks[name], inputs)).astype(np.float32)
        b = random.normal(size=(outputs, ranks[name])).astype(np.float32)
        tensors[f'{module}.lora_A.weight'] = a
        tensors[f'{module}.lora_B.weight'] = b
        products[name][layer, index] = np.float64(b) @ np.float64(a)
  folder.mkdir()
  safetensors.numpy.save_file(tensors, folder / 'adapter_model.safetensors', {'format': 'pt'})
  written = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'r': r,
    'lora_alpha': lora_alpha,
    'target_modules': [names[name] for name in projections],
    'rank_pattern': {names[name]: rank for name, rank in (rank_pattern or {}).items()},
    'base_model_name_or_path': str(case.folder),
    **config,
  }
  (folder / 'adapter_config.json').write_text(json.dumps(written))
  return products


@pytest.mark.parametrize('family', EACH)
@pytest.mark.parametrize('case', STACKED)
def test_a_stack_of_experts_is_what_peft_merges(checkpoint, tmp_path, family, case):
  base = checkpoint(family).folder
  adapter = oracle.make_adapter(tmp_path / 'a', base, seed=1, **options_of(family, case))
  found = ours_in_torch_axes(directions.task_vector(adapter, base=base).delta)
  expected = peft_changes(base, adapter)
  assert set(found) == set(expected)
  for name in expected:
    np.testing.assert_allclose(found[name], expected[name], atol=1e-6, err_msg=name)


def test_the_difference_of_two_has_factors_for_each_expert(checkpoint, tmp_path):
  """The usual seven names, as users give them: r 3 of each adapter, 6 of the fused gate and up."""
  base = checkpoint('qwen3_moe').folder
  sides = [oracle.make_adapter(tmp_path / str(seed), base, seed=seed) for seed in (1, 2)]
  direction = directions.between(*sides, base=base)
  leaves = oracle.leaves_of(direction.delta)
  assert len(leaves) == 7 and all(isinstance(leaf, models.LowRank) for leaf in leaves.values())
  assert leaves['layers/mlp/experts/down/kernel'].a.shape == (3, 6, 20, 6)
  assert leaves['layers/mlp/experts/gate/kernel'].b.shape == (3, 6, 12, 20)
  found = ours_in_torch_axes(direction.delta)
  x, y = (peft_changes(base, side) for side in sides)
  for name in x:
    np.testing.assert_allclose(found[name], x[name] - y[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize('family', EACH)
def test_a_pair_for_each_expert_is_what_peft_merges(checkpoint, tmp_path, family):
  case = checkpoint(family)
  write_each(tmp_path / 'a', case, ('gate', 'up', 'down', 'router'), seed=1)
  found = ours_in_torch_axes(directions.task_vector(tmp_path / 'a', base=case.folder).delta)
  expected = peft_changes(case.folder, tmp_path / 'a')
  assert set(found) == set(expected) and len(expected) == 3
  for name in expected:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('family', EACH)
def test_one_side_stacked_and_the_other_by_expert(checkpoint, tmp_path, family):
  case = checkpoint(family)
  write_each(tmp_path / 'each', case, ('gate', 'up', 'down'), seed=1)
  options = options_of(family, 'all')
  stacked = oracle.make_adapter(tmp_path / 'stacked', case.folder, seed=1, **options)
  direction = directions.between(tmp_path / 'each', stacked, base=case.folder)
  # The pairs for each expert are of rank 3: in the fused one, gate and up have 6 each.
  gate = oracle.leaves_of(direction.delta)['layers/mlp/experts/gate/kernel']
  assert gate.a.shape[-1] == 3 + 6
  found = ours_in_torch_axes(direction.delta)
  x = peft_changes(case.folder, tmp_path / 'each')
  y = peft_changes(case.folder, stacked)
  for name in y:
    expected = x.get(name, 0) - y[name]
    np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
  'projections, config, scales',
  [
    # PEFT 0.21.2 doubles both rank and alpha of the fused gate_up_proj: sqrt(2) too much here.
    (('gate', 'up', 'down'), dict(use_rslora=True), dict.fromkeys(('gate', 'up', 'down'), 3**0.5)),
    # PEFT 0.21.2 takes lora_alpha for gate and up whatever their pattern says.
    (
      ('gate', 'up', 'down'),
      dict(lora_alpha=3, alpha_pattern={'gate_proj': 12, r'experts\.\d+\.up_proj': 6}),
      dict(gate=4, up=2, down=1),
    ),
    # PEFT 0.21.2 cannot load these shapes.
    (
      ('gate', 'up', 'down'),
      dict(lora_alpha=12, rank_pattern={'gate': 2, 'up': 4}),
      dict(gate=6, up=3, down=4),
    ),
    # PEFT 0.21.2 drops gate and up where down has no pair, and refuses gate alone.
    (('gate', 'up'), dict(lora_alpha=3), dict(gate=1, up=1)),
    (('gate',), dict(lora_alpha=3), dict(gate=1)),
    # PEFT 0.21.2 refuses to load what was trained with dropout.
    (('down',), dict(lora_alpha=6, lora_dropout=0.1), dict(down=2)),
  ],
  ids=['rslora', 'alphas', 'ranks', 'gate and up', 'gate', 'dropout'],
)
def test_pairs_of_experts_count_as_transformers_4_trained_them(
  checkpoint, tmp_path, projections, config, scales
):
  case = checkpoint('qwen3_moe')
  # rsLoRA divides by the root of the rank.
  if config.get('use_rslora'):
    config = config | {'lora_alpha': 3}
  products = write_each(tmp_path / 'a', case, projections, seed=1, **config)
  delta = directions.task_vector(tmp_path / 'a', base=case.folder).delta
  leaves = oracle.leaves_of(delta)
  assert set(leaves) == {f'layers/mlp/experts/{name}/kernel' for name in projections}
  for name, scale in scales.items():
    leaf = leaves[f'layers/mlp/experts/{name}/kernel']
    change = np.einsum('LEIR,LERO->LEOI', np.float64(leaf.a), np.float64(leaf.b))
    np.testing.assert_allclose(change, scale * products[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_experts_and_layers_without_a_pair_do_not_change(checkpoint, tmp_path):
  case = checkpoint('qwen3_moe')
  excluded = r'(?!.*layers\.1\.mlp\.experts\.4\.|.*layers\.2\.).*'
  products = write_each(
    tmp_path / 'a', case, ('up',), seed=1, lora_alpha=3, exclude_modules=excluded
  )
  tensors = tmp_path / 'a' / 'adapter_model.safetensors'
  kept = {
    name: tensor
    for name, tensor in safetensors.numpy.load_file(tensors).items()
    if '.layers.1.mlp.experts.4.' in name or '.layers.2.' in name
  }
  safetensors.numpy.save_file(kept, tensors)
  (leaf,) = oracle.leaves_of(
    directions.task_vector(tmp_path / 'a', base=case.folder).delta
  ).values()
  change = np.einsum('LEIR,LERO->LEOI', np.float64(leaf.a), np.float64(leaf.b))
  expected = products['up']
  expected[0] = 0
  expected[1, :4] = 0
  expected[1, 5:] = 0
  np.testing.assert_allclose(change, expected, atol=1e-5)


def test_stacks_of_older_peft_have_inputs_and_outputs_turned(checkpoint, tmp_path):
  """Before 0.19.1, PEFT took [E, outputs, inputs] for [E, inputs, outputs]: its own product."""
  case = checkpoint('qwen3_moe')
  random = np.random.default_rng(0)
  width, mlp_width, num_experts, rank = 48, 20, 6, 2
  tensors = {}
  expected = {}
  # `get_delta_weight` of PEFT 0.18.1: einsum('o r e, e r i -> e i o').
  for level, inputs, outputs, name in (
    ('.base_layer', 2 * mlp_width, width, 'mlp.experts.gate_up_proj'),
    ('', width, mlp_width, 'mlp.experts.down_proj'),
  ):
    changes = []
    for layer in range(3):
      a = random.normal(size=(rank * num_experts, inputs)).astype(np.float32)
      b = random.normal(size=(outputs, rank * num_experts)).astype(np.float32)
      module = f'base_model.model.model.layers.{layer}.mlp.experts{level}'
      tensors[f'{module}.lora_A.weight'] = a
      tensors[f'{module}.lora_B.weight'] = b
      a_ERI = np.float64(a).reshape(num_experts, rank, inputs)
      b_ORE = np.float64(b).reshape(outputs, rank, num_experts)
      changes.append(2.0 * np.einsum('ORE,ERI->EIO', b_ORE, a_ERI))
    expected[name] = np.stack(changes)
  (tmp_path / 'a').mkdir()
  safetensors.numpy.save_file(tensors, tmp_path / 'a' / 'adapter_model.safetensors')
  config = dict(peft_type='LORA', r=rank, lora_alpha=4, peft_version='0.18.1')
  config['target_parameters'] = ['mlp.experts.gate_up_proj', 'mlp.experts.down_proj']
  (tmp_path / 'a' / 'adapter_config.json').write_text(json.dumps(config))
  found = ours_in_torch_axes(directions.task_vector(tmp_path / 'a', base=case.folder).delta)
  for name in expected:
    np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


def test_a_square_change_is_read_as_its_version_of_peft_meant_it(tmp_path):
  """With 2 F = D the shapes do not say which factor is of the inputs."""
  torch.manual_seed(0)
  config = transformers.Qwen3MoeConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    moe_intermediate_size=8,
    num_experts=2,
    num_experts_per_tok=1,
  )
  base = tmp_path / 'base'
  transformers.Qwen3MoeForCausalLM(config).save_pretrained(base)
  adapter = oracle.make_adapter(
    tmp_path / 'a', base, seed=1, target_modules=[], target_parameters=['experts.gate_up_proj']
  )
  plain = oracle.torch_weights(base)
  merged = oracle.torch_weights(base, adapter)
  name = 'model.layers.0.mlp.experts.gate_up_proj'
  change = merged[name] - plain[name]
  found = ours_in_torch_axes(directions.task_vector(adapter, base=base).delta)
  np.testing.assert_allclose(found['mlp.experts.gate_up_proj'][0], change, atol=1e-6)
  path = adapter / 'adapter_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'peft_version': '0.19.0'}))
  found = ours_in_torch_axes(directions.task_vector(adapter, base=base).delta)
  np.testing.assert_allclose(found['mlp.experts.gate_up_proj'][0], change.swapaxes(1, 2), atol=1e-6)


def test_dora_of_experts_is_the_formula_in_float64(checkpoint, tmp_path):
  """W' = m / |W + s B A| (W + s B A) for each output of each expert, of transformers 4; PEFT 0.21.2
  refuses it with transformers 5."""
  case = checkpoint('mixtral')
  products = write_each(tmp_path / 'a', case, ('down',), seed=1, lora_alpha=6, use_dora=True)
  path = tmp_path / 'a' / 'adapter_model.safetensors'
  file = safetensors.numpy.load_file(path)
  random = np.random.default_rng(2)
  weights = safetensors.numpy.load_file(case.folder / 'model.safetensors')
  expected = np.zeros_like(products['down'])
  for layer, expert in np.ndindex(expected.shape[:2]):
    module = f'model.layers.{layer}.block_sparse_moe.experts.{expert}.w2'
    magnitude = random.uniform(1, 2, size=expected.shape[2]).astype(np.float32)
    file[f'base_model.model.{module}.lora_magnitude_vector'] = magnitude
    before = np.float64(weights[f'{module}.weight'])
    moved = before + 2.0 * products['down'][layer, expert]
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    expected[layer, expert] = magnitude[:, None] / norms * moved - before
  safetensors.numpy.save_file(file, path)
  (leaf,) = oracle.leaves_of(
    directions.task_vector(tmp_path / 'a', base=case.folder).delta
  ).values()
  found = np.asarray(leaf.value).swapaxes(2, 3)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_expert_saved_whole_by_itself_is_refused_with_a_way(checkpoint, tmp_path):
  case = checkpoint('qwen3_moe')
  write_each(tmp_path / 'a', case, ('router',), seed=1)
  path = tmp_path / 'a' / 'adapter_model.safetensors'
  file = safetensors.numpy.load_file(path)
  file['base_model.model.model.layers.0.mlp.experts.3.up_proj.weight'] = np.ones((20, 48), 'f4')
  safetensors.numpy.save_file(file, path)
  with pytest.raises(InputError, match=r'experts.3.up_proj.weight.* merge_and_unload.*checkpoints'):
    directions.task_vector(tmp_path / 'a', base=case.folder)


@pytest.mark.parametrize('saved', ['experts', 'gate'])
def test_experts_and_routers_saved_whole(checkpoint, tmp_path, saved):
  """`modules_to_save`: the saved stack, or the saved router, is what PEFT's model computes with."""
  base = checkpoint('mixtral').folder
  adapter = oracle.make_adapter(
    tmp_path / 'a', base, seed=1, target_modules=['q_proj'], modules_to_save=[saved]
  )
  leaves = oracle.leaves_of(directions.task_vector(adapter, base=base).delta)
  expected = peft_changes(base, adapter)
  if saved == 'gate':
    change = np.asarray(leaves['layers/mlp/router/kernel'].value).swapaxes(1, 2)
    np.testing.assert_allclose(change, expected['mlp.gate.weight'], atol=1e-6)
    return
  dense = {
    name: np.asarray(leaves[f'layers/mlp/experts/{name}/kernel'].value).swapaxes(2, 3)
    for name in ('gate', 'up', 'down')
  }
  np.testing.assert_allclose(dense['down'], expected['mlp.experts.down_proj'], atol=1e-6)
  gate_up = np.concatenate([dense['gate'], dense['up']], axis=2)
  np.testing.assert_allclose(gate_up, expected['mlp.experts.gate_up_proj'], atol=1e-6)


@pytest.mark.parametrize(
  'rename, message',
  [
    (
      ('experts.5.up_proj', 'experts.6.up_proj'),
      r"changes 3 module\(s\) .*'.*.experts.6.up_proj' for one .*experts.0.up_proj'",
    ),
    (('experts.5.up_proj', 'experts.5.w3'), r"'model.layers.0.mlp.experts.5.w3' for one"),
  ],
)
def test_pairs_of_other_experts_are_refused(checkpoint, tmp_path, rename, message):
  case = checkpoint('qwen3_moe')
  write_each(tmp_path / 'a', case, ('up',), seed=1)
  path = tmp_path / 'a' / 'adapter_model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file({k.replace(*rename): v for k, v in tensors.items()}, path)
  with pytest.raises(InputError, match=message):
    directions.task_vector(tmp_path / 'a', base=case.folder)


def test_a_stack_of_another_width_is_refused(checkpoint, tmp_path):
  other = checkpoint('qwen3_moe_unnormalised').folder
  adapter = oracle.make_adapter(tmp_path / 'a', other, seed=1, target_modules=['down_proj'])
  # Where the base that it names is at hand, the two are compared first.
  path = adapter / 'adapter_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'base_model_name_or_path': 'a/b'}))
  with pytest.raises(
    InputError, match=r'of 24 inputs and 48 outputs; .* 48 and 40 \(gate_up_proj\), or 20 and 48'
  ):
    directions.task_vector(adapter, base=checkpoint('qwen3_moe').folder)


def test_a_stack_of_another_rank_or_number_of_experts_is_refused(checkpoint, tmp_path):
  base = checkpoint('qwen3_moe').folder
  adapter = oracle.make_adapter(tmp_path / 'a', base, seed=1)
  path = adapter / 'adapter_config.json'
  config = json.loads(path.read_text())
  path.write_text(json.dumps(config | {'rank_pattern': {}}))
  with pytest.raises(InputError, match=r'says rank 3 \(model.layers.0.mlp.experts.gate_up_proj\)'):
    directions.task_vector(adapter, base=base)
  path.write_text(json.dumps(config | {'r': 2}))
  with pytest.raises(InputError, match=r'config says rank 2'):
    directions.task_vector(adapter, base=base)
