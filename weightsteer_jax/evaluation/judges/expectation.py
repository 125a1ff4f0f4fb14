"""A score as the mean over the answers a judge could give, each with its probability.

One drawn number throws away how sure the judge was; the expectation keeps it, and does not change
from one draw to the next. Source: Persona Vectors (arXiv 2507.21509), whose judge score is the
probability-weighted mean of the integers among the likeliest first tokens, null where they hold
less than a quarter of the probability.
"""

import math
import re
from collections.abc import Mapping, Sequence

from weightsteer_jax.evaluation.judges.purposes import Scale

_INTEGER = re.compile(r'[0-9]{1,3}')


def expectation(
  probabilities: Mapping[str, float], scale: Scale, floor: float
) -> tuple[float | None, float]:
  """(mean score, probability of all valid answers together); the mean is None where that is under
  the floor.

  >>> from weightsteer_jax.evaluation.judges.purposes import HUNDRED
  >>> expectation({'80': 0.6, '90': 0.2, 'Well': 0.2}, HUNDRED, 0.25)
  (82.5, 0.8)
  >>> expectation({'80': 0.1, 'I': 0.9}, HUNDRED, 0.25)
  (None, 0.1)
  """
  valid = {answer: p for answer, p in probabilities.items() if answer in scale.values}
  total = math.fsum(valid.values())
  if total <= 0 or total < floor:
    return None, total
  return math.fsum(p * scale.values[answer] for answer, p in valid.items()) / total, total


def number_tokens(first: Sequence[tuple[str, float]]) -> dict[str, float] | None:
  """{number: probability} of the integers among the likeliest first tokens, or None where a first
  token is not a whole number.

  Some tokenizers write 85 as 8 and 5: then a first token '8' is eight, or eighty-five, and its
  probability says nothing. Such a tokenizer has no token of two digits, so the numbers are believed
  only if there is one among them.

  >>> number_tokens([('85', math.log(0.5)), (' 85', math.log(0.25)), ('No', math.log(0.1))])
  {'85': 0.75}
  >>> number_tokens([('8', -0.1), ('9', -2.5)])
  """
  found: dict[str, float] = {}
  for token, logprob in first:
    number = token.strip()
    if _INTEGER.fullmatch(number):
      found[number] = found.get(number, 0.0) + math.exp(logprob)
  return found if any(len(number) > 1 for number in found) else None
