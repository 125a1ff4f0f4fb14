"""Factors of rotary frequencies in a GGUF file, as the fields of `rope_scaling`."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

# Of Llama 3.1 to 3.3. A file holds the factors alone, from which the numbers of the band follow up
# to a common multiple: the original context is taken to be this one.
ORIGINAL_CONTEXT = 8192
# The edges of the band in Llama 3.1 to 3.3, wavelengths per original context.
USUAL_EDGES = (1.0, 4.0)
# Factors are stored in float32.
TOLERANCE = 1e-5


def llama3_scaling(factors: np.ndarray, theta: float) -> dict[str, Any] | None:
  """The fields of `rope_scaling` that give these factors, or None if none do.

  Args:
    factors: what each frequency is divided by, from high to low frequencies.
    theta: the base frequency.

  Source: transformers `_compute_llama3_parameters`; llama.cpp convert_hf_to_gguf.py,
  `LlamaModel.generate_extra_tensors`.
  """
  factor = _rounded(float(factors.max()))
  if factor == 1.0:
    return {'rope_type': 'default'}
  count = len(factors)
  frequencies = theta ** (-np.arange(count) / count)
  waves = ORIGINAL_CONTEXT * frequencies / (2 * math.pi)
  # 0 where a frequency is divided by all of the factor, 1 where it is kept.
  shares = (1 / factors.astype(np.float64) - 1 / factor) / (1 - 1 / factor)
  for low, high in _edges(waves, shares):
    expected = np.clip((waves - low) / (high - low), 0, 1)
    again = 1 / (expected + (1 - expected) / factor)
    if np.allclose(again, factors, rtol=TOLERANCE, atol=0):
      return {
        'rope_type': 'llama3',
        'factor': factor,
        'low_freq_factor': low,
        'high_freq_factor': high,
        'original_max_position_embeddings': ORIGINAL_CONTEXT,
      }
  return None


def _edges(waves: np.ndarray, shares: np.ndarray) -> Iterator[tuple[float, float]]:
  """Edges of the band that may be the right ones, (low, high), the likeliest first.

  Args:
    waves: of each frequency, its waves in the original context.
    shares: how far up in the band each frequency lies, from 0 to 1; linear in the waves.
  """
  yield USUAL_EDGES
  inside = (shares > TOLERANCE) & (shares < 1 - TOLERANCE)
  if inside.sum() >= 2:
    slope, start = np.polyfit(waves[inside], shares[inside], 1)
    low = -start / slope
    high = low + 1 / slope
    yield _rounded(low), _rounded(high)
    yield low, high
    return
  # Each edge lies somewhere between two frequencies; where, changes nothing.
  below = waves[shares <= TOLERANCE].max(initial=0.5 * waves.min())
  above = waves[shares >= 1 - TOLERANCE].min(initial=2.0 * waves.max())
  if not inside.any():
    yield below + (above - below) / 3, above - (above - below) / 3
    return
  # A frequency between them ties one edge to the other.
  wave, share = waves[inside][0], shares[inside][0]
  yield below, below + (wave - below) / share
  yield above - (above - wave) / (1 - share), above


def _rounded(value: float) -> float:
  """The number at five digits, as people write such numbers in configs."""
  return float(f'{value:.5g}')
