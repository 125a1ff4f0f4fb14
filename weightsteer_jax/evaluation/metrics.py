"""From rows and judgements to results: means with standard errors, needing no model.

Each task's kind says what is measured, in its `metrics`; the report plots the first. Beside these
stands the failure accounting of `failures.py`, and for an arm of several system prompts
`prompt_spread`.
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

# The metric's name in results: how far an arm's system prompts are apart.
PROMPT_SPREAD = 'prompt_spread'


def results(
  rows: Iterable[Row],
  tasks: Mapping[str, config.Task] | None = None,
  judgements: Iterable[Row] = (),
  judges: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """Result rows {arm, task, metric, alpha, mean, sem, n, values}.

  They come by arm and task as these first appear, then by metric, then by alpha. `n` counts the
  examples (or questions, where an item has a `group`) behind the mean, `values` the numbers; rows
  that a metric leaves out count in neither. `sem` is the standard error clustered by example:
  several samples of one question are not several questions. The mean of no rows is null, and so is
  the error of one example.

  Args:
    tasks: {task: its options}. A task that is absent is read as of kind `choice` or `generate`,
      without its failure accounting.
    judgements: what judges said about the rows (see `measures.attach`).
    judges: names of the judges, the one whose scores count first.

  Raises:
    InputError: if the options name a metric that the kind does not have.
  """
  cells: dict[tuple[str, str], dict[float, list[Row]]] = {}
  for row in measures.attach(list(rows), list(judgements), judges):
    by_alpha = cells.setdefault((row['arm'], row['task']), {})
    by_alpha.setdefault(float(row['alpha']), []).append(row)
  result_rows = []
  for (arm, task), by_alpha in cells.items():
    metrics = metrics_of(task, (tasks or {}).get(task), by_alpha)
    for name, metric in metrics.items():
      pairs = {alpha: metric(by_alpha[alpha]) for alpha in sorted(by_alpha)}
      # Choices by likelihood are not truncated, and where no judge was asked no judge failed.
      if name in failures.METRICS and not any(pairs.values()):
        continue
      for alpha, cell in pairs.items():
        mean, sem, n = clustered_mean(cell)
        result_rows.append(_result(arm, task, name, alpha, mean, sem, n, len(cell)))
    plotted = next(iter(metrics.values()))
    for alpha in sorted(by_alpha):
      means = _means_by_prompt(by_alpha[alpha], plotted)
      # The standard deviation over an arm's system prompts; `n` counts the prompts.
      if len(means) > 1:
        spread = float(np.std(means, ddof=1))
        count = len(means)
        result_rows.append(_result(arm, task, PROMPT_SPREAD, alpha, spread, None, count, count))
  return result_rows


def _result(
  arm: str,
  task: str,
  metric: str,
  alpha: float,
  mean: float | None,
  sem: float | None,
  n: int,
  values: int,
) -> dict[str, Any]:
  return {
    'arm': arm,
    'task': task,
    'metric': metric,
    'alpha': alpha,
    'mean': mean,
    'sem': sem,
    'n': n,
    'values': values,
  }


def _means_by_prompt(rows: Sequence[Row], metric: Metric) -> list[float]:
  """The metric's mean under each system prompt that has one; [] if an arm adds no prompts."""
  by_prompt: dict[int, list[Row]] = {}
  for row in rows:
    if 'prompt' in row:
      by_prompt.setdefault(row['prompt'], []).append(row)
  means = [clustered_mean(metric(of_prompt))[0] for of_prompt in by_prompt.values()]
  return [mean for mean in means if mean is not None]


def metrics_of(
  task: str, options: config.Task | None, by_alpha: Mapping[float, Sequence[Row]]
) -> dict[str, Metric]:
  """The metrics of a task, the plotted one first, its failure accounting last."""
  if options is None:
    is_choice = all('logprobs' in row for rows in by_alpha.values() for row in rows)
    return dict(kinds.KINDS['choice' if is_choice else 'generate'].metrics)
  table = kinds.KINDS[options.kind].metrics
  first = options.metric or next(iter(table))
  if first not in table:
    raise InputError(
      f"task '{task}': its kind '{options.kind}' has no metric "
      f"'{first}'{did_you_mean(first, table)}; it has: {', '.join(table)}"
    )
  return {first: table[first], **table, **failures.METRICS}


def clustered_mean(pairs: Sequence[tuple[str, float]]) -> tuple[float | None, float | None, int]:
  """(mean, its standard error, number of clusters) of (cluster, value) pairs.

  Without pairs the mean is None, with fewer than two clusters the error is. With G clusters,
  residual sums e_g and m values in all, the variance of the mean is G / (G - 1) * sum(e_g^2) / m^2,
  which is the usual standard error when every cluster holds one value.

  Source: cluster-robust variance of a mean (Liang and Zeger 1986), with the G / (G - 1) correction;
  for evaluations, arXiv 2411.00640, section 2.2.

  >>> clustered_mean([('a', 1.0), ('a', 1.0), ('b', 0.0), ('b', 0.0)])
  (0.5, 0.5, 2)
  """
  if not pairs:
    return None, None, 0
  values = np.array([value for _, value in pairs], np.float64)
  names, clusters = np.unique([name for name, _ in pairs], return_inverse=True)
  mean = float(values.mean())
  count = len(names)
  if count < 2:
    return mean, None, count
  residual_sums = np.bincount(clusters, weights=values - mean)
  squares = float(np.sum(residual_sums**2))
  sem = math.sqrt(count / (count - 1) * squares) / len(values)
  return mean, sem, count


def write(
  workdir: str | os.PathLike,
  rows: Iterable[Row] | None = None,
  tasks: Mapping[str, config.Task] | None = None,
  judges: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """The results, which are also written to `<workdir>/results.jsonl`.

  Judgements are those of `<workdir>/sweep/judgements.jsonl`, if there are any.

  Args:
    rows: by default all rows in `<workdir>/sweep/rows.jsonl`.

  Raises:
    InputError: if there is no file of rows.
    CorruptError: if a row or a judgement is broken.
    OutputError: if the results could not be written.
  """
  folder = pathlib.Path(workdir)
  if rows is None:
    rows = row_files.read(folder / 'sweep' / 'rows.jsonl')
  result_rows = results(rows, tasks, judging.read(folder), judges)
  files.write_jsonl(folder / 'results.jsonl', result_rows)
  return result_rows
