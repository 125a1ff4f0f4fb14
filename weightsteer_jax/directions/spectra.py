"""Singular values of changes, from factors where a change has factors.

A low-rank change is never multiplied out. With A = Q_A R_A and B^T = Q_B R_B,

  A B = Q_A (R_A R_B^T) Q_B^T,

and the singular values are those of R_A R_B^T, a matrix of the size of the rank. R_A and R_B come
from the Gram matrices A^T A and B B^T: R^T R = V D V^T gives R = D^(1/2) V^T, much quicker than a
QR of the factors. All of that is float64; values below 1e-7 of the largest are rounding.

A dense change has its values from the Gram matrix of its smaller side, or, where that takes long,
from an SVD of a random sketch, whose error is told.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np

from weightsteer_jax.directions import gram
from weightsteer_jax.models import Dense, LowRank

# Multiplications of a Gram matrix; the largest takes about a second on two cores.
EXACT_WORK = 2**31
# Columns of the sketch of larger matrices, and the passes that sharpen it. Source: Halko,
# Martinsson and Tropp, SIAM Review 53 (2011), 217, section 4.5: one or two passes for slowly
# falling spectra.
SKETCH = 96
PASSES = 2
# Values of a sketch that are kept: the last ones are far too small where spectra fall slowly.
KEPT = 48


@dataclasses.dataclass(frozen=True)
class Spectrum:
  """The singular values of a matrix, or the largest of them.

  Attributes:
    values: singular values, the largest first.
    square: squared Frobenius norm of the whole matrix.
    count: singular values that may be above zero, known or not.
    top_error: some singular value lies within this of the first; 0 for all values known.
  """

  values: np.ndarray
  square: float
  count: int
  top_error: float = 0.0

  @property
  def norm(self) -> float:
    """The Frobenius norm."""
    return math.sqrt(self.square)

  @property
  def top(self) -> float:
    """The largest singular value, the spectral norm."""
    return float(self.values[0])

  @property
  def stable_rank(self) -> float:
    """|M|_F^2 / |M|_2^2, from 1 to the rank; 0 of a matrix of zeros.

    Source: Rudelson and Vershynin, J. ACM 54 (2007), 21; as a feature of adapters, arXiv
    2604.08844. Its reciprocal is the energy concentration of arXiv 2602.15195.
    """
    return self.square / self.top**2 if self.top else 0.0

  @property
  def entropy(self) -> float:
    """-sum p ln p of the energies p = s^2 / sum s^2, nats; the middle of `entropy_bounds`.

    Source: spectral entropy of arXiv 2602.15195 and 2604.08844.
    """
    return sum(self.entropy_bounds) / 2

  @property
  def effective_rank(self) -> float:
    """exp(entropy); 0 of a matrix of zeros.

    Source: Roy and Vetterli, EUSIPCO 2007, with energies in place of singular values.
    """
    return math.exp(self.entropy) if self.top else 0.0

  @functools.cached_property
  def entropy_bounds(self) -> tuple[float, float]:
    """The least and the most entropy of a matrix with these values and this norm.

    The energy of unknown values adds most if spread evenly, and least if each is as large as the
    smallest known value. Both are the same where all values are known.
    """
    if not self.top:
      return 0.0, 0.0
    energies = self.values**2 / self.square
    energies = energies[energies > 0]
    known = float(-np.sum(energies * np.log(energies)))
    unknown = self.count - len(self.values)
    rest = 1 - float(energies.sum())
    # Rounding leaves a rest where nothing is unknown.
    if unknown <= 0 or rest <= 0:
      return known, known
    # A value above the smallest known one would be known.
    least = -rest * math.log(energies[-1])
    most = -rest * math.log(rest / unknown)
    # In this order but for a sketch whose last value is too small.
    return known + min(least, most), known + max(least, most)

  @property
  def entropy_error(self) -> float:
    """Half the width of `entropy_bounds`, nats."""
    low, high = self.entropy_bounds
    return (high - low) / 2


def of_leaf(path: str, leaf: LowRank | Dense, inputs: int) -> Iterator[Spectrum]:
  """Yields the spectrum of each matrix of a site: layers, or experts of layers.

  Args:
    inputs: number of input axes of the parameter (see models.sites).
  """
  if isinstance(leaf, Dense):
    for matrix in gram.matrices(path, leaf, inputs):
      yield of_matrix(np.asarray(matrix))
    return
  a_LIR, b_LRO = gram.factors(path, leaf)
  for a_IR, b_RO in zip(np.asarray(a_LIR), np.asarray(b_LRO)):
    yield of_factors(a_IR, b_RO)


def of_factors(a_IR: np.ndarray, b_RO: np.ndarray) -> Spectrum:
  """The spectrum of A B, exact, in matrices of the size of the rank.

  >>> round(of_factors(np.array([[3.0], [4.0]]), np.array([[2.0, 0.0]])).top, 6)
  10.0
  """
  r_a = _root(a_IR.astype(np.float64))
  r_b = _root(b_RO.T.astype(np.float64))
  values = np.linalg.svd(r_a @ r_b.T, compute_uv=False)
  square = float(np.sum(values**2))
  # Factors of a higher rank than the matrix has rows or columns.
  count = min(len(values), a_IR.shape[0], b_RO.shape[1])
  return Spectrum(values[:count], square, count)


def _root(x_IR: np.ndarray) -> np.ndarray:
  """R with R^T R = X^T X, a square of the number of columns."""
  squares, vectors = np.linalg.eigh(x_IR.T @ x_IR)
  # Columns that depend on one another have squares that may round to below zero.
  lengths = np.sqrt(np.maximum(squares, 0.0))
  return lengths[:, None] * vectors.T


def of_matrix(m_IO: np.ndarray, *, exact_work: int = EXACT_WORK) -> Spectrum:
  """The spectrum of a matrix, from a sketch where all values take more than `exact_work`."""
  smaller = min(m_IO.shape)
  # The matrices that a fine-tune left alone, large tables among them, take no time.
  if not m_IO.any():
    return Spectrum(np.zeros(smaller), 0.0, smaller)
  if m_IO.size * smaller <= exact_work or smaller <= SKETCH:
    return _exact(m_IO.astype(np.float64))
  return _sketched(m_IO.astype(np.float32, copy=False))


def _exact(m_IO: np.ndarray) -> Spectrum:
  """All singular values, through the Gram matrix of the smaller side."""
  if m_IO.shape[0] < m_IO.shape[1]:
    m_IO = m_IO.T
  squares = np.linalg.eigvalsh(m_IO.T @ m_IO)[::-1]
  # The trace is the squared norm, whatever rounding does to the small eigenvalues.
  return Spectrum(np.sqrt(np.maximum(squares, 0.0)), float(np.sum(m_IO**2)), len(squares))


def _sketched(m_IO: np.ndarray) -> Spectrum:
  """The largest singular values by a randomised SVD; the norm is exact.

  Source: Halko, Martinsson and Tropp, SIAM Review 53 (2011), 217, algorithms 4.4 and 5.1.
  """
  square = float(np.einsum('IO,IO->', m_IO, m_IO, dtype=np.float64))
  # The same numbers each time: an audit is repeated with the same result.
  rng = np.random.default_rng(0)
  start = rng.standard_normal((m_IO.shape[1], SKETCH), np.float32)
  q = np.linalg.qr(m_IO @ start)[0]
  for _ in range(PASSES):
    # A basis in between keeps small values from drowning in rounding.
    q = np.linalg.qr(m_IO.T @ q)[0]
    q = np.linalg.qr(m_IO @ q)[0]
  u, values, v = np.linalg.svd(q.T @ m_IO, full_matrices=False)
  # M^T u = s v holds by construction, so the residual of M v = s u bounds the distance from s to
  # a singular value of M.
  residual = m_IO @ v[0] - values[0] * (q @ u[:, 0])
  top_error = float(np.linalg.norm(residual.astype(np.float64)))
  return Spectrum(values[:KEPT].astype(np.float64), square, min(m_IO.shape), top_error)
