"""A score as the mean over a judge's possible answers, weighted by probability.

A drawn number throws away how sure the judge was. The expectation keeps the judge's doubt, and does
not change from draw to draw.

Source: Persona Vectors (arXiv 2507.21509), whose judge score is the probability-weighted mean of
the integers among the likeliest first tokens, null where the integers hold less than a quarter of
the probability.
"""

import math
import re
from collections.abc import Mapping, Sequence

from weightsteer_jax.evaluation.judges.purposes import Scale

# Up to three digits, for scales of 0 to 100.
_INTEGER = re.compile(r'[0-9]{1,3}')


def expectation(
  probabilities: Mapping[str, float], scale: Scale, floor: float
) -> tuple[float | None, float]:
  """(mean score, probability of all valid answers together).

  The mean is None if the probability is zero or under the floor.

  >>> from weightsteer_jax.evaluation.judges.purposes import HUNDRED
  >>> expectation({'80': 0.6, '90': 0.2, 'Well': 0.2}, HUNDRED, 0.25)
  (82.5, 0.8)
  >>> expectation({'80': 0.1, 'I': 0.9}, HUNDRED, 0.25)
  (None, 0.1)
  """
  probabilities_valid = []
  weighted = []
  for answer, probability in probabilities.items():
    # Anything off the scale ('Well', '101') lowers the total, and has no score to weigh.
    if answer in scale.values:
      probabilities_valid.append(probability)
      weighted.append(probability * scale.values[answer])
  # `fsum` rounds once, so the order of the answers does not matter.
  total = math.fsum(probabilities_valid)
  # A floor of 0 still leaves nothing to divide by where no answer is on the scale.
  if total <= 0 or total < floor:
    return None, total
  return math.fsum(weighted) / total, total


def number_tokens(first: Sequence[tuple[str, float]]) -> dict[str, float] | None:
  """{number: probability} of the integers among the likeliest first tokens.

  None if a first token need not be a whole number. Some tokenizers write 85 as 8 and 5, so a first
  token '8' may be eight or eighty-five. A tokenizer of single digits has no token of two digits, so
  the numbers count only if a number among the likeliest has two digits.

  >>> number_tokens([('85', math.log(0.5)), (' 85', math.log(0.25)), ('No', math.log(0.1))])
  {'85': 0.75}
  >>> number_tokens([('8', -0.1), ('9', -2.5)])
  """
  probabilities: dict[str, float] = {}
  for token, logprob in first:
    number = token.strip()
    # '85' and ' 85' are two tokens of one number.
    if _INTEGER.fullmatch(number):
      before = probabilities.get(number, 0.0)
      probabilities[number] = before + math.exp(logprob)
  has_two_digits = any(len(number) > 1 for number in probabilities)
  return probabilities if has_two_digits else None
