"""From rows and judgements to results: means with standard errors, needing no model.

All `metrics` of a task's kind are measured; the report plots the metric that the task's options
name, by default the kind's first. The results also hold the failure accounting of
`reading/failures.py`, what became of thoughts (`reading/thinking.py`) where a model thinks, and
`prompt_spread` for an arm of several system prompts.
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
from weightsteer_jax.evaluation.reading import failures, measures, thinking
from weightsteer_jax.evaluation.reading.measures import Metric, Row
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.storage import files

# The metric's name in results: the standard deviation over an arm's system prompts.
PROMPT_SPREAD = 'prompt_spread'


def results(
  rows: Iterable[Row],
  tasks: Mapping[str, config.Task] | None = None,
  judgements: Iterable[Row] = (),
  judges: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """Result rows {arm, task, metric, alpha, mean, sem, n, values}.

  The order is by arm and task in order of appearance, then by metric, then by alpha. `n` counts the
  examples (or questions, where an item has a `group`) behind the mean, `values` the numbers; a row
  that a metric leaves out counts in neither. `sem` is the standard error clustered by example:
  several samples of a question are not several questions. The mean of no rows is null, and the
  error of a single example is null.

  Args:
    tasks: {task: its options}. A task that is absent is read as of kind `choice` or `generate`,
      without its failure accounting.
    judgements: the judges' lines about the rows (see `measures.attach`).
    judges: names of the judges; the first judge's scores count.

  Raises:
    InputError: if the options name a metric that the kind does not have.
  """
  options_of = tasks or {}
  # (arm, task) -> alpha -> the rows of a cell.
  cells: dict[tuple[str, str], dict[float, list[Row]]] = {}
  for row in measures.attach(list(rows), list(judgements), judges):
    by_alpha = cells.setdefault((row['arm'], row['task']), {})
    by_alpha.setdefault(float(row['alpha']), []).append(row)
  result_rows = []
  for (arm, task), by_alpha in cells.items():
    metrics = metrics_of(task, options_of.get(task), by_alpha)
    # Shares of thoughts say nothing where no strength thinks.
    if any(thinking.thinks(row) for rows_of in by_alpha.values() for row in rows_of):
      metrics |= thinking.METRICS
    for name, metric in metrics.items():
      pairs = {alpha: metric(by_alpha[alpha]) for alpha in sorted(by_alpha)}
      # A failure metric without any pair is left out: a choice by likelihood cannot be truncated,
      # and no judge fails where none was asked.
      optional = name in failures.METRICS or name in thinking.METRICS
      if optional and not any(pairs.values()):
        continue
      for alpha, cell in pairs.items():
        mean, sem, n = clustered_mean(cell)
        result = _result(arm, task, name, alpha, mean, sem, n, len(cell))
        result_rows.append(result)
    # The spread is of the plotted metric alone, which comes first.
    plotted = next(iter(metrics.values()))
    for alpha in sorted(by_alpha):
      means = _means_by_prompt(by_alpha[alpha], plotted)
      # The standard deviation over an arm's system prompts; `n` counts the prompts.
      if len(means) > 1:
        spread = float(np.std(means, ddof=1))
        count = len(means)
        result = _result(arm, task, PROMPT_SPREAD, alpha, spread, None, count, count)
        result_rows.append(result)
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
  """The metric's mean under each system prompt; [] if the arm adds no prompts."""
  by_prompt: dict[int, list[Row]] = {}
  for row in rows:
    if 'prompt' in row:
      by_prompt.setdefault(row['prompt'], []).append(row)
  means = []
  for prompt_rows in by_prompt.values():
    mean, _, _ = clustered_mean(metric(prompt_rows))
    # A prompt whose rows the metric leaves out has no mean.
    if mean is not None:
      means.append(mean)
  return means


def metrics_of(
  task: str, options: config.Task | None, by_alpha: Mapping[float, Sequence[Row]]
) -> dict[str, Metric]:
  """The metrics of a task, the plotted one first, its failure accounting last."""
  # The config has no such task (any more): only the columns tell the kind.
  if options is None:
    is_choice = all('logprobs' in row for rows in by_alpha.values() for row in rows)
    kind = 'choice' if is_choice else 'generate'
    return dict(kinds.KINDS[kind].metrics)
  table = kinds.KINDS[options.kind].metrics
  first = options.metric or next(iter(table))
  if first not in table:
    raise InputError(
      f"task '{task}': its kind '{options.kind}' has no metric "
      f"'{first}'{did_you_mean(first, table)}; it has: {', '.join(table)}"
    )
  # A key keeps its first place, so the rest of the table follows the plotted metric.
  return {first: table[first], **table, **failures.METRICS}


def clustered_mean(pairs: Sequence[tuple[str, float]]) -> tuple[float | None, float | None, int]:
  """(mean, its standard error, number of clusters) of (cluster, value) pairs.

  The mean is None without pairs, the error is None with fewer than two clusters. With G clusters,
  residual sums e_g and m values in all, the variance of the mean is G / (G - 1) * sum(e_g^2) / m^2.
  If every cluster holds one value, the result is the usual standard error.

  Source: cluster-robust variance of a mean (Liang and Zeger 1986), with the G / (G - 1) correction;
  for evaluations, arXiv 2411.00640, section 2.2.

  >>> clustered_mean([('a', 1.0), ('a', 1.0), ('b', 0.0), ('b', 0.0)])
  (0.5, 0.5, 2)
  """
  if not pairs:
    return None, None, 0
  values = np.array([value for _, value in pairs], np.float64)
  # `clusters` numbers each pair's cluster.
  names, clusters = np.unique([name for name, _ in pairs], return_inverse=True)
  mean = float(values.mean())
  count = len(names)
  if count < 2:
    return mean, None, count
  # Residuals are summed before squaring, so those of one question may cancel or add up.
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
  """The results, also written to `<workdir>/results.jsonl`.

  Judgements come from `<workdir>/sweep/judgements.jsonl`, if there is such a file.

  Args:
    rows: by default all rows in `<workdir>/sweep/rows.jsonl`.

  Raises:
    InputError: if the file of rows is missing, or `results` would raise it.
    CorruptError: if a row or a judgement is broken.
    OutputError: if the results could not be written.
  """
  folder = pathlib.Path(workdir)
  # A sweep that has just run passes its rows; otherwise the file may hold more than the plan.
  if rows is None:
    rows = row_files.read(folder / 'sweep' / 'rows.jsonl')
  result_rows = results(rows, tasks, judging.read(folder), judges)
  files.write_jsonl(folder / 'results.jsonl', result_rows)
  return result_rows
