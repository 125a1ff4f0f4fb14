"""The check that a written model, read back, gives the logits of the unmerged edit."""

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

# float32: largest difference of a logit, per unit of the largest logit where that is above 1.
EXACT = 1e-4
# bfloat16: root mean square difference over the standard deviation of the logits.
ROUNDED = 0.05
# Random prompts, where none are given.
NUM_PROMPTS = 4
PROMPT_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Parity:
  """The distance between the logits of an export and of the unmerged edit.

  Attributes:
    largest_difference: the largest difference of a logit.
    relative_difference: root mean square difference over the standard deviation of the logits.
    tolerance: the difference allowed, in words.
    prompts: number of prompts compared.
    tokens: number of tokens in the prompts.
  """

  largest_difference: float
  relative_difference: float
  tolerance: str
  prompts: int
  tokens: int


def prompt_rows(
  config: models.ModelConfig, prompts: Sequence[Sequence[int]] | None
) -> tuple[np.ndarray, np.ndarray]:
  """Prompts as right-padded tokens [B, T], and the mask [B, T] of tokens without padding.

  Args:
    prompts: token ids; None is four rows of random tokens from a fixed seed.

  Raises:
    InputError: if a prompt is empty, or holds a token outside the vocabulary.
  """
  # Random tokens reach every layer as well as real ones, and need no tokenizer.
  if prompts is None:
    length = min(PROMPT_TOKENS, config.max_positions)
    random = np.random.default_rng(0)
    prompts = random.integers(0, config.vocab_size, (NUM_PROMPTS, length)).tolist()
  if not prompts or not all(prompts):
    raise InputError('the parity check needs at least one prompt, and none of them empty')
  longest = max(len(prompt) for prompt in prompts)
  # Padding on the right needs no mask in attention: no real token looks to the right.
  tokens_BT = np.zeros((len(prompts), longest), np.int32)
  mask_BT = np.zeros_like(tokens_BT, bool)
  for row, prompt in enumerate(prompts):
    length = len(prompt)
    tokens_BT[row, :length] = prompt
    mask_BT[row, :length] = True
  if tokens_BT.min() < 0 or tokens_BT.max() >= config.vocab_size:
    raise InputError(f'a parity prompt holds tokens outside the vocabulary of {config.vocab_size}')
  return tokens_BT, mask_BT


def logits(
  config: models.ModelConfig,
  params: PyTree,
  tokens_BT: np.ndarray,
  *,
  delta: PyTree | None = None,
  alpha: float = 0.0,
) -> np.ndarray:
  """Float32 logits [B, T, V], with the delta, if any, applied unmerged at alpha."""
  edits: tuple[models.Edit, ...] = ()
  if delta is not None:
    # An edit has a strength for each row of the batch.
    alphas_B = jnp.full(len(tokens_BT), alpha, jnp.float32)
    edits = (models.Edit(delta, alphas_B),)
  return np.asarray(_logits(config, params, tokens_BT, edits))


def compare(
  expected_BTV: np.ndarray, actual_BTV: np.ndarray, mask_BT: np.ndarray, *, exact: bool
) -> Parity:
  """The parity of two sets of logits where the mask is set.

  Args:
    exact: whether everything was float32, to be held to EXACT instead of ROUNDED.

  Raises:
    OutputError: if the logits are further apart than is allowed; the error gives the numbers.
  """
  # In float64, so that the comparison adds no rounding of its own.
  expected = expected_BTV[mask_BT].astype(np.float64)
  actual = actual_BTV[mask_BT].astype(np.float64)
  differences = actual - expected
  largest = float(np.abs(differences).max())
  root_mean_square = np.sqrt(np.square(differences).mean())
  # A model whose logits are all equal would divide by 0.
  deviation = max(expected.std(), 1e-30)
  relative = float(root_mean_square / deviation)
  if exact:
    difference = largest
    largest_logit = float(np.abs(expected).max())
    allowed = EXACT * max(1.0, largest_logit)
    tolerance = f'largest difference {allowed:.3g} (float32)'
  else:
    difference = relative
    allowed = ROUNDED
    tolerance = f'relative difference {allowed:.3g} (bfloat16)'
  parity = Parity(
    largest_difference=largest,
    relative_difference=relative,
    tolerance=tolerance,
    prompts=len(mask_BT),
    tokens=int(mask_BT.sum()),
  )
  # Written so that NaN, which compares false, is refused.
  if not difference <= allowed:
    raise OutputError(
      'the export was not written: read back, its logits differ from the unmerged edit by up to '
      f'{largest:.3g} (relative {relative:.3g}) on {parity.prompts} prompts; allowed is a '
      f'{tolerance}. Nothing was left behind'
    )
  return parity


# The config is static, because shapes and branches depend on the values.
@functools.partial(jax.jit, static_argnums=0)
def _logits(
  config: models.ModelConfig,
  params: PyTree,
  tokens_BT: jax.Array,
  edits: tuple[models.Edit, ...],
) -> jax.Array:
  x_BTD, _ = models.hidden(config, params, models.TokenBatch(tokens_BT), edits=edits)
  return models.logits(config, params, x_BTD, edits=edits)
