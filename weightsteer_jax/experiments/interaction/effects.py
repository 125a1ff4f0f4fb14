"""Effects of mixes on tasks, with the errors of one question as a pair."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax.config import Task
from weightsteer_jax.evaluation import intervals, metrics
from weightsteer_jax.evaluation.intervals import Estimate
from weightsteer_jax.experiments.interaction.mixes import TOGETHER
from weightsteer_jax.inference.arms import BASE

Row = Mapping[str, Any]


def estimates(rows: Iterable[Row], tasks: Mapping[str, Task]) -> dict[str, dict[str, Estimate]]:
  """{task: {mix: the mean of the task's plotted metric}}."""
  cells: dict[str, dict[str, list[Row]]] = {}
  for row in rows:
    cells.setdefault(row['task'], {}).setdefault(row['arm'], []).append(row)
  found: dict[str, dict[str, Estimate]] = {}
  for task, by_arm in cells.items():
    every = {float(i): rows_of for i, rows_of in enumerate(by_arm.values())}
    name, metric = next(iter(metrics.metrics_of(task, tasks[task], every).items()))
    limits = metrics.LIMITS.get(name, (0.0, 1.0))
    found[task] = {
      arm: intervals.estimate(metric(rows_of), limits=limits) for arm, rows_of in by_arm.items()
    }
  return found


def table(means: Mapping[str, Mapping[str, Estimate]]) -> list[dict[str, Any]]:
  """A row for each mix and task: the mean, and the change from the base with its interval.

  A mix of several directions also has `beyond_sum`: its change less those of its parts, 0 where
  effects add up, with `beyond_sum_sem`.
  """
  rows = []
  for task, by_mix in means.items():
    base = by_mix[BASE]
    for mix, mean in by_mix.items():
      change = intervals.change(mean, base)
      row = {
        'mix': mix,
        'task': task,
        'mean': mean.mean,
        'sem': mean.sem,
        'change': change.mean,
        'change_sem': change.sem,
        'change_low': change.low,
        'change_high': change.high,
        'questions': mean.clusters,
      }
      parts = mix.split(TOGETHER)
      if len(parts) > 1:
        # change(mix) - sum of change(part): the base counts once less than there are parts.
        signs = [(mean, 1.0), (base, len(parts) - 1.0)]
        signs += [(by_mix[part], -1.0) for part in parts]
        row['beyond_sum'], row['beyond_sum_sem'] = contrast(signs)
      rows.append(row)
  return rows


def contrast(parts: Sequence[tuple[Estimate, float]]) -> tuple[float | None, float | None]:
  """A sum of multiples of means over the same questions, and its standard error.

  With a_g the sum of the multiples of the influences of question g, the variance is
  G / (G - 1) * sum(a_g^2), as in intervals.change.
  """
  if any(mean.mean is None for mean, _ in parts):
    return None, None
  value = math.fsum(factor * (mean.mean or 0.0) for mean, factor in parts)
  questions = sorted(set().union(*(mean.influence for mean, _ in parts)))
  if len(questions) < 2:
    return value, None
  shares = np.zeros(len(questions))
  for mean, factor in parts:
    shares += factor * np.array([mean.influence.get(question, 0.0) for question in questions])
  count = len(questions)
  return value, math.sqrt(count / (count - 1) * float(np.sum(shares**2)))
