"""LoRA on experts and routers: gradients of torch through PEFT's stacked factors, and the names
that users give for what is trained."""

import copy
import functools

import jax
import numpy as np
import peft
import pytest
import tiny
import torch

from weightsteer_jax import models
from weightsteer_jax.data import batches
from weightsteer_jax.finetune import claim, memory
from weightsteer_jax.finetune.loss import loss
from weightsteer_jax.runtime import sharding, tree
from weightsteer_jax.runtime.errors import InputError

RANK = 3
# What users of the family give to PEFT.
NAMES = {
  'qwen3_moe': ('q_proj', 'v_proj', 'gate_proj', 'up_proj', 'down_proj', 'gate'),
  'mixtral': ('q_proj', 'v_proj', 'w1', 'w3', 'w2', 'gate'),
}


@pytest.mark.parametrize('family', ['qwen3_moe', pytest.param('mixtral', marks=pytest.mark.slow)])
def test_gradients_of_experts_and_router_are_those_of_torch_and_peft(
  checkpoint, make_examples, family
):
  case = checkpoint(family)
  delta = tiny.randomised(
    models.init_delta(
      case.model.config,
      'lora',
      jax.random.key(0),
      rank=RANK,
      lora_alpha=5.0,
      targets=NAMES[family],
    )
  )
  wrapped = peft.get_peft_model(
    copy.deepcopy(case.torch_model),
    peft.LoraConfig(r=RANK, lora_alpha=5, target_modules=[*NAMES[family]], task_type='CAUSAL_LM'),
  ).train()
  leaves = tree.flatten(delta, models.is_delta_leaf)
  views = _views(wrapped, case.model.config, leaves)
  assert set(views) == set(leaves) and len(leaves) == 6
  with torch.no_grad():
    for path, leaf in leaves.items():
      for ours, theirs in zip((leaf.a, leaf.b), views[path](lambda parameter: parameter)):
        for layer, view in enumerate(theirs):
          view.copy_(torch.as_tensor(np.asarray(ours[layer]).reshape(view.shape)))

  examples = make_examples(3)
  batch = batches.fill(examples, [[0], [1], [2]], num_rows=3, row_length=20)

  @functools.partial(jax.jit, compiler_options=tiny.QUICK)
  @functools.partial(jax.value_and_grad, has_aux=True)
  def mean_loss(delta):
    total, count = loss(case.model.config, case.model.params, delta, batch)
    return total / count, count

  (ours, _), gradient = mean_loss(delta)
  theirs = _torch_loss(wrapped, examples)
  theirs.backward()
  np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)
  for path, leaf in tree.flatten(gradient, models.is_delta_leaf).items():
    for name, ours, theirs in zip('ab', (leaf.a, leaf.b), views[path](lambda p: p.grad)):
      expected = np.stack([layer.numpy().reshape(ours.shape[1:]) for layer in theirs])
      assert np.abs(expected).max() > 1e-3
      np.testing.assert_allclose(
        ours, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=f'{path} {name}'
      )


def _torch_loss(model, examples):
  ids = torch.zeros(3, 20, dtype=torch.long)
  attention = torch.zeros(3, 20, dtype=torch.long)
  labels = torch.full((3, 20), -100)
  for row, example in enumerate(examples):
    length = len(example)
    ids[row, :length] = torch.as_tensor(example.tokens)
    attention[row, :length] = 1
    labels[row, :length] = torch.where(
      torch.as_tensor(example.loss_mask), ids[row, :length].long(), -100
    )
  return model(input_ids=ids, attention_mask=attention, labels=labels).loss


def _views(wrapped, architecture, paths):
  """{path: function from (parameter -> tensor) to ([a of each layer], [b of each layer])}.

  The tensors are views in our axes, up to merged ones, of PEFT's lora_A and lora_B. PEFT stacks
  experts and fuses gate with up at twice the rank: gate has the first half of the ranks, up the
  second, and B is block-diagonal.
  """
  layers = wrapped.base_model.model.model.layers
  num_experts = architecture.num_experts
  mlp_width = architecture.mlp_width

  def factors(path, of):
    _, room, *_, name, _ = path.split('/')
    a_layers = []
    b_layers = []
    for layer in layers:
      if room == 'attn':
        module = getattr(layer.self_attn, f'{name}_proj')
      elif name == 'router':
        module = layer.mlp.gate
      else:
        module = layer.mlp.experts if name == 'down' else layer.mlp.experts.base_layer
      a = of(module.lora_A['default'].weight)
      b = of(module.lora_B['default'].weight)
      if '/experts/' not in path:
        a_layers.append(a.T)
        b_layers.append(b.T)
        continue
      # Rows of A go expert by expert, columns of B rank by rank.
      a_ERI = a.view(num_experts, -1, a.shape[1])
      b_ORE = b.view(b.shape[0], -1, num_experts)
      half = {'gate': 0, 'up': 1, 'down': 0}[name]
      ranks = slice(half * RANK, (half + 1) * RANK)
      outputs = slice(half * mlp_width, (half + 1) * mlp_width) if name != 'down' else slice(None)
      a_layers.append(a_ERI[:, ranks].transpose(1, 2))
      b_layers.append(b_ORE[outputs, ranks].permute(2, 1, 0))
    return a_layers, b_layers

  return {path: lambda of, path=path: factors(path, of) for path in paths}


@pytest.mark.parametrize(
  'name, targets, expected',
  [
    ('qwen3_moe', (), ['attn/k', 'attn/o', 'attn/q', 'attn/v', 'down', 'gate', 'up']),
    (
      'qwen3_moe',
      ('all-linear',),
      ['attn', 'attn', 'attn', 'attn', 'down', 'gate', 'up', 'router'],
    ),
    ('qwen3_moe', ('gate_proj', 'up_proj', 'down_proj'), ['down', 'gate', 'up']),
    ('mixtral', ('gate_proj', 'w2'), ['down', 'gate']),
    ('mixtral', ('experts', 'router'), ['down', 'gate', 'up', 'router']),
    ('qwen3_moe', ('mlp.experts.gate_up_proj', 'mlp.gate.weight'), ['gate', 'up', 'router']),
    ('qwen2', ('qkv_proj', 'gate_up_proj'), ['attn/k', 'attn/q', 'attn/v', 'mlp/gate', 'mlp/up']),
    ('qwen2', ('all-linear',), [*4 * ['attn'], *3 * ['mlp']]),
  ],
)
def test_the_names_that_users_give(checkpoint, name, targets, expected):
  paths = models.lora_paths(checkpoint(name).model.config, targets)
  assert len(paths) == len(expected)
  for path, part in zip(paths, expected):
    assert part in path, paths


@pytest.mark.parametrize(
  'name, targets, message',
  [
    ('qwen2', ('gate',), r"no linear layer 'gate' .*did you mean 'gate_proj'.*q_proj, k_proj"),
    ('qwen3_moe', ('q_prj',), "did you mean 'q_proj'"),
    ('qwen3_moe', ('lm_head',), 'there are: q_proj.*, gate, router, all-linear'),
  ],
)
def test_names_of_no_linear_layer_are_refused(checkpoint, name, targets, message):
  with pytest.raises(InputError, match=message):
    models.lora_paths(checkpoint(name).model.config, targets)


def test_targets_belong_to_a_lora(checkpoint):
  with pytest.raises(InputError, match="targets name the layers of a LoRA .q_proj., .* is 'full'"):
    models.init_delta(
      checkpoint('qwen2').model.config, 'full', jax.random.key(0), targets=('q_proj',)
    )


def test_what_is_trained_counts_as_large_as_it_is(checkpoint, options):
  """Float32 parameters and two moments: 3 layers of rank 3 in 6 experts, and the router's."""
  chosen = options(targets=('experts', 'gate'))
  shapes = memory.state_shapes(checkpoint('qwen3_moe').model.config, chosen, sharding.single())
  experts = 6 * 3 * 3 * (48 + 20)
  router = 3 * (48 + 6)
  assert tree.count(shapes.delta) == 3 * (experts + router)
  assert sharding.bytes_on_device(shapes) >= 4 * 3 * 3 * (experts + router)


def test_a_fine_tune_that_names_no_targets_is_on_record_as_before(
  checkpoint, options, make_examples
):
  model = checkpoint('qwen3_moe').model
  records = [
    claim.identity(
      model, make_examples(2), make_examples(1), chosen, seed=0, row_length=20, chat={}
    )
    for chosen in (options(), options(targets=('gate',)))
  ]
  assert 'targets' not in records[0]['options']
  assert records[1]['options']['targets'] == ['gate']
