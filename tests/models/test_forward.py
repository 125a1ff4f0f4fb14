"""The forward pass: every field of the config matters, chunked log-probabilities,
rematerialisation, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from weightsteer_jax import models
from weightsteer_jax.models import Dense, Edit, LowRank, ModelConfig, Rope, layers
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

# What a compiler could break: see tests/README.md.
pytestmark = pytest.mark.optimised


CONFIG = ModelConfig(
  vocab_size=40,
  num_layers=3,
  width=16,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_width=20,
  norm_eps=1e-3,
  rope=Rope(100.0, 'llama3', 4.0, 1.5, 3.5, 40),
  tied=False,
  qkv_bias=True,
  o_bias=True,
  mlp_bias=True,
  activation='silu',
  max_positions=32,
)
# Another value for every field. A new field without one here fails the tests below.
OTHER = dict(
  vocab_size=41,
  num_layers=4,
  width=18,
  num_heads=2,
  num_kv_heads=1,
  head_dim=10,
  mlp_width=21,
  norm_eps=2e-3,
  tied=True,
  qkv_bias=False,
  o_bias=False,
  mlp_bias=False,
  activation='gelu',
  max_positions=11,
  rope=Rope(500.0, 'default', 1.0, 1.0, 1.0, 32),
  pre_norm=False,
  post_norm=True,
  norm_offset=1.0,
  qk_norm='head',
  score_scale=0.3,
  score_softcap=1.5,
  logit_softcap=2.0,
  local_layers=(0,),
  window=4,
  local_rope=Rope(45.0, 'default', 1.0, 1.0, 1.0, 32),
  unrotated_layers=(1,),
  rotary_fraction=0.5,
  embedding_scale=2.0,
  residual_scale=0.7,
  logit_divisor=1.5,
  num_experts=4,
  experts_per_token=3,
  normalise_choices=True,
)
OTHER_ROPE = dict(
  theta=150.0,
  kind='linear',
  factor=5.0,
  low_freq_factor=1.2,
  high_freq_factor=4.0,
  original_max_positions=50,
  short_factors=(1.0, 1.2, 1.5, 2.0),
  long_factors=(1.0, 1.5, 3.0, 4.0),
  attention_factor=1.3,
)
# The same with the choices made that some fields depend on: what each of these matters to is of its
# kind alone.
LOCAL = dataclasses.replace(
  CONFIG, local_layers=(0, 2), window=5, local_rope=Rope(30.0, 'default', 1.0, 1.0, 1.0, 32)
)
LONGROPE = dataclasses.replace(
  CONFIG,
  rope=Rope(100.0, 'longrope', 1.0, 1.0, 1.0, 20, (1.0, 1.3, 2.0, 3.0), (1.0, 2.0, 4.0, 6.0), 1.2),
)
MIXTURE = dataclasses.replace(CONFIG, mlp_bias=False, num_experts=5, experts_per_token=2)
DEPENDS = dict(
  local_layers=LOCAL,
  window=LOCAL,
  local_rope=LOCAL,
  num_experts=MIXTURE,
  experts_per_token=MIXTURE,
  normalise_choices=MIXTURE,
  short_factors=LONGROPE,
  long_factors=dataclasses.replace(
    LONGROPE, rope=dataclasses.replace(LONGROPE.rope, original_max_positions=11)
  ),
)
TOKENS = tiny.tokens((2, 12), vocab_size=40)


@pytest.fixture(scope='module')
def params():
  return tiny.randomised(models.abstract_params(CONFIG), scale=0.5)


def shapes(config):
  return {path: leaf.shape for path, leaf in tree.flatten(models.abstract_params(config)).items()}


def check_matters(config, other, params):
  """Another shape, another output, or an error."""
  assert config != other
  if shapes(other) != shapes(config):
    return
  try:
    logits = tiny.forward(other, params, TOKENS)
  except InputError:
    return
  assert np.abs(logits - tiny.forward(config, params, TOKENS)).max() > 1e-4


@pytest.mark.parametrize('field', list(models.config_to_record(CONFIG)))
def test_every_field_of_the_config_matters(field, params):
  config = DEPENDS.get(field, CONFIG)
  if config is MIXTURE:
    params = tiny.randomised(models.abstract_params(MIXTURE), scale=0.5)
  check_matters(config, dataclasses.replace(config, **{field: OTHER[field]}), params)


@pytest.mark.parametrize('field', [field.name for field in dataclasses.fields(Rope)])
def test_every_field_of_the_rope_matters(field, params):
  config = DEPENDS.get(field, CONFIG)
  rope = dataclasses.replace(config.rope, **{field: OTHER_ROPE[field]})
  check_matters(config, dataclasses.replace(config, rope=rope), params)


@pytest.mark.parametrize(
  'axes', [dict(qk_norm='projection'), dict(post_norm=True), dict(pre_norm=False)], ids=str
)
def test_the_scale_of_every_norm_matters(axes):
  """A norm that was built and never called would show in the shapes alone."""
  config = dataclasses.replace(CONFIG, **axes)
  params = tree.flatten(tiny.randomised(models.abstract_params(config), scale=0.5))
  base = tiny.forward(config, tree.unflatten(params), TOKENS)
  norms = [path for path in params if path.endswith('norm/scale')]
  assert len(norms) == {'qk_norm': 5, 'post_norm': 5, 'pre_norm': 1}[next(iter(axes))]
  for path in norms:
    changed = tiny.forward(config, tree.unflatten(params | {path: params[path] * 1.5}), TOKENS)
    assert np.abs(changed - base).max() > 1e-4, path


def test_a_window_as_long_as_the_row_is_none(params):
  """Also in the program: nothing of it is left to compute."""

  def program(config):
    return str(
      jax.make_jaxpr(lambda tokens: models.hidden(config, params, models.TokenBatch(tokens))[0])(
        TOKENS
      )
    )

  local = dict(local_layers=(0, 2))
  assert program(dataclasses.replace(CONFIG, window=12, **local)) == program(CONFIG)
  assert program(dataclasses.replace(CONFIG, window=11, **local)) != program(CONFIG)


def test_initial_parameters_have_the_abstract_shapes_and_the_stated_spread():
  config = dataclasses.replace(CONFIG, width=64, vocab_size=200)
  made = models.init_params(config, jax.random.key(0), jnp.bfloat16)
  abstract = models.abstract_params(config, jnp.bfloat16)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
    lambda x: (x.shape, x.dtype), abstract
  )
  for path, leaf in tree.flatten(made).items():
    leaf = np.asarray(leaf, np.float32)
    if path.endswith('scale'):
      assert (leaf == 1).all()
    elif path.endswith('bias'):
      assert (leaf == 0).all()
    else:
      np.testing.assert_allclose([leaf.mean(), leaf.std()], [0, 0.02], atol=2e-3, err_msg=path)
  q = np.asarray(made['layers']['attn']['q']['kernel'], np.float32)
  assert (q[0] != q[1]).mean() > 0.9, 'layers start alike'


def test_edits_of_every_parameter_equal_their_merge_where_all_choices_are_made():
  """Also of the norms of queries and keys, of those after a block, and of embeddings that are
  scaled."""
  config = dataclasses.replace(
    LOCAL,
    post_norm=True,
    norm_offset=1.0,
    qk_norm='projection',
    score_softcap=3.0,
    logit_softcap=4.0,
    embedding_scale=2.0,
    residual_scale=0.7,
    logit_divisor=1.5,
    rotary_fraction=0.5,
    unrotated_layers=(1,),
  )
  params = tiny.randomised(models.abstract_params(config), scale=0.3)
  delta = tiny.randomised(
    {path: Dense(leaf) for path, leaf in tree.flatten(params).items()}, seed=1, scale=0.1
  )
  delta = tree.unflatten(delta)
  alphas = np.array([0.7, -0.4], np.float32)
  ours = tiny.forward(config, params, TOKENS, edits=(Edit(delta, alphas),))
  for row, alpha in enumerate(alphas):
    merged = tiny.forward(config, models.merge(config, params, delta, alpha), TOKENS)
    np.testing.assert_allclose(ours[row], merged[row], rtol=0, atol=1e-4)
  assert np.abs(ours - tiny.forward(config, params, TOKENS)).max() > 0.1


def test_a_norm_begins_as_one_whatever_is_added_to_its_scale():
  norm = layers.RMSNorm(dataclasses.replace(CONFIG, norm_offset=1.0), 'D', dtype=jnp.float32)
  assert (np.asarray(norm.scale[...]) == 0).all()
  x = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
  plain = layers.RMSNorm(CONFIG, 'D', dtype=jnp.float32)
  np.testing.assert_array_equal(norm(x, ()), plain(x, ()))


@functools.cache
def logprob_loss(chunk, remat='none'):
  """A compiled function (params, delta) -> ((loss, log-probabilities), gradients); whole logits
  where chunk is None."""
  targets = tiny.tokens((2, 12), vocab_size=40, seed=7)
  weights = np.linspace(0.1, 1.0, 24).reshape(2, 12).astype(np.float32)

  def loss(params, delta):
    edits = (
      Edit(delta, np.array([0.5, -1.0], np.float32)),
      Edit({'lm_head': delta['lm_head']}, np.linspace(-1, 1, 24).reshape(2, 12)),
    )
    x_BTD, _ = models.hidden(CONFIG, params, models.TokenBatch(TOKENS), edits=edits, remat=remat)
    if chunk:
      logprobs_BT = models.token_logprobs(CONFIG, params, x_BTD, targets, edits=edits, chunk=chunk)
    else:
      all_logprobs_BTV = jax.nn.log_softmax(models.logits(CONFIG, params, x_BTD, edits=edits))
      logprobs_BT = jnp.take_along_axis(all_logprobs_BTV, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * logprobs_BT), logprobs_BT

  return jax.jit(
    jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), compiler_options=tiny.QUICK
  )


@pytest.fixture(scope='module')
def delta():
  """Changes of several kinds."""
  made = tree.flatten(
    models.init_delta(CONFIG, 'lora_embeddings', jax.random.key(1), rank=2), models.is_delta_leaf
  )
  chosen = {
    path: made[path]
    for path in ('embed/embedding', 'layers/attn/o/kernel', 'layers/mlp/down/kernel')
  }
  chosen['lm_head/kernel'] = LowRank(jnp.zeros((16, 2)), jnp.zeros((2, 40)), 2.0)
  return tiny.randomised(tree.unflatten(chosen), seed=3)


def test_log_probabilities_in_chunks_and_their_gradients_equal_those_of_whole_logits(params, delta):
  """Chunks of 5 do not divide the 12 tokens."""
  (_, expected), expected_gradients = logprob_loss(None)(params, delta)
  (_, logprobs), gradients = logprob_loss(5)(params, delta)
  np.testing.assert_allclose(logprobs, expected, rtol=0, atol=1e-5)
  for path, gradient in tree.flatten(gradients).items():
    reference = tree.flatten(expected_gradients)[path]
    np.testing.assert_allclose(
      gradient, reference, rtol=0, atol=1e-5 * np.abs(reference).max(), err_msg=path
    )


def all_shapes(jaxpr):
  """Shapes of every value in a jaxpr and the jaxprs inside it."""
  for equation in jaxpr.eqns:
    yield from (
      variable.aval.shape
      for variable in (*equation.invars, *equation.outvars)
      if hasattr(variable, 'aval')
    )
    for inner in _inner(equation.params):
      yield from all_shapes(inner)


def _inner(parameters):
  for value in jax.tree.leaves(
    list(parameters.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
  ):
    if hasattr(value, 'jaxpr'):
      yield value.jaxpr
    elif hasattr(value, 'eqns'):
      yield value


@pytest.mark.parametrize('chunk, largest', [(3, 2 * 3 * 40), (5, 2 * 4 * 40), (None, 2 * 12 * 40)])
def test_logits_of_the_whole_row_never_exist(chunk, largest, params, delta):
  """In the jaxpr of loss and gradient, the arrays with a vocabulary axis that are no weights' are
  one chunk's."""
  jaxpr = logprob_loss(chunk).trace(params, delta).jaxpr.jaxpr
  weights = {leaf.shape for leaf in jax.tree.leaves((params, delta))}
  sizes = {
    int(np.prod(shape))
    for shape in all_shapes(jaxpr)
    if 40 in shape and shape not in weights and tuple(reversed(shape)) not in weights
  }
  assert max(sizes) == largest


def test_rematerialised_gradients_are_the_same(params, delta):
  (loss, _), gradients = logprob_loss(5)(params, delta)
  (loss_again, _), gradients_again = logprob_loss(5, remat='full')(params, delta)
  assert loss == loss_again
  for path, gradient in tree.flatten(gradients).items():
    np.testing.assert_allclose(
      tree.flatten(gradients_again)[path],
      gradient,
      rtol=0,
      atol=1e-6 * np.abs(gradient).max(),
      err_msg=path,
    )


def test_rematerialisation_keeps_less_for_the_backward_pass(params, delta):
  """Residuals of the layer scan: one residual stream a layer instead of every activation."""

  def saved(remat):
    backward = jax.eval_shape(
      lambda p: jax.vjp(
        lambda p: models.hidden(CONFIG, p, models.TokenBatch(TOKENS), remat=remat)[0], p
      )[1],
      params,
    )
    return sum(leaf.size for leaf in jax.tree.leaves(backward))

  assert saved('full') < 0.7 * saved('dots') < 0.7 * saved('none')


def test_a_sequence_longer_than_the_model_is_refused(params):
  with pytest.raises(InputError, match='33 tokens.*32 positions'):
    models.hidden(CONFIG, params, models.TokenBatch(np.zeros((1, 33), np.int32)))
  with pytest.raises(InputError, match='33 tokens.*32 positions'):
    models.hidden(
      CONFIG,
      params,
      models.TokenBatch(np.zeros((1, 3), np.int32)),
      cache=models.init_cache(CONFIG, 1, 33),
    )


def test_a_cache_takes_neither_segments_nor_more_tokens_than_slots(params):
  with pytest.raises(InputError, match='cache of 4 positions'):
    models.hidden(
      CONFIG,
      params,
      models.TokenBatch(np.zeros((1, 5), np.int32)),
      cache=models.init_cache(CONFIG, 1, 4),
    )
  with pytest.raises(InputError, match='in segments'):
    models.hidden(
      CONFIG,
      params,
      models.TokenBatch(np.zeros((1, 3), np.int32), segment_ids_BT=np.ones((1, 3))),
      cache=models.init_cache(CONFIG, 1, 4),
    )


def test_a_token_beyond_the_vocabulary_gives_no_number(params):
  """An index that is clamped in silence would give the last token's row instead."""
  logits = tiny.forward(CONFIG, params, np.array([[1, 40, 2], [1, 39, 2]], np.int32))
  assert np.isnan(logits[0, 1:]).all() and np.isfinite(logits[1]).all()


@pytest.mark.parametrize('shape', [(1,), (3,), (2, 1), (2, 5), (12,), (2, 12, 1)])
def test_an_alpha_of_another_shape_is_refused(shape, params, delta):
  with pytest.raises(InputError, match='alpha of an edit has shape'):
    models.hidden(
      CONFIG, params, models.TokenBatch(TOKENS), edits=(Edit(delta, np.ones(shape, np.float32)),)
    )


def test_an_edit_that_fits_no_site_is_refused_and_not_passed_over(params):
  edit = Edit({'layers': {'residuals': models.Dense(jnp.zeros((3, 16)))}}, jnp.ones(2))
  with pytest.raises(InputError, match="layers/residuals.*did you mean 'layers/residual'"):
    models.hidden(CONFIG, params, models.TokenBatch(TOKENS), edits=(edit,))


def test_the_first_call_may_be_inside_a_compiled_function():
  config = dataclasses.replace(CONFIG, vocab_size=43)  # No other test asks for this one.

  @jax.jit
  def run(embedding):
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), models.abstract_params(config)) | {
      'embed': {'embedding': embedding}
    }
    return models.logits(
      config, params, models.hidden(config, params, models.TokenBatch(TOKENS))[0]
    )

  assert run.lower(jnp.ones((43, 16))).out_info.shape == (2, 12, 43)
