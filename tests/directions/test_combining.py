"""Combinations against float64 arithmetic on dense changes, written out tensor by tensor."""

import json

import jax
import numpy as np
import pytest
import tiny

from weightsteer_jax import directions, models
from weightsteer_jax.directions import combining
from weightsteer_jax.directions.combining import recipe, sparse
from weightsteer_jax.directions.streamed import computed
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return models.load(tiny.make(tmp_path_factory.mktemp('base'), **tiny.CASES['phi3']).folder)


def made(model, seed, kind='lora', rank=2):
  delta = models.init_delta(model.config, kind, jax.random.key(seed), rank=rank)
  delta = jax.tree.map(np.float32, tiny.randomised(delta, seed))
  meta = {'kind': 'random', 'base': directions.base_of(model).to_json(), 'sources': []}
  return directions.Direction(delta, meta)


@pytest.fixture(scope='module')
def x(model):
  return made(model, 1)


@pytest.fixture(scope='module')
def y(model):
  return made(model, 2, rank=3)


def dense(direction):
  """{path: change, float64}."""
  delta = computed.in_memory(direction.delta)
  whole = directions.to_dense(directions.Direction(delta, direction.meta))
  leaves = tree.flatten(whole.delta, models.is_delta_leaf)
  return {path: np.asarray(leaf.value, np.float64) for path, leaf in leaves.items()}


def parsed(text):
  import yaml

  return recipe.parse(yaml.safe_load(text), 'recipe')


def same(direction, expected, atol=1e-6):
  got = dense(direction)
  for path in expected.keys() | got.keys():
    np.testing.assert_allclose(got.get(path, 0.0), expected.get(path, 0.0), atol=atol, err_msg=path)


def test_a_weighted_sum_is_exact_in_factors(x, y):
  total = combining.combine([x, y], combining.from_terms('x:2,y:-0.5'))
  plain = {path: 2 * value - 0.5 * dense(y)[path] for path, value in dense(x).items()}
  same(total, plain)
  leaf = tree.flatten(total.delta, models.is_delta_leaf)['layers/attn/q/kernel']
  assert isinstance(leaf, models.LowRank) and leaf.a.shape[-1] == 5
  assert total.meta['recipe']['terms'][1] == {'source': 'y', 'weight': -0.5, 'density': 1.0}


def test_weights_by_layer_and_module_and_what_is_left_out(model, x, y):
  """A gradient over the layers, a filter by name, layers and modules that may change."""
  asked = parsed("""
    models:
      - {model: x, parameters: {weight: [0.0, 1.0]}}
      - {model: y, parameters: {weight: [{filter: down_proj, value: 3.0}, {value: 0.5}]}}
    parameters: {lambda: 2.0, normalize: true}
    layers: 1-2
    modules: [q_proj, down_proj]
  """)
  total = combining.combine([x, y], asked)
  layers = model.config.num_layers
  expected = {}
  for path in ('layers/attn/q/kernel', 'layers/mlp/down/kernel'):
    ramp = np.arange(layers) / (layers - 1)
    other = 3.0 if 'down' in path else 0.5
    weights = 2.0 / (ramp + other) * np.stack([ramp, np.full(layers, other)])
    weights[:, 0] = 0
    stretch = (slice(None), *[None] * (dense(x)[path].ndim - 1))
    expected[path] = weights[0][stretch] * dense(x)[path] + weights[1][stretch] * dense(y)[path]
  same(total, expected)


@pytest.mark.parametrize('by_module', [False, True])
def test_others_are_projected_out(model, x, y, by_module):
  z = made(model, 3)
  # At no right angle to y.
  z = directions.add(z, y)
  asked = recipe.Recipe((recipe.Term('x'),), orthogonal_to=('y', 'z'), by_module=by_module)
  left = combining.combine([x], asked, orthogonal_to=[y, z])
  parts = {path: [dense(one)[path] for one in (x, y, z)] for path in dense(x)}
  if not by_module:
    flat = [np.concatenate([parts[path][i].ravel() for path in parts]) for i in range(3)]
    basis = np.linalg.qr(np.stack(flat[1:], axis=1))[0]
    rest = flat[0] - basis @ (basis.T @ flat[0])
    got = np.concatenate([dense(left)[path].ravel() for path in parts])
    np.testing.assert_allclose(got, rest, atol=1e-6)
    share = np.linalg.norm(rest) / np.linalg.norm(flat[0])
    assert left.meta['share_left'] == pytest.approx(share, rel=1e-5)
    return
  for path, values in parts.items():
    for layer in range(model.config.num_layers):
      one, *others = [value[layer].ravel() for value in values]
      basis = np.linalg.qr(np.stack(others, axis=1))[0]
      rest = one - basis @ (basis.T @ one)
      np.testing.assert_allclose(dense(left)[path][layer].ravel(), rest, atol=1e-6)


def tensors_of(model, direction):
  """{tensor of a checkpoint: change, flat, float64}."""
  flat = tree.flatten(direction.delta, models.is_delta_leaf)
  parts_of = computed.on_disk.parts_of(model.config, models.FAMILIES['phi3'])
  return {
    name: np.float64(computed.tensor_of(parts, model.config, flat))
    for name, parts in parts_of.items()
    if any(part.path in flat for part in parts)
  }


@pytest.mark.parametrize(
  'method, parameters',
  [
    ('ties', {}),
    ('ties', {'normalize': False, 'lambda': 0.5}),
    ('dare_ties', {}),
    ('dare_linear', {}),
  ],
)
def test_merges_of_tensors_element_by_element(model, x, y, method, parameters):
  """phi3's fused tensors too: a share of a tensor is one of all that lies in it."""
  asked = recipe.parse(
    {
      'merge_method': method,
      'models': [
        {'model': 'x', 'parameters': {'weight': 1.5, 'density': 0.3}},
        {'model': 'y', 'parameters': {'weight': -1.0, 'density': 0.6}},
      ],
      'parameters': {'seed': 3, **parameters},
    },
    'recipe',
  )
  merged = combining.combine([x, y], asked)
  normalize = parameters.get('normalize', method == 'ties')
  lost, whole = 0.0, 0.0
  for name, got in tensors_of(model, merged).items():
    pair = tensors_of(model, x)[name], tensors_of(model, y)[name]
    kept = []
    for place, (values, density) in enumerate(zip(pair, (0.3, 0.6))):
      if method == 'ties':
        count = int(density * values.size)
        mask = np.zeros(values.size)
        mask[np.argsort(-np.abs(values), kind='stable')[:count]] = 1
        kept.append(values * mask)
      else:
        mask = sparse.drawn(values.size, density, 3, f'{place} {name}')
        assert abs(mask.mean() - density) < 0.06
        kept.append(values * mask * np.abs(values).sum() / np.abs(values * mask).sum())
    one, two = 1.5 * kept[0], -1.0 * kept[1]
    expected = np.zeros(got.size)
    for i in range(got.size):
      if method == 'dare_linear':
        expected[i] = one[i] + two[i]
        continue
      sign = 1 if one[i] + two[i] >= 0 else -1
      agree = [np.sign(value) == sign for value in (one[i], two[i])]
      expected[i] = one[i] * agree[0] + two[i] * agree[1]
      divisor = 1.5 * agree[0] - 1.0 * agree[1]
      if normalize and divisor:
        expected[i] /= divisor
    expected *= parameters.get('lambda', 1.0)
    np.testing.assert_allclose(got, expected, atol=1e-6, err_msg=name)
    plain = parameters.get('lambda', 1.0) * (1.5 * pair[0] - pair[1])
    lost += np.square(expected - plain).sum()
    whole += np.square(plain).sum()
  assert merged.meta['merge_error'] == pytest.approx((lost / whole) ** 0.5, rel=1e-5)


def test_a_merge_is_saved_as_it_is_computed(model, x, y, tmp_path):
  asked = recipe.parse(
    {'merge_method': 'ties', 'models': [{'model': 'x'}, {'model': 'y'}], 'layers': [1]}, 'recipe'
  )
  merged = combining.combine([x, y], asked)
  directions.save(tmp_path / 'merged', merged, sync=False)
  loaded = directions.load(tmp_path / 'merged')
  same(loaded, dense(merged), atol=0)
  assert all(not value[[0, 2]].any() for value in dense(loaded).values())
  cut = combining.combine(
    [x, y], recipe.parse({'models': [{'model': 'x'}, {'model': 'y'}], 'rank': 2}, '')
  )
  nearest, errors = directions.compress(directions.add(x, y), 2)
  same(cut, dense(nearest), atol=1e-5)
  assert cut.meta['compression']['relative_errors'] == pytest.approx(errors, rel=1e-4)


def test_draws_depend_on_seed_and_name_alone():
  masks = [sparse.drawn(1000, 0.5, *how) for how in ((0, 'a'), (0, 'a'), (1, 'a'), (0, 'b'))]
  assert (masks[0] == masks[1]).all()
  assert (masks[0] != masks[2]).any() and (masks[0] != masks[3]).any()


REFUSED = {
  'unknown key': (
    {'merge_metod': 'ties'},
    "unknown key 'merge_metod' .did you mean 'merge_method'",
  ),
  'unknown method': ({'merge_method': 'tie'}, "did you mean 'ties'"),
  'unknown parameter': ({'parameters': {'lamda': 1}}, "'lamda' .did you mean 'lambda'"),
  'of a term': ({'models': [{'model': 'x', 'parameters': {'wieght': 1}}]}, "did you mean 'weight'"),
  'no directions': ({'models': []}, 'models is'),
  'weight': (
    {'models': [{'model': 'x', 'parameters': {'weight': 'a'}}]},
    'weight is .a., expected',
  ),
  'density': (
    {'merge_method': 'ties', 'models': [{'model': 'x', 'parameters': {'density': 2}}]},
    'density is 2, expected 0 to 1',
  ),
  'density of a sum': ({'models': [{'model': 'x', 'parameters': {'density': 0.5}}]}, 'no meaning'),
  'layers': ({'layers': '3-'}, 'layers is'),
  'rank': ({'rank': -1}, 'rank is -1'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_recipes_that_say_nothing_clear(name):
  changes, message = REFUSED[name]
  with pytest.raises(InputError, match=message):
    recipe.parse({'models': [{'model': 'x'}]} | changes, 'recipe')


def test_combinations_that_cannot_be(model, x, y, tmp_path_factory):
  one = {'models': [{'model': 'x'}]}
  with pytest.raises(InputError, match='layers names 7, and the model has layers 0 to 2'):
    combining.combine([x], recipe.parse(one | {'layers': [7]}, 'recipe'))
  with pytest.raises(InputError, match="modules: the model has no linear layer 'q_prj'"):
    combining.combine([x], recipe.parse(one | {'modules': ['q_prj']}, 'recipe'))
  with pytest.raises(InputError, match='the terms cancel out'):
    combining.combine([x, x], combining.from_terms('x:1,x:-1'))
  with pytest.raises(InputError, match='nothing is left when y is projected out'):
    asked = recipe.Recipe((recipe.Term('y'),), orthogonal_to=('y',))
    combining.combine([y], asked, orthogonal_to=[directions.scale(y, 3.0)])
  with pytest.raises(InputError, match='y is zero where the recipe applies: there is nothing'):
    asked = recipe.Recipe((recipe.Term('x'),), orthogonal_to=('y',))
    combining.combine([x], asked, orthogonal_to=[directions.scale(y, 0.0)])
  other = models.load(tiny.make(tmp_path_factory.mktemp('b'), seed=5, **tiny.CASES['phi3']).folder)
  with pytest.raises(InputError, match='x and z belong to different base models'):
    combining.combine([x, made(other, 1)], combining.from_terms('x:1,z:1'))
  combining.combine([x, made(other, 1)], combining.from_terms('x:1,z:1'), allow_other_base=True)
  sparse_terms = (recipe.Term('x', density=1e-6),)
  with pytest.raises(InputError, match='the density keeps no element'):
    combining.combine([x], recipe.Recipe(sparse_terms, method='ties'))
  biases = made(model, 4, kind='bias')
  with pytest.raises(
    InputError, match='ties merges tensors of a checkpoint, and .*bias is in none'
  ):
    combining.combine([biases], recipe.parse(one | {'merge_method': 'ties'}, 'recipe'))


def test_the_record_is_json(x, y):
  terms = (recipe.Term('x'), recipe.Term('y', [0, 1]))
  total = combining.combine([x, y], recipe.Recipe(terms, layers=frozenset((1, 2))))
  record = json.loads(json.dumps(total.meta['recipe']))
  assert record['layers'] == [1, 2] and record['terms'][1]['weight'] == [0, 1]


def test_a_projection_stays_in_the_layers_and_modules_of_the_recipe(model, x, y):
  asked = recipe.Recipe(
    (recipe.Term('x'),), orthogonal_to=('y',), layers=frozenset({1, 2}), modules=('q_proj',)
  )
  left = combining.combine([x], asked, orthogonal_to=[y])
  path = 'layers/attn/q/kernel'
  mine, other = (np.array(dense(one)[path]) for one in (x, y))
  for value in (mine, other):
    value[[layer for layer in range(model.config.num_layers) if layer not in (1, 2)]] = 0
  share = np.sum(mine * other) / np.sum(other * other)
  same(left, {path: mine - share * other})


def test_what_is_projected_out_must_change_what_the_recipe_may(model, x, y):
  only = recipe.Recipe((recipe.Term('y'),), modules=('down_proj',))
  elsewhere = combining.combine([y], only)
  asked = recipe.Recipe((recipe.Term('x'),), orthogonal_to=('y',), modules=('q_proj',))
  with pytest.raises(InputError, match='y is zero'):
    combining.combine([x], asked, orthogonal_to=[elsewhere])
