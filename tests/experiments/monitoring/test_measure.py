"""Cosines and projections against numpy in float64, and that nothing of full size is made on the
way."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from directions import oracle
from safetensors.numpy import load_file

from weightsteer_jax import directions, models
from weightsteer_jax.directions import gram
from weightsteer_jax.directions.streamed import checkpoints
from weightsteer_jax.experiments.monitoring import changes, measure
from weightsteer_jax.experiments.monitoring.changes import Held, Streamed
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

from . import exact


def dense_everywhere(model, seed, *, but=()):
  """A delta dense at all sites, also where the model has no parameter."""
  random = np.random.default_rng(seed)
  sites = {
    path: site.shape for path, site in models.delta_sites(model.config).items() if path not in but
  }
  return tree.unflatten(
    {
      path: Dense(jnp.asarray(random.standard_normal(shape), jnp.float32))
      for path, shape in sites.items()
    }
  )


def test_low_rank_and_dense_updates_and_directions(model):
  low, other = (
    oracle.random_direction(model, seed, rank=rank).delta for seed, rank in ((1, 3), (2, 5))
  )
  dense = dense_everywhere(model, 3, but=('embed/embedding', 'layers/attn/q/kernel'))
  bias = models.init_delta(model.config, 'bias', jax.random.key(0))
  found = {'other': other, 'dense': dense, 'nothing': bias}
  for update in (low, dense):
    measured = measure.measure(Held(update), {name: Held(delta) for name, delta in found.items()})
    for name, delta in found.items():
      exact.assert_angles(measured[name], exact.cells_of(update), exact.cells_of(delta))


def test_an_update_along_the_direction_is_its_multiple(model):
  direction = oracle.random_direction(model, 1)
  update = directions.scale(direction, 0.25)
  angle = measure.measure(Held(update.delta), {'w': Held(direction.delta)})['w'].whole
  assert angle.alpha == pytest.approx(0.25, abs=1e-6) and angle.cosine == pytest.approx(1, abs=1e-6)
  assert angle.projection == pytest.approx(0.25 * directions.norm(direction), rel=1e-6)
  zero = measure.measure(
    Held(directions.scale(direction, 0.0).delta), {'w': Held(direction.delta)}
  )['w'].whole
  assert zero.cosine is None and zero.null_std is None and zero.alpha == 0 and zero.norm == 0


def test_experts_count_as_one_module_of_their_layer():
  random = np.random.default_rng(0)

  def leaf(rank):
    a, b = random.standard_normal((2, 3, 8, rank)), random.standard_normal((2, 3, rank, 5))
    return LowRank(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), 0.5)

  path = 'layers/mlp/experts/up/kernel'
  leaves = [leaf(rank) for rank in (2, 4)]
  x, y = (tree.unflatten({path: z}) for z in leaves)
  measured = measure.measure(Held(x), {'w': Held(y)})['w']
  for layer in range(2):
    u, v = (
      np.asarray(z.scale * np.einsum('eir,ero->eio', z.a[layer], z.b[layer]), np.float64)
      for z in leaves
    )
    found = {layer: angle for module, layer, angle in measured.angles() if module is None}[layer]
    assert found.cosine == pytest.approx(
      np.sum(u * v) / np.linalg.norm(u) / np.linalg.norm(v), abs=1e-5
    )
    null = sum(np.sum(u[e] ** 2) * np.sum(v[e] ** 2) / 40 for e in range(3))
    assert found.null_std == pytest.approx(
      np.sqrt(null) / np.linalg.norm(u) / np.linalg.norm(v), rel=1e-4
    )


@pytest.fixture(scope='module')
def tuned(base, tmp_path_factory) -> pathlib.Path:
  """A full fine-tune of the base: every tensor moved a little."""
  return oracle.make_checkpoint(
    tmp_path_factory.mktemp('tuned') / 'tuned', tied=False, seed=0, moved=0.02
  )


def test_full_checkpoints_are_streamed_layer_by_layer(base, tuned, model):
  direction = oracle.random_direction(model, 4)
  with checkpoints.open_checkpoint(base) as x, checkpoints.open_checkpoint(tuned) as y:
    update = Streamed(y, x)
    measured = measure.measure(update, {'w': Held(direction.delta), 'self': update})
    whole = checkpoints.difference(y, x)
    pieces = [(first, leaf.value.shape) for first, leaf in update.pieces('layers/mlp/up/kernel')]
  assert pieces == [(0, (1, 16, 24)), (1, (1, 16, 24))]
  exact.assert_angles(
    measured['w'], exact.cells_of(tree.unflatten(whole)), exact.cells_of(direction.delta)
  )
  assert measured['self'].whole.cosine == pytest.approx(1, abs=1e-6)
  theirs, ours = load_file(tuned / 'model.safetensors'), load_file(base / 'model.safetensors')
  change = sum(np.sum((theirs[name].astype(np.float64) - ours[name]) ** 2) for name in ours)
  assert measured['w'].whole.norm == pytest.approx(np.sqrt(change), rel=1e-5)


def test_a_checkpoint_of_another_model_is_no_fine_tune(base, tmp_path):
  other = oracle.make_checkpoint(tmp_path / 'other', tied=False, seed=9)
  with checkpoints.open_checkpoint(base) as x, checkpoints.open_checkpoint(other) as y:
    with pytest.raises(InputError, match='no fine-tune of it'):
      measure.squared_norms(Streamed(y, x))
    assert measure.squared_norms(Streamed(y, x, allow_any=True))


def test_cosines_of_pairs(base, tuned, model):
  x, y = (oracle.random_direction(model, seed) for seed in (6, 7))
  norms = directions.norm(x), directions.norm(y)
  assert measure.cosine(Held(x.delta), Held(y.delta), norms=norms) == pytest.approx(
    directions.cosine(x, y), abs=1e-7
  )
  with checkpoints.open_checkpoint(base) as theirs, checkpoints.open_checkpoint(tuned) as ours:
    streamed, held = Streamed(ours, theirs), tree.unflatten(checkpoints.difference(ours, theirs))
    dense = directions.Direction(held, x.meta)
    expected = directions.cosine(x, dense)
    pair = directions.norm(dense), norms[0]
    assert measure.cosine(streamed, Held(x.delta), norms=pair) == pytest.approx(expected, abs=1e-6)
    assert measure.cosine(Held(x.delta), streamed, norms=pair[::-1]) == pytest.approx(
      expected, abs=1e-6
    )


def large(seed, size, rank=2):
  random = np.random.default_rng(seed)
  a, b = random.standard_normal((1, size, rank)), random.standard_normal((1, rank, size))
  return tree.unflatten(
    {'layers/mlp/up/kernel': LowRank(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))}
  )


def test_nothing_of_full_size_is_formed_for_low_rank_updates(model):
  """No array of the compiled programs is larger than the factors, random controls included."""
  size = 3000
  from weightsteer_jax.experiments.monitoring import controls, hook

  x, y = large(1, size), large(2, size)
  path = 'layers/mlp/up/kernel'
  leaf, other = (
    tree.flatten(x, models.is_delta_leaf)[path],
    tree.flatten(y, models.is_delta_leaf)[path],
  )
  programs = [jax.make_jaxpr(lambda u, v: gram.terms(path, u, v))(leaf, other)]

  def draws(u, v):
    return controls._products(
      jax.random.key(0), jnp.arange(1), gram.factors(path, u), gram.factors(path, v), 3
    )

  programs.append(jax.make_jaxpr(draws)(leaf, other))
  squares = {'w': {path: gram.matrix_products(path, other, other)}}
  programs.append(jax.make_jaxpr(lambda u, v: hook._angles(squares, u, {'w': v}))(x, y))
  for program in programs:
    assert max(sizes_in(program.jaxpr)) <= 4 * size


def sizes_in(jaxpr):
  """Sizes of all values of a program, of those inside it too."""
  for equation in jaxpr.eqns:
    yield from (variable.aval.size for variable in equation.outvars)
    for value in equation.params.values():
      for inner in value if isinstance(value, (tuple, list)) else [value]:
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from sizes_in(inner)


def test_peak_memory_of_a_large_update():
  """Two changes whose matrices would be 1 GiB each are measured in a few MiB more than the
  factors."""
  status = pathlib.Path('/proc/self/status')
  if not status.exists():
    pytest.skip('needs Linux')
  x, y = large(1, 2**14), large(2, 2**14)
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # The peak begins anew.

  def kib(key):
    return int(
      next(line for line in status.read_text().splitlines() if line.startswith(key)).split()[1]
    )

  before = kib('VmRSS')
  measure.measure(Held(x), {'w': Held(y)})
  assert kib('VmHWM') - before < 200 * 1024


def test_pieces_of_a_leaf(model):
  path, delta = 'layers/attn/q/kernel', oracle.random_direction(model, 1).delta
  leaf = tree.flatten(delta, models.is_delta_leaf)[path]
  second = changes.layers_of(path, leaf, 1, 1)
  np.testing.assert_array_equal(second.a, leaf.a[1:2])
  assert dataclasses.replace(second, a=0, b=0) == dataclasses.replace(leaf, a=0, b=0)
  embedding = tree.flatten(delta, models.is_delta_leaf)['embed/embedding']
  assert changes.layers_of('embed/embedding', embedding, 0, 1) is embedding
