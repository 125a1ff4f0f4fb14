"""Spectra of changes against NumPy's SVD of the dense change in float64."""

import math

import numpy as np
import pytest

from directions import oracle
from weightsteer_jax import models
from weightsteer_jax.directions import spectra
from weightsteer_jax.directions.spectra import Spectrum


def expected_numbers(dense):
  """Norm, stable rank and entropy by the definitions, from a dense SVD."""
  values = np.linalg.svd(dense.astype(np.float64), compute_uv=False)
  p = values**2 / np.sum(values**2)
  p = p[p > 1e-28]
  return values, np.linalg.norm(dense), 1 / p[0], -np.sum(p * np.log(p))


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return oracle.make_checkpoint(tmp_path_factory.mktemp('base') / 'base', tied=False)


def test_factors_as_their_dense_product(base):
  model = models.load(base)
  sites = models.sites(model.config)
  delta = oracle.random_direction(model, 3, rank=3).delta
  leaves = oracle.leaves_of(delta)
  for path, leaf in leaves.items():
    if not hasattr(leaf, 'a'):
      continue
    # Multiplied out in float64; inputs and outputs are one axis each.
    a = np.asarray(leaf.a, np.float64)
    b = leaf.scale * np.asarray(leaf.b, np.float64)
    a = a.reshape(len(a), -1, 3) if path.startswith('layers/') else a[None]
    b = b.reshape(len(b), 3, -1) if path.startswith('layers/') else b[None]
    dense = a @ b
    found = list(spectra.of_leaf(path, leaf, sites[path].inputs))
    assert len(found) == len(dense)
    for spectrum, change in zip(found, dense):
      values, norm, stable_rank, entropy = expected_numbers(change)
      np.testing.assert_allclose(spectrum.values, values[: len(spectrum.values)], rtol=1e-6)
      assert spectrum.norm == pytest.approx(norm, rel=1e-6)
      assert spectrum.stable_rank == pytest.approx(stable_rank, rel=1e-6)
      assert spectrum.entropy == pytest.approx(entropy, rel=1e-6)
      assert spectrum.effective_rank == pytest.approx(math.exp(entropy), rel=1e-6)
      assert spectrum.entropy_error == spectrum.top_error == 0


def test_factors_that_depend_on_one_another():
  """A column twice, and a rank beyond the number of outputs."""
  rng = np.random.default_rng(2)
  a = rng.standard_normal((9, 4))
  a[:, 3] = a[:, 0]
  b = rng.standard_normal((4, 3))
  spectrum = spectra.of_factors(a, b)
  expected = np.linalg.svd(a @ b, compute_uv=False)
  np.testing.assert_allclose(spectrum.values, expected, rtol=1e-6)
  b[1:] = b[0]
  values = spectra.of_factors(a, b).values
  assert values[0] == pytest.approx(np.linalg.norm(a @ b), rel=1e-9) and values[1] < 1e-7


def test_attention_kernels_have_one_axis_of_inputs_or_two(base):
  config = models.load_config(base)[0]
  sites = models.sites(config)
  rng = np.random.default_rng(0)
  for name, inputs in (('q', 1), ('o', 2)):
    path = f'layers/attn/{name}/kernel'
    value = rng.standard_normal(sites[path].shape).astype(np.float32)
    first, _ = spectra.of_leaf(path, models.Dense(value), sites[path].inputs)
    rows = math.prod(value.shape[1 : 1 + inputs])
    expected = np.linalg.svd(value[0].reshape(rows, -1).astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(first.values, expected, rtol=1e-6)


@pytest.mark.parametrize('fall', [0.2, 1.0])
def test_sketch_says_its_error(fall):
  """Singular values that fall slowly, as those of full fine-tunes, and fast."""
  rng = np.random.default_rng(1)
  u, _ = np.linalg.qr(rng.standard_normal((500, 300)))
  v, _ = np.linalg.qr(rng.standard_normal((300, 300)))
  values = np.arange(1, 301) ** -fall
  matrix = ((u * values) @ v.T).astype(np.float32)
  exact = spectra.of_matrix(matrix)
  sketched = spectra.of_matrix(matrix, exact_work=0)
  assert len(exact.values) == 300 and len(sketched.values) == spectra.KEPT
  assert sketched.norm == pytest.approx(exact.norm, rel=1e-6)
  nearest = np.abs(values - sketched.top).min()
  assert nearest <= sketched.top_error + 1e-6
  assert sketched.top == pytest.approx(exact.top, rel=0.02)
  assert 0 < sketched.entropy_error
  # Beyond the bounds lies only what the sketch's own values are off.
  assert abs(sketched.entropy - exact.entropy) <= sketched.entropy_error + 0.02


def test_zero_has_no_rank():
  spectrum = Spectrum(np.zeros(3), 0.0, 3)
  assert (spectrum.stable_rank, spectrum.entropy, spectrum.effective_rank) == (0, 0, 0)


def test_unknown_values_bound_the_entropy():
  # Energies 1/2 known and 1/2 unknown in two values at most: 1/2 once, or 1/4 twice.
  spectrum = Spectrum(np.array([1.0]), 2.0, 3)
  low, high = spectrum.entropy_bounds
  assert low == pytest.approx(math.log(2))
  assert high == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
