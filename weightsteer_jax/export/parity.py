"""The check before an export is let out: what was written, read back, gives the logits of the
unmerged edit.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.runtime.errors import InputError, OutputError

PyTree = Any

# float32: largest difference of a logit, per unit of the largest logit where that is above 1
EXACT = 1e-4
ROUNDED = 0.05  # bfloat16: root mean square difference over the standard deviation of the logits


@dataclasses.dataclass(frozen=True)
class Parity:
  """How an export compares with the unmerged edit.

  Attributes:
    largest_difference: of any logit. relative_difference: root mean square over the standard
      deviation of the logits.
    tolerance: what was allowed, in words. prompts, tokens: how much was compared.
  """

  largest_difference: float
  relative_difference: float
  tolerance: str
  prompts: int
  tokens: int


def prompt_rows(
  config: models.ModelConfig, prompts: Sequence[Sequence[int]] | None
) -> tuple[np.ndarray, np.ndarray]:
  """(tokens [B, T], mask [B, T] of the real ones), right-padded.

  Without prompts they are four rows of random tokens from a fixed seed.

  Raises:
    InputError: an empty prompt, a token outside the vocabulary, or more tokens than the model has
      positions.
  """
  if prompts is None:
    prompts = (
      np.random.default_rng(0)
      .integers(0, config.vocab_size, (4, min(16, config.max_positions)))
      .tolist()
    )
  if not prompts or not all(prompts):
    raise InputError('the parity check needs at least one prompt, and none of them empty')
  tokens = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, prompt in enumerate(prompts):
    tokens[row, : len(prompt)], mask[row, : len(prompt)] = prompt, True
  if tokens.min() < 0 or tokens.max() >= config.vocab_size:
    raise InputError(f'a parity prompt holds tokens outside the vocabulary of {config.vocab_size}')
  return tokens, mask


def logits(
  config: models.ModelConfig,
  params: PyTree,
  tokens_BT: np.ndarray,
  *,
  delta: PyTree | None = None,
  alpha: float = 0.0,
) -> np.ndarray:
  """Float32 logits [B, T, V], with the delta applied unmerged at alpha if there is one."""
  edits = (
    () if delta is None else (models.Edit(delta, jnp.full(len(tokens_BT), alpha, jnp.float32)),)
  )
  return np.asarray(_logits(config, params, tokens_BT, edits))


def compare(expected: np.ndarray, got: np.ndarray, mask: np.ndarray, *, exact: bool) -> Parity:
  """The parity of two [B, T, V] logits where the mask [B, T] is set.

  Args:
    exact: everything was float32, so EXACT is asked for; otherwise ROUNDED.

  Raises:
    OutputError: they are further apart than is allowed; names the numbers.
  """
  expected, got = expected[mask].astype(np.float64), got[mask].astype(np.float64)
  largest = float(np.abs(got - expected).max())
  relative = float(np.sqrt(np.square(got - expected).mean()) / max(expected.std(), 1e-30))
  allowed = EXACT * max(1.0, float(np.abs(expected).max())) if exact else ROUNDED
  measure = ('largest', 'float32') if exact else ('relative', 'bfloat16')
  tolerance = f'{measure[0]} difference {allowed:.3g} ({measure[1]})'
  parity = Parity(largest, relative, tolerance, mask.shape[0], int(mask.sum()))
  # Written so that NaN, which compares false, is refused.
  if not (largest if exact else relative) <= allowed:
    raise OutputError(
      'the export was not written: read back, its logits differ from the unmerged edit by up to '
      f'{largest:.3g} (relative {relative:.3g}) on {parity.prompts} prompts; allowed is a '
      f'{tolerance}. Nothing was left behind'
    )
  return parity


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens_BT, edits):
  x_BTD, _ = models.hidden(config, params, models.TokenBatch(tokens_BT), edits=edits)
  return models.logits(config, params, x_BTD, edits=edits)
