"""Mixtures of experts against loops over experts in float64, on one device and on meshes."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
import test_meshes
import tiny
import torch
import transformers

from weightsteer_jax import models
from weightsteer_jax.directions import algebra, gram
from weightsteer_jax.directions.streamed import checkpoints
from weightsteer_jax.exports import merging
from weightsteer_jax.models import Dense, Edit, LowRank, ModelConfig, Rope, families, moe, stored
from weightsteer_jax.runtime import sharding, tree
from weightsteer_jax.runtime.errors import InputError

CONFIG = ModelConfig(
  vocab_size=40,
  num_layers=2,
  width=16,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_width=12,
  norm_eps=1e-5,
  rope=Rope(100.0, 'default', 1.0, 1.0, 1.0, 32),
  tied=False,
  qkv_bias=False,
  o_bias=False,
  mlp_bias=False,
  activation='silu',
  max_positions=32,
  num_experts=5,
  experts_per_token=2,
  normalise_choices=True,
)
TOKENS = tiny.tokens((3, 9), vocab_size=40)
# As in tests/meshes.py: every axis that is cut divides by eight, experts do not.
MESH_CONFIG = dataclasses.replace(
  meshes.CONFIG, qkv_bias=False, num_experts=5, experts_per_token=3, normalise_choices=True
)
MESHES = ('1x1x8 tensor', '2x2x2 fsdp')


def random_params(config=CONFIG, dtype=jnp.float32):
  return tiny.randomised(models.abstract_params(config, dtype), seed=1, scale=0.4)


def random_delta(config, kind, seed=2):
  return tiny.randomised(
    models.init_delta(config, kind, jax.random.key(0), rank=3, lora_alpha=6.0), seed, scale=0.2
  )


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# The grouped matmul.

SIZES = {
  'some': [3, 0, 5, 1, 2],
  'all to one': [0, 0, 0, 11, 0],
  'first and last empty': [0, 4, 4, 3, 0],
  'one each': [1, 1, 1, 1, 7],
}


def by_loop(x_JI, kernel_EIO, sizes):
  ends = np.cumsum(sizes)
  x_JI, kernel_EIO = x_JI.astype(np.float64), kernel_EIO.astype(np.float64)
  return np.concatenate(
    [x_JI[end - size : end] @ kernel for kernel, size, end in zip(kernel_EIO, sizes, ends)]
  )


@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
def test_the_grouped_matmul_and_its_gradients_equal_a_loop_over_experts_in_float64(sizes):
  x_JI, kernel_EIO, ct_JO = draw(11, 6), draw(5, 6, 4, seed=1), draw(11, 4, seed=2)
  y_JO, pull = jax.vjp(
    lambda x, kernel: moe.grouped(jnp.array(sizes))('JI,EIO->JO', x, kernel), x_JI, kernel_EIO
  )
  x_ct, kernel_ct = pull(ct_JO)
  np.testing.assert_allclose(y_JO, by_loop(x_JI, kernel_EIO, sizes), atol=1e-5)
  np.testing.assert_allclose(x_ct, by_loop(ct_JO, kernel_EIO.swapaxes(1, 2), sizes), atol=1e-5)
  ends = np.cumsum(sizes)
  expected = [
    x_JI[end - size : end].T.astype(np.float64) @ ct_JO[end - size : end]
    for size, end in zip(sizes, ends)
  ]
  np.testing.assert_allclose(kernel_ct, np.stack(expected), atol=1e-5)


# The mixture.


def mixture_by_loop(x_ZD, scores_ZE, kernels, choices, normalise, kernel_of=None, bias_of=None):
  """Token by token and choice by choice, float64; `kernel_of(name, e, m)` and `bias_of` may differ
  by token."""
  kernel_of = kernel_of or (lambda name, e, m: kernels[name][e].astype(np.float64))
  bias_of = bias_of or (lambda name, e, m: 0.0)
  out = np.zeros(x_ZD.shape)
  for m, (x, scores) in enumerate(zip(x_ZD.astype(np.float64), scores_ZE.astype(np.float64))):
    odds = np.exp(scores - scores.max())
    chosen = np.argsort(-scores)[:choices]
    weights = odds[chosen] / (odds[chosen].sum() if normalise else odds.sum())
    for e, weight in zip(chosen, weights):
      gate, up = (x @ kernel_of(name, e, m) + bias_of(name, e, m) for name in ('gate', 'up'))
      out[m] += weight * (
        (gate / (1 + np.exp(-gate)) * up) @ kernel_of('down', e, m) + bias_of('down', e, m)
      )
  return out


def parts(experts=5, seed=0):
  """x [2, 4, 6], scores [2, 4, E] and kernels of width 7."""
  kernels = {
    'gate': draw(experts, 6, 7, seed=seed + 1),
    'up': draw(experts, 6, 7, seed=seed + 2),
    'down': draw(experts, 7, 6, seed=seed + 3),
  }
  return draw(2, 4, 6, seed=seed), draw(2, 4, experts, seed=seed + 4), kernels


def mix(x_BTD, scores_BTE, kernels, edits=(), choices=2, normalise=True):
  tokens_BT = jnp.arange(8, dtype=jnp.int32).reshape(2, 4)
  x_BTD, scores_BTE, kernels, edits = jax.tree.map(jnp.asarray, (x_BTD, scores_BTE, kernels, edits))
  return moe.mixture(
    x_BTD,
    scores_BTE,
    tokens_BT,
    kernels,
    edits,
    choices=choices,
    normalise=normalise,
    activation='silu',
  )


@pytest.mark.parametrize(
  'choices, normalise', [(1, True), (1, False), (2, True), (3, False), (5, True)]
)
def test_the_mixture_equals_a_loop_over_tokens_and_choices(choices, normalise):
  x, scores, kernels = parts()
  expected = mixture_by_loop(x.reshape(8, 6), scores.reshape(8, 5), kernels, choices, normalise)
  got = mix(x, scores, kernels, choices=choices, normalise=normalise)
  np.testing.assert_allclose(got.reshape(8, 6), expected, atol=1e-4)


def test_an_expert_without_tokens_and_one_with_all_of_them():
  """Expert 1 is in nobody's choices and 3 in everybody's; the gradients of the first are zero,
  nothing is dropped."""
  x, scores, kernels = parts()
  scores[..., 1], scores[..., 3] = -50.0, 50.0
  expected = mixture_by_loop(x.reshape(8, 6), scores.reshape(8, 5), kernels, 2, True)
  np.testing.assert_allclose(mix(x, scores, kernels).reshape(8, 6), expected, atol=1e-4)
  gradients = jax.grad(lambda kernels: mix(x, scores, kernels).sum())(kernels)
  for gradient in gradients.values():
    assert not gradient[1].any() and gradient[3].any() and np.isfinite(gradient).all()


def test_gradients_of_the_mixture_equal_differences_of_the_loop():
  x, scores, kernels = parts()
  gradients = jax.grad(lambda *args: mix(*args).sum(), argnums=(0, 1, 2))(x, scores, kernels)
  step, flat = 1e-4, tree.flatten({'x': x, 'scores': scores, **kernels})
  got = tree.flatten({'x': gradients[0], 'scores': gradients[1], **gradients[2]})
  choose = np.random.default_rng(5)
  for path, value in flat.items():
    direction = choose.normal(size=value.shape)

    def total(sign):
      at = {**flat, path: value.astype(np.float64) + sign * step * direction}
      return mixture_by_loop(at['x'].reshape(8, 6), at['scores'].reshape(8, 5), at, 2, True).sum()

    slope = (total(1) - total(-1)) / (2 * step)
    np.testing.assert_allclose(
      (np.asarray(got[path], np.float64) * direction).sum(),
      slope,
      rtol=1e-3,
      atol=1e-3,
      err_msg=path,
    )


def test_edits_follow_their_tokens_through_the_sort():
  """Two edits with strengths of their own at every token: low-rank, dense and biases, against the
  loop."""
  x, scores, kernels = parts()
  low = {}
  for name, (_, inputs, outputs) in ((name, kernel.shape) for name, kernel in kernels.items()):
    low[name] = {
      'kernel': LowRank(draw(5, inputs, 2, seed=7), draw(5, 2, outputs, seed=8), 0.5),
      'bias': Dense(draw(5, outputs, seed=9)),
    }
  dense = {'down': {'kernel': Dense(draw(5, 7, 6, seed=10))}}
  alphas = draw(2, 8, seed=11)
  edits = [Edit(delta, alpha.reshape(2, 4)) for delta, alpha in zip((low, dense), alphas)]

  def kernel_of(name, e, m):
    leaf = low[name]['kernel']
    kernel = kernels[name][e] + alphas[0, m] * 0.5 * leaf.a[e].astype(np.float64) @ leaf.b[e]
    return kernel + (alphas[1, m] * dense['down']['kernel'].value[e] if name == 'down' else 0.0)

  expected = mixture_by_loop(
    x.reshape(8, 6),
    scores.reshape(8, 5),
    kernels,
    2,
    True,
    kernel_of,
    lambda name, e, m: alphas[0, m] * low[name]['bias'].value[e],
  )
  np.testing.assert_allclose(
    mix(x, scores, kernels, edits).reshape(8, 6), expected, rtol=1e-4, atol=1e-4
  )


# The decoder.


def logits(params, edits=(), config=CONFIG):
  return tiny.forward(config, params, TOKENS, edits=edits)


@pytest.mark.parametrize(
  'field, value',
  [
    ('num_experts', 4),
    ('experts_per_token', 3),
    ('normalise_choices', False),
    ('mlp_width', 11),
    ('activation', 'gelu'),
  ],
)
def test_every_field_of_the_mixture_matters(field, value):
  other = dataclasses.replace(CONFIG, **{field: value})
  shapes = [
    jax.tree.map(lambda x: x.shape, models.abstract_params(config)) for config in (CONFIG, other)
  ]
  assert (
    shapes[0] != shapes[1]
    or np.abs(logits(random_params(), config=other) - logits(random_params())).max() > 1e-3
  )


@pytest.mark.parametrize('kind', ['lora', 'lora_embeddings', 'full'])
def test_an_edit_gives_the_logits_of_the_merged_model_at_each_rows_strength(kind):
  params, delta, alphas = (
    random_params(),
    random_delta(CONFIG, kind),
    np.array([-1.0, 0.0, 0.7], np.float32),
  )
  got = logits(params, (Edit(delta, alphas),))
  assert np.array_equal(got[1], logits(params)[1])
  for row in (0, 2):
    np.testing.assert_allclose(
      got[row], logits(models.merge(CONFIG, params, delta, alphas[row]))[row], atol=2e-4
    )


def test_at_alpha_zero_a_bfloat16_model_is_the_base_bit_for_bit():
  params, flat = random_params(dtype=jnp.bfloat16), {}
  for kind in ('full', 'bias', 'lora'):  # Of a path in several of them the last is left.
    flat |= tree.flatten(random_delta(CONFIG, kind), models.is_delta_leaf)
  run = jax.jit(
    lambda params, edits: models.logits(
      CONFIG,
      params,
      models.hidden(CONFIG, params, models.TokenBatch(TOKENS), edits=edits)[0],
      edits=edits,
    )
  )
  assert np.array_equal(run(params, ()), run(params, (Edit(tree.unflatten(flat), jnp.zeros(3)),)))


def test_lora_goes_to_attention_and_every_expert_but_not_to_the_router():
  delta = models.init_delta(CONFIG, 'lora', jax.random.key(0), rank=3)
  leaves = tree.flatten(delta, models.is_delta_leaf)
  assert set(leaves) == {f'layers/attn/{name}/kernel' for name in 'qkvo'} | {
    f'layers/mlp/experts/{name}/kernel' for name in ('gate', 'up', 'down')
  }
  down = leaves['layers/mlp/experts/down/kernel']
  assert (down.a.shape, down.b.shape) == ((2, 5, 12, 3), (2, 5, 3, 16))
  assert np.abs(down.a).max() <= 12**-0.5 and np.abs(down.a).max() > 0.9 * 12**-0.5, (
    'the spread is of one expert'
  )
  bias = models.init_delta(CONFIG, 'bias', jax.random.key(0))
  assert tree.flatten(bias)['layers/mlp/experts/down/bias/value'].shape == (2, 5, 16)


def test_paths_and_axes_tell_the_same_stack():
  kernels = {path: site for path, site in models.sites(CONFIG).items() if site.inputs}
  assert {path: models.stack_axes(path) for path in kernels} == {
    path: site.stack for path, site in kernels.items()
  }
  assert {site.stack for site in kernels.values()} == {'', 'L', 'LE'}


def test_the_router_can_be_edited_too():
  params, alphas = random_params(), np.array([-1.0, 0.0, 0.7], np.float32)
  delta = {'layers': {'mlp': {'router': {'kernel': LowRank(draw(2, 16, 2), draw(2, 2, 5), 1.0)}}}}
  got = logits(params, (Edit(delta, alphas),))
  for row in range(3):
    np.testing.assert_allclose(
      got[row], logits(models.merge(CONFIG, params, delta, alphas[row]))[row], atol=2e-4
    )


def test_dropout_drops_inputs_of_the_low_rank_branch_alone():
  """The change is unbiased: over many draws its mean is that without dropout."""
  x, scores, kernels = parts()
  delta = {'down': {'kernel': LowRank(draw(5, 7, 2, seed=7), draw(5, 2, 6, seed=8), 1.0)}}
  ones = jnp.ones((2, 4))
  plain, whole = mix(x, scores, kernels), mix(x, scores, kernels, [Edit(delta, ones)])
  run = jax.jit(lambda key: mix(x, scores, kernels, [Edit(delta, ones, key, 0.4)]))
  drawn = np.stack([run(jax.random.key(i)) for i in range(400)])
  assert drawn.std(axis=0).max() > 0.1 and not np.array_equal(drawn[0], drawn[1])
  error = np.abs(drawn.mean(axis=0) - whole)
  assert (error < 5 * drawn.std(axis=0) / 20 + 1e-4).all() and np.abs(whole - plain).max() > 1


# Directions: what is per layer elsewhere is per layer and expert here.


def test_inner_products_of_changes_of_experts_equal_those_of_the_dense_ones():
  x, y = (random_delta(CONFIG, 'lora', seed) for seed in (2, 3))
  known = models.sites(CONFIG)
  dense = [
    {
      path: np.asarray(models.kernel_change(known[path], leaf), np.float64)
      for path, leaf in tree.flatten(delta, models.is_delta_leaf).items()
    }
    for delta in (x, y)
  ]
  for path, product in gram.inner_products(x, y).items():
    np.testing.assert_allclose(
      product, (dense[0][path] * dense[1][path]).sum(), rtol=1e-4, atol=1e-4, err_msg=path
    )
    np.testing.assert_allclose(
      algebra.dense_change(path, tree.flatten(x, models.is_delta_leaf)[path]),
      dense[0][path],
      atol=1e-5,
    )
  total = tree.flatten(algebra.add_deltas(x, algebra.scale_delta(y, -2.0)), models.is_delta_leaf)
  path = 'layers/mlp/experts/up/kernel'
  np.testing.assert_allclose(
    algebra.dense_change(path, total[path]), dense[0][path] - 2 * dense[1][path], atol=1e-5
  )


@pytest.mark.parametrize('name', ['mixtral', 'qwen3_moe'])
def test_a_steered_mixture_is_the_merged_checkpoint(checkpoint, tmp_path, name):
  """LoRA on every expert, at alpha 0.7: unmerged here, merged in transformers; and read back as
  their difference."""
  case = checkpoint(name)
  model, tokens = case.model, tiny.tokens((2, 12))
  delta = random_delta(model.config, 'lora')
  params, facts = merging.merge(model, delta, 0.7, 'float32')
  models.save(tmp_path / 'merged', model.config, params, family=case.family, like=case.folder)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'merged', attn_implementation='eager'
  )
  with torch.no_grad():
    expected = theirs(torch.as_tensor(tokens, dtype=torch.long)).logits.numpy()
  got = tiny.forward(
    model.config, model.params, tokens, edits=(Edit(delta, np.full(2, 0.7, np.float32)),)
  )
  np.testing.assert_allclose(got, expected, atol=2e-4 * np.abs(expected).max())
  with (
    checkpoints.open_checkpoint(tmp_path / 'merged') as x,
    checkpoints.open_checkpoint(case.folder) as y,
  ):
    difference = checkpoints.difference(x, y)
  assert (
    difference.keys() == tree.flatten(delta, models.is_delta_leaf).keys()
    and facts['realised_error'] < 1e-5
  )
  for path, leaf in tree.flatten(delta, models.is_delta_leaf).items():
    change = 0.7 * np.asarray(models.kernel_change(models.sites(model.config)[path], leaf))
    np.testing.assert_allclose(difference[path].value, change, atol=1e-6)


# Configs as they are on the hub.

REAL = {
  'Qwen3-30B-A3B': dict(
    architectures=['Qwen3MoeForCausalLM'],
    attention_bias=False,
    attention_dropout=0.0,
    bos_token_id=151643,
    decoder_sparse_step=1,
    eos_token_id=151645,
    head_dim=128,
    hidden_act='silu',
    hidden_size=2048,
    initializer_range=0.02,
    intermediate_size=6144,
    max_position_embeddings=40960,
    max_window_layers=48,
    mlp_only_layers=[],
    model_type='qwen3_moe',
    moe_intermediate_size=768,
    norm_topk_prob=True,
    num_attention_heads=32,
    num_experts=128,
    num_experts_per_tok=8,
    num_hidden_layers=48,
    num_key_value_heads=4,
    output_router_logits=False,
    rms_norm_eps=1e-06,
    rope_scaling=None,
    rope_theta=1000000.0,
    router_aux_loss_coef=0.001,
    sliding_window=None,
    tie_word_embeddings=False,
    torch_dtype='bfloat16',
    transformers_version='4.51.0',
    use_cache=True,
    use_sliding_window=False,
    vocab_size=151936,
  ),
  'Mixtral-8x7B-v0.1': dict(
    architectures=['MixtralForCausalLM'],
    attention_dropout=0.0,
    bos_token_id=1,
    eos_token_id=2,
    hidden_act='silu',
    hidden_size=4096,
    initializer_range=0.02,
    intermediate_size=14336,
    max_position_embeddings=32768,
    model_type='mixtral',
    num_attention_heads=32,
    num_experts_per_tok=2,
    num_hidden_layers=32,
    num_key_value_heads=8,
    num_local_experts=8,
    output_router_logits=False,
    rms_norm_eps=1e-05,
    rope_theta=1000000.0,
    router_aux_loss_coef=0.02,
    sliding_window=None,
    tie_word_embeddings=False,
    torch_dtype='bfloat16',
    transformers_version='4.36.0.dev0',
    use_cache=True,
    vocab_size=32000,
  ),
}
COUNTS = {'Qwen3-30B-A3B': (30_532_122_624, 3.35e9), 'Mixtral-8x7B-v0.1': (46_702_792_704, 12.88e9)}


@pytest.mark.parametrize('name', REAL)
def test_real_configs_have_the_parameters_of_transformers(name):
  """All of them, tensor by tensor, and those that one token goes through, as the model cards round
  them."""
  config = models.read_config(REAL[name], where=name)
  with torch.device('meta'):
    theirs = transformers.AutoModelForCausalLM.from_config(
      transformers.AutoConfig.for_model(**REAL[name])
    )
  assert (
    tree.count(models.abstract_params(config))
    == sum(x.numel() for x in theirs.parameters())
    == COUNTS[name][0]
  )
  flat = {path: leaf.size for path, leaf in tree.flatten(models.abstract_params(config)).items()}
  of_experts = sum(size for path, size in flat.items() if '/experts/' in path)
  idle = of_experts * (1 - config.experts_per_token / config.num_experts)
  np.testing.assert_allclose(sum(flat.values()) - idle, COUNTS[name][1], rtol=5e-3)
  rows = stored.tensor_rows(config, families.FAMILIES[REAL[name]['model_type']])
  names = [
    stored_name
    for row in rows.values()
    for stored_name in stored.stored_names(row, config).values()
  ]
  assert (
    len(names)
    == len(set(names))
    == {'qwen3_moe': 48 * (3 * 128 + 9) + 3, 'mixtral': 32 * (3 * 8 + 7) + 3}[
      REAL[name]['model_type']
    ]
  )


@pytest.mark.parametrize(
  'name, fields, message',
  [
    ('Qwen3-30B-A3B', dict(decoder_sparse_step=2), "'decoder_sparse_step' 2"),
    ('Qwen3-30B-A3B', dict(mlp_only_layers=[0, 3]), r'layers 0, 3 dense.*which is not supported'),
    ('Qwen3-30B-A3B', dict(num_experts_per_tok=129), '129, but there are 128 experts'),
    ('Qwen3-30B-A3B', dict(num_local_experts=64), 'two names for one number'),
    ('Qwen3-30B-A3B', dict(n_shared_experts=1), 'n_shared_experts=1'),
    ('Mixtral-8x7B-v0.1', dict(router_jitter_noise=0.1), "'router_jitter_noise' is 0.1"),
    ('Mixtral-8x7B-v0.1', dict(num_local_experts=0), 'expected 1 or more'),
  ],
)
def test_what_the_mixture_does_not_honour_is_refused_by_name(name, fields, message):
  with pytest.raises(InputError, match=message):
    models.read_config(REAL[name] | fields, where='config.json')


def test_a_dense_family_cannot_hold_a_mixture():
  with pytest.raises(InputError, match='num_experts 5'):
    families.FAMILIES['llama'].write(CONFIG)


# Meshes: what this file runs as a script, in a process with eight devices.


def on_meshes(output: str, *names: str) -> None:
  """Writes {layout: logits, gradients of a delta and of the parameters, the compiled program of a
  score}."""
  found = {}
  for name in names:
    layout = meshes.layout_of(name)
    params = tiny.randomised(models.abstract_params(MESH_CONFIG), seed=1, scale=0.4)
    params = jax.tree.map(jax.device_put, params, models.param_shardings(MESH_CONFIG, layout))
    lora, biases = random_delta(MESH_CONFIG, 'lora'), random_delta(MESH_CONFIG, 'bias', seed=3)
    alphas = jax.device_put(
      np.linspace(-1, 1, 8).astype(np.float32), layout.activations('B', (8,), name='alpha')
    )
    tokens = jax.device_put(
      tiny.tokens((8, 6), vocab_size=96), layout.activations('BT', (8, 6), name='tokens')
    )

    def score(lora, params, dropped=()):
      x_BTD, _ = models.hidden(
        MESH_CONFIG,
        params,
        models.TokenBatch(tokens),
        edits=(Edit(lora, alphas), Edit(biases, alphas), *dropped),
      )
      return models.logits(MESH_CONFIG, params, x_BTD)

    def loss(lora, params):
      down = {'layers': {'mlp': {'experts': {'down': lora['layers']['mlp']['experts']['down']}}}}
      logits = score(lora, params, [Edit(down, alphas, jax.random.key(5), 0.3)])
      return jnp.square(logits).mean(), logits

    with layout.context():
      lora = jax.tree.map(jax.device_put, lora, models.delta_shardings(MESH_CONFIG, lora, layout))
      scored = jax.jit(score).lower(lora, params).compile().as_text()
      step = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), compiler_options=tiny.QUICK
      )
      (_, logits), gradients = step(lora, params)
    found[name] = {
      'logits': np.asarray(logits).tolist(),
      'gradients': meshes.lists(gradients),
      'hlo': scored,
    }
  pathlib.Path(output).write_text(json.dumps(found))


def run(folder, function, *names):
  output, root = folder / 'found.json', pathlib.Path(__file__).parents[2]
  env = os.environ | {
    'XLA_FLAGS': f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': os.pathsep.join([str(root), str(root / 'tests')]),
  }
  done = subprocess.run(
    [sys.executable, __file__, function, str(output), 'single', *names],
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  assert 'rematerialization' not in done.stderr, (
    'the partitioner moved an activation through all devices'
  )
  return json.loads(output.read_text())


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  return run(tmp_path_factory.mktemp('meshes'), 'on_meshes', *MESHES)


@pytest.mark.slow
@pytest.mark.parametrize('name', MESHES)
def test_a_mesh_gives_the_logits_and_gradients_of_one_device(found, name):
  """With dropout, whose draws follow the tokens and not the devices."""
  one, other = found[name], found['single']
  np.testing.assert_allclose(one['logits'], other['logits'], atol=1e-4)
  assert np.abs(other['logits']).max() > 1 and one['gradients'].keys() == other['gradients'].keys()
  for path, values in other['gradients'].items():
    assert np.abs(values).max() > 0, path
    np.testing.assert_allclose(
      one['gradients'][path], values, atol=1e-4 * np.abs(values).max(), err_msg=path
    )


@pytest.mark.slow
def test_no_weight_of_an_expert_is_gathered_and_no_token_travels(found):
  """Scoring: where F alone is cut, sums; where D is too, gathers of one layer of one parameter at a
  time."""
  moved = {name: test_meshes.collectives(found[name]['hlo']) for name in MESHES}
  assert set(moved['1x1x8 tensor']) == {'all-reduce'}
  # The residual stream, and the rank of the output projection's edit; a token's choices are summed
  # before they move.
  assert max(moved['1x1x8 tensor']['all-reduce']) <= 8 * 6 * (MESH_CONFIG.width + 3)
  gathered = moved['2x2x2 fsdp']['all-gather']
  trees = models.abstract_params(MESH_CONFIG), random_delta(MESH_CONFIG, 'lora')
  sizes = sum(map(test_meshes.layer_sizes, trees), [])
  parts = {
    size // cut for size in sizes for cut in (1, 2)
  }  # What is cut over tensor as well is gathered in halves.
  assert set(gathered) <= parts and 5 * 32 * 40 // 2 in gathered


@pytest.mark.slow
def test_a_mesh_trains_scores_and_generates_as_one_device_does(tmp_path):
  everything = run(tmp_path, 'main', *MESHES)
  for name in MESHES:
    test_meshes.same(everything[name], everything['single'])


@pytest.mark.slow
def test_a_tpu_runs_the_grouped_matmuls_forwards_and_backwards_and_gathers_nothing(monkeypatch):
  """Compiled for chips that are not there: kernels for ragged rows, sums over F, no expert's
  weights moved."""
  pytest.importorskip('libtpu')
  from jax.experimental import topologies

  for name, value in (
    ('TPU_SKIP_MDS_QUERY', '1'),
    ('TPU_WORKER_HOSTNAMES', 'localhost'),
    ('TPU_WORKER_ID', '0'),
  ):
    monkeypatch.setenv(name, value)
  chips = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices
  layout = sharding.Layout(sharding.make_mesh(sharding.parse('1x1x4'), chips), fsdp=False)
  config = dataclasses.replace(
    CONFIG,
    vocab_size=256,
    width=256,
    mlp_width=512,
    head_dim=128,
    num_kv_heads=4,
    num_experts=8,
    max_positions=128,
  )

  def abstract(values, placed):
    return jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), values, placed
    )

  def loss(delta, params):
    tokens = jnp.zeros((4, 64), jnp.int32)
    return jnp.square(
      models.hidden(config, params, models.TokenBatch(tokens), edits=(Edit(delta, jnp.ones(4)),))[0]
    ).mean()

  params = abstract(
    models.abstract_params(config, jnp.bfloat16), models.param_shardings(config, layout)
  )
  delta = jax.eval_shape(lambda: models.init_delta(config, 'lora', jax.random.key(0), rank=8))
  delta = abstract(delta, models.delta_shardings(config, delta, layout))
  with layout.context():
    hlo = jax.jit(jax.grad(loss)).lower(delta, params).compile().as_text()
  assert hlo.count('tpu_custom_call') >= 9, (
    'gate, up and down, and the inputs and factors of each on the way back'
  )
  assert set(test_meshes.collectives(hlo)) == {'all-reduce'}


if __name__ == '__main__':
  meshes.CONFIG = MESH_CONFIG
  {'on_meshes': on_meshes, 'main': meshes.main}[sys.argv[1]](*sys.argv[2:])
