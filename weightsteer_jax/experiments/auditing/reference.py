"""An update's spectra against those of known good fine-tunes made by one method.

Of each matrix, three numbers are compared: log norm, log stable rank and entropy. The distance of
an update from a set of others is the root of the mean squared z value over all matrices and
numbers. Each of the good fine-tunes is measured like the audited one, against all others, and the
share that lies as far out is the p value: exact where the audited one was drawn as they were.

Source: z values of spectral numbers against a bank of good adapters: arXiv 2602.15195, whose
classifier of labelled adapters is left out here, for want of bad ones; the p value: Vovk, Gammerman
and Shafer, Algorithmic Learning in a Random World (2005), section 2.2.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax.directions.spectra import Spectrum
from weightsteer_jax.experiments.auditing.update import Update, Where
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import listed

# The numbers of a matrix that are compared.
FEATURES = ('log norm', 'log stable rank', 'entropy')
# Fewer have no spread to speak of, once one of them is left out.
FEWEST = 3
# A smaller standard deviation is one of rounding: factors are float32.
_NO_SPREAD = 1e-6
# What arXiv 2604.08844 found, in its abstract.
ACROSS = (
  'across methods spectra say nothing (arXiv 2604.08844: AUC about 1 within a method, about 0 from '
  'one method to another)'
)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """An update against known good ones.

  Attributes:
    distance: root mean squared z value of the update.
    good: {good fine-tune: its distance from all others, the update included}.
    p_value: share of the update and the good ones that lie at least as far out as the update.
    by_feature: {number: root mean squared z value}.
    furthest: (place, number, z value), the furthest out first.
    z_values: {place: z values in the order of FEATURES}.
  """

  distance: float
  good: Mapping[str, float]
  p_value: float
  by_feature: Mapping[str, float]
  z_values: Mapping[Where, np.ndarray]

  @property
  def furthest(self) -> list[tuple[Where, str, float]]:
    """(place, number, z value), the furthest out first."""
    every = []
    for where, z_F in self.z_values.items():
      every += [(where, name, float(z)) for name, z in zip(FEATURES, z_F)]
    return sorted(every, key=lambda entry: -abs(entry[2]))


def features(spectrum: Spectrum) -> tuple[float, float, float]:
  """The numbers of FEATURES; not finite for a matrix of zeros.

  Both sizes are on a log scale, where fine-tunes differ by factors.
  """
  if not spectrum.top:
    return -math.inf, math.nan, math.nan
  return math.log(spectrum.norm), math.log(spectrum.stable_rank), spectrum.entropy


def compare(update: Update, good: Sequence[Update]) -> Comparison:
  """The update's distance from the good ones, and how many of those lie as far out.

  Matrices that some of the updates left at zero are left out.

  Raises:
    InputError: if there are fewer than three good ones, no matrix is changed by all, or the good
      ones are all alike.
  """
  if len(good) < FEWEST:
    raise InputError(
      f'{len(good)} good fine-tunes have no spread to compare with; name at least {FEWEST} with '
      '--good'
    )
  table_UCF, places = _table([update, *good])
  if not places:
    raise InputError(
      f'{update.folder} and the good ones change no matrix in common: nothing to compare'
    )
  # [updates, matrices, numbers], the audited one first; each against all others.
  z_UCF = [_z_values(table_UCF, index) for index in range(len(table_UCF))]
  distances = [_rms(z_CF) for z_CF in z_UCF]
  distance = distances[0]
  as_far = sum(other >= distance for other in distances)
  names = [str(one.folder) for one in good]
  return Comparison(
    distance=distance,
    good=dict(zip(names, distances[1:])),
    p_value=as_far / len(distances),
    by_feature={name: _rms(z_UCF[0][:, index]) for index, name in enumerate(FEATURES)},
    z_values=dict(zip(places, z_UCF[0])),
  )


def distance_from(update: Update, good: Sequence[Update]) -> float:
  """Root mean squared z value of the update against the good ones.

  Raises:
    InputError: if the good ones are all alike.
  """
  table_UCF, _ = _table([update, *good])
  return _rms(_z_values(table_UCF, 0))


def check_method(update: Update, good: Sequence[Update]) -> list[str]:
  """Lines about trainings that differ, which shift spectra too.

  Raises:
    InputError: if a good fine-tune is the audited one, or was made by another method.
  """
  lines: dict[str, None] = {}
  for one in good:
    if one.folder.resolve() == update.folder.resolve():
      raise InputError(f'{update.folder} is audited, and cannot be one of the good ones as well')
    differing = _differences(update.method, one.method)
    if differing:
      raise InputError(
        f'{one.folder} was made by another method than {update.folder}: {"; ".join(differing)}; '
        f'{ACROSS}. Name good ones made alike, or go on with --allow_other_method'
      )
    trained = _differences(update.training, one.training)
    if trained:
      lines[f'the good ones were trained otherwise: {"; ".join(trained)}'] = None
  return list(lines)


def _differences(x: Mapping[str, Any], y: Mapping[str, Any]) -> list[str]:
  """'rank [8] / [16]' for each entry that both have and that differs."""
  differing = []
  for name in x:
    if name in y and x[name] != y[name]:
      differing.append(f'{name} {_value(x[name])} / {_value(y[name])}')
  return differing


def _value(value: Any) -> str:
  if not isinstance(value, list):
    return str(value)
  return listed([str(entry) for entry in value], 4) or 'none'


def _table(updates: Sequence[Update]) -> tuple[np.ndarray, list[Where]]:
  """Numbers [updates, matrices, FEATURES], and the places of the matrices."""
  places = []
  rows = []
  for where in updates[0].spectra:
    if not all(where in one.spectra for one in updates):
      continue
    row = np.array([features(one.spectra[where]) for one in updates])
    if np.isfinite(row).all():
      places.append(where)
      rows.append(row)
  # [matrices, updates, numbers] as collected.
  return np.array(rows).reshape(len(places), len(updates), len(FEATURES)).swapaxes(0, 1), places


def _z_values(table_UCF: np.ndarray, index: int) -> np.ndarray:
  """z values of one update against all others [matrices, FEATURES].

  A number in which no two updates differ has the z value 0, as stable rank and entropy of rank 1.
  """
  others = np.delete(table_UCF, index, axis=0)
  own_CF = others.var(axis=0, ddof=1)
  # A few updates say little of one matrix's variance, so half of it is that of all matrices. The
  # constant is ours: one half keeps both in sight.
  shared_F = own_CF.mean(axis=0)
  variance_CF = (own_CF + shared_F) / 2
  constant_F = table_UCF.std(axis=0).max(axis=0) < _NO_SPREAD
  if constant_F.all() or (shared_F[~constant_F] < _NO_SPREAD**2).any():
    raise InputError('the good fine-tunes are all alike: are they copies of one?')
  # The mean of the others is uncertain too.
  spread_CF = np.sqrt(variance_CF * (1 + 1 / len(others)))
  z_CF = (table_UCF[index] - others.mean(axis=0)) / np.maximum(spread_CF, _NO_SPREAD)
  return np.where(constant_F, 0.0, z_CF)


def _rms(z: np.ndarray) -> float:
  return float(np.sqrt(np.mean(z**2)))
