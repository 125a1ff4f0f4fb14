"""Deltas: nothing at alpha 0, the merged model at alpha 1, a strength per row or token, and LoRA as
PEFT computes it."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny
import torch

from weightsteer_jax import models
from weightsteer_jax.models import Dense, Edit, LowRank, ModelConfig, Rope
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

CONFIG = ModelConfig(
  vocab_size=70,
  num_layers=2,
  width=32,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_width=44,
  norm_eps=1e-5,
  rope=Rope(1e4, 'default', 1.0, 1.0, 1.0, 32),
  tied=False,
  qkv_bias=True,
  o_bias=False,
  mlp_bias=False,
  activation='silu',
  max_positions=32,
)
TIED = dataclasses.replace(CONFIG, tied=True)
TOKENS = tiny.tokens((3, 9), vocab_size=70)
KINDS = models.KINDS + ('residual',)


def random_params(config, dtype=jnp.float32):
  return tiny.randomised(models.abstract_params(config, dtype), seed=1, scale=0.3)


def random_delta(config, kind, seed=2, scale=0.1):
  if kind == 'residual':
    return tiny.randomised(
      {'layers': {'residual': Dense(jnp.zeros((config.num_layers, config.width)))}},
      seed=seed,
      scale=scale,
    )
  return tiny.randomised(
    models.init_delta(config, kind, jax.random.key(0), rank=3, lora_alpha=6.0),
    seed=seed,
    scale=scale,
  )


@functools.partial(jax.jit, static_argnums=0)
def fully_optimised(config, params, edits=()):
  """Logits of the program as it really runs, with every optimisation of the compiler."""
  return models.logits(
    config,
    params,
    models.hidden(config, params, models.TokenBatch(TOKENS), edits=edits)[0],
    edits=edits,
  )


@pytest.mark.parametrize(
  'config, dtype',
  [(CONFIG, 'float32'), (TIED, 'float32'), (CONFIG, 'bfloat16')],
  ids=['untied-float32', 'tied-float32', 'untied-bfloat16'],
)
def test_alpha_zero_gives_the_base_logits_bit_for_bit(config, dtype):
  """All kinds of changes at once, against a program that knows of none."""
  params = random_params(config, jnp.dtype(dtype))
  edits = tuple(Edit(random_delta(config, kind), jnp.zeros(3)) for kind in KINDS)
  assert np.array_equal(fully_optimised(config, params, edits), fully_optimised(config, params))


@pytest.mark.parametrize('kind', KINDS)
def test_each_kind_alone_at_alpha_zero_gives_the_base_logits_bit_for_bit(kind):
  config = CONFIG if kind in ('lora', 'full') else TIED
  params = random_params(config)
  delta = random_delta(config, kind)
  base = fully_optimised(config, params)
  assert np.array_equal(fully_optimised(config, params, (Edit(delta, jnp.zeros(3)),)), base)
  assert np.abs(fully_optimised(config, params, (Edit(delta, jnp.ones(3)),)) - base).max() > 1e-2


def test_alpha_zero_gives_the_base_log_probabilities_bit_for_bit():
  params = random_params(CONFIG)
  edits = (Edit(random_delta(CONFIG, 'lora_embeddings'), jnp.zeros(3)),)

  @jax.jit
  def run(params, edits):
    x_BTD, _ = models.hidden(CONFIG, params, models.TokenBatch(TOKENS), edits=edits)
    return models.token_logprobs(CONFIG, params, x_BTD, TOKENS, edits=edits, chunk=4)

  assert np.array_equal(run(params, edits), run(params, ()))


def reference_merge(config, params, delta, alpha):
  """Parameters in float64 with alpha * delta added, by NumPy."""
  flat = {path: np.asarray(leaf, np.float64) for path, leaf in tree.flatten(params).items()}
  for path, leaf in tree.flatten(delta, models.is_delta_leaf).items():
    if isinstance(leaf, Dense):
      change = np.asarray(leaf.value, np.float64)
    else:
      a, b = np.asarray(leaf.a, np.float64), np.asarray(leaf.b, np.float64)
      layers = range(a.shape[0])
      change = leaf.scale * np.stack([np.tensordot(a[i], b[i], axes=1) for i in layers])
    flat[path] = flat[path] + alpha * change
  return flat


@pytest.mark.parametrize(
  'config, kind',
  [(CONFIG, 'lora_embeddings'), (TIED, 'lora_embeddings'), (CONFIG, 'lora'), (TIED, 'full')],
)
def test_merged_and_unmerged_agree(config, kind):
  alpha = -0.7
  params, delta = random_params(config), random_delta(config, kind, scale=0.05)
  merged = models.merge(config, params, delta, alpha)
  for path, leaf in reference_merge(config, params, delta, alpha).items():
    np.testing.assert_allclose(tree.flatten(merged)[path], leaf, rtol=0, atol=1e-6, err_msg=path)
  unmerged = tiny.forward(config, params, TOKENS, edits=(Edit(delta, jnp.full(3, alpha)),))
  whole = tiny.forward(config, merged, TOKENS)
  assert np.abs(whole - tiny.forward(config, params, TOKENS)).max() > 0.02
  np.testing.assert_allclose(unmerged, whole, rtol=0, atol=1e-5)


def test_a_bias_on_the_down_projections_is_the_bias_of_a_model_that_has_one():
  biased = dataclasses.replace(CONFIG, mlp_bias=True)
  delta = random_delta(CONFIG, 'bias')
  params = random_params(CONFIG)
  flat = tree.flatten(params) | {
    f'layers/mlp/{name}/bias': np.zeros((2, 44), np.float32) for name in ('gate', 'up')
  }
  flat['layers/mlp/down/bias'] = 0.5 * delta['layers']['mlp']['down']['bias'].value
  edited = tiny.forward(CONFIG, params, TOKENS, edits=(Edit(delta, jnp.full(3, 0.5)),))
  np.testing.assert_allclose(
    edited, tiny.forward(biased, tree.unflatten(flat), TOKENS), rtol=0, atol=1e-5
  )


def test_a_residual_delta_is_added_after_each_block():
  """With blocks that add nothing, the residual stream is the embedding plus the sum of the
  vectors."""
  params = tree.flatten(random_params(CONFIG))
  for name in ('attn/o', 'mlp/down'):
    params[f'layers/{name}/kernel'] = np.zeros_like(params[f'layers/{name}/kernel'])
  delta = random_delta(CONFIG, 'residual', scale=1.0)
  alpha = np.array([2.0, 0.0, -1.0], np.float32)
  x = params['embed/embedding'][TOKENS] + alpha[:, None, None] * delta['layers'][
    'residual'
  ].value.sum(axis=0)
  normed = (
    x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + CONFIG.norm_eps) * params['final_norm/scale']
  )
  logits = tiny.forward(CONFIG, tree.unflatten(params), TOKENS, edits=(Edit(delta, alpha),))
  np.testing.assert_allclose(logits, normed @ params['lm_head/kernel'], rtol=0, atol=1e-4)


def test_rows_have_their_own_strength_and_several_edits_add_up():
  """Each row of a batch with three strengths of two directions is the row of a batch that is merged
  as a whole."""
  params = random_params(TIED)
  deltas = [
    random_delta(TIED, 'lora_embeddings', seed=5),
    random_delta(TIED, 'full', seed=6, scale=0.05),
  ]
  alphas = np.array([[0.5, -1.0, 0.0], [1.0, 0.25, -0.5]], np.float32)
  mixed = tiny.forward(TIED, params, TOKENS, edits=tuple(map(Edit, deltas, alphas)))
  for row in range(3):
    edits = tuple(Edit(delta, np.full(3, alpha[row])) for delta, alpha in zip(deltas, alphas))
    np.testing.assert_allclose(
      mixed[row], tiny.forward(TIED, params, TOKENS, edits=edits)[row], rtol=0, atol=1e-5
    )
    merged = models.merge(
      TIED, models.merge(TIED, params, deltas[0], alphas[0, row]), deltas[1], alphas[1, row]
    )
    np.testing.assert_allclose(
      mixed[row], tiny.forward(TIED, merged, TOKENS)[row], rtol=0, atol=2e-5
    )


@pytest.mark.parametrize('kind', ['lora_embeddings', 'residual'])
def test_tokens_have_their_own_strength(kind):
  """Strength from the fifth token on leaves the tokens before as they were, and whole rows of it
  are strength per row."""
  params, delta = random_params(TIED), random_delta(TIED, kind)
  base = tiny.forward(TIED, params, TOKENS)
  late = np.where(np.arange(9) < 4, 0.0, 1.0) * np.ones((3, 1), np.float32)
  steered = tiny.forward(TIED, params, TOKENS, edits=(Edit(delta, late.astype(np.float32)),))
  np.testing.assert_allclose(steered[:, :4], base[:, :4], rtol=0, atol=1e-6)
  assert (np.abs(steered[:, 4:] - base[:, 4:]).max(axis=-1) > 1e-2).all()
  rows = np.array([0.5, -1.0, 2.0], np.float32)
  np.testing.assert_allclose(
    tiny.forward(TIED, params, TOKENS, edits=(Edit(delta, np.repeat(rows[:, None], 9, axis=1)),)),
    tiny.forward(TIED, params, TOKENS, edits=(Edit(delta, rows),)),
    rtol=0,
    atol=1e-6,
  )


def test_edits_reach_the_cache():
  """Prefill and decode under an edit equal the full forward pass under it."""
  params = random_params(CONFIG)
  edits = (Edit(random_delta(CONFIG, 'lora_embeddings'), np.array([1.0, 0.0, -1.0], np.float32)),)

  @functools.partial(jax.jit, compiler_options=tiny.QUICK)
  def stepped(params, edits):
    x_BTD, cache = models.hidden(
      CONFIG,
      params,
      models.TokenBatch(TOKENS[:, :8]),
      edits=edits,
      cache=models.init_cache(CONFIG, 3, 12),
    )
    last_BTD, _ = models.hidden(
      CONFIG, params, models.TokenBatch(TOKENS[:, 8:], np.full((3, 1), 8)), edits=edits, cache=cache
    )
    return models.logits(CONFIG, params, jnp.concatenate([x_BTD, last_BTD], axis=1), edits=edits)

  np.testing.assert_allclose(
    stepped(params, edits), tiny.forward(CONFIG, params, TOKENS, edits=edits), rtol=0, atol=1e-5
  )


TARGETS = {
  'self_attn.q_proj': 'attn/q',
  'self_attn.k_proj': 'attn/k',
  'self_attn.v_proj': 'attn/v',
  'self_attn.o_proj': 'attn/o',
  'mlp.gate_proj': 'mlp/gate',
  'mlp.up_proj': 'mlp/up',
  'mlp.down_proj': 'mlp/down',
}


@pytest.fixture(scope='module')
def peft_model():
  """A case whose widths all differ, with LoRA on all its linear layers."""
  torch.manual_seed(3)
  base = tiny.FAMILIES['qwen2'][1](
    tiny.FAMILIES['qwen2'][0](
      **tiny.SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=10
    )
  )
  return peft.get_peft_model(
    base,
    peft.LoraConfig(r=7, lora_alpha=21, target_modules=[name.split('.')[1] for name in TARGETS]),
  ).eval()


def factors(peft_model, layer, name):
  module = peft_model.get_submodule(f'base_model.model.model.layers.{layer}.{name}')
  return module.lora_A['default'].weight, module.lora_B['default'].weight


@pytest.fixture(scope='module')
def initial_lora(checkpoint):
  """Our LoRA for the same architecture."""
  config = dataclasses.replace(
    checkpoint('qwen2').model.config, num_heads=4, num_kv_heads=2, head_dim=10
  )
  return models.init_delta(config, 'lora', jax.random.key(0), rank=7, lora_alpha=21.0)


@pytest.mark.parametrize('theirs, ours', TARGETS.items())
def test_lora_starts_as_in_peft(peft_model, initial_lora, theirs, ours):
  """Uniform within the same bound, the second factor zero, no two layers alike."""
  leaf = tree.get(initial_lora, f'layers/{ours}/kernel')
  a, b = factors(peft_model, 0, theirs)
  bound = 1 / math.sqrt(a.shape[1])
  assert leaf.a[0].size == a.numel() and leaf.b[0].size == b.numel()
  a, b = a.detach(), b.detach()
  assert float(a.abs().max()) <= bound and float(np.abs(leaf.a).max()) <= bound
  assert float(a.abs().max()) > 0.98 * bound and float(np.abs(leaf.a).max()) > 0.98 * bound
  np.testing.assert_allclose(
    [np.std(leaf.a), np.mean(leaf.a) / bound], [float(a.std()), 0], rtol=0.1, atol=0.08
  )
  assert not b.any() and not np.asarray(leaf.b).any() and not np.array_equal(leaf.a[0], leaf.a[1])
  assert (
    leaf.scale
    == peft_model.get_submodule(f'base_model.model.model.layers.0.{theirs}').scaling['default']
    == 3.0
  )


def test_lora_computes_what_peft_computes(checkpoint, tmp_path):
  case = tiny.make(tmp_path / 'base', **tiny.CASES['llama32_tied'])
  lora = peft.LoraConfig(r=3, lora_alpha=5, target_modules=[name.split('.')[1] for name in TARGETS])
  theirs = peft.get_peft_model(case.torch_model, lora).eval()
  config, flat = case.model.config, {}
  sizes = config.sizes()
  for name, path in TARGETS.items():
    a_L, b_L = [], []
    for layer in range(config.num_layers):
      a, b = factors(theirs, layer, name)
      with torch.no_grad():
        a.normal_(std=0.2)
        b.normal_(std=0.2)
      a_L.append(a.detach().numpy().T)
      b_L.append(b.detach().numpy().T)
    site = models.sites(config)[f'layers/{path}/kernel']
    inputs, outputs = site.axes[1 : 1 + site.inputs], site.axes[1 + site.inputs :]
    flat[f'layers/{path}/kernel'] = LowRank(
      np.stack(a_L).reshape(sizes['L'], *(sizes[axis] for axis in inputs), 3),
      np.stack(b_L).reshape(sizes['L'], 3, *(sizes[axis] for axis in outputs)),
      5 / 3,
    )
  tokens = tiny.tokens((2, 12))
  with torch.no_grad():
    expected = theirs(torch.as_tensor(tokens, dtype=torch.long)).logits.numpy()
  ours = tiny.forward(
    config, case.model.params, tokens, edits=(Edit(tree.unflatten(flat), jnp.ones(2)),)
  )
  assert np.abs(expected - checkpoint('llama32_tied').torch_logits(tokens)).max() > 1
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def test_dropout_drops_inputs_of_low_rank_branches_only_and_by_key():
  params = random_params(CONFIG)
  base = tiny.forward(CONFIG, params, TOKENS)

  def run(kind, **options):
    delta = {'layers': {'mlp': random_delta(CONFIG, kind, scale=0.2)['layers']['mlp']}}
    return tiny.forward(CONFIG, params, TOKENS, edits=(Edit(delta, jnp.ones(3), **options),))

  plain = run('lora')
  dropped = run('lora', key=jax.random.key(1), dropout=0.4)
  assert np.array_equal(dropped, run('lora', key=jax.random.key(1), dropout=0.4))
  assert np.abs(dropped - run('lora', key=jax.random.key(2), dropout=0.4)).max() > 1e-3
  assert (
    np.array_equal(plain, run('lora', key=jax.random.key(1), dropout=0.0))
    and np.abs(plain - dropped).max() > 1e-3
  )
  assert np.array_equal(run('full'), run('full', key=jax.random.key(1), dropout=0.4))
  assert np.abs(plain - base).max() > 1e-2


def test_dropout_keeps_the_expected_input():
  from weightsteer_jax.models import delta as deltas

  x = jnp.ones((200, 50))
  leaf = LowRank(jnp.eye(50), jnp.eye(50))
  y = deltas.add_kernel_edits(
    jnp.zeros_like(x), x, 'TD,DF->TF', (Edit(leaf, jnp.ones(()), jax.random.key(0), 0.25),)
  )
  np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
  np.testing.assert_allclose([y.mean(), (y == 0).mean()], [1, 0.25], atol=0.02)


@pytest.mark.parametrize(
  'kind, paths',
  [
    ('lora', {f'layers/{path}/kernel' for path in TARGETS.values()}),
    (
      'lora_embeddings',
      {f'layers/{path}/kernel' for path in TARGETS.values()}
      | {'embed/embedding', 'lm_head/kernel'},
    ),
    ('bias', {'layers/mlp/down/bias'}),
    ('full', set(models.sites(CONFIG))),
  ],
)
def test_a_new_delta_covers_its_kind_and_changes_nothing(kind, paths):
  delta = models.init_delta(CONFIG, kind, jax.random.key(0), rank=2)
  assert set(tree.flatten(delta, models.is_delta_leaf)) == paths
  models.check_delta(CONFIG, delta)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(delta))
  assert not any(
    np.asarray(leaf.value if isinstance(leaf, Dense) else leaf.b).any()
    for leaf in tree.flatten(delta, models.is_delta_leaf).values()
  )


def test_a_tied_model_has_one_table_to_change():
  paths = tree.flatten(
    models.init_delta(TIED, 'lora_embeddings', jax.random.key(0)), models.is_delta_leaf
  )
  assert 'embed/embedding' in paths and 'lm_head/kernel' not in paths


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(kind='lora_embedding'), "did you mean 'lora_embeddings'"),
    (dict(kind='lora', rank=0), 'rank of a LoRA must be 1 or more, not 0'),
  ],
)
def test_new_deltas_that_cannot_be(options, message):
  with pytest.raises(InputError, match=message):
    models.init_delta(CONFIG, options.pop('kind'), jax.random.key(0), **options)


@pytest.mark.parametrize(
  'path, leaf, message',
  [
    (
      'layers/attn/qq/kernel',
      Dense(np.zeros((2, 32, 4, 8))),
      "changes 'layers/attn/qq/kernel'.*did you mean 'layers/attn/q/kernel'",
    ),
    ('lm_head/bias', Dense(np.zeros(70)), "changes 'lm_head/bias'"),
    (
      'layers/attn/q/kernel',
      Dense(np.zeros((2, 32, 8, 4))),
      r'shape \(2, 32, 8, 4\), the model has \(2, 32, 4, 8\) \(axes LDNH\)',
    ),
    (
      'layers/attn/q/kernel',
      LowRank(np.zeros((2, 32, 3)), np.zeros((2, 2, 4, 8))),
      r'factors .* needs \(2, 32, 3\) and \(2, 3, 4, 8\)',
    ),
    (
      'layers/attn/q/kernel',
      LowRank(np.zeros((32, 3)), np.zeros((3, 4, 8))),
      'another architecture',
    ),
    ('layers/attn/q/kernel', LowRank(np.zeros(()), np.zeros(())), 'another architecture'),
    (
      'embed/embedding',
      LowRank(np.zeros((70, 2)), np.zeros((2, 32))),
      'low-rank, but only kernels',
    ),
    ('layers/mlp/down/bias', Dense(np.zeros((2, 44))), r'the model has \(2, 32\)'),
    ('layers/residual', Dense(np.zeros(32)), r'the model has \(2, 32\)'),
    ('layers/mlp_norm/scale', np.zeros((2, 32)), 'is a ndarray, expected a LowRank or a Dense'),
  ],
)
def test_deltas_that_do_not_fit_are_refused(path, leaf, message):
  with pytest.raises(InputError, match=message):
    models.check_delta(CONFIG, tree.unflatten({path: leaf}))


def test_every_site_takes_a_change_of_its_shape():
  sites = models.delta_sites(CONFIG)
  models.check_delta(
    CONFIG, tree.unflatten({path: Dense(np.zeros(site.shape)) for path, site in sites.items()})
  )
  assert {
    'layers/attn/o/bias',
    'layers/mlp/gate/bias',
    'layers/attn/q/bias',
    'layers/residual',
  } <= set(sites)


@pytest.mark.parametrize('kind', ['bias', 'residual'])
def test_a_change_without_a_parameter_cannot_be_merged(kind):
  with pytest.raises(InputError, match='no parameter: it cannot be merged'):
    models.merge(CONFIG, random_params(CONFIG), random_delta(CONFIG, kind), 1.0)


def test_merging_adds_in_float32_and_rounds_once():
  params = random_params(CONFIG, jnp.bfloat16)
  delta = random_delta(CONFIG, 'lora', scale=0.02)
  merged = tree.flatten(models.merge(CONFIG, params, delta, 0.3))
  for path, exact in reference_merge(CONFIG, params, delta, 0.3).items():
    assert merged[path].dtype == jnp.bfloat16
    assert (
      np.asarray(merged[path]) == exact.astype(np.float32).astype(jnp.bfloat16)
    ).mean() > 0.999, path
