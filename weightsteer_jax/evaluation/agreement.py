"""How far two judges agree where both scored the same rows."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax.evaluation.judges.purposes import PURPOSES


def agreement(judgements: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Rows {purpose, first, second, n, kappa, cut, pearson, spearman}, for each purpose and pair of
  judges, over what both gave a score to.

  `kappa` is of the two halves that `cut` makes of the scale (a score of that or more, or less).
  What is not defined is null: a kappa where neither judge ever differs from one and the same
  verdict, a correlation where a judge gives one score throughout.
  """
  scores: dict[str, dict[str, dict[tuple, float]]] = {}
  for line in judgements:
    if line['score'] is not None:
      row = line['arm'], float(line['alpha']), line['task'], line['example'], line['sample']
      scores.setdefault(line['purpose'], {}).setdefault(line['judge'], {})[row] = line['score']
  found = []
  for purpose, by_judge in scores.items():
    for first, second in itertools.combinations(by_judge, 2):
      both = [row for row in by_judge[first] if row in by_judge[second]]
      if both:
        x, y = (
          np.array([by_judge[name][row] for row in both], np.float64) for name in (first, second)
        )
        cut = PURPOSES[purpose].scale.cut
        found.append(
          dict(
            purpose=purpose,
            first=first,
            second=second,
            n=len(both),
            kappa=kappa(x >= cut, y >= cut),
            cut=cut,
            pearson=pearson(x, y),
            spearman=pearson(ranks(x), ranks(y)),
          )
        )
  return found


def kappa(x: Sequence[bool], y: Sequence[bool]) -> float | None:
  """Cohen's kappa of two yes-or-no verdicts: agreement beyond what chance gives to judges with
  these rates of yes. None where chance agrees always.

  Source: Cohen 1960, A coefficient of agreement for nominal scales.

  >>> kappa([True, True, False, False], [True, False, False, False])
  0.5
  """
  x, y = np.asarray(x, bool), np.asarray(y, bool)
  observed = float(np.mean(x == y))
  expected = float(x.mean() * y.mean() + (1 - x.mean()) * (1 - y.mean()))
  return None if math.isclose(expected, 1.0) else (observed - expected) / (1 - expected)


def pearson(x: np.ndarray, y: np.ndarray) -> float | None:
  """The correlation; None where one of the two is constant."""
  x, y = x - x.mean(), y - y.mean()
  scale = math.sqrt(float(x @ x) * float(y @ y))
  return float(x @ y) / scale if scale > 0 else None


def ranks(values: np.ndarray) -> np.ndarray:
  """The rank of each value from 1, equal ones the mean of theirs: Pearson's correlation of them is
  Spearman's.

  >>> ranks(np.array([30.0, 10.0, 30.0])).tolist()
  [2.5, 1.0, 2.5]
  """
  _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
  last = np.cumsum(counts)
  return ((2 * last - counts + 1) / 2)[which]


def words(judgements: Iterable[Mapping[str, Any]]) -> list[str]:
  """The agreement, a line each, as in 'trait: gpt and qwen on 200 rows, kappa 0.71 (cut at 50),
  Pearson 0.80, Spearman 0.78'.
  """

  def say(value):
    return 'undefined' if value is None else f'{value:.2f}'

  return [
    f"{row['purpose']}: {row['first']} and {row['second']} on {row['n']} rows, kappa "
    f"{say(row['kappa'])} (cut at {row['cut']:g}), Pearson {say(row['pearson'])}, Spearman "
    f"{say(row['spearman'])}"
    for row in agreement(judgements)
  ]
