"""What a strength costs on neutral text, in one number with its error.

kl          mean KL(base || steered) per token, nats
worst       mean of that over the 5 % of tokens where it is largest
perplexity  perplexity of the steered model by the base's, less 1: 0.1 is a tenth more

Errors go by the text: tokens of one text are not independent.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from weightsteer_jax.evaluation import intervals
from weightsteer_jax.inference.divergence import Places

# Share of the tokens that `worst` looks at.
WORST = 0.05


def kl(places: Places) -> tuple[float, float | None]:
  """(mean divergence per token, its standard error), nats."""
  return _clustered(places.texts, places.divergence)


def worst(places: Places) -> tuple[float, float | None]:
  """(mean divergence of the worst tokens, its standard error), nats."""
  count = max(1, round(WORST * len(places.divergence)))
  chosen = np.argpartition(places.divergence, -count)[-count:]
  return _clustered(places.texts[chosen], places.divergence[chosen])


def perplexity(places: Places) -> tuple[float, float | None]:
  """(perplexity by the base's, less 1; its standard error by the delta method)."""
  lost, error = _clustered(places.texts, places.lost)
  if lost > 700:
    return math.inf, None
  ratio = math.exp(lost)
  return ratio - 1, None if error is None else ratio * error


MEASURES: Mapping[str, Callable[[Places], tuple[float, float | None]]] = {
  'kl': kl,
  'worst': worst,
  'perplexity': perplexity,
}


def _clustered(texts: np.ndarray, values: np.ndarray) -> tuple[float, float | None]:
  if not np.isfinite(values).all():
    return math.inf, None
  found = intervals.estimate([(str(text), value) for text, value in zip(texts, values)])
  return float(found.mean or 0.0), found.sem
