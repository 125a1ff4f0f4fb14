"""How far two judges agree where both scored the same rows."""

import collections
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax.evaluation.judges.purposes import PURPOSES
from weightsteer_jax.evaluation.rows import RowKey, key_of


def agreement(judgements: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Rows {purpose, first, second, n, kappa, cut, pearson, spearman} for each pair of judges.

  They are taken over the rows that both judges gave a score to; pairs without such a row are left
  out. `kappa` compares the two halves that `cut` makes of the scale (a score of the cut or more, or
  less). What is not defined is null: a kappa where both judges always give one and the same
  verdict, a correlation where a judge gives one score throughout.
  """
  # purpose -> judge -> row -> score
  scores: dict[str, dict[str, dict[RowKey, float]]] = collections.defaultdict(
    lambda: collections.defaultdict(dict)
  )
  for judgement in judgements:
    if judgement['score'] is not None:
      by_row = scores[judgement['purpose']][judgement['judge']]
      by_row[key_of(judgement)] = judgement['score']
  agreements = []
  for purpose, by_judge in scores.items():
    for first, second in itertools.combinations(by_judge, 2):
      rows = [row for row in by_judge[first] if row in by_judge[second]]
      if not rows:
        continue
      x = np.array([by_judge[first][row] for row in rows], np.float64)
      y = np.array([by_judge[second][row] for row in rows], np.float64)
      cut = PURPOSES[purpose].scale.cut
      agreements.append(
        {
          'purpose': purpose,
          'first': first,
          'second': second,
          'n': len(rows),
          'kappa': kappa(x >= cut, y >= cut),
          'cut': cut,
          'pearson': pearson(x, y),
          'spearman': pearson(ranks(x), ranks(y)),
        }
      )
  return agreements


def kappa(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> float | None:
  """Cohen's kappa of two judges' yes-or-no verdicts, None where chance agrees always.

  Kappa is the agreement beyond chance, which is what judges with these rates of yes would reach
  if they did not look.

  Source: Cohen 1960, A coefficient of agreement for nominal scales.

  >>> kappa([True, True, False, False], [True, False, False, False])
  0.5
  """
  x = np.asarray(first, bool)
  y = np.asarray(second, bool)
  observed = float(np.mean(x == y))
  both_yes = x.mean() * y.mean()
  both_no = (1 - x.mean()) * (1 - y.mean())
  expected = float(both_yes + both_no)
  if math.isclose(expected, 1.0):
    return None
  return (observed - expected) / (1 - expected)


def pearson(x: np.ndarray, y: np.ndarray) -> float | None:
  """The correlation; None where one of the two is constant."""
  dx = x - x.mean()
  dy = y - y.mean()
  norm = math.sqrt(float(dx @ dx) * float(dy @ dy))
  return float(dx @ dy) / norm if norm > 0 else None


def ranks(values: np.ndarray) -> np.ndarray:
  """The rank of each value from 1; equal values share the mean of their ranks.

  Pearson's correlation of ranks is Spearman's correlation of the values.

  >>> ranks(np.array([30.0, 10.0, 30.0])).tolist()
  [2.5, 1.0, 2.5]
  """
  _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
  # A group of equal values takes the ranks from last - count + 1 to last.
  last = np.cumsum(counts)
  mean_ranks = (2 * last - counts + 1) / 2
  return mean_ranks[groups]


def words(judgements: Iterable[Mapping[str, Any]]) -> list[str]:
  """The agreement, a line for each pair of judges.

  As in 'trait: gpt and qwen on 200 rows, kappa 0.71 (cut at 50), Pearson 0.80, Spearman 0.78'.
  """

  def number(value: float | None) -> str:
    return 'undefined' if value is None else f'{value:.2f}'

  return [
    f"{row['purpose']}: {row['first']} and {row['second']} on {row['n']} rows, kappa "
    f"{number(row['kappa'])} (cut at {row['cut']:g}), Pearson {number(row['pearson'])}, Spearman "
    f"{number(row['spearman'])}"
    for row in agreement(judgements)
  ]
