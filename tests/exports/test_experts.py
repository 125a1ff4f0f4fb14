"""Directions of mixtures of experts as adapters: PEFT loads them stacked, as transformers 5 has
experts, and by expert, as vLLM and llama.cpp take them."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import transformers
from directions import oracle

from weightsteer_jax import directions, models
from weightsteer_jax.directions import Direction
from weightsteer_jax.exports import experts, export, targets
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

ROUTER = 'layers/mlp/router/kernel'
EXPERTS = {name: f'layers/mlp/experts/{name}/kernel' for name in ('gate', 'up', 'down')}
CHANGED = {
  'all': lambda path: True,
  'up alone': lambda path: path == EXPERTS['up'],
  'down and q': lambda path: path in (EXPERTS['down'], 'layers/attn/q/kernel'),
  'router and o': lambda path: path in (ROUTER, 'layers/attn/o/kernel'),
}


def random_direction(model, changed='all', *, rank=3, size=0.3):
  """A direction of random factors; rank 2 at the router."""
  random = np.random.default_rng(1)
  leaves = tree.flatten(
    models.init_delta(model.config, 'lora', jax.random.key(0), rank=rank, lora_alpha=float(rank)),
    models.is_delta_leaf,
  )
  site = models.sites(model.config)[ROUTER]
  layers, width, num_experts = site.shape
  leaves[ROUTER] = LowRank(jnp.zeros((layers, width, 2)), jnp.zeros((layers, 2, num_experts)))
  kept = {path: leaf for path, leaf in leaves.items() if CHANGED[changed](path)}
  delta = jax.tree.map(
    lambda x: jnp.asarray(size * random.standard_normal(x.shape), jnp.float32), tree.unflatten(kept)
  )
  meta = {'kind': 'test', 'base': directions.base_of(model).to_json(), 'sources': []}
  return Direction(delta, meta)


def load_peft(base, folder):
  """The adapter as PEFT loads it; complains where PEFT does about tensors that do not fit."""
  model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation='eager')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    warnings.filterwarnings('error', message='Found missing adapter keys')
    return peft.PeftModel.from_pretrained(model, folder)


@pytest.mark.parametrize(
  'family, target, changed',
  [
    ('qwen3_moe', '', 'all'),
    ('qwen3_moe', '', 'up alone'),
    ('qwen3_moe', 'vllm', 'all'),
    ('qwen3_moe', 'llama.cpp', 'up alone'),
    ('mixtral', '', 'all'),
    ('mixtral', '', 'down and q'),
    ('mixtral', '', 'router and o'),
    ('mixtral', 'vllm', 'all'),
    ('mixtral', 'vllm', 'down and q'),
  ],
)
def test_peft_loads_an_adapter_on_experts(checkpoint, tmp_path, family, target, changed):
  case = checkpoint(family)
  direction = random_direction(case.model, changed)
  record = export(direction, case.model, -0.5, 'peft', tmp_path / 'out', target=target)
  assert record['rank'] == 3
  expected = oracle.unmerged_logits(case.model, direction, -0.5)
  loaded = load_peft(case.folder, tmp_path / 'out')
  np.testing.assert_allclose(oracle.torch_logits(loaded), expected, atol=1e-4)
  assert np.abs(expected - oracle.unmerged_logits(case.model, direction, 0.0)).max() > 0.01
  again = directions.scale(directions.task_vector(tmp_path / 'out', base=case.folder), -2.0)
  assert directions.norm(directions.subtract(again, direction)) < 1e-5 * directions.norm(direction)


def test_stacks_have_the_names_ranks_and_shapes_of_peft(checkpoint, tmp_path):
  """The folder beside one that PEFT itself wrote for the same targets."""
  case = checkpoint('mixtral')
  export(random_direction(case.model), case.model, 1.0, 'peft', tmp_path / 'out')
  theirs = oracle.make_adapter(
    tmp_path / 'theirs', case.folder, seed=1, lora_alpha=3, target_modules='all-linear'
  )
  shapes = [
    {
      name: tensor.shape
      for name, tensor in safetensors.numpy.load_file(folder / 'adapter_model.safetensors').items()
    }
    for folder in (tmp_path / 'out', theirs)
  ]
  assert shapes[0] == shapes[1]
  configs = [
    json.loads((folder / 'adapter_config.json').read_text())
    for folder in (tmp_path / 'out', theirs)
  ]
  assert set(configs[0]['target_modules']) == set(configs[1]['target_modules'])
  assert configs[0]['target_parameters'] == [
    'mlp.experts.down_proj',
    'mlp.experts.gate_up_proj',
    'mlp.gate.weight',
  ]
  assert list(configs[0]['rank_pattern'].values()) == list(configs[1]['rank_pattern'].values())
  assert (
    configs[0]['alpha_pattern'] == configs[0]['rank_pattern'] == {'mlp.experts.gate_up_proj': 6}
  )


def test_gate_and_up_of_one_trained_stack_keep_its_rank(checkpoint, tmp_path):
  """PEFT has 6 for the stack at r 3, which gate and up share; two sides have 12, and not 24."""
  case = checkpoint('qwen3_moe')
  sides = [oracle.make_adapter(tmp_path / str(seed), case.folder, seed=seed) for seed in (1, 2)]
  direction = directions.between(*sides, base=case.folder)
  record = export(direction, case.model, 1.0, 'peft', tmp_path / 'out')
  assert record['rank'] == 12
  config = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  assert config['rank_pattern'] == {}
  loaded = load_peft(case.folder, tmp_path / 'out')
  expected = oracle.unmerged_logits(case.model, direction, 1.0)
  np.testing.assert_allclose(oracle.torch_logits(loaded), expected, atol=1e-4)


@pytest.mark.parametrize('family', ['qwen3_moe', 'mixtral'])
def test_vllm_packs_every_projection_of_every_expert(checkpoint, tmp_path, family):
  """A stack of each projection in the order (gate, down, up) of all experts, as `pack_moe` of vLLM
  0.33.0 makes it, against the changes in float64; the names are those of its expert mapping."""
  case = checkpoint(family)
  direction = random_direction(case.model, 'up alone')
  record = export(direction, case.model, 2.0, 'peft', tmp_path / 'out', target='vllm')
  assert record['max_lora_rank'] == 8
  config = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  names = {'qwen3_moe': ('gate_proj', 'down_proj', 'up_proj'), 'mixtral': ('w1', 'w2', 'w3')}[
    family
  ]
  block = {'qwen3_moe': 'mlp', 'mixtral': 'block_sparse_moe'}[family]
  assert config['target_modules'] == sorted(names)
  assert not config.get('target_parameters') and not config['rank_pattern']
  tensors = safetensors.numpy.load_file(tmp_path / 'out' / 'adapter_model.safetensors')
  num_experts = case.model.config.num_experts
  assert len(tensors) == 3 * num_experts * 3 * 2
  leaf = oracle.leaves_of(direction.delta)[EXPERTS['up']]
  change = 2.0 * np.einsum('LEDR,LERF->LEFD', np.float64(leaf.a), np.float64(leaf.b))
  for layer in range(3):
    for name in names:
      stacks = [
        np.stack(
          [
            tensors[
              f'base_model.model.model.layers.{layer}.{block}.experts.{expert}.{name}.{factor}.weight'
            ]
            for expert in range(num_experts)
          ]
        )
        for factor in ('lora_A', 'lora_B')
      ]
      product = np.einsum('EOR,ERI->EOI', np.float64(stacks[1]), np.float64(stacks[0]))
      scaling = config['lora_alpha'] / config['r']
      expected = change[layer] if name == names[2] else np.zeros_like(product)
      np.testing.assert_allclose(scaling * product, expected, atol=1e-5)


def test_llama_cpp_has_a_stack_of_each_projection(checkpoint, tmp_path):
  """Router and experts of the GGUF adapter, b a of each, against the changes in float64."""
  library = pytest.importorskip('gguf')
  case = checkpoint('qwen3_moe')
  direction = random_direction(case.model)
  record = export(direction, case.model, 1.0, 'gguf', tmp_path / 'out')
  assert record['parity']['relative_difference'] < 1e-4
  reader = library.GGUFReader(tmp_path / 'out' / 'adapter.gguf')
  tensors = {tensor.name: np.float64(tensor.data) for tensor in reader.tensors}
  for path, name in (
    (ROUTER, 'ffn_gate_inp'),
    (EXPERTS['gate'], 'ffn_gate_exps'),
    (EXPERTS['up'], 'ffn_up_exps'),
    (EXPERTS['down'], 'ffn_down_exps'),
  ):
    leaf = oracle.leaves_of(direction.delta)[path]
    for layer in range(3):
      a, b = (tensors[f'blk.{layer}.{name}.weight.lora_{factor}'] for factor in 'ab')
      change = np.float64(leaf.a[layer]) @ np.float64(leaf.b[layer])
      np.testing.assert_allclose(b @ a, change.swapaxes(-1, -2), atol=1e-5)


def test_dense_changes_of_experts_are_folded_where_a_rank_is_given(checkpoint, tmp_path):
  case = checkpoint('qwen3_moe')
  direction = random_direction(case.model, 'down and q')
  leaves = oracle.leaves_of(direction.delta)
  leaf = leaves[EXPERTS['down']]
  change = np.einsum('LEFR,LERD->LEFD', np.asarray(leaf.a), np.asarray(leaf.b))
  leaves[EXPERTS['down']] = Dense(jnp.asarray(change))
  dense = Direction(tree.unflatten(leaves), direction.meta)
  with pytest.raises(InputError, match='experts/down/kernel: give a rank to fold them to'):
    export(dense, case.model, 1.0, 'peft', tmp_path / 'refused')
  export(dense, case.model, 1.0, 'peft', tmp_path / 'out', rank=3)
  loaded = load_peft(case.folder, tmp_path / 'out')
  expected = oracle.unmerged_logits(case.model, direction, 1.0)
  np.testing.assert_allclose(oracle.torch_logits(loaded), expected, atol=2e-4)


def test_biases_of_experts_are_refused_before_anything_is_written(checkpoint, tmp_path):
  case = checkpoint('qwen3_moe')
  delta = models.init_delta(case.model.config, 'bias', jax.random.key(0))
  meta = {'kind': 'test', 'base': directions.base_of(case.model).to_json(), 'sources': []}
  for target in targets.TARGETS:
    with pytest.raises(InputError, match='cannot hold the changes of layers/mlp/experts/down/bias'):
      export(Direction(delta, meta), case.model, 1.0, 'peft', tmp_path / 'out', target=target)
  assert not (tmp_path / 'out').exists()


def test_the_mixture_of_qwen3_30b_is_written_in_factors_alone():
  """Rank 2 of a layer in the shapes of Qwen3-30B-A3B: as large as the factors, not the kernels."""
  config = models.ModelConfig(
    vocab_size=8,
    num_layers=1,
    width=2048,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    mlp_width=768,
    norm_eps=1e-6,
    rope=models.Rope(1e6, 'default', 1.0, 1.0, 1.0, 32),
    tied=False,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    activation='silu',
    max_positions=32,
    num_experts=128,
    experts_per_token=8,
    normalise_choices=True,
  )
  a = jnp.ones((1, 128, 2048, 2))
  changes = {EXPERTS['gate']: LowRank(a, jnp.ones((1, 128, 2, 768)))}
  stacks = experts.stacks(changes, 'qwen3_moe', config, rank=2)
  assert stacks.parameters == {'mlp.experts.gate_up_proj': 2}
  ((module, (lora_a, lora_b)),) = stacks.pairs.items()
  assert module == 'model.layers.0.mlp.experts'
  assert lora_a.shape == (128 * 4, 2048) and lora_b.shape == (2 * 768, 4 * 128)
  by_expert = experts.each(changes, 'qwen3_moe', config)
  assert len(by_expert) == 3 * 128
  assert by_expert['model.layers.0.mlp.experts.127.gate_proj'][0].shape == (2, 2048)
