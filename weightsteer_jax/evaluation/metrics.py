"""From rows and judgements to results: means with standard errors, needing no model.

What is measured is said by each task's kind, in its `metrics`; the metric that comes first is the one
the report plots. Beside it stands the failure accounting of `failures.py`, and for an arm of
several system prompts `prompt_spread`.
"""

import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax import config
from weightsteer_jax.evaluation import judging
from weightsteer_jax.evaluation import rows as row_files
from weightsteer_jax.evaluation import tasks as kinds
from weightsteer_jax.evaluation.reading import failures, measures
from weightsteer_jax.evaluation.reading.measures import Metric, Row
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.storage import files

PROMPT_SPREAD = 'prompt_spread'


def results(
  rows: Iterable[Row],
  tasks: Mapping[str, config.Task] = {},
  judgements: Iterable[Row] = (),
  judges: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """Result rows {arm, task, metric, alpha, mean, sem, n, values}: arms and tasks as they first
  appear, metrics, alphas.

  `n` counts the examples (or questions, where an item has a `group`) behind the mean, `values` the
  numbers; rows that a metric leaves out count in neither. `sem` is the standard error clustered by
  example: several samples of one question are not several questions. The mean of no rows is null,
  and so is the error of one example.

  Args:
    tasks: {task: its options}. A task that is not among them is read as of kind `choice` or
      `generate`, without its failure accounting.
    judgements: what judges said about the rows (see `measures.attach`).
    judges: their names, the one whose scores count first.

  Raises:
    InputError: the options name a metric that the kind does not have.
  """
  groups: dict[tuple[str, str], dict[float, list[Row]]] = {}
  for row in measures.attach(list(rows), list(judgements), judges):
    groups.setdefault((row['arm'], row['task']), {}).setdefault(float(row['alpha']), []).append(row)
  found = []
  for (arm, task), by_alpha in groups.items():
    alphas = sorted(by_alpha)
    for metric, pairs_of in metrics_of(task, tasks.get(task), by_alpha).items():
      pairs = {alpha: pairs_of(by_alpha[alpha]) for alpha in alphas}
      if metric in failures.METRICS and not any(pairs.values()):
        # Choices by likelihood are not truncated, and where no judge was asked none failed.
        continue
      for alpha in alphas:
        mean, sem, n = clustered_mean(pairs[alpha])
        found.append(
          dict(
            arm=arm,
            task=task,
            metric=metric,
            alpha=alpha,
            mean=mean,
            sem=sem,
            n=n,
            values=len(pairs[alpha]),
          )
        )
    found += _spreads(
      arm, task, by_alpha, next(iter(metrics_of(task, tasks.get(task), by_alpha).values()))
    )
  return found


def _spreads(
  arm: str, task: str, by_alpha: Mapping[float, Sequence[Row]], metric: Metric
) -> list[dict[str, Any]]:
  """Result rows of `prompt_spread`, where an arm asks under several system prompts: the standard
  deviation over prompts of the plotted metric's mean; `n` counts the prompts.
  """
  found = []
  for alpha, rows in sorted(by_alpha.items()):
    by_prompt: dict[int, list[Row]] = {}
    for row in rows:
      if 'prompt' in row:
        by_prompt.setdefault(row['prompt'], []).append(row)
    means = [
      mean
      for members in by_prompt.values()
      if (mean := clustered_mean(metric(members))[0]) is not None
    ]
    if len(means) > 1:
      found.append(
        dict(
          arm=arm,
          task=task,
          metric=PROMPT_SPREAD,
          alpha=alpha,
          mean=float(np.std(means, ddof=1)),
          sem=None,
          n=len(means),
          values=len(means),
        )
      )
  return found


def metrics_of(
  task: str, options: config.Task | None, by_alpha: Mapping[float, Sequence[Row]]
) -> dict[str, Metric]:
  """The metrics of a task, the plotted one first, its failure accounting last."""
  if options is None:
    choice = all('logprobs' in row for members in by_alpha.values() for row in members)
    return dict(kinds.KINDS['choice' if choice else 'generate'].metrics)
  table = kinds.KINDS[options.kind].metrics
  first = options.metric or next(iter(table))
  if first not in table:
    raise InputError(
      f"task '{task}': its kind '{options.kind}' has no metric "
      f"'{first}'{did_you_mean(first, table)}; it has: {', '.join(table)}"
    )
  return {first: table[first], **table, **failures.METRICS}


def clustered_mean(pairs: Sequence[tuple[str, float]]) -> tuple[float | None, float | None, int]:
  """(mean, its standard error, number of clusters) of (cluster, value) pairs; None where it is not
  defined.

  With G clusters, residual sums e_g and m values in all, the variance of the mean is G / (G - 1) *
  sum(e_g^2) / m^2, which is the usual standard error when every cluster holds one value. Source:
  cluster-robust variance of a mean (Liang and Zeger 1986), with the G / (G - 1) correction; for
  evaluations, arXiv 2411.00640, section 2.2.

  >>> clustered_mean([('a', 1.0), ('a', 1.0), ('b', 0.0), ('b', 0.0)])
  (0.5, 0.5, 2)
  """
  if not pairs:
    return None, None, 0
  values = np.array([value for _, value in pairs], np.float64)
  names, clusters = np.unique([name for name, _ in pairs], return_inverse=True)
  mean = float(values.mean())
  if len(names) < 2:
    return mean, None, len(names)
  sums = np.bincount(clusters, weights=values - mean)
  return (
    mean,
    math.sqrt(len(names) / (len(names) - 1) * float(np.sum(sums**2))) / len(values),
    len(names),
  )


def write(
  workdir: str | os.PathLike,
  rows: Iterable[Row] | None = None,
  tasks: Mapping[str, config.Task] = {},
  judges: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """The results, also written to `<workdir>/results.jsonl`; of all rows in
  `<workdir>/sweep/rows.jsonl` by default, with what `<workdir>/sweep/judgements.jsonl` says about
  them, if it is there.

  Raises:
    InputError: no rows there. CorruptError: a broken one. OutputError: the results could not be
      written.
  """
  workdir = pathlib.Path(workdir)
  rows = row_files.read(workdir / 'sweep' / 'rows.jsonl') if rows is None else rows
  found = results(rows, tasks, judging.read(workdir), judges)
  files.write_jsonl(workdir / 'results.jsonl', found)
  return found
