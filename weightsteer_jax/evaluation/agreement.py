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

  The numbers are taken over the rows with a score from both judges; a pair without a common row is
  left out. `kappa` compares the two halves of the scale: scores of at least `cut`, and scores
  below. Undefined numbers are null: a kappa if both judges always give the same verdict, a
  correlation if a judge gives the same score throughout.
  """
  # purpose -> judge -> row -> score
  scores: dict[str, dict[str, dict[RowKey, float]]] = collections.defaultdict(
    lambda: collections.defaultdict(dict)
  )
  for judgement in judgements:
    # A judge that refused or failed neither agrees nor disagrees.
    if judgement['score'] is not None:
      by_row = scores[judgement['purpose']][judgement['judge']]
      by_row[key_of(judgement)] = judgement['score']
  agreements = []
  for purpose, by_judge in scores.items():
    for first, second in itertools.combinations(by_judge, 2):
      first_scores = by_judge[first]
      second_scores = by_judge[second]
      rows = [row for row in first_scores if row in second_scores]
      # Judges may be asked about different tasks, and then have no row in common.
      if not rows:
        continue
      x = np.array([first_scores[row] for row in rows], np.float64)
      y = np.array([second_scores[row] for row in rows], np.float64)
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

  Kappa is the agreement beyond chance. Chance is the agreement of two judges with the same rates of
  yes that do not look at the answers.

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
  # Both judges always say yes, or always no: kappa would be 0 / 0. Rates of yes are rounded.
  if math.isclose(expected, 1.0):
    return None
  return (observed - expected) / (1 - expected)


def pearson(x: np.ndarray, y: np.ndarray) -> float | None:
  """The correlation of two arrays; None if an array is constant."""
  dx = x - x.mean()
  dy = y - y.mean()
  squares_x = float(dx @ dx)
  squares_y = float(dy @ dy)
  norm = math.sqrt(squares_x * squares_y)
  # Constant scores have nothing to correlate with.
  if norm <= 0:
    return None
  return float(dx @ dy) / norm


def ranks(values: np.ndarray) -> np.ndarray:
  """The rank of each value from 1; equal values share the mean of their ranks.

  Pearson's correlation of ranks is Spearman's correlation of the values.

  >>> ranks(np.array([30.0, 10.0, 30.0])).tolist()
  [2.5, 1.0, 2.5]
  """
  # `groups` is each value's place among the distinct values, `counts` how often each occurs.
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

  lines = []
  for row in agreement(judgements):
    parts = [
      f'{row["purpose"]}: {row["first"]} and {row["second"]} on {row["n"]} rows',
      # The cut belongs to the line: kappa depends on where the scale is cut.
      f'kappa {number(row["kappa"])} (cut at {row["cut"]:g})',
      f'Pearson {number(row["pearson"])}',
      f'Spearman {number(row["spearman"])}',
    ]
    lines.append(', '.join(parts))
  return lines
